# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
Conversations that go on from a cache: which of its rows and columns serve a prompt, and what is left to compute.

What a prompt shares with a row of the cache is found by its tokens and images, not by where they stand, so it does not
matter how the prompt of either turn was padded or re-sized.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from .cache_compressed_llava import CachedPrompts, num_equal
from .numbers_compressed_llava import check_num_visual_tokens
from .prompt_compressed_llava import ShownImage, visual_tokens_per_image


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
        numbers = [image.num_visual_tokens for image in images]
        try:
            visual_tokens_per_image(placeholder_mask, len(images), max_visual_tokens, numbers)
        except ValueError:
            continue
        return images
    cached = [[image.num_visual_tokens for image in row] for row in cached_rows]
    raise ValueError(
        f"Image features and image tokens do not match: the prompts have {per_row} image tokens, `past_key_values` "
        f"holds images at {cached} visual tokens, and {len(passed)} images are passed. Pass all images of the "
        "conversation or those that are new, with their `visual_token_counts`."
    )


def all_images(passed: list[ShownImage], counts: list[int] | None, num_placeholders: int) -> list[ShownImage]:
    """The images of conversations if what is passed, or counted, is all of them."""
    if counts is None:
        counts = [num_placeholders // max(1, len(passed))] * len(passed)
    images = passed or [ShownImage(0)] * len(counts)
    return [image.at(count) for image, count in zip(images, counts)]


def cached_and_further_images(
    passed: list[ShownImage], counts: list[int] | None, per_row: list[int], cached_rows: list[list[ShownImage]]
) -> list[ShownImage]:
    """The images of conversations if those that are passed come behind those that a cache holds, or none is passed."""
    cached_totals = [sum(image.num_visual_tokens for image in row) for row in cached_rows]
    if counts is None and passed:
        num_new = sum(max(0, total - cached) for total, cached in zip(per_row, cached_totals))
        counts = [num_new // len(passed)] * len(passed)
    further, images = [image.at(count) for image, count in zip(passed, counts or [])], []
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


def numbers_asked_for(num_visual_tokens, images: list[ShownImage], max_visual_tokens: int) -> list[int]:
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
    asked = iter(check_num_visual_tokens(num_visual_tokens, max_visual_tokens, num_passed))
    return [next(asked) if image.is_passed else image.num_visual_tokens for image in images]


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
