"""
A log of JSON objects, a line for each, to which one process adds at a time.

A kill or a full disk can tear the last line only. Readers leave it out, and the next line that is added replaces it.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_json_lines(path: Path) -> tuple[list[Any], bytes]:
    """
    The objects of all whole lines, none where there is no file, and what is there of one more: a killed process's, or
    one that another process is about to finish.
    """
    *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return [json.loads(line) for line in lines], torn


def append_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Adds lines, in ASCII, since names of files need not be valid text. Folders on the way are made."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(lines)
