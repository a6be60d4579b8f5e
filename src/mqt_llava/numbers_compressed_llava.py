# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""What counts as an integer, and the one check of numbers of visual tokens that everything else uses."""

import operator
from typing import Any

import torch
from transformers.utils import is_numpy_array


def check_integer(value, name: str) -> None:
    """
    Raises:
        TypeError: It is none, or a boolean.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` is {value!r}, but must be an integer.")


def plain_numbers(value: Any) -> Any:
    """Arrays and tensors of numbers as integers or lists; all else as it is."""
    return value.tolist() if isinstance(value, torch.Tensor) or is_numpy_array(value) else value


def check_num_visual_tokens(
    value: Any, max_visual_tokens: int, num_images: int | None = None, name: str = "num_visual_tokens"
) -> list[int]:
    """
    Checks a number of visual tokens, given for all images or one by one, and spells it out per image.

    Args:
        value: An integer (Python's, NumPy's, a 0-D tensor) or a list, tuple, 1-D array or tensor, one per image.
        max_visual_tokens: M, the most that is allowed.
        num_images: How many images there are. `None`: one, for checking a default.
        name: What the argument is called in the error.

    Returns:
        One integer per image.

    Raises:
        TypeError: Something else than integers (booleans are not integers here).
        ValueError: An integer outside 1..M, or a list that does not have one entry per image.
    """
    allowed = f"an integer in 1..{max_visual_tokens}"
    if num_images is not None:
        allowed += ", or a list with one such integer per image"

    def check_one(number) -> int:
        try:
            if isinstance(number, bool):
                raise TypeError
            # Integers as they are: `operator.index` would tie a compiled graph to this number.
            number = number if isinstance(number, int) else operator.index(number)
        except TypeError:
            raise TypeError(f"`{name}` is {value!r}, but must be {allowed}.") from None
        if not 1 <= number <= max_visual_tokens:
            raise ValueError(f"`{name}` is {value!r}, but must be {allowed}.")
        return number

    value = plain_numbers(value)
    if not isinstance(value, (list, tuple)):
        return [check_one(value)] * (1 if num_images is None else num_images)
    if num_images is None:
        raise TypeError(f"`{name}` is {value!r}, but a default must be an integer in 1..{max_visual_tokens}.")
    if len(value) != num_images:
        raise ValueError(
            f"`{name}` has {len(value)} entries for {num_images} image{'s'[: num_images != 1]}, but must be {allowed}."
        )
    return [check_one(number) for number in value]
