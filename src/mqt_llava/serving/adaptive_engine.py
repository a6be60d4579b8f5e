# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Adaptive budgets for `vllm.LLM`: what transformers' `generate` does with them, as calls of the engine."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..models.adaptive_decoding import AdaptiveBudget
from .probing import NAME, ServedModel, suffices


if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams


def generate_adaptively(
    llm: "LLM",
    prompts: Sequence[str | dict] | str | dict,
    sampling_params: "SamplingParams | Sequence[SamplingParams] | None" = None,
    budget: "str | dict | AdaptiveBudget" = "auto",
    **kwargs: Any,
) -> tuple[list["RequestOutput"], list[int]]:
    """
    Answers each prompt with as many visual tokens as it needs. At each level all prompts that are still undecided are
    probed in one batch.

    Args:
        llm: An engine with an MQT-LLaVA model.
        prompts: As in `LLM.generate`. Their own `num_visual_tokens` is not looked at.
        sampling_params: Of the answers. Probes are greedy.
        budget: As `num_visual_tokens` of transformers' `generate`: "auto" is the checkpoint's calibrated budget.
        **kwargs: Passed to every `LLM.generate`, so for all prompts alike.

    Returns:
        vLLM's outputs, and the number of visual tokens of each prompt's images, 0 without an image.

    Raises:
        TypeError, ValueError: `budget` is none, or has levels outside 1..M.
    """
    from vllm import SamplingParams

    prompts = [prompts] if isinstance(prompts, (str, Mapping)) else prompts
    resolved, levels = ServedModel.from_config(llm.model_config).resolve(budget)
    probe = SamplingParams(temperature=0, max_tokens=resolved.num_probed_tokens, logprobs=2, detokenize=False)
    chosen = [levels[-1] if has_images(prompt) else 0 for prompt in prompts]
    undecided = [index for index, level in enumerate(chosen) if level]
    for level in levels[:-1]:
        if not undecided:
            break
        probes = llm.generate([at_level(prompts[index], level) for index in undecided], probe, **kwargs)
        outputs = [output.outputs[0].logprobs for output in probes]
        logprobs = [[[token.logprob for token in place.values()] for place in places] for places in outputs]
        decided = {index for index, places in zip(undecided, logprobs) if suffices(resolved, places)}
        for index in decided:
            chosen[index] = level
        undecided = [index for index in undecided if index not in decided]
    answered = [at_level(prompt, level) for prompt, level in zip(prompts, chosen)]
    return llm.generate(answered, sampling_params, **kwargs), chosen


def has_images(prompt: Any) -> bool:
    data = prompt.get("multi_modal_data") if isinstance(prompt, Mapping) else None
    images = (data or {}).get("image")
    return images is not None and not (isinstance(images, (list, tuple)) and not images)


def at_level(prompt: Any, level: int) -> Any:
    """A prompt with this number of visual tokens for each of its images."""
    if not level:
        return prompt
    return {**prompt, "mm_processor_kwargs": {**(prompt.get("mm_processor_kwargs") or {}), NAME: level}}
