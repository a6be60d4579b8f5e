"""What `generate` may be passed: images encoded in any form, numbers of other types, padding on the right, caches."""

import copy

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from mqt_llava import AdaptiveBudget
from tests.builders.both import BOTH, MQT, QUECC, image_inputs
from tests.builders.models import random_model, random_quecc_model
from tests.builders.prompts import pad, random_inputs, random_pixels, random_quecc_inputs
from tests.builders.turns import text_of


NEW = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture
def inputs():
    return random_inputs([16, 16])


class TestGradientCheckpointing:
    @pytest.fixture(params=[MQT, QUECC], ids=["mqt", "quecc"])
    def trained(self, request):
        model, inputs = request.param.make_model().train(), request.param.make_inputs(*request.param.rows[:1])
        model.gradient_checkpointing_enable()
        return model, inputs

    def test_without_a_cache_it_would_see_the_last_token_alone(self, trained):
        model, inputs = trained
        with pytest.raises(ValueError, match="training mode with gradient checkpointing.*`use_cache=False`"):
            model.generate(**inputs, **NEW)

    def test_the_ways_out_are_right(self, trained):
        model, inputs = trained
        without = model.generate(**inputs, **NEW, use_cache=False)
        assert torch.equal(model.eval().generate(**inputs, **NEW), without)
        model.train().gradient_checkpointing_disable()
        assert torch.equal(model.generate(**inputs, **NEW), without)

    def test_adaptive(self, inputs):
        model = random_model().train()
        model.gradient_checkpointing_enable()
        with pytest.raises(ValueError, match="training mode with gradient checkpointing"):
            model.generate(**inputs, num_visual_tokens=AdaptiveBudget([1, 4]), **NEW)


class TestEncodedImages:
    @pytest.mark.parametrize("case, m", [(MQT, None), (MQT, 4), (QUECC, None)], ids=["mqt", "mqt at 4", "quecc"])
    def test_with_gradients_and_an_assistant(self, case, m):
        model, assistant = case.make_model(), case.make_model(seed=1)
        inputs = case.make_inputs([16, 16] if case is MQT else [[21, 22], [23]])
        model.generation_config.num_visual_tokens = assistant.generation_config.num_visual_tokens = m
        expected = model.generate(**inputs, **NEW)
        encoded = model.get_image_features(**image_inputs(inputs))
        assert encoded.pooler_output[0].requires_grad
        kwargs = {**text_of(inputs), "mm_encoder_outputs": {"image": encoded}, "assistant_model": assistant}
        assert torch.equal(model.generate(**kwargs, **NEW), expected)
        assert encoded.pooler_output[0].requires_grad  # the caller's is as it was

    @BOTH
    @pytest.mark.parametrize("call", ["generate", "forward"])
    @pytest.mark.parametrize("form", ["tensor", "tuple", "output", "tensor inside", "tuple inside", "flat inside"])
    def test_in_another_form(self, case, call, form):
        model, inputs = case.make_model(), case.make_inputs(*case.rows[:1])
        encoded = model.get_image_features(**image_inputs(inputs))
        inputs = text_of(inputs)
        tokens = encoded.pooler_output[0]
        flat = type(encoded)(pooler_output=[tokens[0]])
        encoded = {
            "tensor": tokens, "tuple": (tokens,), "output": encoded, "tensor inside": {"image": tokens},
            "tuple inside": {"image": (tokens,)}, "flat inside": {"image": flat},
        }[form]  # fmt: skip
        with pytest.raises((TypeError, ValueError), match="`mm_encoder_outputs.*must (be|hold)"):
            getattr(model, call)(**inputs, mm_encoder_outputs=encoded)

    def test_as_one_tensor_of_all_images(self, tiny_model, inputs):
        expected = tiny_model.generate(**inputs, num_visual_tokens=4, **NEW)
        encoded = tiny_model.get_image_features(inputs.pop("pixel_values"))
        encoded["pooler_output"] = torch.stack(encoded.pooler_output)
        kwargs = {"mm_encoder_outputs": {"image": encoded}, "num_visual_tokens": 4, **NEW}
        assert torch.equal(tiny_model.generate(**inputs, **kwargs), expected)


class TestNumbersOfOtherTypes:
    @pytest.mark.parametrize(
        "first, numbers",
        [([4, 9], np.array([4, 9])), ([4, 9], torch.tensor([4, 9])), ([4, 9], (4, 9)), ([4, 4], torch.tensor(4))]
        + [([4, 4], np.int64(4))],
        ids=str,
    )
    @pytest.mark.parametrize("is_sliced", [True, False])
    def test_in_a_continuation(self, tiny_model, inputs, first, numbers, is_sliced):
        cache = DynamicCache(config=tiny_model.config)
        ids = tiny_model.generate(**inputs, num_visual_tokens=first, past_key_values=cache, **NEW)
        ids = torch.cat([ids, torch.tensor([[21, 22]])], dim=1)
        whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        expected = tiny_model.generate(**whole, num_visual_tokens=first, **NEW)[:, -5:]
        if is_sliced:
            mask = torch.ones(1, cache.get_seq_length() + 3, dtype=torch.long)
            whole = {"input_ids": ids[:, -3:], "attention_mask": mask}
        output = tiny_model.generate(**whole, num_visual_tokens=numbers, past_key_values=cache, **NEW)
        assert torch.equal(output[:, -5:], expected)

    @pytest.mark.parametrize("numbers", [np.array([4, 4]), torch.tensor(9), [4], 17], ids=str)
    def test_wrong_ones_in_a_sliced_continuation(self, tiny_model, inputs, numbers):
        cache = DynamicCache(config=tiny_model.config)
        tiny_model.generate(**inputs, num_visual_tokens=[4, 9], past_key_values=cache, **NEW)
        mask = torch.ones(1, cache.get_seq_length() + 2, dtype=torch.long)
        with pytest.raises(ValueError, match="`num_visual_tokens`"):
            tiny_model.generate(
                torch.tensor([[21, 22]]), attention_mask=mask, num_visual_tokens=numbers, past_key_values=cache
            )

    @pytest.mark.parametrize("counts", [4, torch.tensor(4), (4, 4), np.array([4, 4])], ids=str)
    def test_counts(self, tiny_model, counts):
        inputs = random_inputs([4, 4])
        expected = tiny_model.generate(**inputs, **NEW)
        assert torch.equal(tiny_model.generate(**{**inputs, "visual_token_counts": counts}, **NEW), expected)
        logits = tiny_model(**{**inputs, "visual_token_counts": counts}).logits
        torch.testing.assert_close(logits, tiny_model(**inputs).logits)

    @pytest.mark.parametrize("counts", ["4", 4.0, True, [4], torch.tensor([4.0, 4.0])], ids=str)
    @pytest.mark.parametrize("call", ["generate", "forward"])
    def test_wrong_counts(self, tiny_model, counts, call):
        inputs = {**random_inputs([4, 4]), "visual_token_counts": counts}
        with pytest.raises((TypeError, ValueError), match="`visual_token_counts`"):
            getattr(tiny_model, call)(**inputs)


class TestPaddingOnTheRight:
    ROWS = [[1, 11, *[99] * 4, 12, 0, 14], [1, *[99] * 4, 21], [1, 31, 32]]

    @pytest.mark.parametrize("m", [None, 4, 9])
    @pytest.mark.parametrize("kwargs", [{}, {"num_beams": 2}, {"num_visual_tokens": AdaptiveBudget([4])}], ids=str)
    def test_is_right_at_every_m(self, tiny_model, m, kwargs, caplog):
        kwargs = {"num_visual_tokens": m, **kwargs, **NEW}
        outputs = []
        for side in ("left", "right"):
            ids, mask = pad(self.ROWS, side)
            outputs.append(tiny_model.generate(ids, attention_mask=mask, pixel_values=random_pixels(2), **kwargs))
            assert torch.equal(outputs[-1][:, : ids.shape[1]], ids)
        assert torch.equal(outputs[0][:, -5:], outputs[1][:, -5:])
        assert not caplog.records

    def test_and_with_positions(self, tiny_model):
        ids, mask = pad(self.ROWS, "right")
        kwargs = {"pixel_values": random_pixels(2), **NEW}
        expected = tiny_model.generate(ids, attention_mask=mask, **kwargs)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        assert torch.equal(tiny_model.generate(ids, attention_mask=mask, position_ids=positions, **kwargs), expected)

    def test_quecc(self, caplog):
        model = random_quecc_model()
        rows = [[[21, 22], [23]], [[24]], []]
        left, right = (model.generate(**random_quecc_inputs(*rows, side=side), **NEW) for side in ("left", "right"))
        assert torch.equal(left[:, -5:], right[:, -5:]) and not caplog.records

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_without_a_mask(self, tiny_model, side):
        """As transformers infers it; a pad token between others is text at every m."""
        ids, mask = pad(self.ROWS, side)
        for m in (None, 4, 9):
            kwargs = {"pixel_values": random_pixels(2), "num_visual_tokens": m, **NEW}
            expected = tiny_model.generate(ids, attention_mask=mask, **kwargs)
            assert torch.equal(tiny_model.generate(ids, **kwargs), expected)


@pytest.mark.parametrize("m", [None, 2])
def test_images_that_are_missing(tiny_model, m):
    inputs = random_inputs([4])
    del inputs["pixel_values"]
    with pytest.raises(ValueError, match="4 image tokens, but the images of the prompt are missing"):
        tiny_model.generate(**inputs, num_visual_tokens=m, **NEW)


def test_a_cache_that_is_none(tiny_model, inputs):
    with pytest.raises(TypeError, match="`past_key_values` is a tuple, but must be a `Cache`"):
        tiny_model.generate(**inputs, past_key_values=((torch.zeros(1),),), **NEW)


def test_a_cache_that_was_filled_elsewhere_and_padding(tiny_model):
    inputs = random_inputs([4], [4, 4])
    with torch.no_grad():
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        cache = tiny_model(**inputs, position_ids=positions).past_key_values
    ids = torch.cat([inputs["input_ids"], torch.tensor([[21], [22]])], dim=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    kwargs = {name: inputs[name] for name in ("pixel_values", "visual_token_counts")}
    expected = tiny_model.generate(ids, attention_mask=mask, **kwargs, **NEW)
    for tokens in (ids, ids[:, -1:]):
        used = copy.deepcopy(cache)
        output = tiny_model.generate(tokens, attention_mask=mask, past_key_values=used, **NEW)
        assert torch.equal(output[:, -5:], expected[:, -5:])


def test_a_cache_that_was_filled_elsewhere():
    model = random_model()
    inputs = random_inputs([4, 9])
    with torch.no_grad():
        cache = model(**inputs).past_key_values
    ids = torch.cat([inputs["input_ids"], torch.tensor([[21, *[99] * 3, 22]])], dim=1)
    pixels = torch.cat([inputs["pixel_values"], random_pixels(1) + 1])
    counts = torch.tensor([4, 9, 3])
    expected = model.generate(ids, pixel_values=pixels, visual_token_counts=counts, **NEW)
    for kwargs in (
        {"pixel_values": pixels, "visual_token_counts": counts},
        {"pixel_values": pixels[2:], "visual_token_counts": counts[2:]},
        {"mm_encoder_outputs": {"image": model.get_image_features(pixels)}, "visual_token_counts": counts},
    ):
        used = DynamicCache([(layer.keys, layer.values) for layer in cache.layers])
        assert torch.equal(model.generate(ids, past_key_values=used, **kwargs, **NEW), expected)
