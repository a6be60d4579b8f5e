"""Adaptive budgets: the answer must be plain `generate`'s at the level that is reported, and that the right level."""

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

import torch
from transformers import GenerationConfig

from mqt_llava import AdaptiveBudget

from .numbers import random_counts
from .oracle import Oracle, split_counts
from .outcomes import EITHER, REFUSED, RIGHT, Outcome, attempt, worst, wrong
from .rows import PADDINGS, Image, Row, images_of, lay_out, random_rows, to_tensors
from .subjects import POOL_SIZE, own_generation_config, random_subject, training
from .surface_generate import ALONE, decode, pass_images


MODES = ("greedy",) * 6 + ("beams", "sampled", "static", "no cache", "prefill", "assistant", "checkpointing")


class Climb(NamedTuple):
    """What the oracle makes of one prompt."""

    level: int
    confidence: list[float]
    is_tie: bool  # whether a rounding error could have decided


def random_budget(rng: Random, most: int) -> AdaptiveBudget:
    levels = sorted(rng.sample(range(1, most + 1), rng.randint(1, 4)))
    return AdaptiveBudget(
        levels=None if rng.random() < 0.1 else levels,
        confidence=rng.choice((0.0, 1.0, 0.5, rng.random(), rng.random() / 2)),
        margin=rng.choice((0.0, 0.0, rng.random() / 2)),
        num_probed_tokens=rng.choice((1, 1, 2, 3)),
        unended_power=rng.choice((1, 2.5, 10.0)),
    )


def climb(oracle: Oracle, row: Row, levels: list[int], budget: AdaptiveBudget, eos: tuple[int, ...]) -> Climb:
    """Which level one prompt needs, each level from the start."""
    num_images, confidences, is_tie = len(images_of(row)), [], False
    if not num_images:
        return Climb(0, [], False)
    for level in levels[:-1]:
        answer, steps, near = oracle.greedy(row, [level] * num_images, budget.num_probed_tokens, eos)
        best = torch.stack(steps).softmax(-1).topk(2).values
        confidence, margin = float(best[:, 0].min()), float((best[:, 0] - best[:, 1]).min())
        if answer[-1] not in eos:  # it goes on where nobody has looked
            confidence = confidence**budget.unended_power
        confidences.append(confidence)
        close = (abs(confidence - budget.confidence), abs(margin - budget.margin))
        # Nothing is close to a bound that no probability can miss.
        is_tie = (
            is_tie or near or (budget.confidence > 0 and close[0] < 1e-4) or (budget.margin > 0 and close[1] < 1e-4)
        )
        if confidence >= budget.confidence and margin >= budget.margin:
            return Climb(level, confidences, is_tie)
    return Climb(levels[-1], confidences, is_tie)


def ask(rng: Random, budget: AdaptiveBudget, kwargs: dict, config, log: dict) -> None:
    """Passes the budget in one of the ways there are."""
    ways = ("argument", "argument", "dict", "generation config", "auto", "auto of the model's")
    way = log["asked by"] = rng.choice(ways)
    if way == "argument":
        kwargs["num_visual_tokens"] = budget
    elif way == "dict":
        kwargs["generation_config"] = GenerationConfig(num_visual_tokens=budget.to_dict(), pad_token_id=0)
    elif way == "generation config":
        config.num_visual_tokens = budget.to_dict()
    elif way == "auto":
        kwargs["num_visual_tokens"] = "auto"
        kwargs["generation_config"] = GenerationConfig(adaptive_budget=budget.to_dict(), pad_token_id=0)
    else:
        kwargs["num_visual_tokens"], config.adaptive_budget = "auto", budget.to_dict()


def run_case(rng: Random, log: dict) -> Iterator[Outcome]:
    subject = random_subject(rng)
    mode = rng.choice(MODES)
    rows = random_rows(rng, POOL_SIZE, most_rows=1 if mode in ALONE else 3)
    images = [image for row in rows for image in images_of(row)]
    made = random_counts(rng, len(images), subject.most)
    padding, extra = rng.choice(PADDINGS), rng.choice((0, 0, 2, 7))
    kwargs = to_tensors(lay_out(rng, rows, split_counts(rows, made), padding, extra))
    budget, num_new, expected = random_budget(rng, subject.most), rng.randint(1, 5), RIGHT
    log.update(model=subject.name, mode=mode, rows=rows, made=made, padding=padding, extra=extra, budget=budget)
    if images:
        kwargs |= pass_images(rng, subject, images, made, log)
    with own_generation_config(subject.model) as config:
        if rng.random() < 0.05:
            budget, expected = AdaptiveBudget(levels=[1, subject.most + 1]), REFUSED
        ask(rng, budget, kwargs, config, log)
        # By default a sixteenth, a quarter and all.
        levels = budget.levels or sorted({max(1, subject.most // 16), max(1, subject.most // 4), subject.most})
        prompt = kwargs["input_ids"]
        kwargs |= {"max_new_tokens": num_new, "do_sample": False}
        decoding = decode(rng, subject, mode, len(rows), num_new, kwargs, log)
        if mode == "checkpointing" and expected == RIGHT:
            expected = EITHER
        ends = [len(images_of(row)) for row in rows if isinstance(row[-1], Image)]
        log["traits"] = ["the last of several images ends its prompt"] * any(number > 1 for number in ends)
        log["group"] = f"{mode}{', an image ends its prompt' * bool(ends)}"
        log.update(levels=levels, num_new=num_new, arguments=sorted(kwargs))

        def judge(result) -> Outcome:
            climbs = [climb(subject.oracle, row, levels, budget, decoding.eos) for row in rows]
            used, is_open, verdicts = [one.level for one in climbs], [one.is_tie for one in climbs], []
            if not isinstance(result, torch.Tensor):  # which says what it used
                used, is_open = result.visual_token_level.tolist(), None
                reported = zip(climbs, used, result.visual_token_confidence.tolist(), strict=True)
                verdicts = [judge_level(*one) for one in reported]
            counts = [[level] * len(images_of(row)) for level, row in zip(used, rows)]
            return worst([*verdicts, decoding.judge(subject.oracle, result, prompt, rows, counts, is_open)])

        names = {*kwargs, "num_visual_tokens", "levels", "pixel_values", "gradient_checkpointing"}
        with training(subject.model, mode == "checkpointing"):
            yield attempt(lambda: subject.model.generate(**kwargs), judge, names, expected)


def judge_level(expected: Climb, level: int, confidence: list[float]) -> Outcome:
    if level != expected.level:
        return Outcome("undecided") if expected.is_tie else wrong(f"level {level} instead of {expected.level}")
    probed = [value for value in confidence if value == value]
    if len(probed) != len(expected.confidence) or any(abs(a - b) > 1e-3 for a, b in zip(probed, expected.confidence)):
        return (
            Outcome("undecided") if expected.is_tie else wrong(f"confidence {probed} instead of {expected.confidence}")
        )
    return Outcome("right")
