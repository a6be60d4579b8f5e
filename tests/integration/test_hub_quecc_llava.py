"""Pipelines with QueCC-LLaVA: which question each image is encoded for, also in batches."""

import pytest
from transformers import pipeline

from tests.integration.test_hub import ASK, QUESTIONS, answer_chat, make_chat, texts


@pytest.fixture(scope="module")
def pipe(quecc_folder):
    return pipeline("image-text-to-text", model=quecc_folder)


def test_the_questions_are_of_different_lengths(pipe):
    assert len({len(pipe.tokenizer(question)["input_ids"]) for question in QUESTIONS}) == 2


def test_pipeline_answers_several_images_and_turns(pipe):
    chat = [
        *make_chat(0, num_images=2),
        {"role": "assistant", "content": "A shoe."},
        *make_chat(1),
        {"role": "assistant", "content": "Two bags."},
        {"role": "user", "content": "And now?"},
    ]
    assert texts(pipe(text=chat, **ASK)) == [answer_chat(pipe, chat)]


@pytest.mark.parametrize("query", ["How many are there?", ["How many?", "Where are they?"]], ids=str)
def test_pipeline_takes_the_callers_question(pipe, query, monkeypatch):
    chat = make_chat(0, num_images=2)
    asked = []
    encode = pipe.model.model.encode_questions
    monkeypatch.setattr(pipe.model.model, "encode_questions", lambda ids, mask: asked.append(ids) or encode(ids, mask))
    answer = texts(pipe(text=chat, processor_kwargs={"query": query}, **ASK))
    expected = [query] * 2 if isinstance(query, str) else query
    assert pipe.processor.batch_decode(asked[0], skip_special_tokens=True) == expected
    assert answer == [answer_chat(pipe, chat, query=query)]


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 2}, {"processor_kwargs": {"query": "Where?"}}], ids=str)
def test_pipeline_batches_prompts_with_several_images(pipe, kwargs):
    """Its batches keep the first question of each prompt."""
    query = kwargs.get("processor_kwargs", {})
    for chats in (
        [make_chat(0, num_images=3), make_chat(1)],
        [make_chat(0), make_chat(1, num_images=2)],
        [make_chat(0, num_images=3), make_chat(0)],
        [make_chat(0, num_images=2), make_chat(1, num_images=2)],
    ):
        expected = [answer_chat(pipe, chat, **query) for chat in chats]
        if "num_beams" in kwargs:
            expected = texts(pipe(text=chats, **kwargs, **ASK))
        assert texts(pipe(text=chats, batch_size=2, **kwargs, **ASK)) == expected


def test_pipeline_batches_that_lose_questions_are_refused(pipe):
    """Several of a prompt, where those of another are shorter."""
    message = "has 2 rows for 3 images.*lose rows where a prompt asks several questions"
    for asked in ((0, 1), (1, 0)):
        chats = [[*make_chat(asked[0]), {"role": "assistant", "content": "A shoe."}, *make_chat(asked[1])]]
        expected = [answer_chat(pipe, chat) for chat in [*chats, make_chat(0)]]
        for ordered in ([*chats, make_chat(0)], [make_chat(0), *chats]):
            with pytest.raises(ValueError, match=message):
                pipe(text=ordered, batch_size=2, **ASK)
        assert texts(pipe(text=[*chats, make_chat(0)], **ASK)) == expected
        # None is lost where they are padded to the same length.
        assert texts(pipe(text=chats * 2, batch_size=2, **ASK)) == expected[:1] * 2


@pytest.mark.parametrize("where", ["processor_kwargs", "generate_kwargs"])
def test_pipeline_refuses_another_number_of_visual_tokens(pipe, where):
    with pytest.raises(ValueError, match="`num_visual_tokens` is 2, but every image gets 4 visual tokens"):
        pipe(text=make_chat(0), **{where: {"num_visual_tokens": 2}}, **ASK)
