"""
Asks one question about every image in folders, and writes a line of JSON for each answer:

    python examples/folder_to_jsonl.py holiday/ scans/ --question "What is in the picture?" --output answers.jsonl

Folders are searched with all that is in them. A line has the image's path, the model, the question, what was asked for
in `--num-visual-tokens` (a number or "auto"), the visual tokens that were used, and the answer; for a file that cannot
be read, the error. Started again after a kill, it goes on with what has no answer yet. With another question, number
or model the same file gets further lines.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm


REPOSITORY = Path(__file__).parents[1]
AUTO = 'a number, or "auto", the default: as many as each image needs'
KEYS = ("image", "model", "question", "asked_visual_tokens")  # of each line


def find_images(folders: list[Path]) -> list[Path]:
    """All files below the folders whose names end like those of images that PIL reads."""
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths = [path for folder in folders for path in folder.resolve().rglob("*") if path.suffix.lower() in endings]
    return sorted({path for path in paths if path.is_file()})


def read_lines(output: Path) -> list[dict]:
    """
    The lines of an earlier run.

    Raises:
        ValueError: The file holds anything else.
    """
    from mqt_llava.files.json_lines import read_json_lines

    try:
        lines, torn = read_json_lines(output)
        if not all(isinstance(line, dict) and line.keys() >= set(KEYS) for line in lines):
            raise ValueError(f"there is a line without {', '.join(KEYS)}")
        start = b'{"image": "'
        if torn[: len(start)] != start[: len(torn)]:
            raise ValueError("it ends in something else")
    except ValueError as error:
        raise ValueError(f"{output} is there, but was not written by this script: {error}") from error
    return lines


def to_num_visual_tokens(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number, nor "auto"') from None


def answer_batch(model, processor, images: list[Image.Image], question: str, num_visual_tokens, max_new_tokens: int):
    """An answer to the question and the visual tokens it took, for each image."""
    messages = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
        for image in images
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    outputs = model.generate(
        **inputs,
        num_visual_tokens=num_visual_tokens,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
    )
    new_tokens = outputs.sequences[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in processor.batch_decode(new_tokens, skip_special_tokens=True)]
    used = outputs.visual_token_level.tolist() if num_visual_tokens == "auto" else [num_visual_tokens] * len(texts)
    return zip(texts, used)


def answer_lines(model, processor, paths: list[Path], args) -> Iterator[list[dict]]:
    """The lines of one batch of images after the other."""
    from mqt_llava.models.processing_compressed_llava import load_rgb

    for start in range(0, len(paths), args.batch_size):
        lines, images = {}, {}
        for path in paths[start : start + args.batch_size]:
            asked = {"model": args.model, "question": args.question, "asked_visual_tokens": args.num_visual_tokens}
            lines[path] = {"image": str(path), **asked}
            try:
                images[path] = load_rgb(path, index=0)
            except ValueError as error:
                lines[path]["error"] = str(error.__cause__ or error)
        if images:
            answers = answer_batch(
                model, processor, list(images.values()), args.question, args.num_visual_tokens, args.max_new_tokens
            )
            for path, (text, used) in zip(images, answers):
                lines[path].update(num_visual_tokens=used, answer=text)
        yield list(lines.values())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--question", required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; goes on where it ends")
    parser.add_argument("--model", default=str(REPOSITORY / "model_cards" / "mqt-llava-tiny"), help="folder or Hub id")
    parser.add_argument("--num-visual-tokens", type=to_num_visual_tokens, default="auto", help=AUTO)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=100)
    args = parser.parse_args(arguments)
    for folder in args.folders:
        if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
            parser.error(f"there is no folder {folder} that can be read")
    for name in ("batch_size", "max_new_tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}, but must be at least 1")
    if not args.question.strip():
        parser.error("--question is empty")
    try:
        earlier = read_lines(args.output)
        args.output.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(f"--output: {error}")

    asked = (args.model, args.question, args.num_visual_tokens)
    is_answered = {
        line["image"]
        for line in earlier
        if (line["model"], line["question"], line["asked_visual_tokens"]) == asked and "answer" in line
    }
    paths = find_images(args.folders)
    to_do = [path for path in paths if str(path) not in is_answered]
    print(f"{len(paths)} images, {len(paths) - len(to_do)} of them answered already")
    if not to_do:
        return
    # Slow to import, and so after the flags.
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mqt_llava import MQTLlavaForConditionalGeneration
    from mqt_llava.files.json_lines import append_json_lines

    try:
        model = AutoModelForImageTextToText.from_pretrained(args.model, device_map="auto").eval()
        processor = AutoProcessor.from_pretrained(args.model)
    except (OSError, ValueError) as error:
        parser.error(f"--model {args.model} cannot be loaded: {error}")
    if not isinstance(model, MQTLlavaForConditionalGeneration):
        parser.error(f"--model is a {type(model).__name__}, whose number of visual tokens cannot be chosen")
    most = model.config.max_visual_tokens
    if args.num_visual_tokens != "auto" and not 1 <= args.num_visual_tokens <= most:
        parser.error(f"--num-visual-tokens is {args.num_visual_tokens}, but this model has 1 to {most}")

    num_errors = 0
    append_json_lines(args.output, [])  # a file that cannot be written is known before the first answer
    with torch.inference_mode(), tqdm(total=len(to_do), unit="image") as progress:
        for lines in answer_lines(model, processor, to_do, args):
            append_json_lines(args.output, lines)
            num_errors += sum("error" in line for line in lines)
            progress.update(len(lines))
    print(f"{args.output}: {len(to_do)} lines more" + (f", {num_errors} files cannot be read" if num_errors else ""))


if __name__ == "__main__":
    main()
