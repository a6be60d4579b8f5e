"""Configs that hold anything."""

import shutil
import time

import pytest
import torch

from mqt_llava.conversion import hub_folders
from tests.builders.original_checkpoints import POINTER, VISION


DEEP = '{"a":' + "[" * 100_000


@pytest.mark.parametrize(
    "name, value",
    [
        ("vocab_size", "1000"),
        ("vocab_size", 10**12),
        ("vocab_size", None),
        ("hidden_size", "64"),
        ("hidden_size", 0),
        ("num_hidden_layers", "3"),
        ("num_hidden_layers", -1),
        ("num_attention_heads", 0),
        ("num_attention_heads", [4]),
        ("num_key_value_heads", 3),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", "10000"),
        ("rope_theta", True),
        ("rope_scaling", {"type": "surprise", "factor": 2.0}),
        ("rope_scaling", [1]),
        ("hidden_act", "surprise"),
        ("hidden_act", None),
        ("tie_word_embeddings", "yes"),
        ("max_position_embeddings", {}),
        ("torch_dtype", ["float16"]),
        ("torch_dtype", {}),
        ("mm_vision_select_layer", "-2"),
        ("mm_vision_select_layer", True),
        ("mm_vision_tower", 3),
        ("mm_vision_tower", ["openai-clip-tiny"]),
        ("mm_use_im_start_end", {}),
        ("model_type", ["llava_llama"]),
    ],
)
def test_config_values_of_wrong_types(original, refused, monkeypatch, name, value):
    monkeypatch.setattr(hub_folders, "snapshot_download", lambda *args, **kwargs: pytest.fail("must not be asked"))
    original.config[name] = value
    refused(original.save().folder)


@pytest.mark.parametrize(
    "name, value",
    [
        ("num_hidden_layers", "4"),
        ("num_attention_heads", 0),
        ("patch_size", 0),
        ("image_size", None),
        ("image_size", [336, 224]),
        ("hidden_act", "surprise"),
        ("model_type", {}),
        ("num_channels", 1),
        ("layer_norm_eps", "small"),
    ],
)
def test_vision_config_values_of_wrong_types(original, refused, name, value):
    original.edit(original.vision_tower / "config.json", **{name: value})
    refused(original.folder)


@pytest.mark.parametrize(
    "name, value",
    [
        ("image_mean", "0.5"),
        ("image_mean", False),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", [0.5, True, 0.5]),
        ("do_normalize", "false"),
        ("image_mean", ["0.5", "0.5", "0.5"]),
        ("image_std", [0, 0, 0]),
        ("size", "large"),
        ("size", -1),
        ("crop_size", 224),
        ("resample", 99),
        ("rescale_factor", "1/255"),
    ],
)
def test_preprocessing_of_wrong_types(original, refused, name, value):
    original.edit(original.vision_tower / "preprocessor_config.json", **{name: value})
    message = refused(original.folder)
    assert "preprocessor_config.json" in message or "image processor" in message


@pytest.mark.parametrize("what", ["language model", "vision tower"])
def test_a_million_layers_are_refused_at_once(original, refused, what):
    folder = original.folder if what == "language model" else original.vision_tower
    original.edit(folder / "config.json", num_hidden_layers=10**6)
    start = time.process_time()
    message = refused(original.folder)
    assert f"num_hidden_layers of the {what}" in message and "but there are weights of " in message
    assert time.process_time() - start < 3, "nearly all of it reads and compares the files"


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "text", ["", "null", "[]", '{"a":' + "[" * 100_000, '{"rms_norm_eps": NaN}', POINTER, b"\xff"]
)
def test_json_files_that_are_none(original, refused, file, text):
    original.write(file, text)
    assert f"{file} is " in refused(original.folder)


@pytest.mark.parametrize(
    "file",
    ["generation_config.json", "tokenizer_config.json", "openai-clip-tiny/preprocessor_config.json"],
)
def test_optional_files_that_cannot_be_read_are_not_missing_files(original, refused, file):
    (original.folder / file).unlink()
    (original.folder / file).symlink_to("nowhere")
    assert f"{file} is a link to a file that is not there" in refused(original.folder)
    (original.folder / file).unlink()
    (original.folder / file).mkdir()
    assert f"{file} is not readable as JSON" in refused(original.folder)


@pytest.mark.parametrize("text", ["", "null", DEEP, POINTER, b"\xff"])
def test_json_files_of_the_vision_tower_that_are_none(original, refused, text):
    for file in ("config.json", "preprocessor_config.json"):
        good = (original.vision_tower / file).read_bytes()
        original.write(original.vision_tower / file, text)
        assert f"{file} is " in refused(original.folder)
        original.write(original.vision_tower / file, good)


def test_a_vision_tower_without_config_and_odd_tensors(original, refused):
    shutil.rmtree(original.vision_tower)
    del original.config["mm_vision_tower"]
    for suffix, shape in (("embeddings.class_embedding", (3, 4)), ("embeddings.class_embedding", ())):
        original.tensors[f"{VISION}vision_model.{suffix}"] = torch.ones(shape)
        assert "has not 1 dimensions" in refused(original.save().folder)
    original.tensors[f"{VISION}vision_model.embeddings.class_embedding"] = torch.ones(768)
    original.tensors[f"{VISION}vision_model.embeddings.position_embedding.weight"] = torch.ones(0, 768)
    refused(original.save().folder)
    del original.tensors[f"{VISION}vision_model.embeddings.patch_embedding.weight"]
    assert "has no tensor " in refused(original.save().folder)


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", "---\nlicense: [a\n---\n", "---\nlicense: {a: b}\n---\n", "---\n- 1\n---\n"]
)
def test_a_card_that_cannot_be_read_is_no_obstacle(original, convert, text):
    original.write("README.md", text)
    convert(original.folder)
