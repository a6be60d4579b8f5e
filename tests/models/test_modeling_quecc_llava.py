"""QueCC-LLaVA: what it computes, for which question, and how it is built, trained and loaded."""

import math

import pytest
import torch
from torch import nn

from mqt_llava import QueCCLlavaForConditionalGeneration, QueCCLlavaModel
from mqt_llava.models.modeling_quecc_llava import QueCCLlavaResampler
from tests.builders.configs import VISION_CONFIG, tiny_quecc_config
from tests.builders.models import random_quecc_model
from tests.builders.numbers import relative_error
from tests.builders.prompts import IMAGE_TOKEN_ID, pad, random_pixels, random_quecc_inputs, text_labels
from tests.builders.quecc import HOW, NEW, WHAT, WHERE, features


@pytest.fixture
def model() -> QueCCLlavaForConditionalGeneration:
    return random_quecc_model()


# ------------------------------------------------------------------------------------------------------- compressor


@torch.no_grad()
@pytest.mark.parametrize(
    "grid, kernel_size, heads, num_layers", [(4, 2, 8, 2), (4, 4, 4, 1), (4, 1, 1, 2), (6, 3, 2, 3), (24, 6, 8, 4)]
)
def test_resampler_computes_the_published_formula(grid, kernel_size, heads, num_layers):
    config = tiny_quecc_config(
        vision_config={**VISION_CONFIG, "image_size": 7 * grid},
        kernel_size=kernel_size,
        resampler_num_attention_heads=heads,
        vision_context_layers=[1] * num_layers,
    )
    resampler = QueCCLlavaResampler(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in resampler.parameters():
        parameter.normal_(std=0.3, generator=generator)
    patches = torch.randn(2, grid**2, 32, generator=generator)
    context = torch.randn(2, grid**2, 32 * num_layers, generator=generator)
    question = torch.randn(2, 32, generator=generator)

    text = resampler.ln_text(question @ resampler.text_proj.weight.T + resampler.text_proj.bias)
    mixed = resampler.q_mlp(patches + text[:, None])
    keys, values = resampler.k_mlp(context), resampler.v_mlp(context)
    attention = nn.MultiheadAttention(32, heads, batch_first=True)
    attention.in_proj_weight.copy_(torch.cat([resampler.get_submodule(f"{x}_proj").weight for x in "qkv"]))
    attention.in_proj_bias.copy_(torch.cat([resampler.get_submodule(f"{x}_proj").bias for x in "qkv"]))
    attention.out_proj.load_state_dict(resampler.out_proj.state_dict())
    expected = []
    for top in range(0, grid, kernel_size):
        for left in range(0, grid, kernel_size):
            steps = range(kernel_size)
            window = [grid * (top + row) + left + column for row in steps for column in steps]
            kernel = resampler.q_downsample.weight.flatten(1).T  # (patches of a window, width)
            query = (mixed[:, window] * kernel).sum(1, keepdim=True) + resampler.q_downsample.bias
            expected.append(attention(query, keys[:, window], values[:, window])[0])
    first, _, last = resampler.proj
    expected = last(nn.functional.gelu(first(torch.cat(expected, dim=1))))
    actual = resampler(patches, context, question)
    assert actual.shape == (2, (grid // kernel_size) ** 2, 32)
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("num_patches", [12, 9])
def test_patches_that_the_windows_do_not_divide_are_refused(model, num_patches):
    patches = torch.zeros(1, num_patches, 32)
    with pytest.raises(ValueError, match=f"gives {num_patches} tokens per image, which is no square grid that window"):
        model.model.resampler(patches, torch.zeros(1, num_patches, 64), torch.zeros(1, 32))


@pytest.mark.parametrize("name", ["vision_feature_layer", "vision_context_layers"])
@pytest.mark.parametrize("layer", [0, 4, -4])
def test_vision_layers_that_do_not_exist_are_refused(name, layer):
    value = layer if name == "vision_feature_layer" else [1, layer]
    with pytest.raises(ValueError, match=rf"`{name}` is .*{layer}\b.* has 3 layers: allowed are 1\.\.3 and -3\.\.-1"):
        QueCCLlavaModel(tiny_quecc_config(**{name: value}))


# --------------------------------------------------------------------------------------------------------- question


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_question_is_the_decoders_last_state_behind_it_alone(model, side):
    questions = [[1, *WHERE], [1, *HOW], [1, *WHAT]]
    actual = model.model.encode_questions(*pad(questions, side))
    for state, question in zip(actual, questions):
        expected = model.model.language_model(torch.tensor([question])).last_hidden_state[0, -1]
        assert relative_error(state, expected) < 1e-5


@torch.no_grad()
def test_the_question_pass_keeps_no_cache(model):
    calls = []
    model.model.language_model.register_forward_hook(
        lambda _, args, kwargs, outputs: calls.append((kwargs["use_cache"], outputs.past_key_values)), with_kwargs=True
    )
    features(model, random_quecc_inputs([WHERE]))
    assert calls == [(False, None)]


@torch.no_grad()
def test_visual_tokens_change_with_the_question_and_not_with_its_padding(model):
    expected = features(model, random_quecc_inputs([WHERE]))
    for side in ("left", "right"):
        inputs = random_quecc_inputs([WHERE], [HOW], side=side)
        inputs["pixel_values"][1] = inputs["pixel_values"][0]
        where, how = features(model, inputs)
        assert relative_error(where, expected[0]) < 1e-5
        assert relative_error(how, expected[0]) > 0.01
        extra = torch.zeros(2, 7, dtype=torch.long)
        for name in ("query_input_ids", "query_attention_mask"):
            parts = [extra, inputs[name]] if side == "left" else [inputs[name], extra]
            inputs[name] = torch.cat(parts, dim=1)
        assert relative_error(features(model, inputs)[0], expected[0]) < 1e-5


@torch.no_grad()
def test_the_token_under_the_padding_counts_for_nothing(model):
    inputs = random_quecc_inputs([WHERE], [HOW])
    expected = features(model, inputs)
    inputs["query_input_ids"] = inputs["query_input_ids"].where(inputs["query_attention_mask"] == 1, 42)
    torch.testing.assert_close(features(model, inputs), expected)


@torch.no_grad()
def test_each_image_of_a_prompt_has_its_own_question(model):
    together = features(model, random_quecc_inputs([WHAT, HOW]))
    for i, question in enumerate((WHAT, HOW)):
        alone = random_quecc_inputs([question])
        alone["pixel_values"] = random_pixels(2)[i : i + 1]
        assert relative_error(features(model, alone)[0], together[i]) < 1e-5


@pytest.mark.parametrize(
    "call, rows",
    [("forward", 1), ("forward", 3), ("generate", 3), ("get_image_features", 1), ("get_image_features", 3)],
)
def test_another_number_of_questions_than_images_is_refused(model, call, rows):
    inputs = random_quecc_inputs([WHAT, WHAT])
    for name in ("query_input_ids", "query_attention_mask"):
        inputs[name] = inputs[name][:1].repeat(rows, 1)
    with pytest.raises(
        ValueError, match=f"`query_input_ids` has {rows} rows for 2 images, but must hold the question"
    ):
        if call == "get_image_features":
            features(model, inputs)
        elif call == "generate":
            model.generate(**inputs, **NEW)
        else:
            model(**inputs)


def test_images_without_a_question_are_refused(model):
    inputs = random_quecc_inputs([WHAT])
    del inputs["query_input_ids"], inputs["query_attention_mask"]
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="`query_input_ids` is missing for 1 images"):
            call(**inputs)


def test_a_question_that_is_masked_out_is_refused(model):
    inputs = random_quecc_inputs([WHAT], [HOW])
    inputs["query_attention_mask"][0] = 0
    with pytest.raises(ValueError, match="masks every token of a question"):
        model(**inputs)


@pytest.mark.parametrize("shape", [(1, 9), (2, 2), (1, 0), (2,)], ids=str)
def test_a_mask_of_another_shape_than_the_questions_is_refused(model, shape):
    ids = torch.tensor([[1, *WHAT]])
    with pytest.raises(
        ValueError, match=r"`query_attention_mask` is \(.*\), but must be .* `query_input_ids`, \(1, 2\)"
    ):
        model.get_image_features(random_pixels(1), ids, torch.ones(shape, dtype=torch.long))
    with pytest.raises(ValueError, match="masks every token of a question"):
        model.get_image_features(random_pixels(1), ids[:, :0])


# -------------------------------------------------------------------------------------------------------- gradients


def test_no_gradient_flows_through_the_question(model):
    inputs = random_quecc_inputs([WHERE], [WHAT, HOW])
    labels = text_labels(inputs)
    model.train()(**inputs, labels=labels).loss.backward()
    actual = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }

    model.zero_grad()
    question = model.model.encode_questions(inputs["query_input_ids"], inputs["query_attention_mask"])
    assert not question.requires_grad
    _, (patches, *context) = model.model.encode_patches(inputs["pixel_values"])
    visual_tokens = model.model.resampler(patches, torch.cat(context, dim=-1), question.detach())
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    is_image = (inputs["input_ids"] == IMAGE_TOKEN_ID)[..., None]
    embeds = embeds.masked_scatter(is_image, visual_tokens)
    model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], labels=labels).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], msg=name)
    for name, parameter in model.model.resampler.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


# ---------------------------------------------------------------------------------------------- building and loading


def test_new_weights_start_as_the_original_ones(tmp_path):
    """As torch initialises its layers: uniform within 1 / sqrt(inputs), also where a checkpoint has none."""
    torch.manual_seed(0)
    new = QueCCLlavaForConditionalGeneration(tiny_quecc_config())
    state = {name: tensor for name, tensor in new.state_dict().items() if "resampler" not in name}
    new.save_pretrained(tmp_path, state_dict=state)
    with torch.device("meta"):
        on_meta = QueCCLlavaForConditionalGeneration(tiny_quecc_config())
    on_meta.to_empty(device="cpu").init_weights()
    for model in (new, QueCCLlavaForConditionalGeneration.from_pretrained(tmp_path), on_meta):
        for module in model.model.resampler.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                bound = 1 / math.sqrt(module.weight[0].numel())
                assert module.weight.abs().max() <= bound and 0 < module.bias.abs().max() <= bound
                assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
            elif isinstance(module, nn.LayerNorm):
                assert (module.weight == 1).all() and (module.bias == 0).all()
    assert on_meta.eval()(**random_quecc_inputs([WHAT])).logits.isfinite().all()
