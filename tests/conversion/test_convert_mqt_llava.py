import json

import pytest
import torch
from safetensors.torch import load_file

from mqt_llava import MQTLlavaConfig, MQTLlavaProcessor
from tests.builders.original_checkpoints import RESAMPLER


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
