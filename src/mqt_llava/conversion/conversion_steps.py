"""
The steps of a conversion from an original checkpoint of the LLaVA family to a folder for `from_pretrained`.

What a kind of checkpoint has of its own is in a `Conversion`.

Tensors go from file to file one at a time, so that memory does not grow with the model. The output folder appears when
it is finished, or not at all.
"""

import argparse
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from ..files.atomic_folder import atomic_folder, clean_up
from ..models.processing_compressed_llava import CompressedLlavaProcessor
from .checkpoint_kinds import CheckpointKind
from .configs_llava import (
    generation_config,
    llama_config,
    llava_image_processor,
    read_original_config,
    stored_dtype,
)
from .conversion_error import ConversionError, blaming
from .crc_check import crc_report
from .hub_folders import local_folder, push
from .input_files import read_json
from .key_mapping import Sources, is_dropped, llava_recipes
from .llama_tokenizer import IMAGE_TOKEN, convert_llama_tokenizer
from .model_card import ConversionTexts, write_model_card
from .original_parts import VISION_PREFIX, Part, fetch_input, landmark, open_parts, open_vision_tower
from .output_folder import check_output
from .tensor_recipes import check_recipes, compare_with_sources, write_recipes
from .token_ids import check_special_ids
from .vision_tower import find_vision_tower, infer_vision_config, layer_numbers, read_vision_config


@dataclass(frozen=True)
class Conversion:
    """
    What the conversion of one kind of checkpoint has of its own.

    Args:
        kind: How its checkpoints are told from others.
        model_class: What the converted folder is loaded with.
        settings: Settings of the original and their values that can be converted, beside those of every kind.
        sources: The compressor's tensors by their new names.
        config: From `(original, resampler, text_config, vision_config, image_token_id, dtype)` to the new config,
            whose vision tower has only the layers that are used.
        processor: From `(original, config, image_processor, tokenizer)` to the processor.
        card: What its model cards say.
    """

    kind: CheckpointKind
    model_class: type[PreTrainedModel]
    settings: dict[str, tuple]
    sources: Sources
    config: Callable[..., PreTrainedConfig]
    processor: Callable[..., CompressedLlavaProcessor]
    card: ConversionTexts


def convert(conversion: Conversion, args: argparse.Namespace) -> None:
    """Everything from the command line's arguments to the finished folder."""
    named = [Path(name) for name in (args.input, args.language_model, args.vision_tower) if name]
    # Before anything is downloaded or read, and again when all folders are known.
    clean_up(check_output(args.output, args.overwrite, filter(os.path.exists, named)))
    folder = local_folder(args.input, "--input", args.revision, partial(fetch_input, args.language_model is not None))
    language_folder = folder if args.language_model is None else local_folder(args.language_model, "--language-model")
    resampler, language = open_parts(conversion.kind, folder, language_folder)
    original = read_original_config(folder, conversion.settings)
    has_vision = any(name.startswith("model.vision_tower.") for name in resampler.checkpoint.keys())
    vision_folder = find_vision_tower(args.vision_tower, original.get("mm_vision_tower"), folder, has_vision)
    target = check_output(args.output, args.overwrite, filter(None, [folder, language_folder, vision_folder]))

    if has_vision or vision_folder is None:
        vision = Part(resampler.checkpoint, VISION_PREFIX)
    else:
        vision = open_vision_tower(vision_folder)
    if vision_folder is None:
        vision_config = infer_vision_config(*vision)
    else:
        vision_config = read_vision_config(vision_folder)

    language_config = original if language_folder == folder else read_json(language_folder / "config.json")
    old_vocab_size = language_config.get("vocab_size", 32000)
    tokenizer = convert_llama_tokenizer(language_folder, old_vocab_size)
    image_token_id: Any = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)  # of one token
    vocab_size = max(old_vocab_size, image_token_id + 1)
    dtype = stored_dtype(args.dtype, language_config, landmark(resampler, conversion.kind))
    config = conversion.config(
        original,
        resampler,
        text_config=llama_config(language_config, vocab_size),
        vision_config=vision_config,
        image_token_id=image_token_id,
        dtype=dtype,
    )

    check_num_layers("language model", config.text_config.num_hidden_layers, language, "model.layers.")
    check_num_layers("vision tower", config.vision_config.num_hidden_layers, vision, "encoder.layers.")
    model = meta_model(conversion.model_class, config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    dropped = partial(
        is_dropped, num_vision_layers=config.vision_config.num_hidden_layers, is_head_tied=config.tie_word_embeddings
    )
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    recipes = llava_recipes(shapes, vision, resampler, language, vocab_size - old_vocab_size, conversion.sources)
    check_recipes(recipes, shapes, dropped)

    image_processor = llava_image_processor(original, vision_folder, config.vision_config.image_size)
    processor = conversion.processor(original, config, image_processor, tokenizer)
    try_processor(processor, config)
    check_special_ids(vars(config.text_config), tokenizer, language_folder / "config.json")
    generation = generation_config(language_folder, config.text_config, tokenizer)
    checked = []
    with atomic_folder(target, args.overwrite) as new:
        check_free_space(new, shapes, dtype)
        if args.check:
            files = [file for part in (resampler, language, vision) for file in part.checkpoint.files]
            checked += crc_report(dict.fromkeys(files))
        config.save_pretrained(new)
        custom_object_save(model, new)
        processor.save_pretrained(new)
        generation.save_pretrained(new)
        write_model_card(
            new,
            original=folder,
            sources=[name for name in (args.input, args.language_model, args.vision_tower) if name],
            title=args.push_to_hub or target.name,
            texts=conversion.card,
            script=conversion.kind.script,
            max_visual_tokens=processor.max_visual_tokens,
            dtype=str(dtype).removeprefix("torch."),
            old_vocab_size=old_vocab_size,
            vocab_size=vocab_size,
            image_token_id=image_token_id,
        )
        write_recipes(recipes, shapes, new, dtype, args.max_shard_size)
        if args.check:
            checked.append(f"Checked: all {compare_with_sources(recipes, new, dtype)} tensors equal their sources.")
    print(*checked, f"Converted: {args.output}", sep="\n")
    if args.push_to_hub:
        push(target, args.push_to_hub)


def check_num_layers(what: str, number: int, part: Part, prefix: str) -> None:
    """Before a model is made of as many layers, which for a damaged number takes all of the memory."""
    layers = layer_numbers(part.checkpoint, part.prefix + prefix)
    if number > len(layers):
        raise ConversionError(
            f"The checkpoint does not fit its configuration: num_hidden_layers of the {what} makes {number} layers, "
            f"but there are weights of {len(layers)}."
        )


def meta_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model without its weights, to know their names and shapes from."""
    with blaming("The checkpoint does not make a valid model"), torch.device("meta"):
        return model_class(config)


def try_processor(processor: CompressedLlavaProcessor, config: PreTrainedConfig) -> None:
    """Uses it once: wrong settings of pixels and tokens show themselves in a call, not before."""
    size = config.vision_config.image_size
    with blaming("The original's settings of image processor and tokenizer do not make a valid processor"):
        inputs = processor(
            images=Image.new("RGB", (3, 2)), text=f"USER: {IMAGE_TOKEN}\nWhat? ASSISTANT:", return_tensors="pt"
        )
        shape, is_finite = list(inputs["pixel_values"].shape[-2:]), inputs["pixel_values"].isfinite().all()
    if shape != [size, size] or not is_finite:
        raise ConversionError(
            f"The image processor's settings do not fit the vision tower: it gives images of {shape} pixels, finite: "
            f"{bool(is_finite)}, but {[size, size]} are needed. Is preprocessor_config.json another model's?"
        )


def check_free_space(folder: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """Says so before an hour of work, and not after it, when the weights will not fit."""
    needed = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConversionError(
            f"The disk of {folder.parent} is too full: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free."
        )
