"""The second turn of a conversation goes on from the first one's cache, of whichever kind, or is refused."""

import copy

import pytest
import torch
from transformers import DynamicCache

from mqt_llava import VisualTokenCache
from tests.builders.models import count_calls
from tests.builders.turns import NEW, Chat, ask, at, batch, fresh, go_on, text_of


COUNTS = {"a": 4, "b": 9}
REFUSAL = r"`past_key_values` holds images at \[4, 9\] visual tokens"


@pytest.fixture
def first(tiny_model):
    """A cache with two images at 4 and 9 visual tokens, and the conversation that goes on from it."""
    chat, cache = Chat(1, "a", 21, "b", 22), DynamicCache(config=tiny_model.config)
    answers = ask(tiny_model, batch([chat], at(16)), num_visual_tokens=[4, 9], past_key_values=cache)[1]
    return cache, go_on([chat], answers, 41, 42)


@pytest.mark.parametrize("made_with, m", [(at(16), [4, 9]), (COUNTS, None), (COUNTS, [4, 9])], ids=str)
def test_same_m_equals_a_fresh_run(tiny_model, first, made_with, m):
    cache, chats = first
    expected, calls = fresh(tiny_model, chats, COUNTS), count_calls(tiny_model.model.vision_tower)
    assert ask(tiny_model, batch(chats, made_with), num_visual_tokens=m, past_key_values=cache)[1] == expected
    assert not calls  # the images are in the cache


@pytest.mark.parametrize("m", [None, 9])
@pytest.mark.parametrize("with_counts", [True, False])
def test_only_the_new_image_is_passed(tiny_model, m, with_counts):
    """As transformers' own models go on: full ids, but only what the cache does not hold yet; here of one prompt."""
    chats, cache = [Chat(1, 11, "a", 12, 13), Chat(1, "c", 11)], DynamicCache(config=tiny_model.config)
    go_on(chats, ask(tiny_model, batch(chats, at(9)), past_key_values=cache)[1], 43)
    chats[0].pieces[-1:] = ["b", 44]
    chats[1].pieces += [45] * 9
    inputs = batch(chats, at(9))
    inputs["pixel_values"], counts = inputs["pixel_values"][1:2], inputs.pop("visual_token_counts")
    if with_counts:
        inputs["visual_token_counts"] = counts[1:2]
    answers = ask(tiny_model, inputs, num_visual_tokens=m, past_key_values=cache)[1]
    assert answers == fresh(tiny_model, chats, at(9))


def test_only_the_new_image_at_another_m_is_an_error(tiny_model, first):
    cache, (chat,) = first
    chat.pieces += ["c", 43]
    inputs = batch([chat], {**COUNTS, "c": 9})
    for name in ("pixel_values", "visual_token_counts"):
        inputs[name] = inputs[name][2:]
    with pytest.raises(ValueError, match=REFUSAL + r".*asks for \[9, 9, 9\]"):
        ask(tiny_model, inputs, num_visual_tokens=9, past_key_values=cache)


@pytest.mark.parametrize("default", [None, 4])
def test_only_the_new_tokens_are_passed(tiny_model, default):
    chat, cache = Chat(1, 11, "a", 12, 0, 13), DynamicCache(config=tiny_model.config)
    tiny_model.generation_config.num_visual_tokens = default
    chats = go_on([chat], ask(tiny_model, batch([chat], at(4)), past_key_values=cache)[1], 41, 42)
    expected, inputs = fresh(tiny_model, chats, at(4)), text_of(batch(chats, at(4)))
    inputs["input_ids"] = inputs["input_ids"][:, cache.get_seq_length() :]
    assert ask(tiny_model, inputs, past_key_values=cache)[1] == expected
    expected = fresh(tiny_model, go_on(chats, expected, 43), at(4))
    tiny_model.model.vision_tower.register_forward_hook(lambda *_: pytest.fail("The cache holds the image."))
    assert ask(tiny_model, batch(chats, at(4)), past_key_values=cache)[1] == expected


@pytest.mark.parametrize("num_cached", [2, 3, 5, 6])
def test_embeddings_beside_a_cache_that_ends_around_an_image(tiny_model, num_cached):
    inputs = batch([Chat(1, 11, "a", 12, 0, 13)], at(4))  # whose image is in columns 2 to 5
    output, (expected,) = ask(tiny_model, inputs)
    cache = output.past_key_values
    cache.crop(num_cached - cache.get_seq_length())
    inputs["inputs_embeds"] = tiny_model.get_input_embeddings()(inputs.pop("input_ids"))
    call = {**inputs, "past_key_values": cache, "max_new_tokens": NEW, "do_sample": False}
    if 2 < num_cached < 6:
        with pytest.raises(ValueError, match=f"holds {num_cached - 2} of the 4 visual tokens of an image"):
            tiny_model.generate(**call)
    else:
        assert tiny_model.generate(**call)[0, -NEW:].tolist() == expected


def test_processors_of_logits_see_the_whole_prompt(tiny_model, first):
    cache, chats = first
    inputs, seen = batch(chats, COUNTS), []
    ask(tiny_model, inputs, past_key_values=cache, logits_processor=[lambda ids, logits: seen.append(ids) or logits])
    assert torch.equal(seen[0], inputs["input_ids"])


def test_a_further_image(tiny_model, first):
    cache, (chat,) = first
    chat.pieces += ["c", 43]
    answers = ask(tiny_model, batch([chat], at(16)), num_visual_tokens=[4, 9, 2], past_key_values=cache)[1]
    assert answers == fresh(tiny_model, [chat], {**COUNTS, "c": 2})


@pytest.mark.parametrize("made_with, m", [(at(16), 4), (COUNTS, 9), (at(16), None)], ids=str)
def test_another_m_is_an_error(tiny_model, first, made_with, m):
    cache, chats = first
    with pytest.raises(ValueError, match=REFUSAL):
        ask(tiny_model, batch(chats, made_with), num_visual_tokens=m, past_key_values=cache)


def test_a_cropped_cache_equals_a_fresh_run(tiny_model, first):
    """Up to between the two images: the second is encoded again."""
    cache, chats = first
    cache.crop(1 + 4 + 1 - cache.get_seq_length())
    answers = ask(tiny_model, batch(chats, at(16)), num_visual_tokens=[4, 9], past_key_values=cache)[1]
    assert answers == fresh(tiny_model, chats, COUNTS)


@torch.no_grad()
def test_another_m_for_a_cache_that_forward_filled(tiny_model):
    chat = Chat(1, "a", 21, "b", 22)
    cache = tiny_model(**batch([chat], at(4))).past_key_values
    chat.pieces += [41]
    inputs = batch([chat], at(4))
    with pytest.raises(ValueError, match="past_key_values"):
        ask(tiny_model, inputs, num_visual_tokens=2, past_key_values=copy.deepcopy(cache))
    answers = ask(tiny_model, inputs, num_visual_tokens=4, past_key_values=cache)[1]
    assert answers == fresh(tiny_model, [chat], at(4))


@pytest.mark.parametrize("filled", ["by hand", "by generate"])
@pytest.mark.parametrize("kind", [DynamicCache, VisualTokenCache])
@pytest.mark.parametrize("m", [None, 4])
def test_an_image_right_behind_a_cached_one_has_to_be_counted(tiny_model, m, kind, filled):
    """Else it could as well be one with the first: eight placeholders in a row, of which four are cached."""
    chat, cache = Chat(1, 11, "a"), kind(config=tiny_model.config)
    inputs = batch([chat], at(4))
    with torch.no_grad():
        if filled == "by hand":
            tiny_model(**inputs, past_key_values=cache)
        else:
            ask(tiny_model, inputs, past_key_values=cache)
            cache.crop(inputs["input_ids"].shape[1] - cache.get_seq_length())
    chat.pieces += ["b", 21]
    inputs = batch([chat], at(4))
    inputs["pixel_values"], counts = inputs["pixel_values"][1:], inputs.pop("visual_token_counts")
    with pytest.raises(ValueError, match="ends behind 4 of 8 image tokens in a row.* Pass `visual_token_counts`"):
        ask(tiny_model, inputs, num_visual_tokens=m, past_key_values=copy.deepcopy(cache))
    inputs["visual_token_counts"] = counts[1:]
    answers = ask(tiny_model, inputs, num_visual_tokens=m, past_key_values=cache)[1]
    assert answers == fresh(tiny_model, [chat], at(4))
