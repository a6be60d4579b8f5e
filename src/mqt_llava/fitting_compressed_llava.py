# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
Prompts fitted to what `generate` is asked for: to numbers of visual tokens, and to what a cache holds of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps

import torch
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .cache_compressed_llava import (
    CachedPrompts,
    VisualTokenCache,
    has_plain_cache,
    keys_follow_length,
    recall_prompts,
    remember_prompts,
)
from .continuation_compressed_llava import (
    cached_images,
    images_of_conversations,
    lay_out,
    match_prompts,
    numbers_asked_for,
    unread_parts,
)
from .modeling_compressed_llava import encoded_images
from .numbers_compressed_llava import check_num_visual_tokens, plain_numbers
from .prompt_compressed_llava import (
    ShownImage,
    hide_placeholders,
    images_per_row,
    infer_mask,
    is_padded_on_the_left,
    num_copies,
    resize_prompt,
    restore_prompt,
    run_lengths,
    visual_tokens_per_image,
)


TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


def cut_visual_tokens(image_outputs: ModelOutput, counts: list[int]) -> BaseModelOutputWithPooling:
    """
    Encoded images at fewer visual tokens, in a new object: what the caller encoded stays as it is, for other numbers.

    Args:
        image_outputs: What `get_image_features` returns.
        counts: Visual tokens of each image.

    Raises:
        ValueError: An image was encoded into fewer tokens than are asked for now.
    """
    lengths = [len(tokens) for tokens in image_outputs.pooler_output]
    if any(count > length for count, length in zip(counts, lengths)):
        raise ValueError(
            f"Image features and image tokens do not match: {counts} visual tokens are asked for, but the images were "
            f"encoded into {lengths}. Encode them without `visual_token_counts` to have all of them at hand."
        )
    return BaseModelOutputWithPooling(
        pooler_output=[tokens[:count] for tokens, count in zip(image_outputs.pooler_output, counts)]
    )


@dataclass
class Prompt:
    """
    A batch of prompts as `generate` is called with.

    Args:
        ids: `(batch, length)`; None beside `inputs_embeds` alone.
        mask: Its attention mask; wider, where the first columns are in a cache and were not passed.
        placeholders: Where visual tokens go, bool `(batch, length)`.
        images: Those that are passed, in the order of the prompts.
        counts: The visual tokens that the processor gave them, where it says.
    """

    ids: torch.Tensor | None
    mask: torch.Tensor
    placeholders: torch.Tensor
    images: list[ShownImage]
    counts: list[int] | None


@dataclass
class FittedPrompt:
    """
    What `generate` goes on with.

    Args:
        ids: `(batch, length)`, what transformers' `generate` is given.
        cached: What the cache will hold of it, all but the answer, or of its first columns; None where it holds the
            prompt as it was passed.
    """

    ids: torch.Tensor | None
    cached: CachedPrompts | None = None


def check_not_resized(made: list[int], num_visual_tokens: int | list[int] | None, asked: list[int], name: str) -> None:
    """
    Raises:
        ValueError: Images of `name`, which cannot be re-sized, are asked for at another number of visual tokens.
    """
    if asked != made:
        raise ValueError(
            f"`num_visual_tokens` is {num_visual_tokens}, but `{name}` holds {made} visual tokens per image and "
            "cannot be re-sized. Pass `input_ids` instead, the whole prompt, and no cache or a `VisualTokenCache`."
        )


def raise_other_prompt(cached: list[list[ShownImage]], asked: list[list[ShownImage]]):
    cached, asked = ([image.num_visual_tokens for row in rows for image in row] for rows in (cached, asked))
    raise ValueError(
        f"`past_key_values` holds images at {cached} visual tokens, but the prompt now asks for {asked}; or it holds "
        "other text or images. Continue with the same, pass all images and a `VisualTokenCache`, or no cache."
    )


class PromptFitting:
    """`generate` with prompts that are fitted first, and the keywords that go along with them."""

    # What `get_image_features` encodes, with a row for each image.
    image_inputs: tuple[str, ...] = ("pixel_values",)

    @property
    def most_visual_tokens(self) -> int:
        raise NotImplementedError

    def images_at(self, images: dict[str, torch.Tensor], counts: list[int]) -> dict[str, torch.Tensor]:
        """Arguments of `get_image_features` for images at these numbers of visual tokens."""
        raise NotImplementedError

    def generate_fitted(self, fit: Callable, inputs, generation_config, args: tuple, kwargs: dict):
        """
        Transformers' `generate` on prompts that `fit(prompt, generation_config, kwargs)` has fitted.

        Args:
            fit: Returns a [`FittedPrompt`], and what a dict that is returned shall hold besides.
        """
        config, _ = self._prepare_generation_config(generation_config, **kwargs)
        self.check_cache_is_used(config)
        prompt = self._read_prompt(inputs if inputs is not None else kwargs.pop("input_ids", None), config, kwargs)
        fitted, outcome = fit(prompt, config, kwargs)
        if inputs is not None:
            inputs = fitted.ids
        elif fitted.ids is not None:
            kwargs["input_ids"] = fitted.ids
        outputs = super().generate(inputs, generation_config, *args, **kwargs)
        return self._finish(outputs, prompt.ids, fitted, config, kwargs.get("past_key_values"), outcome)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args, **kwargs) -> None:
        """As transformers does it; but a [`DynamicCache`] of its making is one that knows its prompts."""
        is_passed = model_kwargs.get("past_key_values") is not None
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        made = model_kwargs.get("past_key_values")
        if not is_passed and type(made) is DynamicCache:
            model_kwargs["past_key_values"] = VisualTokenCache.from_dynamic(made)

    @wraps(GenerationMixin.prepare_inputs_for_generation)  # whose signature transformers looks at
    def prepare_inputs_for_generation(self, *args, **kwargs) -> dict:
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
        """What is passed to `generate`, checked; takes the counts out of `kwargs`."""
        cache, pixel_values = kwargs.get("past_key_values"), kwargs.get("pixel_values")
        if cache is not None and not isinstance(cache, Cache):
            raise TypeError(f"`past_key_values` is a {type(cache).__name__}, but must be a `Cache`.")
        image_outputs, embeds = encoded_images(kwargs.get("mm_encoder_outputs")), kwargs.get("inputs_embeds")
        if pixel_values is not None and image_outputs is not None:
            raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")
        images = self._shown_images(image_outputs, kwargs)
        counts = kwargs.pop("visual_token_counts", None)
        if counts is not None:
            counts = plain_numbers(counts)
            num_images = len(images) if images or not isinstance(counts, (list, tuple)) else len(counts)
            counts = check_num_visual_tokens(counts, self.most_visual_tokens, num_images, name="visual_token_counts")
        tokens, mask = ids if embeds is None else embeds, kwargs.get("attention_mask")
        if tokens is None:  # transformers begins with BOS, or says what is missing
            tokens = torch.zeros((1, 0), dtype=torch.long)
        if mask is None and embeds is None and ids is not None:
            mask = infer_mask(ids, config)
            if not mask.all():
                kwargs["attention_mask"] = mask
        elif mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        placeholders = self.model.get_placeholder_mask(tokens if embeds is None else None, embeds)
        return Prompt(ids, mask, placeholders, images, counts)

    def _shown_images(self, image_outputs: ModelOutput | None, kwargs: dict) -> list[ShownImage]:
        """The images that are passed, whose number of visual tokens is still open."""
        if image_outputs is not None:
            return [ShownImage(0, tokens=tokens.detach()) for tokens in image_outputs.pooler_output]
        if kwargs.get("pixel_values") is None:
            return []
        return [ShownImage(0, pixels=pixels) for pixels in kwargs["pixel_values"]]

    def _fit_prompt(self, prompt: Prompt, config, num_visual_tokens: int | list[int] | None, kwargs) -> FittedPrompt:
        """
        Re-sizes the prompt, and what goes along with it in `kwargs`, to the number of visual tokens that is asked for,
        and to what `past_key_values` holds of it.
        """
        cache = kwargs.get("past_key_values")
        past_length, shape = 0 if cache is None else cache.get_seq_length(), prompt.placeholders.shape
        if prompt.mask.shape not in (shape, (shape[0], past_length + shape[1])):
            raise ValueError(
                f"`attention_mask` is {tuple(prompt.mask.shape)} and `input_ids` {tuple(shape)}: the mask must be of "
                "the shape of the prompt"
                + (f", or also cover the {past_length} columns of `past_key_values`." if past_length else ".")
            )
        if not past_length:
            return self._fit_fresh(prompt, config, num_visual_tokens, kwargs)
        known = recall_prompts(cache)
        if prompt.mask.shape != shape:
            return self._fit_new_tokens(prompt, known, config, num_visual_tokens, kwargs)
        if kwargs.get("inputs_embeds") is not None:
            return self._fit_embeds_to_cache(prompt, num_visual_tokens, kwargs)
        if known is None:
            known = self._assume_prompts(prompt, past_length)
        return self._fit_to_cache(prompt, known, config, num_visual_tokens, kwargs)

    def _fit_fresh(self, prompt: Prompt, config, num_visual_tokens, kwargs: dict) -> FittedPrompt:
        """Without anything in a cache."""
        is_embedded = kwargs.get("inputs_embeds") is not None
        if not prompt.images and not is_embedded and prompt.placeholders.any():
            raise ValueError(
                f"The prompt has {int(prompt.placeholders.sum())} image tokens, but the images of the prompt are "
                "missing: pass `pixel_values` or `mm_encoder_outputs`."
            )
        made = []
        if prompt.images:
            made = visual_tokens_per_image(
                prompt.placeholders, len(prompt.images), self.most_visual_tokens, prompt.counts
            )
        images = [image.at(count) for image, count in zip(prompt.images, made)]
        asked = numbers_asked_for(num_visual_tokens, images, self.most_visual_tokens)
        fitted = FittedPrompt(prompt.ids)
        if is_embedded:
            check_not_resized(made, num_visual_tokens, asked, "inputs_embeds")
        if asked != made or not is_padded_on_the_left(prompt.mask):
            fitted.ids = self._resize_prompt(prompt, made, asked, config, kwargs)
        if not is_embedded and fitted.ids is not None:
            mask = prompt.mask if fitted.ids is prompt.ids else kwargs["attention_mask"]
            placeholders = self.model.get_placeholder_mask(fitted.ids, None)
            rows = images_per_row(placeholders, [image.at(count) for image, count in zip(images, asked)])
            fitted.cached = CachedPrompts(fitted.ids, mask.ne(0), rows, fitted.ids.shape[1])
        elif fitted.ids is None and "attention_mask" in kwargs and kwargs["attention_mask"] is not prompt.mask:
            fitted.cached = CachedPrompts.nothing(prompt.mask)  # `inputs_embeds` that were padded anew
        self._pass_images([(index, 0, count) for index, count in enumerate(asked)], kwargs)
        return fitted

    def _fit_new_tokens(
        self, prompt: Prompt, known: CachedPrompts | None, config, num_visual_tokens, kwargs: dict
    ) -> FittedPrompt:
        """Behind a cache that holds what is not passed: as transformers' own models go on, and not re-sized."""
        past_length, made = prompt.mask.shape[1] - prompt.placeholders.shape[1], []
        if prompt.images:
            made = visual_tokens_per_image(
                prompt.placeholders, len(prompt.images), self.most_visual_tokens, prompt.counts
            )
        elif prompt.placeholders.any():
            raise ValueError(
                f"The prompt has {int(prompt.placeholders.sum())} image tokens behind what `past_key_values` holds, "
                "but their images are missing: pass `pixel_values` or `mm_encoder_outputs`."
            )
        is_known = known is not None and known.ids.shape == (len(prompt.mask), past_length)
        cached = [image.num_visual_tokens for row in known.images for image in row] if is_known else []
        if num_visual_tokens is not None:
            present = cached + made
            if isinstance(num_visual_tokens, (list, tuple)):
                present = made or cached
            asked = check_num_visual_tokens(num_visual_tokens, self.most_visual_tokens, len(present))
            check_not_resized(present, num_visual_tokens, asked, "past_key_values")
        if is_known and (prompt.mask[:, :past_length].ne(0) & ~known.mask).any():
            raise ValueError(
                "`attention_mask` shows columns of `past_key_values` that hold padding. Pass the whole conversation, "
                "with a mask of its own shape."
            )
        cached_mask, mask = prompt.mask.split([past_length, prompt.placeholders.shape[1]], dim=1)
        fitted = FittedPrompt(prompt.ids, None if known is None else CachedPrompts.nothing(prompt.mask))
        if not is_padded_on_the_left(mask):
            fitted.ids = self._resize_prompt(replace(prompt, mask=mask), made, made, config, kwargs)
            mask = kwargs["attention_mask"]
            kwargs["attention_mask"] = torch.cat([cached_mask, mask], dim=1)
        self._check_holes(torch.cat([cached_mask, mask], dim=1))
        self._pass_images([(index, 0, count) for index, count in enumerate(made)], kwargs)
        if is_known and kwargs.get("inputs_embeds") is None:
            placeholders = self.model.get_placeholder_mask(fitted.ids, None)
            rows = images_per_row(placeholders, [image.at(n) for image, n in zip(prompt.images, made)])
            mask = torch.cat([cached_mask, mask], dim=1).ne(0)
            images = [old + new for old, new in zip(known.images, rows)]
            fitted.cached = CachedPrompts(torch.cat([known.ids, fitted.ids], dim=1), mask, images, mask.shape[1])
        return fitted

    def _images_behind(self, prompt: Prompt, past_length: int) -> tuple[list[list[ShownImage]], list[int]]:
        """The images of each prompt, and how many visual tokens stand in the first columns, which a cache holds."""
        cached_rows = [run_lengths(row) for row in prompt.placeholders[:, :past_length]]
        images = images_of_conversations(
            prompt.placeholders, prompt.images, cached_rows, prompt.placeholders.shape[1], prompt.counts
        )
        return images_per_row(prompt.placeholders, images), [sum(runs) for runs in cached_rows]

    def _assume_prompts(self, prompt: Prompt, past_length: int) -> CachedPrompts:
        """What a cache holds that was filled elsewhere: the first columns of the prompt as it is passed."""
        known = []
        for row, num_cached in zip(*self._images_behind(prompt, past_length)):
            known.append([])
            for image in row:
                if num_cached > 0:
                    known[-1].append(image.at(min(image.num_visual_tokens, num_cached)))
                num_cached -= image.num_visual_tokens
        return CachedPrompts(prompt.ids[:, :past_length], prompt.mask[:, :past_length].ne(0), known, past_length)

    def _fit_embeds_to_cache(self, prompt: Prompt, num_visual_tokens, kwargs: dict) -> FittedPrompt:
        """Embeddings of whole prompts, of which a cache holds the first columns as they are passed."""
        past_length = kwargs["past_key_values"].get_seq_length()
        if not is_padded_on_the_left(prompt.mask[:, past_length:]):
            raise ValueError("`attention_mask` has padding behind tokens of `inputs_embeds`. Pad on the left.")
        self._check_holes(prompt.mask)
        parts, made, num_passed = [], [], 0
        for row, num_cached in zip(*self._images_behind(prompt, past_length)):
            for image in row:
                made.append(image)
                if 0 < num_cached < image.num_visual_tokens:
                    raise ValueError(
                        f"`past_key_values` holds {num_cached} of the {image.num_visual_tokens} visual tokens of an "
                        "image, but beside `inputs_embeds` must end in front of it or behind it."
                    )
                num_cached -= image.num_visual_tokens
                if num_cached < 0:
                    parts.append((num_passed if image.is_passed else None, 0, image.num_visual_tokens))
                num_passed += image.is_passed
        asked = numbers_asked_for(num_visual_tokens, made, self.most_visual_tokens)
        made = [image.num_visual_tokens for image in made]
        check_not_resized(made, num_visual_tokens, asked, "inputs_embeds")
        self._pass_images(parts, kwargs)
        is_known = recall_prompts(kwargs["past_key_values"]) is not None
        return FittedPrompt(prompt.ids, CachedPrompts.nothing(prompt.mask) if is_known else None)

    def _check_holes(self, mask: torch.Tensor) -> None:
        """
        Raises:
            ValueError: The decoder cannot look past padding between tokens.
        """
        if not is_padded_on_the_left(mask) and not has_plain_cache(self.config.get_text_config(decoder=True)):
            raise ValueError(
                "`attention_mask` has padding between tokens, which sliding windows and recurrent layers cannot look "
                "past. Pass the whole conversation and a `VisualTokenCache`, or one prompt at a time."
            )

    def _fit_to_cache(self, prompt: Prompt, known: CachedPrompts, config, num_visual_tokens, kwargs) -> FittedPrompt:
        """With a cache that is known: keeps of it what the prompts share with it."""
        cache, image_token_id = kwargs["past_key_values"], self.config.image_token_id
        raw_ids = [row[mask.ne(0)] for row, mask in zip(prompt.ids, prompt.mask)]
        images = images_of_conversations(
            prompt.placeholders,
            prompt.images,
            [[image.num_visual_tokens for image in row] for row in cached_images(known, raw_ids, image_token_id)],
            self.most_visual_tokens,
            prompt.counts,
        )
        made = [image.num_visual_tokens for image in images]
        asked = numbers_asked_for(num_visual_tokens, images, self.most_visual_tokens)
        resized = self._resize_prompt(prompt, made, asked, config, kwargs)
        mask = kwargs["attention_mask"].ne(0)
        ids = [row[is_token] for row, is_token in zip(resized, mask)]
        image_rows = images_per_row(resized == image_token_id, [image.at(n) for image, n in zip(images, asked)])

        match = match_prompts(known, ids, image_rows, image_token_id)
        num_columns, past_length, is_own = (
            match.num_columns,
            cache.get_seq_length(),
            isinstance(cache, VisualTokenCache),
        )
        if not is_own:  # its rows cannot be told apart or cut, only looked past
            if not match.has_all_prompts:
                raise_other_prompt(match.prompts.images, image_rows)
            num_columns = past_length
        kept, rests = match.kept, [tokens[n:] for tokens, n in zip(ids, match.kept)]
        columns = match.prompts.ids[:, :num_columns], match.seen[:, :num_columns]
        fitted_ids, fitted_mask = lay_out(*columns, rests, num_columns, self._pad_token_id(config))
        rows = [row for row in match.rows for _ in range(num_copies(config))]
        is_same_batch = rows == list(range(len(known.ids)))
        decoder_config = self.config.get_text_config(decoder=True)
        # What a sliding window or a recurrent layer has read can only be gone on from as a whole. And an assistant has
        # a cache of its own, for which it needs all images.
        goes_on = kwargs.get("assistant_model") is None and (
            has_plain_cache(decoder_config)
            or (num_columns == past_length and is_padded_on_the_left(fitted_mask))
            and (not is_own or is_same_batch and not keys_follow_length(decoder_config))
        )
        if not goes_on and not is_own:
            raise_other_prompt(match.prompts.images, image_rows)
        if not goes_on:
            kept, num_columns, fitted_ids, fitted_mask = [0] * len(ids), 0, resized, mask
        parts = unread_parts(ids, image_rows, kept, image_token_id)
        if any(index is None for index, *_ in parts):
            raise_other_prompt(match.prompts.images, image_rows)
        if not goes_on:
            cache.empty(decoder_config)
        elif is_own:
            if not is_same_batch:
                cache.batch_select_indices(torch.tensor(rows, device=resized.device))
            if num_columns < past_length:
                cache.crop(num_columns - past_length)

        self._pass_images(parts, kwargs)
        for name in TOKEN_TYPES:
            if kwargs.get(name) is not None:
                types = [row[is_token][n:] for row, is_token, n in zip(kwargs[name], mask, kept)]
                blank = torch.zeros_like(fitted_ids[:, :num_columns])
                kwargs[name], _ = lay_out(blank, blank.bool(), types, num_columns, 0)
        kwargs["attention_mask"] = fitted_mask.to(prompt.mask.dtype)
        cached = CachedPrompts(fitted_ids, fitted_mask, image_rows, fitted_ids.shape[1])
        if num_columns and num_copies(config) > 1:
            fitted_ids = hide_placeholders(fitted_ids, num_columns, image_token_id)
        return FittedPrompt(fitted_ids, cached)

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
        indices, counts = [index for index, *_ in parts], [count for *_, count in parts]
        if image_outputs is None:
            if indices != list(range(len(images["pixel_values"]))):
                images = {name: tensor[torch.tensor(indices)] for name, tensor in images.items()}
            images = self.images_at(images, counts)
            if not any(first for _, first, _ in parts):
                kwargs.update(images)
                return
            image_outputs, indices = self.get_image_features(**images, return_dict=True), range(len(parts))
        tokens = BaseModelOutputWithPooling(pooler_output=[image_outputs.pooler_output[index] for index in indices])
        tokens = cut_visual_tokens(tokens, counts)
        tokens["pooler_output"] = [image[first:] for image, (_, first, _) in zip(tokens.pooler_output, parts)]
        kwargs["mm_encoder_outputs"] = {"image": tokens}

    def _pad_token_id(self, config: GenerationConfig) -> int:
        return 0 if config.pad_token_id is None else config.pad_token_id

    def _resize_prompt(
        self, prompt: Prompt, old_counts: list[int], new_counts: list[int], config: GenerationConfig, kwargs: dict
    ) -> torch.Tensor:
        """Re-sizes `input_ids`, and in `kwargs` the attention mask and the token types."""
        inputs = {"input_ids": prompt.ids}
        inputs |= {name: kwargs.get(name) for name in (*TOKEN_TYPES, "inputs_embeds")}
        inputs = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        pad_values = dict.fromkeys(inputs, 0) | {"input_ids": self._pad_token_id(config)}
        resized, kwargs["attention_mask"] = resize_prompt(
            inputs, prompt.placeholders, prompt.mask.to(prompt.placeholders.device), old_counts, new_counts, pad_values
        )
        kwargs.pop("position_ids", None)  # rebuilt from the attention mask
        ids = resized.pop("input_ids", None)
        kwargs.update(resized)
        return ids

    def _finish(self, outputs, prompt: torch.Tensor | None, fitted: FittedPrompt, config, cache, outcome: dict):
        """What `generate` returns, beginning with the caller's own prompt; and notes what the cache holds now."""
        is_dict = isinstance(outputs, ModelOutput)
        sequences = outputs.sequences if is_dict else outputs
        cache = outputs.get("past_key_values") if is_dict else cache
        if cache is not None:
            cached, num_columns = fitted.cached, cache.get_seq_length()
            if cached is not None:
                answers = sequences[:, 0 if fitted.ids is None else fitted.ids.shape[1] :]
                cached = cached.select(torch.arange(len(cached.ids)).repeat_interleave(num_copies(config)))
                # The rows of a beam search are not those of the sequences that it returns.
                if (config.num_beams or 1) == 1 and cached.ids.shape[1] + answers.shape[1] >= num_columns:
                    cached = cached.extended(answers)
                cached = cached.first(num_columns)
            remember_prompts(cache, cached)
        if fitted.ids is not prompt:
            sequences = restore_prompt(sequences, prompt, fitted.ids.shape[1])
        if not is_dict:
            return sequences
        outputs.sequences = sequences
        for name, value in outcome.items():
            outputs[name] = value
        return outputs
