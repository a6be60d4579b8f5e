"""
Answers questions about pictures with several numbers of visual tokens: `make demo`.

    python examples/answer_at_budgets.py [--model FOLDER_OR_HUB_ID] [--image PICTURE --question "What is this?"]

Each picture is encoded once, with all its tokens; every number of tokens answers from those. Prints the answers, with
the time and the length of the prompt, and saves them beside the pictures as runs/demo.png, or runs/PICTURE_answers.png
for a picture of your own. Without --image it asks about the mosaics in examples/images, whose items (photos of
Fashion-MNIST's test split) the embedded checkpoint has never seen.
"""

import argparse
import json
import os
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


REPOSITORY = Path(__file__).parents[1]
IMAGES = REPOSITORY / "examples" / "images"
RIGHT, WRONG, INK = "#0072B2", "#D55E00", "#222222"  # told apart by colour-blind people too


def ask(model, processor, image: Image.Image, question: str, budgets: list[int]) -> list[dict]:
    """The answer at each number of visual tokens, with its seconds and the length of its prompt."""
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    most = int(inputs["visual_token_counts"])
    encoded = model.get_image_features(inputs.pop("pixel_values"))
    answers = []
    for budget in budgets:
        start = time.perf_counter()
        output = model.generate(
            **inputs,
            mm_encoder_outputs={"image": encoded},
            num_visual_tokens=budget,
            max_new_tokens=80,
            do_sample=False,
        )
        seconds, length = time.perf_counter() - start, inputs["input_ids"].shape[1]
        text = processor.decode(output[0, length:], skip_special_tokens=True).strip()
        answers.append({"budget": budget, "text": text, "seconds": seconds, "prompt": length - most + budget})
    return answers


def draw(panels: list[tuple[Image.Image, list[tuple[str, str | None, list[dict]]]]], path: Path) -> None:
    """Each picture with its questions and answers to its right; right answers blue, wrong ones orange."""
    side, line, margin = 420, 21, 20
    font, small = ImageFont.load_default(17), ImageFont.load_default(15)
    texts = [answer["text"] for _, rows in panels for *_, answers in rows for answer in answers]
    width = 100 + round(max(small.getlength(text) for text in [" " * 60, *texts]))
    heights = [max(side, sum(line * (len(answers) + 1) + 10 for *_, answers in rows)) for _, rows in panels]
    canvas = Image.new("RGB", (side + width + 3 * margin, sum(heights) + margin * (len(panels) + 1)), "white")
    pen, top = ImageDraw.Draw(canvas), margin
    for (image, rows), height in zip(panels, heights):
        scale = side / max(image.size)
        canvas.paste(image.resize([round(edge * scale) for edge in image.size]), (margin, top))
        left, y = side + 2 * margin, top
        for question, truth, answers in rows:
            pen.text((left, y), question, fill=INK, font=font)
            y += line + 2
            for answer in answers:
                colour = INK if truth is None else RIGHT if answer["text"] == truth else WRONG
                pen.text((left + 12, y), f"m = {answer['budget']}", fill=INK, font=small)
                pen.text((left + 80, y), answer["text"], fill=colour, font=small)
                y += line
            y += 8
        top += height + margin
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REPOSITORY / "model_cards" / "mqt-llava-tiny"))
    parser.add_argument("--image", help="a picture of your own; needs --question")
    parser.add_argument("--question")
    parser.add_argument("--num-visual-tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--output", type=Path, help="runs/demo.png, or runs/PICTURE_answers.png of your own picture")
    args = parser.parse_args(argv)
    if bool(args.image) != bool(args.question):
        parser.error("--image and --question go together")

    if args.image:
        tasks = {args.image: [(args.question, None)]}
        output = args.output or REPOSITORY / "runs" / f"{Path(args.image).stem}_answers.png"
    else:
        tasks = {
            str(IMAGES / name): pairs for name, pairs in json.loads((IMAGES / "questions.json").read_text()).items()
        }
        output = args.output or REPOSITORY / "runs" / "demo.png"
    if missing := [path for path in tasks if not Path(path).is_file()]:
        parser.error(f"--image: there is no file {missing[0]}")

    # Slow to import, and so after the flags.
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mqt_llava.models.processing_compressed_llava import load_rgb

    images = {}
    for path in tasks:
        try:
            images[path] = load_rgb(path, index=0)
        except ValueError as error:
            parser.error(f"--image: {path} cannot be read: {error.__cause__ or error}")
    model = AutoModelForImageTextToText.from_pretrained(args.model).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    if not all(1 <= budget <= processor.max_visual_tokens for budget in args.num_visual_tokens):
        parser.error(
            f"--num-visual-tokens {args.num_visual_tokens}: this model has 1 to {processor.max_visual_tokens}"
        )

    panels = []
    for path, pairs in tasks.items():
        rows = []
        print(f"\n{os.path.relpath(path)}")
        for question, truth in pairs:
            with torch.inference_mode():
                answers = ask(model, processor, images[path], question, args.num_visual_tokens)
            rows.append((question, truth, answers))
            print(f"  {question}" + (f"  (right: {truth})" if truth else ""))
            for answer in answers:
                print(
                    f"    {answer['budget']:3} visual tokens, prompt of {answer['prompt']:3} tokens, "
                    f"{1000 * answer['seconds']:6.0f} ms: {answer['text']}"
                )
        panels.append((images[path], rows))
    draw(panels[:2], output)
    print(f"\nSaved {os.path.relpath(output)}")


if __name__ == "__main__":
    main()
