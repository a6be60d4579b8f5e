import json
import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mqt_llava.conversion.checkpoint_reader import CheckpointReader
from mqt_llava.conversion.conversion_error import ConversionError
from mqt_llava.conversion.shard_writer import DTYPE_NAMES, parse_size, write_shards


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_every_dtype_and_shape_comes_back(tmp_path, dtype):
    tensors = {
        "matrix": torch.rand(2, 3), "scalar": torch.tensor(1.5), "empty": torch.ones(0, 3),
        "transposed": torch.rand(3, 5).T,
    }  # fmt: skip
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    write_shards(tmp_path, shapes_of(tensors), dtype, tensors.__getitem__, max_shard_size=10**9)
    (file,) = tmp_path.iterdir()
    assert file.name == "model.safetensors"
    written = load_file(file)
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert written[name].dtype == dtype
        assert torch.equal(written[name], tensor)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["format"] == "pt", "which transformers asks for"


def test_shards_stay_under_their_size(tmp_path):
    tensors = {f"layer.{number}.weight": torch.rand(100) for number in range(20)}
    tensors = {"first": torch.rand(1), "large": torch.rand(2000), **tensors}
    write_shards(tmp_path, shapes_of(tensors), torch.float32, tensors.__getitem__, max_shard_size=4000)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert [list(load_file(file)) for file in files if file.stat().st_size > 4000] == [["large"]]

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * (1 + 20 * 100 + 2000)
    assert index["weight_map"].keys() == tensors.keys()
    reader = CheckpointReader(tmp_path)
    assert all(torch.equal(reader.tensor(name), tensor) for name, tensor in tensors.items())


def test_tensors_are_asked_for_in_order_and_held_one_at_a_time(tmp_path):
    asked, given = [], []

    def tensor(name):
        assert not any(ref() is not None for ref in given)
        asked.append(name)
        made = torch.rand(10)
        given.append(weakref.ref(made))
        return made

    write_shards(tmp_path, dict.fromkeys("dacb", (10,)), torch.float32, tensor, max_shard_size=1200)
    assert asked == list("dacb")


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(2, dtype=torch.float16)])
def test_a_tensor_that_is_not_what_was_announced(tmp_path, wrong):
    with pytest.raises(ConversionError, match="weight is .* but was announced as"):
        write_shards(tmp_path, {"weight": (2,)}, torch.float32, lambda name: wrong, 10**9)


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
