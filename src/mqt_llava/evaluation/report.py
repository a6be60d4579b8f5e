"""A sweep as one tidy table, with the paper's figures beside it, and as a figure: score against visual tokens."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .benchmarks import AVERAGE, PAPER, Benchmark, average, read_published
from .finished_tasks import FinishedTask


MEASURED, PUBLISHED = "measured", "published"


@dataclass(frozen=True)
class Row:
    """
    One score.

    Args:
        benchmark: The paper's name for it, or task and metric.
        task, metric: lmms-eval's names; empty for what is no single task's.
        model: Which model; of a published row, the paper's.
        m: Visual tokens per image, "auto", or None for the checkpoint's own number.
        score: In per cent for the paper's benchmarks (MME: points), else as lmms-eval gives it.
        source: "measured" by this sweep or "published" by the paper, nothing else.
        note: What keeps a benchmark's measured and published scores from being the same thing.
        count, low, high: Over how many questions the score is a mean, and its 95% interval; None of a published score,
            and where a metric is no mean of scores in 0..1.
        questions, visual_tokens, text_tokens, new_tokens, flops, seconds: As in [`FinishedTask`], of the whole task.
    """

    benchmark: str
    task: str
    metric: str
    model: str
    m: int | str | None
    score: float
    source: str
    note: str = ""
    count: int | None = None
    low: float | None = None
    high: float | None = None
    questions: int | None = None
    visual_tokens: float | None = None
    text_tokens: float | None = None
    new_tokens: float | None = None
    flops: float | None = None
    seconds: float | None = None


def tabulate(pairs: list[FinishedTask], model: str) -> list[Row]:
    """Rows of all pairs, the average where all of the paper's eleven are there, and the paper's rows of the same."""
    rows = [row for pair in pairs for row in measured_rows(pair, model)]
    rows += averages(rows)
    return rows + published_rows({row.benchmark for row in rows})


def measured_rows(pair: FinishedTask, model: str) -> list[Row]:
    """Of the paper's benchmarks the paper's metric; of other tasks every metric."""
    costs = {name: getattr(pair, name) for name in Row.__annotations__ if name in FinishedTask.__annotations__}
    rows = []
    for task, metrics in pair.metrics.items():
        known = [benchmark for benchmark in PAPER if benchmark.task == task and benchmark.metric in metrics]
        for entry in known or [Benchmark(f"{task} {metric}", task, metric, scale=1) for metric in metrics]:
            score = metrics[entry.metric] * entry.scale
            named = {"benchmark": entry.name, "metric": entry.metric, "note": entry.note, "score": score}
            if interval := pair.intervals.get(task, {}).get(entry.metric):
                count, low, high = interval
                named |= {"count": count, "low": low * entry.scale, "high": high * entry.scale}
            rows.append(Row(**{**costs, **named, "task": task, "model": model, "source": MEASURED}))
    return rows


def averages(rows: list[Row]) -> list[Row]:
    """A row for each model and m at which all eleven are there."""
    scores: defaultdict[tuple, dict] = defaultdict(dict)
    for row in rows:
        scores[row.model, row.m, row.source][row.benchmark] = row.score
    means = {key: average(values) for key, values in scores.items()}
    return [
        Row(AVERAGE, "", "", model, m, score, source)
        for (model, m, source), score in means.items()
        if score is not None
    ]


def published_rows(benchmarks: Iterable[str]) -> list[Row]:
    """What the paper says of these."""
    rows = [
        Row(benchmark.name, benchmark.task, benchmark.metric, model, m, scores[benchmark.name], PUBLISHED)
        for model, budgets in read_published()["models"].items()
        for m, scores in budgets.items()
        for benchmark in PAPER
    ]
    return [row for row in rows + averages(rows) if row.benchmark in benchmarks]


def write_table(rows: list[Row], folder: Path) -> None:
    """`results.csv` and `results.json`, the same rows."""
    with open(folder / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    (folder / "results.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def read_table(path: Path) -> list[Row]:
    """Of a `results.json`."""
    return [Row(**row) for row in json.loads(path.read_text())]


def to_markdown(rows: list[Row]) -> str:
    """Benchmarks side by side with the paper's: a line for each, a column for each number of visual tokens."""
    columns = sorted(
        {row.m for row in rows}, key=lambda m: (not isinstance(m, int), m if isinstance(m, int) else str(m))
    )
    titles = ["own" if m is None else str(m) for m in columns]
    lines = [f"| benchmark | model | source | {' | '.join(titles)} |", "|---" * (3 + len(columns)) + "|"]
    scores: defaultdict[tuple, dict] = defaultdict(dict)
    for row in rows:
        scores[row.benchmark, row.model, row.source][row.m] = row.score
    for names, by_m in sorted(scores.items(), key=lambda item: (order(item[0][0]), item[0][2], item[0][1])):
        cells = [f"{by_m[m]:.4g}" if m in by_m else "" for m in columns]
        lines.append(f"| {' | '.join(names)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def order(benchmark: str) -> int:
    """The paper's order, other tasks after it, the average last."""
    names = [entry.name for entry in PAPER]
    return names.index(benchmark) if benchmark in names else len(names) + (benchmark == AVERAGE)
