# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Bodies of OpenAI's API: what they ask of the number of visual tokens, and what vLLM is asked for them."""

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..models.adaptive_budget import NUM_BEST, AdaptiveBudget
from ..models.configuration_compressed_llava import check_num_visual_tokens
from .probing import NAME, ServedModel, split_number


IMAGE_TYPES = ("image_url", "input_image", "image_embeds")
# What of a body makes its prompt. A probe has nothing else of it: neither how answers are sampled, nor when they stop.
PROMPT_FIELDS = (
    "model",
    "messages",
    "tools",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "truncate_prompt_tokens",
    "truncation_side",
    "media_io_kwargs",
    "mm_processor_kwargs",
    "cache_salt",
    "priority",
    "user",
)
# Each of them said, since vLLM takes what is not from the checkpoint's generation config.
GREEDY = {
    "stream": False,
    "n": 1,
    "temperature": 0,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logprobs": True,
    "top_logprobs": NUM_BEST,
}


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, since each level is a prompt to read. The server's owner sets it."""

    max_levels: int
    max_probed_tokens: int

    @classmethod
    def from_environment(cls) -> "Limits":
        """
        Raises:
            ValueError: A variable is no positive integer.
        """
        return cls(from_environment("MQT_LLAVA_MAX_LEVELS", 8), from_environment("MQT_LLAVA_MAX_PROBED_TOKENS", 16))

    def check(self, budget: AdaptiveBudget, levels: list[int]) -> None:
        """
        Raises:
            ValueError: A budget with these levels asks for more.
        """
        if len(levels) > self.max_levels:
            raise ValueError(f"`levels` has {len(levels)} entries, but this server allows {self.max_levels}.")
        if budget.num_probed_tokens > self.max_probed_tokens:
            raise ValueError(
                f"`num_probed_tokens` is {budget.num_probed_tokens}, but this server allows {self.max_probed_tokens}."
            )


def from_environment(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not (value.isdecimal() and int(value)):
        raise ValueError(f"The environment variable {name} is {value!r}, but must be a positive integer.")
    return int(value)


@dataclass(frozen=True)
class AdaptiveRequest:
    """
    A body that leaves the number of visual tokens to the model.

    Args:
        fields: The body without its `num_visual_tokens`.
        images: Its content items with an image.
        budget: What chooses the number.
        probed_levels: The levels below the highest; none without an image.
        highest: The level that is not probed.
    """

    fields: dict
    images: list[dict]
    budget: AdaptiveBudget
    probed_levels: tuple[int, ...]
    highest: int

    def body(self, level: int) -> bytes:
        """The client's own request."""
        return encode(with_number(self.fields, level))

    def probe(self, level: int) -> bytes:
        """Asks for the first greedy tokens and their log-probabilities."""
        fields = {name: self.fields[name] for name in PROMPT_FIELDS if name in self.fields}
        if "tools" in fields:
            fields["tool_choice"] = "none"
        return encode(with_number(fields | GREEDY | {"max_tokens": self.budget.num_probed_tokens}, level))

    def rank(self, num_ranks: int) -> int:
        """One of so many copies of the model, the same for the same images."""
        return zlib.crc32(encode(self.images)) % num_ranks


def parse_request(
    body: bytes, is_chat: bool, limits: Limits, get_model: Callable[[], ServedModel], get_default: Callable[[], int]
) -> AdaptiveRequest | bytes | None:
    """
    Args:
        is_chat: Whether it is one of chat completions, which alone have images.
        limits: Of a budget that the body spells out.
        get_model: The model that answers.
        get_default: The number of visual tokens of images for which a request says nothing.

    Returns:
        A body with one list of numbers, where its images have their own; `None` where vLLM can read it as it is, or
        refuses it by itself.

    Raises:
        TypeError, ValueError: A number or a budget is none; the message names the field.
    """
    if NAME.encode() not in body:
        return None
    try:
        fields = json.loads(body)
        encode(fields)  # not all that is nested so deeply that it can just be read
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("mm_processor_kwargs") or {}, dict):
        return None
    images = find_images(fields.get("messages")) if is_chat else []
    fields["mm_processor_kwargs"], asked = split_number(fields.get("mm_processor_kwargs") or {})
    is_budget = asked == "auto" or isinstance(asked, dict)
    if any(NAME in image for image in images):
        if is_budget:
            raise ValueError(
                f"`mm_processor_kwargs['{NAME}']` is {asked!r}, but must be a number where images in `messages` have "
                "numbers of their own."
            )
        most = get_model().max_visual_tokens
        asked = get_default() if asked is None else asked
        numbers = check_num_visual_tokens(asked, most, len(images), name=f"mm_processor_kwargs['{NAME}']")
        for index, image in enumerate(images):
            if NAME in image:
                numbers[index] = number_of_image(image.pop(NAME), most, index)
        return encode(with_number(fields, numbers))
    if not is_budget:
        return None
    budget, levels = get_model().resolve(asked)
    if isinstance(asked, dict):
        limits.check(budget, levels)
    *probed_levels, highest = levels
    return AdaptiveRequest(fields, images, budget, tuple(probed_levels) if images else (), highest)


def number_of_image(value: Any, most: int, index: int) -> int:
    """
    Raises:
        TypeError, ValueError: That is no number of visual tokens of one image.
    """
    name = f"{NAME} of image {index}"
    if isinstance(value, list):
        raise TypeError(f"`{name}` is {value!r}, but one image has one number.")
    return check_num_visual_tokens(value, most, name=name)[0]


def find_images(messages: Any) -> list[dict]:
    """The content items with an image, in the order of the prompt. What is malformed is left to vLLM."""
    messages = messages if isinstance(messages, list) else []
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    items = [item for content in contents if isinstance(content, list) for item in content]
    return [item for item in items if isinstance(item, dict) and is_image(item)]


def is_image(item: dict) -> bool:
    kind = item.get("type")
    return kind in IMAGE_TYPES if isinstance(kind, str) else any(name in item for name in IMAGE_TYPES)


def with_number(fields: dict, num_visual_tokens: int | list[int]) -> dict:
    return {**fields, "mm_processor_kwargs": {**fields["mm_processor_kwargs"], NAME: num_visual_tokens}}


def encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
