# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
What chooses a number of visual tokens: levels, and the rule that says whether one suffices.

`AdaptiveBudget.suffices` is the rule, for `generate`, for vLLM's engine and server, and for calibration. It sees what
a server returns: the log-probabilities of the best tokens, and whether an answer has ended.
"""

import hashlib
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn


NUM_BEST = 2  # tokens at each place of an answer whose log-probabilities the rule looks at
CERTAIN = (0.0, -9999.0)  # log-probabilities; vLLM writes minus infinity as this too


def best_logprobs(logits: torch.Tensor, has_ended: torch.Tensor) -> torch.Tensor:
    """
    Log-probabilities of the likeliest tokens at one place of each answer, without temperature and other processors.

    Args:
        logits: `(batch, vocabulary)`.
        has_ended: Whether an answer ended before, `(batch,)`. What would come then is certain, and so changes nothing.

    Returns:
        Descending, `(batch, 2)`, float32.
    """
    best = logits.float().log_softmax(-1).topk(NUM_BEST).values
    return torch.where(has_ended[:, None], best.new_tensor(CERTAIN), best)


@dataclass(frozen=True)
class Promise:
    """
    What a calibration promises of a budget: with probability `confidence` over the prompts that it was calibrated on,
    at most the share `risk` of greedy answers differ from those at M.

    Args:
        risk, confidence: In 0..1, both exclusive.
        num_prompts: That it was calibrated on.
        num_different: Of these, answers that differed.
        checkpoint: A digest of the weights, by `checkpoint_digest`.
        max_visual_tokens: M.
        levels, threshold, num_probed_tokens, unended_power: Of the budget that it is about.
    """

    risk: float
    confidence: float
    num_prompts: int
    num_different: int
    checkpoint: str
    max_visual_tokens: int
    levels: list[int]
    threshold: float
    num_probed_tokens: int
    unended_power: float

    def __post_init__(self) -> None:
        for name in ("risk", "confidence"):
            check_open_share(name, getattr(self, name))


def check_open_share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(
            f"`{name}` is {value!r}, but must be a number between 0 and 1, neither of which can be promised."
        )


@dataclass
class AdaptiveBudget:
    """
    Starts at the lowest level of visual tokens, and goes up a level as long as the model is not confident about the
    beginning of its answer.

    The confidence in an answer is the least probability of its first `num_probed_tokens` greedy tokens, or of all
    where it ends among them. Where it goes on behind them, unseen, its confidence is that probability to the power of
    `unended_power`. Probabilities are the softmax of the raw logits, before temperature and other processors.

    Args:
        levels (`list[int]`, *optional*): Visual tokens per image, ascending. M / 16, M / 4 and M by default.
        confidence (`float`, defaults to 0.9): Least confidence, in 0..1. At 0 the first level always suffices.
        margin (`float`, defaults to 0.0): Least lead of each of these tokens over the second best, in 0..1.
        num_probed_tokens (`int`, defaults to 1): How many tokens of the answer are looked at.
        unended_power (`float`, defaults to 10.0): At least 1, which asks no more of answers that go on.
        promise (`Promise` or its `dict`, *optional*): What was promised of this budget when it was calibrated.

    Raises:
        TypeError, ValueError: A level is no positive integer or they do not ascend, a number is out of its range, or
            the promise is about another budget.

    ```python
    >>> model.generate(**inputs, num_visual_tokens=AdaptiveBudget(levels=[16, 64, 256], confidence=0.9))
    ```"""

    levels: list[int] | None = None
    confidence: float = 0.9
    margin: float = 0.0
    num_probed_tokens: int = 1
    unended_power: float = 10.0
    promise: Promise | None = None

    def __post_init__(self) -> None:
        if self.levels is not None:
            check_levels(self.levels)
            self.levels = list(self.levels)
        for name in ("confidence", "margin"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"`{name}` is {value!r}, but must be a number in 0..1.")
        if type(self.num_probed_tokens) is not int or self.num_probed_tokens < 1:
            raise ValueError(f"`num_probed_tokens` is {self.num_probed_tokens!r}, but must be a positive integer.")
        power = self.unended_power
        if isinstance(power, bool) or not isinstance(power, (int, float)) or not 1 <= power < math.inf:
            raise ValueError(f"`unended_power` is {power!r}, but must be a finite number of at least 1.")
        if self.promise is not None:
            self.promise = read_promise(self.promise)
            about = {
                "levels": self.promise.levels,
                "confidence": self.promise.threshold,
                "margin": 0.0,
                "num_probed_tokens": self.promise.num_probed_tokens,
                "unended_power": self.promise.unended_power,
            }
            if any(getattr(self, name) != value for name, value in about.items()):
                made_for = ", ".join(f"{name}={value}" for name, value in about.items())
                raise ValueError(
                    f"`promise` was made for another budget: `{made_for}`. Calibrate this one, or pass `promise=None`."
                )

    def to_dict(self) -> dict:
        """As a `GenerationConfig` holds it, in `num_visual_tokens` or, for "auto", in `adaptive_budget`."""
        return asdict(self)

    def confidence_in(self, logprobs: torch.Tensor, has_ended: torch.Tensor) -> torch.Tensor:
        """
        The confidence in each answer, `(...)`.

        Args:
            logprobs: Of the two likeliest tokens at each place that was probed, descending, `(..., places, 2)`, one
                place at least.
            has_ended: Whether the answer ends among these places, `(...)`.
        """
        least = logprobs[..., 0].amin(-1).exp()
        return torch.where(has_ended, least, least**self.unended_power)

    def suffices(self, logprobs: torch.Tensor, has_ended: torch.Tensor) -> torch.Tensor:
        """Whether a level suffices, boolean `(...)`. The arguments are those of `confidence_in`."""
        best, second = logprobs.exp().unbind(-1)
        lead = (best - second).amin(-1)
        return (self.confidence_in(logprobs, has_ended) >= self.confidence) & (lead >= self.margin)

    def levels_for(self, max_visual_tokens: int) -> list[int]:
        """
        The levels, checked against M.

        Raises:
            ValueError: One is above M, or the budget was calibrated for another M.
        """
        if self.promise is not None and self.promise.max_visual_tokens != max_visual_tokens:
            raise ValueError(
                f"The budget was calibrated for a model of M = {self.promise.max_visual_tokens}, but this one has "
                f"{max_visual_tokens}. Calibrate it, or pass an `AdaptiveBudget` without a `promise`."
            )
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


def read_promise(value: Any) -> Promise:
    names = {field.name for field in fields(Promise)}
    if isinstance(value, dict) and set(value) == names:
        return Promise(**value)
    if not isinstance(value, Promise):
        raise TypeError(f"`promise` is {value!r}, but must be a `Promise`, or a dict of {', '.join(sorted(names))}.")
    return value


def resolve_budget(value: Any, calibrated: dict | None) -> Any:
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


@torch.no_grad()
def checkpoint_digest(model: nn.Module) -> str:
    """
    Tells weights from others, by a few numbers of each. They are compared as bfloat16, so that the same weights in
    another dtype count as the same; quantized ones do not, nor do adapters.
    """
    weights = [weight for weight in model.parameters() if type(weight) is nn.Parameter and not weight.is_meta]
    numbers = [weight.flatten()[:: max(1, weight.numel() // 8)].to("cpu", torch.bfloat16) for weight in weights]
    return hashlib.sha256(torch.cat(numbers).view(torch.int16).numpy().tobytes()).hexdigest()[:16]
