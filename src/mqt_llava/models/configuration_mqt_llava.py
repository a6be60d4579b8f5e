# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Configuration of MQT-LLaVA."""

import math
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from .configuration_compressed_llava import CompressedLlavaConfig


class MQTLlavaConfig(CompressedLlavaConfig):
    r"""
    Configuration of an [`MQTLlavaForConditionalGeneration`]. Without arguments it describes MQT-LLaVA-1.5-7B: CLIP
    ViT-L/14 at 336 pixels, 256 query tokens, Vicuna-7B.

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*):
            Any vision tower that `AutoModel` can build and whose patches form a square grid. A dict without
            `model_type` is a CLIP vision tower.
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            Any decoder that `AutoModel` can build. A dict without `model_type` is a Llama.
        image_token_id (`int`, defaults to 32000):
            The id that the tokenizer gives to the placeholder `<image>`; an index into the decoder's embeddings.
        max_visual_tokens (`int`, defaults to 256):
            M, the number of learned queries and the most visual tokens an image can have. A square number, since the
            queries stand on a raster.
        resampler_num_attention_heads (`int`, defaults to 16):
            Heads of the query transformer. Must divide the hidden size of the vision tower.
        vision_feature_layer (`int`, defaults to -2):
            Which hidden state of the vision tower is compressed, counted as in `hidden_states`: 1 is the first layer's
            output, -1 the last's. Layers above it are neither built nor run.
        vision_feature_select_strategy (`str`, defaults to `"default"`):
            `"default"` drops the tokens in front of the patch grid (class token, registers), where there are any;
            `"full"` keeps every token.
        tie_word_embeddings (`bool`, defaults to `False`):
            Whether the language model head is the embedding matrix. Taken over from `text_config` when that ties.

    Raises:
        TypeError: A part is no configuration, or a number no integer.
        ValueError: `max_visual_tokens` is not a square number, or `vision_feature_select_strategy` is unknown.

    ```python
    >>> from mqt_llava import MQTLlavaConfig, MQTLlavaForConditionalGeneration

    >>> config = MQTLlavaConfig(vision_config={"num_hidden_layers": 2}, text_config={"num_hidden_layers": 2})
    >>> model = MQTLlavaForConditionalGeneration(config)
    ```"""

    model_type = "mqt_llava"
    remote_classes = {
        "AutoConfig": "configuration_mqt_llava.MQTLlavaConfig",
        "AutoModel": "modeling_mqt_llava.MQTLlavaModel",
        "AutoModelForImageTextToText": "modeling_mqt_llava.MQTLlavaForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_mqt_llava.MQTLlavaForConditionalGeneration",
        "AutoModelForPreTraining": "modeling_mqt_llava.MQTLlavaForConditionalGeneration",
    }

    max_visual_tokens: int = 256

    def __post_init__(self, **kwargs: Any) -> None:
        check_max_visual_tokens(self.max_visual_tokens)
        super().__post_init__(**kwargs)


def check_max_visual_tokens(value: Any) -> None:
    """
    Raises:
        ValueError: M is no square number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or math.isqrt(value) ** 2 != value:
        raise ValueError(
            f"`max_visual_tokens` is {value!r}, but the query tokens stand on a square raster: it must be a square "
            "number such as 16, 64 or 256."
        )


MQTLlavaConfig.register_for_auto_class()
# `transformers serve` asks this table alone which models it can load, registered classes or not.
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["mqt_llava"] = "MQTLlavaForConditionalGeneration"

__all__ = ["MQTLlavaConfig"]
