"""What the files of any original of the LLaVA family say of config, generation config and image processor."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaImageProcessorPil,
    PreTrainedTokenizerBase,
)

from ..models.configuration_compressed_llava import CompressedLlavaConfig
from .conversion_error import ConversionError, blaming
from .input_files import check_types, read_json, read_optional_json
from .token_ids import SPECIAL_IDS, check_special_ids, is_unset


Config = TypeVar("Config", bound=CompressedLlavaConfig)

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# What an image processor's file may say that bears on the pixels, and how: it would take `false` for the number 0.
PIXEL_SETTINGS: dict[str, tuple[type, ...]] = {
    "do_resize": (bool,),
    "size": (int, dict),
    "resample": (int,),
    "do_center_crop": (bool,),
    "crop_size": (int, dict),
    "do_rescale": (bool,),
    "rescale_factor": (int, float),
    "do_normalize": (bool,),
    "image_mean": (list,),
    "image_std": (list,),
}
# Settings of the original and their values that can be reproduced, whatever the compressor.
SETTINGS = {
    "model_type": ("llava_llama", "llava"),
    "mm_use_im_start_end": (None, False),
    "mm_use_im_patch_token": (None, False),
    "image_aspect_ratio": (None, "square", "pad"),
    "mm_vision_select_feature": (None, "patch", "cls_patch"),
}


def read_original_config(folder: Path, settings: dict[str, tuple]) -> dict:
    """config.json of an original checkpoint; what this package cannot reproduce is refused. `settings` as SETTINGS."""
    original = read_json(folder / "config.json")
    for name, values in (SETTINGS | settings).items():
        if original.get(name) not in values:
            raise ConversionError(
                f"{folder / 'config.json'}: {name} is {original.get(name)!r}, but only "
                f"{', '.join(repr(value) for value in values if value is not None)} can be converted."
            )
    return original


def llama_config(original: dict, vocab_size: int) -> LlamaConfig:
    """The decoder's part of a config, which LLaVA's own config mixes with everything else."""
    known = LlamaConfig().to_dict().keys() | {"rope_theta", "rope_scaling"}
    known -= {"architectures", "dtype", "model_type", "transformers_version", "vocab_size"}
    # `LlamaConfig` does not check it, and would take `true` for 1.
    if type(original.get("rope_theta", 1.0)) not in (int, float, type(None)):
        raise ConversionError(f"The language model's rope_theta is {original['rope_theta']!r}, but must be a number.")
    with blaming("The language model's config.json makes no valid config"):
        return LlamaConfig(vocab_size=vocab_size, **{key: value for key, value in original.items() if key in known})


def stored_dtype(argument: str | None, original: dict, weights: torch.Tensor) -> torch.dtype:
    """The dtype to save in: what `--dtype` says, or else the original config, or else some of the weights."""
    said = (argument, original.get("torch_dtype"), original.get("dtype"), str(weights.dtype).removeprefix("torch."))
    name = next(name for name in said if name is not None)
    if not isinstance(name, str) or name not in DTYPES:
        raise ConversionError(f"The original is stored as {name!r}. Pass --dtype, one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def llava_config(
    config_class: type[Config],
    original: dict,
    text_config: LlamaConfig,
    vision_config: CLIPVisionConfig,
    dtype: torch.dtype,
    **kwargs: Any,
) -> Config:
    """The new model's config. `vision_config` has as many layers as are used; `kwargs` are the compressor's."""
    text_config.dtype = vision_config.dtype = dtype
    is_full = original.get("mm_vision_select_feature") == "cls_patch"
    with blaming("The checkpoint does not make a valid configuration"):
        return config_class(
            text_config=text_config,
            vision_config=vision_config,
            vision_feature_select_strategy="full" if is_full else "default",
            dtype=dtype,
            **kwargs,
        )


def generation_config(folder: Path, text_config: LlamaConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The special tokens only: sampling settings of the original would take over greedy calls."""
    file = folder / "generation_config.json"
    original = read_optional_json(file)
    ids = {}
    for name in SPECIAL_IDS:
        said = [original.get(name), getattr(text_config, name), getattr(tokenizer, name)]
        ids[name] = next((value for value in said if not is_unset(name, value)), None)
    check_special_ids(ids, tokenizer, file if original else folder / "config.json")
    return GenerationConfig(**ids)


def llava_image_processor(original: dict, vision_folder: Path | None, image_size: int) -> LlavaImageProcessorPil:
    """The image processor, with the vision tower's own preprocessing where its folder says what that is."""
    settings: dict[str, Any] = {
        "size": {"shortest_edge": image_size},
        "crop_size": {"height": image_size, "width": image_size},
    }
    if vision_folder is not None:
        file = vision_folder / "preprocessor_config.json"
        saved = read_optional_json(file)
        settings |= {name: saved[name] for name in PIXEL_SETTINGS if name in saved}
        check_types(settings, PIXEL_SETTINGS, file)
        for name in ("image_mean", "image_std"):
            numbers = settings.get(name, [0.5] * 3)
            if len(numbers) != 3 or any(type(number) not in (int, float) for number in numbers):
                raise ConversionError(f"{file}: {name} is {numbers!r}, but must be three numbers.")
    with blaming("The vision tower's preprocessor_config.json makes no valid image processor"):
        return LlavaImageProcessorPil(**settings, do_pad=original.get("image_aspect_ratio") == "pad")
