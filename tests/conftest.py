"""Fixtures that test files share: the original checkpoints, converted once per run, and a tiny random model."""

import pytest
import torch

from mqt_llava import MQTLlavaForConditionalGeneration, MQTLlavaProcessor
from tests.builders.configs import tiny_config
from tests.builders.paths import FIXTURES, GOLDEN_NAMES, QUECC_GOLDEN_NAME


torch.set_num_threads(1)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


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
    """A model with random weights, new for each test. Its weights are large enough for images to change the answer."""
    torch.manual_seed(0)
    model = MQTLlavaForConditionalGeneration(tiny_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    model.generation_config.eos_token_id = None  # so that every answer has the length that was asked for
    return model
