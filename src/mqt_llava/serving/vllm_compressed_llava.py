# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
What this package's models have in common on vLLM's Transformers backend: their prompts and images are those that
transformers makes, and no answer holds a placeholder.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import PIL.Image
import torch
from vllm.model_executor.models.transformers.causal import CausalMixin
from vllm.model_executor.models.transformers.multimodal import (
    MultiModalMixin,
    MultiModalProcessingInfo,
    MultiModalProcessor,
)
from vllm.multimodal.parse import MultiModalDataParser

from ..models.modeling_compressed_llava import NEVER
from ..models.processing_compressed_llava import to_rgb


if TYPE_CHECKING:
    from vllm.multimodal.processing import ProcessorInputs

    from ..models.processing_compressed_llava import CompressedLlavaProcessor


class CompressedLlavaDataParser(MultiModalDataParser):
    def _parse_image_data(self, data: Any) -> Any:
        # As everywhere in this package, before vLLM shows what is transparent on white.
        if isinstance(data, PIL.Image.Image):
            data = to_rgb(data, 0)
        elif isinstance(data, (list, tuple)):
            data = [to_rgb(image, i) if isinstance(image, PIL.Image.Image) else image for i, image in enumerate(data)]
        return super()._parse_image_data(data)


class CompressedLlavaProcessingInfo(MultiModalProcessingInfo):
    allowed_keywords: ClassVar[tuple[str, ...]]  # of a request's `mm_processor_kwargs`

    def get_data_parser(self) -> MultiModalDataParser:
        return CompressedLlavaDataParser(
            expected_hidden_size=self._get_expected_hidden_size(),
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )

    def get_hf_processor(self, **kwargs: object) -> "CompressedLlavaProcessor":
        # One for every request: by default vLLM would load a processor from its folder for each m that is asked for.
        return super().get_hf_processor()

    def get_max_image_tokens(self) -> int:
        """The most, whatever the engine's default is: a request may ask for it."""
        return self.get_hf_processor().max_visual_tokens

    def keywords(self, request_kwargs: Mapping[str, object]) -> dict[str, Any]:
        """
        A request's `mm_processor_kwargs`, and the engine's where the request does not say.

        Raises:
            TypeError: `images_kwargs` is no dict.
            ValueError: The request has others than `allowed_keywords`.
        """
        kwargs = flat(request_kwargs)
        if others := sorted(set(kwargs) - set(self.allowed_keywords)):
            raise ValueError(
                f"`mm_processor_kwargs` has {', '.join(map(repr, others))}, but only "
                f"{' or '.join(map(repr, self.allowed_keywords))} is allowed."
            )
        return {**flat(self.ctx.get_merged_mm_kwargs({})), **kwargs}


def flat(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of which some may be meant for images, as vLLM's own models take them."""
    kwargs = dict(kwargs)
    of_images = kwargs.pop("images_kwargs", None) or {}
    if not isinstance(of_images, Mapping):
        raise TypeError(f"`mm_processor_kwargs['images_kwargs']` is {of_images!r}, but must be a dict.")
    return {**kwargs, **of_images}


class CompressedLlavaVLLMProcessor(MultiModalProcessor):
    @cached_property
    def leading_ids(self) -> list[int]:
        """What the tokenizer puts in front of every prompt: BOS, or nothing."""
        tokenizer = self.info.get_tokenizer()
        first = tokenizer.encode("a")[:1]
        return first if first == [tokenizer.bos_token_id] else []

    def num_images(self, inputs: "ProcessorInputs") -> int:
        return inputs.mm_data_items.get_all_counts().get("image", 0)

    def with_bos(self, inputs: "ProcessorInputs") -> "ProcessorInputs":
        """
        A request with the prompt that transformers would make of it, its placeholders not yet expanded.

        Raises:
            ValueError: It has not as many placeholders as images.
        """
        processor, num_images = self.info.get_hf_processor(), self.num_images(inputs)
        num_tokens = inputs.prompt.count(processor.image_token_id)
        if num_tokens != num_images:  # vLLM would leave the placeholders of too few images as they are
            raise ValueError(
                f"The prompt has {num_tokens} {processor.image_token} tokens, but {num_images} images were passed: "
                "there must be one for each."
            )
        # In chats vLLM leaves BOS to the chat template, transformers leaves it to the tokenizer.
        if inputs.prompt[:1] == self.leading_ids:
            return inputs
        return replace(inputs, prompt=[*self.leading_ids, *inputs.prompt])


class CompressedLlavaForVLLM(MultiModalMixin, CausalMixin):
    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        logits = super().compute_logits(hidden_states)
        if logits is not None:  # None on all but the first of parallel workers
            logits[..., self.config.image_token_id] = NEVER  # as the model's own head does
        return logits
