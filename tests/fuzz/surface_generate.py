"""`generate` at fixed numbers of visual tokens, in every way of decoding, padding and passing images."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from tests.builders.prompts import IMAGE_TOKEN_ID

from .numbers import in_any_form, in_saved_form, random_counts, wrong_numbers
from .oracle import Oracle, split_counts
from .outcomes import EITHER, REFUSED, RIGHT, Outcome, attempt, worst, wrong
from .rows import PADDINGS, Columns, Row, images_of, lay_out, random_rows, to_tensors
from .subjects import POOL_SIZE, Subject, own_generation_config, random_subject, training


WAYS = ("beams", "sampled", "static", "no cache", "prefill", "assistant", "lookup", "embeds", "checkpointing")
MODES = ("greedy",) * 6 + WAYS
ALONE = ("assistant", "lookup")  # which transformers does for one prompt at a time


class Noise(LogitsProcessor):
    """Sampling whose chances are drawn beforehand: what has the most logit and noise is all but certain."""

    def __init__(self, noise: torch.Tensor):
        self.noise, self.step = noise, 0  # (sequences, steps, vocabulary)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = (scores + self.noise[:, self.step]) * 1e6
        self.step += 1
        return scores


def random_noise(rng: Random, num_sequences: int, num_new: int) -> torch.Tensor:
    """Gumbel's, with which the greatest sum is a draw by the model's probabilities."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    uniform = torch.rand(num_sequences, num_new, IMAGE_TOKEN_ID + 1, generator=generator).clamp(1e-6, 1 - 1e-6)
    return -(-uniform.log()).log()


def run_case(rng: Random, log: dict) -> Iterator[Outcome]:
    subject = random_subject(rng, quecc=0.15)
    mode = rng.choice(MODES)
    rows = random_rows(rng, POOL_SIZE, most_rows=1 if mode in ALONE else 4)
    images = [image for row in rows for image in images_of(row)]
    made = random_counts(rng, len(images), subject.most) if not subject.is_quecc else [subject.most] * len(images)
    padding, extra = rng.choice(PADDINGS), rng.choice((0, 0, 0, 1, 3, 7))
    columns = lay_out(rng, rows, split_counts(rows, made), padding, extra)
    log.update(model=subject.name, mode=mode, rows=rows, made=made, padding=padding, extra=extra)

    kwargs, expected = to_tensors(columns), RIGHT
    # Without a mask transformers takes the padding's token for padding.
    if mode != "embeds" and kwargs["attention_mask"].all() and kwargs["input_ids"].all() and rng.random() < 0.5:
        del kwargs["attention_mask"]
    if images:
        kwargs |= pass_images(rng, subject, images, made, log)
    with own_generation_config(subject.model) as config:
        asked = made
        if rng.random() < 0.7:
            asked, expected = ask(rng, subject, made, kwargs, config, log)
        num_new = rng.randint(1, 5)
        kwargs |= {"max_new_tokens": num_new, "do_sample": False}
        decoding = decode(rng, subject, mode, len(rows), num_new, kwargs, log)
        if mode == "embeds":
            # Nothing can be re-sized in embeddings, nor a padding moved that transformers itself warns of.
            kwargs["inputs_embeds"] = subject.model.get_input_embeddings()(kwargs.pop("input_ids")).detach()
            if expected == RIGHT and (asked != made or padding != "left"):
                expected = EITHER
        if mode != "embeds" and rng.random() < 0.05:  # which no decoder here reads
            kwargs["mm_token_type_ids"] = (kwargs["input_ids"] == IMAGE_TOKEN_ID).long()
            expected = EITHER if expected == RIGHT else expected
        if mode == "lookup" and images and expected == RIGHT:
            expected = EITHER  # guesses from the prompt can be placeholders
        prompt = kwargs.get("input_ids")
        args = [kwargs.pop("input_ids")] if prompt is not None and rng.random() < 0.2 else []
        if mode == "checkpointing" and expected == RIGHT:
            expected = EITHER
        if images and rng.random() < 0.06:
            mode, expected = spoil(rng, subject, images, made, kwargs), REFUSED
        size = "re-sized" if asked != made else "as made"
        log["group"] = f"{'QueCC, ' * subject.is_quecc}{mode}, {size}, padded {place(columns)}"
        log.update(asked=asked, expected=expected, num_new=num_new, arguments=sorted(kwargs), positional=bool(args))

        def judge(result) -> Outcome:
            return decoding.judge(subject.oracle, result, prompt, rows, split_counts(rows, asked))

        names = {*kwargs, "input_ids", "num_visual_tokens", "pixel_values", "visual_token_counts"}
        names |= {"gradient_checkpointing"}
        with training(subject.model, mode == "checkpointing"):
            yield attempt(lambda: subject.model.generate(*args, **kwargs), judge, names, expected)


def place(columns: list[Columns]) -> str:
    """Where the padding is, so that failures can be told apart."""
    if all(row.mask == sorted(row.mask) for row in columns):
        return "on the left"
    return "within" if all(row.mask[-1] for row in columns) else "on the right"


def spoil(rng: Random, subject: Subject, images: list, made: list[int], kwargs: dict) -> str:
    """Passes the images in a way that is refused."""
    ways = ["encoded images that are none", "an image too many", "numbers that are none"]
    way = rng.choice(ways[:2] if subject.is_quecc else ways)
    if way == "an image too many":
        kwargs.pop("mm_encoder_outputs", None)
        kwargs |= subject.image_inputs([*images, images[0]])
        if not subject.is_quecc:  # without numbers they might share the placeholders
            kwargs["visual_token_counts"] = list(made)
    elif way == "numbers that are none":
        kwargs["visual_token_counts"] = rng.choice(("4", 4.0, [0] * len(images), [1] * (len(images) + 1), {"a": 1}))
    else:
        pixels = subject.image_inputs(images)
        for name in pixels:
            kwargs.pop(name, None)
        pixels = pixels["pixel_values"]
        kwargs["mm_encoder_outputs"] = rng.choice((pixels, (pixels,), "x", 3, {"video": pixels}, {"image": pixels}))
    return way


def judge_beams(oracle: Oracle, row: Row, counts: list[int], answers: list[list[int]], num_beams: int) -> Outcome:
    expected, is_tie = oracle.beams(row, counts, num_beams, len(answers[0]))
    if answers == expected[: len(answers)]:
        return Outcome("right")
    return Outcome("undecided") if is_tie else wrong(f"beams {answers} instead of {expected[: len(answers)]}")


def pass_images(rng: Random, subject: Subject, images: list, made: list[int], log: dict) -> dict:
    """Pixels, or what they are encoded into; and, where it can be told without, perhaps the numbers."""
    inputs = subject.image_inputs(images, rng.choice(("left", "right")))
    log["images"] = rng.choice(("pixels", "pixels", "encoded"))
    if log["images"] == "encoded":
        with torch.set_grad_enabled(rng.random() < 0.5):
            inputs = {"mm_encoder_outputs": {"image": subject.model.get_image_features(**inputs)}}
    if not subject.is_quecc and (len(set(made)) > 1 or rng.random() < 0.6):
        inputs["visual_token_counts"] = rng.choice((torch.tensor(made), list(made)))
    return inputs


def ask(rng: Random, subject: Subject, made: list[int], kwargs: dict, config, log: dict) -> tuple[list[int], str]:
    """Asks for numbers in one of the ways, with others in the ways that yield to it. What must come of it."""
    way = log["asked by"] = rng.choice(("argument", "argument", "generation config", "model's generation config"))
    asked = random_counts(rng, len(made), subject.most)
    if not made:
        number = rng.randint(1, subject.most)  # asked of all images, of which there are none
    elif way == "argument":
        number = in_any_form(rng, asked)
    else:
        number = in_saved_form(asked)
    expected = RIGHT
    if rng.random() < 0.1:
        number, expected = wrong_numbers(rng, len(made), subject.most), REFUSED
        if not made:
            expected = EITHER  # a list of the wrong length is wrong for no image, too; a wrong number need not be
    elif subject.is_quecc:
        expected = REFUSED
        if asked == made or not made:
            number, expected = subject.most, RIGHT
    log["number"] = number

    lower = rng.randint(1, subject.most)
    if way == "argument":
        kwargs["num_visual_tokens"] = number
        if rng.random() < 0.2:
            config.num_visual_tokens = lower
    elif way == "generation config":
        kwargs["generation_config"] = GenerationConfig(num_visual_tokens=number, pad_token_id=0)
        if rng.random() < 0.2:
            config.num_visual_tokens = lower
    else:
        config.num_visual_tokens = number
    if subject.is_quecc:  # which has no number of its own to take from a configuration
        config.num_visual_tokens = None
        return made, expected if way == "argument" else EITHER
    return asked, expected


class Decoding(NamedTuple):
    """
    What of a way of decoding decides how an answer is judged.

    Args:
        num_new: The most tokens of an answer.
        eos: Tokens that end it.
        copies: Answers to each prompt.
        noise: What sampled answers are drawn with, `(answers, steps, vocabulary)`.
        num_beams: Of a beam search, else 0.
    """

    num_new: int
    eos: tuple[int, ...] = ()
    copies: int = 1
    noise: torch.Tensor | None = None
    num_beams: int = 0

    def judge(
        self,
        oracle: Oracle,
        result,
        prompt: torch.Tensor | None,
        rows: list[Row],
        counts: list[list[int]],
        is_open: Sequence[bool] | None = None,
    ) -> Outcome:
        """
        What `generate` returned.

        Args:
            prompt: Token ids as they were passed.
            counts: Visual tokens of the images, row by row.
            is_open: Of which rows another answer may be right too, since a rounding error decided on their numbers.
        """
        sequences = sequences_of(result)
        if len(sequences) != len(rows) * self.copies:
            return wrong(f"{len(sequences)} sequences for {len(rows)} prompts")
        length = 0 if prompt is None else prompt.shape[1]
        if length and not torch.equal(sequences[:, :length], prompt.repeat_interleave(self.copies, 0)):
            return wrong("the sequences do not begin with the prompt as it was passed")
        answers, verdicts = sequences[:, length:].tolist(), []
        noise = [None] * len(answers) if self.noise is None else self.noise
        for i, row in enumerate(rows):
            own = slice(i * self.copies, (i + 1) * self.copies)
            if self.num_beams:
                verdict = judge_beams(oracle, row, counts[i], answers[own], self.num_beams)
            else:
                judged = zip(answers[own], noise[own])
                verdict = worst(oracle.judge(row, counts[i], one, self.num_new, self.eos, n) for one, n in judged)
            verdicts.append(Outcome("undecided") if verdict.is_failure and is_open and is_open[i] else verdict)
        return worst(verdicts)


def sequences_of(result) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result.sequences


def decode(rng: Random, subject: Subject, mode: str, num_rows: int, num_new: int, kwargs: dict, log: dict) -> Decoding:
    """Adds what a mode of decoding needs."""
    copies, eos, noise = 1, (), None
    if mode == "beams":
        kwargs["num_beams"] = rng.randint(2, 3)
        copies = kwargs["num_return_sequences"] = rng.randint(1, kwargs["num_beams"])
    elif mode == "sampled":
        copies = rng.randint(1, 3)
        noise = random_noise(rng, num_rows * copies, num_new)
        processors = LogitsProcessorList([Noise(noise)])
        kwargs |= {"do_sample": True, "num_return_sequences": copies, "logits_processor": processors}
    elif mode == "static":
        kwargs |= {"cache_implementation": "static", "disable_compile": True}
    elif mode == "no cache":
        kwargs["use_cache"] = False
    elif mode == "prefill":
        kwargs["prefill_chunk_size"] = rng.randint(1, 9)
    elif mode == "assistant":
        kwargs["assistant_model"] = subject.assistant
    elif mode == "lookup":
        kwargs["prompt_lookup_num_tokens"] = rng.randint(1, 3)
    if mode not in ("beams", "sampled") and rng.random() < 0.3:
        eos = tuple(rng.sample(range(3, 99), 12))
        kwargs["eos_token_id"] = list(eos)
        log["eos"] = eos
    if rng.random() < 0.3:
        kwargs["return_dict_in_generate"] = True
    return Decoding(num_new, eos, copies, noise, kwargs.get("num_beams", 0))
