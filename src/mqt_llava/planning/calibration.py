"""
How confident is confident enough: the threshold of an adaptive budget, found on prompts like those to come.

Each prompt is answered once at each level. At which level an adaptive budget would stop, and what it would answer,
follows from that for every threshold.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..models.adaptive_budget import AdaptiveBudget, Promise, check_open_share, checkpoint_digest
from ..models.modeling_mqt_llava import MQTLlavaForConditionalGeneration
from ..models.processing_mqt_llava import MQTLlavaProcessor
from .learn_then_test import fewest_prompts, num_promised
from .level_answers import answer_at_levels, read_questions


logger = logging.get_logger(__name__)

# Of which one is promised, from strict to loose; closer to each other towards 1, where models are confident. They do
# not depend on the prompts, as Learn then Test asks.
THRESHOLDS = [round(1 - 10 ** (step / 16 - 6), 8) for step in range(97)]


@dataclass
class Point:
    """What a way to choose the number of visual tokens comes to: a share of right answers at so many per image."""

    accuracy: float
    mean_tokens: float
    confidence: float | None = None


@dataclass
class Calibration:
    """
    How every question went at every level.

    Args:
        levels: Visual tokens, ascending.
        scores: How well each answer agrees with the `reference`, 0..1, `(questions, levels)`.
        confidence: The model's confidence in it, `(questions, levels)`.
        num_probed_tokens, unended_power: As of [`AdaptiveBudget`], what that is about.
        reference: `"right answers"` or `"answers at M"`.
        ids: Of the questions.
        texts: Of the answers, by question and level.
        budget: What was chosen.
        num_missing: Prompts that are missing for a promise, about, where M had to be chosen; `None` where no number of
            them would help.
    """

    levels: list[int]
    scores: torch.Tensor
    confidence: torch.Tensor
    num_probed_tokens: int = 1
    unended_power: float = AdaptiveBudget.unended_power
    reference: str = "right answers"
    ids: list[str] = field(default_factory=list)
    texts: list[list[str]] = field(default_factory=list)
    budget: AdaptiveBudget | None = None
    num_missing: int | None = None

    def stops(self, confidence: float) -> torch.Tensor:
        """Where a budget with this threshold stops at each question, as an index of `levels`: `(questions,)`."""
        is_enough = self.confidence >= confidence
        is_enough[:, -1] = True
        return is_enough.long().argmax(1)

    def stops_of(self, budget: AdaptiveBudget) -> torch.Tensor:
        """The same for a budget that was chosen here, be it M alone."""
        return self.stops(budget.confidence if budget.levels == self.levels else float("inf"))

    def is_too_early(self, stops: torch.Tensor) -> torch.Tensor:
        """Whether the answer is worse there than at the highest level: boolean `(questions,)`."""
        return self.scores.gather(1, stops[:, None])[:, 0] < self.scores[:, -1]

    def point(self, stops: torch.Tensor, confidence: float | None = None) -> Point:
        """Each question at an index of `levels`."""
        scores = self.scores.gather(1, stops[:, None])
        return Point(scores.mean().item(), torch.tensor(self.levels)[stops].float().mean().item(), confidence)

    def at_levels(self) -> list[Point]:
        """Every question at the same number of tokens."""
        return [Point(accuracy, level) for accuracy, level in zip(self.scores.mean(0).tolist(), self.levels)]

    def at(self, confidence: float) -> Point:
        """An adaptive budget with this threshold."""
        return self.point(self.stops(confidence), confidence)

    def curve(self) -> list[Point]:
        """Adaptive budgets with every threshold that makes a difference, from few tokens to many."""
        thresholds = self.confidence[:, :-1].flatten().unique().tolist()
        points = [self.at(threshold) for threshold in [0.0, *thresholds]]
        return [point for point, previous in zip(points, [None, *points]) if point != previous]

    def oracle(self) -> Point:
        """The fewest tokens with which each question is answered as well as it can be."""
        return self.point((self.scores == self.scores.max(1, keepdim=True).values).long().argmax(1))

    def choose(self, target: float) -> AdaptiveBudget:
        """
        The budget of fewest tokens whose accuracy is at most `target` below that of the highest level: the highest
        level alone where no threshold keeps to that. Nothing is promised of other questions.
        """
        least = self.scores[:, -1].mean().item() - target
        fitting = [point for point in self.curve() if point.accuracy >= least - 1e-9]
        if not fitting:
            return AdaptiveBudget(self.levels[-1:])
        best = min(fitting, key=lambda point: point.mean_tokens)
        return self.budget_of(best.confidence or 0.0)

    def budget_of(self, confidence: float, promise: Promise | None = None) -> AdaptiveBudget:
        return AdaptiveBudget(
            self.levels,
            confidence,
            num_probed_tokens=self.num_probed_tokens,
            unended_power=self.unended_power,
            promise=promise,
        )

    def choose_promised(self, risk: float, confidence: float, checkpoint: str = "") -> AdaptiveBudget:
        """
        The budget of fewest tokens of which can be promised, with probability `confidence`, that at most the share
        `risk` of answers is worse than at M: M alone where that can be promised of none that ever stops earlier.
        `num_missing` then says how many more prompts it would take.

        Args:
            checkpoint: Whose answers these are, by `checkpoint_digest`.
        """
        failures = [int(self.is_too_early(self.stops(threshold)).sum()) for threshold in THRESHOLDS]
        number = num_promised(failures, len(self.scores), risk, confidence)
        self.num_missing = None
        if not number or self.at(THRESHOLDS[number - 1]).mean_tokens == self.levels[-1]:
            if number < len(THRESHOLDS):
                needed = fewest_prompts(risk, confidence, failures[number] / len(self.scores))
                self.num_missing = needed and max(1, needed - len(self.scores))
            return AdaptiveBudget(self.levels[-1:])
        threshold = THRESHOLDS[number - 1]
        promise = Promise(
            risk=risk,
            confidence=confidence,
            num_prompts=len(self.scores),
            num_different=failures[number - 1],
            checkpoint=checkpoint,
            max_visual_tokens=self.levels[-1],
            levels=self.levels,
            threshold=threshold,
            num_probed_tokens=self.num_probed_tokens,
            unended_power=self.unended_power,
        )
        return self.budget_of(threshold, promise)


def exact_match(answer: str, reference: str) -> bool:
    return answer.strip() == reference.strip()


def calibrate(
    model: MQTLlavaForConditionalGeneration,
    processor: MQTLlavaProcessor,
    prompts: Iterable[dict],
    *,
    risk: float = 0.02,
    confidence: float = 0.95,
    target: float | None = None,
    levels: list[int] | None = None,
    num_probed_tokens: int = 1,
    unended_power: float = AdaptiveBudget.unended_power,
    score: Callable[[str, str], float] = exact_match,
    batch_size: int = 32,
    max_new_tokens: int = 64,
    log: str | Path | None = None,
    save_to: str | Path | None = None,
) -> Calibration:
    """
    Finds the least confidence at which few visual tokens are enough, and makes it the model's `adaptive_budget`, which
    `generate(num_visual_tokens="auto")` goes by.

    Enough is what answers as M would: no right answers are needed, and the budget comes with a [`Promise`]. Or, with a
    `target`, what keeps the share of right answers; then nothing is promised of other prompts.

    Args:
        model: Its `generation_config` is changed.
        processor: Its processor.
        prompts: Conversations as [`ConversationDataset`] takes them, drawn from those that the model will be asked. An
            answer at the end is left out, but with a `target` it is the right one, and must be there.
        risk: The largest share of prompts whose answer may differ from that at M.
        confidence: With what probability over the draw of prompts.
        target: By how much the share of right answers on these prompts may be below that at M, in 0..1.
        levels: As of [`AdaptiveBudget`]. The highest must be M.
        num_probed_tokens, unended_power: As of [`AdaptiveBudget`].
        score: Whether an answer, the first argument, is as good as the second, that at M. With a `target`, how right
            it is, 0..1, given the right one.
        batch_size: Prompts at once.
        max_new_tokens: Of an answer.
        log: A file of answers, from which a killed calibration goes on.
        save_to: A folder to write `generation_config.json` to.

    Returns:
        What was measured, with the `budget` that was chosen and the curve of accuracy against tokens.

    Raises:
        ValueError: Too few different prompts for any promise, one that is not about an image or lacks its answer, a
            share out of its range, `levels` without M, a `score` that gives something between yes and no where that
            is to be promised, or a `log` of another calibration.
    """
    for name, value in (("risk", risk), ("confidence", confidence)):
        check_open_share(name, value)
    if target is not None and not 0 <= target <= 1:
        raise ValueError(f"`target` is {target}, but must be a share in 0..1.")
    most = model.config.max_visual_tokens
    probe = AdaptiveBudget(levels, num_probed_tokens=num_probed_tokens, unended_power=unended_power)
    levels = probe.levels_for(most)
    if levels[-1] != most:
        raise ValueError(f"`levels` is {levels}, but must end with {most}, M, by whose answers the others are judged.")
    questions = read_questions(prompts, need_answers=target is not None)
    fewest, num_different = fewest_prompts(risk, confidence), len({question.key for question in questions})
    if target is None and (fewest is None or num_different < fewest):
        raise ValueError(
            f"`prompts` holds {num_different} different prompts, but it takes {fewest or 'over a million'} to "
            f"promise a risk of {risk} with confidence {confidence}, even if all answers agree."
        )
    if model.generation_config.do_sample or (model.generation_config.num_beams or 1) > 1:
        logger.warning("The model's generation config samples or searches beams, but greedy answers are calibrated.")

    answers = answer_at_levels(model, processor, questions, levels, num_probed_tokens, batch_size, max_new_tokens, log)
    references = [texts[-1] if target is None else question.truth for texts, question in zip(answers.texts, questions)]
    scores = [[score(text, reference) for text in texts] for texts, reference in zip(answers.texts, references)]
    calibration = Calibration(
        levels,
        torch.tensor(scores, dtype=torch.float32),
        probe.confidence_in(answers.logprobs, answers.has_ended),
        num_probed_tokens,
        unended_power,
        "answers at M" if target is None else "right answers",
        [question.id for question in questions],
        answers.texts,
    )
    if target is not None:
        calibration.budget = calibration.choose(target)
    else:
        calibration.scores[:, -1] = 1  # an answer agrees with itself
        if not torch.isin(calibration.scores, torch.tensor([0.0, 1.0])).all():
            raise ValueError(
                "`score` must say True or False, since a promise counts answers that agree and that do not."
            )
        calibration.budget = calibration.choose_promised(risk, confidence, checkpoint_digest(model))
        if calibration.budget.promise is None:
            more = calibration.num_missing
            logger.warning(
                f"No threshold keeps a risk of {risk} with confidence {confidence} on these prompts, so every image "
                f"gets M = {most} visual tokens. "
                + (f"About {more} more prompts might do." if more else "More prompts would not help.")
            )
    config: Any = model.generation_config  # which takes on any attribute
    config.adaptive_budget = calibration.budget.to_dict()
    if save_to is not None:
        config.save_pretrained(save_to)
    return calibration
