import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from mqt_llava import MQTLlavaConfig, MQTLlavaForConditionalGeneration, MQTLlavaProcessor
from mqt_llava.conversion.checkpoint_reader import CheckpointReader
from tests.builders.original_checkpoints import RESAMPLER, VISION, assert_same_tensors


def split_in_two(tensors):
    names = list(tensors)
    return {name: tensors[name] for name in names[::2]}, {name: tensors[name] for name in names[1::2]}


# What comes out


@pytest.mark.parametrize("case", ["q0.m1", "q1.m16", "q2.m256"])
def test_golden_logits_and_answers(golden, case):
    original, converted = golden
    cases = {item["key"]: item for item in json.loads((original / "golden.json").read_text())["cases"]}
    golden_tensors = load_file(original / "golden.safetensors")
    model = MQTLlavaForConditionalGeneration.from_pretrained(converted).eval()
    processor = MQTLlavaProcessor.from_pretrained(converted)
    inputs = processor(
        images=Image.open(original / "images" / cases[case]["image"]),
        text=cases[case]["prompt"],
        num_visual_tokens=cases[case]["num_visual_tokens"],
        return_tensors="pt",
    )
    pixels = golden_tensors[f"pixel_values_every_7th.{cases[case]['image']}"]
    torch.testing.assert_close(inputs["pixel_values"][0, :, ::7, ::7], pixels, rtol=0, atol=1e-6)

    logits = golden_tensors[f"{case}.last_logits"]
    with torch.no_grad():
        last_logits = model(**inputs).logits[0, -1]
    assert (last_logits[: len(logits)] - logits).abs().max() <= 1e-5 * logits.abs().max()
    assert last_logits[len(logits) :].max() < logits.max(), "new tokens are never the most likely ones"

    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    # The original was generated from embeddings, so what it returned begins with a lone BOS.
    assert answer.tolist() == golden_tensors[f"{case}.generated"].tolist()[-12:]


def test_tensors_are_the_originals(golden):
    original, converted = golden
    old = torch.load(original / "pytorch_model.bin", weights_only=True)
    new = load_file(converted / "model.safetensors")
    assert torch.equal(new["model.resampler.query"], old[RESAMPLER + "query"])
    assert torch.equal(new["model.resampler.query_positions"], old[RESAMPLER + "pos_embed"])
    assert torch.equal(new["model.resampler.proj.weight"], old[RESAMPLER + "proj"].T)
    for kind in ("weight", "bias"):
        joint = torch.cat([new[f"model.resampler.{name}_proj.{kind}"] for name in "qkv"])
        assert torch.equal(joint, old[RESAMPLER + f"attn.in_proj_{kind}"])
    assert "model.vision_tower.encoder.layers.2.mlp.fc1.weight" in new
    assert not any("vision_tower.encoder.layers.3." in name for name in new)


@pytest.mark.parametrize("new_name", ["model.language_model.embed_tokens.weight", "lm_head.weight"])
def test_new_row_is_the_mean(golden, new_name):
    old = torch.load(golden[0] / "pytorch_model.bin", weights_only=True)[new_name.replace("language_model.", "")]
    new = load_file(golden[1] / "model.safetensors")[new_name]
    assert new.shape == (1001, 64)
    assert torch.equal(new[:1000], old)
    torch.testing.assert_close(new[1000:], old.mean(0).expand(1, -1))


def test_config_says_what_the_model_is(golden):
    config = MQTLlavaConfig.from_pretrained(golden[1])
    assert config.architectures == ["MQTLlavaForConditionalGeneration"]
    assert config.dtype == torch.float32
    assert (config.image_token_id, config.max_visual_tokens, config.resampler_num_attention_heads) == (1000, 256, 16)
    assert (config.vision_config.num_hidden_layers, config.vision_feature_layer) == (3, -1)
    assert config.vision_config.num_attention_heads == 4
    assert config.text_config.vocab_size == 1001
    assert config.text_config.rope_parameters["rope_theta"] == 10000.0
    auto_map = json.loads((golden[1] / "config.json").read_text())["auto_map"]
    assert auto_map == MQTLlavaConfig.remote_classes
    for name in auto_map.values():
        assert (golden[1] / f"{name.split('.')[0]}.py").is_file()
    assert (golden[1] / "adaptive_decoding.py").is_file(), "what the code files import travels with them"


def test_generation_config_leaves_greedy_greedy(original, convert):
    original.save()
    (original.folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9, "top_p": 0.6, "do_sample": True})
    )
    config = GenerationConfig.from_pretrained(convert(original.folder))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert not config.do_sample and config.temperature in (None, 1.0) and config.top_p in (None, 1.0)


def test_model_card(original, convert):
    (original.folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\nThe original.\n")
    card = (convert(original.folder) / "README.md").read_text()
    front_matter = card.split("---\n")[1].splitlines()
    for line in ("license: cc-by-nc-4.0", "library_name: transformers", "pipeline_tag: image-text-to-text"):
        assert line in front_matter
    assert "- mqt-llava" in front_matter
    assert "`original`" in card and str(original.folder) not in card, "names the source, but not whose disk it was on"


@pytest.mark.parametrize(
    "setting, default",
    [("second_stage", None), ("first_stage", None), (None, None), (16, 16), ("16", 16)],
)
def test_default_number_of_visual_tokens(original, convert, setting, default):
    original.config["num_visual_tokens"] = setting
    processor = MQTLlavaProcessor.from_pretrained(convert(original.save().folder))
    assert processor.num_visual_tokens == default
    assert processor.max_visual_tokens == 256


@pytest.mark.parametrize("ratio, do_pad", [("pad", True), ("square", False), (None, False)])
def test_padding_follows_the_aspect_ratio_setting(original, convert, ratio, do_pad):
    original.config["image_aspect_ratio"] = ratio
    assert MQTLlavaProcessor.from_pretrained(convert(original.save().folder)).image_processor.do_pad == do_pad


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype(original, convert, expected, dtype):
    folder = convert(original.folder, "--dtype", dtype, "--check")
    dtype = getattr(torch, dtype)
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    name = "model.resampler.query_positions"
    assert torch.equal(tensors[name], expected[name].to(dtype))
    assert MQTLlavaConfig.from_pretrained(folder).dtype == dtype
    assert MQTLlavaForConditionalGeneration.from_pretrained(folder, dtype="auto").dtype == dtype


def test_dtype_of_the_original_is_kept(original, convert):
    original.tensors = {name: tensor.half() for name, tensor in original.tensors.items()}
    original.config["torch_dtype"] = "float16"
    assert CheckpointReader(convert(original.save().folder)).tensor("lm_head.weight").dtype == torch.float16
    del original.config["torch_dtype"]
    again = convert(original.save().folder, output="again")
    assert CheckpointReader(again).tensor("lm_head.weight").dtype == torch.float16


def test_output_in_shards(original, convert, expected):
    folder = convert(original.folder, "--max-shard-size", "500KB", "--check")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 3 and all(shard.stat().st_size <= 500_000 for shard in shards)
    assert_same_tensors(folder, expected)
    model = MQTLlavaForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(model.lm_head.weight, expected["lm_head.weight"])


# What goes in


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_sharded_input(original, convert, expected, suffix):
    save, stem = (save_file, "model") if suffix == "safetensors" else (torch.save, "pytorch_model")
    weight_map = {}
    for number, shard in enumerate(split_in_two(original.tensors), start=1):
        name = f"{stem}-{number:05d}-of-00002.{suffix}"
        save(shard, original.folder / name)
        weight_map.update(dict.fromkeys(shard, name))
    (original.without_weights().folder / f"{stem}.{suffix}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    assert_same_tensors(convert(original.folder, "--check"), expected)


def test_old_buffers_are_dropped(original, convert, expected):
    original.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    original.tensors[VISION + "vision_model.embeddings.position_ids"] = torch.arange(577)[None]
    assert_same_tensors(convert(original.save().folder), expected)


@pytest.mark.parametrize("place", ["inside", "beside", "argument"])
def test_vision_tower_outside(original, convert, expected, place):
    original.tensors = {name: tensor for name, tensor in original.tensors.items() if not name.startswith(VISION)}
    original.save()
    options = []
    if place == "beside":
        original.vision_tower.rename(original.folder.parent / "openai-clip-tiny")
    elif place == "argument":
        options = ["--vision-tower", original.vision_tower.rename(original.folder.parent / "clip")]
    assert_same_tensors(convert(original.folder, *options, "--check"), expected)


def test_vision_tower_out_of_a_whole_clip(original, convert, expected):
    original.tensors = {name: tensor for name, tensor in original.tensors.items() if not name.startswith(VISION)}
    original.save()
    tower = original.vision_tower
    tensors = torch.load(tower / "pytorch_model.bin", weights_only=True)
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
    preprocessing = json.loads((tower / "preprocessor_config.json").read_text()) | {"size": 336, "crop_size": 336}
    (tower / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    folder = convert(original.folder, "--check")
    assert_same_tensors(folder, expected)
    image_processor = MQTLlavaProcessor.from_pretrained(folder).image_processor
    assert image_processor.size["shortest_edge"] == 336
    assert image_processor.crop_size["height"] == image_processor.crop_size["width"] == 336


@pytest.fixture
def stage_1(original, tmp_path):
    """The original after stage 1, and its language model as transformers saves it."""
    return original.to_stage_1(RESAMPLER, tmp_path / "vicuna"), tmp_path / "vicuna"


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_stage_1(stage_1, convert, expected, prefix):
    original, language_model = stage_1
    torch.save(
        {prefix + name: tensor for name, tensor in original.tensors.items()},
        original.folder / "query_abstractor.bin",
    )
    folder = convert(original.folder, "--language-model", language_model, "--check")
    assert_same_tensors(folder, expected)
    assert MQTLlavaConfig.from_pretrained(folder).text_config.rope_parameters["rope_theta"] == 10000.0


def test_stage_1_with_a_tied_head(stage_1, convert):
    original, language_model = stage_1
    config = json.loads((language_model / "config.json").read_text()) | {"tie_word_embeddings": True}
    (language_model / "config.json").write_text(json.dumps(config))
    torch.save(original.tensors, original.folder / "query_abstractor.bin")
    folder = convert(original.folder, "--language-model", language_model, "--check")
    assert "lm_head.weight" not in CheckpointReader(folder)
    model = MQTLlavaForConditionalGeneration.from_pretrained(folder)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_stage_1_needs_its_language_model(stage_1, refused):
    original, language_model = stage_1
    torch.save(original.tensors, original.folder / "query_abstractor.bin")
    assert "Pass --language-model" in refused(original.folder)
    del original.tensors[RESAMPLER + "ln_v.bias"]
    torch.save(original.tensors, original.folder / "query_abstractor.bin")
    message = refused(original.folder, "--language-model", language_model)
    assert f"missing tensors: {RESAMPLER}ln_v.bias" in message


def test_language_model_without_stage_1(original, refused):
    assert "has no query_abstractor.bin" in refused(original.folder, "--language-model", original.vision_tower)
