"""
A folder that appears as a whole or not at all.

Everything is written into a hidden sibling and renamed when it is finished. Whatever ends the program earlier, an
exception, a full disk or a kill, nothing half-written ever has the folder's name.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """
    Yields the sibling `.<name>.partial-<pid>` to write into, which becomes `target` when the block ends well.

    Two runs for one target at the same time are not supported (the later one wins).

    Args:
        target: The folder to make.
        overwrite: Whether to replace a folder that is there. It stays as it is until the new one is finished. Without
            it, a folder that is not empty by then is left alone.

    Raises:
        OSError: Nothing can be written there.
    """
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    made = [parent for parent in partial.parents if not parent.exists()]
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise OSError(f"The output folder {target} cannot be made: {error.strerror}.") from error
        yield partial
        swap(partial, target, overwrite)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            remove_if_empty(parent)
        raise


def swap(new: Path, target: Path, overwrite: bool) -> None:
    """Gives `new` the name of `target`. A folder that had it is moved aside before and removed after."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if not overwrite or not target.exists():
        if target.exists():
            # Fails if something was put into it in the meantime.
            target.rmdir()
        new.rename(target)
        return
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass


def clean_up(target: Path) -> None:
    """Removes what killed runs left beside `target`, and puts an old folder back whose new one did not come."""
    if not target.parent.is_dir():
        return
    for sibling in list(target.parent.iterdir()):
        found = re.fullmatch(rf"\.{re.escape(target.name)}\.(partial|old)-\d+", sibling.name)
        if not found or sibling.is_symlink() or not sibling.is_dir():
            continue
        if found[1] == "partial" or target.exists():
            shutil.rmtree(sibling)
        else:
            sibling.rename(target)
