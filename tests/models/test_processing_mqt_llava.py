"""The processor: as many placeholders as visual tokens, chats, batches."""

import base64
import copy
import inspect
import json

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaImageProcessorPil, ProcessorMixin

import mqt_llava.models.processing_compressed_llava as processing
from mqt_llava import MQTLlavaProcessor
from tests.builders.chats import PROMPT, assistant, tokenize_chat, user
from tests.builders.pictures import as_file, make_image, reference_pixels


SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. "
)


def num_placeholders(processor, inputs) -> list[int]:
    return (torch.as_tensor(inputs["input_ids"]) == processor.image_token_id).sum(-1).tolist()


# The number of visual tokens


@pytest.mark.parametrize("m", [1, 16, 256])
def test_image_token_becomes_m_placeholders(processor, m):
    inputs = processor(images=make_image(), text=PROMPT, num_visual_tokens=m, return_tensors="pt")
    assert list(inputs) == ["input_ids", "attention_mask", "pixel_values", "visual_token_counts"]
    assert num_placeholders(processor, inputs) == [m]
    assert inputs["visual_token_counts"].tolist() == [m] and inputs["visual_token_counts"].dtype == torch.long
    assert inputs["pixel_values"].shape == (1, 3, 336, 336)


def test_default_is_max_visual_tokens(processor):
    inputs = processor(images=make_image(), text=PROMPT, return_tensors="pt")
    assert num_placeholders(processor, inputs) == [processor.max_visual_tokens] == [256]


@pytest.mark.parametrize("m", [4, np.int64(4), np.array(4), torch.tensor(4), [4], (4,), torch.tensor([4])], ids=repr)
def test_m_may_be_any_kind_of_integer(processor, m):
    inputs = processor(images=make_image(), text=PROMPT, num_visual_tokens=m, return_tensors="pt")
    assert num_placeholders(processor, inputs) == inputs["visual_token_counts"].tolist() == [4]


@pytest.mark.parametrize("m", [3, [1, 2]], ids=repr)
@pytest.mark.parametrize(
    "call",
    [
        lambda p, chat, m: p(images=[make_image()] * 2, text=PROMPT + PROMPT, num_visual_tokens=m),
        lambda p, chat, m: p(images=[make_image()] * 2, text=PROMPT * 2, images_kwargs={"num_visual_tokens": m}),
        lambda p, chat, m: tokenize_chat(p, chat, processor_kwargs={"num_visual_tokens": m}),
        lambda p, chat, m: tokenize_chat(p, chat, processor_kwargs={"images_kwargs": {"num_visual_tokens": m}}),
    ],
    ids=["call", "images_kwargs", "chat", "chat images_kwargs"],
)
def test_m_can_be_given_in_every_way_of_transformers(processor, call, m):
    inputs = call(processor, [user(make_image(), "What?"), user(make_image(), "And here?")], m)
    counts = m if isinstance(m, list) else [m, m]
    assert list(inputs["visual_token_counts"]) == counts
    assert num_placeholders(processor, inputs) == [sum(counts)]


def test_own_default_is_used_saved_and_overridden(processor, tmp_path):
    asks_four = MQTLlavaProcessor(processor.image_processor, processor.tokenizer, num_visual_tokens=4)
    asks_four.save_pretrained(tmp_path)
    assert "num_visual_tokens" not in (tmp_path / "tokenizer_config.json").read_text()
    reloaded = AutoProcessor.from_pretrained(tmp_path)
    for four in (asks_four, reloaded, copy.deepcopy(reloaded)):
        assert four.num_visual_tokens == 4
        assert num_placeholders(four, four(images=make_image(), text=PROMPT)) == [4]
        assert num_placeholders(four, four(images=make_image(), text=PROMPT, num_visual_tokens=2)) == [2]
    asks_eight = AutoProcessor.from_pretrained(tmp_path, num_visual_tokens=8)
    assert num_placeholders(asks_eight, asks_eight(images=make_image(), text=PROMPT)) == [8]
    assert num_placeholders(asks_eight, asks_eight(images=make_image(), text=PROMPT, num_visual_tokens=2)) == [2]
    asks_eight.save_pretrained(tmp_path / "eight")
    assert "num_visual_tokens" not in (tmp_path / "eight" / "tokenizer_config.json").read_text()
    assert AutoProcessor.from_pretrained(tmp_path / "eight").num_visual_tokens == 8
    assert AutoProcessor.from_pretrained(tmp_path, num_visual_tokens=None).num_visual_tokens is None


def test_save_and_load_round_trip(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    reloaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(reloaded) is MQTLlavaProcessor
    assert reloaded.to_dict() == processor.to_dict()
    assert reloaded.chat_template == processor.chat_template == processing.V1_CHAT_TEMPLATE
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert config["auto_map"] == {"AutoProcessor": "processing_mqt_llava.MQTLlavaProcessor"}
    before, after = (p(images=make_image(), text=PROMPT, return_tensors="pt") for p in (processor, reloaded))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_engines_ask_a_processor(processor):
    assert set(processor.model_input_names) == {"input_ids", "attention_mask", "pixel_values", "visual_token_counts"}
    assert processor._get_num_multimodal_tokens().num_image_tokens is None


@pytest.mark.parametrize("default", [None, 4])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"num_visual_tokens": None},
        {"num_visual_tokens": 3},
        {"num_visual_tokens": [1, 2]},
        {"images_kwargs": {"num_visual_tokens": 3}},
        {"images_kwargs": {"num_visual_tokens": (1, 2)}},
    ],
    ids=str,
)
def test_engines_reserve_what_a_call_gives(processor, default, kwargs):
    processor = MQTLlavaProcessor(processor.image_processor, processor.tokenizer, num_visual_tokens=default)
    reserved = processor._get_num_multimodal_tokens(image_sizes=[(20, 30), (5, 5)], **kwargs)
    inputs = processor(images=[make_image(), make_image(5, 5)], text=PROMPT * 2, **kwargs)
    assert reserved.num_image_tokens == inputs["visual_token_counts"]
    assert reserved.num_image_patches == [1, 1]


def test_one_images_placeholders(processor):
    inputs = processor(images=[make_image()] * 2, num_visual_tokens=[1, 3], return_tensors="pt")
    assert [processor.replace_image_token(inputs, index) for index in (0, 1)] == ["<image>", "<image>" * 3]


# The number of visual tokens in an image's own content item


def shown(m=None, text: str = "What?", **item) -> dict:
    """A turn that shows an image at a number of its own, if any."""
    item = {"type": "image", "image": make_image(), **item, **({} if m is None else {"num_visual_tokens": m})}
    return {"role": "user", "content": [item, {"type": "text", "text": text}]}


def chat_counts(processor, chat, **kwargs) -> list[int]:
    inputs = tokenize_chat(processor, chat, **kwargs)
    assert sum(num_placeholders(processor, inputs)) == inputs["visual_token_counts"].sum()
    return inputs["visual_token_counts"].tolist()


def test_an_images_own_number_holds(processor):
    assert chat_counts(processor, [shown(4)]) == [4]
    assert chat_counts(processor, [shown(np.int64(4))]) == [4]
    assert chat_counts(processor, [shown(4, image=np.asarray(make_image()))]) == [4]
    assert chat_counts(processor, [shown(4), assistant("A shoe."), shown(7)]) == [4, 7]
    url = "data:image/png;base64," + base64.b64encode(as_file(make_image())).decode()
    for item in (
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image", "url": url},
        {"type": "image", "base64": url},
    ):
        chat = [{"role": "user", "content": [{**item, "num_visual_tokens": 4}, {"type": "text", "text": "What?"}]}]
        assert chat_counts(processor, chat) == [4]


@pytest.mark.parametrize(
    "processor_kwargs, expected",
    [
        ({}, [4, 256, 5, 256]),
        ({"num_visual_tokens": 9}, [4, 9, 5, 9]),
        ({"num_visual_tokens": [1, 2, 3, 6]}, [4, 2, 5, 6]),
        ({"images_kwargs": {"num_visual_tokens": 9}}, [4, 9, 5, 9]),
        ({"images_kwargs": {"num_visual_tokens": (1, 2, 3, 6)}}, [4, 2, 5, 6]),
    ],
    ids=str,
)
def test_it_goes_before_the_calls_number_and_the_default(processor, processor_kwargs, expected):
    chat = [shown(4), assistant("A shoe."), shown(), shown(5), shown()]
    assert chat_counts(processor, chat, processor_kwargs=processor_kwargs) == expected
    batch = [chat[:1], [{"role": "user", "content": "Hello"}], chat[1:]]
    assert chat_counts(processor, batch, processor_kwargs={"padding": True, **processor_kwargs}) == expected
    asks_two = MQTLlavaProcessor(processor.image_processor, processor.tokenizer, num_visual_tokens=2)
    expected = [2 if m == 256 else m for m in expected]
    assert chat_counts(asks_two, chat, processor_kwargs=processor_kwargs) == expected


def test_it_goes_before_a_number_outside_of_processor_kwargs(processor):
    assert chat_counts(processor, [shown(4), shown()], num_visual_tokens=3) == [4, 3]


def test_a_number_that_is_none_is_no_number(processor):
    chat = [{"role": "user", "content": [{**item, "num_visual_tokens": None} for item in shown()["content"]]}]
    assert chat_counts(processor, chat, processor_kwargs={"num_visual_tokens": 3}) == [3]
    assert render(processor, chat) == render(processor, [shown()])


def test_the_number_is_refused_in_a_text_that_cannot_carry_it(processor):
    with pytest.raises(
        ValueError, match=r"conversation\[1\]\['content'\]\[0\]` has `num_visual_tokens`.*tokenize=True"
    ):
        render(processor, [shown(), shown(4)])
    assert "<image>" in render(processor, [shown()])


@pytest.mark.parametrize("kwargs", [{"tokenize": True}, {"tokenize": False}], ids=str)
def test_a_number_of_what_is_no_image_is_refused(processor, kwargs):
    chat = [{"role": "user", "content": [{"type": "text", "text": "a", "num_visual_tokens": 4}]}]
    message = r"conversation{}\[0\]\['content'\]\[0\]\['num_visual_tokens'\]` is 4, but only images"
    with pytest.raises(ValueError, match=message.format("")):
        processor.apply_chat_template(chat, **kwargs)
    with pytest.raises(ValueError, match=message.format(r"\[1\]")):
        processor.apply_chat_template([[shown()], chat], **kwargs)


# Batches


def test_prompts_with_one_two_and_no_images_in_one_batch(processor):
    images = [make_image(seed=seed) for seed in range(3)]
    text = [PROMPT, "Hello", "<image> and <image>"]
    nested = processor(
        images=[images[:1], [], images[1:]], text=text, num_visual_tokens=[1, 2, 3], padding=True, return_tensors="pt"
    )
    assert num_placeholders(processor, nested) == [1, 0, 5]
    flat = processor(images=images, text=text, num_visual_tokens=[1, 2, 3], padding=True, return_tensors="pt")
    assert all(torch.equal(flat[name], nested[name]) for name in flat)
    for pixels, image in zip(nested["pixel_values"], images):
        assert torch.allclose(pixels, reference_pixels(image), atol=1e-6)


@pytest.mark.parametrize("images", [None, [], [[], []]], ids=repr)
def test_text_alone_has_no_images_in_the_output(processor, images):
    inputs = processor(images=images, text=["Hello", "World"], num_visual_tokens=4, padding=True, return_tensors="pt")
    assert list(inputs) == ["input_ids", "attention_mask"]


def test_images_alone_have_no_text_in_the_output(processor):
    inputs = processor(images=[make_image(), make_image()], num_visual_tokens=[1, 2], return_tensors="pt")
    assert list(inputs) == ["pixel_values", "visual_token_counts"]
    assert inputs["visual_token_counts"].tolist() == [1, 2]


@pytest.mark.parametrize("return_tensors, kind", [(None, list), ("np", np.ndarray), ("pt", torch.Tensor)])
def test_return_tensors(processor, return_tensors, kind):
    inputs = processor(images=make_image(), text=[PROMPT], num_visual_tokens=2, return_tensors=return_tensors)
    assert all(isinstance(value, kind) for value in inputs.values())
    assert list(inputs["visual_token_counts"]) == [2]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side(processor, side):
    text, m = [PROMPT, PROMPT], [1, 3]
    inputs = processor(images=[make_image()] * 2, text=text, num_visual_tokens=m, padding=True, padding_side=side)
    length = len(inputs["input_ids"][0])
    real, padding = [1] * (length - 2), [0] * 2
    assert inputs["attention_mask"] == [padding + real if side == "left" else real + padding, [1] * length]


def test_token_types_mark_the_placeholders(processor):
    inputs = processor(
        images=make_image(), text=PROMPT, num_visual_tokens=3, return_mm_token_type_ids=True, return_tensors="pt"
    )
    placeholders = inputs["input_ids"] == processor.image_token_id
    assert torch.equal(inputs["mm_token_type_ids"], placeholders.long())


def test_truncation_of_text_alone_is_allowed(processor):
    processor = copy.deepcopy(processor)  # a tokenizer keeps, and saves, how it truncated last
    text = "<image>" + "What is this? " * 30
    inputs = processor(images=make_image(), text=text, num_visual_tokens=4, truncation=True, max_length=20)
    assert len(inputs["input_ids"][0]) == 20 and num_placeholders(processor, inputs) == [4]


def test_pil_backend_is_pinned(processor, monkeypatch):
    class TorchvisionLike(LlavaImageProcessorPil):
        backend = "torchvision"

    monkeypatch.setattr(processing.transformers, "TorchvisionLikePil", LlavaImageProcessorPil, raising=False)
    settings = processor.image_processor.to_dict()
    pinned = MQTLlavaProcessor(TorchvisionLike.from_dict(settings), processor.tokenizer)
    assert type(pinned.image_processor) is LlavaImageProcessorPil
    assert pinned.image_processor.backend == "pil"
    assert pinned.image_processor.to_dict() == settings


# Chats


def render(processor, messages, **kwargs) -> str:
    return processor.apply_chat_template(messages, tokenize=False, **kwargs)


def test_chat_is_llavas_v1_conversation(processor):
    image = {"type": "image"}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What is "}, image, {"type": "text", "text": "this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A shoe."}]},
        {"role": "user", "content": [image, image, {"type": "text", "text": "And these?"}]},
    ]
    expected = "USER: <image>\nWhat is this? ASSISTANT: A shoe.</s>USER: <image>\n<image>\nAnd these? ASSISTANT:"
    assert render(processor, messages, add_generation_prompt=True) == SYSTEM + expected
    system = {"role": "system", "content": "Be brief."}
    assert render(processor, [system, *messages], add_generation_prompt=True) == "Be brief. " + expected


def test_consecutive_assistant_messages(processor):
    messages = [{"role": "user", "content": "q"}, assistant("a"), assistant("b")]
    assert render(processor, messages) == SYSTEM + "USER: q ASSISTANT: a</s>ASSISTANT: b</s>"


@pytest.mark.parametrize("content", ["The sh", [{"type": "text", "text": "The sh"}]], ids=["string", "blocks"])
def test_continue_final_message(processor, content):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]
    assert render(processor, messages, continue_final_message=True) == SYSTEM + "USER: q ASSISTANT: The sh"


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize(
    "texts",
    [["a <image> b"], ["<image>"], ["<image><image>"], ["<<image>image>"], ["a <ima", "ge> b"], ["<", "image>"]],
)
def test_typed_image_token_is_text_and_no_image(processor, role, texts):
    image = make_image()
    for content in ([{"type": "text", "text": text} for text in texts], "".join(texts)):
        messages = [{"role": role, "content": content}, user(image, "What?")]
        assert "< image>" in render(processor, messages)
        assert render(processor, messages).count("<image>") == 1
        inputs = tokenize_chat(processor, messages, processor_kwargs={"num_visual_tokens": 5})
        assert num_placeholders(processor, inputs) == [5]
        # The placeholders stand where the image is, after what was typed.
        ids = inputs["input_ids"][0].tolist()
        typed = processor.tokenizer.decode(ids[: ids.index(processor.image_token_id)])
        assert "image>" in typed and typed.rstrip().endswith("USER:")


def test_typed_image_token_without_an_image(processor):
    inputs = tokenize_chat(processor, [{"role": "user", "content": "What does <image> mean?"}])
    assert num_placeholders(processor, inputs) == [0]
    assert "pixel_values" not in inputs


HAS_SANITIZING = "sanitize_control_tokens" in inspect.signature(ProcessorMixin.apply_chat_template).parameters
CAN_SANITIZE = pytest.mark.skipif(not HAS_SANITIZING, reason="this release of transformers does not sanitize chats")
# It writes what a user types as it is, and BOS, without which transformers does not sanitize.
TRUSTING_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}\
{% for block in message['content'] %}{{ '<image>\n' if block['type'] == 'image' else block['text'] }}{% endfor %} \
{% endfor %}ASSISTANT:"""


@CAN_SANITIZE
@pytest.mark.parametrize("text", ["What is <image>?", "<image>", "<image><image> </s>", "What?"])
def test_sanitized_chats_hold_the_images_that_are_shown(processor, text):
    chats = [[user(make_image(), text)], [user(text)], [user("a", make_image(), make_image(seed=1), text)]]
    kwargs = {"chat_template": TRUSTING_TEMPLATE, "sanitize_control_tokens": True}
    inputs = tokenize_chat(processor, chats, processor_kwargs={"num_visual_tokens": 2, "padding": True}, **kwargs)
    assert num_placeholders(processor, inputs) == [2, 0, 4]
    assert (inputs["input_ids"] == processor.tokenizer.eos_token_id).sum() == 0
    for row, chat in enumerate(chats):
        alone = tokenize_chat(processor, chat, processor_kwargs={"num_visual_tokens": 2}, **kwargs)
        assert torch.equal(inputs["input_ids"][row][inputs["attention_mask"][row] == 1], alone["input_ids"][0])


def test_batch_of_chats_with_images_in_several_turns(processor):
    images = [make_image(seed=seed) for seed in range(4)]
    chats = [
        [user(images[0], "a"), assistant("Yes."), user("b", images[1], images[2])],
        [user("only text"), assistant("Yes."), user("more")],
        [user(images[3])],
    ]
    inputs = tokenize_chat(processor, chats, processor_kwargs={"num_visual_tokens": [1, 2, 3, 4], "padding": True})
    assert num_placeholders(processor, inputs) == [6, 0, 4]
    assert inputs["visual_token_counts"].tolist() == [1, 2, 3, 4]
    for pixels, image in zip(inputs["pixel_values"], images):
        assert torch.allclose(pixels, reference_pixels(image), atol=1e-6)


@pytest.mark.parametrize("m", [1, 7])
def test_assistant_tokens_mask_fits_the_expanded_prompt(processor, m):
    chats = [
        [user(make_image(), "a"), assistant("A shoe.")],
        [user(make_image(), "a longer one"), assistant("Two bags.")],
    ]
    kwargs = {"num_visual_tokens": m, "padding": True}
    inputs = tokenize_chat(processor, chats, return_assistant_tokens_mask=True, processor_kwargs=kwargs)
    masks = torch.as_tensor(inputs["assistant_masks"]).bool()
    answers = [processor.decode(ids[mask]) for ids, mask in zip(inputs["input_ids"], masks)]
    assert [answer.strip() for answer in answers] == ["A shoe.</s>", "Two bags.</s>"]
