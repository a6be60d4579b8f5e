# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
QueCC-LLaVA through vLLM's Transformers backend: our own model, with vLLM's attention and linear layers in it.

The contract: an image is encoded for the question that transformers' processor would find in the prompt, or for the
one that `mm_processor_kwargs={"query": ...}` brings. The question is a field of the image's item and part of what
vLLM's caches know it by: one image and two questions are two entries. The decoder reads questions while images are
encoded, with the weights that it answers with, but outside of vLLM's paged attention and its compiled graph.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from vllm.forward_context import create_forward_context, override_forward_context
from vllm.model_executor.models.transformers.multimodal import MultiModalDummyInputsBuilder
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.hasher import MultiModalHasher

from ..models.configuration_quecc_llava import check_fixed_number
from .probing import NAME
from .prompt_text import prompt_text
from .vllm_compressed_llava import (
    CompressedLlavaForVLLM,
    CompressedLlavaProcessingInfo,
    CompressedLlavaVLLMProcessor,
)


if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel
    from vllm.config import VllmConfig
    from vllm.inputs import MultiModalHashes, MultiModalInput
    from vllm.multimodal.processing import ProcessorInputs, TimingContext


QUERY = "query"


class QueCCLlavaProcessingInfo(CompressedLlavaProcessingInfo):
    allowed_keywords = (QUERY, NAME)

    def query(self, request_kwargs: Mapping[str, object]) -> Any:
        """
        The question that a request brings for its images, or the engine's `mm_processor_kwargs` do; None is its own.

        Raises:
            ValueError: The request has other keywords, or asks for another number of visual tokens than the model's.
        """
        kwargs = self.keywords(request_kwargs)
        fixed = self.get_hf_processor().max_visual_tokens
        check_fixed_number(kwargs.get(NAME), fixed, f"mm_processor_kwargs['{NAME}']")
        return kwargs.get(QUERY)


class QueCCLlavaVLLMProcessor(CompressedLlavaVLLMProcessor):
    def get_dummy_inputs(self, **kwargs: Any) -> "ProcessorInputs":
        """
        The images that vLLM reserves memory with. Their questions are as long as their visual tokens, so that as many
        as a batch takes have about as many tokens as one question pass reads at once.
        """
        self.info.query({})  # what the engine's own keywords cannot ask for is refused when it starts
        question = " ".join(["a"] * self.info.get_max_image_tokens())
        return replace(super().get_dummy_inputs(**kwargs), hf_processor_mm_kwargs={QUERY: question})

    def apply(self, inputs: "ProcessorInputs", timing_ctx: "TimingContext") -> "MultiModalInput":
        inputs = self.with_bos(inputs)
        questions = self.questions_per_image(inputs)
        return super().apply(replace(inputs, hf_processor_mm_kwargs={QUERY: questions}), timing_ctx)

    def questions_per_image(self, inputs: "ProcessorInputs") -> list[str]:
        """
        The question that each image of a request is encoded for.

        Raises:
            ValueError: An image has no question behind it, or there is not one `query` for each image.
        """
        processor, query = self.info.get_hf_processor(), self.info.query(inputs.hf_processor_mm_kwargs)
        prompts = []
        if query is None:
            ids = inputs.prompt[len(self.leading_ids) :]
            prompts.append(prompt_text(self.info.get_tokenizer(), ids, processor.image_token_id))
        name = f"mm_processor_kwargs['{QUERY}']"
        return processor.questions_per_image(prompts, query, self.num_images(inputs), name)

    def _get_mm_hashes(self, inputs: "ProcessorInputs") -> "MultiModalHashes":
        """Of each image and its own question, so that further questions of the request do not count."""
        hashes = super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs={}))
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
        questions = inputs.hf_processor_mm_kwargs[QUERY]
        of_images = [
            MultiModalHasher.hash_kwargs(algorithm, image=image, query=question)
            for image, question in zip(hashes.get("image", []), questions)
        ]
        return {**hashes, **({"image": of_images} if of_images else {})}

    def _get_cache_missing_processor_kwargs(
        self, inputs: "ProcessorInputs", mm_is_cached: Mapping[str, list[bool]]
    ) -> Mapping[str, object]:
        questions = inputs.hf_processor_mm_kwargs[QUERY]
        return {QUERY: [one for one, cached in zip(questions, mm_is_cached.get("image", [])) if not cached]}

    def _postprocess_hf_mm_data(
        self, mm_inputs: Mapping[str, object], hf_processor_mm_kwargs: Mapping[str, object], data: "BatchFeature"
    ) -> "BatchFeature":
        """
        Takes the padding off the questions: an item is what its image and its question make it, alone.

        Raises:
            ValueError: A question has more tokens than a prompt may have.
        """
        mask = data.pop("query_attention_mask", None)
        if mask is not None:
            questions = [row[seen.bool()] for row, seen in zip(data["query_input_ids"], mask)]
            most = self.info.ctx.model_config.max_model_len
            for question in questions:
                if not 1 <= len(question) <= most:
                    raise ValueError(
                        f"The question of an image has {len(question)} tokens, but must have 1..{most} "
                        "(`--max-model-len`)."
                    )
            data["query_input_ids"] = questions
        return data


@contextmanager
def ordinary_decoder(decoder: "PreTrainedModel", vllm_config: "VllmConfig") -> Iterator[None]:
    """
    Within it the decoder runs as it stands in its file: with torch's attention over all that it is given, not with
    vLLM's, which reads and writes the KV cache of running requests, and without the graph that was compiled of that.
    """
    attention = decoder.config._attn_implementation
    decoder.config._attn_implementation = "sdpa"
    try:
        with override_forward_context(create_forward_context(None, vllm_config, skip_compiled=True)):
            yield
    finally:
        decoder.config._attn_implementation = attention


def runs_within(lengths: list[int], most: int) -> Iterator[slice]:
    """Questions one behind the other whose tokens, padded to the longest, are no more than `most`, or one alone."""
    start, longest = 0, 0
    for end, length in enumerate(lengths):
        longest = max(longest, length)
        if end > start and longest * (end + 1 - start) > most:
            yield slice(start, end)
            start, longest = end, length
    yield slice(start, len(lengths))


def refuse_settings(vllm_config: "VllmConfig") -> None:
    """
    Raises:
        ValueError: The engine is set up so that the decoder cannot read questions while images are encoded.
    """
    parallel, num_kv_heads = vllm_config.parallel_config, vllm_config.model_config.get_total_num_kv_heads()
    if parallel.pipeline_parallel_size > 1:
        raise ValueError(
            f"`pipeline_parallel_size` is {parallel.pipeline_parallel_size}, but must be 1: what encodes the images "
            "of QueCC-LLaVA needs all layers of the decoder."
        )
    if parallel.tensor_parallel_size > num_kv_heads:
        raise ValueError(
            f"`tensor_parallel_size` is {parallel.tensor_parallel_size}, but must be at most {num_kv_heads}, the "
            "decoder's heads of keys and values: the pass over the questions does not know repeated ones."
        )
    if vllm_config.model_config.multimodal_config.mm_encoder_only:
        raise ValueError(
            "`mm_encoder_only` is set, but what encodes the images of QueCC-LLaVA needs the decoder, which such an "
            "engine does not load."
        )
    if vllm_config.lora_config is not None:
        raise ValueError(
            "`enable_lora` is set, but vLLM's adapters know the tokens of a batch alone, and the decoder of "
            "QueCC-LLaVA reads questions besides. Merge the adapter into the weights."
        )


@MULTIMODAL_REGISTRY.register_processor(
    QueCCLlavaVLLMProcessor, info=QueCCLlavaProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class QueCCLlavaForVLLM(CompressedLlavaForVLLM):
    """A [`QueCCLlavaForConditionalGeneration`] on vLLM's Transformers backend."""

    def __init__(self, *, vllm_config: "VllmConfig", prefix: str = ""):
        refuse_settings(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def embed_multimodal(self, **kwargs: Any) -> list[torch.Tensor]:
        """
        Encodes images, each for its question, and no more at once than the decoder is set up to read tokens.

        Args:
            **kwargs: What the items of the images hold, with one row for each; `query_input_ids` may be ragged.

        Returns:
            `(visual tokens, hidden size)` of each image.
        """
        questions = list(kwargs["query_input_ids"])
        most = self.vllm_config.scheduler_config.max_num_batched_tokens
        embeddings: list[torch.Tensor] = []
        for run in runs_within([len(question) for question in questions], most):
            images = {name: value[run] for name, value in kwargs.items()}
            images["query_input_ids"] = pad_sequence(questions[run], batch_first=True)
            masks = [torch.ones_like(question) for question in questions[run]]
            images["query_attention_mask"] = pad_sequence(masks, batch_first=True)
            with ordinary_decoder(self.model.language_model, self.vllm_config):
                embeddings += super().embed_multimodal(**images)
        return embeddings
