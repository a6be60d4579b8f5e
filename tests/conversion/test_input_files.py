import pytest

from mqt_llava.conversion.conversion_error import ConversionError
from mqt_llava.conversion.input_files import read_json, refuse_lfs_pointer
from tests.builders.original_checkpoints import POINTER


def test_reads_an_object(tmp_path):
    (tmp_path / "file.json").write_text('{"a": [1, null]}')
    assert read_json(tmp_path / "file.json") == {"a": [1, None]}


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1]", "is not a JSON object"),
        ("null", "is not a JSON object"),
        ("", "is not readable as JSON"),
        ('{"a": ', "is not readable as JSON"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": -Infinity}', "-Infinity is no number of JSON"),
        ('{"a": ' + "1" * 5000 + "}", "is not readable as JSON"),
        (POINTER, "is a Git-LFS pointer.*`git lfs pull` in"),
        (b"\xff\xfe{}", "is not readable as JSON"),
    ],
)
def test_anything_else(tmp_path, content, message):
    (tmp_path / "file.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConversionError, match=message):
        read_json(tmp_path / "file.json")


def test_no_file(tmp_path):
    with pytest.raises(ConversionError, match="There is no file.json in"):
        read_json(tmp_path / "file.json")
    (tmp_path / "file.json").mkdir()
    with pytest.raises(ConversionError, match="is not readable as JSON"):
        read_json(tmp_path / "file.json")


def test_pointers(tmp_path):
    (tmp_path / "file").write_text(POINTER)
    with pytest.raises(ConversionError, match=f"Git-LFS pointer.*in {tmp_path} gets"):
        refuse_lfs_pointer(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"PK")
    refuse_lfs_pointer(tmp_path / "file")
