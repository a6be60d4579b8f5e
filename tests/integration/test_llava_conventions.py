"""What tools and users of transformers' LLaVA expect of a model of its family, of both compressors."""

import copy
import inspect
import json

import pytest
import torch
from transformers import AutoConfig, AutoModel
from transformers.exporters.utils import decompose_multimodal, is_multimodal

from mqt_llava import (
    MQTLlavaForConditionalGeneration,
    MQTLlavaModel,
    QueCCLlavaForConditionalGeneration,
    QueCCLlavaModel,
)
from tests.builders.both import BOTH, QUECC, image_inputs
from tests.builders.versions import needs_tracing


def build(case, **kwargs):
    """A model, and prompts with two images and with one."""
    return case.make_model(case.make_config(**kwargs)), case.make_inputs(*case.rows[:2])


# --------------------------------------------------------------------------------------------------------- exporters


@BOTH
def test_exporters_find_the_compressor(case):
    model, inputs = build(case)
    for root in (model, model.model):
        assert is_multimodal(root)
        parts = decompose_multimodal(root, inputs)
        assert {"image_encoder", "multi_modal_projector", "language_model"} <= set(parts)
        module, captured = parts["multi_modal_projector"]
        assert module is model.model.resampler
        with torch.no_grad():
            assert module(**captured).shape == (3, 4, 32)
    assert not any("multi_modal_projector" in name for name in model.state_dict())


@needs_tracing
@BOTH
def test_the_compressor_can_be_exported_by_itself(case):
    model, inputs = build(case)
    compressor, captured = decompose_multimodal(model, inputs)["multi_modal_projector"]
    exported = torch.export.export(compressor, (), captured).module()
    torch.testing.assert_close(exported(**captured), compressor(**captured))


# ------------------------------------------------------------------------------------ arguments that LLaVA's model has

OTHERS = pytest.mark.parametrize(
    "name, value, message",
    [
        ("vision_feature_layer", -1, "`vision_feature_layer` is -1, but the model is built for -2"),
        ("vision_feature_layer", [-2, -1], r"`vision_feature_layer` is \[-2, -1\], but the model is built for -2"),
        ("vision_feature_select_strategy", "full", "`vision_feature_select_strategy` is 'full', but .* for 'default'"),
        ("image_sizes", torch.tensor([[28, 28]] * 3), "`image_sizes`"),
    ],
)


@BOTH
@OTHERS
def test_other_features_than_the_configured_ones_are_refused(case, name, value, message):
    model, inputs = build(case)
    for call in (model, model.model):
        with pytest.raises(ValueError, match=message):
            call(**inputs, **{name: value})
        with pytest.raises(ValueError, match=message):
            call.get_image_features(**image_inputs(inputs), **{name: value})
    with pytest.raises(ValueError, match=name):
        model.generate(**inputs, max_new_tokens=2, **{name: value})


@BOTH
@torch.no_grad()
def test_the_configured_features_may_be_asked_for(case):
    model, inputs = build(case)
    asked = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "image_sizes": None}
    for call in (model, model.model):
        torch.testing.assert_close(call(**inputs, **asked)[0], call(**inputs)[0], rtol=0, atol=0)
        features = [call.get_image_features(**image_inputs(inputs), **kwargs) for kwargs in ({}, asked)]
        torch.testing.assert_close(features[0].pooler_output, features[1].pooler_output, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------- hidden states


@BOTH
@pytest.mark.parametrize("layer", [-3, -2, -1, 1, 3])
@pytest.mark.parametrize("how", [True, [1]], ids=["all states", "one state"])
@torch.no_grad()
def test_the_configured_layer_is_an_index_of_the_hidden_states(case, layer, how):
    model, inputs = build(case, vision_feature_layer=layer)
    full_tower = AutoModel.from_config(copy.deepcopy(model.config.vision_config)).eval()
    full_tower.load_state_dict(model.model.vision_tower.state_dict(), strict=False)
    expected = full_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    states = model.get_image_features(**image_inputs(inputs), output_hidden_states=how).hidden_states
    assert len(states) == len(expected) == 4
    torch.testing.assert_close(states[layer], expected[layer])
    # What no layer was built for is not there, and no other state stands in its place.
    num_built = max(model.model.used_vision_layers)
    assert [state is None for state in states] == [index > num_built for index in range(4)]
    for index in range(num_built + 1):
        torch.testing.assert_close(states[index], expected[index])


@torch.no_grad()
def test_the_layers_of_quecc_are_indices_of_the_hidden_states():
    model, inputs = build(QUECC, vision_feature_layer=-3, vision_context_layers=[1, -2])
    states = model.get_image_features(**image_inputs(inputs), output_hidden_states=True).hidden_states
    assert len(states) == 4 and states[-1] is None
    assert all(states[layer] is not None for layer in model.config.used_vision_layers)


# ------------------------------------------------------------------------------------------------------ documentation


@pytest.mark.parametrize(
    "model_class",
    [MQTLlavaModel, MQTLlavaForConditionalGeneration, QueCCLlavaModel, QueCCLlavaForConditionalGeneration],
)
def test_forward_documents_every_argument(model_class):
    documentation = inspect.getdoc(model_class.forward)
    for name in inspect.signature(model_class.forward).parameters:
        if name not in ("self", "kwargs"):
            assert f"\n    {name} (" in documentation, name
    assert f"The [`{model_class.__name__}`] forward method" in documentation
    assert "None`])" not in documentation
    assert "CausalLMOutputWithPast" in documentation or "ModelOutputWithPast" in documentation
    example = ">>> " in documentation
    assert example == model_class.__name__.endswith("ForConditionalGeneration")


# ------------------------------------------------------------------------------------------------------ configuration


@BOTH
def test_a_saved_config_names_the_image_token_in_both_ways(case, tmp_path):
    config = case.make_config(image_token_id=7)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["image_token_id"] == saved["image_token_index"] == 7
    for reloaded in (AutoConfig.from_pretrained(tmp_path), type(config).from_dict(saved)):
        assert reloaded.image_token_id == reloaded.image_token_index == 7
        assert json.loads(reloaded.to_json_string()) == saved
    assert AutoConfig.from_pretrained(tmp_path, image_token_id=9).image_token_id == 9
    # What is changed in a copy is not changed back by the other name.
    assert type(config)(**{**config.to_dict(), "image_token_id": 9}).image_token_id == 9


@BOTH
@pytest.mark.parametrize("name", ["image_token_id", "image_token_index"])
def test_a_config_whose_two_names_disagree_is_refused(case, name, tmp_path):
    case.make_config(image_token_id=7).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: 9}))
    with pytest.raises(ValueError, match="`image_token_id` is . and `image_token_index` is ., but both mean"):
        AutoConfig.from_pretrained(tmp_path)


@BOTH
def test_a_config_with_the_older_name_alone_is_read(case):
    saved = json.loads(case.make_config(image_token_id=7).to_json_string())
    del saved["image_token_id"]
    assert type(case.make_config()).from_dict(saved).image_token_id == 7
