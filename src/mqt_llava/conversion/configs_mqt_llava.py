"""Config and processor of a converted MQT-LLaVA, from what the original's files say."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaImageProcessorPil, PreTrainedTokenizerBase

from .. import MQTLlavaConfig, MQTLlavaProcessor
from ..models.configuration_compressed_llava import check_num_visual_tokens
from ..models.processing_compressed_llava import V1_CHAT_TEMPLATE
from .configs_llava import llava_config
from .conversion_error import ConversionError
from .original_parts import Part
from .vision_tower import num_layers_used


# Always 16 in the released code.
RESAMPLER_HEADS = 16


def mqt_llava_config(
    original: dict,
    resampler: Part,
    text_config: LlamaConfig,
    vision_config: CLIPVisionConfig,
    image_token_id: int,
    dtype: torch.dtype,
) -> MQTLlavaConfig:
    """The new model's config. Keeps of `vision_config` the layers that are used."""
    select_layer = original.get("mm_vision_select_layer", -2)
    vision_config.num_hidden_layers = num_layers_used(select_layer, vision_config.num_hidden_layers)
    return llava_config(
        MQTLlavaConfig,
        original,
        text_config,
        vision_config,
        dtype,
        image_token_id=image_token_id,
        max_visual_tokens=num_queries(resampler),
        resampler_num_attention_heads=RESAMPLER_HEADS,
        vision_feature_layer=-1,
        architectures=["MQTLlavaForConditionalGeneration"],
    )


def num_queries(resampler: Part) -> int:
    """M, the number of learned queries."""
    name = f"{resampler.prefix}query"
    shape = resampler.checkpoint.shape(name)
    if len(shape) != 2:
        raise ConversionError(f"The checkpoint does not fit its configuration: wrong shapes: {name} {list(shape)}.")
    return shape[0]


def mqt_llava_processor(
    original: dict, config: MQTLlavaConfig, image_processor: LlavaImageProcessorPil, tokenizer: PreTrainedTokenizerBase
) -> MQTLlavaProcessor:
    """
    The processor.

    An original `num_visual_tokens` that is no number ("first_stage", "second_stage") is about training, where the
    original draws m at random; the default then is M.
    """
    return MQTLlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        max_visual_tokens=config.max_visual_tokens,
        num_visual_tokens=default_num_visual_tokens(original.get("num_visual_tokens"), config.max_visual_tokens),
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
