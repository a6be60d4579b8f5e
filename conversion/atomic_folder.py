"""
A folder that appears as a whole or not at all.

Everything is written into a hidden sibling and renamed when it is finished. Whatever ends the program earlier, an
exception, a full disk or a kill, nothing half-written ever has the folder's name.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conversion_error import ConversionError


@contextmanager
def atomic_folder(target: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """
    Yields the sibling `.<name>.partial-<pid>` to write into, which becomes `target` when the block ends well.

    Siblings that a killed run for the same target left behind are removed first; two runs for one target at the same
    time are therefore not supported (the later one wins).

    Args:
        target: The folder to make.
        overwrite: Whether a folder that is there may be replaced. It stays as it is until the new one is finished.

    Raises:
        ConversionError: `target` is a file, or a folder that is not empty and `overwrite` is false.
    """
    target = Path(target).resolve()
    clean_up(target)
    if target.exists() and not target.is_dir():
        raise ConversionError(f"The output {target} is a file, not a folder.")
    if not overwrite and target.exists() and any(target.iterdir()):
        raise ConversionError(f"The output folder {target} is not empty. Pass --overwrite to replace it.")

    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        swap(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def swap(new: Path, target: Path) -> None:
    """Gives `new` the name of `target`. A folder that had it is moved aside before and removed after."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def clean_up(target: Path) -> None:
    """Removes what killed runs left beside `target`, and puts an old folder back whose new one did not come."""
    if not target.parent.is_dir():
        return
    for sibling in list(target.parent.iterdir()):
        if sibling.name.startswith(f".{target.name}.partial-"):
            shutil.rmtree(sibling)
        elif sibling.name.startswith(f".{target.name}.old-"):
            if target.exists():
                shutil.rmtree(sibling)
            else:
                sibling.rename(target)
