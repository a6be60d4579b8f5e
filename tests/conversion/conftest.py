"""Fixtures that run the conversion's command line."""

import pytest
from safetensors.torch import load_file

from tests.builders.original_checkpoints import Original
from tests.builders.paths import FIXTURES, GOLDEN_NAMES


@pytest.fixture
def original(tmp_path):
    return Original(tmp_path / "original")


@pytest.fixture
def main():
    """The command, which the tests of another replace."""
    from mqt_llava.conversion.convert_mqt_llava import main

    return main


@pytest.fixture
def convert(main, tmp_path):
    """Runs the command line, and gives the folder that it made."""

    def run(source, *options, output="converted"):
        main(["--input", str(source), "--output", str(tmp_path / output), *map(str, options)])
        return tmp_path / output

    return run


@pytest.fixture
def refused(convert, tmp_path, capsys):
    """Runs a command line that must fail and leave nothing behind, and gives its message."""

    def run(source, *options):
        before = set(tmp_path.iterdir())
        with pytest.raises(SystemExit) as caught:
            convert(source, *options)
        assert isinstance(caught.value.code, str), "a message, with which Python exits with status 1"
        assert set(tmp_path.iterdir()) == before
        return caught.value.code

    return run


@pytest.fixture(scope="session", params=GOLDEN_NAMES)
def golden(request, tmp_path_factory):
    """(original folder, converted folder) of each golden checkpoint."""
    from mqt_llava.conversion.convert_mqt_llava import main

    output = tmp_path_factory.mktemp("converted") / request.param
    main(["--input", str(FIXTURES / request.param), "--output", str(output), "--check"])
    return FIXTURES / request.param, output


@pytest.fixture(scope="session")
def expected(tmp_path_factory):
    """The tensors of the first golden checkpoint, converted."""
    from mqt_llava.conversion.convert_mqt_llava import main

    output = tmp_path_factory.mktemp("expected") / "converted"
    main(["--input", str(FIXTURES / GOLDEN_NAMES[0]), "--output", str(output)])
    return load_file(output / "model.safetensors")
