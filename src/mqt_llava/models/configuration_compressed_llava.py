# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a LLaVA that has a compressor between vision tower and decoder: what all of them share."""

import copy
import math
import operator
import os
from numbers import Integral
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModel, CLIPVisionConfig, LlamaConfig, PreTrainedConfig
from transformers.utils import is_numpy_array


def check_integer(value: Any, name: str) -> None:
    """
    Raises:
        TypeError: It is none, or a boolean.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` is {value!r}, but must be an integer.")


def plain_numbers(value: Any) -> Any:
    """Arrays and tensors of numbers as integers or lists; all else as it is."""
    return value.tolist() if isinstance(value, torch.Tensor) or is_numpy_array(value) else value


def check_num_visual_tokens(
    value: Any, max_visual_tokens: int, num_images: int | None = None, name: str = "num_visual_tokens"
) -> list[int]:
    """
    Checks a number of visual tokens, given for all images or one by one, and spells it out per image.

    Args:
        value: An integer (Python's, NumPy's, a 0-D tensor) or a list, tuple, 1-D array or tensor, one per image.
        max_visual_tokens: M, the most that is allowed.
        num_images: How many images there are. `None`: one, for checking a default.
        name: What the argument is called in the error.

    Returns:
        One integer per image.

    Raises:
        TypeError: Something else than integers (booleans are not integers here).
        ValueError: An integer outside 1..M, or a list that does not have one entry per image.
    """
    allowed = f"an integer in 1..{max_visual_tokens}"
    if num_images is not None:
        allowed += ", or a list with one such integer per image"

    def check_one(number: Any) -> int:
        number = plain_numbers(number)
        # Not all that is an index: NumPy's booleans were until 2.3.
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise TypeError(f"`{name}` is {value!r}, but must be {allowed}.")
        # Integers as they are: `operator.index` would tie a compiled graph to this number.
        number = number if isinstance(number, int) else operator.index(number)
        if not 1 <= number <= max_visual_tokens:
            raise ValueError(f"`{name}` is {value!r}, but must be {allowed}.")
        return number

    value = plain_numbers(value)
    if not isinstance(value, (list, tuple)):
        return [check_one(value)] * (1 if num_images is None else num_images)
    if num_images is None:
        raise TypeError(f"`{name}` is {value!r}, but a default must be an integer in 1..{max_visual_tokens}.")
    if len(value) != num_images:
        raise ValueError(
            f"`{name}` has {len(value)} entries for {num_images} image{'s'[: num_images != 1]}, but must be {allowed}."
        )
    return [check_one(number) for number in value]


def count_patches(config: PreTrainedConfig, select_strategy: str) -> int:
    """
    How many patches of an image a LLaVA's projector is given, counted on a vision tower without weights.

    Raises:
        ValueError: They are no square grid.
    """
    size, tower_name = getattr(config, "image_size", None), f"vision tower of `llava` ({config.model_type})"
    if not isinstance(size, int):
        raise ValueError(f"`image_size` of the {tower_name} is {size!r}, but must be the side of a square in pixels.")
    with torch.device("meta"):
        tower = AutoModel.from_config(copy.deepcopy(config), attn_implementation="eager")
        images = torch.empty(2, config.num_channels, size, size, dtype=tower.dtype)
        num_rows, num_tokens, _ = tower(images).last_hidden_state.shape
    num_patches = num_tokens - (select_strategy == "default")
    if num_rows != 2 or num_patches == 0 or math.isqrt(num_patches) ** 2 != num_patches:
        raise ValueError(
            f"The {tower_name} gives {num_rows} x {num_tokens} tokens for two images, of which "
            f"`vision_feature_select_strategy` {select_strategy!r} keeps {num_patches} for each: no square grid of "
            "patches. ('default' drops the first token, 'full' none.)"
        )
    return num_patches


class CompressedLlavaConfig(PreTrainedConfig):
    """
    A vision tower, a decoder and how the one is read by the other.

    Subclasses say which compressor stands between them, and in `used_vision_layers` which layers it reads.

    Raises:
        TypeError: A part is no configuration, or a number no integer.
        ValueError: `vision_feature_select_strategy` is unknown.
    """

    attribute_map = {"image_token_index": "image_token_id"}  # as LLaVA's config calls it, and tools that read it
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}
    # What a saved folder is opened with under `trust_remote_code`, by auto class.
    remote_classes = {}

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32000
    resampler_num_attention_heads: int = 16
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("vision_config", "text_config"):
            if not isinstance(getattr(self, name), (dict, PreTrainedConfig, type(None))):
                raise TypeError(f"`{name}` is {getattr(self, name)!r}, but must be a configuration or a dict.")
        for name in ("image_token_id", "resampler_num_attention_heads", "vision_feature_layer"):
            check_integer(getattr(self, name), name)
        if self.vision_config is None:
            self.vision_config = CLIPVisionConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=24,
                num_attention_heads=16,
                image_size=336,
                patch_size=14,
                projection_dim=768,
            )
        elif isinstance(self.vision_config, dict):
            self.vision_config = AutoConfig.for_model(**{"model_type": "clip_vision_model", **self.vision_config})
        if self.text_config is None:
            self.text_config = LlamaConfig(vocab_size=32001)  # Vicuna's vocabulary and a row for `<image>`
        elif isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**{"model_type": "llama", **self.text_config})
        if self.text_config.tie_word_embeddings:
            self.tie_word_embeddings = True
        if self.vision_feature_select_strategy not in ("default", "full"):
            raise ValueError(
                f"`vision_feature_select_strategy` is {self.vision_feature_select_strategy!r}, "
                "but only 'default' and 'full' exist."
            )
        super().__post_init__(**kwargs)

    @property
    def used_vision_layers(self) -> list[int]:
        """The layers of the vision tower that are read, counted as in `vision_feature_layer`."""
        return [self.vision_feature_layer]

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> tuple[dict, dict]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not config_dict:
            # Or else the defaults would be built: a model of 7B, with random weights.
            raise OSError(f"{pretrained_model_name_or_path} has no config.json, so it is no checkpoint.")
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs: Any) -> "CompressedLlavaConfig":
        """As [`~PreTrainedConfig.from_dict`]; the placeholder's id goes by either of its names, or by both alike."""
        config_dict = dict(config_dict)
        index = config_dict.pop("image_token_index", None)
        image_token_id = config_dict.setdefault("image_token_id", index)
        if image_token_id is None:
            del config_dict["image_token_id"]
        elif index not in (None, image_token_id):
            raise ValueError(
                f"`image_token_id` is {image_token_id} and `image_token_index` is {index}, but both mean the same."
            )
        return super().from_dict(config_dict, **kwargs)

    def to_diff_dict(self) -> dict:
        # What is saved. Tools that know LLaVA read the file itself, and look for the id by this name.
        return {**super().to_diff_dict(), "image_token_index": self.image_token_id}

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        # transformers names only the class that is being saved. A folder must open through each auto class, for the
        # pipeline asks one of them, `AutoModel` users another, and serving engines a third.
        self.auto_map = dict(self.remote_classes)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
