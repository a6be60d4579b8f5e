"""A file that appears as a whole or not at all."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """
    Writes a hidden sibling and renames it when it is finished. Whatever ends the program earlier, an exception, a full
    disk or a kill, what has the file's name is what was there before. Folders on the way are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
