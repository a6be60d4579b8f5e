# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Prompts fitted to what `generate` is asked for: to numbers of visual tokens, and to what a cache holds of them."""

from functools import wraps
from typing import Any

import torch
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin
from transformers.generation.utils import GenerateOutput
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .cache_fitting import CacheFitting, FittedPrompt, resolve_num_visual_tokens
from .configuration_compressed_llava import check_num_visual_tokens, plain_numbers
from .placeholders import (
    TOKEN_TYPES,
    Prompt,
    ShownImage,
    check_images_are_passed,
    check_mask,
    check_not_resized,
    cut_visual_tokens,
    encoded_images,
    images_per_row,
    infer_mask,
    is_padded_on_the_left,
    num_copies,
    pad_token_id,
    resize_prompt,
    restore_prompt,
    visual_tokens_per_image,
)
from .visual_token_cache import CachedPrompts, VisualTokenCache, recall_prompts, remember_prompts


class PromptFitting(CacheFitting):
    """`generate` with prompts that are fitted first, and the keywords that go along with them."""

    # What `get_image_features` encodes, with a row for each image.
    image_inputs: tuple[str, ...] = ("pixel_values",)

    @property
    def max_visual_tokens(self) -> int:
        raise NotImplementedError

    def images_at(self, images: dict[str, torch.Tensor], num_visual_tokens: list[int]) -> dict[str, torch.Tensor]:
        """Arguments of `get_image_features` for images at these numbers of visual tokens."""
        raise NotImplementedError

    def generate_fitted(
        self,
        num_visual_tokens: Any,  # or a budget that chooses it
        inputs: torch.Tensor | None,
        generation_config: GenerationConfig | None,
        args: tuple,
        kwargs: dict,
    ) -> GenerateOutput | torch.LongTensor:
        """Transformers' `generate` on prompts that were fitted to `num_visual_tokens` and to `past_key_values`."""
        config, _ = self._prepare_generation_config(generation_config, **kwargs)
        self.check_cache_is_used(config)
        prompt = self._read_prompt(inputs if inputs is not None else kwargs.pop("input_ids", None), config, kwargs)
        fitted = self._fit_prompt(prompt, config, num_visual_tokens, kwargs)
        if inputs is not None:
            inputs = fitted.ids
        elif fitted.ids is not None:
            kwargs["input_ids"] = fitted.ids
        outputs = super().generate(inputs, generation_config, *args, **kwargs)
        return self._finish(outputs, prompt.ids, fitted, config, kwargs.get("past_key_values"))

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict, *args: Any, **kwargs: Any
    ) -> None:
        """As transformers does it; but a [`DynamicCache`] of its making is one that knows its prompts."""
        is_passed = model_kwargs.get("past_key_values") is not None
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        made = model_kwargs.get("past_key_values")
        if not is_passed and type(made) is DynamicCache:
            model_kwargs["past_key_values"] = VisualTokenCache.from_dynamic(made)

    @wraps(GenerationMixin.prepare_inputs_for_generation)  # whose signature transformers looks at
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict:
        """
        As transformers does it, but for guesses. Prompt lookup guesses that what followed in the prompt follows again,
        be it placeholders: no answer holds any, and there are no visual tokens for them.
        """
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        image_outputs, ids = encoded_images(inputs.get("mm_encoder_outputs")), inputs.get("input_ids")
        if image_outputs is not None and ids is not None and len(ids) == 1:
            num_visual_tokens = sum(map(len, image_outputs.pooler_output))
            is_placeholder = ids == self.config.image_token_id
            is_guess = is_placeholder & (is_placeholder.cumsum(-1) > num_visual_tokens)
            inputs["input_ids"] = ids.masked_fill(is_guess, 0)
        return inputs

    def _read_prompt(self, ids: torch.Tensor | None, config: GenerationConfig, kwargs: dict) -> Prompt:
        """What is passed to `generate`, checked; takes `visual_token_counts` out of `kwargs`."""
        cache, pixel_values = kwargs.get("past_key_values"), kwargs.get("pixel_values")
        if cache is not None and not isinstance(cache, Cache):
            raise TypeError(f"`past_key_values` is a {type(cache).__name__}, but must be a `Cache`.")
        image_outputs, embeds = encoded_images(kwargs.get("mm_encoder_outputs")), kwargs.get("inputs_embeds")
        if pixel_values is not None and image_outputs is not None:
            raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")
        images = self._shown_images(image_outputs, kwargs)
        num_visual_tokens = kwargs.pop("visual_token_counts", None)
        if num_visual_tokens is not None:
            num_visual_tokens = plain_numbers(num_visual_tokens)
            is_list = isinstance(num_visual_tokens, (list, tuple))
            num_images = len(num_visual_tokens) if is_list and not images else len(images)
            num_visual_tokens = check_num_visual_tokens(
                num_visual_tokens, self.max_visual_tokens, num_images, name="visual_token_counts"
            )
        tokens, mask = ids if embeds is None else embeds, kwargs.get("attention_mask")
        if tokens is None:  # transformers begins with BOS, or says what is missing
            tokens = torch.zeros((1, 0), dtype=torch.long)
        if mask is None and embeds is None and ids is not None:
            mask = kwargs["attention_mask"] = infer_mask(ids, config)
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        placeholders = self.model.find_placeholders(tokens if embeds is None else None, embeds)
        return Prompt(ids, mask, placeholders, images, num_visual_tokens)

    def _shown_images(self, image_outputs: ModelOutput | None, kwargs: dict) -> list[ShownImage]:
        """The images that are passed, whose number of visual tokens is still open."""
        if image_outputs is not None:
            return [ShownImage(0, tokens=tokens.detach()) for tokens in image_outputs.pooler_output]
        if kwargs.get("pixel_values") is None:
            return []
        return [ShownImage(0, pixels=pixels) for pixels in kwargs["pixel_values"]]

    def _fit_prompt(
        self, prompt: Prompt, config: GenerationConfig, num_visual_tokens: int | list[int] | None, kwargs: dict
    ) -> FittedPrompt:
        """
        Re-sizes the prompt, and what goes along with it in `kwargs`, to the number of visual tokens that is asked for,
        and to what `past_key_values` holds of it.
        """
        cache = kwargs.get("past_key_values")
        past_length = 0 if cache is None else cache.get_seq_length()
        check_mask(prompt, past_length)
        if not past_length:
            return self._fit_fresh(prompt, config, num_visual_tokens, kwargs)
        known = recall_prompts(cache)
        if prompt.mask.shape != prompt.placeholders.shape:
            return self._fit_new_tokens(prompt, known, config, num_visual_tokens, kwargs)
        if kwargs.get("inputs_embeds") is not None:
            return self._fit_embeds_to_cache(prompt, num_visual_tokens, kwargs)
        if known is None:
            known = self._assume_prompts(prompt, past_length)
        return self._fit_to_cache(prompt, known, config, num_visual_tokens, kwargs)

    def _fit_fresh(
        self, prompt: Prompt, config: GenerationConfig, num_visual_tokens: int | list[int] | None, kwargs: dict
    ) -> FittedPrompt:
        """Without anything in a cache."""
        is_embedded = kwargs.get("inputs_embeds") is not None
        if not is_embedded:
            check_images_are_passed(prompt)
        old_num_visual_tokens = self._num_visual_tokens_in(prompt)
        images = [image.at(m) for image, m in zip(prompt.images, old_num_visual_tokens)]
        new_num_visual_tokens = resolve_num_visual_tokens(num_visual_tokens, images, self.max_visual_tokens)
        fitted = FittedPrompt(prompt.ids)
        if is_embedded:
            check_not_resized(old_num_visual_tokens, num_visual_tokens, new_num_visual_tokens, "inputs_embeds")
        if new_num_visual_tokens != old_num_visual_tokens or not is_padded_on_the_left(prompt.mask):
            fitted.ids = self._resize_prompt(prompt, old_num_visual_tokens, new_num_visual_tokens, config, kwargs)
        if not is_embedded and fitted.ids is not None:
            mask = prompt.mask if fitted.ids is prompt.ids else kwargs["attention_mask"]
            placeholders = self.model.find_placeholders(fitted.ids, None)
            rows = images_per_row(placeholders, [image.at(m) for image, m in zip(images, new_num_visual_tokens)])
            fitted.cached = CachedPrompts(fitted.ids, mask.ne(0), rows, fitted.ids.shape[1])
        elif fitted.ids is None and "attention_mask" in kwargs and kwargs["attention_mask"] is not prompt.mask:
            fitted.cached = CachedPrompts.nothing(prompt.mask)  # `inputs_embeds` that were padded anew
        self._pass_images([(index, 0, m) for index, m in enumerate(new_num_visual_tokens)], kwargs)
        return fitted

    def _num_visual_tokens_in(self, prompt: Prompt) -> list[int]:
        """The visual tokens that each passed image has in the prompt."""
        if not prompt.images:
            return []
        return visual_tokens_per_image(
            prompt.placeholders, len(prompt.images), self.max_visual_tokens, prompt.num_visual_tokens
        )

    def _pass_images(self, parts: list[tuple[int | None, int, int]], kwargs: dict) -> None:
        """
        Leaves in `kwargs` what the decoder is to read of the images.

        Args:
            parts: The place of each image among those that are passed, its first visual token to be read, and the one
                behind its last.

        Raises:
            ValueError: An image is not passed, or was encoded into fewer tokens.
        """
        image_outputs = encoded_images(kwargs.pop("mm_encoder_outputs", None))
        images = {name: kwargs.pop(name, None) for name in self.image_inputs}
        images = {name: tensor for name, tensor in images.items() if tensor is not None}
        if any(index is None for index, *_ in parts):
            raise ValueError(
                "The prompt shows images that `past_key_values` does not hold and that are not passed: pass "
                "`pixel_values` or `mm_encoder_outputs`."
            )
        if not parts:
            return
        indices, num_visual_tokens = [index for index, *_ in parts], [m for *_, m in parts]
        if image_outputs is None:
            if indices != list(range(len(images["pixel_values"]))):
                images = {name: tensor[torch.tensor(indices)] for name, tensor in images.items()}
            images = self.images_at(images, num_visual_tokens)
            if not any(first for _, first, _ in parts):
                kwargs.update(images)
                return
            image_outputs, indices = self.get_image_features(**images, return_dict=True), range(len(parts))
        tokens = BaseModelOutputWithPooling(pooler_output=[image_outputs.pooler_output[index] for index in indices])
        tokens = cut_visual_tokens(tokens, num_visual_tokens)
        tokens["pooler_output"] = [image[first:] for image, (_, first, _) in zip(tokens.pooler_output, parts)]
        kwargs["mm_encoder_outputs"] = {"image": tokens}

    def _resize_prompt(
        self,
        prompt: Prompt,
        old_num_visual_tokens: list[int],
        new_num_visual_tokens: list[int],
        config: GenerationConfig,
        kwargs: dict,
    ) -> torch.Tensor:
        """Re-sizes `input_ids`, and in `kwargs` the attention mask and the token types."""
        inputs = {"input_ids": prompt.ids}
        inputs |= {name: kwargs.get(name) for name in (*TOKEN_TYPES, "inputs_embeds")}
        inputs = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        pad_values = dict.fromkeys(inputs, 0) | {"input_ids": pad_token_id(config)}
        resized, kwargs["attention_mask"] = resize_prompt(
            inputs,
            prompt.placeholders,
            prompt.mask.to(prompt.placeholders.device),
            old_num_visual_tokens,
            new_num_visual_tokens,
            pad_values,
        )
        kwargs.pop("position_ids", None)  # rebuilt from the attention mask
        ids = resized.pop("input_ids", None)
        kwargs.update(resized)
        return ids

    def _finish(
        self,
        outputs: GenerateOutput | torch.LongTensor,
        prompt: torch.Tensor | None,
        fitted: FittedPrompt,
        config: GenerationConfig,
        cache: Cache | None,
    ) -> GenerateOutput | torch.LongTensor:
        """What `generate` returns, beginning with the caller's own prompt; and notes what the cache holds now."""
        is_dict = isinstance(outputs, ModelOutput)
        sequences = outputs.sequences if is_dict else outputs
        cache = outputs.get("past_key_values") if is_dict else cache
        if cache is not None:
            cached, num_columns = fitted.cached, cache.get_seq_length()
            if cached is not None:
                answers = sequences if fitted.ids is None else sequences[:, fitted.ids.shape[1] :]
                cached = cached.select(torch.arange(len(cached.ids)).repeat_interleave(num_copies(config)))
                # The rows of a beam search are not those of the sequences that it returns.
                if config.num_beams == 1 and cached.ids.shape[1] + answers.shape[1] >= num_columns:
                    cached = cached.extended(answers)
                cached = cached.first(num_columns)
            remember_prompts(cache, cached)
        if fitted.ids is not prompt:
            sequences = restore_prompt(sequences, prompt, fitted.ids.shape[1])
        if not is_dict:
            return sequences
        outputs.sequences = sequences
        for name, value in fitted.outcome.items():
            outputs[name] = value
        return outputs
