"""
FLOPs, bytes of the KV cache and bytes of the weights of one request, in closed form from a configuration.

A request is one call of `generate`: the images are encoded, with QueCC for a question that the decoder reads first;
the prompt is read, and the rest of the answer is decoded token by token from the cache. FLOPs are those of
`blocks.py`, which agree with FlopCounterMode.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from .decoders import decoder
from .image_paths import image_path


@dataclass(frozen=True)
class FlopsByPart:
    """
    FLOPs; a multiplication with an addition counts as two.

    Args:
        vision_tower: The layers that are run.
        compressor: What follows the vision tower: the query transformer, QueCC, or LLaVA's projector.
        question: The decoder on the question of each image alone, which QueCC needs; 0 for other models.
        prefill: The prompt with its visual tokens, up to the answer's first token.
        decode: The answer's other tokens.
    """

    vision_tower: int
    compressor: int
    question: int
    prefill: int
    decode: int

    @property
    def total(self) -> int:
        return sum(astuple(self))


@dataclass(frozen=True)
class WeightBytesByPart:
    """
    Bytes of parameters and saved tables, all in one dtype. (The query transformer's position table stays as it was
    saved when a checkpoint is loaded in another dtype; in the 7B model it is half a megabyte.)

    Args:
        decoder: With embeddings and head, once where they are tied.
    """

    vision_tower: int
    compressor: int
    decoder: int

    @property
    def total(self) -> int:
        return sum(astuple(self))


@dataclass(frozen=True)
class RequestCost:
    """
    Args:
        kv_bytes: Bytes of the KV cache at the end, when it is largest. The answer's last token is not in it, and
            nothing of the pass over a question alone.
        prompt_tokens: Length of a prompt with its visual tokens.
        new_tokens: Tokens of an answer.
        batch_size: How many prompts there are.
    """

    flops: FlopsByPart
    kv_bytes: int
    weight_bytes: WeightBytesByPart
    prompt_tokens: int
    new_tokens: int
    batch_size: int


def request_cost(
    config: PreTrainedConfig,
    *,
    text_tokens: int,
    new_tokens: int = 1,
    num_visual_tokens: int | Sequence[int] | None = None,
    num_images: int | None = None,
    batch_size: int = 1,
    query_tokens: int | None = None,
    dtype: torch.dtype | None = None,
) -> RequestCost:
    """
    What one request costs.

    Args:
        config: An [`MQTLlavaConfig`], a [`QueCCLlavaConfig`], or transformers' `LlavaConfig`.
        text_tokens: Tokens of a prompt besides the visual tokens, special ones included.
        new_tokens: Tokens of an answer.
        num_visual_tokens: Of all images, or one number for each image of a prompt; by default M. None for QueCC-LLaVA
            and LLaVA, whose number follows from their configuration.
        num_images: Images of a prompt; by default one, or as many as `num_visual_tokens` has entries.
        batch_size: How many such prompts there are, all of the same length.
        query_tokens: Tokens of the question that an image is encoded for, or of the longest where they differ, special
            ones included: the length of `query_input_ids`. For QueCC-LLaVA alone, which needs it; the question's
            tokens in the prompt count to `text_tokens` besides.
        dtype: Of weights and KV cache; by default the configuration's own, or else torch's default.

    Raises:
        TypeError, ValueError: An argument is no positive integer, or the numbers of visual tokens are not possible.
        ValueError: `query_tokens` is missing for QueCC-LLaVA, or given for another model.
        ValueError: A model, vision tower or decoder of a kind whose costs are not known.
    """
    if num_images is None:
        num_images = len(num_visual_tokens) if isinstance(num_visual_tokens, (list, tuple)) else 1
    sizes = {"text_tokens": text_tokens, "new_tokens": new_tokens, "num_images": num_images, "batch_size": batch_size}
    if query_tokens is not None:
        sizes["query_tokens"] = query_tokens
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"`{name}` is {value!r}, but must be an integer.")
        if value < 1:
            raise ValueError(f"`{name}` is {value}, but must be at least 1.")

    images = image_path(config, num_visual_tokens, num_images, batch_size)
    if images.reads_question and query_tokens is None:
        raise ValueError("`query_tokens` is missing: QueCC-LLaVA encodes an image for a question, so pass its length.")
    if query_tokens is not None and not images.reads_question:
        raise ValueError(
            f"`query_tokens` is {query_tokens}, but a {config.model_type!r} encodes images without a question: leave "
            "it out."
        )
    text = decoder(config.text_config, config.tie_word_embeddings)
    prompt_tokens = text_tokens + sum(images.visual_tokens)
    own_dtype: Any = config.dtype  # a name only while it is read from JSON
    item_bytes = (dtype or own_dtype or torch.get_default_dtype()).itemsize
    return RequestCost(
        flops=FlopsByPart(
            vision_tower=images.tower.flops(num_images * batch_size),
            compressor=images.compressor_flops,
            question=num_images * batch_size * text.read_flops(query_tokens or 0),
            prefill=batch_size * text.prefill_flops(prompt_tokens),
            decode=batch_size * text.decode_flops(prompt_tokens, new_tokens - 1),
        ),
        kv_bytes=item_bytes * batch_size * text.cached_numbers(prompt_tokens + new_tokens - 1),
        weight_bytes=WeightBytesByPart(
            vision_tower=item_bytes * images.tower.num_weights,
            compressor=item_bytes * images.compressor_weights,
            decoder=item_bytes * text.num_weights,
        ),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch_size=batch_size,
    )
