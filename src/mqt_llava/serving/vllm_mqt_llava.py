# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
MQT-LLaVA through vLLM's Transformers backend: this package's own model, with vLLM's attention and linear layers in it.

The contract: `mm_processor_kwargs={"num_visual_tokens": m}` holds for all images of a request, requests with any m
share a batch, and an image is encoded once per m. vLLM's caches know an image by its content and by these keywords as
a whole, so a list with one m per image would be stored under one key for images that got different m. It is refused.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import PIL.Image
import torch
from vllm.model_executor.models.transformers.causal import CausalMixin
from vllm.model_executor.models.transformers.multimodal import (
    MultiModalDummyInputsBuilder,
    MultiModalMixin,
    MultiModalProcessingInfo,
    MultiModalProcessor,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import MultiModalDataParser

from ..models.configuration_compressed_llava import check_num_visual_tokens
from ..models.modeling_compressed_llava import NEVER
from ..models.processing_compressed_llava import to_rgb


if TYPE_CHECKING:
    from vllm.inputs import MultiModalInput
    from vllm.multimodal.processing import ProcessorInputs, TimingContext

    from ..models.processing_mqt_llava import MQTLlavaProcessor


NAME = "num_visual_tokens"


class MQTLlavaDataParser(MultiModalDataParser):
    def _parse_image_data(self, data: Any) -> Any:
        # As everywhere in this package, before vLLM shows what is transparent on white.
        if isinstance(data, PIL.Image.Image):
            data = to_rgb(data, 0)
        elif isinstance(data, (list, tuple)):
            data = [to_rgb(image, i) if isinstance(image, PIL.Image.Image) else image for i, image in enumerate(data)]
        return super()._parse_image_data(data)


class MQTLlavaProcessingInfo(MultiModalProcessingInfo):
    def get_data_parser(self) -> MultiModalDataParser:
        return MQTLlavaDataParser(
            expected_hidden_size=self._get_expected_hidden_size(),
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )

    def get_hf_processor(self, **kwargs: object) -> "MQTLlavaProcessor":
        # One for every m: by default vLLM would load a processor from its folder for each m that is asked for.
        return super().get_hf_processor()

    def get_max_image_tokens(self) -> int:
        """M, whatever the engine's default is: a request may ask for it."""
        return self.get_hf_processor().max_visual_tokens

    def num_visual_tokens(self, request_kwargs: Mapping[str, object]) -> int:
        """
        The number of visual tokens of a request's images: its own, else the engine's `mm_processor_kwargs`, else the
        checkpoint's.

        Raises:
            TypeError: It is no integer; a list neither.
            ValueError: It is outside 1..M, or the request has other keywords.
        """
        if others := sorted(set(request_kwargs) - {NAME}):
            raise ValueError(
                f"`mm_processor_kwargs` has {', '.join(map(repr, others))}, but only {NAME!r} is allowed."
            )
        processor = self.get_hf_processor()
        (default,) = processor.num_visual_tokens_per_image(None, num_images=1)
        kwargs = self.ctx.get_merged_mm_kwargs(request_kwargs)
        num_visual_tokens = {**kwargs, **(kwargs.get("images_kwargs") or {})}.get(NAME, default)
        name = f"mm_processor_kwargs['{NAME}']"
        if isinstance(num_visual_tokens, (list, tuple)):
            raise TypeError(
                f"`{name}` is {num_visual_tokens!r}, but must be one integer in 1..{processor.max_visual_tokens} for "
                "all images of a request. Ask about images at different numbers in requests of their own."
            )
        (num_visual_tokens,) = check_num_visual_tokens(num_visual_tokens, processor.max_visual_tokens, name=name)
        return num_visual_tokens


class MQTLlavaVLLMProcessor(MultiModalProcessor):
    @cached_property
    def leading_ids(self) -> list[int]:
        """What the tokenizer puts in front of every prompt: BOS, or nothing."""
        tokenizer = self.info.get_tokenizer()
        first = tokenizer.encode("a")[:1]
        return first if first == [tokenizer.bos_token_id] else []

    def get_dummy_inputs(self, **kwargs: Any) -> "ProcessorInputs":
        """The images that vLLM reserves memory with have M visual tokens too."""
        self.info.num_visual_tokens({})  # a wrong default of the engine's is refused when it starts
        most = {NAME: self.info.get_max_image_tokens()}
        return replace(super().get_dummy_inputs(**kwargs), hf_processor_mm_kwargs=most)

    def apply(self, inputs: "ProcessorInputs", timing_ctx: "TimingContext") -> "MultiModalInput":
        processor = self.info.get_hf_processor()
        num_tokens = inputs.prompt.count(processor.image_token_id)
        num_images = inputs.mm_data_items.get_all_counts().get("image", 0)
        if num_tokens != num_images:  # vLLM would leave the placeholders of too few images as they are
            raise ValueError(
                f"The prompt has {num_tokens} {processor.image_token} tokens, but {num_images} images were passed: "
                "there must be one for each."
            )
        # In chats vLLM leaves BOS to the chat template, transformers leaves it to the tokenizer.
        prompt = inputs.prompt
        if prompt[:1] != self.leading_ids:
            prompt = [*self.leading_ids, *prompt]
        # Spelt out even where a request does not say, so that the default and the same number are one cache entry.
        mm_kwargs = {NAME: self.info.num_visual_tokens(inputs.hf_processor_mm_kwargs)}
        return super().apply(replace(inputs, prompt=prompt, hf_processor_mm_kwargs=mm_kwargs), timing_ctx)


@MULTIMODAL_REGISTRY.register_processor(
    MQTLlavaVLLMProcessor, info=MQTLlavaProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class MQTLlavaForVLLM(MultiModalMixin, CausalMixin):
    """An [`MQTLlavaForConditionalGeneration`] on vLLM's Transformers backend."""

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        logits = super().compute_logits(hidden_states)
        if logits is not None:  # None on all but the first of parallel workers
            logits[..., self.config.image_token_id] = NEVER  # as the model's own head does
        return logits
