"""What a sweep has finished: a JSON file for each pair of a task and a number of visual tokens."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from math import nan, sqrt
from pathlib import Path
from statistics import NormalDist, mean

from transformers import PreTrainedConfig

from ..files.atomic_file import write_atomically
from ..planning import request_cost
from .answer_log import Answer


@dataclass(frozen=True)
class FinishedTask:
    """
    A task at a number of visual tokens, finished.

    Args:
        task: lmms-eval's name.
        m: Visual tokens per image, "auto", or None for the checkpoint's own number.
        metrics: lmms-eval's figures, `{task: {metric: value}}`; a group of tasks has several.
        questions: How many answers were given.
        visual_tokens, text_tokens, new_tokens: Means per question.
        flops: Mean per question, of `planning.request_cost`; None where that does not know.
        seconds: Of answering, over all questions and processes.
        intervals: `{task: {metric: [questions, low, high]}}` of the metrics that are means of scores in 0..1: over how
            many questions, and the 95% interval of the mean.
    """

    task: str
    m: int | str | None
    metrics: dict[str, dict[str, float]]
    questions: int
    visual_tokens: float
    text_tokens: float
    new_tokens: float
    flops: float | None
    seconds: float
    intervals: dict[str, dict[str, list[float]]] = field(default_factory=dict)


def summarize(
    task: str, m: int | str | None, results: dict, answers: list[Answer], config: PreTrainedConfig
) -> FinishedTask:
    """
    Args:
        results: As lmms-eval returns them, with its samples.
        answers: To all questions of the task.
        config: Of the model.
    """
    return FinishedTask(
        task=task,
        m=m,
        metrics={name: numbers(figures) for name, figures in results["results"].items()},
        questions=len(answers),
        visual_tokens=mean(sum(answer.visual_tokens) for answer in answers),
        text_tokens=mean(answer.text_tokens for answer in answers),
        new_tokens=mean(answer.new_tokens for answer in answers),
        flops=None if m == "auto" else mean_flops(answers, config),
        seconds=sum(answer.seconds for answer in answers),
        intervals={name: intervals(samples) for name, samples in results.get("samples", {}).items()},
    )


def numbers(figures: dict) -> dict[str, float]:
    """`{"accuracy,none": 0.9, "accuracy_stderr,none": ..., "alias": ...}` as `{"accuracy": 0.9}`."""
    named = {key.rpartition(",")[0]: value for key, value in figures.items()}
    return {
        name: value
        for name, value in named.items()
        if name and "_stderr" not in name and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def intervals(samples: list[dict]) -> dict[str, list[float]]:
    """
    Of the metrics that give a question a score in 0..1. A question has only some of a task's metrics, such as that of
    its kind.
    """
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for sample in samples:
        for name, value in sample.items():
            scores[name].append(float(value) if isinstance(value, (int, float)) else nan)
    return {
        name: [len(values), *wilson_interval(mean(values), len(values))]
        for name, values in scores.items()
        if name != "doc_id" and all(0 <= value <= 1 for value in values)
    }


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """
    The 95% interval of a share (Wilson 1927). Not empty where all or no answers are right; too wide, if anything, for
    the mean of scores between 0 and 1, which vary less.
    """
    z = NormalDist().inv_cdf(0.975)
    middle, width = share + z * z / (2 * count), z * sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    low, high = ((middle + side) / (1 + z * z / count) for side in (-width, width))
    return min(low, share), max(high, share)  # at 0 and 1 they are equal, but for rounding


def mean_flops(answers: list[Answer], config: PreTrainedConfig) -> float | None:
    """
    Each question by itself, without padding. None where some question shows no image, or where `request_cost` does not
    know the model. (Nor does it know what going up the levels of an adaptive budget costs.)
    """
    costs = {}
    for answer in answers:
        shape = (answer.text_tokens, answer.new_tokens, tuple(answer.visual_tokens))
        if shape not in costs:
            try:
                cost = request_cost(
                    config, text_tokens=shape[0], new_tokens=shape[1], num_visual_tokens=list(shape[2])
                )
            except ValueError:
                return None
            costs[shape] = cost.flops.total
    return mean(costs[answer.text_tokens, answer.new_tokens, tuple(answer.visual_tokens)] for answer in answers)


class FinishedTasks:
    """
    Args:
        folder: Of the sweep.
        settings: What scores depend on besides task and m.

    Raises:
        ValueError: The folder holds a sweep with other settings.
    """

    def __init__(self, folder: Path, settings: dict):
        self.folder = folder
        self.check_settings(settings)

    def check_settings(self, settings: dict) -> None:
        path = self.folder / "settings.json"
        settings = json.loads(json.dumps(settings))
        if not path.exists():
            write_atomically(path, to_json(settings))
            return
        before = json.loads(path.read_text())
        for name in {**before, **settings}:
            if before.get(name) != settings.get(name):
                raise ValueError(
                    f"{self.folder} holds a sweep with `{name}` = {before.get(name)!r}, but it is now "
                    f"{settings.get(name)!r}. Name another --output."
                )

    def answers_folder(self, task: str, m: int | str | None) -> Path:
        return self.folder / "answers" / task / str(m)

    def path(self, task: str, m: int | str | None) -> Path:
        return self.folder / "pairs" / task / f"{m}.json"

    def has(self, task: str, m: int | str | None) -> bool:
        return self.path(task, m).exists()

    def read(self, task: str, m: int | str | None) -> FinishedTask:
        return FinishedTask(**json.loads(self.path(task, m).read_text()))

    def write(self, pair: FinishedTask) -> None:
        write_atomically(self.path(pair.task, pair.m), to_json(asdict(pair)))


def to_json(content: dict) -> str:
    return json.dumps(content, indent=1) + "\n"


def weights_of(pretrained: str) -> dict[str, list[int]]:
    """Size and time of a local checkpoint's weights, by which a sweep notices that they have changed."""
    files = sorted(Path(pretrained).glob("*.safetensors")) + sorted(Path(pretrained).glob("*config.json"))
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
