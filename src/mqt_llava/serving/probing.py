# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Adaptive budgets in vLLM: the log-probabilities of a few greedy tokens at a level say whether it suffices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..models.adaptive_budget import NUM_BEST, AdaptiveBudget, resolve_budget


NAME = "num_visual_tokens"


def split_number(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """`mm_processor_kwargs` without its `num_visual_tokens`, and that. In `images_kwargs` it goes before."""
    kwargs = dict(kwargs)
    asked = kwargs.pop(NAME, None)
    nested = kwargs.get("images_kwargs")
    if isinstance(nested, Mapping) and NAME in nested:
        asked = nested[NAME]
        nested = {name: value for name, value in nested.items() if name != NAME}
        kwargs["images_kwargs"] = nested
        if not nested:
            del kwargs["images_kwargs"]
    return kwargs, asked


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
            ValueError: The model is no MQT-LLaVA, or the engine gives too few log-probabilities.
        """
        if model_config.hf_config.model_type != "mqt_llava":
            raise ValueError(
                f"`{NAME}` cannot be chosen for the model that is served, a {model_config.hf_config.model_type}."
            )
        if model_config.logprobs_mode.endswith("logits"):
            raise ValueError(
                f"An adaptive `{NAME}` needs probabilities, but vLLM runs with `--logprobs-mode "
                f"{model_config.logprobs_mode}`."
            )
        if 0 <= model_config.max_logprobs < NUM_BEST:
            raise ValueError(
                f"An adaptive `{NAME}` needs the probabilities of {NUM_BEST} tokens, but vLLM runs with "
                f"`--max-logprobs {model_config.max_logprobs}`."
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


def suffices(budget: AdaptiveBudget, logprobs: list[list[float]], finish_reason: str | None) -> bool:
    """
    Whether a budget stops at the level of a probe.

    Args:
        logprobs: For each token of the probe, up to the one that ended it if any did, the natural logarithms of the
            two likeliest tokens' probabilities. A probe without tokens is no reason to stop.
        finish_reason: As vLLM names it. `"stop"` is an answer that has ended: a probe has no other reason to stop.
    """
    best = [sorted(place, reverse=True)[:NUM_BEST] for place in logprobs]
    has_ended = torch.tensor(finish_reason == "stop")
    return bool(best) and bool(budget.suffices(torch.tensor(best, dtype=torch.float64), has_ended))
