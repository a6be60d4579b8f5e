# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
MQT-LLaVA through vLLM's Transformers backend: this package's own model, with vLLM's attention and linear layers in it.

The contract: `mm_processor_kwargs={"num_visual_tokens": m}` holds for all images of a request, or a list has one m for
each. Requests with any m share a batch, and an image is encoded once for all of them: visual tokens nest, so vLLM's
caches only ever know its M, of which a prompt takes the first m. Whole blocks of its KV cache within the first m are
shared too, since vLLM knows a block by the image and the place in it.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import vllm
from packaging.version import Version
from vllm.model_executor.models.transformers.multimodal import MultiModalDummyInputsBuilder
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import PlaceholderRange

from ..models.configuration_compressed_llava import check_num_visual_tokens
from .probing import NAME
from .vllm_compressed_llava import (
    CompressedLlavaForVLLM,
    CompressedLlavaProcessingInfo,
    CompressedLlavaVLLMProcessor,
)


if TYPE_CHECKING:
    from vllm.inputs import MultiModalInput
    from vllm.multimodal.processing import ProcessorInputs, TimingContext


# vLLM compares the visual tokens that a request expects with those that it has of the image, M, by a mask that it
# documents for places of the same length. tests/serving/test_shared_encodings.py says that a longer one does.
SHARES_ENCODINGS = Version("0.32") <= Version(vllm.__version__) < Version("0.33")
if not SHARES_ENCODINGS:
    warnings.warn(
        f"mqt_llava has not been tried with vLLM {vllm.__version__}. An image is encoded anew for each number of "
        "visual tokens, and all images of a request have the same one. With vLLM 0.32 neither holds.",
        stacklevel=1,
    )


class MQTLlavaProcessingInfo(CompressedLlavaProcessingInfo):
    allowed_keywords = (NAME,)

    def num_visual_tokens_per_image(self, request_kwargs: Mapping[str, object], num_images: int | None) -> list[int]:
        """
        The number of visual tokens of each of a request's images: its own, else the engine's `mm_processor_kwargs`,
        else the checkpoint's. `None` images check the engine's own.

        Raises:
            TypeError: It is neither an integer nor a list of integers.
            ValueError: It is outside 1..M, a list has not one entry per image, or the request has other keywords.
        """
        processor = self.get_hf_processor()
        (default,) = processor.num_visual_tokens_per_image(None, num_images=1)
        value = {NAME: default, **self.keywords(request_kwargs)}[NAME]
        name = f"mm_processor_kwargs['{NAME}']"
        numbers = check_num_visual_tokens(value, processor.max_visual_tokens, num_images, name)
        if not SHARES_ENCODINGS and len(set(numbers)) > 1:
            raise ValueError(f"`{name}` is {value!r}, but must be one integer with vLLM {vllm.__version__}.")
        return numbers


def cut_images(inputs: "MultiModalInput", numbers: Iterable[int]) -> "MultiModalInput":
    """
    Leaves of each image its first visual tokens. What vLLM stores of it stays as it is, all M: a mask says so that is
    longer than the image's place in the prompt.
    """
    ids, places = inputs["prompt_token_ids"], inputs["mm_placeholders"].get("image", [])
    kept, cut, end = [], [], 0
    for place, number in zip(places, numbers):
        kept += ids[end : place.offset + number]
        every = torch.ones(place.length, dtype=torch.bool)
        cut.append(PlaceholderRange(len(kept) - number, number, is_embed=every))
        end = place.offset + place.length
    placeholders = {**inputs["mm_placeholders"], **({"image": cut} if cut else {})}
    return {**inputs, "prompt_token_ids": [*kept, *ids[end:]], "mm_placeholders": placeholders}


class MQTLlavaVLLMProcessor(CompressedLlavaVLLMProcessor):
    def get_dummy_inputs(self, **kwargs: Any) -> "ProcessorInputs":
        """The images that vLLM reserves memory with have M visual tokens too."""
        self.info.num_visual_tokens_per_image({}, None)  # a wrong default of the engine's is refused when it starts
        most = {NAME: self.info.get_max_image_tokens()}
        return replace(super().get_dummy_inputs(**kwargs), hf_processor_mm_kwargs=most)

    def apply(self, inputs: "ProcessorInputs", timing_ctx: "TimingContext") -> "MultiModalInput":
        inputs = self.with_bos(inputs)
        numbers = self.info.num_visual_tokens_per_image(inputs.hf_processor_mm_kwargs, self.num_images(inputs))
        # What vLLM's caches know an image by.
        number = self.info.get_max_image_tokens() if SHARES_ENCODINGS or not numbers else numbers[0]
        inputs = replace(inputs, hf_processor_mm_kwargs={NAME: number})
        whole = super().apply(inputs, timing_ctx)
        return cut_images(whole, numbers) if SHARES_ENCODINGS else whole


@MULTIMODAL_REGISTRY.register_processor(
    MQTLlavaVLLMProcessor, info=MQTLlavaProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class MQTLlavaForVLLM(CompressedLlavaForVLLM):
    """An [`MQTLlavaForConditionalGeneration`] on vLLM's Transformers backend."""
