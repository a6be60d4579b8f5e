# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Adaptive budgets in vLLM: the log-probabilities of a few greedy tokens at a level say whether it suffices."""

from dataclasses import dataclass
from math import exp
from typing import Any

from ..models.adaptive_decoding import AdaptiveBudget, resolve_budget


NAME = "num_visual_tokens"


def is_budget(value: Any) -> bool:
    """Whether `num_visual_tokens` leaves the number to the model."""
    return isinstance(value, (AdaptiveBudget, dict)) or (isinstance(value, str) and value == "auto")


@dataclass(frozen=True)
class ServedModel:
    """
    What a budget needs to know of a model that vLLM has loaded.

    Args:
        max_visual_tokens: M.
        calibrated: The `adaptive_budget` of the checkpoint's generation config.
    """

    max_visual_tokens: int
    calibrated: dict | None

    @classmethod
    def from_config(cls, model_config: Any) -> "ServedModel":
        """
        Args:
            model_config: vLLM's `ModelConfig`.

        Raises:
            ValueError: The engine gives logits where log-probabilities are asked for.
        """
        if model_config.logprobs_mode.endswith("logits"):
            raise ValueError(
                f"An adaptive `{NAME}` needs probabilities, but vLLM runs with `--logprobs-mode "
                f"{model_config.logprobs_mode}`."
            )
        generation_config = model_config.try_get_generation_config()
        return cls(model_config.hf_config.max_visual_tokens, generation_config.get("adaptive_budget"))

    def resolve(self, value: Any) -> tuple[AdaptiveBudget, list[int]]:
        """
        The budget that `num_visual_tokens` stands for, as `generate` reads it, and its levels.

        Raises:
            TypeError, ValueError: It is none, or has levels outside 1..M.
        """
        budget = resolve_budget(value, self.calibrated)
        if not isinstance(budget, AdaptiveBudget):
            raise TypeError(f"`{NAME}` is {value!r}, but must be 'auto' or an `AdaptiveBudget`.")
        return budget, budget.levels_for(self.max_visual_tokens)


def suffices(budget: AdaptiveBudget, logprobs: list[list[float]]) -> bool:
    """
    Whether a budget stops at the level of a probe.

    Args:
        logprobs: For each token of the probe, up to the one that ended it if any did, the natural logarithms of the
            two likeliest tokens' probabilities. A probe without tokens is no reason to stop.
    """
    likeliest = [sorted(map(exp, place), reverse=True) for place in logprobs]
    confidence = min((best for best, *_ in likeliest), default=0.0)
    margin = min((best - second for best, second, *_ in likeliest), default=0.0)
    return bool(logprobs) and budget.is_confident(confidence, margin)
