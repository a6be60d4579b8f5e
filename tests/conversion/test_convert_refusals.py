"""What no conversion takes, whatever the kind of checkpoint, and what a conversion that fails leaves."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from mqt_llava.conversion import hub_folders, shard_writer, tensor_recipes
from tests.builders.original_checkpoints import KINDS, MQT, PROJECTOR, QUECC, RESAMPLER, VISION, Original
from tests.builders.paths import REPOSITORY


both = pytest.mark.parametrize("kind", KINDS)


# What is refused


@pytest.mark.parametrize(
    "kind, name",
    [
        (MQT, RESAMPLER + "surprise"),
        (MQT, "model.layers.7.mlp.up_proj.weight"),
        (MQT, VISION + "surprise"),
        (MQT, "surprise"),
        (QUECC, PROJECTOR + "0.surprise"),
        (QUECC, PROJECTOR + "4.weight"),
        (QUECC, "model.image_newline"),
    ],
)
def test_unknown_tensor(original, refused, name):
    original.tensors[name] = torch.ones(3)
    assert f"unknown tensors: {name}." in refused(original.save().folder)


@pytest.mark.parametrize(
    "kind, name",
    [
        (MQT, RESAMPLER + "query"),
        (MQT, RESAMPLER + "pos_embed"),
        (MQT, RESAMPLER + "attn.in_proj_weight"),
        (MQT, VISION + "vision_model.encoder.layers.2.mlp.fc1.weight"),
        (MQT, "model.layers.2.mlp.up_proj.weight"),
        (MQT, "lm_head.weight"),
        (QUECC, PROJECTOR + "0.text_projection.0.weight"),
        (QUECC, PROJECTOR + "0.clip_attn.in_proj_weight"),
        (QUECC, PROJECTOR + "0.q_downsample.bias"),
        (QUECC, PROJECTOR + "3.bias"),
        (QUECC, VISION + "vision_model.encoder.layers.22.mlp.fc1.weight"),
        (QUECC, "model.norm.weight"),
    ],
)
def test_missing_tensor(original, refused, name):
    del original.tensors[name]
    assert f"missing tensors: {name}." in refused(original.save().folder)


@pytest.mark.parametrize(
    "kind, name, shape",
    [
        (MQT, RESAMPLER + "proj", (64, 63)),
        (MQT, RESAMPLER + "proj", (2, 3, 4)),
        (MQT, RESAMPLER + "query", (64,)),
        (MQT, RESAMPLER + "query", (256, 63)),
        (MQT, RESAMPLER + "attn.in_proj_weight", (190, 64)),
        (MQT, RESAMPLER + "attn.in_proj_bias", ()),
        (MQT, "lm_head.weight", (999, 64)),
        (MQT, "model.norm.weight", (65,)),
        (QUECC, PROJECTOR + "0.k_proj.0.weight", (64, 192)),
        (QUECC, PROJECTOR + "0.clip_attn.in_proj_weight", (190, 64)),
        (QUECC, PROJECTOR + "0.q_downsample.weight", (64, 1, 6, 6)),
        (QUECC, PROJECTOR + "1.weight", (96, 96)),
    ],
)
def test_wrong_shape(original, refused, name, shape):
    original.tensors[name] = torch.ones(shape)
    assert f"wrong shapes: {name} {list(shape)}" in refused(original.save().folder)


@both
def test_checkpoint_of_the_other_kind(kind, refused, tmp_path):
    (other,) = KINDS.keys() - {kind}
    original = Original(tmp_path / "other", other)
    refusal = (
        f"is a checkpoint of {KINDS[other].title}, not of {KINDS[kind].title}. Use conversion/{KINDS[other].script}."
    )
    assert refusal in refused(original.folder)
    original.without_weights().save_stage_1()
    assert refusal in refused(original.folder)
    assert refusal in refused(original.folder, "--language-model", tmp_path)


def test_many_problems_are_named_together(original, refused):
    for number in range(15):
        original.tensors[f"surprise.{number:02d}"] = torch.ones(1)
    del original.tensors["model.norm.weight"]
    message = refused(original.save().folder)
    assert "missing tensors: model.norm.weight" in message
    assert "surprise.09 and 5 more" in message


def test_number_of_queries_that_is_no_square(original, refused):
    for name in ("query", "pos_embed"):
        original.tensors[RESAMPLER + name] = torch.ones(250, 64)
    assert "`max_visual_tokens` is 250" in refused(original.save().folder)


def test_malicious_pickle(original, refused, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-run"),)

    original.tensors["surprise"] = Malicious()
    message = refused(original.save().folder)
    assert "pytorch_model.bin is refused" in message and "Nothing in it was run" in message


@pytest.mark.parametrize(
    "name, value",
    [
        ("model_type", "llava_qwen"),
        ("mm_use_im_start_end", True),
        ("image_aspect_ratio", "anyres"),
        ("num_visual_tokens", 257),
        ("num_visual_tokens", "third_stage"),
        ("num_visual_tokens", True),
        ("mm_vision_select_layer", -5),
        ("torch_dtype", "int8"),
    ],
)
def test_settings_that_cannot_be_converted(original, refused, name, value):
    original.config[name] = value
    message = refused(original.save().folder)
    assert name in message or name == "torch_dtype" and "Pass --dtype" in message
    assert str(value) in message


def test_without_config(original, refused):
    (original.folder / "config.json").unlink()
    assert "There is no config.json in" in refused(original.folder)


def test_input_that_is_nowhere(refused, tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no connection\nand a long story")

    monkeypatch.setattr(hub_folders, "snapshot_download", unreachable)
    message = refused("someone/some-model")
    assert "--input 'someone/some-model' is no folder, and the Hub does not give it either: no connection" in message
    assert "long story" not in message


def test_vision_tower_that_is_nowhere(original, refused):
    shutil.rmtree(original.vision_tower)
    del original.config["mm_vision_tower"]
    assert "width 64 does not tell the number of heads" in refused(original.save().folder)
    original.tensors = {name: tensor for name, tensor in original.tensors.items() if not name.startswith(VISION)}
    assert "Pass --vision-tower" in refused(original.save().folder)


def test_push_to_hub(original, convert, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, repo_id, exist_ok):
            calls.append(repo_id)

        def upload_folder(self, folder_path, repo_id):
            calls.append({path.name for path in folder_path.iterdir()})

    monkeypatch.setattr(hub_folders, "HfApi", Api)
    convert(original.folder, "--push-to-hub", "someone/some-model")
    assert calls[0] == "someone/some-model" and {"model.safetensors", "README.md", "config.json"} <= calls[1]

    class ConnectError(Exception):
        """As the HTTP library has it: no OSError."""

    def create_repo(self, repo_id, exist_ok):
        raise ConnectError("no connection")

    monkeypatch.setattr(Api, "create_repo", create_repo)
    with pytest.raises(SystemExit, match="'someone/some-model' failed, but .*again is finished"):
        convert(original.folder, "--push-to-hub", "someone/some-model", output="again")


# Whole or not at all


class FullDisk(io.FileIO):
    """A file on a disk with room for 100 kB."""

    def write(self, data):
        if self.tell() > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("options", [[], ["--overwrite", "--dtype", "float16"]])
@both
def test_full_disk(original, convert, refused, monkeypatch, options):
    if "--overwrite" in options:
        convert(original.folder)
    monkeypatch.setattr(shard_writer, "open", FullDisk, raising=False)
    assert "The disk is full" in refused(original.folder, *options)


def test_disk_that_will_be_full(original, refused, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 10**6))
    assert "is too full: 0.0 GB are needed, 0.0 GB are free" in refused(original.folder)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX")
def test_killed_in_the_middle(original, convert, tmp_path):
    slow = (
        "import sys, time\n"
        "from mqt_llava.conversion import convert_mqt_llava as command, tensor_recipes\n"
        "cook = tensor_recipes.Recipe.tensor\n"
        "tensor_recipes.Recipe.tensor = lambda *args: time.sleep(0.2) or cook(*args)\n"
        "command.main(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "--input", str(original.folder), "--output", str(tmp_path / "converted")],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".converted.partial-*/model.safetensors")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "converted").exists()
    assert list(tmp_path.glob(".converted.partial-*"))
    convert(original.folder, "--check")
    assert {path.name for path in tmp_path.iterdir()} == {"original", "converted"}


@both
def test_check_finds_a_wrong_byte(original, refused, monkeypatch):
    write = tensor_recipes.write_shards

    def write_wrongly(folder, *arguments):
        write(folder, *arguments)
        file = folder / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(tensor_recipes, "write_shards", write_wrongly)
    assert "written tensors differ from their sources: " in refused(original.folder, "--check")


@pytest.mark.parametrize("options", [["--dtype", "int8"], ["--max-shard-size", "much"], ["--surprise"]])
def test_arguments_that_are_not_allowed(original, convert, capsys, options):
    with pytest.raises(SystemExit) as caught:
        convert(original.folder, *options)
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err
