# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""Processor of MQT-LLaVA: images and text in, with as many placeholders per image as it gets visual tokens."""

from typing import Any

from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ImageInput
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .configuration_compressed_llava import check_num_visual_tokens
from .configuration_mqt_llava import check_max_visual_tokens
from .processing_compressed_llava import V1_CHAT_TEMPLATE, CompressedLlavaProcessor


class MQTLlavaImagesKwargs(ImagesKwargs, total=False):
    """
    num_visual_tokens (`int` or `list[int]`, *optional*):
        Visual tokens of every image, or one number per image. The processor's own default otherwise.
    """

    num_visual_tokens: Any  # checked by `check_num_visual_tokens`, whose errors say more than a type check's


class MQTLlavaProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {}  # asked for by releases before 5.20

    images_kwargs: MQTLlavaImagesKwargs


class MQTLlavaProcessor(CompressedLlavaProcessor):
    r"""
    Prepares images and text for an [`MQTLlavaForConditionalGeneration`].

    Args:
        image_processor: Turns images into `pixel_values`; always run by its PIL backend, whose pixels are the ones
            that the model was trained on.
        tokenizer: A tokenizer that knows the placeholder `<image>`.
        max_visual_tokens (`int`, defaults to 256):
            M, the most visual tokens an image can have.
        num_visual_tokens (`int`, *optional*):
            Visual tokens of an image when a call does not say. `None` is M.
        chat_template (`str`, *optional*):
            LLaVA's v1 template by default.

    ```python
    >>> processor = MQTLlavaProcessor.from_pretrained("model_cards/mqt-llava-tiny")
    >>> inputs = processor(images=image, text="USER: <image>\nList the items. ASSISTANT:", num_visual_tokens=4)
    >>> inputs.keys()
    dict_keys(['input_ids', 'attention_mask', 'pixel_values', 'visual_token_counts'])
    ```"""

    valid_processor_kwargs = MQTLlavaProcessorKwargs

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_visual_tokens: int = 256,
        chat_template: str | None = V1_CHAT_TEMPLATE,
        **kwargs: Any,
    ):
        # Among the keywords, since transformers tells arguments of a processor from those of a call by their names.
        num_visual_tokens = kwargs.pop("num_visual_tokens", None)
        check_max_visual_tokens(max_visual_tokens)
        if num_visual_tokens is not None:
            (num_visual_tokens,) = check_num_visual_tokens(num_visual_tokens, max_visual_tokens)
        super().__init__(image_processor, tokenizer, max_visual_tokens, chat_template, **kwargs)
        self.num_visual_tokens = num_visual_tokens
        # Written on saving anyhow; from the start, so that a processor equals what it is saved as.
        self.auto_map = {"AutoProcessor": "processing_mqt_llava.MQTLlavaProcessor"}

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "num_visual_tokens": self.num_visual_tokens}

    def num_visual_tokens_per_image(
        self, num_visual_tokens: int | list[int] | None, num_images: int, name: str = "num_visual_tokens"
    ) -> list[int]:
        """As of every processor; where a call does not say, the processor's own number, or else M."""
        if num_visual_tokens is None:
            num_visual_tokens = self.max_visual_tokens if self.num_visual_tokens is None else self.num_visual_tokens
        return check_num_visual_tokens(num_visual_tokens, self.max_visual_tokens, num_images, name)

    # `num_visual_tokens` is not the image processor's, and the loaded images have no `input_data_format` any more.
    def _process_images(
        self, images: ImageInput, num_visual_tokens: Any = None, input_data_format: Any = None, **kwargs: Any
    ) -> tuple[BatchFeature, list[str]]:
        image_inputs = self.image_processor(images, **kwargs)
        image_inputs["visual_token_counts"] = self.num_visual_tokens_per_image(num_visual_tokens, len(images))
        return image_inputs, [self.replace_image_token(image_inputs, index) for index in range(len(images))]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        return self.image_token * int(image_inputs["visual_token_counts"][image_idx])

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "visual_token_counts"]


MQTLlavaProcessor.register_for_auto_class()

__all__ = ["MQTLlavaProcessor"]
