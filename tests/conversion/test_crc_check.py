import pytest
import torch
from safetensors.torch import save_file

from mqt_llava.conversion.conversion_error import ConversionError
from mqt_llava.conversion.crc_check import check_crcs, crc_report


TENSORS = {"a": torch.arange(1000.0), "b": torch.ones(3)}


@pytest.fixture
def zip_file(tmp_path):
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    return tmp_path / "pytorch_model.bin"


def test_right_ones(zip_file):
    assert check_crcs([zip_file]) == ([zip_file], [])
    assert crc_report([zip_file]) == [f"Checked: the CRCs in {zip_file} are right."]


def test_one_flipped_bit(zip_file):
    content = bytearray(zip_file.read_bytes())
    content[content.index(TENSORS["a"].numpy().tobytes()) + 1234] ^= 1
    zip_file.write_bytes(content)
    with pytest.raises(ConversionError, match="--check: .*pytorch_model.bin is damaged: its record .*/data/0 is not"):
        check_crcs([zip_file])


def test_a_damaged_directory(zip_file):
    content = bytearray(zip_file.read_bytes())
    content[content.index(b"PK\x01\x02")] ^= 1
    zip_file.write_bytes(content)
    with pytest.raises(ConversionError, match="--check: .*pytorch_model.bin is damaged: BadZipFile"):
        check_crcs([zip_file])


def test_formats_without_any(tmp_path):
    files = [tmp_path / name for name in ("model.safetensors", "old.bin", "without.bin")]
    save_file(TENSORS, files[0])
    torch.save(TENSORS, files[1], _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TENSORS, files[2])
    finally:
        torch.serialization.set_crc32_options(True)
    assert check_crcs(files) == ([], files)
    (line,) = crc_report(files)
    assert line.startswith("Not checked for damage: ") and all(str(file) in line for file in files)
