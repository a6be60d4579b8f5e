"""Models that are made of a LLaVA: its parts in another model, and both at work."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig, LlavaForConditionalGeneration

from tests.builders.both import BOTH, MQT, QUECC, image_inputs
from tests.builders.chats import raises
from tests.builders.configs import TEXT_CONFIG, VISION_CONFIG
from tests.builders.llavas import save_llava, tiny_llava
from tests.builders.prompts import random_pixels


PARTS = pytest.mark.parametrize(
    "parts",
    [
        ("llama", "clip_vision_model"),
        ("qwen2", "siglip_vision_model"),  # whose head is the embedding matrix
        ("gpt_neox", "clip_vision_model"),  # whose embeddings go by another name
        ("mistral", "siglip_vision_model"),
    ],
    ids="-".join,
)
M_OF_16, WINDOWS_OF_4 = {"max_visual_tokens": 16}, {"kernel_size": 2, "vision_context_layers": [1, 2]}


def from_llava(case, llava, **kwargs):
    return case.model_class.from_llava(llava, **{**(M_OF_16 if case is MQT else WINDOWS_OF_4), **kwargs})


def prompt(llava, num_visual_tokens: int = 16) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, 11, *[llava.config.image_token_id] * num_visual_tokens, 12, 13]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": random_pixels(1).to(llava.dtype)}


def inputs_of(case, model) -> dict[str, torch.Tensor]:
    return {**prompt(model, 4), **({"query_input_ids": torch.tensor([[1, 5, 6]])} if case is QUECC else {})}


def record(module: nn.Module, calls: list[torch.Tensor]):
    """The first argument of each call of a module."""
    return module.register_forward_pre_hook(lambda _, args: calls.append(args[0]))


@torch.no_grad()
def run(llava) -> dict[str, torch.Tensor]:
    """What a LLaVA makes of an image, and what its projector is given of it."""
    given, inputs = [], prompt(llava)
    hook = record(llava.model.multi_modal_projector, given)
    states = llava.get_image_features(inputs["pixel_values"], output_hidden_states=True).hidden_states
    answer = llava.generate(**inputs, max_new_tokens=5, do_sample=False)
    hook.remove()
    return {"patches": given[0], "states": torch.stack(states), "answer": answer, "logits": llava(**inputs).logits}


def text_logits(model) -> torch.Tensor:
    """Of text alone, but for the placeholder, which the model never predicts."""
    logits = model(torch.tensor([[1, 5, 7, 9]])).logits
    return logits[..., torch.arange(logits.shape[-1]) != model.config.image_token_id]


@torch.no_grad()
@BOTH
@PARTS
@pytest.mark.parametrize("layer", [-2, -1, 1])
def test_the_parts_work_in_both_models_as_they_did(case, parts, layer):
    llava, given = tiny_llava(*parts, vision_feature_layer=layer), []
    before = run(llava)
    model = from_llava(case, llava)
    assert type(model) is case.model_class and not model.training
    record(model.model.resampler, given)
    for _ in range(2):  # whichever was run last, each sees its own hidden states alone
        inputs = inputs_of(case, model)
        states = model.get_image_features(**image_inputs(inputs), output_hidden_states=True).hidden_states
        assert torch.equal(given.pop(), before["patches"])
        assert torch.equal(states[layer], before["states"][layer]) and len(states) == len(before["states"])
        assert torch.equal(text_logits(model), text_logits(llava))
        after = run(llava)
        assert all(torch.equal(after[name], before[name]) for name in before)


@BOTH
@PARTS
def test_no_tensor_is_copied(case, parts):
    llava = tiny_llava(*parts)
    model = from_llava(case, llava)
    assert model.model.language_model is llava.model.language_model and model.lm_head is llava.lm_head
    source, ours = ({**dict(x.named_parameters()), **dict(x.named_buffers())} for x in (llava, model))
    new = [name for name in ours if source.get(name) is not ours[name]]
    assert new and all(name.startswith("model.resampler.") for name in new)
    used = max(model.model.used_vision_layers)
    assert sorted(set(source) - set(ours)) == sorted(
        name for name in source if "multi_modal_projector" in name or f"vision_tower.encoder.layers.{used}." in name
    )
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == llava.config.tie_word_embeddings


@BOTH
def test_what_the_llava_is_configured_to_do_holds(case):
    llava = tiny_llava("qwen2", "siglip_vision_model", vision_feature_layer=[1])
    llava.generation_config.max_new_tokens = 3
    llava.set_attn_implementation({"vision_config": "eager"})
    model = from_llava(case, llava, resampler_num_attention_heads=4)
    config = model.config
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (1, "full")
    assert config.image_token_id == llava.config.image_token_id and config.tie_word_embeddings
    assert config.text_config is model.model.language_model.config
    assert config.vision_config.num_hidden_layers == 3 and config.resampler_num_attention_heads == 4
    for either in (model, llava):
        parts = (either, either.model.vision_tower, either.model.language_model)
        assert [part.config._attn_implementation for part in parts] == ["sdpa", "eager", "sdpa"]
    model.generation_config.max_new_tokens = 4
    assert llava.generation_config.max_new_tokens == 3


@BOTH
def test_the_new_compressor_learns_beside_frozen_parts(case):
    llava = tiny_llava().to(torch.bfloat16)
    llava.requires_grad_(False)
    model = from_llava(case, llava)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    inputs = inputs_of(case, model)
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all((p.grad is not None) == ("resampler" in name) for name, p in model.named_parameters())


@torch.no_grad()
@BOTH
def test_a_folder(case, tmp_path):
    llava = save_llava(tmp_path)
    model, half = from_llava(case, tmp_path), from_llava(case, str(tmp_path), dtype=torch.bfloat16)
    assert torch.equal(text_logits(model), text_logits(llava))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert model.config.name_or_path == str(tmp_path)


@torch.no_grad()
@BOTH
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_llava_works_and_is_not_saved(case, bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    wide = {"hidden_size": 64, "intermediate_size": 64}
    configs = {
        "vision_config": AutoConfig.for_model("clip_vision_model", **{**VISION_CONFIG, **wide}),
        "text_config": AutoConfig.for_model("llama", **{**TEXT_CONFIG, **wide}),
    }
    save_llava(tmp_path / "llava", **configs)
    llava = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "llava",
        quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}),
        dtype=torch.bfloat16,
    )
    before = run(llava)
    model = from_llava(case, llava)
    assert torch.equal(text_logits(model), text_logits(llava))
    assert model(**inputs_of(case, model)).logits.isfinite().all()
    after = run(llava)
    assert all(torch.equal(after[name], before[name]) for name in before)
    with raises(ValueError, "shares quantised parts", "cannot be saved as a whole"):
        model.save_pretrained(tmp_path / "made")


def with_biased_head():
    llava = tiny_llava()
    llava.lm_head = nn.Linear(32, llava.lm_head.out_features)
    return llava


@pytest.mark.parametrize(
    "make, settings, message",
    [
        (lambda: from_llava(MQT, tiny_llava()), {}, "is a MQTLlavaForConditionalGeneration, but must be a Llava"),
        (lambda: tiny_llava().model, {}, "is a LlavaModel, but must be a LlavaForConditionalGeneration"),
        (lambda: 3, {}, "is a int, but must be a LlavaForConditionalGeneration"),
        (with_biased_head, {}, "head of `llava` has a bias"),
        (lambda: tiny_llava(vision_feature_layer=[-2, 1]), {}, "`vision_feature_layer` of the LLaVA is [-2, 1], but"),
        (tiny_llava, {"vision_feature_layer": 0}, "`vision_feature_layer` is 0, but the vision tower has 3 layers"),
        # With the class token, without the first patch, and all images in one row.
        (tiny_llava, {"vision_feature_select_strategy": "full"}, "gives 2 x 17 tokens for two images"),
        (lambda: tiny_llava("llama", "siglip_vision_model", vision_feature_select_strategy="default"), {}, "keeps 15"),
        (lambda: tiny_llava("llama", "pixtral"), {}, "gives 1 x 32 tokens"),
        (lambda: tiny_llava(image_token_index=10_000), {}, "`image_token_id` is 10000, but must be a row"),
        (tiny_llava, {"max_visual_tokens": 15}, "`max_visual_tokens` is 15, but the query tokens"),
        (tiny_llava, {"max_visual_tokens": 25}, "25 visual tokens, but the vision tower gives 16 patches"),
    ],
)
def test_refusals(make, settings, message):
    with raises(ValueError, message):
        from_llava(MQT, make(), **settings)


def test_one_of_several_layers_may_be_chosen():
    llava = tiny_llava(vision_feature_layer=[-2, 1])
    assert from_llava(MQT, llava, vision_feature_layer=1).config.vision_feature_layer == 1


def test_a_tower_that_takes_no_one_size_is_refused():
    llava = tiny_llava()
    llava.config.vision_config.image_size = [28, 14]
    with raises(ValueError, "`image_size` of the vision tower of `llava` (clip_vision_model) is [28, 14]"):
        from_llava(MQT, llava)


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision", "vipllava", "clip"])
def test_folders_of_others_are_refused_before_weights_are_read(kind, tmp_path):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with raises(ValueError, f"is a {kind}, but must be a LlavaForConditionalGeneration", "tiles"):
        from_llava(QUECC, tmp_path)
