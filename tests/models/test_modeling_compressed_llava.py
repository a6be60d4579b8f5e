"""What both models share: towers and decoders of any kind, batches, dtypes, and how a model is assembled of two."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, CLIPConfig, CLIPModel

from mqt_llava import MQTLlavaForConditionalGeneration
from tests.builders.both import BOTH, MQT, QUECC, Case, image_inputs
from tests.builders.configs import DECODERS, TEXT_CONFIG, VISION_CONFIG, decoder_config, tiny_config
from tests.builders.models import count_calls, enlarge_weights
from tests.builders.numbers import relative_error
from tests.builders.prompts import one_prompt, text_labels


VISION_TOWERS = {
    "clip_vision_model": {},
    "siglip_vision_model": {},
    "siglip_vision_model without head": {"vision_use_head": False},
    "dinov2": {"mlp_ratio": 2},
    "dinov2_with_registers": {"num_register_tokens": 4, "mlp_ratio": 2},
    "vit": {},
}


def make_vision_tower(name: str = "clip_vision_model"):
    config = AutoConfig.for_model(name.split()[0], **{**VISION_CONFIG, **VISION_TOWERS[name]})
    tower = AutoModel.from_config(config).eval()
    enlarge_weights(tower, seed=1)
    return tower


def make_decoder(name: str = "llama", **kwargs):
    config = decoder_config(name)
    for key, value in {"bos_token_id": 1, "eos_token_id": 2, **kwargs}.items():
        setattr(config, key, value)
    decoder = AutoModelForCausalLM.from_config(config).eval()
    enlarge_weights(decoder, seed=2)
    return decoder


def answers(model, inputs: dict) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, -5:]


@torch.no_grad()
@pytest.mark.parametrize(
    "case, layer, context",
    [(MQT, layer, []) for layer in (-1, -2, 2, 1, 3)]
    + [(QUECC, -2, [1, 2]), (QUECC, -1, [1]), (QUECC, 1, [2, 1]), (QUECC, 1, [-3, 1, 1]), (QUECC, 2, [-1])],
)
@pytest.mark.parametrize("name", VISION_TOWERS)
def test_vision_layers_above_the_last_used_one_are_not_there(name, case, layer, context):
    full_tower = make_vision_tower(name)
    options = {"vision_context_layers": context} if context else {}
    vision_config = copy.deepcopy(full_tower.config)
    config = case.make_config(vision_config=vision_config, vision_feature_layer=layer, **options)
    model = case.make_model(config).model
    tower = model.vision_tower
    assert not tower.load_state_dict(full_tower.state_dict(), strict=False).missing_keys
    used = max(index % 4 for index in (layer, *context))
    (layers,) = [module for module in tower.modules() if isinstance(module, nn.ModuleList)]
    assert len(layers) == used

    inputs = image_inputs(case.make_inputs(*case.rows[:2]))
    states = full_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    last_layer_calls, captured = count_calls(layers[-1]), []
    model.resampler.register_forward_pre_hook(lambda _, args: captured.append(args))
    for asked in (False, True):
        outputs = model.get_image_features(**inputs, output_hidden_states=asked, return_dict=True)
        patches, *others = captured.pop()
        torch.testing.assert_close(patches, states[layer][:, -16:])
        if context:
            torch.testing.assert_close(others[0], torch.cat([states[i][:, -16:] for i in context], dim=-1))
        is_there = [state is not None for state in outputs.hidden_states or []]
        assert is_there == ([index <= used for index in range(4)] if asked else [])
    assert len(last_layer_calls) == 2


@BOTH
@pytest.mark.parametrize("name", DECODERS)
def test_any_decoder(name, case, tmp_path):
    model = case.make_model(case.make_config(text_config=decoder_config(name)))
    is_tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert is_tied == model.config.text_config.tie_word_embeddings
    batch = case.make_inputs(*case.rows)
    alone = [answers(model, one_prompt(batch, case.rows, i)) for i in range(len(case.rows))]
    assert torch.equal(answers(model, batch), torch.cat(alone))

    model.save_pretrained(tmp_path)
    reloaded, info = case.model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and not reloaded.training
    assert (reloaded.lm_head.weight is reloaded.get_input_embeddings().weight) == is_tied
    torch.testing.assert_close(reloaded(**batch).logits, model(**batch).logits, rtol=0, atol=0)

    model.train()(**batch, labels=text_labels(batch)).loss.backward()
    assert any(parameter.grad.any() for parameter in model.model.resampler.parameters())
    assert all(p.grad is not None for name, p in model.named_parameters() if "post_layernorm" not in name)


@torch.no_grad()
@BOTH
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_mixed_batch_equals_one_by_one(case, attn_implementation, side):
    model = case.make_model()
    model.set_attn_implementation(attn_implementation)
    batch = case.make_inputs(*case.rows, side=side)
    logits = model(**batch).logits
    for i in range(len(case.rows)):
        alone = model(**one_prompt(batch, case.rows, i)).logits[0]
        assert relative_error(logits[i, batch["attention_mask"][i] == 1], alone) < 1e-5


@BOTH
def test_embeddings_in_place_of_ids(case):
    model, inputs = case.make_model(), case.make_inputs(*case.rows[:2])
    logits, expected = model(**inputs).logits, answers(model, inputs)
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(model(**inputs).logits, logits)
    assert torch.equal(answers(model, inputs), expected)


@BOTH
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(case, use_reentrant):
    model, inputs = case.make_model().train(), case.make_inputs(*case.rows)

    def gradients():
        model.zero_grad()
        model(**inputs, labels=text_labels(inputs)).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    decoder_calls = count_calls(model.model.language_model.layers[0].mlp)
    tower_calls = count_calls(model.model.vision_tower.encoder.layers[0].mlp)
    actual = gradients()
    # Each twice, but for the pass over QueCC's questions, through which no gradient flows.
    assert (len(decoder_calls), len(tower_calls)) == (3 if case is QUECC else 2, 2)
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])


@torch.no_grad()
@BOTH
@pytest.mark.parametrize("is_loaded", [False, True], ids=["converted in memory", "loaded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_close(case, dtype, is_loaded, tmp_path):
    model, inputs, captured = case.make_model(), case.make_inputs(*case.rows), []
    hook = model.model.resampler.register_forward_pre_hook(lambda _, *call: captured.append(call), with_kwargs=True)
    model(**inputs)
    hook.remove()
    ((args, kwargs),) = captured
    expected = model.model.resampler(*args, **kwargs)
    if is_loaded:
        model.save_pretrained(tmp_path)
        model = case.model_class.from_pretrained(tmp_path, dtype=dtype)
        model.generation_config.eos_token_id = None
    else:
        model.to(dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    logits = model(**inputs).logits
    assert logits.dtype == dtype and logits.isfinite().all()
    assert not (answers(model, inputs) == model.config.image_token_id).any()
    args = [arg.to(dtype) if isinstance(arg, torch.Tensor) else arg for arg in args]
    assert relative_error(model.model.resampler(*args, **kwargs).float(), expected) < 0.05


# Assembling a trainable model out of a pretrained vision tower and a pretrained decoder


def assemble(text=None, vision=None, **kwargs) -> MQTLlavaForConditionalGeneration:
    return MQTLlavaForConditionalGeneration.from_vision_text_pretrained(
        vision or make_vision_tower(), text or make_decoder(), max_visual_tokens=16, **kwargs
    )


def new_inputs(model, case: Case = MQT) -> dict:
    inputs = case.make_inputs(*case.rows[:2])
    return {**inputs, "input_ids": inputs["input_ids"].where(inputs["input_ids"] != 99, model.config.image_token_id)}


def check_assembled(model, vision, text, tmp_path, case: Case = MQT):
    """Both parts work as they did, and the whole answers, learns, and comes back from a folder."""
    ids, inputs = torch.tensor([[1, 5, 7, 9]]), new_inputs(model, case)
    used = [len(module) for module in model.model.vision_tower.modules() if isinstance(module, nn.ModuleList)]
    assert used == [max(model.model.used_vision_layers)]
    with torch.no_grad():
        expected = text(ids).logits
        torch.testing.assert_close(model(ids).logits[..., : expected.shape[-1]], expected)
        captured = []
        hook = model.model.resampler.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
        model.get_image_features(**image_inputs(inputs))
        hook.remove()
        hidden_states = vision(inputs["pixel_values"], output_hidden_states=True).hidden_states
        torch.testing.assert_close(captured[0], hidden_states[model.config.vision_feature_layer][:, -16:])

    labels = text_labels(inputs, model.config.image_token_id)
    model.generation_config.eos_token_id = None
    generated = model.generate(**inputs, max_new_tokens=20, **({"num_visual_tokens": 2} if case is MQT else {}))
    assert not (generated[:, -20:] == model.config.image_token_id).any()
    model.train()(**inputs, labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.model.resampler.parameters())
    assert any(parameter.grad.any() for parameter in model.model.resampler.parameters())

    model.eval().save_pretrained(tmp_path / "assembled")
    reloaded, info = case.model_class.from_pretrained(tmp_path / "assembled", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        torch.testing.assert_close(reloaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    "case, vision_name, text_name, kwargs",
    [
        (MQT, "clip_vision_model", "llama", {"max_visual_tokens": 16}),
        (MQT, "siglip_vision_model", "qwen2", {"max_visual_tokens": 16, "vision_feature_layer": -1}),
        (MQT, "dinov2", "gpt2", {"max_visual_tokens": 4, "vision_feature_layer": 2}),
        (MQT, "clip_vision_model", "gemma", {"max_visual_tokens": 16, "resampler_num_attention_heads": 4}),
        (QUECC, "clip_vision_model", "llama", {"kernel_size": 2, "vision_context_layers": [1, 2]}),
        (
            QUECC,
            "dinov2_with_registers",
            "gpt2",
            {"kernel_size": 2, "vision_context_layers": [-3, 1], "vision_feature_layer": 1},
        ),
    ],
)
@pytest.mark.parametrize("source", ["folders", "objects"])
def test_assembling_a_model_from_two(case, vision_name, text_name, kwargs, source, tmp_path):
    vision, text = make_vision_tower(vision_name), make_decoder(text_name)
    vision_source, text_source = copy.deepcopy(vision), copy.deepcopy(text)
    if source == "folders":
        vision_source, text_source = str(tmp_path / "vision"), tmp_path / "text"
        vision.save_pretrained(vision_source)
        text.save_pretrained(text_source)
    model = case.model_class.from_vision_text_pretrained(vision_source, text_source, **kwargs)
    assert type(model) is case.model_class
    assert not model.training
    assert model.config.image_token_id == 100
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == 101
    assert model.config.text_config.vocab_size == 101
    check_assembled(model, vision, text, tmp_path, case)


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
    model = assemble(copy.deepcopy(text), vision)
    assert model.config.vision_config.model_type == "clip_vision_model"
    check_assembled(model, tower, text, tmp_path)


@pytest.mark.parametrize("image_token_id, vocab_size", [(42, 100), (127, 128)])
def test_assembling_grows_the_vocabulary_to_an_image_token_that_it_lacks(image_token_id, vocab_size):
    model = assemble(image_token_id=image_token_id)
    assert model.config.image_token_id == image_token_id
    assert model.lm_head.out_features == model.config.text_config.vocab_size == vocab_size


def test_assembling_in_another_dtype(tmp_path):
    make_vision_tower().save_pretrained(tmp_path / "vision")
    make_decoder().save_pretrained(tmp_path / "text")
    model = assemble(tmp_path / "text", tmp_path / "vision", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.dtype == torch.bfloat16
    assert model(**new_inputs(model)).logits.isfinite().all()
    model.save_pretrained(tmp_path / "assembled")
    reloaded = MQTLlavaForConditionalGeneration.from_pretrained(tmp_path / "assembled")
    assert {parameter.dtype for parameter in reloaded.parameters()} == {torch.bfloat16}


def test_assembling_keeps_the_decoders_generation_config():
    text = make_decoder()
    text.generation_config.max_new_tokens = 3
    text.generation_config.repetition_penalty = 1.5
    model = assemble(text)
    assert model.generation_config.max_new_tokens == 3
    assert model.generation_config.repetition_penalty == 1.5
    assert model.generation_config.bos_token_id == 1


def test_a_decoder_whose_head_has_a_bias_is_refused():
    text = make_decoder()
    text.lm_head = nn.Linear(32, 100, bias=True)
    with pytest.raises(ValueError, match="LlamaForCausalLM, but must be a causal model whose head has no bias"):
        assemble(text)


def test_a_decoder_without_a_head_is_refused():
    with pytest.raises(ValueError, match="LlamaModel, but must be a causal model"):
        assemble(make_decoder().model)


def test_assembling_parts_of_two_dtypes(tmp_path):
    config = tiny_config()
    AutoModel.from_config(config.vision_config).save_pretrained(tmp_path / "vision")
    AutoModelForCausalLM.from_config(config.text_config).to(torch.bfloat16).save_pretrained(tmp_path / "text")
    model = assemble(str(tmp_path / "text"), str(tmp_path / "vision"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    ids = torch.tensor([[1, 100, 100, 5]])
    assert model(input_ids=ids, pixel_values=torch.randn(1, 3, 28, 28), labels=ids).loss.isfinite()
