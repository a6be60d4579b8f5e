"""
How confident is confident enough: the threshold of an adaptive budget, found on questions whose answers are known.

Each question is answered once at each level. At which level an adaptive budget would stop, and whether its answer is
right, follows from that for every threshold.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..models.adaptive_decoding import AdaptiveBudget
from ..models.modeling_mqt_llava import MQTLlavaForConditionalGeneration
from ..models.processing_mqt_llava import MQTLlavaProcessor
from ..training.records import read_record


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
        scores: How right each answer is, 0..1, `(questions, levels)`.
        confidence: The model's confidence in it, `(questions, levels)`.
        num_probed_tokens: How many of its tokens that is about.
    """

    levels: list[int]
    scores: torch.Tensor
    confidence: torch.Tensor
    num_probed_tokens: int = 1

    def at_levels(self) -> list[Point]:
        """Every question at the same number of tokens."""
        return [Point(accuracy, level) for accuracy, level in zip(self.scores.mean(0).tolist(), self.levels)]

    def at(self, confidence: float) -> Point:
        """An adaptive budget with this threshold."""
        is_enough = self.confidence >= confidence
        is_enough[:, -1] = True
        stops = is_enough.long().argmax(1)
        return self._point(stops, confidence)

    def curve(self) -> list[Point]:
        """Adaptive budgets with every threshold that makes a difference, from few tokens to many."""
        thresholds = self.confidence[:, :-1].flatten().unique().tolist()
        points = [self.at(threshold) for threshold in [0.0, *thresholds]]
        return [point for point, previous in zip(points, [None, *points]) if point != previous]

    def oracle(self) -> Point:
        """The fewest tokens with which each question is answered as well as it can be."""
        return self._point((self.scores == self.scores.max(1, keepdim=True).values).long().argmax(1))

    def choose(self, target: float) -> AdaptiveBudget:
        """
        The budget of fewest tokens whose accuracy is at most `target` below that of the highest level: the highest
        level alone where no threshold keeps to that.
        """
        least = self.scores[:, -1].mean().item() - target
        fitting = [point for point in self.curve() if point.accuracy >= least - 1e-9]
        if not fitting:
            return AdaptiveBudget(self.levels[-1:])
        best = min(fitting, key=lambda point: point.mean_tokens)
        return AdaptiveBudget(self.levels, best.confidence or 0.0, num_probed_tokens=self.num_probed_tokens)

    def _point(self, stops: torch.Tensor, confidence: float | None = None) -> Point:
        scores = self.scores.gather(1, stops[:, None])
        return Point(scores.mean().item(), torch.tensor(self.levels)[stops].float().mean().item(), confidence)


def least_probability(logits: tuple[torch.Tensor, ...], eos_token_ids: int | list[int]) -> torch.Tensor:
    """The least probability among the best tokens of some steps, up to the end of the answer: `(batch,)`."""
    eos = torch.tensor(eos_token_ids, device=logits[0].device).flatten()
    least = torch.ones_like(logits[0][:, 0], dtype=torch.float32)
    has_ended = torch.zeros_like(least, dtype=torch.bool)
    for step in logits:
        best, tokens = step.float().softmax(-1).max(-1)
        least = torch.where(has_ended, least, torch.minimum(least, best))
        has_ended |= torch.isin(tokens, eos)
    return least


def exact_match(answer: str, truth: str) -> float:
    return float(answer.strip() == truth.strip())


@torch.no_grad()
def calibrate(
    model: MQTLlavaForConditionalGeneration,
    processor: MQTLlavaProcessor,
    dataset: Iterable[dict],
    *,
    target: float = 0.005,
    levels: list[int] | None = None,
    num_probed_tokens: int = 1,
    score: Callable[[str, str], float] = exact_match,
    batch_size: int = 32,
    max_new_tokens: int = 64,
    save_to: str | Path | None = None,
) -> Calibration:
    """
    Finds the least confidence that keeps the model's accuracy, and makes it the model's `adaptive_budget`, which
    `generate(num_visual_tokens="auto")` goes by.

    Args:
        model: Its `generation_config` is changed.
        processor: Its processor.
        dataset: Conversations as [`ConversationDataset`] gives them, whose last message is the right answer. Held-out
            ones, like those that the model will be asked.
        target: By how much the share of right answers may be below that at M, in 0..1.
        levels, num_probed_tokens: As of [`AdaptiveBudget`].
        score: How right an answer is, 0..1, given it and the right one.
        batch_size: Questions at once.
        max_new_tokens: Of an answer.
        save_to: A folder to write `generation_config.json` to.

    Returns:
        What was measured, with the curve of accuracy against tokens.

    Raises:
        ValueError: No questions, one without an answer, or a `target` outside 0..1.
    """
    if not 0 <= target <= 1:
        raise ValueError(f"`target` is {target}, but must be a share in 0..1.")
    levels = AdaptiveBudget(levels).levels_for(model.config.max_visual_tokens)
    records = [read_record(row) for row in dataset]
    if not records:
        raise ValueError("`dataset` is empty: there is nothing to calibrate on.")
    if bad := [record.id for record in records if record.messages[-1]["role"] != "assistant" or not record.images]:
        raise ValueError(f"`dataset` must hold questions about images with their answers; {bad[:5]} are not.")
    scores, confidence = [], []
    for start in range(0, len(records), batch_size):
        batch = records[start : start + batch_size]
        inputs = processor.apply_chat_template(
            [record.messages_with_images()[:-1] for record in batch],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(model.device)
        truths = [record.messages[-1]["content"][0]["text"] for record in batch]
        encoded = model.get_image_features(inputs.pop("pixel_values"))
        columns = []
        for level in levels:
            outputs: Any = model.generate(
                **inputs,
                mm_encoder_outputs={"image": encoded},
                num_visual_tokens=level,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            answers = outputs.sequences[:, inputs["input_ids"].shape[1] :]
            texts = processor.batch_decode(answers, skip_special_tokens=True)
            right = [score(text, truth) for text, truth in zip(texts, truths)]
            eos = model.generation_config.eos_token_id
            least = least_probability(outputs.logits[:num_probed_tokens], [] if eos is None else eos)
            columns.append((torch.tensor(right), least))
        scores.append(torch.stack([column for column, _ in columns], dim=1))
        confidence.append(torch.stack([column.cpu() for _, column in columns], dim=1))
    calibration = Calibration(levels, torch.cat(scores), torch.cat(confidence), num_probed_tokens)
    config: Any = model.generation_config  # which takes on any attribute
    config.adaptive_budget = calibration.choose(target).to_dict()
    if save_to is not None:
        config.save_pretrained(save_to)
    return calibration
