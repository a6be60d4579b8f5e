import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mqt_llava.conversion.checkpoint_reader import CheckpointReader
from mqt_llava.conversion.conversion_error import ConversionError


TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "c": torch.tensor(3, dtype=torch.int64),
}
SHARDS = [{"a": TENSORS["a"]}, {"b": TENSORS["b"], "c": TENSORS["c"]}]


def write_checkpoint(folder: Path, suffix: str, is_sharded: bool, has_index: bool) -> None:
    save, stem = (save_file, "model") if suffix == "safetensors" else (torch.save, "pytorch_model")
    if not is_sharded:
        save(TENSORS, folder / f"{stem}.{suffix}")
        return
    weight_map = {}
    for number, shard in enumerate(SHARDS, start=1):
        name = f"{stem}-{number:05d}-of-{len(SHARDS):05d}.{suffix}"
        save(shard, folder / name)
        weight_map.update(dict.fromkeys(shard, name))
    if has_index:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("is_sharded, has_index", [(False, False), (True, False), (True, True)])
def test_reads_every_kind_of_files(tmp_path, suffix, is_sharded, has_index):
    write_checkpoint(tmp_path, suffix, is_sharded, has_index)
    torch.save({"lr": 1e-3}, tmp_path / "training_args.bin")
    reader = CheckpointReader(tmp_path)
    assert set(reader.keys()) == TENSORS.keys()
    assert "a" in reader and "d" not in reader
    for name, tensor in TENSORS.items():
        assert reader.shape(name) == tuple(tensor.shape)
        assert reader.tensor(name).dtype == tensor.dtype
        assert torch.equal(reader.tensor(name), tensor)


def test_reads_one_file(tmp_path):
    torch.save(SHARDS[0], tmp_path / "anything.bin")
    assert CheckpointReader(tmp_path / "anything.bin").keys() == ["a"]


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-run"),)

    torch.save({"a": torch.ones(1), "b": Malicious()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="pytorch_model.bin is refused: .*mkdir.*Nothing in it was run"):
        CheckpointReader(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(ConversionError, match="pytorch_model.bin is refused: .*Nothing in it was run"):
        CheckpointReader(tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_old_format_is_read_with_a_note(tmp_path, caplog):
    torch.save(SHARDS[0], tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(CheckpointReader(tmp_path).tensor("a"), TENSORS["a"])
    assert "cannot be mapped" in caplog.text


def test_missing_shard(tmp_path):
    write_checkpoint(tmp_path, "bin", is_sharded=True, has_index=True)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ConversionError, match="do not lie beside it: pytorch_model-00002-of-00002.bin"):
        CheckpointReader(tmp_path)


def test_index_that_points_elsewhere(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other/model.safetensors"}}')
    with pytest.raises(ConversionError, match="do not lie beside it"):
        CheckpointReader(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ConversionError, match="no readable `weight_map`"):
        CheckpointReader(tmp_path)


def test_a_name_in_two_shards(tmp_path):
    torch.save(SHARDS[0], tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save(SHARDS[0], tmp_path / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(ConversionError, match="another shard holds too: a"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"state_dict": {"a": torch.ones(1)}}, {"step": 3}])
def test_anything_else_than_tensors(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="not a dictionary of tensors|entries that are not tensors"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("suffix, name", [("bin", "pytorch_model.bin"), ("safetensors", "model.safetensors")])
def test_truncated_file(tmp_path, suffix, name):
    write_checkpoint(tmp_path, suffix, is_sharded=False, has_index=False)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ConversionError, match=f"{name} is "):
        CheckpointReader(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(ConversionError, match="holds no weights"):
        CheckpointReader(tmp_path)
    with pytest.raises(ConversionError, match="There is no checkpoint"):
        CheckpointReader(tmp_path / "nowhere")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_reading_takes_no_anonymous_memory(tmp_path, suffix):
    def anonymous_kilobytes():
        return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    size = 64 * 2**20
    big = {"big": torch.ones(size, dtype=torch.uint8)}
    if suffix == "bin":
        torch.save(big, tmp_path / "pytorch_model.bin")
    else:
        save_file(big, tmp_path / "model.safetensors")
    del big
    before = anonymous_kilobytes()
    tensor = CheckpointReader(tmp_path).tensor("big")
    assert tensor.sum() == size
    assert anonymous_kilobytes() - before < size / 2**10 / 4
