"""Config and processor of a converted QueCC-LLaVA, from what the original's files say."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaImageProcessorPil, PreTrainedTokenizerBase

from .. import QueCCLlavaConfig, QueCCLlavaProcessor
from ..models.processing_compressed_llava import V1_CHAT_TEMPLATE
from .configs_llava import llava_config
from .conversion_error import ConversionError
from .original_parts import Part
from .vision_tower import num_layers_used


# Fixed in the published code.
RESAMPLER_HEADS = 8
CONTEXT_LAYERS = [12, 16, 22, 23]
DEFAULT_KERNEL_SIZE = 4
# A class token would fit in no window of patches, and the new model has this projector alone.
SETTINGS = {
    "mm_vision_token_compression_type": ("quecc",),
    "mm_vision_select_feature": (None, "patch"),
    "mm_projector_type": ("mlp2x_gelu",),
}


def quecc_llava_config(
    original: dict,
    resampler: Part,
    text_config: LlamaConfig,
    vision_config: CLIPVisionConfig,
    image_token_id: int,
    dtype: torch.dtype,
) -> QueCCLlavaConfig:
    """The new model's config. Keeps of `vision_config` the layers up to the last one that is used."""
    num_layers = vision_config.num_hidden_layers
    if num_layers < max(CONTEXT_LAYERS):
        raise ConversionError(
            f"The original reads layers {', '.join(map(str, CONTEXT_LAYERS))} of the vision tower, which has "
            f"{num_layers}."
        )
    feature_layer = num_layers_used(original.get("mm_vision_select_layer", -2), num_layers)
    vision_config.num_hidden_layers = max(feature_layer, *CONTEXT_LAYERS)
    config = llava_config(
        QueCCLlavaConfig,
        original,
        text_config,
        vision_config,
        dtype,
        image_token_id=image_token_id,
        kernel_size=kernel_size(original),
        resampler_num_attention_heads=RESAMPLER_HEADS,
        vision_feature_layer=feature_layer - vision_config.num_hidden_layers - 1,
        vision_context_layers=CONTEXT_LAYERS,
        architectures=["QueCCLlavaForConditionalGeneration"],
    )
    for name, expected, what in (
        ("mm_vision_output_text_embedding_size", text_config.hidden_size, "the language model's hidden size"),
        ("mm_vision_output_token_count", config.patch_grid_side**2, "the vision tower's number of patches"),
    ):
        if original.get(name, expected) != expected:
            raise ConversionError(f"The original config's {name} is {original[name]!r}, but {what} is {expected}.")
    return config


def kernel_size(original: dict) -> int:
    """Side of the windows, which must not overlap."""
    kernel, stride = (
        original.get(f"mm_vision_token_compression_{name}", DEFAULT_KERNEL_SIZE) for name in ("kernel_size", "stride")
    )
    if kernel != stride:
        raise ConversionError(
            f"The original config's mm_vision_token_compression_kernel_size is {kernel!r} and its "
            f"mm_vision_token_compression_stride {stride!r}, but windows that overlap or leave gaps cannot be "
            "converted: the two must be equal."
        )
    return kernel


def quecc_llava_processor(
    original: dict,
    config: QueCCLlavaConfig,
    image_processor: LlavaImageProcessorPil,
    tokenizer: PreTrainedTokenizerBase,
) -> QueCCLlavaProcessor:
    return QueCCLlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        max_visual_tokens=config.num_visual_tokens,
        chat_template=V1_CHAT_TEMPLATE,
    )
