"""Weights that are damaged, and files that hold none."""

import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests.builders.original_checkpoints import KINDS, MQT, POINTER, VISION


@pytest.mark.parametrize("part", ["compressor", "vision"])
def test_check_finds_a_flipped_bit(original, kind, refused, part):
    file, tensor = original.folder / "pytorch_model.bin", original.tensors[KINDS[kind].tensor]
    if part == "vision":
        file = original.vision_tower / "pytorch_model.bin"
        tensor = original.move_vision_tower_out()["vision_model.encoder.layers.1.mlp.fc1.weight"]
    damaged = bytearray(file.read_bytes())
    damaged[damaged.index(tensor.numpy().tobytes()) + 2] ^= 1
    file.write_bytes(damaged)
    assert f"--check: {file} is damaged: its record " in refused(original.folder, "--check")


def test_check_says_what_it_could_not_check(original, convert, capsys):
    convert(original.folder, "--check")
    assert f"Checked: the CRCs in {original.folder}/pytorch_model.bin are right." in capsys.readouterr().out
    save_file(original.tensors, original.without_weights().folder / "model.safetensors")
    convert(original.folder, "--check", output="again")
    output = capsys.readouterr().out
    assert f"Not checked for damage: {original.folder}/model.safetensors." in output
    assert "neither safetensors" in output


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["language", "vision", "compressor"])
def test_weights_that_are_no_numbers(original, kind, refused, value, part):
    weight = {
        "language": "lm_head.weight",
        "vision": VISION + "vision_model.encoder.layers.1.mlp.fc1.bias",
        "compressor": KINDS[kind].tensor,
    }[part]
    original.tensors[weight].view(-1)[7] = value
    assert f"NaN or infinite as float32: {weight}." in refused(original.save().folder)


def test_numbers_that_a_dtype_cannot_hold(original, convert, refused):
    original.tensors["model.norm.weight"][3] = 1e5
    convert(original.save().folder, "--dtype", "bfloat16")
    shutil.rmtree(original.folder.parent / "converted")
    assert "NaN or infinite as float16: model.norm.weight." in refused(original.folder, "--dtype", "float16")


@pytest.mark.parametrize(
    "text, message",
    [
        ("<html>Not found</html>", "is no zip file and no pickle"),
        ("", "is no zip file and no pickle"),
        (POINTER, "is a Git-LFS pointer: .* `git lfs pull` in"),
        (b"\x80\x02", "pytorch_model.bin is refused: it is damaged, or a pickle"),
        (b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x01s", "pytorch_model.bin is refused: it is damaged, or a pickle"),
        (b"\x80\x02" + bytes(range(256)), "pytorch_model.bin is refused: it is damaged, or a pickle"),
        (b"PK\x03\x04", "pytorch_model.bin is refused: it is damaged, or a pickle"),
    ],
)
def test_bin_files_that_hold_no_weights(original, refused, text, message):
    original.write("pytorch_model.bin", text)
    refusal = refused(original.folder)
    assert re.search(message, refusal)
    assert "weights_only" not in refusal, "torch's advice is to switch the protection off"


@pytest.mark.parametrize("text", ["", "text", POINTER, b"\x08" + b"\0" * 7 + b"{}      ", b"\xff" * 100])
def test_safetensors_files_that_hold_no_weights(original, refused, text):
    original.without_weights().write("model.safetensors", text)
    message = refused(original.folder)
    assert "model.safetensors is " in message or "missing tensors" in message or "holds no weights" in message


@pytest.mark.parametrize(
    "value, message",
    [
        (torch.empty(1000, 64, device="meta"), "meta"),
        (torch.quantize_per_tensor(torch.ones(1000, 64), 0.1, 0, torch.qint8), "quantised"),
        (torch.eye(1000, 64).to_sparse(), "sparse"),
        (torch.ones(1000, 64, dtype=torch.int8), "not stored as one of .*: lm_head.weight .int8"),
        (torch.ones(1000, 64).to(torch.float8_e4m3fn), "not stored as one of .*: lm_head.weight .float8_e4m3fn"),
        (torch.ones(1000, 64, dtype=torch.complex64), "not stored as one of .*: lm_head.weight .complex64"),
    ],
)
@pytest.mark.parametrize("kind", [MQT])
def test_tensors_that_are_no_weights(original, refused, value, message):
    original.tensors["lm_head.weight"] = value
    assert re.search(message, refused(original.save().folder))


def test_quantised_safetensors(original, refused):
    weight = "model.layers.0.mlp.up_proj.weight"
    original.tensors[weight] = original.tensors[weight].to(torch.int8)
    save_file(original.tensors, original.without_weights().folder / "model.safetensors")
    assert f"not stored as one of float64, float32, float16, bfloat16: {weight} (I8)" in refused(original.folder)
