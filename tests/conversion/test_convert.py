"""What goes into a conversion and what comes out, whatever the kind of checkpoint."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from mqt_llava.conversion.checkpoint_reader import CheckpointReader
from tests.builders.original_checkpoints import KINDS, MQT, QUECC, VISION, assert_same_tensors


EMBEDDINGS = ("model.language_model.embed_tokens.weight", "lm_head.weight")
both = pytest.mark.parametrize("kind", KINDS)


# What comes out


@pytest.mark.parametrize("name", EMBEDDINGS)
@both
def test_new_row_is_the_mean(original, expected, name):
    old, new = original.tensors[name.replace("language_model.", "")], expected[name]
    assert new.shape == (1001, old.shape[1])
    assert torch.equal(new[:1000], old)
    torch.testing.assert_close(new[1000:], old.mean(0).expand(1, -1))


def test_generation_config_leaves_greedy_greedy(original, convert):
    settings = {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9, "top_p": 0.6, "do_sample": True}
    original.write("generation_config.json", json.dumps(settings))
    config = GenerationConfig.from_pretrained(convert(original.folder))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert not config.do_sample and config.temperature in (None, 1.0) and config.top_p in (None, 1.0)


@pytest.mark.parametrize("ratio, do_pad", [("pad", True), ("square", False), (None, False)])
def test_padding_follows_the_aspect_ratio_setting(original, convert, ratio, do_pad):
    original.config["image_aspect_ratio"] = ratio
    assert AutoProcessor.from_pretrained(convert(original.save().folder)).image_processor.do_pad == do_pad


@pytest.mark.parametrize("kind, dtype", [(MQT, "bfloat16"), (MQT, "float16"), (MQT, "float32"), (QUECC, "bfloat16")])
def test_dtype(original, convert, expected, dtype):
    folder = convert(original.folder, "--dtype", dtype, "--check")
    dtype = getattr(torch, dtype)
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert all(torch.equal(tensors[name], expected[name].to(dtype)) for name in expected.keys() - set(EMBEDDINGS))
    assert AutoConfig.from_pretrained(folder).dtype == dtype
    assert AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").dtype == dtype


def test_dtype_of_the_original_is_kept(original, convert):
    original.tensors = {name: tensor.half() for name, tensor in original.tensors.items()}
    original.config["torch_dtype"] = "float16"
    assert CheckpointReader(convert(original.save().folder)).tensor("lm_head.weight").dtype == torch.float16
    del original.config["torch_dtype"]
    again = convert(original.save().folder, output="again")
    assert CheckpointReader(again).tensor("lm_head.weight").dtype == torch.float16


@both
def test_output_in_shards(original, convert, expected, capsys):
    folder = convert(original.folder, "--max-shard-size", "500KB", "--check")
    assert f"all {len(expected)} tensors equal their sources" in capsys.readouterr().out
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 3 and all(shard.stat().st_size <= 500_000 for shard in shards)
    assert_same_tensors(folder, expected)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert torch.equal(model.lm_head.weight, expected["lm_head.weight"])


# What goes in


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_sharded_input(original, convert, expected, suffix):
    assert_same_tensors(convert(original.save_in_shards(suffix).folder, "--check"), expected)


def test_old_buffers_are_dropped(original, convert, expected):
    original.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    original.tensors[VISION + "vision_model.embeddings.position_ids"] = torch.arange(577)[None]
    assert_same_tensors(convert(original.save().folder), expected)


@pytest.mark.parametrize("kind, place", [(MQT, "inside"), (MQT, "beside"), (MQT, "argument"), (QUECC, "argument")])
def test_vision_tower_outside(original, convert, expected, place):
    original.move_vision_tower_out()
    options = []
    if place == "beside":
        original.vision_tower.rename(original.folder.parent / "openai-clip-tiny")
    elif place == "argument":
        options = ["--vision-tower", original.vision_tower.rename(original.folder.parent / "clip")]
    assert_same_tensors(convert(original.folder, *options, "--check"), expected)


def test_vision_tower_out_of_a_whole_clip(original, convert, expected):
    tensors, tower = original.move_vision_tower_out(), original.vision_tower
    tensors |= {
        "logit_scale": torch.tensor(4.6),
        "text_model.embeddings.token_embedding.weight": torch.ones(4, 4),
        "text_model.embeddings.position_ids": torch.arange(4)[None],
        "vision_model.embeddings.position_ids": torch.arange(577)[None],
        "visual_projection.weight": torch.ones(4, 4),
        "text_projection.weight": torch.ones(4, 4),
    }
    torch.save(tensors, tower / "pytorch_model.bin")
    vision_config = json.loads((tower / "config.json").read_text())
    (tower / "config.json").write_text(
        json.dumps({"model_type": "clip", "vision_config": vision_config, "text_config": {}, "projection_dim": 32})
    )
    # As OpenAI's own files have it: numbers instead of dictionaries.
    original.edit(tower / "preprocessor_config.json", size=336, crop_size=336)
    folder = convert(original.folder, "--check")
    assert_same_tensors(folder, expected)
    image_processor = AutoProcessor.from_pretrained(folder).image_processor
    assert image_processor.size["shortest_edge"] == 336
    assert image_processor.crop_size["height"] == image_processor.crop_size["width"] == 336


@pytest.fixture
def stage_1(original, tmp_path):
    """The original after stage 1, and its language model as transformers saves it."""
    return original.to_stage_1(tmp_path / "vicuna"), tmp_path / "vicuna"


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
@both
def test_stage_1(stage_1, convert, expected, prefix):
    original, language_model = stage_1
    folder = convert(original.save_stage_1(prefix).folder, "--language-model", language_model, "--check")
    assert_same_tensors(folder, expected)
    assert AutoConfig.from_pretrained(folder).text_config.rope_parameters["rope_theta"] == 10000.0


def test_stage_1_with_a_tied_head(stage_1, convert):
    original, language_model = stage_1
    original.edit(language_model / "config.json", tie_word_embeddings=True)
    folder = convert(original.folder, "--language-model", language_model, "--check")
    assert "lm_head.weight" not in CheckpointReader(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.lm_head.weight is model.get_input_embeddings().weight


@both
def test_stage_1_needs_its_language_model(stage_1, kind, refused):
    original, language_model = stage_1
    message = refused(original.folder)
    assert f"holds a stage-1 {KINDS[kind].stage_1_file} alone. Pass --language-model" in message
    del original.tensors[KINDS[kind].tensor]
    message = refused(original.save_stage_1().folder, "--language-model", language_model)
    assert f"missing tensors: {KINDS[kind].tensor}." in message


@both
def test_language_model_without_stage_1(original, kind, refused):
    message = refused(original.folder, "--language-model", original.vision_tower)
    assert f"has no {KINDS[kind].stage_1_file}" in message
