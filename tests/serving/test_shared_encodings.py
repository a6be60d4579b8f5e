"""
An image is encoded once for all numbers of visual tokens, and they share the blocks of vLLM's KV cache.

    RANDOM_REQUESTS=2000 nox -s vllm -- -m pytest -m vllm tests/serving/test_shared_encodings.py      asks more
"""

import os

import pytest

from tests.serving.conftest import engine, start_process
from tests.serving.random_cases import random_cases
from tests.serving.serving_cases import LEGACY_FALSE, TINY, Case, ask_transformers


pytestmark = pytest.mark.vllm
CASES = random_cases(int(os.environ.get("RANDOM_REQUESTS", 150)), seed=0)
CHUNKED = {"max_num_batched_tokens": 24, "max_num_seqs": 6, "enable_chunked_prefill": True}
SMALL_CACHES = {"mm_processor_cache_gb": 0, "enable_prefix_caching": False, **CHUNKED}


@pytest.fixture(scope="module")
def theirs():
    with start_process() as process:
        return process.submit(ask_transformers, TINY, CASES).result()


@pytest.mark.parametrize("kwargs", [{}, CHUNKED, SMALL_CACHES, {"enforce_eager": False}], ids=str)
def test_random_requests_get_the_tokens_of_transformers(theirs, kwargs):
    with engine(TINY, **kwargs) as ask:
        answers, encoded = ask(CASES)
    for case, ours, expected in zip(CASES, answers, theirs):
        assert ours == expected, case
    images = {image for case in CASES for image in case.images}
    assert set(encoded) == {16} and len(encoded) >= len(images)
    if kwargs in ({}, {"enforce_eager": False}):
        assert len(encoded) == len(images)


def test_numbers_share_whole_blocks(legacy_false):
    """M is 256. The blocks of 32 that end within the first m visual tokens are those of any other m."""
    image, before, known = LEGACY_FALSE / "images" / "square.png", 0, 0
    with engine(legacy_false, block_size=32) as ask:
        for m in (16, 64, 256, 40, 17, 1):
            (answer,), encoded = ask([Case("<image>\nWhat is it?", (image,), m)])
            assert encoded == ([] if before else [256])
            same = 1 + min(m, known)  # BOS and visual tokens
            assert answer.num_cached == same // 32 * 32, m
            before, known = before + 1, max(m, known)
