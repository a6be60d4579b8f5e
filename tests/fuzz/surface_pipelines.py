"""transformers' image-text-to-text pipeline: prompts and chats, alone and in batches, with numbers from everywhere."""

from collections.abc import Iterator
from functools import cache
from random import Random

import PIL.Image
import torch
from transformers import pipeline

from mqt_llava import MQTLlavaConfig, QueCCLlavaConfig
from tests.builders.configs import TEXT_CONFIG, VISION_CONFIG
from tests.builders.models import random_model, random_quecc_model
from tests.builders.pictures import reference_pixels

from .numbers import in_saved_form, random_counts
from .oracle import Oracle, split_counts
from .oracle_text import render, token_ids
from .outcomes import EITHER, REFUSED, RIGHT, Outcome, attempt, worst, wrong
from .pictures import random_picture
from .rows import Image, Row, images_of
from .surface_processor import MOST, QUECC_NUMBER, SIDE, processor
from .texts import random_chat, random_prompt


OPAQUE = ("RGB", "RGBA", "L", "P")  # pictures in other forms are the processor's part
EOS = 2


@cache
def pipe(is_quecc: bool):
    """A random model that knows the tokens of the processor."""
    tokenizer = processor().tokenizer
    config = {
        "vision_config": {**VISION_CONFIG, "image_size": SIDE, "patch_size": 28},
        "text_config": {**TEXT_CONFIG, "vocab_size": len(tokenizer)},
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
    }
    if is_quecc:
        model = random_quecc_model(QueCCLlavaConfig(**config, kernel_size=2, vision_context_layers=[1, 2]))
    else:
        model = random_model(MQTLlavaConfig(**config, max_visual_tokens=MOST))
    model.generation_config.update(eos_token_id=EOS, pad_token_id=0)
    return pipeline("image-text-to-text", model=model, processor=processor(None, is_quecc))


def run_case(rng: Random, log: dict) -> Iterator[Outcome]:
    is_quecc = rng.random() < 0.2
    is_chat = rng.random() < 0.6
    num_prompts = rng.choice((1, 1, 2, 3))
    batch_size = rng.choice((None, None, 2, 3)) if is_chat and num_prompts > 1 else None
    has_items = is_chat and not is_quecc and rng.random() < 0.5
    numbers_of_images = [rng.choice((1, 1, 2) if batch_size else (0, 1, 1, 2)) for _ in range(num_prompts)]
    pictures, texts, chats, questions, items = [], [], [], [], []
    for number in numbers_of_images:
        own = [random_picture(rng, kinds=OPAQUE) for _ in range(number)]
        if is_chat:
            chat = random_chat(rng, [{"image": picture.image} for picture in own], MOST if has_items else None)
            chats.append(chat.messages)
            texts.append(render(chat.messages))
            questions += chat.questions
            items += chat.numbers
        else:
            prompt = random_prompt(rng, is_asked=is_quecc)
            own = [random_picture(rng, kinds=OPAQUE) for _ in range(prompt.num_images)]
            texts.append(prompt.text)
            questions += prompt.questions
            items += [None] * prompt.num_images
        pictures += own

    num_images, expected, kwargs = len(pictures), RIGHT, {}

    def draw_counts() -> list[int]:
        drawn = random_counts(rng, num_images, MOST)
        return drawn if is_whole else drawn[:1] * num_images

    counts = [QUECC_NUMBER if is_quecc else MOST] * num_images
    is_whole = num_prompts == 1 or (not is_chat and num_images > 0)  # one call of processor and model
    if not is_quecc and num_images and rng.random() < 0.5:
        counts = draw_counts()
        kwargs["processor_kwargs"] = {"num_visual_tokens": in_saved_form(counts)}
    counts = [count if item is None else item for count, item in zip(counts, items)]
    made = list(counts)
    if not is_quecc and num_images and rng.random() < 0.4:
        counts = draw_counts()
        asked, expected = in_saved_form(counts), RIGHT
        if rng.random() < 0.1:
            asked, expected = rng.choice((0, MOST + 1, "4", [1] * 9)), REFUSED
        kwargs["generate_kwargs"] = {"num_visual_tokens": asked}
    if is_whole and num_prompts > 1 and rng.random() < 0.5 and "processor_kwargs" in kwargs:
        kwargs["processor_kwargs"] |= {"padding": True}
    num_new = rng.randint(1, 5)
    kwargs["max_new_tokens"] = num_new
    if batch_size is not None:
        kwargs["batch_size"] = batch_size
    gives_ids = rng.random() < 0.6
    kwargs |= {"return_tensors": True} if gives_ids else {"return_full_text": False}
    if is_chat:
        inputs = {"text": chats if num_prompts > 1 else chats[0]}
    else:
        inputs = {"text": texts if num_prompts > 1 else texts[0]}
        if pictures:
            images = [picture.image for picture in pictures]
            inputs["images"] = images[0] if len(images) == 1 and num_prompts == 1 and rng.random() < 0.5 else images
    tested = pipe(is_quecc)
    log.update(texts=texts, items=items, kwargs=kwargs, counts=counts, expected=expected)
    several = len(set(numbers_of_images)) > 1
    log["group"] = ", ".join(
        ["QueCC"] * is_quecc
        + ["chat" if is_chat else "prompt"]
        + ["batched"] * (num_prompts > 1)
        + ["batch_size"] * (batch_size is not None)
        + ["several numbers of images"] * several
        + ["items"] * any(item is not None for item in items)
        + [name for name in ("processor_kwargs", "generate_kwargs") if name in kwargs]
    )
    pool = [reference_pixels(PIL.Image.fromarray(picture.colours), SIDE) for picture in pictures]
    oracle = Oracle(tested.model, torch.stack(pool) if pool else None, 1e-3)
    questions = [tuple(tested.tokenizer(question)["input_ids"]) for question in questions] or [(1,)] * num_images
    rows, prompts = build_rows(tested.tokenizer, texts, made, questions)

    if is_quecc and batch_size is not None and any(len({i.question for i in images_of(row)}) > 1 for row in rows):
        expected = log["expected"] = EITHER  # transformers keeps one row for each prompt, of all that is no image

    def judge(results) -> Outcome:
        results = results if isinstance(results[0], list) else [[result] for result in results]
        if len(results) == 1 and len(results[0]) == num_prompts:
            results = [[result] for result in results[0]]
        if len(results) != num_prompts:
            return wrong(f"{len(results)} results for {num_prompts} prompts")
        size = num_prompts if is_whole else batch_size or 1
        verdicts = []
        for i, ((result,), row, row_counts) in enumerate(zip(results, rows, split_counts(rows, counts))):
            if gives_ids:
                batch = prompts[i // size * size : (i // size + 1) * size]
                answer = torch.as_tensor(result["generated_token_ids"]).tolist()[max(map(len, batch)) :]
                verdicts.append(oracle.judge(row, row_counts, answer, num_new, (EOS,)))
            else:
                verdicts.append(judge_text(tested, oracle, row, row_counts, prompts[i], num_new, result))
        return worst(verdicts)

    yield attempt(
        lambda: tested(**inputs, **kwargs), judge, {"num_visual_tokens", "images", "text", "query_input_ids"}, expected
    )


def build_rows(tokenizer, texts: list[str], made: list[int], asked: list[tuple]) -> tuple[list[Row], list[list[int]]]:
    """What the prompts say, and how many tokens they are as they are passed."""
    rows, prompts, index, placeholder = [], [], 0, tokenizer.convert_tokens_to_ids("<image>")
    for text in texts:
        row: Row = []
        first = index
        for token in tokenizer(text)["input_ids"]:
            if token == placeholder:
                row.append(Image(index, asked[index]))
                index += 1
            else:
                row.append(token)
        rows.append(row)
        prompts.append(token_ids(tokenizer, text, made[first:index]))
    return rows, prompts


def judge_text(
    tested, oracle: Oracle, row: Row, counts: list[int], prompt: list[int], num_new: int, result
) -> Outcome:
    answer, _, is_tie = oracle.greedy(row, counts, num_new, (EOS,))
    before = tested.tokenizer.decode(prompt, skip_special_tokens=True)
    after = tested.tokenizer.decode(prompt + answer, skip_special_tokens=True)
    # Where the answer changes what the prompt reads like, the pipeline cannot cut it off.
    text = after[len(before) :] if after.startswith(before) else after
    if result["generated_text"] == text:
        return Outcome("right")
    return Outcome("undecided") if is_tie else wrong(f"the text is {result['generated_text']!r} instead of {text!r}")
