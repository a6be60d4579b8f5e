"""Processors that are made of a LLaVA's: the same prompts and pixels, but for the number of placeholders."""

import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    PixtralImageProcessorPil,
)

from mqt_llava import MQTLlavaProcessor, QueCCLlavaProcessor
from tests.builders.chats import raises, tokenize_chat, user
from tests.builders.llavas import CROPPED, llava_processor, save_llava, tiny_llava, tokenizer
from tests.builders.pictures import make_image


BOTH = pytest.mark.parametrize("processor_class", [MQTLlavaProcessor, QueCCLlavaProcessor])
IMAGES = [make_image(40, 23), make_image(23, 41, seed=1)]
CHAT = [
    user(IMAGES[0], "List the items."),
    {"role": "assistant", "content": [{"type": "text", "text": "sneaker, bag"}]},
    user(IMAGES[1], "And here?"),
]


def one_placeholder_each(ids: torch.Tensor, image_token_id: int) -> list[int]:
    row = ids[0].tolist()
    return [token for before, token in zip([None, *row], row) if not before == token == image_token_id]


@BOTH
@pytest.mark.parametrize("vision", ["clip_vision_model", "siglip_vision_model"])
@pytest.mark.parametrize("template", ["v1", "chatml"])
def test_prompts_and_pixels_are_the_llavas(processor_class, vision, template, tmp_path):
    llava = llava_processor(vision, template)
    processor = processor_class.from_llava(llava, max_visual_tokens=4)
    assert processor.image_token_id == llava.image_token_id
    expected = tokenize_chat(llava, CHAT, add_generation_prompt=True)
    processor.save_pretrained(tmp_path)
    for ours in (processor, processor_class.from_pretrained(tmp_path)):
        inputs = tokenize_chat(ours, CHAT, add_generation_prompt=True)
        assert [(ids["input_ids"] == llava.image_token_id).sum() for ids in (expected, inputs)] == [2 * 16, 2 * 4]
        both = [one_placeholder_each(ids["input_ids"], llava.image_token_id) for ids in (expected, inputs)]
        assert both[0] == both[1]
        assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
        assert ours.apply_chat_template(CHAT) == llava.apply_chat_template(CHAT)


@pytest.mark.parametrize("template, prefix", [("v1", "ASSISTANT:"), ("chatml", "<|im_end|>\n<|im_start|>assistant")])
def test_questions_end_where_the_template_ends_them(template, prefix):
    processor = QueCCLlavaProcessor.from_llava(llava_processor(template=template))
    assert processor.answer_prefix == prefix
    prompt = processor.apply_chat_template(CHAT, add_generation_prompt=True)
    assert processor.questions(prompt) == ["List the items.", "And here?"]
    assert QueCCLlavaProcessor.from_llava(llava_processor(), answer_prefix="ASSIST").answer_prefix == "ASSIST"


@BOTH
def test_padding_to_squares_is_a_choice(processor_class):
    plain = LlavaImageProcessorPil(**CROPPED, do_pad=True)
    expected = plain(IMAGES, return_tensors="pt")["pixel_values"]
    for image_processor, pad_to_square in ((CLIPImageProcessorPil(**CROPPED), True), (plain, None)):
        llava = llava_processor(image_processor=image_processor)
        ours = processor_class.from_llava(llava, pad_to_square=pad_to_square).image_processor
        assert torch.equal(ours(IMAGES, return_tensors="pt")["pixel_values"], expected)
    assert not processor_class.from_llava(llava, pad_to_square=False).image_processor.do_pad
    assert llava.image_processor.do_pad  # the LLaVA's own is left alone


@BOTH
def test_a_folder_and_the_model_that_was_made_of_it(processor_class, tmp_path):
    llava = save_llava(tmp_path)
    processor = processor_class.from_llava(tmp_path, max_visual_tokens=4)
    assert processor.max_visual_tokens == 4
    assert processor.chat_template == llava_processor().chat_template
    assert processor_class.from_llava(llava_processor(), config=llava.config).max_visual_tokens in (256, 16)
    llava.config.image_token_index = 5
    llava.config.save_pretrained(tmp_path)
    with raises(ValueError, "The id of the image token is", "in the processor and 5 in `config`"):
        processor_class.from_llava(tmp_path)


def processor_of_tiles():
    return LlavaNextProcessor(LlavaNextImageProcessorPil(), tokenizer(), patch_size=7)


def of_other_pixels():
    return llava_processor(image_processor=CLIPImageProcessorPil(size={"shortest_edge": 14}, do_center_crop=False))


@BOTH
@pytest.mark.parametrize(
    "make, message",
    [
        (processor_of_tiles, "is a LlavaNextProcessor, but must be a LlavaProcessor"),
        (lambda: MQTLlavaProcessor.from_llava(llava_processor()), "is a MQTLlavaProcessor, but must be a LlavaProc"),
        (tokenizer, "is a TokenizersBackend, but must be a LlavaProcessor"),
        (lambda: llava_processor(image_token="</s>"), "The image token of `llava` is '</s>', but must be '<image>'"),
        (lambda: llava_processor(template="none"), "has no chat template"),
        (lambda: llava_processor(image_processor=PixtralImageProcessorPil()), "is a PixtralImageProcessorPil, but"),
        (of_other_pixels, "The size of an image in pixels is (14, 18) in the processor and (28, 28) in `config`"),
        (lambda: llava_processor(patch_size=14), "The `patch_size` is 14 in the processor and 7 in `config`"),
    ],
)
def test_refusals(processor_class, make, message):
    with raises(ValueError, message):
        processor_class.from_llava(make(), config=tiny_llava().config)


def test_a_template_that_puts_nothing_behind_a_question_needs_a_prefix():
    llava = llava_processor(chat_template="{{ messages[0]['content'][1]['text'] }}")
    with raises(ValueError, "`answer_prefix` is ''"):
        QueCCLlavaProcessor.from_llava(llava)
    assert QueCCLlavaProcessor.from_llava(llava, answer_prefix="A:").answer_prefix == "A:"
