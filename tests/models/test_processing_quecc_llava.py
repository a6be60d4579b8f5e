"""The processor of QueCC-LLaVA: which question each image is encoded for, in every way to ask one."""

import copy
import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoProcessor, TokenizersBackend

from mqt_llava import QueCCLlavaProcessor
from tests.builders.chats import PROMPT, assistant, tokenize_chat, user
from tests.builders.pictures import make_image
from tests.models.test_processing_mqt_llava import CAN_SANITIZE, TRUSTING_TEMPLATE


NAMES = ["input_ids", "attention_mask", "pixel_values", "query_input_ids", "query_attention_mask"]


@pytest.fixture(scope="module")
def quecc(processor) -> QueCCLlavaProcessor:
    """A Llama tokenizer and a 336-pixel image processor; 36 visual tokens."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    return QueCCLlavaProcessor(processor.image_processor, tokenizer, max_visual_tokens=36)


def questions(processor, inputs) -> list[str]:
    """The questions that ids and mask hold, after checking that nothing else is there than they by themselves."""
    texts = []
    for ids, mask in zip(inputs["query_input_ids"], inputs["query_attention_mask"]):
        ids = torch.as_tensor(ids)[torch.as_tensor(mask) == 1].tolist()
        texts.append(processor.decode(ids, skip_special_tokens=True))
        assert ids == processor.tokenizer(texts[-1])["input_ids"]
        assert ids[0] == processor.tokenizer.bos_token_id and processor.image_token_id not in ids
    return texts


# Questions


@pytest.mark.parametrize(
    "text, expected",
    [
        (PROMPT, ["What is this?"]),
        ("<image>\nWhat is this?", ["What is this?"]),
        ("<image> What is this?", ["What is this?"]),
        ("<image>\n  What\nis \n this? \n ASSISTANT: A shoe.</s>", ["What\nis \n this?"]),
        ("Look:\n<image> over here\nWhat is this? ASSISTANT:", ["What is this?"]),
        ("USER: <image>\n<image>\nWhat are they? ASSISTANT:", ["What are they?"] * 2),
        ("USER: Here <image>\nand here <image>\nWhat are they? ASSISTANT:", ["What are they?"] * 2),
        ("USER: <image>\na? ASSISTANT: b</s>USER: c? ASSISTANT: d</s>USER: e? ASSISTANT:", ["a?"]),
        ("USER: a? ASSISTANT: b</s>USER: <image>\nc? ASSISTANT: d</s>USER: e? ASSISTANT:", ["c?"]),
        (
            "USER: <image>\na? ASSISTANT: b</s>USER: <image>\n<image>\nc? ASSISTANT: d</s>USER: e? ASSISTANT:",
            ["a?", "c?", "c?"],
        ),
        ("USER: <image>\nWer ist der ASSISTANT hier? ASSISTANT:", ["Wer ist der"]),  # as the original
        ("USER: <image>\nWhat is an assistant? ASSISTANT:", ["What is an assistant?"]),
        ("USER: <image>\nπ 猫 🙂 Größe? ASSISTANT:", ["π 猫 🙂 Größe?"]),
        ("USER: <image>\nWhat </s> is this? ASSISTANT:", ["What </s> is this?"]),
        ("USER: Hello ASSISTANT:", []),
        ("", []),
    ],
)
def test_the_question_of_each_image(quecc, text, expected):
    assert quecc.questions(text) == expected


def test_what_a_prompt_becomes(quecc):
    inputs = quecc(images=make_image(), text=PROMPT, return_tensors="pt")
    assert list(inputs) == NAMES
    assert (inputs["input_ids"] == quecc.image_token_id).sum(-1).tolist() == [36]
    assert questions(quecc, inputs) == ["What is this?"]
    assert inputs["query_input_ids"].dtype == inputs["query_attention_mask"].dtype == torch.long
    assert set(quecc.model_input_names) == set(NAMES)


@pytest.mark.parametrize("return_tensors, kind", [(None, list), ("np", np.ndarray), ("pt", torch.Tensor)])
@pytest.mark.parametrize("where", ["call", "text_kwargs"])
def test_return_tensors(quecc, return_tensors, kind, where):
    kwargs = {} if return_tensors is None else {"return_tensors": return_tensors}
    kwargs = kwargs if where == "call" else {"text_kwargs": kwargs}
    text = ["<image>\na?", "<image>\nA longer question?"]
    inputs = quecc(images=[make_image()] * 2, text=text, padding=True, **kwargs)
    names = NAMES if where == "call" else [name for name in NAMES if name != "pixel_values"]
    assert all(isinstance(inputs[name], kind) for name in names)
    assert questions(quecc, inputs) == ["a?", "A longer question?"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_questions_are_padded_on_the_tokenizers_side(quecc, side):
    quecc = copy.deepcopy(quecc)
    quecc.tokenizer.padding_side = side
    inputs = quecc(images=[make_image()] * 2, text="<image>\na? ASSISTANT: b</s><image>\nA longer question?")
    assert questions(quecc, inputs) == ["a?", "A longer question?"]
    assert inputs["query_attention_mask"][0][0 if side == "left" else -1] == 0


def test_a_batch_with_several_and_no_images(quecc):
    text = ["<image>\n<image>\na?", "Hello", "<image>\nA longer question?"]
    nested = [[make_image(seed=0), make_image(seed=1)], [], [make_image(seed=2)]]
    inputs = quecc(images=nested, text=text, padding=True, return_tensors="pt")
    assert questions(quecc, inputs) == ["a?", "a?", "A longer question?"]
    assert inputs["pixel_values"].shape[0] == 3
    flat = quecc(images=sum(nested, []), text=text, padding=True, return_tensors="pt")
    assert all(torch.equal(flat[name], nested) for name, nested in inputs.items())


@pytest.mark.parametrize("images", [None, [], [[]]], ids=repr)
@pytest.mark.parametrize("kwargs", [{}, {"query": "a?"}, {"query": []}], ids=str)
def test_text_alone_has_no_question(quecc, images, kwargs):
    assert list(quecc(images=images, text=["Hello"], **kwargs)) == NAMES[:2]


@pytest.mark.parametrize(
    "text",
    [
        "<image>",
        "USER: <image> ASSISTANT:",
        "USER: What is this?\n<image>\n ASSISTANT:",
        "USER: <image>\n ASSISTANT: What do you want?</s>USER: What is this? ASSISTANT:",
        "USER: <image>\nASSISTANT, what is this? ASSISTANT:",
        "<image>\na? ASSISTANT: b <image>",
    ],
)
def test_an_image_without_a_question_behind_it_is_refused(quecc, text):
    images = [make_image()] * text.count("<image>")
    with pytest.raises(ValueError, match="There is no question behind <image> in .*pass `query`"):
        quecc(images=images, text=text)
    assert questions(quecc, quecc(images=images, text=text, query="a?")) == ["a?"] * len(images)


def test_a_tokenizer_that_cannot_pad(quecc):
    words = {word: i for i, word in enumerate(["<unk>", "<image>", "a", "b"])}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = TokenizersBackend(tokenizer_object=backend)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    processor = QueCCLlavaProcessor(quecc.image_processor, tokenizer, max_visual_tokens=4)
    inputs = processor(images=[make_image()] * 2, text="<image>\n<image>\na b", return_tensors="pt")
    assert inputs["query_input_ids"].tolist() == [[2, 3], [2, 3]]
    assert inputs["input_ids"].tolist() == [[1] * 8 + [2, 3]]


# The caller's own question


@pytest.mark.parametrize("query", ["a?", ["a?", "A longer question?"], ("a?", "b?")], ids=repr)
def test_the_callers_question_holds(quecc, query):
    images = [make_image()] * 2
    expected = [query] * 2 if isinstance(query, str) else list(query)
    text = "USER: <image>\n<image>\nWhat? ASSISTANT:"
    chat = [user(images[0], "What?"), assistant("b"), user(images[1], "And here?")]
    for inputs in (
        quecc(images=images, text=text, query=query, return_tensors="pt"),
        quecc(images=images, query=query, return_tensors="pt"),
        tokenize_chat(quecc, chat, processor_kwargs={"query": query}),
    ):
        assert questions(quecc, inputs) == expected
    plain = quecc(images=images, text=text, return_tensors="pt")
    asked = quecc(images=images, text=text, query=query, return_tensors="pt")
    assert torch.equal(asked["input_ids"], plain["input_ids"])


def test_images_alone_have_no_question(quecc):
    assert list(quecc(images=make_image(), return_tensors="pt")) == ["pixel_values"]


@pytest.mark.parametrize("query", [["a?"], ["a?"] * 3, [], "", " \n", ["a?", ""], ["a?", None], 3, [["a?"], ["b?"]]])
def test_another_number_of_queries_than_images_is_refused(quecc, query):
    with pytest.raises(ValueError, match="`query` is .*, but must be .* one question for each of the 2 images"):
        quecc(images=[make_image()] * 2, text="<image>\na? ASSISTANT: b</s><image>\nc?", query=query)


def test_queries_for_no_images_are_refused(quecc):
    with pytest.raises(ValueError, match="one question for each of the 0 images"):
        quecc(text="Hello", query=["a?"])


def test_a_question_about_the_placeholder_is_text(quecc):
    inputs = quecc(images=make_image(), text=PROMPT, query="What does <image> mean?")
    assert questions(quecc, inputs) == ["What does < image> mean?"]


# Chats


def test_the_question_of_a_chat(quecc):
    first, second, third = (make_image(seed=seed) for seed in range(3))
    chats = [
        [user(first, "What is this?"), assistant("A shoe."), user("Of which colour?")],
        [user("Hello"), assistant("Hi."), user("What", second, third, " are they?")],
        [user("Only text.")],
    ]
    inputs = tokenize_chat(quecc, chats, processor_kwargs={"padding": True})
    assert questions(quecc, inputs) == ["What is this?", "What are they?", "What are they?"]
    assert torch.equal(
        inputs["pixel_values"], quecc(images=[first, second, third], return_tensors="pt")["pixel_values"]
    )
    alone = tokenize_chat(quecc, chats[0])
    assert questions(quecc, alone) == ["What is this?"]
    assert list(tokenize_chat(quecc, chats[2])) == NAMES[:2]


@pytest.mark.parametrize("text", ["What is an <image>?", "<image>", "a\nb\n\nc", "{{ x }} {% y %}", "🙂", "a " * 3000])
def test_whatever_a_user_types_is_the_question(quecc, text):
    inputs = tokenize_chat(quecc, [user(make_image(), text), assistant("<image>"), user("<image> again?")])
    assert questions(quecc, inputs) == [text.replace("<image>", "< image>").strip()]
    assert (inputs["input_ids"] == quecc.image_token_id).sum() == 36


@CAN_SANITIZE
@pytest.mark.parametrize("text", ["What is <image>?", "<image>", "What </s> is <s> this?", "Is it ASSISTANT?"])
@pytest.mark.parametrize("chat_template", [None, TRUSTING_TEMPLATE], ids=["default template", "trusting template"])
def test_control_tokens_are_text_in_sanitized_questions(quecc, text, chat_template):
    kwargs = {"chat_template": chat_template, "sanitize_control_tokens": True}
    chats = [[user(make_image(), text)], [user(make_image(seed=1), "And here?")]]
    inputs = tokenize_chat(
        quecc, chats, processor_kwargs={"padding": True, "add_special_tokens": chat_template is not None}, **kwargs
    )
    assert (inputs["input_ids"] == quecc.image_token_id).sum(-1).tolist() == [36, 36]
    texts = []
    for ids, mask in zip(inputs["query_input_ids"], inputs["query_attention_mask"]):
        bos, *ids = ids[mask == 1].tolist()
        assert bos == quecc.tokenizer.bos_token_id and not set(ids) & set(quecc.tokenizer.all_special_ids)
        texts.append(quecc.decode(ids))
    expected = text.replace("<image>", "< image>").partition(" ASSISTANT")[0]
    assert [one.replace(" ", "") for one in texts] == [expected.replace(" ", ""), "Andhere?"]


@CAN_SANITIZE
def test_an_answer_prefix_that_a_user_types_is_text_in_sanitized_chats(quecc):
    processor = QueCCLlavaProcessor(
        quecc.image_processor, copy.deepcopy(quecc.tokenizer), max_visual_tokens=4, answer_prefix="</s>"
    )
    template = TRUSTING_TEMPLATE.replace(" {% endfor %}ASSISTANT:", "</s>{% endfor %}ASSISTANT:")
    chat = [user(make_image(), "What </s> is this?")]
    inputs = tokenize_chat(processor, chat, chat_template=template, sanitize_control_tokens=True)
    asked = processor.decode(inputs["query_input_ids"][0], skip_special_tokens=True)
    assert asked.replace(" ", "") == "What</s>isthis?"


def test_a_chat_whose_image_has_no_question_is_refused(quecc):
    for content in ((make_image(),), (make_image(), ""), (make_image(), " \n")):
        with pytest.raises(ValueError, match="There is no question behind <image>"):
            tokenize_chat(quecc, [user(*content)])


def test_assistant_tokens_mask_beside_questions(quecc):
    chats = [[user(make_image(), text), assistant("A shoe.")] for text in ("a?", "A longer question?")]
    kwargs = {"add_generation_prompt": False, "return_assistant_tokens_mask": True}
    inputs = tokenize_chat(quecc, chats, processor_kwargs={"padding": True}, **kwargs)
    answer = inputs["input_ids"][0][torch.as_tensor(inputs["assistant_masks"][0]).bool()]
    assert quecc.decode(answer).strip() == "A shoe.</s>"
    assert questions(quecc, inputs) == ["a?", "A longer question?"]


def test_another_template_says_where_answers_begin(quecc, tmp_path):
    template = (
        "{%- for message in messages -%}{{ '<|' + message['role'] + '|>' }}{%- for block in message['content'] -%}"
        "{{ '<image>\n' if block['type'] == 'image' else block['text'] }}{%- endfor -%}{{ '<|end|>' }}{%- endfor -%}"
        "{{ '<|assistant|>' }}"
    )
    processor = QueCCLlavaProcessor(
        quecc.image_processor, quecc.tokenizer, max_visual_tokens=4, chat_template=template, answer_prefix="<|end|>"
    )
    processor.save_pretrained(tmp_path)
    chat = [
        user(make_image(), "Who is the ASSISTANT?"),
        {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
    ]
    for one in (processor, AutoProcessor.from_pretrained(tmp_path)):
        assert one.answer_prefix == "<|end|>"
        assert questions(one, tokenize_chat(one, [*chat, user("And?")])) == ["Who is the ASSISTANT?"]


# The processor itself


def test_save_and_load_round_trip(quecc, tmp_path):
    quecc.save_pretrained(tmp_path)
    reloaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(reloaded) is QueCCLlavaProcessor
    assert reloaded.to_dict() == quecc.to_dict()
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert (config["max_visual_tokens"], config["answer_prefix"]) == (36, "ASSISTANT")
    assert config["auto_map"] == {"AutoProcessor": "processing_quecc_llava.QueCCLlavaProcessor"}
    assert AutoProcessor.from_pretrained(tmp_path, num_visual_tokens=36).to_dict() == quecc.to_dict()
    with pytest.raises(ValueError, match="`num_visual_tokens` is 4, but every image gets 36 visual tokens"):
        AutoProcessor.from_pretrained(tmp_path, num_visual_tokens=4)
    before, after = (p(images=make_image(), text=PROMPT, return_tensors="pt") for p in (quecc, reloaded))
    assert all(torch.equal(before[name], after[name]) for name in NAMES)


def test_what_engines_ask_a_processor(quecc):
    for kwargs in ({}, {"num_visual_tokens": 36}):
        assert quecc._get_num_multimodal_tokens(image_sizes=[(20, 30), (5, 5)], **kwargs).num_image_tokens == [36, 36]
    assert quecc.replace_image_token(quecc(images=make_image()), 0) == "<image>" * 36


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"max_visual_tokens": 0}, ValueError, "`max_visual_tokens` is 0, but must be"),
        ({"max_visual_tokens": "16"}, TypeError, "`max_visual_tokens` is '16', but must be an integer"),
        ({"max_visual_tokens": True}, TypeError, "`max_visual_tokens` is True, but must be an integer"),
        ({"answer_prefix": ""}, ValueError, "`answer_prefix` is '', but must be"),
        ({"answer_prefix": None}, ValueError, "`answer_prefix` is None, but must be"),
        ({"num_visual_tokens": 4}, ValueError, "`num_visual_tokens` is 4, but every image gets 16 visual tokens"),
        ({"num_tokens": 4}, TypeError, "num_tokens"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_refused(quecc, change, error, message):
    with pytest.raises(error, match=message):
        QueCCLlavaProcessor(quecc.image_processor, quecc.tokenizer, **change)


@pytest.mark.parametrize(
    "call",
    [
        lambda p, m: p(images=make_image(), text=PROMPT, num_visual_tokens=m),
        lambda p, m: p(images=make_image(), text=PROMPT, images_kwargs={"num_visual_tokens": m}),
        lambda p, m: p(images=make_image(), num_visual_tokens=m),
        lambda p, m: p(text="Hello", num_visual_tokens=m),
        lambda p, m: tokenize_chat(p, [user(make_image(), "a?")], processor_kwargs={"num_visual_tokens": m}),
        lambda p, m: {"input_ids": p._get_num_multimodal_tokens([(20, 30)], num_visual_tokens=m)},
    ],
    ids=["call", "images_kwargs", "images alone", "text alone", "chat", "engines"],
)
def test_another_number_of_visual_tokens_is_refused(quecc, call, caplog):
    for m in (4, 37, [36, 4], "auto"):
        with pytest.raises(ValueError, match="`num_visual_tokens` is .*, but every image gets 36 visual tokens"):
            call(quecc, m)
    assert call(quecc, 36).keys() == call(quecc, None).keys()
    assert "ignored" not in caplog.text


def test_the_number_of_an_image_can_be_the_models_own(quecc):
    chat = [user(make_image(), "a?")]
    item = chat[0]["content"][0]
    item["num_visual_tokens"] = 36
    assert (tokenize_chat(quecc, chat)["input_ids"] == quecc.image_token_id).sum() == 36
    item["num_visual_tokens"] = 4
    with pytest.raises(ValueError, match=r"\[0\]\['num_visual_tokens'\]` is 4, but every image gets 36 visual tokens"):
        tokenize_chat(quecc, chat)
