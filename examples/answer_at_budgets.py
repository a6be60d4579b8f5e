"""
Answers questions about pictures with several numbers of visual tokens: `make demo`.

    python examples/answer_at_budgets.py [--model FOLDER_OR_HUB_ID] [--image PICTURE --question "What is this?"]

Each picture is encoded once, with all its tokens; every number of tokens answers from those. Prints the answers, with
the time and the length of the prompt, and saves a grid of them beside the pictures as runs/demo.png, or
runs/PICTURE_answers.png for a picture of your own. Without --image it asks about the mosaics in examples/images, whose
items (photos of Fashion-MNIST's test split) the embedded checkpoint has never seen. Wrong answers are orange
and shaded.
"""

import argparse
import json
import os
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


REPOSITORY = Path(__file__).parents[1]
IMAGES = REPOSITORY / "examples" / "images"
WIDTH, MARGIN, LINE, SIDE, ASKED = 1350, 24, 26, 300, 250  # of the picture, in pixels; ASKED: of the questions' column


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
    """Beside each picture a grid: a row for each question, a column for each number of visual tokens."""
    from mqt_llava.plotting import BLUE, GRAY, INK, ORANGE

    font = ImageFont.load_default(20)
    budgets = [answer["budget"] for answer in panels[0][1][0][2]]
    left = 2 * MARGIN + SIDE
    column = (WIDTH - left - ASKED - MARGIN) // len(budgets)

    def wrap(text: str, width: int) -> list[str]:
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            lines = [*lines[:-1], longer] if font.getlength(longer) <= width or not lines[-1] else [*lines, word]
        return lines

    def write(x: int, y: int, lines: list[str], colour: str) -> None:
        for number, line in enumerate(lines):
            pen.text((x, y + number * LINE), line, fill=colour, font=font)

    def cells(question: str, answers: list[dict]) -> list[list[str]]:
        return [wrap(question, ASKED - 16), *(wrap(answer["text"], column - 16) for answer in answers)]

    grids = [[cells(question, answers) for question, _, answers in rows] for _, rows in panels]
    heights = [sum(LINE * max(map(len, row)) + 14 for row in grid) for grid in grids]
    top = MARGIN + 2 * LINE
    canvas = Image.new("RGB", (WIDTH, top + sum(max(SIDE, height) + MARGIN for height in heights) + 2 * LINE), "white")
    pen = ImageDraw.Draw(canvas)
    write(left, MARGIN, ["visual tokens"], GRAY)
    for number, budget in enumerate(budgets):
        write(left + ASKED + number * column, MARGIN, [str(budget)], INK)
    rights, judged = [0] * len(budgets), 0
    for (image, rows), grid, height in zip(panels, grids, heights):
        scale, y = SIDE / max(image.size), top
        canvas.paste(image.resize([round(edge * scale) for edge in image.size]), (MARGIN, top))
        for (_, truth, answers), (asked, *texts) in zip(rows, grid):
            pen.line([(left, y - 8), (WIDTH - MARGIN, y - 8)], fill="#E4E4E4", width=2)
            write(left, y, asked, INK)
            judged += truth is not None
            deep = LINE * max(map(len, [asked, *texts]))
            for number, (answer, lines) in enumerate(zip(answers, texts)):
                x, is_right = left + ASKED + number * column, answer["text"] == truth
                rights[number] += is_right
                if truth is not None and not is_right:
                    pen.rectangle([x - 8, y - 6, x + column - 12, y + deep + 4], fill="#FBE6D9")
                write(x, y, lines, INK if truth is None else BLUE if is_right else ORANGE)
            y += deep + 14
        top += max(SIDE, height) + MARGIN
    if judged:
        write(left, top, [f"right of {judged}"], GRAY)
        for number, right in enumerate(rights):
            write(left + ASKED + number * column, top, [str(right)], INK)
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
