"""Files as they are found on disks: JSON that may hold anything, and pointers that stand where a file should be."""

import json
import os
from pathlib import Path

from .conversion_error import ConversionError


LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_json(file: Path) -> dict:
    """
    Raises:
        ConversionError: There is no such file, or it is not a JSON object.
    """
    try:
        refuse_lfs_pointer(file)
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse_constant)
    except FileNotFoundError:
        if file.is_symlink():
            raise ConversionError(f"{file} is a link to a file that is not there.") from None
        raise ConversionError(f"There is no {file.name} in {file.parent}.") from None
    except ConversionError:
        raise
    except RecursionError:
        raise ConversionError(f"{file} is not readable as JSON: it is nested too deeply.") from None
    except (OSError, ValueError) as error:
        raise ConversionError(f"{file} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{file} is not a JSON object.")
    return content


def read_optional_json(file: Path) -> dict:
    """As `read_json`, and empty if nothing has the file's name. What has it and cannot be read is no missing file."""
    return read_json(file) if os.path.lexists(file) else {}


def check_types(content: dict, types: dict[str, tuple[type, ...]], file: Path) -> None:
    """
    Raises:
        ConversionError: A value of `content` is of none of the `types` that its name may have. `true` is no number.
    """
    for name, allowed in types.items():
        if name in content and type(content[name]) not in allowed:
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
            raise ConversionError(f"{file}: {name} is {content[name]!r}, but must be of the type {names}.")


def refuse_constant(name: str) -> None:
    # Python reads them, JSON does not have them, and no setting means them.
    raise ValueError(f"{name} is no number of JSON")


def refuse_lfs_pointer(file: Path) -> None:
    """
    Raises:
        ConversionError: The repository was cloned without Git LFS, so that a few lines of text stand for the file.
    """
    if starts_with(file, LFS_POINTER):
        raise ConversionError(
            f"{file} is a Git-LFS pointer: a few lines of text that stand for the file. `git lfs pull` in "
            f"{file.parent} gets the file itself, as does a download from the Hub."
        )


def starts_with(file: Path, start: bytes) -> bool:
    with open(file, "rb") as stream:
        return stream.read(len(start)) == start
