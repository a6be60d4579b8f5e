"""The second turn of a conversation goes on from the first one's cache, of whichever kind, or is refused."""

import copy

import pytest
import torch
from transformers import DynamicCache

from tests.builders.prompts import prompt_rows, random_pixels


NEW = 5
ONE_IMAGE = [1, 11, "image", 12, 0, 13]
TWO_IMAGES = [1, "image", 21, "image", 22]


@pytest.fixture
def pixel_values():
    return random_pixels(3, seed=1)


def generate(model, inputs, **kwargs) -> torch.Tensor:
    """The new tokens."""
    output = model.generate(**inputs, **{"max_new_tokens": NEW, "do_sample": False, **kwargs})
    return output[:, inputs["input_ids"].shape[1] :]


@pytest.fixture
def first(tiny_model, pixel_values):
    inputs = {**prompt_rows([TWO_IMAGES], [16, 16]), "pixel_values": pixel_values[:2]}
    cache = DynamicCache(config=tiny_model.config)
    output = tiny_model.generate(
        **inputs, past_key_values=cache, num_visual_tokens=[4, 9], max_new_tokens=NEW, do_sample=False
    )
    answer = output[0, inputs["input_ids"].shape[1] :].tolist()
    return cache, [*TWO_IMAGES, *answer, 41, 42]


def second(model, row, images, counts, **kwargs):
    inputs = {**prompt_rows([row], counts), "pixel_values": images, "visual_token_counts": torch.tensor(counts)}
    return generate(model, inputs, **kwargs)


@pytest.mark.parametrize("made_with, m", [([16, 16], [4, 9]), ([4, 9], None), ([4, 9], [4, 9])], ids=str)
def test_same_m_equals_a_fresh_run(tiny_model, pixel_values, first, made_with, m):
    cache, row = first
    expected = second(tiny_model, row, pixel_values[:2], [4, 9])
    calls = []
    tiny_model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    answer = second(tiny_model, row, pixel_values[:2], made_with, num_visual_tokens=m, past_key_values=cache)
    assert torch.equal(answer, expected)
    assert not calls  # the images are in the cache


@pytest.mark.parametrize("m", [None, 9])
@pytest.mark.parametrize("with_counts", [True, False])
def test_only_the_new_image_is_passed(tiny_model, pixel_values, m, with_counts):
    """As transformers' own models go on: full ids, but only what the cache does not hold yet."""
    inputs = {**prompt_rows([ONE_IMAGE], [9]), "pixel_values": pixel_values[:1]}
    cache = DynamicCache(config=tiny_model.config)
    answer = generate(tiny_model, inputs, past_key_values=cache)[0].tolist()
    row = [*ONE_IMAGE, *answer, "image", 43]
    expected = second(tiny_model, row, pixel_values[:2], [9, 9])
    inputs = {**prompt_rows([row], [9, 9]), "pixel_values": pixel_values[1:2]}
    if with_counts:
        inputs["visual_token_counts"] = torch.tensor([9])
    answer = generate(tiny_model, inputs, past_key_values=cache, num_visual_tokens=m)
    assert torch.equal(answer, expected)


def test_only_the_new_image_at_another_m_is_an_error(tiny_model, pixel_values, first):
    cache, row = first
    inputs = {**prompt_rows([[*row, "image", 43]], [4, 9, 9]), "pixel_values": pixel_values[2:3]}
    inputs["visual_token_counts"] = torch.tensor([9])
    with pytest.raises(ValueError, match="holds images at \\[4, 9\\] visual tokens.*asks for \\[9, 9, 9\\]"):
        generate(tiny_model, inputs, past_key_values=cache, num_visual_tokens=9)


@pytest.mark.parametrize("default", [None, 4])
def test_only_the_new_tokens_are_passed(tiny_model, pixel_values, default):
    inputs = {**prompt_rows([ONE_IMAGE], [4]), "pixel_values": pixel_values[:1]}
    tiny_model.generation_config.num_visual_tokens = default
    cache = DynamicCache(config=tiny_model.config)
    answer = generate(tiny_model, inputs, past_key_values=cache)[0].tolist()
    row = [*ONE_IMAGE, *answer, 41, 42]
    expected = second(tiny_model, row, pixel_values[:1], [4])
    whole = prompt_rows([row], [4])
    new_tokens = whole["input_ids"][:, cache.get_seq_length() :]
    output = tiny_model.generate(
        new_tokens,
        attention_mask=whole["attention_mask"],
        past_key_values=cache,
        max_new_tokens=NEW,
        do_sample=False,
    )
    assert torch.equal(output[:, new_tokens.shape[1] :], expected)
    row = [*row, *output[0, new_tokens.shape[1] :].tolist(), 43]
    expected = second(tiny_model, row, pixel_values[:1], [4])
    tiny_model.model.vision_tower.register_forward_hook(lambda *_: pytest.fail("The cache holds the image."))
    assert torch.equal(second(tiny_model, row, pixel_values[:1], [4], past_key_values=cache), expected)


@pytest.mark.parametrize("num_cached", [2, 3, 5, 6])
def test_embeddings_beside_a_cache_that_ends_around_an_image(tiny_model, pixel_values, num_cached):
    prompt = prompt_rows([ONE_IMAGE], [4])  # whose image is in columns 2 to 5
    images = {"pixel_values": pixel_values[:1]}
    whole = tiny_model.generate(**prompt, **images, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
    cache = whole.past_key_values
    cache.crop(num_cached - cache.get_seq_length())
    embeds = tiny_model.get_input_embeddings()(prompt["input_ids"])
    call = {"inputs_embeds": embeds, "attention_mask": prompt["attention_mask"], "past_key_values": cache}
    if 2 < num_cached < 6:
        with pytest.raises(ValueError, match=f"holds {num_cached - 2} of the 4 visual tokens of an image"):
            tiny_model.generate(**call, **images, max_new_tokens=NEW, do_sample=False)
        return
    answer = tiny_model.generate(**call, **images, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(answer[:, -NEW:], whole.sequences[:, -NEW:])


def test_a_further_image(tiny_model, pixel_values, first):
    cache, row = first
    row = [*row, "image", 43]
    expected = second(tiny_model, row, pixel_values[:3], [4, 9, 2])
    answer = second(tiny_model, row, pixel_values[:3], [16] * 3, num_visual_tokens=[4, 9, 2], past_key_values=cache)
    assert torch.equal(answer, expected)


@pytest.mark.parametrize("made_with, m", [([16, 16], 4), ([4, 9], 9), ([16, 16], None)], ids=str)
def test_another_m_is_an_error(tiny_model, pixel_values, first, made_with, m):
    cache, row = first
    with pytest.raises(ValueError, match="`past_key_values` holds images at \\[4, 9\\] visual tokens"):
        second(tiny_model, row, pixel_values[:2], made_with, num_visual_tokens=m, past_key_values=cache)


def test_a_cropped_cache_equals_a_fresh_run(tiny_model, pixel_values, first):
    """Up to between the two images: the second is encoded again."""
    cache, row = first
    cache.crop(1 + 4 + 1 - cache.get_seq_length())
    expected = second(tiny_model, row, pixel_values[:2], [4, 9])
    answer = second(tiny_model, row, pixel_values[:2], [16, 16], num_visual_tokens=[4, 9], past_key_values=cache)
    assert torch.equal(answer, expected)


@torch.no_grad()
def test_another_m_for_a_cache_that_forward_filled(tiny_model, pixel_values):
    inputs = {**prompt_rows([TWO_IMAGES], [4, 4]), "pixel_values": pixel_values[:2]}
    cache = tiny_model(**inputs).past_key_values
    row = [*TWO_IMAGES, 41]
    with pytest.raises(ValueError, match="past_key_values"):
        second(tiny_model, row, pixel_values[:2], [4, 4], num_visual_tokens=2, past_key_values=copy.deepcopy(cache))
    expected = second(tiny_model, row, pixel_values[:2], [4, 4])
    answer = second(tiny_model, row, pixel_values[:2], [4, 4], num_visual_tokens=4, past_key_values=cache)
    assert torch.equal(answer, expected)
