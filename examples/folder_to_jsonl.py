"""
Asks one question about every image in folders, and writes a line of JSON for each answer:

    python examples/folder_to_jsonl.py holiday/ scans/ --question "What is in the picture?" --output answers.jsonl

Folders are searched with all that is in them. A line has the image's path, the model, the question, what was asked for
in `--num-visual-tokens` (a number or "auto"), the visual tokens that were used, and the answer; for a file that cannot
be read, the error. Started again after a kill, it goes on with what has no answer yet. With another question, number
or model the same file gets further lines.

For many images `--engine vllm`, which writes the same lines. docs/serving.md says how to spread them over machines.
"""

import argparse
import importlib.util
import json
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from folder_engines import ENGINES
from PIL import Image
from tqdm import tqdm


REPOSITORY = Path(__file__).parents[1]
AUTO = 'a number, or "auto", the default: as many as each image needs'
AT_ONCE = "images in memory at once: by default " + ", ".join(
    f"{engine.default_batch_size} with {name}" for name, engine in ENGINES.items()
)
OPTIONS = """what else the engine takes, as JSON: {"dtype": "bfloat16"}, for vLLM {"tensor_parallel_size": 2}"""


def find_images(folders: list[Path]) -> list[Path]:
    """All files below the folders whose names end like those of images that PIL reads."""
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths = [path for folder in folders for path in folder.resolve().rglob("*") if path.suffix.lower() in endings]
    return sorted({path for path in paths if path.is_file()})


def find_answered(output: Path, asked: dict) -> set[str]:
    """
    The paths of images that have an answer from an earlier run. A line at a time, as there may be a million.

    Raises:
        ValueError: The file holds anything else than lines of this script.
    """
    answered, start = set(), b'{"image": "'
    try:
        with open(output, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):  # a kill tore it, and the next line replaces it
                    if line[: len(start)] != start[: len(line)]:
                        raise ValueError("it ends in something else")
                    break
                row = json.loads(line)
                if not (isinstance(row, dict) and row.keys() >= {"image", *asked}):
                    raise ValueError(f"there is a line without image, {', '.join(asked)}")
                if row.items() >= asked.items() and "answer" in row:
                    answered.add(row["image"])
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise ValueError(f"{output} is there, but was not written by this script: {error}") from error
    return answered


def to_num_visual_tokens(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number, nor "auto"') from None


def to_options(text: str) -> dict:
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return options


def read_image(path: Path) -> Image.Image | str:
    """In RGB, or why it cannot be read."""
    from mqt_llava.models.processing_compressed_llava import load_rgb

    try:
        return load_rgb(path, index=0)
    except ValueError as error:
        return str(error.__cause__ or error)


def answer_batch(engine, threads: Executor, paths: list[Path], asked: dict) -> list[dict]:
    """The lines of a batch. Its images are in memory no longer than this takes."""
    lines = {path: {"image": str(path), **asked} for path in paths}
    images = dict(zip(paths, threads.map(read_image, paths)))
    for path in paths:
        if isinstance(images[path], str):
            lines[path]["error"] = images.pop(path)
    answers = engine.answer(list(images.values())) if images else []
    for path, (num_visual_tokens, text) in zip(images, answers):
        lines[path].update(num_visual_tokens=num_visual_tokens, answer=text)
    return list(lines.values())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--question", required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; goes on where it ends")
    parser.add_argument("--model", default=str(REPOSITORY / "model_cards" / "mqt-llava-tiny"), help="folder or Hub id")
    parser.add_argument("--num-visual-tokens", type=to_num_visual_tokens, default="auto", help=AUTO)
    parser.add_argument("--engine", choices=ENGINES, default="transformers")
    parser.add_argument("--engine-options", type=to_options, default={}, help=OPTIONS)
    parser.add_argument("--batch-size", type=int, help=AT_ONCE)
    parser.add_argument("--max-new-tokens", type=int, default=100)
    args = parser.parse_args(arguments)
    if args.batch_size is None:
        args.batch_size = ENGINES[args.engine].default_batch_size
    for folder in args.folders:
        if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
            parser.error(f"there is no folder {folder} that can be read")
    for name in ("batch_size", "max_new_tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}, but must be at least 1")
    if not args.question.strip():
        parser.error("--question is empty")
    if args.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        parser.error('--engine vllm needs vLLM: pip install "mqt_llava[serve]"')
    asked = {"model": args.model, "question": args.question, "asked_visual_tokens": args.num_visual_tokens}
    try:
        answered = find_answered(args.output, asked)
        args.output.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(f"--output: {error}")

    paths = find_images(args.folders)
    to_do = [path for path in paths if str(path) not in answered]
    print(f"{len(paths)} images, {len(paths) - len(to_do)} of them answered already")
    if not to_do:
        return

    # Slow to import, and so after the flags.
    from transformers import AutoConfig

    from mqt_llava import MQTLlavaConfig
    from mqt_llava.files.json_lines import append_json_lines

    try:
        config = AutoConfig.from_pretrained(args.model)
    except (OSError, ValueError) as error:
        parser.error(f"--model {args.model} cannot be loaded: {error}")
    if not isinstance(config, MQTLlavaConfig):
        parser.error(f"--model is a {config.model_type}, whose number of visual tokens cannot be chosen")
    most = config.max_visual_tokens
    if args.num_visual_tokens != "auto" and not 1 <= args.num_visual_tokens <= most:
        parser.error(f"--num-visual-tokens is {args.num_visual_tokens}, but this model has 1 to {most}")
    try:
        engine = ENGINES[args.engine](args)
    except (OSError, TypeError, ValueError) as error:
        parser.error(f"--model {args.model} cannot be loaded: {error}")

    num_errors = 0
    append_json_lines(args.output, [])  # a file that cannot be written is known before the first answer
    with ThreadPoolExecutor() as threads, tqdm(total=len(to_do), unit="image") as progress:
        for start in range(0, len(to_do), args.batch_size):
            lines = answer_batch(engine, threads, to_do[start : start + args.batch_size], asked)
            append_json_lines(args.output, lines)
            num_errors += sum("error" in line for line in lines)
            progress.update(len(lines))
    print(f"{args.output}: {len(to_do)} lines more" + (f", {num_errors} files cannot be read" if num_errors else ""))


if __name__ == "__main__":
    main()
