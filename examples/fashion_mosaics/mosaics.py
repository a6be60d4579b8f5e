"""
Questions about mosaics of real photos: 4 x 4 items of Fashion-MNIST (Zalando Research, MIT licence).

Fine questions need to know what stands where (`position`, `row`, `column`, `list`), coarse ones what there is at all
(`presence`); between them, what there is most of (`most`).
"""

import argparse
import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


SIDE = 4
ITEM_PIXELS = 28
CLASS_NAMES = (
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
GROUPS = {
    "footwear": ("sandal", "sneaker", "ankle boot"),
    "tops": ("t-shirt", "pullover", "coat", "shirt"),
    "dresses": ("dress",),
    "trousers": ("trousers",),
    "bags": ("bag",),
}
ROWS = ("the top row", "the second row", "the third row", "the bottom row")  # columns have numbers
CORNERS = {(0, 0): "top left", (0, 3): "top right", (3, 0): "bottom left", (3, 3): "bottom right"}
DATASET_FOLDER = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts it


def load_items(split: str, folder: str = DATASET_FOLDER) -> dict[str, np.ndarray]:
    """
    Photos of a split, `"train"` or `"t10k"` (the official test items), by class name: uint8 `(items, 28, 28)`.

    Raises:
        FileNotFoundError: The dataset is not there.
    """
    images_path, labels_path = (Path(folder) / f"{split}-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1"))
    if not images_path.exists():
        raise FileNotFoundError(
            f"{images_path} does not exist. Install Debian's package dataset-fashion-mnist, or pass the folder that "
            "holds the four .gz files of Fashion-MNIST."
        )
    images = np.frombuffer(gzip.decompress(images_path.read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress(labels_path.read_bytes()), np.uint8, offset=8)
    images = images.reshape(-1, ITEM_PIXELS, ITEM_PIXELS)
    return {name: images[labels == label] for label, name in enumerate(CLASS_NAMES)}


@dataclass
class Mosaic:
    """A picture of as many items in a row as there are rows, and their names, row by row."""

    image: Image.Image
    names: list[str]
    rows: tuple[str, ...] = ROWS  # what they are called; no word may mean a row and a column

    @property
    def side(self) -> int:
        return len(self.rows)

    def groups(self) -> dict[str, int]:
        """How many items of each group there are."""
        return {group: sum(name in members for name in self.names) for group, members in GROUPS.items()}


def draw_mosaic(rng: random.Random, items: dict[str, np.ndarray], rows: tuple[str, ...] = ROWS) -> Mosaic:
    """A mosaic of two to four groups, so that it is even odds whether a group is there at all."""
    side = len(rows)
    groups = rng.sample(list(GROUPS), rng.randint(2, 4))
    # Each group is there at least twice; the rest is left to chance.
    cells = [*groups, *groups, *rng.choices(groups, k=side * side - 2 * len(groups))]
    rng.shuffle(cells)
    names = [rng.choice(GROUPS[group]) for group in cells]
    photos = np.stack([items[name][rng.randrange(len(items[name]))] for name in names])
    pixels = photos.shape[-1]
    picture = photos.reshape(side, side, pixels, pixels).swapaxes(1, 2).reshape(side * pixels, side * pixels)
    return Mosaic(Image.fromarray(picture).convert("RGB"), names, rows)


def ask_positions(rng: random.Random, mosaic: Mosaic, count: int) -> list[tuple[str, str]]:
    if mosaic.side != SIDE:
        raise ValueError(f"`mosaic` has {mosaic.side} rows, but these places are those of {SIDE}.")
    questions = []
    for cell in rng.sample(range(SIDE * SIDE), count):
        row, column = divmod(cell, SIDE)
        place = f"{ROWS[row]}, column {column + 1}"
        if (row, column) in CORNERS and rng.random() < 0.5:
            place = f"the {CORNERS[row, column]}"
        questions.append((f"What is in {place}?", mosaic.names[cell]))
    return questions


def ask_rows(rng: random.Random, mosaic: Mosaic, count: int) -> list[tuple[str, str]]:
    side = mosaic.side
    return [
        (f"List the items in {mosaic.rows[row]}.", ", ".join(mosaic.names[row * side : (row + 1) * side]))
        for row in rng.sample(range(side), count)
    ]


def ask_columns(rng: random.Random, mosaic: Mosaic, count: int) -> list[tuple[str, str]]:
    side = mosaic.side
    return [
        (f"List the items in column {column + 1}.", ", ".join(mosaic.names[column::side]))
        for column in rng.sample(range(side), count)
    ]


def ask_list(rng: random.Random, mosaic: Mosaic, count: int) -> list[tuple[str, str]]:
    return [("List the items.", ", ".join(mosaic.names))] * count


def ask_presence(rng: random.Random, mosaic: Mosaic, count: int) -> list[tuple[str, str]]:
    questions = []
    for group in rng.sample(list(GROUPS), count):
        verb = "Is" if group == "footwear" else "Are"
        questions.append((f"{verb} there any {group}?", "yes" if mosaic.groups()[group] else "no"))
    return questions


def ask_most(rng: random.Random, mosaic: Mosaic, count: int) -> list[tuple[str, str]]:
    (first, most), (_, second), *_ = sorted(mosaic.groups().items(), key=lambda item: -item[1])
    return [("What is there most of?", first)] * count if most >= second + mosaic.side // 2 else []


QUESTION_KINDS = {
    "position": ask_positions,
    "row": ask_rows,
    "column": ask_columns,
    "list": ask_list,
    "presence": ask_presence,
    "most": ask_most,
}
GRAIN = {"presence": "coarse", "most": "between"}  # the others are fine


def to_messages(image: Image.Image, questions: list[tuple[str, str]]) -> list[dict]:
    """Questions and answers about one image as the chat messages of one conversation."""
    messages = []
    for index, (question, answer) in enumerate(questions):
        content = [{"type": "text", "text": question}]
        if index == 0:
            content.insert(0, {"type": "image", "image": image})
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def main():
    """Writes a few held-out mosaics with questions about them, which the demo asks."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "images")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--data-folder", default=DATASET_FOLDER)
    args = parser.parse_args()

    rng, items, questions = random.Random(args.seed), load_items("t10k", args.data_folder), {}
    args.output.mkdir(parents=True, exist_ok=True)
    for index in range(args.count):
        mosaic = draw_mosaic(rng, items)
        mosaic.image.save(args.output / f"mosaic_{index}.png")
        kinds = (ask_presence, ask_most, ask_positions, ask_rows)
        questions[f"mosaic_{index}.png"] = [pair for ask in kinds for pair in ask(rng, mosaic, 1)]
    (args.output / "questions.json").write_text(json.dumps(questions, indent=1) + "\n")


if __name__ == "__main__":
    main()
