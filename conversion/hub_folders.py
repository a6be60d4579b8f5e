"""Folders by path or by Hub id."""

from pathlib import Path

from conversion_error import ConversionError
from huggingface_hub import HfApi, snapshot_download


SMALL_FILES = ["*.json", "*.model", "README.md"]


def local_folder(name: str, what: str, weights: bool = True) -> Path:
    """
    The folder (or file) `name`, or the repository of that id fetched from the Hub.

    Args:
        name: A path or a Hub id.
        what: What it is, for the error: "--input", ...
        weights: Whether weights are needed, or only the small files around them.

    Raises:
        ConversionError: There is no such path, and the Hub does not give it either.
    """
    if Path(name).exists():
        return Path(name)
    try:
        folder = Path(snapshot_download(name, allow_patterns=SMALL_FILES + ["*.safetensors"] * weights))
        if weights and not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=SMALL_FILES + ["*.bin"]))
        return folder
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{what} {name!r} is no folder, and the Hub does not give it either: {first_line(error)}"
        ) from error


def push(folder: Path, repo_id: str) -> None:
    """Uploads a finished folder into the model repository `repo_id`, which is made if it is not there."""
    try:
        HfApi().create_repo(repo_id, exist_ok=True)
        HfApi().upload_folder(folder_path=folder, repo_id=repo_id)
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"--push-to-hub {repo_id!r} failed, but {folder} is finished: {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
