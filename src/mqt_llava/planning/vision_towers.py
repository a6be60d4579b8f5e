"""Vision towers by the `model_type` of their configuration, on images as large as its `image_size`."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from .blocks import Blocks


@dataclass(frozen=True)
class VisionTower:
    """
    Args:
        patches: Patches of an image.
        extra_tokens: Class and register tokens.
        patch_weights: Of the convolution that embeds patches, without bias.
        other_weights: Outside blocks, convolution and pooling head: tokens, positions, norms, biases.
        head_flops: Of SigLIP's attention pooling, for each image. Nothing uses its output, but it is run.
        head_weights: Of the same.
    """

    blocks: Blocks
    patches: int
    extra_tokens: int
    patch_weights: int
    other_weights: int
    head_flops: int = 0
    head_weights: int = 0

    @property
    def tokens(self) -> int:
        return self.patches + self.extra_tokens

    @property
    def num_weights(self) -> int:
        return self.patch_weights + self.blocks.num_weights + self.other_weights + self.head_weights

    def flops(self, images: int) -> int:
        pairs = self.blocks.num_layers * self.tokens**2
        embedding = 2 * self.patches * self.patch_weights
        return images * (embedding + self.blocks.flops(self.tokens, pairs) + self.head_flops)


def _grid(config: PreTrainedConfig) -> tuple[int, int]:
    """Patches of an image, and weights of the convolution that embeds them."""

    def pair(size: int | Sequence[int]) -> tuple[int, int]:
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    (height, width), (patch_height, patch_width) = pair(config.image_size), pair(config.patch_size)
    patches = (height // patch_height) * (width // patch_width)
    return patches, config.num_channels * patch_height * patch_width * config.hidden_size


def _clip_blocks(config: PreTrainedConfig, num_layers: int) -> Blocks:
    width, mlp_width = config.hidden_size, config.intermediate_size
    # Biases of attention and MLP, two LayerNorms.
    return Blocks(num_layers, width, width, width, mlp_width, 2, 4 * width + mlp_width + width + 4 * width)


def _clip(config: PreTrainedConfig, num_layers: int) -> VisionTower:
    (patches, patch_weights), width = _grid(config), config.hidden_size
    # Class token, positions, LayerNorms before and after.
    other = width + (patches + 1) * width + 4 * width
    return VisionTower(_clip_blocks(config, num_layers), patches, 1, patch_weights, other)


def _siglip(config: PreTrainedConfig, num_layers: int) -> VisionTower:
    (patches, patch_weights), width, mlp_width = _grid(config), config.hidden_size, config.intermediate_size
    other = width + patches * width + 2 * width  # bias of the convolution, positions, LayerNorm
    head_flops = head_weights = 0
    if config.vision_use_head:
        # One learned query attends to all tokens, then an MLP.
        head_flops = 2 * (2 + 2 * patches) * width**2 + 4 * patches * width + 4 * width * mlp_width
        head_weights = 4 * (width**2 + width) + width + 2 * width + 2 * width * mlp_width + mlp_width + width
    return VisionTower(_clip_blocks(config, num_layers), patches, 0, patch_weights, other, head_flops, head_weights)


def _dinov2(config: PreTrainedConfig, num_layers: int) -> VisionTower:
    (patches, patch_weights), width = _grid(config), config.hidden_size
    mlp_width, mlp_matrices = int(width * config.mlp_ratio), 2
    if config.use_swiglu_ffn:
        mlp_width, mlp_matrices = (int(mlp_width * 2 / 3) + 7) // 8 * 8, 3
    # Biases, two LayerNorms, two layer scales.
    vectors = 3 * width * config.qkv_bias + width + (mlp_matrices - 1) * mlp_width + width + 4 * width + 2 * width
    blocks = Blocks(num_layers, width, width, width, mlp_width, mlp_matrices, vectors)
    registers = getattr(config, "num_register_tokens", 0)
    # Class token, mask token, registers, positions, bias of the convolution, LayerNorm.
    has_mask = getattr(config, "use_mask_token", True)
    other = (1 + has_mask + registers + patches + 1 + 1 + 2) * width
    return VisionTower(blocks, patches, 1 + registers, patch_weights, other)


VISION_TOWERS = {
    "clip_vision_model": _clip,
    "siglip_vision_model": _siglip,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
}


def vision_tower(config: PreTrainedConfig, num_layers: int) -> VisionTower:
    """
    The first `num_layers` layers of a vision tower.

    Raises:
        ValueError: A kind of vision tower whose costs are not known.
    """
    if config.model_type not in VISION_TOWERS:
        raise ValueError(
            f"The vision tower is a {config.model_type!r}, but costs are known for {', '.join(VISION_TOWERS)} only."
        )
    return VISION_TOWERS[config.model_type](config, num_layers)
