"""The vision tower of a LLaVA-type checkpoint: where its files are and how it is configured."""

import logging
import math
import os
from pathlib import Path

from transformers import CLIPVisionConfig

from .checkpoint_reader import CheckpointReader
from .conversion_error import ConversionError, blaming
from .hub_folders import local_folder
from .input_files import read_json
from .weight_files import find_weight_files


logger = logging.getLogger(__name__)

# OpenAI's CLIP vision towers have heads of 64 channels. For another width nothing in the weights tells.
HEADS_BY_WIDTH = {768: 12, 1024: 16, 1280: 20}


def find_vision_tower(argument: str | None, name: str | None, checkpoint: Path, has_weights: bool) -> Path | None:
    """
    The folder with the vision tower's config, its preprocessing and, if need be, its weights.

    Args:
        argument: What `--vision-tower` says.
        name: `mm_vision_tower` of the original config: a path, seen from the checkpoint too, or a Hub id.
        checkpoint: The original checkpoint's folder.
        has_weights: Whether the checkpoint itself holds the vision tower, so that the folder's weights are not needed.

    Returns:
        `None` if nothing is found and the checkpoint can do without.
    """
    weights = None if has_weights else find_weight_files
    if argument is not None:
        return local_folder(argument, "--vision-tower", weights=weights)
    if name is not None and not isinstance(name, str):
        raise ConversionError(f"The original config's mm_vision_tower is {name!r}, but must be a path or a Hub id.")
    for folder in (checkpoint, checkpoint.parent):
        if name and os.path.isfile(folder / name / "config.json"):
            return folder / name
    if name is None:
        error = ConversionError("The original config names no `mm_vision_tower`.")
    else:
        try:
            return local_folder(name, "mm_vision_tower", weights=weights)
        except ConversionError as caught:
            error = caught
    if has_weights:
        return None
    raise ConversionError(
        f"The checkpoint holds no vision tower, and it is not found elsewhere. {error} Pass --vision-tower."
    )


def read_vision_config(folder: Path) -> CLIPVisionConfig:
    """The config of a CLIP vision tower, or the vision half of a whole CLIP's."""
    file = folder / "config.json"
    saved = read_json(file)
    model_type = saved.get("model_type")
    if model_type not in ("clip", "clip_vision_model"):
        raise ConversionError(
            f"The vision tower {folder} is a {model_type!r}, but must be a clip or clip_vision_model."
        )
    with blaming(f"The vision tower's {file} makes no valid config"):
        return CLIPVisionConfig.from_dict(saved["vision_config"] if model_type == "clip" else saved)


def infer_vision_config(checkpoint: CheckpointReader, prefix: str) -> CLIPVisionConfig:
    """What the shapes of a CLIP vision tower's weights tell, the rest as OpenAI's."""
    (width,) = dimensions(checkpoint, f"{prefix}embeddings.class_embedding", 1)
    if width not in HEADS_BY_WIDTH:
        raise ConversionError(
            f"The vision tower's config was not found, and its width {width} does not tell the number of heads (known "
            f"are the widths {', '.join(map(str, HEADS_BY_WIDTH))}). Pass --vision-tower."
        )
    *_, patch_size = dimensions(checkpoint, f"{prefix}embeddings.patch_embedding.weight", 4)
    num_positions, _ = dimensions(checkpoint, f"{prefix}embeddings.position_embedding.weight", 2)
    intermediate_size, _ = dimensions(checkpoint, f"{prefix}encoder.layers.0.mlp.fc1.weight", 2)
    with blaming("The vision tower's weights make no valid config"):
        config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=intermediate_size,
            num_hidden_layers=len(layer_numbers(checkpoint, f"{prefix}encoder.layers.")),
            num_attention_heads=HEADS_BY_WIDTH[width],
            image_size=math.isqrt(num_positions - 1) * patch_size,
            patch_size=patch_size,
        )
    logger.warning(
        "The vision tower's config was not found. Its weights are those of a CLIP with %d layers of width %d, patches "
        "of %d and images of %d pixels; activation and preprocessing are taken to be OpenAI's.",
        config.num_hidden_layers,
        width,
        patch_size,
        config.image_size,
    )
    return config


def dimensions(checkpoint: CheckpointReader, name: str, number: int) -> tuple[int, ...]:
    """The shape of a tensor that has `number` dimensions."""
    shape = checkpoint.shape(name)
    if len(shape) != number:
        raise ConversionError(f"The vision tower's {name} {list(shape)} has not {number} dimensions.")
    return shape


def layer_numbers(checkpoint: CheckpointReader, prefix: str) -> set[str]:
    """The numbers of the layers whose tensors are called `<prefix><number>.<...>`."""
    return {name.removeprefix(prefix).split(".")[0] for name in checkpoint.keys() if name.startswith(prefix)}


def num_layers_used(select_layer: int, num_layers: int) -> int:
    """How many layers lie under hidden state `select_layer`, which may count from the end (-1 is the last layer's)."""
    if type(select_layer) is not int:
        raise ConversionError(f"mm_vision_select_layer is {select_layer!r}, but must be an integer.")
    used = select_layer if select_layer > 0 else num_layers + 1 + select_layer
    if not 1 <= used <= num_layers:
        raise ConversionError(
            f"mm_vision_select_layer is {select_layer}, but the vision tower has {num_layers} layers: allowed are "
            f"-{num_layers}..-1 and 1..{num_layers}."
        )
    return used
