"""The most visual tokens within limits."""

import random
import re

import pytest
import torch
from transformers import LlavaConfig

from mqt_llava import MQTLlavaConfig, QueCCLlavaConfig
from mqt_llava.planning import Curve, Profile, largest_num_visual_tokens, request_cost
from tests.builders.configs import tiny_config
from tests.builders.random_configs import random_mqt_config


def made_up_profile(config, dtype=torch.float32, flops_per_second=1e9) -> Profile:
    curve = Curve((0, 10**6), (1e-4, 1e-4 + 10**6 / flops_per_second))
    weight_bytes = request_cost(config, text_tokens=1, dtype=dtype).weight_bytes.total
    return Profile(curve, curve, curve, weight_bytes, str(dtype).removeprefix("torch."), "cpu")


def needs_of(name, profile, config, m, **request):
    cost = request_cost(config, num_visual_tokens=m, **request)
    return {"flops": cost.flops.total, "kv_bytes": cost.kv_bytes, "seconds": profile.seconds(cost)}[name]


@pytest.mark.parametrize("name", ["flops", "kv_bytes", "seconds"])
@pytest.mark.parametrize("seed", range(8))
def test_one_more_token_would_not_fit(name, seed):
    rng, config = random.Random(seed), random_mqt_config(seed)
    if hasattr(config.text_config, "sliding_window"):
        config.text_config.sliding_window = None
    profile = made_up_profile(config)
    request = {"text_tokens": rng.randint(1, 20), "new_tokens": rng.randint(1, 5), "num_images": rng.randint(1, 3)}
    more = {"profile": profile} if name == "seconds" else {}
    largest = config.max_visual_tokens
    needs = [needs_of(name, profile, config, m, **request) for m in range(1, largest + 1)]
    assert needs == sorted(set(needs))
    for m, need in enumerate(needs, start=1):
        assert largest_num_visual_tokens(config, **{name: need}, **more, **request) == m
        just_below = need - 1 if name != "seconds" else need * (1 - 1e-9)
        if m > 1:
            assert largest_num_visual_tokens(config, **{name: just_below}, **more, **request) == m - 1
    assert largest_num_visual_tokens(config, **{name: 1000 * needs[-1]}, **more, **request) == largest
    with pytest.raises(ValueError, match=f"`{name}` is .* but one visual token for each image needs .* already"):
        largest_num_visual_tokens(config, **{name: needs[0] * 0.99}, **more, **request)


def test_the_tightest_limit_holds():
    config, request = tiny_config(), {"text_tokens": 8, "new_tokens": 3}
    profile = made_up_profile(config)
    limits = {name: needs_of(name, profile, config, 9, **request) for name in ("flops", "kv_bytes", "seconds")}
    assert largest_num_visual_tokens(config, **limits, profile=profile, **request) == 9
    for name, m in (("flops", 3), ("kv_bytes", 4), ("seconds", 5)):
        tighter = {**limits, name: needs_of(name, profile, config, m, **request)}
        assert largest_num_visual_tokens(config, **tighter, profile=profile, **request) == m


def test_a_larger_limit_is_never_a_smaller_number():
    config = MQTLlavaConfig()
    budgets = [
        largest_num_visual_tokens(config, flops=tera * 1e12, text_tokens=60) for tera in (1.2, 1.5, 2, 3, 4, 100)
    ]
    assert budgets == sorted(budgets) and budgets[-1] == 256 and len(set(budgets)) == 6


def test_a_full_window_sets_no_limit():
    """A cache of sliding windows grows no further, so all budgets beyond fit."""
    config = tiny_config(text_config={"model_type": "mistral", "sliding_window": 6, "vocab_size": 100})
    need = request_cost(config, text_tokens=8, num_visual_tokens=1).kv_bytes
    assert largest_num_visual_tokens(config, kv_bytes=need, text_tokens=8) == 16


def test_bytes_are_those_of_the_dtype():
    config = tiny_config()
    need = request_cost(config, text_tokens=8, num_visual_tokens=4, dtype=torch.bfloat16).kv_bytes
    assert largest_num_visual_tokens(config, kv_bytes=need, text_tokens=8, dtype=torch.bfloat16) == 4
    profile = made_up_profile(config, torch.bfloat16)
    assert largest_num_visual_tokens(config, kv_bytes=need, seconds=9e9, profile=profile, text_tokens=8) == 4


@pytest.mark.parametrize(
    "limits, error, message",
    [
        ({}, ValueError, "No limit is given: pass `flops`, `kv_bytes` or `seconds`"),
        ({"flops": 1}, ValueError, "`flops` is 1, but one visual token for each image needs"),
        ({"flops": float("nan")}, ValueError, "`flops` is nan"),
        ({"kv_bytes": "1 GB"}, TypeError, "`kv_bytes` is '1 GB', but must be a number"),
        ({"kv_bytes": True}, TypeError, "`kv_bytes` is True"),
        ({"seconds": 1.0}, ValueError, "`seconds` and `profile` go together"),
        ({"flops": 1e12, "text_tokens": 0}, ValueError, "`text_tokens` is 0"),
    ],
)
def test_impossible_limits(limits, error, message):
    with pytest.raises(error, match=re.escape(message)):
        largest_num_visual_tokens(tiny_config(), **{"text_tokens": 5, **limits})


def test_the_error_says_what_one_token_needs():
    config = tiny_config()
    need = request_cost(config, text_tokens=5, num_visual_tokens=1).flops.total
    with pytest.raises(
        ValueError, match=re.escape(f"`flops` is 1,000, but one visual token for each image needs {need:,}")
    ):
        largest_num_visual_tokens(config, flops=1000, kv_bytes=10**9, text_tokens=5)


def test_a_profile_without_a_limit_of_seconds():
    config = tiny_config()
    with pytest.raises(ValueError, match="go together"):
        largest_num_visual_tokens(config, flops=1e12, profile=made_up_profile(config), text_tokens=5)


@pytest.mark.parametrize("config", [LlavaConfig(), QueCCLlavaConfig()], ids=lambda config: config.model_type)
def test_models_with_a_fixed_number_have_no_budget(config):
    with pytest.raises(ValueError, match=f"'{config.model_type}' has no choice of visual tokens"):
        largest_num_visual_tokens(config, flops=1e15, text_tokens=5)
