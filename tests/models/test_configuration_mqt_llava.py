"""The configuration, and the check of the number of visual tokens."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, Qwen2Config, SiglipVisionConfig

from mqt_llava import MQTLlavaConfig, MQTLlavaForConditionalGeneration
from mqt_llava.models.configuration_compressed_llava import check_num_visual_tokens
from tests.builders.configs import tiny_config


def test_defaults_describe_the_released_model():
    config = MQTLlavaConfig()
    assert config.max_visual_tokens == 256
    assert config.resampler_num_attention_heads == 16
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    vision, text = config.vision_config, config.text_config
    assert isinstance(vision, CLIPVisionConfig) and isinstance(text, LlamaConfig)
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (1024, 24, 336, 14)
    assert (text.hidden_size, text.num_hidden_layers) == (4096, 32)
    assert config.image_token_id < text.vocab_size
    assert not hasattr(config, "num_visual_tokens"), "the processor holds the default m"


def test_two_default_configs_share_nothing():
    first, second = MQTLlavaConfig(), MQTLlavaConfig()
    first.vision_config.hidden_size = 8
    assert second.vision_config.hidden_size == 1024


def test_dicts_without_model_type_are_clip_and_llama():
    config = MQTLlavaConfig(vision_config={"hidden_size": 96}, text_config={"hidden_size": 128})
    assert isinstance(config.vision_config, CLIPVisionConfig) and config.vision_config.hidden_size == 96
    assert isinstance(config.text_config, LlamaConfig) and config.text_config.hidden_size == 128


@pytest.mark.parametrize("as_dict", [False, True])
def test_any_parts(as_dict):
    vision, text = SiglipVisionConfig(hidden_size=64), Qwen2Config(hidden_size=32)
    if as_dict:
        vision, text = vision.to_dict(), text.to_dict()
    config = MQTLlavaConfig(vision_config=vision, text_config=text)
    assert isinstance(config.vision_config, SiglipVisionConfig) and config.vision_config.hidden_size == 64
    assert isinstance(config.text_config, Qwen2Config) and config.text_config.hidden_size == 32
    assert config.get_text_config() is config.text_config


def test_saving_and_loading(tmp_path):
    config = tiny_config(
        max_visual_tokens=4, resampler_num_attention_heads=8, vision_feature_layer=2, tie_word_embeddings=True
    )
    config.save_pretrained(tmp_path)
    reloaded = AutoConfig.from_pretrained(tmp_path)
    assert type(reloaded) is MQTLlavaConfig
    for name in ("max_visual_tokens", "resampler_num_attention_heads", "vision_feature_layer", "image_token_id"):
        assert getattr(reloaded, name) == getattr(config, name)
    assert reloaded.vision_config.to_dict() == config.vision_config.to_dict()
    assert reloaded.text_config.to_dict() == config.text_config.to_dict()
    assert reloaded.model_type == "mqt_llava"


def test_the_older_name_of_the_image_token_id():
    config = tiny_config(image_token_id=7)
    assert config.image_token_index == 7
    assert MQTLlavaConfig(image_token_index=9).image_token_id == 9


@pytest.mark.parametrize("by_text_config", [False, True])
def test_tied_embeddings_by_either_config(by_text_config):
    if by_text_config:
        config = MQTLlavaConfig(text_config=Qwen2Config(tie_word_embeddings=True))
    else:
        config = MQTLlavaConfig(tie_word_embeddings=True)
    assert config.tie_word_embeddings
    assert MQTLlavaConfig(**config.to_dict()).tie_word_embeddings
    assert not MQTLlavaConfig().tie_word_embeddings


@pytest.mark.parametrize("max_visual_tokens", [0, -4, 2, 255, "16", 16.0, True])
def test_a_number_of_queries_that_is_no_square_is_refused(max_visual_tokens):
    with pytest.raises(ValueError, match=f"`max_visual_tokens` is {max_visual_tokens!r}.*must be a square number"):
        MQTLlavaConfig(max_visual_tokens=max_visual_tokens)


def test_an_unknown_select_strategy_is_refused():
    with pytest.raises(ValueError, match="is 'cls_patch', but only 'default' and 'full' exist"):
        MQTLlavaConfig(vision_feature_select_strategy="cls_patch")


@pytest.mark.parametrize(
    "change, message",
    [
        *(({"vision_feature_layer": n}, f"`vision_feature_layer` is {n}, .*1..3 and -3..-1") for n in (0, 4, -4)),
        *(({"resampler_num_attention_heads": n}, f"size is 32, .*`resampler_num_attention_heads`, which is {n}")
          for n in (5, 64)),
        *(({"image_token_id": n}, f"`image_token_id` is {n}") for n in (-1, 100)),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_the_parts_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MQTLlavaForConditionalGeneration(tiny_config(**change))


@pytest.mark.parametrize("name", ["vision_config", "text_config"])
def test_a_part_that_is_no_configuration_is_refused(name):
    with pytest.raises(TypeError, match=f"`{name}` is 5, but must be a configuration or a dict"):
        MQTLlavaConfig(**{name: 5})


# ----------------------------------------------------------------------------------------- number of visual tokens


@pytest.mark.parametrize(
    "value, expected",
    [
        (1, [1, 1, 1]),
        (16, [16, 16, 16]),
        (np.int64(7), [7, 7, 7]),
        (torch.tensor(7), [7, 7, 7]),
        ([1, 16, 4], [1, 16, 4]),
        ((1, 16, 4), [1, 16, 4]),
        ([np.int32(1), torch.tensor(16), 4], [1, 16, 4]),
        (torch.tensor([1, 16, 4]), [1, 16, 4]),
        (torch.tensor([1, 16, 4], dtype=torch.int32), [1, 16, 4]),
    ],
    ids=str,
)
def test_numbers_of_visual_tokens(value, expected):
    numbers = check_num_visual_tokens(value, 16, num_images=3)
    assert numbers == expected
    assert {type(number) for number in numbers} == {int}


@pytest.mark.parametrize("value", [0, -1, 17, [1, 0, 1], [17, 1, 1], torch.tensor([1, 2, 99]), np.int64(0)], ids=str)
def test_numbers_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match=r"`num_visual_tokens` is .*must be an integer in 1\.\.16"):
        check_num_visual_tokens(value, 16, num_images=3)


@pytest.mark.parametrize("value", [[], [16], [1, 2], [1, 2, 3, 4], torch.tensor([5])], ids=str)
def test_lists_of_the_wrong_length_are_refused(value):
    with pytest.raises(ValueError, match=rf"has {len(value)} entries for 3 images.* in 1\.\.16"):
        check_num_visual_tokens(value, 16, num_images=3)


@pytest.mark.parametrize(
    "value",
    [True, 1.5, 4.0, "16", "auto", None, [True, 1, 1], [1, 1.5, 1], [1, "2", 3], torch.tensor(2.0), {"m": 4}]
    + [torch.tensor(True), np.float64(4), np.bool_(True), torch.tensor([[1], [2], [3]])],
    ids=str,
)
def test_numbers_of_the_wrong_type_are_refused(value):
    with pytest.raises(TypeError, match=r"`num_visual_tokens` is .*must be an integer in 1\.\.16"):
        check_num_visual_tokens(value, 16, num_images=3)


def test_a_default_is_one_number():
    assert check_num_visual_tokens(4, 16) == [4]
    with pytest.raises(TypeError, match=r"a default must be an integer in 1\.\.16"):
        check_num_visual_tokens([4], 16)


def test_the_error_names_the_argument():
    with pytest.raises(ValueError, match="`visual_token_counts` is 99"):
        check_num_visual_tokens(99, 16, 1, name="visual_token_counts")
