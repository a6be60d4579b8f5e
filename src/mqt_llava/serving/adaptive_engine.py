# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Adaptive budgets for `vllm.LLM`: what transformers' `generate` does with them, as calls of the engine."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..models.adaptive_budget import NUM_BEST, AdaptiveBudget
from .probing import NAME, ServedModel, split_number, suffices


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
    Answers each prompt with as many visual tokens as it needs. At each level all prompts of a batch that are still
    undecided are probed together. A batch is as many prompts as vLLM's encoder cache has room for the images of.

    Args:
        llm: An engine with an MQT-LLaVA model.
        prompts: As in `LLM.generate`. Their own `num_visual_tokens` is not looked at.
        sampling_params: Of the answers, for all prompts or one for each. Probes are greedy.
        budget: As `num_visual_tokens` of transformers' `generate`: "auto" is the checkpoint's calibrated budget.
        **kwargs: Passed to every `LLM.generate`, so for all prompts alike.

    Returns:
        vLLM's outputs, and the number of visual tokens of each prompt's images, 0 without an image.

    Raises:
        TypeError, ValueError: `budget` is none, or has levels outside 1..M; there is not one of `sampling_params` for
            each prompt; `mm_processor_kwargs` is passed for all prompts, which would be every level's; or
            `LLM.generate` refuses a prompt, such as one that is too long at a level.
    """
    if "mm_processor_kwargs" in kwargs:
        raise TypeError(
            f"`mm_processor_kwargs` is {kwargs['mm_processor_kwargs']!r}, but cannot be passed for all prompts: "
            f"`budget` chooses the `{NAME}`."
        )
    prompts = [prompts] if isinstance(prompts, (str, Mapping)) else prompts
    params = sampling_params if isinstance(sampling_params, Sequence) else [sampling_params] * len(prompts)
    if len(params) != len(prompts):
        raise ValueError(f"`sampling_params` has {len(params)} entries for {len(prompts)} prompts.")
    model = ServedModel.from_config(llm.model_config)
    resolved, levels = model.resolve(budget)
    room = llm.llm_engine.vllm_config.scheduler_config.encoder_cache_size // model.max_visual_tokens
    outputs: list[RequestOutput] = []
    chosen: list[int] = []
    for batch in batches(list(map(num_images, prompts)), room):
        some = climb(llm, prompts[batch], resolved, levels, **kwargs)
        answered = [at_level(prompt, level) for prompt, level in zip(prompts[batch], some)]
        of_batch = params[batch]
        outputs += llm.generate(answered, None if of_batch[0] is None else of_batch, **kwargs)
        chosen += some
    return outputs, chosen


def climb(
    llm: "LLM", prompts: Sequence[str | dict], budget: AdaptiveBudget, levels: list[int], **kwargs: Any
) -> list[int]:
    """The level that suffices for each prompt, 0 without an image."""
    from vllm import SamplingParams

    probe = SamplingParams(temperature=0, max_tokens=budget.num_probed_tokens, logprobs=NUM_BEST, detokenize=False)
    chosen = [levels[-1] if num_images(prompt) else 0 for prompt in prompts]
    undecided = [index for index, level in enumerate(chosen) if level]
    for level in levels[:-1]:
        if not undecided:
            break
        probes = llm.generate([at_level(prompts[index], level) for index in undecided], probe, **kwargs)
        decided = set()
        for index, output in zip(undecided, probes):
            (answer,) = output.outputs
            logprobs = [[token.logprob for token in place.values()] for place in answer.logprobs]
            if suffices(budget, logprobs, answer.finish_reason):
                decided.add(index)
        for index in decided:
            chosen[index] = level
        undecided = [index for index in undecided if index not in decided]
    return chosen


def batches(images: list[int], room: int) -> Iterator[slice]:
    """Prompts one behind the other, with so many images each, whose images have room together, or one alone."""
    start, taken = 0, 0
    for end, number in enumerate(images):
        if end > start and taken + number > room:
            yield slice(start, end)
            start, taken = end, 0
        taken += number
    if images:
        yield slice(start, len(images))


def num_images(prompt: Any) -> int:
    data = prompt.get("multi_modal_data") if isinstance(prompt, Mapping) else None
    images = (data or {}).get("image")
    return len(images) if isinstance(images, (list, tuple)) else int(images is not None)


def at_level(prompt: Any, level: int) -> Any:
    """A prompt with this number of visual tokens for each of its images."""
    if not level:
        return prompt
    kwargs, _ = split_number(prompt.get("mm_processor_kwargs") or {})
    return {**prompt, "mm_processor_kwargs": {**kwargs, NAME: level}}
