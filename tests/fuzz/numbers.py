"""Numbers of visual tokens: right ones in every form that is taken, and wrong ones."""

from random import Random
from typing import Any

import numpy as np
import torch


def random_counts(rng: Random, num_images: int, most: int) -> list[int]:
    """One number per image: the same for all, or any."""
    if rng.random() < 0.5:
        return [rng.choice((1, 2, 4, most, rng.randint(1, most)))] * num_images
    return [rng.randint(1, most) for _ in range(num_images)]


def in_any_form(rng: Random, counts: list[int]) -> Any:
    """The numbers as a caller may pass them: as one where they are the same, else one per image."""
    forms = [
        list(counts),
        tuple(counts),
        np.array(counts),
        torch.tensor(counts),
        [np.int64(count) for count in counts],
    ]
    if len(set(counts)) == 1:
        forms += [counts[0]] * 5 + [np.int32(counts[0]), torch.tensor(counts[0]), np.array(counts[0])]
    return rng.choice(forms)


def in_saved_form(counts: list[int]) -> int | list[int]:
    """As a generation config can hold them."""
    return counts[0] if len(set(counts)) == 1 else list(counts)


def wrong_numbers(rng: Random, num_images: int, most: int) -> Any:
    """What is refused, whatever the images."""
    one = rng.choice([0, -1, most + 1, 10**9, True, 2.5, float("nan"), "4", "many", b"4", {"image": 4}, np.float32(4)])
    return rng.choice(
        [
            one,
            [one] * max(1, num_images),
            [1] * (num_images + 1),
            [1] * (num_images - 1) if num_images > 1 else [1] * (num_images + 2),
            torch.full((num_images + 1,), 1.0),
            torch.ones(num_images or 1, 2, dtype=torch.long),
            [[1] * (num_images or 1)],
        ]
    )
