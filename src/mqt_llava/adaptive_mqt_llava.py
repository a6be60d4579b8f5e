# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""When a model has seen enough of an image: the levels of visual tokens, and how sure of an answer is sure enough."""

from dataclasses import asdict, dataclass, fields


@dataclass
class AdaptiveBudget:
    """
    Starts at the lowest level of visual tokens, and goes up a level as long as the model is not confident about the
    beginning of its answer.

    It is confident when each of the first `num_probed_tokens` greedy tokens has a probability of at least `confidence`
    that is ahead of the second best one's by at least `margin`. Probabilities are the softmax of the raw logits,
    before temperature and other processors. Tokens after the end of a short answer do not count.

    Args:
        levels (`list[int]`, *optional*): Visual tokens per image, ascending. M / 16, M / 4 and M by default.
        confidence (`float`, defaults to 0.9): Least probability, in 0..1. At 0 the first level always suffices.
        margin (`float`, defaults to 0.0): Least lead over the second best token, in 0..1.
        num_probed_tokens (`int`, defaults to 1): How many tokens of the answer are looked at.

    Raises:
        TypeError, ValueError: A level is no positive integer or they do not ascend, or a number is out of its range.

    ```python
    >>> model.generate(**inputs, num_visual_tokens=AdaptiveBudget(levels=[16, 64, 256], confidence=0.9))
    ```"""

    levels: list[int] | None = None
    confidence: float = 0.9
    margin: float = 0.0
    num_probed_tokens: int = 1

    def __post_init__(self):
        if self.levels is not None:
            check_levels(self.levels)
            self.levels = list(self.levels)
        for name in ("confidence", "margin"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"`{name}` is {value!r}, but must be a number in 0..1.")
        if type(self.num_probed_tokens) is not int or self.num_probed_tokens < 1:
            raise ValueError(f"`num_probed_tokens` is {self.num_probed_tokens!r}, but must be a positive integer.")

    def to_dict(self) -> dict:
        """As a `GenerationConfig` holds it, in `num_visual_tokens` or, for "auto", in `adaptive_budget`."""
        return asdict(self)

    def levels_for(self, max_visual_tokens: int) -> list[int]:
        """The levels, checked against M."""
        if self.levels is None:
            return sorted({max(1, max_visual_tokens // 16), max(1, max_visual_tokens // 4), max_visual_tokens})
        if self.levels[-1] > max_visual_tokens:
            raise ValueError(f"`levels` is {self.levels}, but must be in 1..{max_visual_tokens}, the model's range.")
        return self.levels


def check_levels(levels: list[int]) -> None:
    if not isinstance(levels, (list, tuple)) or any(type(level) is not int for level in levels):
        raise TypeError(f"`levels` is {levels!r}, but must be a list of integers.")
    if not levels:
        raise ValueError("`levels` is empty, but must hold at least one number of visual tokens.")
    if levels[0] < 1 or any(low >= high for low, high in zip(levels, levels[1:])):
        raise ValueError(f"`levels` is {levels}, but must be positive and ascend.")


def read_budget(value, calibrated: dict | None):
    """
    What `num_visual_tokens` says: an [`AdaptiveBudget`] where it is one, its dict or "auto", else the value itself.

    Args:
        calibrated: The `adaptive_budget` of a generation config, which "auto" stands for.
    """
    if isinstance(value, str) and value == "auto":
        value = calibrated or {}
    if not isinstance(value, dict):
        return value
    if unknown := set(value) - {field.name for field in fields(AdaptiveBudget)}:
        raise TypeError(
            f"`num_visual_tokens` is {value!r}, but a dict must hold arguments of `AdaptiveBudget`, and "
            f"{', '.join(map(repr, sorted(map(str, unknown))))} is none."
        )
    return AdaptiveBudget(**value)
