"""Where a conversion may put its output: the one place that decides which folder is made, and which is replaced."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open

from .conversion_error import ConversionError, blaming, listed
from .shard_writer import METADATA


WRITTEN_NAMES = re.compile(
    r"(config|generation_config|processor_config|tokenizer|tokenizer_config)\.json|chat_template\.jinja|README\.md"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|\w+\.py"
)
CODE_BEGINS = b"# Copyright 2026 The mqt_llava authors."  # of each code file that travels with a checkpoint


def check_output(output: str, overwrite: bool, inputs: Iterable[Path]) -> Path:
    """
    Args:
        output: What `--output` says.
        overwrite: Whether a folder that a conversion wrote may be replaced.
        inputs: Folders that the conversion reads.

    Returns:
        The folder to make, its links followed.

    Raises:
        ConversionError: The output is no possible name; is the current folder, the home folder, an input, or a folder
            that one of these lies in; is a file or a mounted disk; or holds something that may not be replaced. That
            is everything without `overwrite`, and with it everything that no conversion wrote.
    """
    if not output.strip():
        raise ConversionError("--output is empty. Give the name of a folder to make.")
    with blaming(f"--output {output!r} cannot be the name of a folder"):
        output.encode()
        target = Path(output).resolve()
        is_there = target.exists()
    kept = [("the current folder", Path.cwd()), ("the home folder", Path(os.path.expanduser("~")))]
    for what, path in kept + [(f"the input {path}", path) for path in inputs]:
        path = path.resolve()
        folders = (path, *path.parents)
        # Beside names, the folders themselves are compared: one folder can have many names.
        if target in folders or is_there and any(os.path.samefile(target, folder) for folder in existing(folders)):
            raise ConversionError(f"--output {output} is, or contains, {what}. Choose another folder.")
    if not is_there:
        return target
    if not target.is_dir():
        raise ConversionError(f"The output {target} is a file, not a folder.")
    if os.path.ismount(target):
        raise ConversionError(f"The output {target} is a mounted disk, not a folder on one. Name a folder in it.")
    foreign = unwritten(target)
    if foreign:
        raise ConversionError(
            f"The output folder {target} is not empty, and no conversion wrote what is in it: {listed(foreign)}. "
            "--overwrite replaces only what a conversion wrote. Choose another folder."
        )
    if not overwrite and any(target.iterdir()):
        raise ConversionError(f"The output folder {target} is not empty. Pass --overwrite to replace it.")
    return target


def existing(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.exists()]


def unwritten(folder: Path) -> list[str]:
    """
    What in a folder no conversion wrote. The names of files say so, the first line of code, and a mark inside the
    weights: what was trained and saved from a converted checkpoint has the same names.
    """
    entries = list(folder.iterdir())
    weights = [entry for entry in entries if entry.suffix == ".safetensors" and entry.is_file()]
    foreign = {entry.name for entry in entries if not WRITTEN_NAMES.fullmatch(entry.name) or not is_own_file(entry)}
    foreign |= {file.name for file in weights if not has_mark(file)}
    # Without weights of ours, nothing tells a conversion's README.md from anybody's.
    return sorted(foreign if weights else {entry.name for entry in entries})


def is_own_file(entry: Path) -> bool:
    if not entry.is_file() or entry.is_symlink():
        return False
    return entry.suffix != ".py" or entry.read_bytes().startswith(CODE_BEGINS)


def has_mark(file: Path) -> bool:
    """Whether `shard_writer` wrote a safetensors file."""
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() == METADATA
    # Whatever it is then, it is not ours.
    except Exception:
        return False
