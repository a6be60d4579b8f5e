"""
Prompts as rows of pieces, and the many ways in which they lie in tensors.

A row is a list of text tokens and images; it says what a prompt means. How many placeholders an image has, and where
masked columns stand, is only how it is passed.
"""

from random import Random
from typing import NamedTuple

import torch

from tests.builders.prompts import IMAGE_TOKEN_ID


PADDINGS = ("left", "right", "both", "anywhere")


class Image(NamedTuple):
    index: int  # in the pool
    question: tuple[int, ...]  # which QueCC encodes it for


Row = list[int | Image]


class Columns(NamedTuple):
    """How a row lies in a tensor: a token and a mask for each column."""

    ids: list[int]
    mask: list[int]

    def __add__(self, other: "Columns") -> "Columns":
        return Columns(self.ids + other.ids, self.mask + other.mask)


def images_of(row: Row) -> list[Image]:
    return [piece for piece in row if isinstance(piece, Image)]


def random_text(rng: Random, low: int = 1, high: int = 4) -> list[int]:
    """Tokens of text. Token 0, the padding's, is text too where it is not masked."""
    return [rng.choice((0, *range(3, IMAGE_TOKEN_ID))) for _ in range(rng.randint(low, high))]


def random_row(rng: Random, pool_size: int, most_images: int = 3, needs_end: bool = False) -> Row:
    """Up to three images: at the start, in text, side by side, or at the end."""
    row = random_text(rng) if rng.random() < 0.8 else []
    for _ in range(rng.choice([number for number in (0, 1, 1, 1, 2, 2, 3) if number <= most_images])):
        row.append(Image(rng.randrange(pool_size), (1, *random_text(rng))))
        if rng.random() < 0.6:
            row += random_text(rng)
    if not row or (needs_end and isinstance(row[-1], Image)):
        row += random_text(rng)
    return row


def random_rows(rng: Random, pool_size: int, most_rows: int = 4, most_images: int = 3) -> list[Row]:
    return [random_row(rng, pool_size, most_images) for _ in range(rng.randint(1, most_rows))]


def segments(row: Row, counts: list[int]) -> list[list[int]]:
    """Its tokens piece by piece, with `counts` placeholders for its images."""
    counts = iter(counts)
    return [[IMAGE_TOKEN_ID] * next(counts) if isinstance(piece, Image) else [piece] for piece in row]


def masked(rng: Random, number: int) -> Columns:
    """Columns that nobody may look at, with padding or with other tokens in them."""
    return Columns([0 if rng.random() < 0.7 else rng.randrange(3, 90) for _ in range(number)], [0] * number)


def lay_out(
    rng: Random, rows: list[Row], counts: list[list[int]], padding: str = "left", extra: int = 0
) -> list[Columns]:
    """
    Columns of one length for all rows.

    Args:
        counts: Placeholders of the images in each row.
        padding: One of `PADDINGS`; no run of placeholders is ever broken.
        extra: Masked columns beyond those that the longest row needs.
    """
    pieces = [segments(row, row_counts) for row, row_counts in zip(rows, counts)]
    length = max(sum(map(len, row)) for row in pieces) + extra
    columns = []
    for row in pieces:
        missing = length - sum(map(len, row))
        if padding == "left":
            places = [0] * missing
        elif padding == "right":
            places = [len(row)] * missing
        elif padding == "both":
            places = [rng.choice((0, len(row))) for _ in range(missing)]
        else:
            places = [rng.randint(0, len(row)) for _ in range(missing)]
        laid = Columns([], [])
        for place in range(len(row) + 1):
            laid += masked(rng, places.count(place))
            if place < len(row):
                laid += Columns(row[place], [1] * len(row[place]))
        columns.append(laid)
    return columns


def to_tensors(columns: list[Columns]) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([row.ids for row in columns]),
        "attention_mask": torch.tensor([row.mask for row in columns]),
    }
