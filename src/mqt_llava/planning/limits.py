"""The most visual tokens that a request can have within limits."""

import math
from bisect import bisect_right
from functools import partial
from numbers import Real

import torch
from transformers import PreTrainedConfig

from .cost import request_cost
from .profile import Profile


def largest_num_visual_tokens(
    config: PreTrainedConfig,
    *,
    flops: float | None = None,
    kv_bytes: float | None = None,
    seconds: float | None = None,
    profile: Profile | None = None,
    text_tokens: int,
    new_tokens: int = 1,
    num_images: int = 1,
    dtype: torch.dtype | None = None,
) -> int:
    """
    The most visual tokens for each image with which one request stays within all limits that are given.

    Args:
        config: An [`MQTLlavaConfig`].
        flops: The most FLOPs of all parts together, counted as in [`request_cost`].
        kv_bytes: The most bytes of the KV cache. The weights need theirs besides.
        seconds: The longest time, as `profile` predicts it.
        profile: What [`measure_profile`] found for this model.
        text_tokens, new_tokens, num_images: As in [`request_cost`].
        dtype: Of the KV cache; by default the profile's, then the configuration's, then torch's default.

    Returns:
        m in 1..M.

    Raises:
        TypeError: A limit is no number.
        ValueError: There is no limit, or one that not even a single visual token for each image fits into.
    """
    passed = {"flops": flops, "kv_bytes": kv_bytes, "seconds": seconds}
    limits = {name: limit for name, limit in passed.items() if limit is not None}
    if not limits:
        raise ValueError("No limit is given: pass `flops`, `kv_bytes` or `seconds`, or several.")
    for name, limit in limits.items():
        if isinstance(limit, bool) or not isinstance(limit, Real):
            raise TypeError(f"`{name}` is {limit!r}, but must be a number.")
        if math.isnan(limit):
            raise ValueError(f"`{name}` is {limit}, but must be a number.")
    if (seconds is None) != (profile is None):
        raise ValueError(
            "`seconds` and `profile` go together: `measure_profile` makes one for this model and machine."
        )
    if not hasattr(config, "max_visual_tokens"):
        raise ValueError(f"A model of kind {config.model_type!r} has no choice of visual tokens.")
    if dtype is None and profile is not None:
        dtype = getattr(torch, profile.dtype)

    def needs(name: str, num_visual_tokens: int) -> float:
        cost = request_cost(
            config,
            text_tokens=text_tokens,
            new_tokens=new_tokens,
            num_visual_tokens=num_visual_tokens,
            num_images=num_images,
            dtype=dtype,
        )
        if name == "seconds" and profile is not None:
            return profile.seconds(cost)
        return cost.flops.total if name == "flops" else cost.kv_bytes

    choices, most = range(1, config.max_visual_tokens + 1), {}
    for name, limit in limits.items():
        # What a request needs never falls with m.
        most[name] = bisect_right(choices, limit, key=partial(needs, name))
        if most[name] == 0:
            raise ValueError(
                f"`{name}` is {limit:,}, but one visual token for each image needs {needs(name, 1):,} already."
            )
    return min(most.values())
