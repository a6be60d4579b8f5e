"""Config, generation config and processor of a converted MQT-LLaVA, from what the original's files say."""

import json
from pathlib import Path

import torch
from conversion_error import ConversionError
from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaImageProcessorPil

from mqt_llava import MQTLlavaConfig, MQTLlavaProcessor
from mqt_llava.configuration_mqt_llava import check_num_visual_tokens
from mqt_llava.processing_compressed_llava import V1_CHAT_TEMPLATE


# Always 16 in the released code.
RESAMPLER_HEADS = 16
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# What an image processor's file may say that bears on the pixels.
PIXEL_SETTINGS = (
    "do_resize size resample do_center_crop crop_size do_rescale rescale_factor do_normalize image_mean image_std"
).split()


def read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConversionError(f"There is no {file.name} in {file.parent}.") from None
    except (OSError, ValueError) as error:
        raise ConversionError(f"{file} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{file} is not a JSON object.")
    return content


def read_original_config(folder: Path) -> dict:
    """config.json of an original checkpoint, with what this package cannot reproduce refused."""
    original = read_json(folder / "config.json")
    allowed = {
        "model_type": ("llava_llama", "llava"),
        "mm_use_im_start_end": (None, False),
        "mm_use_im_patch_token": (None, False),
        "image_aspect_ratio": (None, "square", "pad"),
        "mm_vision_select_feature": (None, "patch", "cls_patch"),
    }
    for name, values in allowed.items():
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
    return LlamaConfig(vocab_size=vocab_size, **{key: value for key, value in original.items() if key in known})


def stored_dtype(argument: str | None, original: dict, weights: torch.Tensor) -> torch.dtype:
    """The dtype to save in: what `--dtype` says, or else the original config, or else some of the weights."""
    name = (
        argument or original.get("torch_dtype") or original.get("dtype") or str(weights.dtype).removeprefix("torch.")
    )
    if name not in DTYPES:
        raise ConversionError(f"The original is stored as {name!r}. Pass --dtype, one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def mqt_llava_config(
    original: dict,
    text_config: LlamaConfig,
    vision_config: CLIPVisionConfig,
    max_visual_tokens: int,
    image_token_id: int,
    dtype: torch.dtype,
) -> MQTLlavaConfig:
    """The new model's config. `vision_config` has as many layers as are used."""
    text_config.dtype = vision_config.dtype = dtype
    try:
        return MQTLlavaConfig(
            text_config=text_config,
            vision_config=vision_config,
            image_token_id=image_token_id,
            max_visual_tokens=max_visual_tokens,
            resampler_num_attention_heads=RESAMPLER_HEADS,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full"
            if original.get("mm_vision_select_feature") == "cls_patch"
            else "default",
            architectures=["MQTLlavaForConditionalGeneration"],
            dtype=dtype,
        )
    except ValueError as error:
        raise ConversionError(f"The checkpoint does not make a valid configuration: {error}") from error


def generation_config(folder: Path, text_config: LlamaConfig, pad_token_id: int) -> GenerationConfig:
    """The special tokens only: sampling settings of the original would take over greedy calls."""
    original = read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    ids = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids[name] = original[name] if original.get(name) is not None else getattr(text_config, name)
    if ids["pad_token_id"] is None or ids["pad_token_id"] < 0:
        ids["pad_token_id"] = pad_token_id
    return GenerationConfig(**ids)


def mqt_llava_processor(
    original: dict, tokenizer, vision_folder: Path | None, image_size: int, max_visual_tokens: int
) -> MQTLlavaProcessor:
    """
    The processor, with the vision tower's own preprocessing where its folder says what that is.

    An original `num_visual_tokens` that is no number ("first_stage", "second_stage") is about training, where the
    original draws m at random; the default then is M.
    """
    settings = {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
    if vision_folder is not None and (vision_folder / "preprocessor_config.json").is_file():
        saved = read_json(vision_folder / "preprocessor_config.json")
        settings.update({name: saved[name] for name in PIXEL_SETTINGS if name in saved})
    image_processor = LlavaImageProcessorPil(**settings, do_pad=original.get("image_aspect_ratio") == "pad")
    return MQTLlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        max_visual_tokens=max_visual_tokens,
        num_visual_tokens=default_num_visual_tokens(original.get("num_visual_tokens"), max_visual_tokens),
        chat_template=V1_CHAT_TEMPLATE,
    )


def default_num_visual_tokens(value: str | int | None, max_visual_tokens: int) -> int | None:
    if value in (None, "first_stage", "second_stage"):
        return None
    try:
        number = int(value) if isinstance(value, str) else value
        return check_num_visual_tokens(number, max_visual_tokens)[0]
    except (TypeError, ValueError):
        raise ConversionError(
            f"The original config's num_visual_tokens is {value!r}, but must be 'first_stage', 'second_stage' or an "
            f"integer in 1..{max_visual_tokens}."
        ) from None
