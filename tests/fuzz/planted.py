"""
Five bugs that the package once had, restored one by one: a fuzzer that does not find them again proves nothing.

Each is planted by patching one function, and counts as found when a case fails in the way in which that bug shows, and
comes out right once the bug is taken away.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple
from unittest import mock

import PIL.Image
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mqt_llava.models import adaptive_decoding, processing_compressed_llava
from mqt_llava.models import cache_fitting as fitting

from .runner import Failure, quiet, run, run_case


class Plant(NamedTuple):
    """
    Args:
        name: What is wrong.
        surface: Where it shows.
        plant: Restores it.
        shows: Whether a failure is of the kind that this bug makes.
    """

    name: str
    surface: str
    plant: Callable[[], AbstractContextManager]
    shows: Callable[[Failure], bool]


def reuse_by_the_first_image() -> AbstractContextManager:
    """What stands behind the first image is looked at, but not whether another image ends the prompt."""

    def can_reuse(model, prompts) -> bool:
        config = model.config.get_text_config(decoder=True)
        return (
            any(prompt.images for prompt in prompts)
            and all(len(prompt.after) for prompt in prompts)
            and all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
        )

    return mock.patch.object(adaptive_decoding, "can_reuse", can_reuse)


def compare_numbers_alone() -> AbstractContextManager:
    """Of a cache the numbers of visual tokens are compared, but not which columns of the prompt it holds."""

    def fit_to_cache(self, prompt, known, config, num_visual_tokens, kwargs):
        cached_images = known.images if len(known.images) == len(prompt.ids) else [[] for _ in prompt.ids]
        cached_rows = [[image.num_visual_tokens for image in row] for row in cached_images]
        images = fitting.images_of_conversations(
            prompt.placeholders, prompt.images, cached_images, self.max_visual_tokens, prompt.num_visual_tokens
        )
        made = [image.num_visual_tokens for image in images]
        asked = fitting.resolve_num_visual_tokens(num_visual_tokens, images, self.max_visual_tokens)
        ids, mask = prompt.ids, prompt.mask
        if asked != made:
            ids = self._resize_prompt(prompt, made, asked, config, kwargs)
            mask = kwargs["attention_mask"]
        placeholders, past_length = ids == self.config.image_token_id, kwargs["past_key_values"].get_seq_length()
        rows = fitting.images_per_row(placeholders, [image.at(number) for image, number in zip(images, asked)])
        parts, index = [], 0
        for row, seen in zip(rows, placeholders[:, :past_length].sum(-1).tolist()):
            for image in row:
                seen -= image.num_visual_tokens
                if seen < 0:
                    parts.append((index if image.is_passed else None, 0, image.num_visual_tokens))
                index += image.is_passed
        if [
            [image.num_visual_tokens for image in row][: len(old)] for row, old in zip(rows, cached_rows)
        ] != cached_rows:
            raise ValueError("`past_key_values` holds images at other numbers of visual tokens.")
        self._pass_images(parts, kwargs)
        return fitting.FittedPrompt(ids, fitting.CachedPrompts(ids, mask.ne(0), rows, ids.shape[1]))

    return mock.patch.object(fitting.CacheFitting, "_fit_to_cache", fit_to_cache)


def transparency_on_white() -> AbstractContextManager:
    """Of a picture with a transparent colour that colour is kept, and later shown on white."""
    load = processing_compressed_llava.load_rgb

    def load_rgb(image, *args, **kwargs):
        loaded = load(image, *args, **kwargs)
        return image.convert("RGB") if isinstance(image, PIL.Image.Image) else loaded

    return mock.patch.object(processing_compressed_llava, "load_rgb", load_rgb)


def is_wrong_in_turn(failure: Failure) -> bool:
    """Whether a later turn, and not the first, got another answer."""
    return failure.outcome.kind == "wrong" and failure.call > 1


def has_traits(failure: Failure, *traits: str) -> bool:
    return set(traits) <= set(failure.log.get("traits", ()))


def padded_adaptive_turn(failure: Failure) -> bool:
    turn = failure.log["turns"][-1]
    return (
        is_wrong_in_turn(failure)
        and has_traits(failure, "adaptive", "masked columns in the first prompt")
        and turn["layout"] == "as it was"
        and turn["wanted"] == turn["cached"]
    )


def answer_masked_in_mid_row(failure: Failure) -> bool:
    turn = failure.log["turns"][-1]
    return (
        is_wrong_in_turn(failure)
        and failure.log["traits"] == ["a shorter answer"]
        and turn["layout"] == "as it was"
        and turn["made"] != turn["cached"]
    )


def padded_and_made_again(failure: Failure) -> bool:
    first, turn = failure.log["turns"][0], failure.log["turns"][-1]
    return (
        is_wrong_in_turn(failure)
        and first["extra"] > 0
        and first["padding"] == "left"
        and first["asked"] is None
        and turn["layout"] == "made again"
        and turn["made"] != first["made"]
        and turn["wanted"] == turn["cached"]
    )


# The three of caches are one bug that shows in three ways.
PLANTS = (
    Plant(
        "adaptive: reuse is decided by what follows the first image",
        "adaptive",
        reuse_by_the_first_image,
        lambda failure: has_traits(failure, "the last of several images ends its prompt"),
    ),
    Plant("caches: an adaptive first turn with extra padding", "caches", compare_numbers_alone, padded_adaptive_turn),
    Plant("caches: a shorter answer masked in mid-row", "caches", compare_numbers_alone, answer_masked_in_mid_row),
    Plant(
        "caches: extra padding, then made at another number",
        "caches",
        compare_numbers_alone,
        padded_and_made_again,
    ),
    Plant(
        "processor: transparency composited on white",
        "processor",
        transparency_on_white,
        lambda failure: has_traits(failure, "transparent") and "pixel_values" in failure.outcome.message,
    ),
)


class Found(NamedTuple):
    """Whether a bug was found, after how many calls, and whether the same case is right without it."""

    failure: Failure | None
    num_calls: int
    is_right_without: bool


def find(plant: Plant, seed: int, calls: int) -> Found:
    """Fuzzes with the bug in place until it shows."""
    with plant.plant():
        report = run(seed, calls, [plant.surface], until=plant.shows)
    failure = report.failures[-1] if report.failures and plant.shows(report.failures[-1]) else None
    if failure is None:
        return Found(None, report.num_calls, False)
    with quiet():
        outcomes, _ = run_case(plant.surface, seed, failure.number)
    return Found(failure, report.num_calls, not outcomes[-1].is_failure)


def find_all(seed: int, calls: int) -> bool:
    """Prints what became of each, and says whether all were found."""
    all_found = True
    for plant in PLANTS:
        found = find(plant, seed, calls)
        all_found = all_found and found.failure is not None
        if found.failure is None:
            print(f"NOT FOUND in {found.num_calls} calls: {plant.name}")
            continue
        without = "right" if found.is_right_without else "NOT RIGHT"
        print(f"found after {found.num_calls:>5} calls, {without} without it: {plant.name}")
        print(f"    case {found.failure.number}: {' '.join(found.failure.outcome.message.split())[:150]}")
        all_found = all_found and found.is_right_without
    return all_found
