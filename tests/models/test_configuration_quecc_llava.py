"""The configuration of QueCC-LLaVA: what it has besides what both models share."""

import json

import pytest
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, SiglipVisionConfig

from mqt_llava import QueCCLlavaConfig, QueCCLlavaForConditionalGeneration
from tests.builders.configs import VISION_CONFIG, tiny_quecc_config


def test_defaults_describe_the_published_model():
    config = QueCCLlavaConfig()
    assert (config.kernel_size, config.num_visual_tokens, config.resampler_num_attention_heads) == (6, 16, 8)
    assert (config.vision_feature_layer, config.vision_context_layers) == (-2, [12, 16, 22, 23])
    assert config.used_vision_layers == [-2, 12, 16, 22, 23]
    vision, text = config.vision_config, config.text_config
    assert isinstance(vision, CLIPVisionConfig) and isinstance(text, LlamaConfig)
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (1024, 24, 336, 14)
    assert (text.hidden_size, text.num_hidden_layers) == (4096, 32)


@pytest.mark.parametrize("kernel_size, num_visual_tokens", [(1, 576), (4, 36), (6, 16), (12, 4), (24, 1)])
def test_the_kernel_size_fixes_the_number_of_visual_tokens(kernel_size, num_visual_tokens):
    assert QueCCLlavaConfig(kernel_size=kernel_size).num_visual_tokens == num_visual_tokens


def test_two_default_configs_share_nothing():
    first, second = QueCCLlavaConfig(), QueCCLlavaConfig()
    first.vision_context_layers.append(1)
    assert second.vision_context_layers == [12, 16, 22, 23]


def test_another_vision_tower_has_another_grid():
    vision = SiglipVisionConfig(image_size=384, patch_size=14)  # 27 x 27 patches
    assert QueCCLlavaConfig(vision_config=vision, kernel_size=9).num_visual_tokens == 9
    with pytest.raises(ValueError, match=r"side of the patch grid, which is 27 \(384 pixels in patches of 14\)"):
        QueCCLlavaConfig(vision_config=vision)


@pytest.mark.parametrize("context", [[1, 2], (2, 1)], ids=str)
def test_saving_and_loading(context, tmp_path):
    config = tiny_quecc_config(kernel_size=4, resampler_num_attention_heads=2, vision_context_layers=context)
    config.save_pretrained(tmp_path)
    reloaded = AutoConfig.from_pretrained(tmp_path)
    assert type(reloaded) is QueCCLlavaConfig
    assert reloaded.to_dict() == {**config.to_dict(), "_name_or_path": str(tmp_path)}
    assert (reloaded.kernel_size, reloaded.vision_context_layers) == (4, list(context))
    assert reloaded.model_type == "quecc_llava"


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"kernel_size": 3}, ValueError, "`kernel_size` is 3, but must divide the side of the patch grid, which is 4"),
        ({"kernel_size": 8}, ValueError, "`kernel_size` is 8, but must divide"),
        ({"kernel_size": 0}, ValueError, "`kernel_size` is 0, but must divide"),
        ({"kernel_size": -2}, ValueError, "`kernel_size` is -2, but must divide"),
        ({"kernel_size": 2.0}, TypeError, "`kernel_size` is 2.0, but must be an integer"),
        ({"kernel_size": "2"}, TypeError, "`kernel_size` is '2', but must be an integer"),
        ({"kernel_size": True}, TypeError, "`kernel_size` is True, but must be an integer"),
        ({"vision_context_layers": []}, ValueError, "`vision_context_layers` is empty"),
        ({"vision_context_layers": 2}, TypeError, "`vision_context_layers` is 2, but must be a list of integers"),
        ({"vision_context_layers": None}, TypeError, "`vision_context_layers` is None, but must be a list"),
        ({"vision_context_layers": "12"}, TypeError, "`vision_context_layers` is '12', but must be a list"),
        ({"vision_context_layers": [1, 1.5]}, TypeError, "`vision_context_layers` is 1.5, but must be an integer"),
        ({"vision_feature_layer": [1, 2]}, TypeError, r"`vision_feature_layer` is \[1, 2\], but must be an integer"),
        ({"resampler_num_attention_heads": 5}, ValueError, "`resampler_num_attention_heads`, which is 5"),
        ({"resampler_num_attention_heads": 0}, ValueError, "`resampler_num_attention_heads`, which is 0"),
        ({"image_token_id": 100}, ValueError, "`image_token_id` is 100"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_values_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        QueCCLlavaForConditionalGeneration(tiny_quecc_config(**change))


def test_windows_must_divide_the_grid_that_a_folder_has(tmp_path):
    tiny_quecc_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kernel_size": 3}))
    with pytest.raises(ValueError, match="`kernel_size` is 3"):
        AutoConfig.from_pretrained(tmp_path)


def test_a_dict_without_model_type_is_a_clip_vision_tower():
    config = QueCCLlavaConfig(vision_config=dict(VISION_CONFIG), kernel_size=2)
    assert isinstance(config.vision_config, CLIPVisionConfig) and config.num_visual_tokens == 4
