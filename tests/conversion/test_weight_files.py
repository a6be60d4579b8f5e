import json

import pytest

from mqt_llava.conversion.conversion_error import ConversionError
from mqt_llava.conversion.weight_files import find_weight_files


SAFETENSORS_INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
SAFETENSORS_SHARDS = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
BIN_SHARDS = [f"pytorch_model-{number:05d}-of-00002.bin" for number in (1, 2)]
OTHERS = ["adapter_model.safetensors", "model_ema.safetensors", "pytorch_model_fsdp.bin", "training_args.bin"]
# Each wins over all that come after it.
ORDER = [
    [SAFETENSORS_INDEX, *SAFETENSORS_SHARDS],
    ["model.safetensors"],
    [BIN_INDEX, *BIN_SHARDS],
    ["pytorch_model.bin"],
    SAFETENSORS_SHARDS,
    BIN_SHARDS,
    [],
]


def lay(folder, names):
    for name in names:
        shards = SAFETENSORS_SHARDS if name == SAFETENSORS_INDEX else BIN_SHARDS
        content = {"weight_map": {f"tensor.{shard}": shard for shard in shards}}
        (folder / name).write_text(json.dumps(content) if name.endswith(".json") else "")


def find(folder):
    return [file.name for file in find_weight_files(folder)]


@pytest.mark.parametrize("place", range(len(ORDER)))
def test_order(tmp_path, place):
    lay(tmp_path, OTHERS)
    for names in ORDER[place:]:
        lay(tmp_path, names)
    if place > 2 and place != 4:
        for name in SAFETENSORS_SHARDS:
            (tmp_path / name).unlink(missing_ok=True)
    assert find(tmp_path) == [name for name in ORDER[place] if not name.endswith(".json")]


def test_an_index_of_bin_beside_another_safetensors_file(tmp_path):
    lay(tmp_path, [BIN_INDEX, *BIN_SHARDS, "model_vision.safetensors", "mm.safetensors"])
    assert find(tmp_path) == BIN_SHARDS


@pytest.mark.parametrize(
    "names, message",
    [
        ([BIN_INDEX, BIN_SHARDS[0], "pytorch_model.bin"], f"do not lie beside it: {BIN_SHARDS[1]}"),
        ([SAFETENSORS_SHARDS[1]], "holds 1 of 2 shards, and no index: model-00002-of-00002.safetensors"),
        (["model-00000-of-00002.safetensors", SAFETENSORS_SHARDS[0]], "holds 2 of 2 shards, and no index"),
        ([*BIN_SHARDS, "pytorch_model-00001-of-00003.bin"], "of several checkpoints: .* of 2 and 3 files"),
        (["model-00001-of-99999999999.safetensors"], "holds 1 of 99999999999 shards"),
    ],
)
def test_shards_that_are_not_complete(tmp_path, names, message):
    lay(tmp_path, names)
    with pytest.raises(ConversionError, match=message):
        find_weight_files(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["null", "{}", '{"weight_map": null}', '{"weight_map": {}}', '{"weight_map": {"a": null}}', '{"weight_map": "a"}']
    + ['{"weight_map": {"a": ["b"]}}', '{"weight_map":' + "[" * 100_000, '{"weight_map": {"a": NaN}}', ""],
)
def test_an_index_that_is_none(tmp_path, content):
    (tmp_path / BIN_INDEX).write_text(content)
    with pytest.raises(ConversionError, match=f"{BIN_INDEX} is not"):
        find_weight_files(tmp_path)


@pytest.mark.parametrize(
    "there, asked, found",
    [
        ([BIN_INDEX, *BIN_SHARDS, "mm.safetensors"], [["model.safetensors"], BIN_SHARDS], BIN_SHARDS),
        (["model.safetensors", BIN_INDEX, *BIN_SHARDS], [["model.safetensors"]], ["model.safetensors"]),
        ([SAFETENSORS_INDEX, *SAFETENSORS_SHARDS], [SAFETENSORS_SHARDS], SAFETENSORS_SHARDS),
        (["pytorch_model.bin"], [["model.safetensors"], ["pytorch_model.bin"]], ["pytorch_model.bin"]),
    ],
)
def test_no_more_is_fetched_than_is_needed(tmp_path, there, asked, found):
    lay(tmp_path, [name for name in there if name.endswith(".json")])
    calls = []

    def fetch(names):
        calls.append(names)
        lay(tmp_path, set(names) & set(there))

    assert [file.name for file in find_weight_files(tmp_path, fetch)] == found
    assert calls == asked
