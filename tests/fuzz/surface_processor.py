"""The processor: which tokens, which pixels and which numbers come of prompts, chats and images in every form."""

import copy
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any

import numpy as np
import PIL.Image
import torch

from mqt_llava import MQTLlavaProcessor, QueCCLlavaProcessor
from tests.builders.paths import CHECKPOINT
from tests.builders.pictures import reference_pixels
from tests.builders.prompts import pad

from .numbers import in_any_form as numbers_in_any_form
from .numbers import random_counts, wrong_numbers
from .oracle_text import render, token_ids
from .outcomes import EITHER, REFUSED, RIGHT, Outcome, attempt, wrong
from .pictures import in_any_form, no_picture
from .texts import random_chat, random_prompt


MOST, SIDE, DEFAULT = 16, 112, 4
QUECC_NUMBER = 4


@cache
def processor(default: int | None = None, is_quecc: bool = False):
    made = MQTLlavaProcessor.from_pretrained(CHECKPOINT, num_visual_tokens=default)
    if is_quecc:
        return QueCCLlavaProcessor(made.image_processor, copy.deepcopy(made.tokenizer), QUECC_NUMBER)
    return made


def run_case(rng: Random, log: dict) -> Iterator[Outcome]:
    yield from (call_chat if rng.random() < 0.4 else call_plainly)(rng, log)


def pick(rng: Random, log: dict) -> tuple[Any, int, bool]:
    """A processor, the number that it gives images by itself, and whether it is QueCC's."""
    is_quecc = rng.random() < 0.2
    default = rng.choice((None, DEFAULT)) if not is_quecc else None
    log.update(processor="QueCC" if is_quecc else "MQT", default=default)
    return processor(default, is_quecc), QUECC_NUMBER if is_quecc else default or MOST, is_quecc


def random_images(rng: Random, number: int, log: dict) -> tuple[list, list[np.ndarray]]:
    kinds = log.setdefault("images", [])
    drawn = [in_any_form(rng, len(kinds) + index) for index in range(number)]
    kinds += [kind for *_, kind in drawn]
    log["traits"] = ["transparent"] * any("transparen" in kind for kind in kinds)
    return [image for image, *_ in drawn], [colours for _, colours, _ in drawn]


def call_plainly(rng: Random, log: dict) -> Iterator[Outcome]:
    """`processor(images=..., text=...)`."""
    tested, default, is_quecc = pick(rng, log)
    is_batch = rng.random() < 0.6
    prompts = [random_prompt(rng, is_quecc) for _ in range(rng.randint(1, 3) if is_batch else 1)]
    num_images = sum(prompt.num_images for prompt in prompts)
    images, colours = random_images(rng, num_images, log)
    kwargs, expected = {"text": [prompt.text for prompt in prompts] if is_batch else prompts[0].text}, RIGHT
    options, counts = {}, [default] * num_images
    if not is_quecc and rng.random() < 0.6:
        asked = random_counts(rng, num_images, MOST)
        options["num_visual_tokens"] = numbers_in_any_form(rng, asked) if asked else rng.randint(1, MOST)
        counts = asked
        if rng.random() < 0.1:
            options["num_visual_tokens"], expected = wrong_numbers(rng, num_images, MOST), REFUSED
            if not num_images:
                expected = EITHER
    log.update(text=kwargs["text"], asked=options.get("num_visual_tokens"))
    if images and rng.random() < 0.07:
        images[rng.randrange(num_images)], expected = no_picture(rng), REFUSED
        log["images"] = [repr(image)[:60] for image in images]
    elif images and rng.random() < 0.04:
        images, expected = rng.choice((images[:-1] or None, [*images, images[0]])), REFUSED
    if images:
        kwargs["images"] = arrange(rng, images, prompts) if expected == RIGHT else images
    side = rng.choice(("left", "right"))
    tensors = rng.choice(("pt", "pt", "np", None))
    if len(prompts) > 1 or rng.random() < 0.3:
        kwargs |= {"padding": True, "padding_side": side}
    if rng.random() < 0.2 and options:
        kwargs["images_kwargs"] = options
    else:
        kwargs |= options
    if tensors is not None:
        kwargs["return_tensors"] = tensors
    log.update(arguments=sorted(kwargs), expected=expected, group="QueCC, plain" if is_quecc else "plain")
    log["group"] += ", transparent" * bool(log["traits"])
    rows = [prompt.text for prompt in prompts]
    questions = [question for prompt in prompts for question in prompt.questions]

    def judge(inputs) -> Outcome:
        return check(tested, inputs, rows, counts, colours, side, questions if is_quecc else None)

    yield attempt(lambda: tested(**kwargs), judge, {*kwargs, "images", "num_visual_tokens"}, expected)


def arrange(rng: Random, images: list, prompts: list) -> Any:
    """Flat, prompt by prompt, or alone."""
    if len(images) == 1 and rng.random() < 0.3:
        return images[0]
    if len(prompts) > 1 and rng.random() < 0.4:
        rows, rest = [], list(images)
        for prompt in prompts:
            rows.append(rest[: prompt.num_images])
            rest = rest[prompt.num_images :]
        return rows
    return images


def call_chat(rng: Random, log: dict) -> Iterator[Outcome]:
    """`processor.apply_chat_template`, with numbers in the content items."""
    tested, default, is_quecc = pick(rng, log)
    has_items = not is_quecc and rng.random() < 0.5
    chats, all_colours, expected = [], [], RIGHT
    for _ in range(rng.choice((1, 1, 2, 3))):
        images, colours = random_images(rng, rng.choice((0, 1, 1, 2)), log)
        items = [{"path" if isinstance(image, str) and image.endswith(".png") else "image": image} for image in images]
        chats.append(random_chat(rng, items, MOST if has_items else None))
        all_colours += colours
    num_images = len(all_colours)
    counts, options = [default] * num_images, {}
    if not is_quecc and num_images and rng.random() < 0.4:
        counts = random_counts(rng, num_images, MOST)
        options["num_visual_tokens"] = numbers_in_any_form(rng, counts)
    items = [item for chat in chats for item in chat.numbers]
    counts = [count if item is None else item for count, item in zip(counts, items)]
    is_batch = len(chats) > 1 or rng.random() < 0.2
    tokenize = rng.random() < 0.93
    side = rng.choice(("left", "right"))
    if is_batch:
        options |= {"padding": True, "padding_side": side}
    kwargs = {"add_generation_prompt": True, "tokenize": tokenize, "return_dict": True, "return_tensors": "pt"}
    if options:
        kwargs["processor_kwargs"] = options
    if not tokenize:
        kwargs = {"add_generation_prompt": True, "tokenize": False}
        expected = REFUSED if any(item is not None for item in items) else RIGHT
    elif any(item is not None for item in items) and rng.random() < 0.1:
        spoil(rng, [chat.messages for chat in chats])
        expected = REFUSED
    log.update(chats=[chat.messages for chat in chats], processor_kwargs=options, expected=expected)
    log["group"] = f"chat{', numbers in items' * any(item is not None for item in items)}{', text' * (not tokenize)}"
    log["group"] += ", transparent" * bool(log.get("traits"))
    texts = [render(chat.messages) for chat in chats]
    conversation = [chat.messages for chat in chats] if is_batch else chats[0].messages
    questions = [question for chat in chats for question in chat.questions]

    def judge(inputs) -> Outcome:
        if not tokenize:
            same = inputs == (texts if is_batch else texts[0])
            return Outcome("right") if same else wrong(f"the text is {inputs!r} instead of {texts!r}")
        return check(tested, inputs, texts, counts, all_colours, side, questions if is_quecc else None)

    before = repr(conversation)
    names = {"num_visual_tokens", "conversation", "images", "tokenize"}
    outcome = attempt(lambda: tested.apply_chat_template(conversation, **kwargs), judge, names, expected)
    if not outcome.is_failure and repr(conversation) != before:
        outcome = wrong("the caller's messages were changed")
    yield outcome


def spoil(rng: Random, chats: list[list[dict]]) -> None:
    """Makes the number of one content item a wrong one."""
    items = [
        item
        for chat in chats
        for message in chat
        if not isinstance(message["content"], str)
        for item in message["content"]
        if "num_visual_tokens" in item
    ]
    rng.choice(items)["num_visual_tokens"] = rng.choice((0, -3, MOST + 1, True, 1.5, "4", [4]))


def check(tested, inputs, texts, counts, colours, side, questions: list[str] | None) -> Outcome:
    """Compares everything that a processor returns."""
    numbers, rows = iter(counts), []
    for text in texts:
        rows.append(token_ids(tested.tokenizer, text, [next(numbers) for _ in range(text.count("<image>"))]))
    ids, mask = pad(rows, side)
    wanted = {"input_ids": ids.tolist(), "attention_mask": mask.tolist()}
    if colours and questions is None:
        wanted["visual_token_counts"] = counts
    query_names = ("query_input_ids", "query_attention_mask") if colours and questions is not None else ()
    if set(inputs) != {*wanted, *query_names, *(["pixel_values"] if colours else [])}:
        return wrong(f"the keys are {sorted(inputs)}")
    for name, value in wanted.items():
        actual = as_list(inputs[name])
        if actual != value:
            return wrong(f"`{name}` is {str(actual)[:300]}, but should be {str(value)[:300]}")
    if query_names:  # what is masked may be anything
        asked = [tested.tokenizer(question)["input_ids"] for question in questions]
        ids, mask = (as_list(inputs[name]) for name in query_names)
        if [[token for token, is_seen in zip(*row) if is_seen] for row in zip(ids, mask)] != asked:
            return wrong(f"`query_input_ids` is {str(ids)[:300]}, but should hold {str(asked)[:300]}")
    for index, picture in enumerate(colours):
        actual = torch.as_tensor(np.asarray(inputs["pixel_values"][index])).float()
        if actual.shape != (3, SIDE, SIDE):
            return wrong(f"pixel_values[{index}] is of shape {tuple(actual.shape)}")
        gap = (actual - reference_pixels(PIL.Image.fromarray(picture), SIDE)).abs().max()
        if not gap < 1e-4:
            return wrong(f"pixel_values[{index}] are off by {float(gap):.2e}")
    return Outcome("right")


def as_list(value) -> list:
    """Lists, lists of arrays, arrays and tensors, as lists of integers."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.tolist()
    return [as_list(entry) if not isinstance(entry, int) else entry for entry in value]
