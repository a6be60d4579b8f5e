"""Assembling a trainable model out of a pretrained vision tower and a pretrained decoder."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, CLIPConfig, CLIPModel

from mqt_llava import MQTLlavaForConditionalGeneration
from tests.builders.configs import TEXT_CONFIG, VISION_CONFIG, decoder_config, tiny_config
from tests.builders.models import enlarge_weights
from tests.builders.prompts import random_inputs, random_pixels, text_labels


PARTS = {
    "clip_vision_model": {},
    "siglip_vision_model": {},
    "dinov2": {"mlp_ratio": 2},
}


def make_vision_tower(name: str = "clip_vision_model"):
    tower = AutoModel.from_config(AutoConfig.for_model(name, **{**VISION_CONFIG, **PARTS[name]})).eval()
    enlarge_weights(tower, seed=1)
    return tower


def make_decoder(name: str = "llama", **kwargs):
    config = decoder_config(name)
    for key, value in {"bos_token_id": 1, "eos_token_id": 2, **kwargs}.items():
        setattr(config, key, value)
    decoder = AutoModelForCausalLM.from_config(config).eval()
    enlarge_weights(decoder, seed=2)
    return decoder


def new_inputs(model, *rows):
    inputs = random_inputs(*rows)
    return {**inputs, "input_ids": inputs["input_ids"].where(inputs["input_ids"] != 99, model.config.image_token_id)}


def check_assembled(model, vision, text, tmp_path):
    """Both parts work as they did, and the whole answers, learns, and comes back from a folder."""
    ids = torch.tensor([[1, 5, 7, 9]])
    with torch.no_grad():
        expected = text(ids).logits
        torch.testing.assert_close(model(ids).logits[..., : expected.shape[-1]], expected)
        captured = []
        hook = model.model.resampler.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
        model.get_image_features(random_pixels(1))
        hook.remove()
        hidden_states = vision(random_pixels(1), output_hidden_states=True).hidden_states
        torch.testing.assert_close(captured[0], hidden_states[model.config.vision_feature_layer][:, -16:])

    inputs = new_inputs(model, [4, 4], [4])
    labels = text_labels(inputs, model.config.image_token_id)
    model.generation_config.eos_token_id = None
    generated = model.generate(**inputs, max_new_tokens=20, num_visual_tokens=2)
    assert not (generated[:, -20:] == model.config.image_token_id).any()
    model.train()(**inputs, labels=labels).loss.backward()
    assert model.model.resampler.query.grad.abs().sum() > 0

    model.eval().save_pretrained(tmp_path / "assembled")
    reloaded, info = MQTLlavaForConditionalGeneration.from_pretrained(tmp_path / "assembled", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        torch.testing.assert_close(reloaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    "vision_name, text_name, kwargs",
    [
        ("clip_vision_model", "llama", {}),
        ("siglip_vision_model", "qwen2", {"vision_feature_layer": -1}),
        ("dinov2", "gpt2", {"vision_feature_layer": 2, "max_visual_tokens": 4}),
        ("clip_vision_model", "gemma", {"resampler_num_attention_heads": 4}),
    ],
)
@pytest.mark.parametrize("source", ["folders", "objects"])
def test_assembling_a_model_from_two(vision_name, text_name, kwargs, source, tmp_path):
    vision, text = make_vision_tower(vision_name), make_decoder(text_name)
    vision_source, text_source = copy.deepcopy(vision), copy.deepcopy(text)
    if source == "folders":
        vision_source, text_source = str(tmp_path / "vision"), tmp_path / "text"
        vision.save_pretrained(vision_source)
        text.save_pretrained(text_source)
    model = MQTLlavaForConditionalGeneration.from_vision_text_pretrained(
        vision_source, text_source, **{"max_visual_tokens": 16, **kwargs}
    )
    assert not model.training
    assert model.config.image_token_id == 100
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == 101
    assert model.config.text_config.vocab_size == 101
    check_assembled(model, vision, text, tmp_path)


@pytest.mark.parametrize("source", ["folder", "object"])
def test_assembling_takes_the_vision_part_of_a_full_clip(source, tmp_path):
    text_config = {key: value for key, value in TEXT_CONFIG.items() if key != "num_key_value_heads"}
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(vision_config=VISION_CONFIG, text_config=text_config)).eval()
    enlarge_weights(clip)
    tower = AutoModel.from_config(clip.config.vision_config).eval()
    tower.load_state_dict(clip.vision_model.state_dict())
    vision = clip
    if source == "folder":
        clip.save_pretrained(vision := tmp_path / "clip")
    text = make_decoder()
    model = MQTLlavaForConditionalGeneration.from_vision_text_pretrained(
        vision, copy.deepcopy(text), max_visual_tokens=16
    )
    assert model.config.vision_config.model_type == "clip_vision_model"
    check_assembled(model, tower, text, tmp_path)


def test_assembling_with_an_image_token_that_the_vocabulary_has():
    text = make_decoder()
    model = MQTLlavaForConditionalGeneration.from_vision_text_pretrained(
        make_vision_tower(), text, image_token_id=42, max_visual_tokens=16
    )
    assert model.config.image_token_id == 42 and model.lm_head.out_features == 100


def test_assembling_grows_the_vocabulary_to_the_image_token():
    model = MQTLlavaForConditionalGeneration.from_vision_text_pretrained(
        make_vision_tower(), make_decoder(), image_token_id=127, max_visual_tokens=16
    )
    assert model.lm_head.out_features == model.config.text_config.vocab_size == 128


def test_assembling_in_another_dtype(tmp_path):
    make_vision_tower().save_pretrained(tmp_path / "vision")
    make_decoder().save_pretrained(tmp_path / "text")
    model = MQTLlavaForConditionalGeneration.from_vision_text_pretrained(
        tmp_path / "vision", tmp_path / "text", dtype=torch.bfloat16, max_visual_tokens=16
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.dtype == torch.bfloat16
    assert model(**new_inputs(model, [4])).logits.isfinite().all()
    model.save_pretrained(tmp_path / "assembled")
    reloaded = MQTLlavaForConditionalGeneration.from_pretrained(tmp_path / "assembled")
    assert {parameter.dtype for parameter in reloaded.parameters()} == {torch.bfloat16}


def test_assembling_keeps_the_decoders_generation_config():
    text = make_decoder()
    text.generation_config.max_new_tokens = 3
    text.generation_config.repetition_penalty = 1.5
    model = MQTLlavaForConditionalGeneration.from_vision_text_pretrained(
        make_vision_tower(), text, max_visual_tokens=16
    )
    assert model.generation_config.max_new_tokens == 3
    assert model.generation_config.repetition_penalty == 1.5
    assert model.generation_config.bos_token_id == 1


def test_a_decoder_whose_head_has_a_bias_is_refused():
    text = make_decoder()
    text.lm_head = nn.Linear(32, 100, bias=True)
    with pytest.raises(ValueError, match="LlamaForCausalLM, but must be a causal model whose head has no bias"):
        MQTLlavaForConditionalGeneration.from_vision_text_pretrained(make_vision_tower(), text, max_visual_tokens=16)


def test_a_decoder_without_a_head_is_refused():
    text = make_decoder().model
    with pytest.raises(ValueError, match="LlamaModel, but must be a causal model"):
        MQTLlavaForConditionalGeneration.from_vision_text_pretrained(make_vision_tower(), text, max_visual_tokens=16)


def test_assembling_parts_of_two_dtypes(tmp_path):
    config = tiny_config()
    AutoModel.from_config(config.vision_config).save_pretrained(tmp_path / "vision")
    AutoModelForCausalLM.from_config(config.text_config).to(torch.bfloat16).save_pretrained(tmp_path / "text")
    model = MQTLlavaForConditionalGeneration.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), max_visual_tokens=16
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    ids = torch.tensor([[1, 100, 100, 5]])
    assert model(input_ids=ids, pixel_values=torch.randn(1, 3, 28, 28), labels=ids).loss.isfinite()
