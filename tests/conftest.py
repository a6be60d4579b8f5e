"""Fixtures that test files share: the original checkpoints, converted once per run, and a tiny random model."""

import importlib.util

import pytest
import torch

from mqt_llava import MQTLlavaForConditionalGeneration, MQTLlavaProcessor
from tests.builders.models import random_model
from tests.builders.paths import FIXTURES, GOLDEN_NAMES, QUECC_GOLDEN_NAME


torch.set_num_threads(1)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if item.get_closest_marker("vllm") and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM needs an environment of its own: nox -s vllm")


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """Folders of the converted golden checkpoints by name."""
    from mqt_llava.conversion.convert_mqt_llava import main

    folders = {}
    for name in GOLDEN_NAMES:
        folders[name] = tmp_path_factory.mktemp("converted") / name
        main(["--input", str(FIXTURES / name), "--output", str(folders[name])])
    return folders


@pytest.fixture(scope="session")
def converted_quecc(tmp_path_factory):
    """Folder of the converted golden QueCC checkpoint."""
    from mqt_llava.conversion.convert_quecc_llava import main

    folder = tmp_path_factory.mktemp("converted") / QUECC_GOLDEN_NAME
    main(["--input", str(FIXTURES / QUECC_GOLDEN_NAME), "--output", str(folder)])
    return folder


@pytest.fixture(scope="session")
def processor(converted):
    """A Llama tokenizer and a 336-pixel image processor; M is 256."""
    return MQTLlavaProcessor.from_pretrained(converted[GOLDEN_NAMES[0]])


@pytest.fixture(scope="session")
def golden_model(converted):
    """The converted golden checkpoint in float32, for reading only."""
    return MQTLlavaForConditionalGeneration.from_pretrained(converted[GOLDEN_NAMES[0]], dtype=torch.float32).eval()


@pytest.fixture
def tiny_model() -> MQTLlavaForConditionalGeneration:
    """New for each test."""
    return random_model()
