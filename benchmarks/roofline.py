"""
The least time that a device can take: FLOPs over its rate of matrix products, or bytes over its rate of copies,
whichever is more.

FLOPs are the closed forms of `mqt_llava.planning`, with causal attention in full. Bytes are weights, read once for
each pass, and keys and values: those of a prompt are written, those before a decoded token are read. Activations are
left out, so are embeddings, of which few rows are read. Parts that wait for one another, such as image path and
prompt, each have their own limit, and their times add up.

Both rates are measured on the device: the fastest of several large square products, of random numbers since zeros draw
less power and so run faster; and a copy within the device's memory, which reads and writes, so moves twice its size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from harness import time_call
from transformers import PreTrainedConfig

from mqt_llava.planning import request_cost
from mqt_llava.planning.decoders import decoder


WARM_UP, IN_A_ROW, TRIALS = 3, 10, 3


@dataclass(frozen=True)
class Rates:
    """FLOPs and bytes in a second."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Work:
    flops: float
    bytes: float

    def seconds(self, rates: Rates) -> float:
        return max(self.flops / rates.flops, self.bytes / rates.bytes)


def least_seconds(function: Callable, device: str) -> float:
    """Of several trials, each of which runs the function several times in a row."""

    def run(times: int) -> None:
        for _ in range(times):
            function()

    run(WARM_UP)
    return min(time_call(partial(run, IN_A_ROW), device) for _ in range(TRIALS)) / IN_A_ROW


def measure_rates(device: str, dtype: torch.dtype, sides: tuple[int, ...], copy_bytes: int) -> Rates:
    """
    Args:
        sides: Of the square matrices that are multiplied.
        copy_bytes: Of the tensor that is copied; several times the device's cache.
    """
    products = []
    for side in sides:
        a, b, out = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(3))
        products.append(2 * side**3 / least_seconds(partial(torch.mm, a, b, out=out), device))
    source = torch.randn(copy_bytes // dtype.itemsize, device=device, dtype=dtype)
    target = torch.empty_like(source)
    return Rates(max(products), 2 * copy_bytes / least_seconds(partial(target.copy_, source), device))


def decoder_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Of the decoder's weights that each pass reads: all but embeddings that are not the head too."""
    text = decoder(config.text_config, config.tie_word_embeddings)
    return dtype.itemsize * (text.num_weights - (0 if text.is_tied else text.head_weights))


def work_by_metric(
    config: PreTrainedConfig, m: int | None, batch: int, text_tokens: int, new_tokens: int, dtype: torch.dtype
) -> dict[str, list[Work]]:
    """
    What each metric of the benchmark has to do, in parts that wait for one another.

    Args:
        m: Visual tokens; None for LLaVA.
        new_tokens: Of a whole answer, at least 2.
    """
    cost = request_cost(
        config, text_tokens=text_tokens, new_tokens=new_tokens, num_visual_tokens=m, batch_size=batch, dtype=dtype
    )
    weights, flops, steps = cost.weight_bytes, cost.flops, new_tokens - 1
    text, read = decoder(config.text_config, config.tie_word_embeddings), decoder_bytes(config, dtype)

    def kv_bytes(tokens: float) -> float:
        return dtype.itemsize * batch * text.cached_numbers(1) * tokens  # no sliding window here

    image = Work(flops.vision_tower + flops.compressor, weights.vision_tower + weights.compressor)
    prefill = Work(flops.prefill, read + kv_bytes(cost.prompt_tokens))
    # Step s of 1..steps attends to prompt_tokens + s tokens.
    step = Work(flops.decode / steps, read + kv_bytes(cost.prompt_tokens + new_tokens / 2))
    return {
        "image_path": [image],
        "prefill": [prefill],
        "first_token": [image, prefill],
        "per_token": [step],
        "generate": [image, prefill, *[step] * steps],
    }


def roofline(parts: list[Work], rates: Rates) -> dict[str, float]:
    return {
        "flops": sum(part.flops for part in parts),
        "bytes": sum(part.bytes for part in parts),
        "roofline": sum(part.seconds(rates) for part in parts),
    }
