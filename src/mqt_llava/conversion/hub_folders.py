"""Folders by path or by Hub id."""

import os
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from .conversion_error import ConversionError
from .weight_files import find_weight_files


SMALL_FILES = ["*.json", "*.model", "README.md"]


def local_folder(
    name: str,
    what: str,
    revision: str | None = None,
    weights: Callable[[Path, Callable[[list[str]], object]], object] | None = find_weight_files,
) -> Path:
    """
    The folder `name`, or the repository of that id fetched from the Hub.

    Args:
        name: A path or a Hub id.
        what: What it is, for the error: "--input", ...
        revision: A branch, tag or commit of the repository; `None`: its newest.
        weights: Fetches the weights, given the folder with the small files around them and a function that fetches
            files by their names; `None`: they are not needed.

    Raises:
        ConversionError: There is no such folder, and the Hub does not give it either.
    """
    if os.path.exists(name):
        if not os.path.isdir(name):
            raise ConversionError(f"{what} {name!r} is a file, but must be a folder or a Hub id.")
        if revision is not None:
            raise ConversionError(f"--revision is for a Hub id, but {what} {name!r} is a folder on this disk.")
        return Path(name)

    def fetch(names: list[str]) -> Path:
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=names))
        # Without a network it is an error of the HTTP library's own, which is no OSError.
        except Exception as error:
            raise ConversionError(
                f"{what} {name!r} is no folder, and the Hub does not give it either: {first_line(error)}"
            ) from error

    folder = fetch(SMALL_FILES)
    if weights is not None:
        weights(folder, fetch)
    return folder


def push(folder: Path, repo_id: str) -> None:
    """Uploads a finished folder into the model repository `repo_id`, which is made if it is not there."""
    try:
        HfApi().create_repo(repo_id, exist_ok=True)
        HfApi().upload_folder(folder_path=folder, repo_id=repo_id)
    except Exception as error:
        raise ConversionError(
            f"--push-to-hub {repo_id!r} failed, but {folder} is finished: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
