# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""`generate` at any number of visual tokens, with images encoded once and conversations continued from a cache."""

import copy
from bisect import bisect_right
from itertools import accumulate

import torch
from transformers import Cache, GenerationConfig
from transformers.generation import GenerationMode
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .adaptive_mqt_llava import AdaptiveBudget, read_budget
from .climb_mqt_llava import can_reuse, climb, merge_states, split_prompts
from .configuration_mqt_llava import check_num_visual_tokens
from .modeling_compressed_llava import encoded_images
from .prompt_mqt_llava import images_per_row, resize_prompt, restore_prompt, visual_tokens_per_image


def cut_visual_tokens(image_outputs: ModelOutput, counts: list[int], is_kept: list[bool] | None = None) -> ModelOutput:
    """
    Encoded images at fewer visual tokens, in a new object: what the caller encoded stays as it is, for other budgets.

    Args:
        image_outputs: What `get_image_features` returns.
        counts: Visual tokens of each image that is kept.
        is_kept: Which images to keep, all by default.

    Raises:
        ValueError: An image was encoded into fewer tokens than are asked for now.
    """
    visual_tokens = list(image_outputs.pooler_output)
    if is_kept is not None:
        visual_tokens = [tokens for tokens, kept in zip(visual_tokens, is_kept) if kept]
    lengths = [len(tokens) for tokens in visual_tokens]
    if any(count > length for count, length in zip(counts, lengths)):
        raise ValueError(
            f"Image features and image tokens do not match: {counts} visual tokens are asked for, but the images were "
            f"encoded into {lengths}. Encode them without `visual_token_counts` to have all of them at hand."
        )
    cut = copy.copy(image_outputs)
    cut["pooler_output"] = [tokens[:count] for tokens, count in zip(visual_tokens, counts)]
    return cut


def count_cached_images(
    rows: list[list[int]], placeholder_mask: torch.Tensor, past_length: int, cached_rows: list[list[int]]
) -> list[int]:
    """
    How many images of each prompt a cache holds.

    Args:
        rows: Visual tokens of the images in each prompt.
        placeholder_mask: Bool `(batch, length)`, true at the placeholders.
        past_length: Length of the cache, which holds the beginning of the prompts.
        cached_rows: What `rows` was when the cache was filled.

    Raises:
        ValueError: The cache holds the images at another number of visual tokens.
    """
    numbers = []
    for row, seen, cached in zip(rows, placeholder_mask[:, :past_length].sum(-1).tolist(), cached_rows):
        number = bisect_right(list(accumulate(row)), seen)
        if row[: len(cached)] != cached or sum(row[:number]) != seen:
            raise ValueError(
                f"`past_key_values` holds images at {cached} visual tokens, but the prompt now asks for "
                f"{row[: len(cached)]}. Continue with the same `num_visual_tokens`, or without the cache."
            )
        numbers.append(number)
    return numbers


def check_same_budget(num_visual_tokens: int | list[int] | None, passed: list[int], cached: list[int]) -> None:
    """
    Args:
        num_visual_tokens: What is asked for; an integer for all images, a list for those that are passed.
        passed, cached: Visual tokens of the images that are passed along with a cache, and of those that it holds.

    Raises:
        ValueError: What is asked for is not what there is.
    """
    if isinstance(num_visual_tokens, (list, tuple, torch.Tensor)):
        is_same = list(num_visual_tokens) == (passed or cached)
    else:
        is_same = num_visual_tokens is None or all(count == num_visual_tokens for count in passed + cached)
    if not is_same:
        raise ValueError(
            f"`past_key_values` holds images at {cached} visual tokens and the prompt shows further ones at {passed}, "
            f"but `num_visual_tokens` is {num_visual_tokens}. Continue with the same, or without the cache."
        )


def finish_outputs(
    outputs: torch.Tensor | ModelOutput,
    prompt: torch.Tensor,
    fitted: torch.Tensor,
    rows: list[list[int]],
    cache: Cache | None,
) -> torch.Tensor | ModelOutput:
    """
    What `generate` returns, beginning with the caller's own prompt.

    Args:
        outputs: Of generating from `fitted`, the re-sized `prompt`.
        rows: Visual tokens of the images in each prompt.
        cache: Filled by it, where `outputs` does not hold one.
    """
    sequences = outputs if isinstance(outputs, torch.Tensor) else outputs.sequences
    sequences = restore_prompt(sequences, prompt, fitted.shape[1])
    if isinstance(outputs, torch.Tensor):
        outputs = sequences
    else:
        cache, outputs.sequences = outputs.get("past_key_values"), sequences
    if cache is not None:
        # So that a conversation continued from this cache can be checked against it.
        cache.visual_token_counts = [row for row in rows for _ in range(len(sequences) // len(prompt))]
    return outputs


class MQTLlavaGenerationMixin:
    """`generate` with a number of visual tokens of its own."""

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args,
        num_visual_tokens: int | list[int] | str | AdaptiveBudget | None = None,
        **kwargs,
    ):
        """
        [`~GenerationMixin.generate`] at any number of visual tokens, whatever number the prompt was made with.

        The prompt's runs of `<image>` tokens are re-sized first. What is returned starts with the prompt as it was
        passed, so `output[:, input_ids.shape[1]:]` are the new tokens; `past_key_values`, attentions, hidden states,
        `max_length` and streamers refer to the re-sized prompt.

        With an adaptive budget, what comes out is what the level that was chosen gives. Going up a level goes on from
        the decoder's cache, so the first step's hidden states and attentions are those of what was left to read: the
        prompt's last token or more. With sliding windows, recurrent layers, rotary frequencies that follow the length,
        static, quantized or offloaded caches or one that is passed, assisted decoding, or an image that ends its
        prompt, each level is computed from the start instead. A dict then also has `visual_token_level` (long
        `(batch,)`, 0 without an image), `visual_token_confidence` (float `(batch, levels)`, NaN where a level was not
        probed) and `visual_tokens_processed` (long `(batch,)`, by the decoder, at all levels).

        Args:
            inputs, generation_config, *args, **kwargs:
                As in [`~GenerationMixin.generate`], with the processor's output among them. Instead of `pixel_values`,
                `mm_encoder_outputs={"image": model.get_image_features(pixel_values)}` holds images that are encoded
                already; it is not changed and can be used again at another number of tokens.
            num_visual_tokens (`int`, `list[int]`, `"auto"` or [`AdaptiveBudget`], *optional*):
                Visual tokens of all images, or one number per image; or as many as each prompt needs, by the budget
                that is passed or, for `"auto"`, by the `adaptive_budget` of the generation config. Without it, the
                `num_visual_tokens` of the `generation_config` that is passed holds, then that of the model's, then
                the prompt's own number.

        Raises:
            TypeError, ValueError: `num_visual_tokens` is no integer in 1..M, or not one per image.
            ValueError: The prompt cannot be re-sized: it is given as `inputs_embeds`, its images are missing, or
                `past_key_values` holds the images at another number of visual tokens, or anything where the budget is
                adaptive.
        """
        # An assistant model gets a copy of the main model's configuration, and a prompt that is re-sized already.
        if generation_config is not None and generation_config.is_assistant:
            return super().generate(inputs, generation_config, *args, **kwargs)
        calibrated = None
        for config in (generation_config, self.generation_config):
            if num_visual_tokens is None:
                num_visual_tokens = getattr(config, "num_visual_tokens", None)
            calibrated = calibrated or getattr(config, "adaptive_budget", None)

        num_visual_tokens = read_budget(num_visual_tokens, calibrated)
        if isinstance(num_visual_tokens, AdaptiveBudget):
            return self._generate_adaptively(inputs, generation_config, args, num_visual_tokens, kwargs)

        prompt = inputs if inputs is not None else kwargs.get("input_ids")
        fitted, rows = self._fit_prompt(prompt, num_visual_tokens, kwargs)
        if inputs is not None:
            inputs = fitted
        elif fitted is not None:
            kwargs["input_ids"] = fitted
        outputs = super().generate(inputs, generation_config, *args, **kwargs)
        if prompt is None or rows is None:
            return outputs
        return finish_outputs(outputs, prompt, fitted, rows, kwargs.get("past_key_values"))

    @torch.no_grad()
    def _generate_adaptively(self, inputs, generation_config, args: tuple, budget: AdaptiveBudget, kwargs: dict):
        """`generate` at the level of visual tokens that each prompt needs."""
        prompt = inputs if inputs is not None else kwargs.pop("input_ids", None)
        levels = budget.levels_for(self.config.max_visual_tokens)
        cache = kwargs.get("past_key_values")
        if prompt is None or kwargs.get("inputs_embeds") is not None or (cache is not None and cache.get_seq_length()):
            raise ValueError(
                "An adaptive `num_visual_tokens` needs the whole prompt as `input_ids`, without `inputs_embeds` or a "
                "filled `past_key_values`."
            )
        pixel_values, image_outputs = kwargs.pop("pixel_values", None), kwargs.pop("mm_encoder_outputs", None)
        image_outputs = encoded_images(image_outputs)
        if pixel_values is not None and image_outputs is not None:
            raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")
        if pixel_values is not None:
            image_outputs = self.get_image_features(pixel_values, [levels[-1]] * len(pixel_values), return_dict=True)
        num_images = 0 if image_outputs is None else len(image_outputs.pooler_output)
        images = []
        if num_images:
            images = list(cut_visual_tokens(image_outputs, [levels[-1]] * num_images).pooler_output)

        mask = kwargs.pop("attention_mask", None)
        mask = torch.ones_like(prompt) if mask is None else mask
        placeholders = self.model.get_placeholder_mask(prompt, None)
        given = kwargs.pop("visual_token_counts", None)
        if not num_images and placeholders.any():
            raise ValueError(
                "`num_visual_tokens` is adaptive, but the images of the prompt are missing: pass `pixel_values` or "
                "`mm_encoder_outputs`."
            )
        counts = visual_tokens_per_image(placeholders, num_images, self.config.max_visual_tokens, given)
        shortest = {}
        ids = self._resize_prompt(prompt, placeholders, mask, counts, [1] * num_images, shortest)
        prompts = split_prompts(ids, shortest["attention_mask"], self.config.image_token_id, images)

        config, _ = self._prepare_generation_config(generation_config, **kwargs)
        eos_token_ids = [] if config.eos_token_id is None else config.eos_token_id
        eos_token_ids = torch.tensor(eos_token_ids, device=prompt.device).flatten()
        # A cache of another kind or one of the caller's is filled from the start, and so is any where tokens are
        # guessed ahead, by an assistant model or from the prompt.
        is_plain = config.use_cache and config.cache_implementation in (None, "dynamic") and cache is None
        is_assisted = config.get_generation_mode(kwargs.get("assistant_model")) == GenerationMode.ASSISTED_GENERATION
        reuse = is_plain and not is_assisted and can_reuse(self, prompts)
        num_copies = max(config.num_beams or 1, config.num_return_sequences or 1)
        climb(self, prompts, levels, budget, eos_token_ids, reuse, can_leave_rest=num_copies == 1)

        new_counts = [entry.level for entry in prompts for _ in entry.images]
        fitted = self._resize_prompt(prompt, placeholders, mask, counts, new_counts, kwargs)
        rows = images_per_row(self.model.get_placeholder_mask(fitted, None), new_counts)
        if reuse:
            cache = merge_states(self, prompts)
            cache.batch_repeat_interleave(num_copies)
            kwargs["past_key_values"] = cache
            if unread := [tokens for entry in prompts for tokens in entry.unread]:
                kwargs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=unread)}
            if config.cache_implementation is not None:
                kwargs["cache_implementation"] = None  # not both
        else:
            for entry in prompts:
                entry.num_processed += entry.level * len(entry.images)
            if num_images:
                kwargs["mm_encoder_outputs"] = {"image": cut_visual_tokens(image_outputs, new_counts)}
        outputs = super().generate(fitted, generation_config, *args, **kwargs)
        outputs = finish_outputs(outputs, prompt, fitted, rows, cache)
        if not isinstance(outputs, torch.Tensor):
            device = outputs.sequences.device
            confidence = torch.full((len(prompts), len(levels)), float("nan"), device=device)
            for row, entry in enumerate(prompts):
                confidence[row, : len(entry.confidence)] = torch.tensor(entry.confidence)
            outputs["visual_token_level"] = torch.tensor([entry.level for entry in prompts], device=device)
            outputs["visual_token_confidence"] = confidence
            outputs["visual_tokens_processed"] = torch.tensor([e.num_processed for e in prompts], device=device)
        return outputs

    def _fit_prompt(
        self, prompt: torch.Tensor | None, num_visual_tokens: int | list[int] | None, kwargs: dict
    ) -> tuple[torch.Tensor | None, list[list[int]] | None]:
        """
        Re-sizes the prompt, and what goes along with it in `kwargs`, to the number of visual tokens that is asked for.

        Returns:
            The prompt to generate from, and the visual tokens of the images in each of its rows; None where there is
            nothing to re-size.
        """
        embeds, pixel_values = kwargs.get("inputs_embeds"), kwargs.get("pixel_values")
        image_outputs = encoded_images(kwargs.get("mm_encoder_outputs"))
        if pixel_values is not None and image_outputs is not None:
            raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")
        cache = kwargs.get("past_key_values")
        past_length = cache.get_seq_length() if cache is not None else 0
        cached_rows = getattr(cache, "visual_token_counts", None) if past_length else None

        num_images = sum(len(row) for row in cached_rows or [])
        if image_outputs is not None:
            num_images = len(image_outputs.pooler_output)
        elif pixel_values is not None:
            num_images = len(pixel_values)
        max_visual_tokens, asked = self.config.max_visual_tokens, None
        if num_visual_tokens is not None:
            asked = check_num_visual_tokens(num_visual_tokens, max_visual_tokens, num_images)
        tokens = prompt if embeds is None else embeds
        if tokens is None or num_images == 0:
            if asked is not None and embeds is None and not past_length and prompt is not None:
                if self.model.get_placeholder_mask(prompt, None).any():
                    raise ValueError(
                        f"`num_visual_tokens` is {num_visual_tokens}, but the images of the prompt are missing: pass "
                        "`pixel_values` or `mm_encoder_outputs`."
                    )
            return prompt, None

        mask = kwargs.get("attention_mask")
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device) if mask is None else mask
        placeholders = self.model.get_placeholder_mask(prompt if embeds is None else None, embeds)
        given = kwargs.get("visual_token_counts")
        is_sliced = mask.shape != tokens.shape[:2]
        shows_all_images = asked is not None if given is None else int(sum(given)) == int(placeholders.sum())
        if past_length and (is_sliced or not shows_all_images):
            # Continued as transformers' own models are, with what is not in the cache yet. That cannot be re-sized.
            passed = []
            if pixel_values is not None or image_outputs is not None:
                uncached = placeholders if is_sliced else placeholders[:, past_length:]
                passed = visual_tokens_per_image(uncached, num_images, max_visual_tokens, given)
            check_same_budget(num_visual_tokens, passed, [count for row in cached_rows or [] for count in row])
            return prompt, None

        counts = visual_tokens_per_image(placeholders, num_images, max_visual_tokens, given)
        rows = images_per_row(placeholders, counts)
        if cached_rows is None or len(cached_rows) != len(rows):
            cached_rows = rows  # a cache that was filled or rearranged elsewhere
        if asked is not None and asked != counts:
            if embeds is not None:
                raise ValueError(
                    f"`num_visual_tokens` is {num_visual_tokens}, but `inputs_embeds` holds {counts} visual tokens "
                    "per image and cannot be re-sized. Pass `input_ids` instead."
                )
            prompt = self._resize_prompt(prompt, placeholders, mask, counts, asked, kwargs)
            placeholders = self.model.get_placeholder_mask(prompt, None)
            counts, rows = asked, images_per_row(placeholders, asked)

        # Images whose tokens are in the cache are not encoded again.
        cached = count_cached_images(rows, placeholders, past_length, cached_rows) if past_length else [0] * len(rows)
        is_new = [index >= number for row, number in zip(rows, cached) for index in range(len(row))]
        counts = [count for count, new in zip(counts, is_new) if new]
        kwargs.pop("visual_token_counts", None)
        if image_outputs is not None:
            cut = cut_visual_tokens(image_outputs, counts, is_new)
            kwargs["mm_encoder_outputs"] = {"image": cut} if counts else {}
        elif pixel_values is not None and counts:
            kwargs["pixel_values"] = pixel_values if all(is_new) else pixel_values[torch.tensor(is_new)]
            kwargs["visual_token_counts"] = torch.tensor(counts)
        elif pixel_values is not None:
            del kwargs["pixel_values"]
        return prompt, rows

    def _resize_prompt(self, prompt, placeholders, mask, old_counts, new_counts, kwargs) -> torch.Tensor:
        """Re-sizes `input_ids`, and in `kwargs` the attention mask and the token types."""
        if mask.shape != prompt.shape:
            raise ValueError(
                f"`attention_mask` is {tuple(mask.shape)} and `input_ids` {tuple(prompt.shape)}: "
                "a prompt can only be re-sized to `num_visual_tokens` as a whole, with a mask of its shape."
            )
        pad_token_id = self.generation_config.pad_token_id
        inputs = {"input_ids": prompt}
        for name in ("token_type_ids", "mm_token_type_ids"):
            if kwargs.get(name) is not None:
                inputs[name] = kwargs[name]
        pad_values = dict.fromkeys(inputs, 0) | {"input_ids": 0 if pad_token_id is None else pad_token_id}
        resized, kwargs["attention_mask"] = resize_prompt(
            inputs, placeholders, mask.to(prompt.device), old_counts, new_counts, pad_values
        )
        kwargs.pop("position_ids", None)  # rebuilt from the attention mask
        prompt = resized.pop("input_ids")
        kwargs.update(resized)
        return prompt
