"""Conversations continued from a cache, against fresh runs on whole conversations, one by one and without padding."""

import copy
import random

import pytest
import torch
from transformers import DynamicCache

from mqt_llava import AdaptiveBudget, VisualTokenCache
from mqt_llava.models.visual_token_cache import CachedPrompts
from tests.builders.configs import DECODERS, decoder_config, tiny_config
from tests.builders.models import random_model
from tests.builders.turns import NEW, Chat, ask, at, batch, fresh, go_on, text_of


STOP = {"confidence": 0.0}


@pytest.fixture
def model(tiny_model):
    return tiny_model


@pytest.mark.parametrize("made", [16, 2])
def test_an_adaptive_turn_with_extra_padding(model, made):
    chats = [Chat(1, 11, "a", 12, 13)]
    output, answers = ask(model, batch(chats, at(16), padding=5), num_visual_tokens=AdaptiveBudget([2, 4], **STOP))
    go_on(chats, answers, 21, 22)
    expected = fresh(model, chats, at(2))
    inputs = batch(chats, at(made), padding=5)
    assert ask(model, inputs, num_visual_tokens=2, past_key_values=output.past_key_values)[1] == expected


@pytest.mark.parametrize("is_own", [True, False], ids=["returned", "DynamicCache"])
def test_a_shorter_answer_masked_in_mid_row(model, is_own):
    chats = [Chat(1, 11, "a", 12, 13), Chat(1, "b", 31)]
    _, answers = ask(model, batch(chats, at(16)), num_visual_tokens=4)
    model.generation_config.eos_token_id = answers[0][1]
    model.generation_config.pad_token_id = 0
    cache = None if is_own else DynamicCache(config=model.config)
    output, answers = ask(model, batch(chats, at(16)), num_visual_tokens=4, past_key_values=cache)
    assert answers[0][2:] == [0, 0] and len(set(answers[1])) > 2
    model.generation_config.eos_token_id = None
    chats[0].pieces += answers[0][:2] + [21, 22]
    chats[1].pieces += answers[1] + [23, 24]
    expected = fresh(model, chats, at(4))
    inputs = batch(chats, at(16), masked=[(20 + 2, 2), (0, 0)])
    assert ask(model, inputs, num_visual_tokens=4, past_key_values=output.past_key_values)[1] == expected


@pytest.mark.parametrize("is_own", [True, False], ids=["returned", "DynamicCache"])
def test_the_second_turn_made_with_other_padding(model, is_own):
    chats = [Chat(1, 11, "a", 12, 13), Chat(1, 14)]
    cache = None if is_own else DynamicCache(config=model.config)
    output, answers = ask(model, batch(chats, at(4), padding=3), past_key_values=cache)
    go_on(chats, answers, 21)
    expected = fresh(model, chats, at(4))
    inputs = batch(chats, at(16), padding=3)
    assert ask(model, inputs, num_visual_tokens=4, past_key_values=output.past_key_values)[1] == expected


@pytest.mark.parametrize("m", [None, [4, 9, 3]], ids=str)
def test_no_images_at_unequal_numbers(model, m):
    """Directly beside each other, so that the placeholders do not tell."""
    chats, counts = [Chat(1, "a", "b", 12), Chat(1, 31, "c", 12)], {"a": 4, "b": 9, "c": 3}
    for cache in (None, DynamicCache(config=model.config)):
        output, answers = ask(model, batch(chats, counts), past_key_values=cache)
        longer = [Chat(*chat.pieces, *answer, 21) for chat, answer in zip(chats, answers)]
        inputs = text_of(batch(longer, counts))
        answers = ask(model, inputs, num_visual_tokens=m, past_key_values=output.past_key_values)[1]
        assert answers == fresh(model, longer, counts)


@pytest.mark.parametrize("change", ["reorder", "select", "repeat", "deepcopy", "crop"])
@pytest.mark.parametrize("is_own", [True, False], ids=["returned", "DynamicCache"])
def test_changed_caches(model, change, is_own):
    chats = [Chat(1, 11, "a", 12, 13), Chat(1, 14), Chat(1, "b", 15, "c", 16)]
    counts = {"a": 4, "b": 2, "c": 7}
    cache = None if is_own else DynamicCache(config=model.config)
    output, answers = ask(model, batch(chats, at(16), padding=2), num_visual_tokens=[4, 2, 7], past_key_values=cache)
    go_on(chats, answers, 21)
    cache, order = output.past_key_values, [0, 1, 2]
    if change == "reorder":
        order = [2, 0, 1]
        cache.reorder_cache(torch.tensor(order))
    elif change == "select":
        order = [2, 0]
        cache.batch_select_indices(torch.tensor(order))
    elif change == "repeat":
        order = [0, 0, 1, 1, 2, 2]
        cache.batch_repeat_interleave(2)
    elif change == "deepcopy":
        cache = copy.deepcopy(cache)
    else:
        cache.crop(-2)
    chats = [chats[row] for row in order]
    inputs = batch(chats, at(16), padding=1)
    numbers = [counts[image] for chat in chats for image in chat.images]
    answers = ask(model, inputs, num_visual_tokens=numbers, past_key_values=cache)[1]
    assert answers == fresh(model, chats, counts)


def test_prompts_in_another_order_than_the_cache(model):
    """An `VisualTokenCache` finds the row of a prompt; nothing is computed twice but what differs."""
    chats = [Chat(1, 11, "a", 12), Chat(1, "b", 13), Chat(1, 14)]
    output, answers = ask(model, batch(chats, at(4)))
    chats = [Chat(*chats[row].pieces, *answers[row], 21) for row in (2, 0, 0)]
    lengths = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    answers = ask(model, batch(chats, at(4)), past_key_values=output.past_key_values)[1]
    assert lengths[0] == 2  # the last token of the answer and the question
    assert answers == fresh(model, chats, at(4))


@pytest.mark.parametrize("first, second", [(4, 16), (16, 4), (9, [2, 16]), ([3, 5], [5, 3])], ids=str)
def test_another_number_of_visual_tokens(model, first, second):
    """Visual tokens nest: those that both numbers have in common are kept."""
    chats = [Chat(1, 11, "a", "b", 12, 13)]
    cache = VisualTokenCache(config=model.config)
    answers = ask(model, batch(chats, at(16)), num_visual_tokens=first, past_key_values=cache)[1]
    go_on(chats, answers, 21)
    lengths = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    answers = ask(model, batch(chats, at(16)), num_visual_tokens=second, past_key_values=cache)[1]
    hook.remove()
    before, now = (dict(zip("ab", m)) if isinstance(m, list) else at(m) for m in (first, second))
    assert answers == fresh(model, chats, now)
    assert lengths[0] == len(chats[0].ids(now)) - 2 - min(before["a"], now["a"])


def test_another_image_is_not_the_one_in_the_cache(model):
    chats, others = [Chat(1, 11, "a", 12, 13)], [Chat(1, 11, "b", 12, 13)]
    for encode in (False, True):
        cache = VisualTokenCache(config=model.config)
        for conversation in (chats, others):
            inputs = batch(conversation, at(4))
            if encode:
                encoded = model.get_image_features(inputs.pop("pixel_values"))
                inputs["mm_encoder_outputs"] = {"image": encoded}
            assert ask(model, inputs, past_key_values=cache)[1] == fresh(model, conversation, at(4))


def test_images_that_are_needed_and_not_passed(model):
    chats = [Chat(1, 11, "a", 12, 13)]
    output, answers = ask(model, batch(chats, at(4)))
    go_on(chats, answers, 21)
    inputs = text_of(batch(chats, at(9)))
    with pytest.raises(ValueError, match=r"`past_key_values` holds images at \[4\] visual tokens, .* asks for \[9\]"):
        ask(model, inputs, past_key_values=output.past_key_values)
    # Nothing is lost.
    inputs = text_of(batch(chats, at(4)))
    assert ask(model, inputs, past_key_values=output.past_key_values)[1] == fresh(model, chats, at(4))


def test_with_an_assistant(model):
    """It has a cache of its own, so that all is read again."""
    chats, cache = [Chat(1, 11, "a", 12, 13)], VisualTokenCache(config=model.config)
    for m in (None, 9):
        model.generation_config.num_visual_tokens = m
        inputs = batch(chats, at(4))
        answers = ask(model, inputs, past_key_values=cache, assistant_model=model)[1]
        assert answers == fresh(model, chats, at(m or 4))
        chats[0].pieces += answers[0] + [21, "b", 22]


@pytest.mark.parametrize("kwargs", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 3}], ids=str)
def test_beams_before_and_after(model, kwargs):
    chats = [Chat(1, 11, "a", 12, 13), Chat(1, 14)]
    cache = VisualTokenCache(config=model.config)
    answers = ask(model, batch(chats, at(16), padding=2), num_visual_tokens=4, past_key_values=cache, **kwargs)[1]
    copies = kwargs.get("num_return_sequences", 1)
    longer = [Chat(*chat.pieces, *answer, 21) for chat, answer in zip(chats, answers[::copies])]
    longer[0].pieces += ["b", 22]
    assert len(cache.layers[0].keys) == 6
    expected = [ask(model, batch([chat], at(4)), **kwargs)[1] for chat in longer]
    answers = ask(model, batch(longer, at(16)), num_visual_tokens=4, past_key_values=cache, **kwargs)[1]
    assert answers == sum(expected, [])
    assert ask(model, batch(longer, at(16)), num_visual_tokens=4, past_key_values=cache)[1] == fresh(
        model, longer, at(4)
    )


def test_only_new_tokens_with_a_mask_that_shows_padding(model):
    chats = [Chat(1, 11, "a", 12, 13), Chat(1, 14)]
    output, _ = ask(model, batch(chats, at(4)))
    length = output.past_key_values.get_seq_length()
    new = torch.tensor([[21, 22], [23, 24]])
    with pytest.raises(ValueError, match="`attention_mask` shows columns of `past_key_values` that hold padding"):
        model.generate(
            new, attention_mask=torch.ones(2, length + 2), past_key_values=output.past_key_values, max_new_tokens=1
        )
    with pytest.raises(ValueError, match=r"`attention_mask` is \(2, 5\).*cover the"):
        model.generate(new, attention_mask=torch.ones(2, 5), past_key_values=output.past_key_values, max_new_tokens=1)


@pytest.mark.parametrize("name", [*DECODERS, "mistral with windows", "dynamic"])
def test_decoders(name):
    if name == "mistral with windows":
        text_config = decoder_config("mistral")
        text_config.sliding_window = 8
    elif name == "dynamic":
        text_config = decoder_config("llama")
        text_config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
        text_config.max_position_embeddings = 16
    else:
        text_config = decoder_config(name)
    model = random_model(tiny_config(text_config=text_config))
    chats, cache = [Chat(1, 11, "a", 12, 13), Chat(1, 14, 15)], VisualTokenCache(config=text_config)
    if name == "dynamic":  # the longest prompt of a batch decides
        del chats[1]
    for turn, m in enumerate((4, 4, 9, 2)):
        answers = ask(model, batch(chats, at(16), padding=turn), num_visual_tokens=m, past_key_values=cache)[1]
        assert answers == fresh(model, chats, at(m), use_cache=True)
        for chat, answer in zip(chats, answers):
            chat.pieces += answer[: NEW - turn % 2] + [20 + turn]
    answers = ask(model, batch(chats[:1], at(2)), past_key_values=cache)[1]
    assert answers == fresh(model, chats[:1], at(2))


@pytest.mark.parametrize("seed", range(20))
def test_random_conversations(model, seed):
    """Any number, padding, side, order and cropping in each of four turns."""
    rng = random.Random(seed)
    names = iter("abcdef")
    chats = []
    for row in range(rng.randint(1, 3)):
        chats.append(Chat(1, 11 + row))
        for _ in range(rng.randint(0, 2)):
            chats[-1].pieces += [next(names)] + [31 + row] * rng.randint(0, 1)
        chats[-1].pieces += [41 + row] * rng.randint(1, 3)
    cache = VisualTokenCache(config=model.config)
    for turn in range(4):
        made, asked = ({name: rng.randint(1, 16) for name in "abcdef"} for _ in range(2))
        inputs = batch(chats, made, rng.randint(0, 3), rng.choice(["left", "right"]))
        numbers = [asked[image] for chat in chats for image in chat.images]
        if turn == 0 and numbers and rng.random() < 0.3:
            output, answers = ask(
                model, inputs, num_visual_tokens=AdaptiveBudget([2, 5], **STOP), past_key_values=cache
            )
            asked = at(2)
        else:
            _, answers = ask(model, inputs, num_visual_tokens=numbers or None, past_key_values=cache)
        assert answers == fresh(model, chats, asked)
        for chat, answer in zip(chats, answers):
            chat.pieces += answer[: rng.randint(1, NEW)] + [50 + turn]
        if rng.random() < 0.3:
            cache.crop(-rng.randint(1, 5))
        if rng.random() < 0.3:
            order = rng.sample(range(len(chats)), rng.randint(1, len(chats)))
            chats = [copy.deepcopy(chats[row]) for row in order]
            cache.batch_select_indices(torch.tensor(order))


def test_what_is_not_known_any_more_is_computed_again(model):
    """Which rows are left of a `DynamicCache`, nobody says beside new tokens alone."""
    chats, cache = [Chat(1, 11, "a", 12), Chat(1, 14)], DynamicCache(config=model.config)
    answers = ask(model, batch(chats, at(16), padding=4), num_visual_tokens=4, past_key_values=cache)[1]
    chat = Chat(*chats[0].pieces, *answers[0], 21)
    cache.batch_select_indices(torch.tensor([0]))
    mask = torch.ones(1, cache.get_seq_length() + 2, dtype=torch.long)
    inputs = {"input_ids": torch.tensor([[answers[0][-1], 21]]), "attention_mask": mask}
    answers = ask(model, inputs, past_key_values=cache)[1]
    assert answers == fresh(model, [chat], at(4))
    chat.pieces += answers[0] + [22]
    inputs = batch([chat], at(16), padding=4)
    assert ask(model, inputs, num_visual_tokens=4, past_key_values=cache)[1] == fresh(model, [chat], at(4))


def test_new_tokens_padded_on_the_right(model):
    chats = [Chat(1, 11, "a", 12), Chat(1, 14)]
    output, answers = ask(model, batch(chats, at(4)))
    length, first = output.past_key_values.get_seq_length(), batch(chats, at(4))["attention_mask"]
    new = torch.tensor([[answers[0][-1], 21, 22], [answers[1][-1], 23, 0]])
    mask = torch.ones(2, length + 3, dtype=torch.long)
    mask[:, : first.shape[1]], mask[1, -1] = first, 0
    sequences = ask(model, {"input_ids": new, "attention_mask": mask}, past_key_values=output.past_key_values)[0]
    assert torch.equal(sequences.sequences[:, :3], new)
    for chat, answer, question in zip(chats, answers, ([21, 22], [23])):
        chat.pieces += answer + question
    assert sequences.sequences[:, 3:].tolist() == fresh(model, chats, at(4))


def test_embeddings_padded_on_the_right(model):
    chats = [Chat(1, 11, "a", 12), Chat(1, 14)]
    inputs = batch(chats, at(4), side="right")
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert model.generate(**inputs, max_new_tokens=NEW, do_sample=False).tolist() == fresh(model, chats, at(4))


def test_windows_cannot_look_past_padding():
    text_config = decoder_config("mistral")
    text_config.sliding_window = 8
    model = random_model(tiny_config(text_config=text_config))
    chats = [Chat(1, 11, "a", 12), Chat(1, 14)]
    output, answers = ask(model, batch(chats, at(4)))
    length, first = output.past_key_values.get_seq_length(), batch(chats, at(4))["attention_mask"]
    mask = torch.ones(2, length + 3, dtype=torch.long)
    mask[:, : first.shape[1]], mask[1, -3] = first, 0
    new = torch.tensor([[answers[0][-1], 21, 22], [0, answers[1][-1], 23]])
    with pytest.raises(
        ValueError, match="`attention_mask` has padding between tokens, but a `past_key_values` with sliding windows"
    ):
        ask(model, {"input_ids": new, "attention_mask": mask}, past_key_values=output.past_key_values)


def test_images_that_cannot_be_compared_are_not_found_in_other_rows(model):
    """Pixels in the first turn, encoded images in the second: at more tokens another row has more to share."""
    chats, counts = [Chat("a", 12), Chat("b", 12)], {"a": 1, "b": 15}
    output, answers = ask(model, batch(chats, counts))
    go_on(chats, answers, 21)
    inputs = batch(chats, at(4))
    inputs["mm_encoder_outputs"] = {"image": model.get_image_features(inputs.pop("pixel_values"))}
    assert ask(model, inputs, past_key_values=output.past_key_values)[1] == fresh(model, chats, at(4))


@pytest.mark.parametrize("second", [16, 9, [4, 9]], ids=str)
def test_images_beside_each_other_that_nobody_told_apart(model, second):
    """In a cache that was filled elsewhere: where one ends and the next begins is known when they are passed again."""
    chats, counts = [Chat(1, "a", "b", 12)], {"a": 4, "b": 9}
    with torch.no_grad():
        cache = model(**batch(chats, counts)).past_key_values
    chats[0].pieces += [21]
    inputs = text_of(batch(chats, counts))
    answers = ask(model, inputs, past_key_values=cache)[1]
    assert answers == fresh(model, chats, counts)
    chats[0].pieces += answers[0] + [22]
    if second == [4, 9]:
        answers = ask(model, batch(chats, counts), past_key_values=cache)[1]
        assert answers == fresh(model, chats, counts)
    else:
        with pytest.raises(ValueError, match=r"`past_key_values` holds images at \[13\] visual tokens"):
            ask(model, batch(chats, counts), num_visual_tokens=second, past_key_values=cache)


def test_rows_that_cannot_be_told_apart(model):
    """All that is left of a cropped `DynamicCache` are a token of one prompt and the padding of another."""
    chats, cache = [Chat(31, 11, 12, 13, 14), Chat(31, "a")], DynamicCache(config=model.config)
    ask(model, batch(chats, at(2)), past_key_values=cache)
    cache.crop(1 - cache.get_seq_length())
    with pytest.raises(ValueError, match="`past_key_values` holds"):
        ask(model, batch(chats, at(4)), past_key_values=cache)


@pytest.mark.parametrize("is_own", [True, False], ids=["returned", "DynamicCache"])
def test_a_prompt_that_begins_with_all_of_another_one(model, is_own):
    chats, cache = [Chat(16), Chat(16, "a", 5)], None if is_own else DynamicCache(config=model.config)
    output, answers = ask(model, batch(chats, at(8)), past_key_values=cache, max_new_tokens=1)
    go_on(chats, answers, 21)
    assert ask(model, batch(chats, at(8)), past_key_values=output.past_key_values)[1] == fresh(model, chats, at(8))


def test_an_image_that_is_not_passed_is_no_other_rows(model):
    """Both prompts begin with an image; the second has too few tokens of its own one in the cache."""
    chats, counts = [Chat("a", 12), Chat("b", 56)], {"a": 5, "b": 2}
    output, answers = ask(model, batch(chats, counts))
    go_on(chats, answers, 21)
    inputs = text_of(batch(chats, at(8)))
    with pytest.raises(ValueError, match=r"`past_key_values` holds images at \[5, 2\] visual tokens"):
        ask(model, inputs, num_visual_tokens=4, past_key_values=output.past_key_values)
    order = [1, 0]  # but prompts in another order find their rows, at the same numbers
    chats = [chats[row] for row in order]
    inputs = text_of(batch(chats, counts))
    assert ask(model, inputs, past_key_values=output.past_key_values)[1] == fresh(model, chats, counts)


def test_prompts_made_at_another_number_than_the_cache_without_images(model):
    """The images of one row are as many tokens in all as in the cache, but not one by one."""
    chats, counts = [Chat(1, "a", 11, "b", 12), Chat(1, "c", 13)], {"a": 5, "b": 11, "c": 5}
    output, answers = ask(model, batch(chats, counts))
    go_on(chats, answers, 21)
    inputs = text_of(batch(chats, at(8)))
    answers = ask(model, inputs, num_visual_tokens=[5, 11, 5], past_key_values=output.past_key_values)[1]
    assert answers == fresh(model, chats, counts)


def test_answers_to_one_prompt_in_another_order(model):
    """A shortened answer and the next question read like another answer, whose row it is not."""
    chat, cache = Chat(1, 11, "a", 12), DynamicCache(config=model.config)
    torch.manual_seed(0)
    inputs = batch([chat], at(4))
    answers = ask(
        model, inputs, past_key_values=cache, do_sample=True, temperature=50.0, top_k=0, num_return_sequences=2
    )[1]
    cache.reorder_cache(torch.tensor([1, 0]))
    chats = [Chat(*chat.pieces, *answers[0], 21), Chat(*chat.pieces, *answers[1], 21)]
    result = ask(model, batch(chats, at(4)), past_key_values=cache)[1]
    assert result == fresh(model, chats, at(4))  # though the caller left them in the old order


def test_runs_of_placeholders_count_as_one_in_the_text_that_prompts_share():
    row, ids = torch.tensor([[1, 99, 99, 5, 5]]), torch.tensor([1, 99, 5, 5, 6])
    assert CachedPrompts(row, row.ne(0), [[]], 5).shared_text(0, ids, image_token_id=99) == 4
