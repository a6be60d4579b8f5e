# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Configuration of QueCC-LLaVA."""

from dataclasses import field
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from .configuration_compressed_llava import CompressedLlavaConfig, check_integer, plain_numbers


class QueCCLlavaConfig(CompressedLlavaConfig):
    r"""
    Configuration of a [`QueCCLlavaForConditionalGeneration`]. Without arguments it describes the 7B model with 16
    visual tokens of "Inference Optimal VLMs Need Fewer Visual Tokens and More Parameters" (arXiv 2411.03312): CLIP
    ViT-L/14 at 336 pixels, windows of 6 x 6 patches, Vicuna-7B.

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*):
            Any vision tower that `AutoModel` can build and whose patches form a square grid. A dict without
            `model_type` is a CLIP vision tower.
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            Any decoder that `AutoModel` can build. A dict without `model_type` is a Llama.
        image_token_id (`int`, defaults to 32000):
            The id that the tokenizer gives to the placeholder `<image>`; an index into the decoder's embeddings.
        kernel_size (`int`, defaults to 6):
            Side of the windows of patches that become one visual token each, which must divide the side of the patch
            grid: of 24 x 24 patches, 4, 6, 12 and 24 leave 36, 16, 4 and 1 visual tokens.
        resampler_num_attention_heads (`int`, defaults to 8):
            Heads of the compressor's attention. Must divide the hidden size of the vision tower.
        vision_feature_layer (`int`, defaults to -2):
            The hidden state of the vision tower that the queries are made of, counted as in `hidden_states`: 1 is the
            first layer's output, -1 the last's. Layers above all that are used are neither built nor run.
        vision_context_layers (`list[int]`, defaults to `[12, 16, 22, 23]`):
            The hidden states whose channels, one behind the other, make the keys and values.
        vision_feature_select_strategy (`str`, defaults to `"default"`):
            `"default"` drops the tokens in front of the patch grid (class token, registers), where there are any;
            `"full"` keeps every token.
        tie_word_embeddings (`bool`, defaults to `False`):
            Whether the language model head is the embedding matrix. Taken over from `text_config` when that ties.

    Raises:
        TypeError: A part is no configuration, or a number no integer.
        ValueError: `kernel_size` does not divide the side of the patch grid, there are no `vision_context_layers`, or
            `vision_feature_select_strategy` is unknown.

    ```python
    >>> from mqt_llava import QueCCLlavaConfig, QueCCLlavaForConditionalGeneration

    >>> config = QueCCLlavaConfig(kernel_size=12, text_config={"num_hidden_layers": 2})
    >>> config.num_visual_tokens
    4
    ```"""

    model_type = "quecc_llava"
    remote_classes = {
        "AutoConfig": "configuration_quecc_llava.QueCCLlavaConfig",
        "AutoModel": "modeling_quecc_llava.QueCCLlavaModel",
        "AutoModelForImageTextToText": "modeling_quecc_llava.QueCCLlavaForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_quecc_llava.QueCCLlavaForConditionalGeneration",
        "AutoModelForPreTraining": "modeling_quecc_llava.QueCCLlavaForConditionalGeneration",
    }

    kernel_size: int = 6
    resampler_num_attention_heads: int = 8
    vision_context_layers: list[int] = field(default_factory=lambda: [12, 16, 22, 23])

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_context_layers, (list, tuple)):
            raise TypeError(
                f"`vision_context_layers` is {self.vision_context_layers!r}, but must be a list of integers."
            )
        self.vision_context_layers = list(self.vision_context_layers)
        if not self.vision_context_layers:
            raise ValueError("`vision_context_layers` is empty, but the keys and values need one layer at least.")
        for name in ("kernel_size", "vision_context_layers"):
            value = getattr(self, name)
            for number in value if isinstance(value, list) else [value]:
                check_integer(number, name)
        super().__post_init__(**kwargs)
        side = self.patch_grid_side
        if self.kernel_size < 1 or side % self.kernel_size:
            raise ValueError(
                f"`kernel_size` is {self.kernel_size}, but must divide the side of the patch grid, which is {side} "
                f"({self.vision_config.image_size} pixels in patches of {self.vision_config.patch_size})."
            )

    @property
    def patch_grid_side(self) -> int:
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens of an image."""
        return (self.patch_grid_side // self.kernel_size) ** 2

    @property
    def used_vision_layers(self) -> list[int]:
        return [self.vision_feature_layer, *self.vision_context_layers]


def check_fixed_number(num_visual_tokens: int | None, fixed: int, name: str = "num_visual_tokens") -> None:
    """
    Refuses what MQT-LLaVA allows, to ask for any number of visual tokens; that very number, or None, is no other.

    Raises:
        ValueError: It is another number.
    """
    num_visual_tokens = plain_numbers(num_visual_tokens)
    if num_visual_tokens is not None and (type(num_visual_tokens) in (bool, list) or num_visual_tokens != fixed):
        raise ValueError(
            f"`{name}` is {num_visual_tokens!r}, but every image gets {fixed} visual tokens: the model's "
            "`kernel_size` fixes their number. Leave it out."
        )


QueCCLlavaConfig.register_for_auto_class()
# `transformers serve` asks this table alone which models it can load, registered classes or not.
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["quecc_llava"] = "QueCCLlavaForConditionalGeneration"

__all__ = ["QueCCLlavaConfig"]
