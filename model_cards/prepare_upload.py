"""
Makes the folder that goes to the Hub from one that lies here.

    python model_cards/prepare_upload.py mqt-llava-tiny --repo-id you/mqt-llava-tiny --output runs/hub/mqt-llava-tiny
    hf upload you/mqt-llava-tiny runs/hub/mqt-llava-tiny

It holds the code files besides, by which the model opens where this package is not installed, and its card names the
repository. The folder must be new.
"""

import argparse
import shutil
import sys
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor

import mqt_llava  # noqa: F401


FOLDER = Path(__file__).parent
REPO_ID = "you/{name}"  # as a card here calls its repository


def prepare(name: str, repo_id: str, output: Path) -> None:
    """
    Args:
        name: Of a folder beside this file, with weights.
        repo_id: Where it will be uploaded to.
        output: The folder to make.

    Raises:
        OSError: There is no such checkpoint, or the output is there already.
    """
    folder = FOLDER / name
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder} holds no weights.")
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    shutil.copytree(folder, output)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    card = output / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace(REPO_ID.format(name=name), repo_id), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of a folder in model_cards/ that holds weights")
    parser.add_argument("--repo-id", required=True, metavar="ID", help="the repository that it will be uploaded to")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="the folder to make")
    args = parser.parse_args(argv)
    try:
        prepare(args.name, args.repo_id, args.output)
    except OSError as error:
        sys.exit(f"error: {error}")
    print(f"Made {args.output}. To upload it: hf upload {args.repo_id} {args.output}")


if __name__ == "__main__":
    main()
