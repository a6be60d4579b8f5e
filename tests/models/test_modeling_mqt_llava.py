"""The model: what it computes, what it does not compute, and what it is built from."""

import copy
import math

import pytest
import torch
from torch import nn

from mqt_llava import MQTLlavaForConditionalGeneration, MQTLlavaModel
from mqt_llava.models.model_card import usage
from mqt_llava.models.modeling_mqt_llava import MQTLlavaResampler, sine_cosine_positions
from tests.builders.configs import tiny_config
from tests.builders.models import count_calls, random_model
from tests.builders.numbers import relative_error
from tests.builders.prompts import random_inputs, random_pixels, text_labels


@torch.no_grad()
@pytest.mark.parametrize("m", range(1, 17))
def test_encoding_at_m_equals_the_first_m_of_all(tiny_model, m):
    pixel_values = random_pixels(3)
    everything = torch.stack(tiny_model.get_image_features(pixel_values).pooler_output)
    tokens = torch.stack(tiny_model.get_image_features(pixel_values, [m] * 3).pooler_output)
    assert tokens.shape == (3, m, 32)
    assert relative_error(tokens, everything[:, :m]) < 1e-6


@torch.no_grad()
def test_encoding_at_m_equals_the_first_m_of_256(golden_model):
    resampler = golden_model.model.resampler
    patches = torch.randn(2, 576, 64, generator=torch.Generator().manual_seed(0))
    everything = resampler(patches)
    errors = [relative_error(resampler(patches, num_visual_tokens=m), everything[:, :m]) for m in range(1, 257)]
    assert max(errors) < 1e-6


@torch.no_grad()
def test_each_image_gets_its_own_number_of_tokens(tiny_model):
    everything = tiny_model.get_image_features(random_pixels(3)).pooler_output
    features = tiny_model.get_image_features(random_pixels(3), torch.tensor([2, 16, 5]))
    assert [tokens.shape for tokens in features.pooler_output] == [(2, 32), (16, 32), (5, 32)]
    for tokens, all_tokens in zip(features.pooler_output, everything):
        assert relative_error(tokens, all_tokens[: len(tokens)]) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("num_images", [1, 5])
def test_attention_weights_are_computed_once_per_call(tiny_model, num_images):
    resampler = tiny_model.model.resampler
    queries, keys, values = map(count_calls, (resampler.q_proj, resampler.k_proj, resampler.v_proj))
    tiny_model(**random_inputs([3] * num_images))
    assert queries == [(3, 32)]
    assert keys == [(16, 32)]
    assert values == [(num_images, 16, 32)]


@torch.no_grad()
def test_attention_weights_do_not_depend_on_the_image(tiny_model):
    # Then, and only then, the tokens are an affine function of the values.
    resampler = tiny_model.model.resampler
    resampler.ln_v = nn.Identity()
    a, b = torch.randn(2, 1, 16, 32, generator=torch.Generator().manual_seed(0))
    zero = resampler(torch.zeros_like(a))
    torch.testing.assert_close(resampler(a + 3 * b) - zero, (resampler(a) - zero) + 3 * (resampler(b) - zero))


@torch.no_grad()
@pytest.mark.parametrize(
    "max_visual_tokens, num_patches, heads", [(16, 16, 16), (4, 16, 4), (16, 9, 8), (1, 4, 2), (256, 576, 16)]
)
@pytest.mark.parametrize("is_rounded", [False, True], ids=["float32 table", "half table"])
def test_resampler_computes_the_published_formula(max_visual_tokens, num_patches, heads, is_rounded):
    config = tiny_config(max_visual_tokens=max_visual_tokens, resampler_num_attention_heads=heads)
    resampler = MQTLlavaResampler(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in resampler.parameters():
        parameter.normal_(std=0.5, generator=generator)
    if is_rounded:
        resampler.query_positions.copy_(resampler.query_positions.half())
    patches = torch.randn(3, num_patches, 32, generator=generator)

    def layer_norm(states, norm):
        return nn.functional.layer_norm(states, (32,), norm.weight, norm.bias, eps=1e-6)

    attention = nn.MultiheadAttention(32, heads, batch_first=True)
    attention.in_proj_weight.copy_(torch.cat([resampler.get_submodule(f"{x}_proj").weight for x in "qkv"]))
    attention.in_proj_bias.copy_(torch.cat([resampler.get_submodule(f"{x}_proj").bias for x in "qkv"]))
    attention.out_proj.load_state_dict(resampler.out_proj.state_dict())
    side, grid = math.isqrt(max_visual_tokens), math.isqrt(num_patches)
    raster = resampler.query_positions.float().reshape(1, side, side, 32).permute(0, 3, 1, 2)
    key_positions = nn.functional.interpolate(raster, size=(grid, grid), mode="bicubic", align_corners=False)
    key_positions = key_positions.permute(0, 2, 3, 1).flatten(1, 2)
    expected, _ = attention(
        layer_norm(resampler.query + resampler.query_positions, resampler.ln_q).expand(3, -1, -1),
        layer_norm(key_positions, resampler.ln_k).expand(3, -1, -1),
        layer_norm(patches, resampler.ln_v),
    )
    expected = expected @ resampler.proj.weight.T
    assert relative_error(resampler(patches), expected) < 2e-6


def test_position_table_is_the_one_of_masked_autoencoders():
    table = sine_cosine_positions(side=3, width=16)
    assert table.shape == (9, 16)
    for row in range(3):
        for column in range(3):
            frequencies = [10000 ** -(i / 4) for i in range(4)]
            one_axis = [[f(p * w) for f in (math.sin, math.cos) for w in frequencies] for p in (column, row)]
            torch.testing.assert_close(table[3 * row + column], torch.tensor(one_axis).flatten())


def test_patches_that_are_no_square_are_refused(tiny_model):
    with pytest.raises(ValueError, match="12 tokens per image, which is no square grid"):
        tiny_model.model.resampler(torch.zeros(1, 12, 32))


def test_all_patches_of_a_tower_with_a_class_token_are_no_square():
    model = MQTLlavaForConditionalGeneration(tiny_config(vision_feature_select_strategy="full"))
    with pytest.raises(ValueError, match="17 tokens per image"):
        model.get_image_features(random_pixels(1))


@torch.no_grad()
@pytest.mark.parametrize("layer", [-1, -2])
def test_hidden_states_and_attentions_of_the_tower_are_there_when_asked_for(layer):
    model = random_model(tiny_config(vision_feature_layer=layer))
    model.set_attn_implementation("eager")
    asked = model.get_image_features(random_pixels(1), output_hidden_states=True, output_attentions=True)
    plain = model.get_image_features(random_pixels(1))
    assert sum(state is not None for state in asked.hidden_states) == 5 + layer
    assert len(asked.attentions) == 4 + layer
    torch.testing.assert_close(asked.pooler_output[0], plain.pooler_output[0])


@torch.no_grad()
def test_without_counts_images_share_the_placeholders_equally(tiny_model):
    inputs = random_inputs([3, 3], [3])
    expected = tiny_model(**inputs).logits
    del inputs["visual_token_counts"]
    torch.testing.assert_close(tiny_model(**inputs).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [([3, 4],), ([2], [4]), ([2, 2], [1]), ([1], [])])
def test_without_counts_uneven_shares_are_refused(tiny_model, rows):
    inputs = random_inputs(*rows)
    del inputs["visual_token_counts"]
    if rows == ([1], []):
        inputs["pixel_values"] = random_pixels(2)
    with pytest.raises(ValueError, match="cannot share equally.*`visual_token_counts`"):
        tiny_model(**inputs)


@torch.no_grad()
def test_images_encoded_once_serve_every_m(tiny_model):
    encoded = tiny_model.get_image_features(random_pixels(2))
    before = copy.deepcopy(encoded)
    tiny_model.model.vision_tower.register_forward_pre_hook(lambda *_: pytest.fail("encoded again"))
    for counts in ([16, 16], [1, 1], [5, 2], [16, 16]):
        inputs = random_inputs(counts[:1], counts[1:])
        del inputs["pixel_values"]
        image_hidden_states = tiny_model(**inputs, mm_encoder_outputs={"image": encoded}).image_hidden_states
        expected = [tokens[:count] for tokens, count in zip(encoded.pooler_output, counts)]
        torch.testing.assert_close(image_hidden_states, torch.cat(expected), rtol=0, atol=0)
    assert encoded.keys() == before.keys()
    for after_tokens, before_tokens in zip(encoded.pooler_output, before.pooler_output):
        torch.testing.assert_close(after_tokens, before_tokens, rtol=0, atol=0)


@torch.no_grad()
def test_encoded_images_without_counts(tiny_model):
    inputs = random_inputs([5], [2])
    expected = tiny_model(**inputs).logits
    encoded = tiny_model.get_image_features(inputs.pop("pixel_values"), inputs.pop("visual_token_counts"))
    torch.testing.assert_close(tiny_model(**inputs, mm_encoder_outputs={"image": encoded}).logits, expected)


@torch.no_grad()
def test_only_the_logits_that_are_asked_for(tiny_model):
    inputs = random_inputs([3])
    logits = tiny_model(**inputs).logits
    torch.testing.assert_close(tiny_model(**inputs, logits_to_keep=1).logits, logits[:, -1:])
    torch.testing.assert_close(tiny_model(**inputs, logits_to_keep=torch.tensor([0, 2])).logits, logits[:, [0, 2]])


def test_loss_ignores_minus_100(tiny_model):
    inputs = random_inputs([4], [2, 3])
    labels = text_labels(inputs)
    outputs = tiny_model(**inputs, labels=labels)
    log_probabilities = outputs.logits[:, :-1].log_softmax(-1)
    picked = [-log_probabilities[i, j, labels[i, j + 1]] for i, j in (labels[:, 1:] != -100).nonzero().tolist()]
    torch.testing.assert_close(outputs.loss, torch.stack(picked).mean())


def test_position_tables_are_frozen_and_survive_saving_bit_by_bit(tiny_model, tmp_path):
    table = tiny_model.model.resampler.query_positions
    table.copy_(table.half() + 0.5)  # as no initialisation would give it
    inputs = random_inputs([4])
    tiny_model.train()(**inputs, labels=text_labels(inputs)).loss.backward()
    assert table.grad is None and not table.requires_grad
    assert "model.resampler.query_positions" not in dict(tiny_model.named_parameters())
    tiny_model.save_pretrained(tmp_path)
    reloaded = MQTLlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(reloaded.model.resampler.query_positions, table)
    assert torch.equal(MQTLlavaModel.from_pretrained(tmp_path).resampler.query_positions, table)


def test_a_model_made_on_meta_gets_its_position_table():
    with torch.device("meta"):
        model = MQTLlavaForConditionalGeneration(tiny_config())
    assert model.model.resampler.query_positions.is_meta
    model.to_empty(device="cpu").init_weights()
    assert torch.equal(model.model.resampler.query_positions, sine_cosine_positions(4, 32))
    assert model(**random_inputs([4])).logits.isfinite().all()


def test_weights_missing_from_a_checkpoint_are_initialised(tiny_model, tmp_path):
    state = {key: value for key, value in tiny_model.state_dict().items() if "resampler" not in key}
    tiny_model.save_pretrained(tmp_path, state_dict=state)
    reloaded = MQTLlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(reloaded.model.resampler.query_positions, sine_cosine_positions(4, 32))
    assert 0.01 < reloaded.model.resampler.query.std() < 0.03
    bound = (1.5 / 32) ** 0.5
    for projection in (reloaded.model.resampler.q_proj, reloaded.model.resampler.v_proj):
        low, high = projection.weight.aminmax()
        assert -bound <= low < -0.95 * bound and 0.95 * bound < high <= bound
    assert torch.equal(reloaded.lm_head.weight, tiny_model.lm_head.weight)


def test_placeholders_in_the_labels_count_for_nothing(tiny_model):
    ids = torch.tensor([[1, 5, 99, 99, 6, 7]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 28, 28)}
    masked = torch.where(ids == 99, -100, ids)
    torch.testing.assert_close(tiny_model(**inputs, labels=ids).loss, tiny_model(**inputs, labels=masked).loss)


def test_the_head_can_be_hooked(tiny_model):
    gradients = []
    tiny_model.lm_head.register_full_backward_hook(lambda module, inputs, outputs: gradients.append(outputs))
    ids = torch.tensor([[1, 5, 6]])
    tiny_model(input_ids=ids, labels=ids).loss.backward()
    assert len(gradients) == 1


@pytest.mark.parametrize("return_dict", [True, False])
def test_encoded_images_hold_on_to_no_hidden_states(tiny_model, return_dict):
    outputs = tiny_model.get_image_features(torch.randn(2, 3, 28, 28), return_dict=return_dict)
    if return_dict:
        assert set(outputs) == {"last_hidden_state", "pooler_output"}
    else:
        last_hidden_state, pooler_output = outputs
        assert [tokens.shape for tokens in pooler_output] == [(16, 32), (16, 32)]


def test_missing_vision_weights_are_initialised_as_the_vision_tower_does_it():
    model = MQTLlavaForConditionalGeneration.from_pretrained(None, config=tiny_config(), state_dict={})
    weight = model.model.vision_tower.encoder.layers[0].self_attn.q_proj.weight
    # CLIP's own: width^-0.5 (2 layers)^-0.5, where other models have 0.02 for every weight.
    assert weight.std().item() == pytest.approx(32**-0.5 * 6**-0.5, rel=0.1)


def test_new_weights_are_of_the_expected_size():
    torch.manual_seed(0)
    model = MQTLlavaForConditionalGeneration(tiny_config())
    resampler = model.model.resampler
    assert resampler.query.abs().max() <= 2 and abs(resampler.query.std() - 0.02) < 0.004
    assert abs(resampler.proj.weight.std() - 32**-0.5) < 0.02
    assert all((projection.bias == 0).all() for projection in (resampler.q_proj, resampler.k_proj, resampler.v_proj))
    assert abs(model.lm_head.weight.std() - 0.02) < 0.002
    # The vision tower starts by its own rules: CLIP's query projections are scaled by width and depth.
    weight = model.model.vision_tower.encoder.layers[0].self_attn.q_proj.weight
    assert abs(weight.std() - (32 * 2 * 3) ** -0.5) < 0.01


@pytest.mark.parametrize("most, few", [(256, 16), (4, 1)])
def test_a_card_shows_few_visual_tokens(most, few):
    assert f'{{"num_visual_tokens": {few}}}' in usage(MQTLlavaForConditionalGeneration.card_texts, "you/yours", most)
