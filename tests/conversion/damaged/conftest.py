"""Both commands over originals that are damaged, or not what they seem: one readable line, and nothing is changed."""

import importlib

import pytest

from tests.builders.original_checkpoints import KINDS, Original, content


@pytest.fixture(params=KINDS)
def kind(request):
    """The name of a golden checkpoint of each kind."""
    return request.param


@pytest.fixture
def original(kind, tmp_path):
    return Original(tmp_path / "original", kind)


@pytest.fixture
def main(kind):
    return importlib.import_module(f"mqt_llava.conversion.{KINDS[kind].command}").main


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
