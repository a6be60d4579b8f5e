# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
Which prompts a decoder's cache holds, column by column, so that a conversation can go on from it.

Re-sizing a prompt moves its columns, so the caller's prompt does not tell what stands where in the cache. What does is
kept here: in a [`VisualTokenCache`] itself, and for caches of other classes beside their layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from .placeholders import ShownImage


@dataclass
class CachedPrompts:
    """
    What the first columns of a cache hold.

    Args:
        ids: Tokens, with placeholders for visual tokens, long `(rows, columns)`.
        mask: Which columns a row attends to, bool `(rows, columns)`.
        images: The images of each row, from its first on.
        prompt_length: How many of the columns were prompt. What follows was generated.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    images: list[list[ShownImage]]
    prompt_length: int

    @classmethod
    def nothing(cls, mask: torch.Tensor) -> "CachedPrompts":
        """Of a cache whose columns cannot be told, with as many rows as a mask: a conversation begins anew."""
        empty = mask.new_zeros((len(mask), 0))
        return cls(empty.long(), empty.bool(), [[] for _ in mask], 0)

    def first(self, num_columns: int) -> "CachedPrompts":
        """Of the first columns alone."""
        return CachedPrompts(
            self.ids[:, :num_columns],
            self.mask[:, :num_columns],
            self.images,
            min(self.prompt_length, num_columns),
        )

    def select(self, rows: torch.Tensor) -> "CachedPrompts":
        """Of these rows, in this order; a row may come twice."""
        return replace(
            self,
            ids=self.ids[rows.to(self.ids.device)],
            mask=self.mask[rows.to(self.mask.device)],
            images=[self.images[row] for row in rows.tolist()],
        )

    def extended(self, answers: torch.Tensor) -> "CachedPrompts":
        """With generated tokens behind it, `(rows, new tokens)`."""
        seen = torch.ones_like(answers, dtype=torch.bool)
        return replace(self, ids=torch.cat([self.ids, answers], dim=1), mask=torch.cat([self.mask, seen], dim=1))

    def tokens_of(self, row: int) -> torch.Tensor:
        """The tokens of a row without padding."""
        return self.ids[row][self.mask[row]]

    def shared_text(self, row: int, ids: torch.Tensor, image_token_id: int) -> int:
        """How many tokens a prompt shares with a row if each run of placeholders counts as one, however long."""

        def collapse(tokens: torch.Tensor) -> torch.Tensor:
            before = nn.functional.pad(tokens, (1, 0), value=-1)[:-1]
            return tokens[(tokens != image_token_id) | (tokens != before)]

        return num_equal(collapse(self.tokens_of(row)), collapse(ids))

    def shared_length(
        self, row: int, ids: torch.Tensor, images: list[ShownImage], image_token_id: int, is_expected: bool
    ) -> int:
        """
        How many tokens a prompt shares with a row, from the first on. Visual tokens nest: of an image at two numbers
        of them, the fewer are shared.

        Args:
            ids: The prompt without padding, `(length,)`.
            images: The images that it shows.
            is_expected: Whether the row is its own as long as nobody changed their order. In another one an image that
                cannot be compared is not taken for the same; but one that is not passed is, at the same number and
                in front of the same text.
        """
        length = num_equal(self.tokens_of(row), ids)
        places, images, first = (ids == image_token_id).nonzero().squeeze(-1), list(images), 0
        unsure, num_prompt_tokens = None, int(self.mask[row, : self.prompt_length].sum())
        for old in self.images[row]:
            if not images or int(places[first]) >= length:
                break
            start, image = int(places[first]), images.pop(0)
            first += image.num_visual_tokens
            if old.is_run:  # the same where it comes out even
                num_left = old.num_visual_tokens - image.num_visual_tokens
                while num_left > 0 and images:
                    num_left -= images[0].num_visual_tokens
                    first += images.pop(0).num_visual_tokens
                if num_left:
                    return start
                continue
            is_same = image.is_same(old)
            if is_same is None and not is_expected:
                is_same = not image.is_passed and image.num_visual_tokens == old.num_visual_tokens
                unsure = start if unsure is None else unsure
            if is_same is False:
                return start if unsure is None else unsure
            if image.num_visual_tokens != old.num_visual_tokens:
                length = min(length, start + min(image.num_visual_tokens, old.num_visual_tokens))
                break
        return length if unsure is None or length >= num_prompt_tokens else unsure


def num_equal(first: torch.Tensor, second: torch.Tensor) -> int:
    """How many tokens two prompts begin alike with."""
    length = min(len(first), len(second))
    differs = (first[:length] != second[:length]).nonzero()
    return int(differs[0]) if len(differs) else length


class VisualTokenCache(DynamicCache):
    """
    A [`DynamicCache`] that knows which prompts it holds. `generate` returns one, and one that is passed serves a whole
    conversation.

    Each call gets the whole conversation, at any number of visual tokens, made and padded anyhow. What its prompts
    share with those in the cache is kept, also the first visual tokens of an image that now gets more or fewer; the
    rest is computed. Rows may be reordered, selected and repeated. The answers are those of a call without a cache.

    ```python
    >>> cache = VisualTokenCache(config=model.config)
    >>> model.generate(**processor(images=image, text=first, return_tensors="pt"), past_key_values=cache)
    >>> model.generate(**processor(images=image, text=whole, return_tensors="pt"), past_key_values=cache)
    ```"""

    prompts: CachedPrompts | None = None

    @classmethod
    def from_dynamic(cls, cache: DynamicCache) -> "VisualTokenCache":
        """Takes over the layers of an empty cache."""
        own = cls()  # the rest as transformers made it, whatever its arguments were
        own.__dict__.update(cache.__dict__)
        return own

    def empty(self, config: PreTrainedConfig) -> None:
        """Drops everything, also from layers that cannot be cropped."""
        self.layers, self.prompts = DynamicCache(config=config).layers, None

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if self.prompts is not None:
            self.prompts = self.prompts.first(self.get_seq_length())

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._select_prompts(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._select_prompts(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.prompts is not None:
            self._select_prompts(torch.arange(len(self.prompts.ids)).repeat_interleave(repeats))

    def _select_prompts(self, rows: torch.Tensor) -> None:
        if self.prompts is not None:
            self.prompts = self.prompts.select(torch.arange(len(self.prompts.ids))[rows.cpu()])


class KnownLayers(list):
    """
    The layers of a cache of another class, and what it holds: copies of the cache take it along. Where the caller has
    reordered such a cache, rows are told apart by what they hold.
    """

    def __init__(self, layers: list, prompts: CachedPrompts):
        super().__init__(layers)
        self.prompts = prompts


def remember_prompts(cache: Cache, prompts: CachedPrompts | None) -> None:
    """Notes what a cache holds; None where that is not known."""
    if isinstance(cache, VisualTokenCache):
        cache.prompts = prompts
    else:
        cache.layers = list(cache.layers) if prompts is None else KnownLayers(cache.layers, prompts)


def recall_prompts(cache: Cache) -> CachedPrompts | None:
    """What is known of the columns of a cache: of all, of the first ones, or None."""
    known = cache if isinstance(cache, VisualTokenCache) else cache.layers
    prompts = known.prompts if isinstance(known, (VisualTokenCache, KnownLayers)) else None
    return None if prompts is None else prompts.first(cache.get_seq_length())


def keys_follow_length(config: PreTrainedConfig) -> bool:
    """Whether a decoder's rotary frequencies follow the prompt's length, so that a longer one has other keys."""
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("rope_type") in ("dynamic", "longrope")


def has_plain_cache(config: PreTrainedConfig) -> bool:
    """
    Whether a decoder's cache can be cropped and looked past. Sliding windows count the columns that are looked past,
    and recurrent layers cannot look past any.
    """
    return not keys_follow_length(config) and all(
        type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers
    )


@dataclass
class Match:
    """
    What a batch of prompts shares with a cache.

    Args:
        rows: The row of the cache that each prompt goes on from.
        prompts: What these rows hold.
        shared: How many tokens each prompt shares with its row, from the first on.
        kept: How many of them need not be computed again: all but a prompt's last token at most.
        settled: How many of its tokens are those of its row whichever of the rows with the same prompt that is.
        is_ambiguous: Whether a prompt shares more with another row than the one where it is expected, but all of that
            too, whose columns are laid out otherwise.
    """

    rows: list[int]
    prompts: CachedPrompts
    shared: list[int]
    kept: list[int]
    settled: list[int]
    is_ambiguous: bool

    def settle(self) -> "Match":
        """What is shared whatever the order of the rows."""
        shared, kept = ([min(pair) for pair in zip(numbers, self.settled)] for numbers in (self.shared, self.kept))
        return replace(self, shared=shared, kept=kept)

    @property
    def seen(self) -> torch.Tensor:
        """Which columns hold the tokens that each prompt keeps, bool `(batch, columns)`."""
        mask = self.prompts.mask
        return mask & (mask.cumsum(-1) <= torch.tensor(self.kept, device=mask.device)[:, None])

    @property
    def num_columns(self) -> int:
        """How many columns there are up to the last that any prompt keeps."""
        used = self.seen.any(0).nonzero()
        return int(used[-1]) + 1 if len(used) else 0

    @property
    def has_all_prompts(self) -> bool:
        """Whether the prompts begin with those that the cache was filled with, answers aside."""
        cached = self.prompts.mask[:, : self.prompts.prompt_length].sum(-1).tolist()
        return all(length >= needed for length, needed in zip(self.shared, cached))


def match_rows(
    prompts: CachedPrompts, batch_size: int, share: Callable[[int, int, bool], int]
) -> list[tuple[int, dict[int, int]]]:
    """
    Finds the row of a cache that shares most with each prompt; of equals, the one where it is expected.

    Args:
        share: How many tokens a prompt and a row share; it is told whether the row is the expected one.

    Returns:
        The row of each prompt, and how much it shares with every row, the expected one first.
    """
    matches, num_rows = [], len(prompts.ids)
    for index in range(batch_size):
        expected = index * num_rows // batch_size  # as long as rows were at most repeated
        lengths = {row: share(index, row, row == expected) for row in (expected, *range(num_rows))}
        matches.append((max(lengths, key=lengths.get), lengths))
    return matches


def cached_images(prompts: CachedPrompts, ids: list[torch.Tensor], image_token_id: int) -> list[list[ShownImage]]:
    """The images in the row of a cache that each prompt goes on from, whatever their numbers in the prompt."""
    matches = match_rows(prompts, len(ids), lambda index, row, _: prompts.shared_text(row, ids[index], image_token_id))
    return [prompts.images[row] for row, _ in matches]


def match_prompts(
    prompts: CachedPrompts, ids: list[torch.Tensor], images: list[list[ShownImage]], image_token_id: int
) -> Match:
    """
    Args:
        ids: The prompts without padding, `(length,)` each.
        images: The images of each prompt.
    """

    def share(index: int, row: int, is_expected: bool) -> int:
        return prompts.shared_length(row, ids[index], images[index], image_token_id, is_expected)

    matches = match_rows(prompts, len(ids), share)
    rows, shared = [row for row, _ in matches], [lengths[row] for row, lengths in matches]
    kept = [max(0, min(length, len(tokens) - 1)) for length, tokens in zip(shared, ids)]
    known = prompts.mask.sum(-1).tolist()
    expected = [next(iter(lengths)) for _, lengths in matches]
    is_ambiguous = any(
        lengths[other] == known[other] and not torch.equal(prompts.mask[other], prompts.mask[row])
        for (row, lengths), other in zip(matches, expected)
    )
    needed = prompts.mask[:, : prompts.prompt_length].sum(-1).tolist()
    settled = [
        min(
            num_equal(prompts.tokens_of(row), prompts.tokens_of(other))
            for other, length in lengths.items()
            if other == row or length >= needed[other] == needed[row]
        )
        for row, lengths in matches
    ]
    return Match(rows, prompts.select(torch.tensor(rows)), shared, kept, settled, is_ambiguous)
