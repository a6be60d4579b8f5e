"""From pixels to visual tokens: what each model puts between its vision tower and its decoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from ..models.configuration_compressed_llava import check_num_visual_tokens
from .vision_towers import VisionTower, vision_tower


@dataclass(frozen=True)
class ImagePath:
    """
    Args:
        visual_tokens: Of each image of one prompt.
        compressor_flops: Of all images of the batch together, in what follows the vision tower.
        compressor_weights: Its parameters and the tables that are saved with them.
        reads_question: Whether the decoder reads a question for each image, alone, before it is compressed.
    """

    tower: VisionTower
    visual_tokens: list[int]
    compressor_flops: int
    compressor_weights: int
    reads_question: bool = False


def _used_tower(config: PreTrainedConfig) -> tuple[VisionTower, int]:
    """The vision tower up to the last layer that a compressor reads, and the side of the patch grid."""
    num_layers, used = config.vision_config.num_hidden_layers, []
    for layer in config.used_vision_layers:
        if not 1 <= abs(layer) <= num_layers:
            is_feature = layer == config.vision_feature_layer
            option = "`vision_feature_layer` is" if is_feature else "`vision_context_layers` has"
            raise ValueError(f"{option} {layer}, but the vision tower has {num_layers} layers.")
        used.append(layer if layer > 0 else num_layers + 1 + layer)
    tower = vision_tower(config.vision_config, max(used))
    side = math.isqrt(tower.tokens)
    if config.vision_feature_select_strategy == "full" and side**2 != tower.tokens:
        raise ValueError(
            f"The vision tower gives {tower.tokens} tokens per image, which is no square grid of patches."
        )
    return tower, side


def _mqt_llava(config: PreTrainedConfig, num_visual_tokens: Any, num_images: int, batch_size: int) -> ImagePath:
    """The query transformer (arXiv 2405.19315); queries, keys and attention weights are the same for all images."""
    most = config.max_visual_tokens
    counts = check_num_visual_tokens(most if num_visual_tokens is None else num_visual_tokens, most, num_images)
    tower, side = _used_tower(config)
    patches = side**2
    width, text_width = config.vision_config.hidden_size, config.text_config.hidden_size
    # An image is compressed into as many tokens as the one with the most needs.
    images, queries = num_images * batch_size, max(counts)

    shared = 2 * (queries + patches) * width**2 + 2 * queries * patches * width
    each = 2 * patches * width**2 + 2 * queries * patches * width + 2 * queries * (width**2 + width * text_width)
    # Queries and their position table, LayerNorms, four projections, the last one.
    weights = 2 * most * width + 6 * width + 4 * (width**2 + width) + width * text_width
    return ImagePath(tower, counts, shared + images * each, weights)


def _check_no_choice(num_visual_tokens: Any, name: str) -> None:
    if num_visual_tokens is not None:
        raise ValueError(
            f"`num_visual_tokens` is {num_visual_tokens!r}, but {name}'s follows from its configuration: leave it out."
        )


def _quecc_llava(config: PreTrainedConfig, num_visual_tokens: Any, num_images: int, batch_size: int) -> ImagePath:
    """Convolution and attention in windows (arXiv 2411.03312), for queries that the decoder's question is added to."""
    _check_no_choice(num_visual_tokens, "QueCC-LLaVA")
    tower, side = _used_tower(config)
    kernel = config.kernel_size
    if side % kernel:
        raise ValueError(f"`kernel_size` is {kernel}, but must divide {side}, the side of the patch grid.")
    patches, windows = side**2, (side // kernel) ** 2
    width, text_width = config.vision_config.hidden_size, config.text_config.hidden_size
    context_width = len(config.vision_context_layers) * width

    projector = text_width * (width + text_width)
    # Weights of the matrices that each patch goes through: three MLPs, then keys and values.
    per_patch = 2 * width**2 + 2 * (context_width * width + width**2) + 2 * width**2
    flops = 2 * (text_width * width + patches * per_patch + windows * (2 * width**2 + projector))
    # The convolution, and one query for each window of keys and values.
    flops += 2 * patches * width + 4 * patches * width

    weights = text_width * width + per_patch + 2 * width**2 + projector + kernel**2 * width
    # Biases: the question's projection, MLPs, convolution, attention, the last two layers. Four LayerNorms.
    weights += (1 + 6 + 1 + 4) * width + 2 * text_width + 4 * 2 * width
    return ImagePath(tower, [windows] * num_images, num_images * batch_size * flops, weights, reads_question=True)


def _llava(config: PreTrainedConfig, num_visual_tokens: Any, num_images: int, batch_size: int) -> ImagePath:
    """The two layers of LLaVA-1.5 (arXiv 2310.03744) behind a whole vision tower, as transformers runs it."""
    _check_no_choice(num_visual_tokens, "LLaVA")
    tower = vision_tower(config.vision_config, config.vision_config.num_hidden_layers)
    tokens = tower.tokens - (config.vision_feature_select_strategy == "default")
    layers, width = config.vision_feature_layer, config.text_config.hidden_size
    input_width = config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))
    matrices = input_width * width + width**2
    weights = matrices + 2 * width * config.multimodal_projector_bias
    return ImagePath(tower, [tokens] * num_images, 2 * num_images * batch_size * tokens * matrices, weights)


IMAGE_PATHS = {"mqt_llava": _mqt_llava, "quecc_llava": _quecc_llava, "llava": _llava}


def image_path(
    config: PreTrainedConfig, num_visual_tokens: int | Sequence[int] | None, num_images: int, batch_size: int
) -> ImagePath:
    """
    Raises:
        TypeError, ValueError: The numbers of visual tokens are not possible with this model.
        ValueError: A model whose costs are not known.
    """
    model_type = getattr(config, "model_type", type(config).__name__)
    if model_type not in IMAGE_PATHS:
        raise ValueError(f"The model is a {model_type!r}, but costs are known for {', '.join(IMAGE_PATHS)} only.")
    return IMAGE_PATHS[model_type](config, num_visual_tokens, num_images, batch_size)
