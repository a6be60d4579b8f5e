"""The vision tower of a LLaVA-type checkpoint: where its files are and how it is configured."""

import json
import logging
import math
from pathlib import Path

from checkpoint_reader import CheckpointReader
from conversion_error import ConversionError
from hub_folders import local_folder
from transformers import CLIPVisionConfig


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
    if argument is not None:
        return local_folder(argument, "--vision-tower", weights=not has_weights)
    for folder in (checkpoint, checkpoint.parent):
        if name and (folder / name / "config.json").is_file():
            return folder / name
    if name is None:
        error = ConversionError("The original config names no `mm_vision_tower`.")
    else:
        try:
            return local_folder(name, "mm_vision_tower", weights=not has_weights)
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
    try:
        model_type = json.loads(file.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError) as error:
        raise ConversionError(f"The vision tower has no readable {file}: {error!r}.") from error
    if model_type not in ("clip", "clip_vision_model"):
        raise ConversionError(
            f"The vision tower {folder} is a {model_type!r}, but must be a clip or clip_vision_model."
        )
    return CLIPVisionConfig.from_pretrained(folder)


def infer_vision_config(checkpoint: CheckpointReader, prefix: str) -> CLIPVisionConfig:
    """What the shapes of a CLIP vision tower's weights tell, the rest as OpenAI's."""
    (width,) = checkpoint.shape(f"{prefix}embeddings.class_embedding")
    if width not in HEADS_BY_WIDTH:
        raise ConversionError(
            f"The vision tower's config was not found, and its width {width} does not tell the number of heads (known "
            f"are the widths {', '.join(map(str, HEADS_BY_WIDTH))}). Pass --vision-tower."
        )
    layers = {
        name.removeprefix(prefix).split(".")[2] for name in checkpoint.keys() if f"{prefix}encoder.layers." in name
    }
    *_, patch_size = checkpoint.shape(f"{prefix}embeddings.patch_embedding.weight")
    num_positions, _ = checkpoint.shape(f"{prefix}embeddings.position_embedding.weight")
    intermediate_size, _ = checkpoint.shape(f"{prefix}encoder.layers.0.mlp.fc1.weight")
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=intermediate_size,
        num_hidden_layers=len(layers),
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


def num_layers_used(select_layer: int, num_layers: int) -> int:
    """How many layers lie under hidden state `select_layer`, which may count from the end (-1 is the last layer's)."""
    used = select_layer if select_layer > 0 else num_layers + 1 + select_layer
    if not 1 <= used <= num_layers:
        raise ConversionError(
            f"mm_vision_select_layer is {select_layer}, but the vision tower has {num_layers} layers: allowed are "
            f"-{num_layers}..-1 and 1..{num_layers}."
        )
    return used
