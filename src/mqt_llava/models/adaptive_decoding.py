# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
Adaptive decoding: a cheap first look at an image that is continued where it does not suffice.

Visual tokens nest, and they stand before the question in a causal prompt. So what a decoder has computed of the text
before an image and of its first tokens stays right when the image gets more of them: only the new ones and what stands
behind the image are processed at the next level.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation import GenerationMode
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from .adaptive_budget import AdaptiveBudget, Promise, best_logprobs, checkpoint_digest
from .cache_fitting import FittedPrompt
from .placeholders import (
    Prompt,
    check_images_are_passed,
    check_mask,
    cut_visual_tokens,
    encoded_images,
    images_per_row,
    num_copies,
)
from .prompt_fitting import PromptFitting
from .visual_token_cache import CachedPrompts, VisualTokenCache, has_plain_cache


logger = logging.get_logger(__name__)


@dataclass
class ProbedPrompt:
    """
    One prompt of a batch, on its way up the levels.

    Args:
        before: Its tokens before the first image.
        after: Its tokens behind the first image, with one placeholder for each further image.
        images: The visual tokens of each image, `(highest level, hidden size)`.
    """

    before: torch.Tensor
    after: torch.Tensor
    images: list[torch.Tensor]
    level: int = 0
    confidence: list[float] = field(default_factory=list)
    num_processed: int = 0  # visual tokens
    states: list[tuple[torch.Tensor, torch.Tensor]] | None = None  # keys and values by layer, `(heads, tokens, width)`
    unread: list[torch.Tensor] = field(default_factory=list)  # visual tokens of each image that are not in `states`


def split_prompts(
    ids: torch.Tensor, mask: torch.Tensor, image_token_id: int, images: list[torch.Tensor]
) -> list[ProbedPrompt]:
    """
    Args:
        ids, mask: `(batch, length)`, with one placeholder for each image.
        images: The visual tokens of all images.
    """
    images, prompts = iter(images), []
    for row_ids, row_mask in zip(ids, mask.bool()):
        row_ids = row_ids[row_mask]
        is_image = row_ids == image_token_id
        row_images = [next(images) for _ in range(int(is_image.sum()))]
        first = int(is_image.long().argmax()) if row_images else len(row_ids) - 1
        prompts.append(ProbedPrompt(row_ids[:first], row_ids[first + bool(row_images) :], row_images))
    return prompts


def can_reuse(model: PreTrainedModel, prompts: list[ProbedPrompt]) -> bool:
    """
    Whether a level can continue the cache of the one below. Behind an image that ends its prompt there is no token for
    `generate` to begin with.
    """
    return (
        any(prompt.images for prompt in prompts)
        and all(len(prompt.after) and prompt.after[-1] != model.config.image_token_id for prompt in prompts)
        and has_plain_cache(model.config.text_config)
    )


def climb(
    model: PreTrainedModel,
    prompts: list[ProbedPrompt],
    levels: list[int],
    budget: AdaptiveBudget,
    eos_token_ids: torch.Tensor,
    reuse: bool,
    can_leave_rest: bool,
) -> None:
    """
    Takes each prompt up the levels until the model is confident or the highest is reached, and notes in it where.

    With `reuse`, its `states` become what the decoder has computed of it, all but the last token (or but what the
    highest level adds). The cache is laid out as `[pad][before, first image][new tokens of it]...[pad][after]`: what
    stands behind the image has one width, so that going up is one crop for all rows, and rows that stop are set
    aside.

    Args:
        model: An MQTLlavaForConditionalGeneration.
        prompts: Changed in place.
        levels: Visual tokens per image, ascending.
        budget: When to stop.
        eos_token_ids: Tokens that end an answer, `(n,)`.
        reuse: Whether a level continues the cache of the one below, or processes the whole prompt.
        can_leave_rest: Whether `generate` can read what a single prompt's highest level adds.
    """
    active, cache, mask = prompts if reuse else [prompt for prompt in prompts if prompt.images], None, None
    for seen, level in zip([0, *levels], levels):
        if not active:
            return
        for prompt in active:
            prompt.level = level if prompt.images else 0
        is_highest = level == levels[-1]
        if is_highest and not reuse:
            return
        if cache is None or not reuse:
            seen, cache = 0, DynamicCache(config=model.config.text_config)
            mask = torch.zeros((len(active), 0), dtype=torch.long, device=active[0].after.device)
        chunk, chunk_mask, width = build_chunk(active, seen, level, model.config.image_token_id, reuse)
        features = []
        for prompt in active:
            images = [tokens[0 if number else seen : level] for number, tokens in enumerate(prompt.images)]
            prompt.num_processed += sum(map(len, images))
            features += images
        if is_highest and seen and len(prompts) == 1 and can_leave_rest:
            # `generate` reads the rest: one pass less over the decoder's weights.
            prompts[0].states, prompts[0].unread = take_states(cache, 0, mask[0].bool()), features
            return
        if is_highest:  # `generate` begins with the last token
            chunk, chunk_mask = chunk[:, :-1], chunk_mask[:, :-1]
        mask = torch.cat([mask, chunk_mask], dim=1)
        logits = next_token_logits(model, chunk, mask, cache, features)

        if is_highest:
            stops, num_probed = [True] * len(active), 0
        else:
            seen_of_answers, num_probed = probe_answer(
                model, logits, mask, cache, budget.num_probed_tokens, eos_token_ids
            )
            for prompt, value in zip(active, budget.confidence_in(*seen_of_answers).tolist()):
                if prompt.images:
                    prompt.confidence.append(value)
            suffices = budget.suffices(*seen_of_answers).tolist()
            stops = [stop or not prompt.images for stop, prompt in zip(suffices, active)]
        if reuse:
            length = mask.shape[1] - (not is_highest)
            for row, prompt in enumerate(active):
                if stops[row]:
                    prompt.states = take_states(cache, row, mask[row, :length].bool())
        going = [row for row, stop in enumerate(stops) if not stop]
        active = [active[row] for row in going]
        if reuse and active:
            cache.crop(-(width + num_probed))
            cache.batch_select_indices(torch.tensor(going, device=mask.device))
            mask = mask[going, :-width]


def build_chunk(
    prompts: list[ProbedPrompt], seen: int, level: int, image_token_id: int, is_aligned: bool
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """
    What a decoder reads next that has read the first `seen` visual tokens of the first image, or nothing, if 0.

    Args:
        is_aligned: Whether what stands behind the first images gets one width, or the rows no padding but on the left.

    Returns:
        Tokens and mask `(batch, length)`, and how many of the columns stand behind the first image.
    """

    def expand(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.repeat_interleave(torch.where(tokens == image_token_id, level, 1))

    heads, tails = [], []
    for prompt in prompts:
        image = prompt.after.new_full((level - seen if prompt.images else 0,), image_token_id)
        heads.append(image if seen else torch.cat([prompt.before, image]))
        tails.append(expand(prompt.after))
    width = max(map(len, tails))
    parts = (heads, tails) if is_aligned else ([torch.cat(pair) for pair in zip(heads, tails)],)
    return *(torch.cat(pair, dim=1) for pair in zip(*map(pad_left, parts))), width


def pad_left(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens and their mask, `(batch, length)`."""
    length = max(map(len, rows))
    tokens = torch.stack([nn.functional.pad(row, (length - len(row), 0)) for row in rows])
    mask = torch.stack([nn.functional.pad(torch.ones_like(row), (length - len(row), 0)) for row in rows])
    return tokens, mask


def next_token_logits(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, features: list[torch.Tensor]
) -> torch.Tensor:
    """Raw logits behind the last column, `(batch, vocabulary)`."""
    encoded = {"image": BaseModelOutputWithPooling(pooler_output=features)} if features else None
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    outputs = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        mm_encoder_outputs=encoded,
        use_cache=True,
        logits_to_keep=1,
        return_dict=True,
    )
    return outputs.logits[:, -1]


def probe_answer(
    model: PreTrainedModel,
    logits: torch.Tensor,
    mask: torch.Tensor,
    cache: DynamicCache,
    num_tokens: int,
    eos_token_ids: torch.Tensor,
) -> tuple[tuple[torch.Tensor, torch.Tensor], int]:
    """
    How sure the model is of the first tokens of its greedy answers.

    Returns:
        What [`AdaptiveBudget.suffices`] looks at, log-probabilities `(batch, places, 2)` and whether the answers have
        ended `(batch,)`; and how many tokens the cache has got for it.
    """
    has_ended, places = torch.zeros(len(logits), dtype=torch.bool, device=logits.device), []
    while True:
        places.append(best_logprobs(logits, has_ended))
        tokens = logits.argmax(-1)
        has_ended = has_ended | torch.isin(tokens, eos_token_ids)
        if len(places) == num_tokens or has_ended.all():
            return (torch.stack(places, dim=1), has_ended), len(places) - 1
        mask = nn.functional.pad(mask, (0, 1), value=1)
        logits = next_token_logits(model, tokens[:, None], mask, cache, [])


def take_states(cache: DynamicCache, row: int, is_kept: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of the columns of one row that are no padding, by layer."""
    columns = is_kept.nonzero().squeeze(-1)
    return [
        tuple(states[row].index_select(-2, columns.to(states.device)) for states in (layer.keys, layer.values))
        for layer in cache.layers
    ]


def merge_states(prompts: list[ProbedPrompt], cache: DynamicCache) -> None:
    """Fills an empty cache with all prompts, padded on the left."""
    length = max(prompt.states[0][0].shape[-2] for prompt in prompts)
    for layer in range(len(prompts[0].states)):
        pairs = zip(*(prompt.states[layer] for prompt in prompts))
        keys, values = (
            torch.stack([nn.functional.pad(states, (0, 0, length - states.shape[-2], 0)) for states in column])
            for column in pairs
        )
        cache.update(keys, values, layer)


class AdaptiveDecoding(PromptFitting):
    """`generate` with a budget that chooses a number of visual tokens for each prompt."""

    _checked_promise: Promise | None = None  # the last that was compared with the weights, which takes a while

    def _fit_prompt(
        self, prompt: Prompt, config: GenerationConfig, num_visual_tokens: Any, kwargs: dict
    ) -> FittedPrompt:
        if isinstance(num_visual_tokens, AdaptiveBudget):
            return self._fit_to_budget(prompt, config, num_visual_tokens, kwargs)
        return super()._fit_prompt(prompt, config, num_visual_tokens, kwargs)

    def _fit_to_budget(
        self, prompt: Prompt, config: GenerationConfig, budget: AdaptiveBudget, kwargs: dict
    ) -> FittedPrompt:
        """Finds the level of visual tokens that each prompt needs, and fits the prompts to these."""
        cache, levels = kwargs.get("past_key_values"), budget.levels_for(self.config.max_visual_tokens)
        self._check_promise(budget.promise, config)
        is_filled = cache is not None and cache.get_seq_length() > 0
        if prompt.ids is None or kwargs.get("inputs_embeds") is not None or is_filled:
            raise ValueError(
                "An adaptive `num_visual_tokens` needs the whole prompt as `input_ids`, without `inputs_embeds` or a "
                "filled `past_key_values`."
            )
        check_mask(prompt, past_length=0)
        check_images_are_passed(prompt)
        old_num_visual_tokens, images = self._num_visual_tokens_in(prompt), []
        most = [levels[-1]] * len(prompt.images)
        if prompt.images:
            image_outputs = encoded_images(kwargs.get("mm_encoder_outputs"))
            if image_outputs is None:
                pixel_values = kwargs.pop("pixel_values")
                image_outputs = self.get_image_features(pixel_values, most, return_dict=True)
                kwargs["mm_encoder_outputs"] = {"image": image_outputs}
            images = list(cut_visual_tokens(image_outputs, most).pooler_output)
        shortest = {}
        ids = self._resize_prompt(prompt, old_num_visual_tokens, [1] * len(prompt.images), config, shortest)
        probed = split_prompts(ids, shortest["attention_mask"], self.config.image_token_id, images)

        eos_token_ids = [] if config.eos_token_id is None else config.eos_token_id
        eos_token_ids = torch.tensor(eos_token_ids, device=ids.device).flatten()
        # A cache of another kind is filled from the start, and so is any where tokens are guessed ahead, by an
        # assistant model or from the prompt.
        is_assisted = config.get_generation_mode(kwargs.get("assistant_model")) == GenerationMode.ASSISTED_GENERATION
        reuse = (
            config.use_cache
            and config.cache_implementation in (None, "dynamic")
            and (cache is None or isinstance(cache, VisualTokenCache))
            and not is_assisted
            and can_reuse(self, probed)
        )
        climb(self, probed, levels, budget, eos_token_ids, reuse, can_leave_rest=num_copies(config) == 1)

        fitted = self._fit_to_levels(prompt, probed, old_num_visual_tokens, config, reuse, kwargs)
        confidence = torch.full((len(probed), len(levels)), float("nan"), device=ids.device)
        for row, entry in enumerate(probed):
            confidence[row, : len(entry.confidence)] = torch.tensor(entry.confidence)
        fitted.outcome = {
            "visual_token_level": ids.new_tensor([entry.level for entry in probed]),
            "visual_token_confidence": confidence,
            "visual_tokens_processed": ids.new_tensor([entry.num_processed for entry in probed]),
        }
        return fitted

    def _check_promise(self, promise: Promise | None, config: GenerationConfig) -> None:
        """Warns, once, where a budget is used otherwise than as it was calibrated."""
        if promise is None:
            return
        if config.do_sample or num_copies(config) > 1:
            logger.warning_once(
                "What the adaptive budget promises holds for greedy answers, not for sampling or beams."
            )
        if promise != self._checked_promise:
            self._checked_promise = promise
            if promise.checkpoint != checkpoint_digest(self):
                logger.warning(
                    f"The adaptive budget was calibrated for other weights (digest {promise.checkpoint}): what it "
                    "promises does not hold for these. Calibrate it again."
                )

    def _fit_to_levels(
        self,
        prompt: Prompt,
        probed: list[ProbedPrompt],
        old_num_visual_tokens: list[int],
        config: GenerationConfig,
        reuse: bool,
        kwargs: dict,
    ) -> FittedPrompt:
        """
        The prompts at the levels where they stopped.

        Args:
            old_num_visual_tokens: Visual tokens of each image in the prompts as they were passed.
            reuse: Whether `generate` goes on from what was computed of them.
        """
        new_num_visual_tokens = [entry.level for entry in probed for _ in entry.images]
        ids = self._resize_prompt(prompt, old_num_visual_tokens, new_num_visual_tokens, config, kwargs)
        images = [image.at(m) for image, m in zip(prompt.images, new_num_visual_tokens)]
        rows = images_per_row(ids == self.config.image_token_id, images)
        if not reuse:
            for entry in probed:
                entry.num_processed += entry.level * len(entry.images)
            self._pass_images([(index, 0, m) for index, m in enumerate(new_num_visual_tokens)], kwargs)
        else:
            if kwargs.get("past_key_values") is None:
                kwargs["past_key_values"] = VisualTokenCache(config=self.config.text_config)
            merge_states(probed, kwargs["past_key_values"])
            kwargs["past_key_values"].batch_repeat_interleave(num_copies(config))
            kwargs.pop("mm_encoder_outputs", None)
            if unread := [tokens for entry in probed for tokens in entry.unread]:
                kwargs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=unread)}
            if config.cache_implementation is not None:
                kwargs["cache_implementation"] = None  # not both
        return FittedPrompt(ids, CachedPrompts(ids, kwargs["attention_mask"].ne(0), rows, ids.shape[1]))
