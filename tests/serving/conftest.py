"""Starts engines and servers."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import pytest


def start_process(**kwargs) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), **kwargs)


@pytest.fixture(scope="session")
def legacy_false(tmp_path_factory):
    """The original checkpoint whose tokenizer has `legacy: false`, converted."""
    from mqt_llava.conversion.convert_mqt_llava import main
    from tests.serving.serving_cases import LEGACY_FALSE, widen_heads

    folder = tmp_path_factory.mktemp("converted") / "legacy_false"
    main(["--input", str(LEGACY_FALSE), "--output", str(folder)])
    widen_heads(folder)
    return folder


@pytest.fixture(scope="session")
def expected(legacy_false):
    """The answers of transformers, by checkpoint."""
    from tests.serving.serving_cases import TINY, TINY_CASES, ask_transformers, golden_cases

    with start_process() as process:
        return {
            "tiny": process.submit(ask_transformers, TINY, TINY_CASES).result(),
            "legacy_false": process.submit(ask_transformers, legacy_false, golden_cases()).result(),
        }


@contextmanager
def engine(checkpoint, **kwargs):
    """vLLM with a checkpoint, as what asks it. It holds over a gigabyte until the end of the `with` block."""
    from tests.serving.serving_cases import ask_engine, start_engine

    with start_process(initializer=start_engine, initargs=(checkpoint, kwargs)) as process:
        yield lambda *arguments: process.submit(ask_engine, *arguments).result()
