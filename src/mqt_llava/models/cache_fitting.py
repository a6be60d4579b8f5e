# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Prompts fitted to a cache that is filled: what it holds of them, and what is left to compute."""

from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch
from torch import nn
from transformers import GenerationConfig

from .configuration_compressed_llava import check_num_visual_tokens
from .placeholders import (
    TOKEN_TYPES,
    Prompt,
    ShownImage,
    check_images_are_passed,
    check_not_resized,
    hide_placeholders,
    images_per_row,
    is_padded_on_the_left,
    num_copies,
    pad_token_id,
    run_lengths,
    visual_tokens_per_image,
)
from .visual_token_cache import (
    CachedPrompts,
    VisualTokenCache,
    cached_images,
    has_plain_cache,
    keys_follow_length,
    match_prompts,
    num_equal,
    recall_prompts,
)


@dataclass
class FittedPrompt:
    """
    What `generate` goes on with.

    Args:
        ids: `(batch, length)`, what transformers' `generate` is given.
        cached: What the cache will hold of it, all but the answer, or of its first columns; None where it holds the
            prompt as it was passed.
        outcome: What a dict that `generate` returns holds besides.
    """

    ids: torch.Tensor | None
    cached: CachedPrompts | None = None
    outcome: dict[str, torch.Tensor] = field(default_factory=dict)


def raise_other_prompt(cached: list[list[ShownImage]], images: list[list[ShownImage]]) -> NoReturn:
    old, new = ([image.num_visual_tokens for row in rows for image in row] for rows in (cached, images))
    raise ValueError(
        f"`past_key_values` holds images at {old} visual tokens, but the prompt now asks for {new}; or it holds other "
        "text or images. Continue with the same, pass all images and a `VisualTokenCache`, or no cache."
    )


def raise_uncounted(num_cached: int, num_visual_tokens: int) -> NoReturn:
    raise ValueError(
        f"`past_key_values` ends behind {num_cached} of {num_visual_tokens} image tokens in a row, where an image may "
        "end or go on. Pass `visual_token_counts` of the images that are passed."
    )


def check_last_images(
    known: CachedPrompts, ids: list[torch.Tensor], images: list[list[ShownImage]], image_token_id: int
) -> None:
    """
    Where the prompts of a cache end between image tokens, what goes on there must be the image that it holds: another
    one, that nobody counted, may as well begin there.

    Args:
        ids: The prompts without padding, `(length,)` each.
        images: The images of each prompt, as they were shared out.
    """
    for index, (tokens, row) in enumerate(zip(ids, images)):
        expected = index * len(known.ids) // len(ids)
        cached, is_image = known.tokens_of(expected), tokens == image_token_id
        length = len(cached)
        if not 0 < length < len(tokens) or num_equal(cached, tokens) < length:
            continue
        if not is_image[length - 1 : length + 1].all():
            continue
        num_cached = int(is_image[:length].sum())
        for image, old in zip(row, known.images[expected]):
            is_cut = 0 < num_cached < image.num_visual_tokens
            if is_cut and image.is_passed and not image.is_same(old):
                raise_uncounted(num_cached, image.num_visual_tokens)
            num_cached -= image.num_visual_tokens


class CacheFitting:
    """The part of [`PromptFitting`] for filled caches."""

    def _fit_new_tokens(
        self,
        prompt: Prompt,
        known: CachedPrompts | None,
        config: GenerationConfig,
        num_visual_tokens: int | list[int] | None,
        kwargs: dict,
    ) -> FittedPrompt:
        """Behind a cache that holds what is not passed: as transformers' own models go on, and not re-sized."""
        past_length = prompt.mask.shape[1] - prompt.placeholders.shape[1]
        check_images_are_passed(prompt)
        old_num_visual_tokens = self._num_visual_tokens_in(prompt)
        is_known = known is not None and known.ids.shape == (len(prompt.mask), past_length)
        cached = [image.num_visual_tokens for row in known.images for image in row] if is_known else []
        if num_visual_tokens is not None:
            present = cached + old_num_visual_tokens
            if isinstance(num_visual_tokens, (list, tuple)):
                present = old_num_visual_tokens or cached
            new_num_visual_tokens = check_num_visual_tokens(num_visual_tokens, self.max_visual_tokens, len(present))
            check_not_resized(present, num_visual_tokens, new_num_visual_tokens, "past_key_values")
        if is_known and (prompt.mask[:, :past_length].ne(0) & ~known.mask).any():
            raise ValueError(
                "`attention_mask` shows columns of `past_key_values` that hold padding. Pass the whole conversation, "
                "with a mask of its own shape."
            )
        cached_mask, mask = prompt.mask.split([past_length, prompt.placeholders.shape[1]], dim=1)
        fitted = FittedPrompt(prompt.ids, None if known is None else CachedPrompts.nothing(prompt.mask))
        if not is_padded_on_the_left(mask):
            fitted.ids = self._resize_prompt(
                replace(prompt, mask=mask), old_num_visual_tokens, old_num_visual_tokens, config, kwargs
            )
            mask = kwargs["attention_mask"]
            kwargs["attention_mask"] = torch.cat([cached_mask, mask], dim=1)
        self._check_holes(torch.cat([cached_mask, mask], dim=1))
        self._pass_images([(index, 0, m) for index, m in enumerate(old_num_visual_tokens)], kwargs)
        if is_known and kwargs.get("inputs_embeds") is None:
            placeholders = self.model.find_placeholders(fitted.ids, None)
            rows = images_per_row(
                placeholders, [image.at(m) for image, m in zip(prompt.images, old_num_visual_tokens)]
            )
            mask = torch.cat([cached_mask, mask], dim=1).ne(0)
            images = [old + new for old, new in zip(known.images, rows)]
            fitted.cached = CachedPrompts(torch.cat([known.ids, fitted.ids], dim=1), mask, images, mask.shape[1])
        return fitted

    def _images_behind(self, prompt: Prompt, past_length: int) -> tuple[list[list[ShownImage]], list[int]]:
        """The images of each prompt, and how many visual tokens stand in the first columns, which a cache holds."""
        cached_rows = [
            [ShownImage(length, is_run=True) for length in run_lengths(row)]
            for row in prompt.placeholders[:, :past_length]
        ]
        images = images_of_conversations(
            prompt.placeholders, prompt.images, cached_rows, prompt.placeholders.shape[1], prompt.num_visual_tokens
        )
        return images_per_row(prompt.placeholders, images), prompt.placeholders[:, :past_length].sum(-1).tolist()

    def _assume_prompts(self, prompt: Prompt, past_length: int) -> CachedPrompts:
        """
        What a cache holds that was filled elsewhere: the first columns of the prompt as it is passed.

        Raises:
            ValueError: It ends between image tokens, and nobody says whether an image ends there too.
        """
        known = []
        for row, num_cached in zip(*self._images_behind(prompt, past_length)):
            known.append([])
            for image in row:
                if 0 < num_cached < image.num_visual_tokens and prompt.num_visual_tokens is None:
                    raise_uncounted(num_cached, image.num_visual_tokens)
                if num_cached > 0:
                    known[-1].append(image.at(min(image.num_visual_tokens, num_cached)))
                num_cached -= image.num_visual_tokens
        return CachedPrompts(prompt.ids[:, :past_length], prompt.mask[:, :past_length].ne(0), known, past_length)

    def _fit_embeds_to_cache(
        self, prompt: Prompt, num_visual_tokens: int | list[int] | None, kwargs: dict
    ) -> FittedPrompt:
        """Embeddings of whole prompts, of which a cache holds the first columns as they are passed."""
        past_length = kwargs["past_key_values"].get_seq_length()
        if not is_padded_on_the_left(prompt.mask[:, past_length:]):
            raise ValueError("`attention_mask` has padding behind tokens of `inputs_embeds`. Pad on the left.")
        self._check_holes(prompt.mask)
        parts, images, num_passed = [], [], 0
        for row, num_cached in zip(*self._images_behind(prompt, past_length)):
            for image in row:
                images.append(image)
                if 0 < num_cached < image.num_visual_tokens:
                    raise ValueError(
                        f"`past_key_values` holds {num_cached} of the {image.num_visual_tokens} visual tokens of an "
                        "image, but beside `inputs_embeds` must end in front of it or behind it."
                    )
                num_cached -= image.num_visual_tokens
                if num_cached < 0:
                    parts.append((num_passed if image.is_passed else None, 0, image.num_visual_tokens))
                num_passed += image.is_passed
        new_num_visual_tokens = resolve_num_visual_tokens(num_visual_tokens, images, self.max_visual_tokens)
        old_num_visual_tokens = [image.num_visual_tokens for image in images]
        check_not_resized(old_num_visual_tokens, num_visual_tokens, new_num_visual_tokens, "inputs_embeds")
        self._pass_images(parts, kwargs)
        is_known = recall_prompts(kwargs["past_key_values"]) is not None
        return FittedPrompt(prompt.ids, CachedPrompts.nothing(prompt.mask) if is_known else None)

    def _check_holes(self, mask: torch.Tensor) -> None:
        """
        Raises:
            ValueError: The decoder cannot look past padding between tokens.
        """
        if not is_padded_on_the_left(mask) and not has_plain_cache(self.config.text_config):
            raise ValueError(
                "`attention_mask` has padding between tokens, but a `past_key_values` with sliding windows or "
                "recurrent layers cannot look past it. Pass the whole conversation and a `VisualTokenCache`, or one "
                "prompt at a time."
            )

    def _fit_to_cache(
        self,
        prompt: Prompt,
        known: CachedPrompts,
        config: GenerationConfig,
        num_visual_tokens: int | list[int] | None,
        kwargs: dict,
    ) -> FittedPrompt:
        """With a cache that is known: keeps of it what the prompts share with it."""
        cache, image_token_id = kwargs["past_key_values"], self.config.image_token_id
        raw_ids = [row[mask.ne(0)] for row, mask in zip(prompt.ids, prompt.mask)]
        cached_rows = cached_images(known, raw_ids, image_token_id)
        most = max([self.max_visual_tokens, *(image.num_visual_tokens for row in cached_rows for image in row)])
        images = images_of_conversations(
            prompt.placeholders, prompt.images, cached_rows, most, prompt.num_visual_tokens
        )
        if prompt.num_visual_tokens is None:
            check_last_images(known, raw_ids, images_per_row(prompt.placeholders, images), image_token_id)
        old_num_visual_tokens = [image.num_visual_tokens for image in images]
        new_num_visual_tokens = resolve_num_visual_tokens(num_visual_tokens, images, self.max_visual_tokens)
        resized = self._resize_prompt(prompt, old_num_visual_tokens, new_num_visual_tokens, config, kwargs)
        mask = kwargs["attention_mask"].ne(0)
        ids = [row[is_token] for row, is_token in zip(resized, mask)]
        image_rows = images_per_row(
            resized == image_token_id, [image.at(m) for image, m in zip(images, new_num_visual_tokens)]
        )

        match = match_prompts(known, ids, image_rows, image_token_id)
        num_columns, past_length = match.num_columns, cache.get_seq_length()
        is_own = isinstance(cache, VisualTokenCache)
        if not is_own:  # its rows cannot be told apart or cut, only looked past
            match = match.settle()
            if match.is_ambiguous or not match.has_all_prompts:
                raise_other_prompt(match.prompts.images, image_rows)
            num_columns = past_length
        kept, rests = match.kept, [tokens[n:] for tokens, n in zip(ids, match.kept)]
        columns = match.prompts.ids[:, :num_columns], match.seen[:, :num_columns]
        fitted_ids, fitted_mask = lay_out(*columns, rests, num_columns, pad_token_id(config))
        rows = [row for row in match.rows for _ in range(num_copies(config))]
        is_same_batch = rows == list(range(len(known.ids)))
        is_whole = num_columns == past_length and is_padded_on_the_left(fitted_mask)
        # An assistant has a cache of its own, for which it needs all images.
        goes_on = kwargs.get("assistant_model") is None and self._goes_on(is_whole, is_own, is_same_batch)
        if not goes_on:
            if not is_own:
                raise_other_prompt(match.prompts.images, image_rows)
            kept, num_columns, fitted_ids, fitted_mask = [0] * len(ids), 0, resized, mask
        parts = unread_parts(ids, image_rows, kept, image_token_id)
        if any(index is None for index, *_ in parts):
            raise_other_prompt(match.prompts.images, image_rows)
        # Nothing is refused any more, so the cache may be changed.
        if not goes_on:
            cache.empty(self.config.text_config)
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

    def _goes_on(self, is_whole: bool, is_own: bool, is_same_batch: bool) -> bool:
        """
        Whether the decoder can go on from a cache: with sliding windows or recurrent layers, from all that they have
        read or from nothing.
        """
        config = self.config.text_config
        if has_plain_cache(config):
            return True
        return is_whole and (not is_own or is_same_batch and not keys_follow_length(config))


def unread_parts(
    ids: list[torch.Tensor], images: list[list[ShownImage]], kept: list[int], image_token_id: int
) -> list[tuple[int | None, int, int]]:
    """
    What is left of the images behind the tokens that are kept.

    Returns:
        For each such image its place among those that are passed, or None; its first visual token that is not kept,
        and the one behind its last.
    """
    parts, num_passed = [], 0
    for tokens, row, num_kept in zip(ids, images, kept):
        places = (tokens == image_token_id).nonzero().squeeze(-1).tolist()
        for image in row:
            start, places = places[0], places[image.num_visual_tokens :]
            if start + image.num_visual_tokens > num_kept:
                index = num_passed if image.is_passed else None
                parts.append((index, max(0, num_kept - start), image.num_visual_tokens))
            num_passed += image.is_passed
    return parts


def images_of_conversations(
    placeholder_mask: torch.Tensor,
    passed: list[ShownImage],
    cached_rows: list[list[ShownImage]],
    max_visual_tokens: int,
    visual_token_counts: list[int] | None,
) -> list[ShownImage]:
    """
    The images that whole conversations show, of which maybe those alone are passed that a cache does not hold.

    Args:
        placeholder_mask: Bool `(batch, length)`, true at the placeholders.
        passed: The images that are passed, of all prompts.
        cached_rows: The images that the cache holds of each prompt.
        visual_token_counts: Of all images, or of those that are passed; by default equal shares.

    Returns:
        All images in the order of the prompts, at the number of visual tokens that the prompts were made with.

    Raises:
        ValueError: The placeholders cannot be shared out.
    """
    per_row = placeholder_mask.sum(-1).tolist()
    # All of them, as processors say it, or equal shares of all; or else those of the cache and further ones; or those
    # of the cache at another number.
    for images in (
        all_images(passed, visual_token_counts, sum(per_row)),
        cached_and_further_images(passed, visual_token_counts, per_row, cached_rows),
        [] if passed else [image for total, row in zip(per_row, cached_rows) for image in equal_shares(total, row)],
    ):
        num_visual_tokens = [image.num_visual_tokens for image in images]
        try:
            visual_tokens_per_image(placeholder_mask, len(images), max_visual_tokens, num_visual_tokens)
        except ValueError:
            continue
        return images
    cached = [[image.num_visual_tokens for image in row] for row in cached_rows]
    raise ValueError(
        f"Image features and image tokens do not match: the prompts have {per_row} image tokens, `past_key_values` "
        f"holds images at {cached} visual tokens, and {len(passed)} images are passed. Pass all images of the "
        "conversation or those that are new, with their `visual_token_counts`."
    )


def all_images(
    passed: list[ShownImage], num_visual_tokens: list[int] | None, num_placeholders: int
) -> list[ShownImage]:
    """The images of conversations if what is passed, or counted, is all of them."""
    if num_visual_tokens is None:
        num_visual_tokens = [num_placeholders // max(1, len(passed))] * len(passed)
    images = passed or [ShownImage(0)] * len(num_visual_tokens)
    return [image.at(m) for image, m in zip(images, num_visual_tokens)]


def cached_and_further_images(
    passed: list[ShownImage],
    num_visual_tokens: list[int] | None,
    per_row: list[int],
    cached_rows: list[list[ShownImage]],
) -> list[ShownImage]:
    """The images of conversations if those that are passed come behind those that a cache holds, or none is passed."""
    cached_totals = [sum(image.num_visual_tokens for image in row) for row in cached_rows]
    if num_visual_tokens is None and passed:
        num_new = sum(max(0, total - cached) for total, cached in zip(per_row, cached_totals))
        num_visual_tokens = [num_new // len(passed)] * len(passed)
    further, images = [image.at(m) for image, m in zip(passed, num_visual_tokens or [])], []
    for total, cached, row in zip(per_row, cached_totals, cached_rows):
        row = [ShownImage(image.num_visual_tokens, is_run=image.is_run) for image in row]
        is_shorter, is_all = total < cached, not passed
        if row and (is_shorter or is_all) and total != cached:  # made at another number than the cache was
            row = equal_shares(total, row)
        images += row
        total -= cached
        while total > 0 and further:
            images.append(further.pop(0))
            total -= images[-1].num_visual_tokens
    return images + further


def equal_shares(num_placeholders: int, cached: list[ShownImage]) -> list[ShownImage]:
    """As many images as a cache holds of a prompt, in a prompt that was made at another number than the cache."""
    return [ShownImage(num_placeholders // len(cached)) for _ in cached if num_placeholders >= len(cached)]


def resolve_num_visual_tokens(
    num_visual_tokens: int | list[int] | None, images: list[ShownImage], max_visual_tokens: int
) -> list[int]:
    """
    The number of visual tokens that each image of a conversation shall have.

    Args:
        num_visual_tokens: For all images, or a list for all of them or for those that are passed. None: as they are.
    """
    if num_visual_tokens is None:
        return [image.num_visual_tokens for image in images]
    num_passed = sum(image.is_passed for image in images)
    if not isinstance(num_visual_tokens, (list, tuple)) or len(num_visual_tokens) != num_passed:
        return check_num_visual_tokens(num_visual_tokens, max_visual_tokens, len(images))
    of_passed = iter(check_num_visual_tokens(num_visual_tokens, max_visual_tokens, num_passed))
    return [next(of_passed) if image.is_passed else image.num_visual_tokens for image in images]


def lay_out(
    ids: torch.Tensor, seen: torch.Tensor, rests: list[torch.Tensor], num_columns: int, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Puts what is left of each prompt behind the columns of a cache.

    Args:
        ids, seen: Tokens of the known columns and which of them a prompt sees, `(batch, columns)`.
        rests: What is left of each prompt, `(length,)`.
        num_columns: How many columns the cache has, at least as many as are known.

    Returns:
        Tokens and mask, `(batch, num_columns + longest rest)`.
    """
    unknown, width = (0, num_columns - ids.shape[1]), max(map(len, rests))
    lengths = torch.tensor([[len(rest)] for rest in rests], device=ids.device)
    rest_ids = torch.stack([nn.functional.pad(rest, (width - len(rest), 0), value=pad_token_id) for rest in rests])
    rest_seen = torch.arange(width, device=ids.device) >= width - lengths
    ids = torch.cat([nn.functional.pad(ids, unknown, value=pad_token_id), rest_ids], dim=1)
    return ids, torch.cat([nn.functional.pad(seen, unknown), rest_seen], dim=1)
