"""
The steps of a conversion from an original checkpoint of the LLaVA family to a folder for `from_pretrained`.

What a kind of checkpoint has of its own is in a `Conversion`; a command hands that to `main`.

Tensors go from file to file one at a time, so that memory does not grow with the model. The output folder appears when
it is finished, or not at all.
"""

import argparse
import errno
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from atomic_folder import atomic_folder
from checkpoint_kinds import KINDS, CheckpointKind, refuse_other_kinds
from checkpoint_reader import CheckpointReader, has_weight_files
from configs_llava import (
    DTYPES,
    generation_config,
    llama_config,
    llava_image_processor,
    read_json,
    read_original_config,
    stored_dtype,
)
from conversion_error import ConversionError
from hub_folders import local_folder, push
from key_mapping_llava import VISION_PREFIX, Part, Sources, is_dropped, llava_recipes
from llama_tokenizer import IMAGE_TOKEN, convert_llama_tokenizer
from model_card import ConversionTexts, write_model_card
from shard_writer import parse_size
from tensor_recipes import check_recipes, compare_with_sources, write_recipes
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save
from vision_tower import find_vision_tower, infer_vision_config, read_vision_config


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
    processor: Callable[..., ProcessorMixin]
    card: ConversionTexts


def convert(conversion: Conversion, args: argparse.Namespace) -> None:
    """Everything from the command line's arguments to the finished folder."""
    folder = local_folder(args.input, "--input")
    language_folder = folder if args.language_model is None else local_folder(args.language_model, "--language-model")
    resampler, language = open_parts(conversion.kind, folder, language_folder)
    original = read_original_config(folder, conversion.settings)
    has_vision = any(name.startswith("model.vision_tower.") for name in resampler.checkpoint.keys())
    vision_folder = find_vision_tower(args.vision_tower, original.get("mm_vision_tower"), folder, has_vision)
    check_output(args.output, [folder, language_folder, vision_folder])

    vision = Part(resampler.checkpoint, VISION_PREFIX) if has_vision else open_vision_tower(vision_folder)
    if vision_folder is None:
        vision_config = infer_vision_config(*vision)
    else:
        vision_config = read_vision_config(vision_folder)

    tokenizer = convert_llama_tokenizer(language_folder)
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    language_config = original if language_folder == folder else read_json(language_folder / "config.json")
    old_vocab_size, vocab_size = vocabulary_sizes(language_config, image_token_id)
    dtype = stored_dtype(args.dtype, language_config, landmark(resampler, conversion.kind))
    config = conversion.config(
        original,
        resampler,
        text_config=llama_config(language_config, vocab_size),
        vision_config=vision_config,
        image_token_id=image_token_id,
        dtype=dtype,
    )

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
    with atomic_folder(args.output, args.overwrite) as new:
        check_free_space(new, shapes, dtype)
        config.save_pretrained(new)
        custom_object_save(model, new)
        processor.save_pretrained(new)
        generation_config(language_folder, config.text_config, tokenizer.pad_token_id).save_pretrained(new)
        write_model_card(
            new,
            original=folder,
            sources=[name for name in (args.input, args.language_model, args.vision_tower) if name],
            title=args.push_to_hub or Path(args.output).resolve().name,
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
            print(f"Checked: all {compare_with_sources(recipes, new, dtype)} tensors equal their sources.")
    print(f"Converted: {args.output}")
    if args.push_to_hub:
        push(Path(args.output), args.push_to_hub)


def open_parts(kind: CheckpointKind, folder: Path, language_folder: Path) -> tuple[Part, Part]:
    """Compressor and language model: both in one checkpoint, or the former by itself after stage 1."""
    stage_1 = folder / kind.stage_1_file
    if not stage_1.is_file() and not has_weight_files(folder):
        for other in KINDS:
            if (folder / other.stage_1_file).is_file():
                refuse_other_kinds(CheckpointReader(folder / other.stage_1_file), kind)
    if language_folder == folder:
        if stage_1.is_file() and not has_weight_files(folder):
            raise ConversionError(f"{folder} holds a stage-1 {stage_1.name} alone. Pass --language-model.")
        checkpoint = CheckpointReader(folder)
        refuse_other_kinds(checkpoint, kind)
        return Part(checkpoint, kind.prefix), Part(checkpoint, "")
    if not stage_1.is_file():
        raise ConversionError(f"--language-model is for a stage-1 checkpoint, but {folder} has no {stage_1.name}.")
    checkpoint = CheckpointReader(stage_1)
    return Part(checkpoint, kind.prefix_in(checkpoint.keys()) or kind.prefix), Part(
        CheckpointReader(language_folder), ""
    )


def open_vision_tower(folder: Path) -> Part:
    return Part(CheckpointReader(folder), "vision_model.")


def landmark(resampler: Part, kind: CheckpointKind) -> torch.Tensor:
    """The tensor of the compressor without which nothing else need be asked."""
    name = resampler.prefix + kind.landmark
    if name not in resampler.checkpoint:
        raise ConversionError(f"The checkpoint does not fit its configuration: missing tensors: {name}.")
    return resampler.checkpoint.tensor(name)


def vocabulary_sizes(language_config: dict, image_token_id: int) -> tuple[int, int]:
    """The vocabulary's size before, and with a row for `<image>`."""
    before = language_config.get("vocab_size", 32000)
    if image_token_id > before:
        raise ConversionError(
            f"The tokenizer has {image_token_id} tokens, but the language model's vocab_size is {before}."
        )
    return before, max(before, image_token_id + 1)


def meta_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The model without its weights, to know their names and shapes from."""
    try:
        with torch.device("meta"):
            return model_class(config)
    except ValueError as error:
        raise ConversionError(f"The checkpoint does not make a valid model: {error}") from error


def check_output(output: str, inputs: list[Path | None]) -> None:
    """`--overwrite` must never take the original away."""
    target = Path(output).resolve()
    for path in inputs:
        if path is not None and (target == path.resolve() or target in path.resolve().parents):
            raise ConversionError(f"--output {output} is, or contains, the input {path}. Choose another folder.")


def check_free_space(folder: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """Says so before an hour of work, and not after it, when the weights will not fit."""
    needed, free = (
        sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize,
        shutil.disk_usage(folder).free,
    )
    if needed > free:
        raise ConversionError(
            f"The disk of {folder.parent} is too full: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free."
        )


def is_disk_full(error: Exception) -> bool:
    # Libraries that are written in Rust raise it as a plain exception.
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def parse_arguments(kind: CheckpointKind, description: str, argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description.split("\n\n")[0],
        epilog=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    place = "DIR_OR_HUB_ID"
    parser.add_argument("--input", required=True, metavar=place, help="original checkpoint")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--vision-tower", metavar=place, help="default: `mm_vision_tower` of the original config")
    parser.add_argument("--language-model", metavar=place, help=f"for a stage-1 {kind.stage_1_file}")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the original's")
    parser.add_argument("--push-to-hub", metavar="ID", help="upload the result into this model repository")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the output folder once the new one is finished"
    )
    parser.add_argument("--check", action="store_true", help="read the result back and compare every tensor")
    parser.add_argument("--max-shard-size", default="2GB", metavar="SIZE", help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        args.max_shard_size = parse_size(args.max_shard_size)
    except ValueError as error:
        parser.error(f"--max-shard-size: {error}")
    return args


def main(conversion: Conversion, description: str, argv: list[str] | None = None) -> None:
    """Runs the command line; an error that the user can mend ends it with a message and exit status 1."""
    args = parse_arguments(conversion.kind, description, argv)
    try:
        convert(conversion, args)
    except ConversionError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if not is_disk_full(error):
            raise
        sys.exit(f"error: The disk is full: {args.output} could not be written, and nothing was left behind.")
