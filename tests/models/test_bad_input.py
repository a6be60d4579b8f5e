"""Bad input is an error that names the argument, what came, and what is allowed."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    TokenizersBackend,
)

from mqt_llava import MQTLlavaConfig, MQTLlavaForConditionalGeneration, MQTLlavaProcessor
from tests.builders.chats import PROMPT, raises, tokenize_chat, user
from tests.builders.prompts import prompt_rows, random_pixels


IMAGE = Image.new("RGB", (30, 20), "red")


def prompt_ids(*counts: int) -> torch.Tensor:
    """One row of the tiny model, with as many placeholders per image as given, and text between."""
    return prompt_rows([[1, *[5, "image"] * len(counts), 6, 7]], list(counts))["input_ids"]


# The number of visual tokens: wherever it is given, the same error. {M} is the most that is allowed there.

BAD_NUMBERS = [
    (0, ValueError, "is 0, but must be an integer in 1..{M}, or a list with one such integer per image"),
    (-1, ValueError, "is -1, but must be an integer in 1..{M}"),
    ("M+1", ValueError, "is {M+1}, but must be an integer in 1..{M}"),
    (10**30, ValueError, f"is {10**30}, but must be an integer in 1..{{M}}"),
    (True, TypeError, "is True, but must be an integer in 1..{M}"),
    (1.5, TypeError, "is 1.5, but must be an integer in 1..{M}"),
    (4.0, TypeError, "is 4.0, but must be an integer in 1..{M}"),
    (float("nan"), TypeError, "is nan, but must be an integer in 1..{M}"),
    ("16", TypeError, "is '16', but must be an integer in 1..{M}"),
    ({4}, TypeError, "is {4}, but must be an integer in 1..{M}"),
    (torch.tensor(1.5), TypeError, "is 1.5, but must be an integer in 1..{M}"),
    (torch.tensor([[4]]), TypeError, "is [[4]], but must be an integer in 1..{M}"),
    ([0], ValueError, "is [0], but must be an integer in 1..{M}"),
    ([True], TypeError, "is [True], but must be an integer in 1..{M}"),
    (["4"], TypeError, "is ['4'], but must be an integer in 1..{M}"),
    ([None], TypeError, "is [None], but must be an integer in 1..{M}"),
    ([], ValueError, "has 0 entries for 1 image, but must be an integer in 1..{M}, or a list"),
    ([16, 16], ValueError, "has 2 entries for 1 image, but must be an integer in 1..{M}, or a list"),
]
EACH_BAD_NUMBER = pytest.mark.parametrize(
    "m, error, message", BAD_NUMBERS, ids=[repr(case[0]) for case in BAD_NUMBERS]
)


def filled_in(m, message: str, max_visual_tokens: int):
    message = message.replace("{M}", str(max_visual_tokens)).replace("{M+1}", str(max_visual_tokens + 1))
    return max_visual_tokens + 1 if isinstance(m, str) and m == "M+1" else m, message


def chat(processor, **processor_kwargs):
    return tokenize_chat(processor, [user(IMAGE, "What is this?")], processor_kwargs=processor_kwargs)


@EACH_BAD_NUMBER
@pytest.mark.parametrize(
    "call",
    [
        lambda p, m: p(images=IMAGE, text=PROMPT, num_visual_tokens=m),
        lambda p, m: p(images=IMAGE, text=PROMPT, images_kwargs={"num_visual_tokens": m}),
        lambda p, m: p(images=IMAGE, num_visual_tokens=m),
        lambda p, m: chat(p, num_visual_tokens=m),
        lambda p, m: p._get_num_multimodal_tokens([(20, 30)], num_visual_tokens=m),
    ],
    ids=["call", "images_kwargs", "images alone", "chat", "engines"],
)
def test_num_visual_tokens_of_the_processor(processor, call, m, error, message):
    m, message = filled_in(m, message, 256)
    with raises(error, "`num_visual_tokens`", message):
        call(processor, m)


@EACH_BAD_NUMBER
def test_num_visual_tokens_of_a_content_item(processor, m, error, message):
    m, message = filled_in(m, message, 256)
    messages = [{"role": "user", "content": [{"type": "image", "image": IMAGE, "num_visual_tokens": m}]}]
    for conversation, place in ((messages, "conversation[0]"), ([messages], "conversation[0][0]")):
        with raises(error, f"`{place}['content'][0]['num_visual_tokens']` ", message):
            processor.apply_chat_template(conversation, tokenize=True)


def test_a_fallback_of_the_wrong_length_beside_an_items_number(processor):
    item = {"type": "image", "image": IMAGE, "num_visual_tokens": 4}
    with raises(ValueError, "`num_visual_tokens` has 2 entries for 1 image"):
        processor.apply_chat_template(
            [{"role": "user", "content": [item]}], tokenize=True, processor_kwargs={"num_visual_tokens": [1, 2]}
        )
    with raises(ValueError, "num_visual_tokens was passed two times"):
        kwargs = {"num_visual_tokens": 1, "images_kwargs": {"num_visual_tokens": 1}}
        processor.apply_chat_template([{"role": "user", "content": [item]}], tokenize=True, processor_kwargs=kwargs)


@pytest.mark.parametrize("number", [[4], (4,), np.array([4])], ids=str)
def test_a_content_item_has_one_number(processor, number):
    with raises(TypeError, "`conversation[0]['content'][0]['num_visual_tokens']` is ", "but one image has one number"):
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image", "image": IMAGE, "num_visual_tokens": number}]}],
            tokenize=True,
            return_dict=True,
        )


@EACH_BAD_NUMBER
@pytest.mark.parametrize("where", ["argument", "generation_config", "model's generation_config"])
def test_num_visual_tokens_of_generate(tiny_model, where, m, error, message):
    m, message = filled_in(m, message, 16)
    kwargs = {"max_new_tokens": 2}
    if where == "argument":
        kwargs["num_visual_tokens"] = m
    elif where == "generation_config":
        kwargs = {"generation_config": GenerationConfig(num_visual_tokens=m, max_new_tokens=2)}
    else:
        tiny_model.generation_config.num_visual_tokens = m
    with raises(error, "`num_visual_tokens`", message):
        tiny_model.generate(input_ids=prompt_ids(4), pixel_values=random_pixels(1), **kwargs)


@EACH_BAD_NUMBER
def test_visual_token_counts_of_get_image_features(tiny_model, m, error, message):
    m, message = filled_in(m, message, 16)
    with raises(error, "`visual_token_counts`", message):
        tiny_model.get_image_features(random_pixels(1), visual_token_counts=m)


@pytest.mark.parametrize("m, error", [(0, ValueError), (257, ValueError), (True, TypeError), (1.5, TypeError)])
def test_num_visual_tokens_as_the_processors_default(converted, processor, m, error):
    for make in (
        lambda: MQTLlavaProcessor(processor.image_processor, processor.tokenizer, num_visual_tokens=m),
        lambda: AutoProcessor.from_pretrained(converted["mqt_llava_original_tiny"], num_visual_tokens=m),
    ):
        with raises(error, f"`num_visual_tokens` is {m}, but must be an integer in 1..256"):
            make()


def test_list_as_the_processors_default(processor):
    with raises(TypeError, "`num_visual_tokens` is [16], but a default must be an integer in 1..256"):
        MQTLlavaProcessor(processor.image_processor, processor.tokenizer, num_visual_tokens=[16])


def test_one_number_in_a_list_for_two_images(processor, tiny_model):
    with raises(ValueError, "`num_visual_tokens` has 1 entries for 2 images", "in 1..256"):
        processor(images=[IMAGE, IMAGE], text=PROMPT * 2, num_visual_tokens=[16])
    with raises(ValueError, "`num_visual_tokens` has 1 entries for 2 images", "in 1..16"):
        tiny_model.generate(input_ids=prompt_ids(4, 4), pixel_values=random_pixels(2), num_visual_tokens=[16])


def test_number_out_of_range_for_a_prompt_without_images(tiny_model):
    with raises(ValueError, "`num_visual_tokens` is 17", "1..16"):
        tiny_model.generate(input_ids=prompt_ids(), num_visual_tokens=17, max_new_tokens=2)


# Prompts and images that do not fit

# As transformers says it, and looks for it in its own tests of processors.
SAME_NUMBER = " tokens in the prompts should be the same as the number of "


@pytest.mark.parametrize(
    "images, text, parts",
    [
        (IMAGE, "Hello", ["0 <image> tokens", "1 images", SAME_NUMBER]),
        (None, PROMPT, ["1 <image> tokens", "0 images"]),
        ([], PROMPT, ["1 <image> tokens", "0 images"]),
        (IMAGE, PROMPT + PROMPT, ["2 <image> tokens", "1 images"]),
        ([IMAGE] * 3, [PROMPT, PROMPT], ["2 <image> tokens", "3 images", "[1, 1]"]),
        ([IMAGE], [], ["0 <image> tokens", "1 images"]),
        ([[IMAGE, IMAGE], []], [PROMPT, PROMPT], ["text[0] has 1 <image> tokens", "images[0] holds 2 images"]),
        ([[IMAGE], []], ["Hello", PROMPT], ["text[0] has 0 <image> tokens", "images[0] holds 1 images"]),
        ([[IMAGE], [IMAGE], []], [PROMPT, PROMPT], ["list of 3 lists", "2 prompts", SAME_NUMBER]),
        ([[IMAGE, IMAGE]], [PROMPT, PROMPT], ["list of 1 lists", "2 prompts"]),
    ],
)
def test_more_or_fewer_image_tokens_than_images(processor, images, text, parts):
    with raises(ValueError, *parts):
        processor(images=images, text=text, num_visual_tokens=1)


@pytest.mark.parametrize("text", [3, b"<image>", [3], [["a", "<image>"]], [PROMPT, None], {"text": PROMPT}], ids=repr)
def test_text_that_is_no_string(processor, text):
    with raises(TypeError, "`text` is ", "must be a string or a list of strings"):
        processor(images=IMAGE, text=text)


def test_text_and_images_in_the_wrong_order(processor):
    with raises(TypeError, "`text` is <PIL.Image", "must be a string"):
        processor(PROMPT, IMAGE)


def test_no_input_at_all(processor):
    with raises(ValueError, "at least one input"):
        processor()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("text", [PROMPT, "What is this? " * 9 + "<image>", "<image>" + " What is this?" * 9])
def test_truncation_that_cuts_placeholders(processor, text, side):
    processor = copy.deepcopy(processor)  # a tokenizer keeps, and saves, how it truncated last
    with raises(ValueError, "truncation", "max_length"):
        processor(
            images=IMAGE,
            text=text,
            num_visual_tokens=16,
            truncation=True,
            max_length=12,
            text_kwargs={"truncation_side": side},
        )


def test_unknown_role_in_a_chat(processor):
    with pytest.raises(Exception, match="role is tool, but must be system, user or assistant"):
        processor.apply_chat_template([{"role": "tool", "content": "Hello"}])


# forward and generate


@pytest.mark.parametrize("call", ["forward", "generate"])
@pytest.mark.parametrize(
    "placeholders, num_images, counts, parts",
    [
        ((), 1, None, ["0 image tokens", "1 images"]),
        ((4,), 3, None, ["4 image tokens", "3 images cannot share equally", "visual_token_counts"]),
        ((4,), 1, [5], ["4 image tokens", "5 visual tokens for 1 images"]),
        ((4,), 1, [3], ["4 image tokens", "3 visual tokens for 1 images"]),
        ((4, 2), 2, [4, 4], ["6 image tokens", "8 visual tokens for 2 images", "[4, 4]"]),
        ((4,), 1, [2, 2], ["`visual_token_counts` has 2 entries for 1 image"]),
        ((4,), 2, [4, 0], ["`visual_token_counts`", "[4, 0]", "1..16"]),
        ((17,), 1, None, ["17", "1..16"]),
    ],
)
def test_placeholders_and_images_do_not_match(tiny_model, call, placeholders, num_images, counts, parts):
    inputs = {"input_ids": prompt_ids(*placeholders), "pixel_values": random_pixels(num_images)}
    if counts is not None:
        inputs["visual_token_counts"] = torch.tensor(counts)
    with raises(ValueError, *parts):
        tiny_model(**inputs) if call == "forward" else tiny_model.generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize("call", ["forward", "generate"])
def test_pixel_values_and_encoded_images(tiny_model, call):
    inputs = {"input_ids": prompt_ids(4), "pixel_values": random_pixels(1)}
    inputs["mm_encoder_outputs"] = {"image": tiny_model.get_image_features(random_pixels(1))}
    with raises(ValueError, "both pixel_values and mm_encoder_outputs"):
        tiny_model(**inputs) if call == "forward" else tiny_model.generate(**inputs, max_new_tokens=1)


def test_more_tokens_than_the_images_were_encoded_into(tiny_model):
    encoded = {"image": tiny_model.get_image_features(random_pixels(1), visual_token_counts=[2])}
    for call, placeholders, asked in (
        (tiny_model, 4, {}), (tiny_model.generate, 4, {}), (tiny_model.generate, 2, {"num_visual_tokens": 4}),
    ):  # fmt: skip
        with raises(ValueError, "[4] visual tokens are asked for", "encoded into [2]"):
            call(input_ids=prompt_ids(placeholders), mm_encoder_outputs=encoded, **asked)


def test_input_ids_and_inputs_embeds(tiny_model):
    ids = prompt_ids(4)
    for inputs in ({}, {"input_ids": ids, "inputs_embeds": tiny_model.get_input_embeddings()(ids)}):
        with raises(ValueError, "exactly one of input_ids or inputs_embeds"):
            tiny_model(pixel_values=random_pixels(1), **inputs)


def test_attention_mask_of_another_shape(tiny_model):
    with raises(ValueError, "`attention_mask` is (1, 3)", "`input_ids` (1, 8)"):
        tiny_model.generate(
            input_ids=prompt_ids(4),
            pixel_values=random_pixels(1),
            attention_mask=torch.ones(1, 3, dtype=torch.long),
            num_visual_tokens=2,
            max_new_tokens=1,
        )


def test_misspelt_argument_of_generate(tiny_model):
    with raises(ValueError, "num_visual_token'"):
        tiny_model.generate(input_ids=prompt_ids(4), pixel_values=random_pixels(1), num_visual_token=2)


def test_image_of_another_size_than_the_vision_towers(tiny_model):
    with raises(ValueError, "56*56", "28*28"):
        tiny_model.get_image_features(torch.zeros(1, 3, 56, 56))


# Config, checkpoint folder, processor


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A checkpoint of the tiny model."""
    tiny_model.save_pretrained(tmp_path)
    return tmp_path


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_folder_with_max_visual_tokens_not_a_square(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_visual_tokens": 15}))
    for load in (AutoConfig.from_pretrained, MQTLlavaForConditionalGeneration.from_pretrained):
        with raises(ValueError, "`max_visual_tokens` is 15", "square number"):
            load(folder)


def test_folder_without_config(folder):
    (folder / "config.json").unlink()
    for load in (AutoConfig.from_pretrained, AutoModelForImageTextToText.from_pretrained):
        with raises(ValueError, folder, "config.json"):
            load(folder)
    # Else the model's own class would go on to build the 7B model that a config without arguments describes.
    with raises(OSError, folder, "config.json"):
        MQTLlavaConfig.from_pretrained(folder)


def test_folder_with_an_unknown_resampler_key(folder):
    change_weights(folder, lambda weights: weights.update({"model.resampler.mystery.weight": torch.zeros(3)}))
    with raises(ValueError, folder, "does not know: model.resampler.mystery.weight"):
        MQTLlavaForConditionalGeneration.from_pretrained(folder)


def test_folder_with_a_resampler_of_another_size(folder):
    change_weights(folder, lambda weights: weights.update({"model.resampler.query": torch.zeros(9, 32)}))
    with raises(RuntimeError, "ignore_mismatched_sizes"):
        MQTLlavaForConditionalGeneration.from_pretrained(folder)


def test_processor_of_wrong_parts(processor):
    image_processor, tokenizer = processor.image_processor, processor.tokenizer
    for parts in ((), (tokenizer, image_processor), (None, tokenizer), (image_processor, None)):
        with raises(TypeError, "Received a"):
            MQTLlavaProcessor(*parts)


def test_processor_with_a_misspelt_argument(processor):
    with raises(TypeError, "num_tokens"):
        MQTLlavaProcessor(processor.image_processor, processor.tokenizer, num_tokens=4)


def test_processor_whose_tokenizer_does_not_know_the_image_token(processor):
    vocabulary = Tokenizer(WordLevel({"<unk>": 0, "picture": 1}, unk_token="<unk>"))
    with raises(ValueError, "`tokenizer` does not know <image>", "add_tokens"):
        MQTLlavaProcessor(processor.image_processor, TokenizersBackend(tokenizer_object=vocabulary))
