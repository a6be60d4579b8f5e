import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mqt_llava.conversion.checkpoint_reader import CheckpointReader
from mqt_llava.conversion.conversion_error import ConversionError
from mqt_llava.conversion.shard_writer import DTYPE_NAMES, TensorSpec, parse_size, write_shards


def specs_of(tensors):
    return {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def test_every_dtype_and_shape_comes_back(tmp_path):
    tensors = {str(dtype): torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype) for dtype in DTYPE_NAMES}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.ones(0, 3), "transposed": torch.rand(3, 5).T}
    files = write_shards(tmp_path, specs_of(tensors), tensors.__getitem__, max_shard_size=10**9)
    assert [file.name for file in files] == ["model.safetensors"] == [file.name for file in tmp_path.iterdir()]
    written = load_file(files[0])
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor)
    with safe_open(files[0], framework="pt") as file:
        assert file.metadata()["format"] == "pt", "which transformers asks for"


def test_shards_stay_under_their_size(tmp_path):
    tensors = {f"layer.{number}.weight": torch.rand(100) for number in range(20)}
    tensors["large"] = torch.rand(2000)
    files = write_shards(tmp_path, specs_of(tensors), tensors.__getitem__, max_shard_size=4000)
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(file.stat().st_size <= 4000 for file in files[:-1])
    assert list(load_file(files[-1])) == ["large"], "a tensor that is too large gets a file of its own"

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * (20 * 100 + 2000)
    assert index["weight_map"].keys() == tensors.keys()
    reader = CheckpointReader(tmp_path)
    assert all(torch.equal(reader.tensor(name), tensor) for name, tensor in tensors.items())


def test_tensors_are_asked_for_one_at_a_time_in_order(tmp_path):
    tensors = {name: torch.rand(10) for name in "dacb"}
    asked = []

    def tensor(name):
        asked.append(name)
        return tensors[name]

    write_shards(tmp_path, specs_of(tensors), tensor, max_shard_size=1200)
    assert asked == list("dacb")


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(2, dtype=torch.float16)])
def test_a_tensor_that_is_not_what_was_announced(tmp_path, wrong):
    with pytest.raises(ConversionError, match="weight is .* but was announced as"):
        write_shards(tmp_path, {"weight": TensorSpec(torch.float32, (2,))}, lambda name: wrong, 10**9)


@pytest.mark.parametrize(
    "text, size",
    [("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("5kb", 5000), ("123", 123), ("7B", 7)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-2GB", "2XB", "two"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="is not a size. Allowed"):
        parse_size(text)
