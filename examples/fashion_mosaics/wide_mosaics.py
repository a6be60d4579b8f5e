"""
A wider testbed than mosaics.py: 8 x 8 items, photos halved to 14 x 14 pixels, places called as on a chessboard.

Fine questions need all of 64 visual tokens there, so that the budget matters over a wide range. The barest of them is
a **cell**, "C5" and what stands there, by which looking places up is learned (curriculum.py).
"""

import functools
import random

import mosaics
import numpy as np
from mosaics import DATASET_FOLDER, GRAIN, Mosaic, to_messages


__all__ = [
    "DATASET_FOLDER", "GRAIN", "QUESTION_KINDS", "Mosaic", "ask_cells", "draw_mosaic", "load_items", "to_messages",
]  # fmt: skip

LETTERS = "ABCDEFGH"  # of rows, for columns have numbers
SIDE = len(LETTERS)
ITEM_PIXELS = mosaics.ITEM_PIXELS // 2

draw_mosaic = functools.partial(mosaics.draw_mosaic, rows=tuple(f"row {letter}" for letter in LETTERS))


def load_items(split: str, folder: str = DATASET_FOLDER) -> dict[str, np.ndarray]:
    """As in mosaics.py, but uint8 `(items, 14, 14)`."""
    return {name: halve(photos) for name, photos in mosaics.load_items(split, folder).items()}


def halve(photos: np.ndarray) -> np.ndarray:
    """Each pixel the mean of 2 x 2."""
    fours = photos.reshape(len(photos), ITEM_PIXELS, 2, ITEM_PIXELS, 2)
    return fours.mean(axis=(2, 4)).round().astype(np.uint8)


def ask_cells(rng: random.Random, mosaic: Mosaic, region: int = SIDE) -> list[tuple[str, str]]:
    """All places among the first rows and columns in any order, each once: what was answered could be copied."""
    cells = [(row, column) for row in range(region) for column in range(region)]
    rng.shuffle(cells)
    return [(f"{LETTERS[row]}{column + 1}", mosaic.names[row * SIDE + column]) for row, column in cells]


def ask_positions(rng: random.Random, mosaic: Mosaic, count: int) -> list[tuple[str, str]]:
    return [(f"What is in {place}?", name) for place, name in ask_cells(rng, mosaic)[:count]]


QUESTION_KINDS = {**mosaics.QUESTION_KINDS, "position": ask_positions}
