"""Fixtures that run the conversion's command lines."""

import importlib

import pytest
from safetensors.torch import load_file

from tests.builders.original_checkpoints import KINDS, MQT, QUECC, Original, content
from tests.builders.paths import FIXTURES, GOLDEN_NAMES


@pytest.fixture
def kind():
    """The name of a golden checkpoint, by which a test chooses what it is about."""
    return MQT


@pytest.fixture
def original(kind, tmp_path):
    return Original(tmp_path / "original", kind)


@pytest.fixture
def main(kind):
    return importlib.import_module(f"mqt_llava.conversion.{KINDS[kind].command}").main


@pytest.fixture
def convert(main, tmp_path):
    """Runs the command line, and gives the folder that it made."""

    def run(source, *options, output="converted"):
        main(["--input", str(source), "--output", str(tmp_path / output), *map(str, options)])
        return tmp_path / output

    return run


@pytest.fixture
def refused(convert, tmp_path):
    """Runs a command line that must fail, in one line, without a change to any file, and gives that line."""

    def run(source, *options, **kwargs):
        before = content(tmp_path)
        with pytest.raises(SystemExit) as caught:
            convert(source, *options, **kwargs)
        assert isinstance(caught.value.code, str), "a message, with which Python exits with status 1"
        assert caught.value.code.startswith("error: ") and "\n" not in caught.value.code
        assert content(tmp_path) == before
        return caught.value.code

    return run


@pytest.fixture(params=GOLDEN_NAMES)
def golden(request, converted):
    """(original folder, converted folder) of each golden checkpoint."""
    return FIXTURES / request.param, converted[request.param]


@pytest.fixture
def expected(kind, converted, converted_quecc):
    """The tensors of the golden checkpoint, converted."""
    return load_file({**converted, QUECC: converted_quecc}[kind] / "model.safetensors")
