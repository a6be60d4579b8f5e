"""
What the papers say of their 7B models: accuracy against visual tokens, and against TFLOPs. Nothing in it is measured
by this package.

    python figures/published.py
"""

import argparse
import json
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mqt_llava.evaluation.benchmarks import PAPER, average, read_published
from mqt_llava.plotting import BLUE, GREEN, INK, ORANGE, in_style, new_figure, save_figure, visual_token_axis


REPOSITORY = Path(__file__).parents[1]
OTHERS = json.loads((Path(__file__).parent / "published.json").read_text())
SEVEN = ("GQA", "MMBench", "MME-P", "POPE", "SQA-I", "VizWiz", "VQAv2")  # those that both papers have
MAXIMA = {benchmark.name: benchmark.maximum for benchmark in PAPER}
# By model: label, colour and style. All hollow, as whatever is published.
STYLES = {
    "MQT-LLaVA 7B": ("MQT-LLaVA: one model", BLUE, "o-"),
    "QT": ("QT-LLaVA: a model for each number", ORANGE, "s--"),
    "QueCC": ("QueCC: a model for each number", GREEN, "^--"),
    "LLaVA-1.5 7B": ("LLaVA-1.5", INK, "D"),
}


def by_number(scores: dict) -> dict[int, float]:
    return {int(number): score for number, score in sorted(scores.items(), key=lambda item: int(item[0]))}


def mean_of_seven(scores: dict[str, float]) -> float:
    """In per cent of what can be reached."""
    return mean(100 * scores[name] / MAXIMA[name] for name in SEVEN)


def plot(axis: Axes, model: str, x: list[float], y: list[float]) -> None:
    label, color, style = STYLES[model]
    axis.plot(x, y, style, color=color, markerfacecolor="white", label=label)


@in_style
def draw() -> Figure:
    models = read_published()["models"]
    eleven = {name: by_number({m: average(scores) for m, scores in rows.items()}) for name, rows in models.items()}
    eleven["QT"] = by_number(OTHERS["qt_average"]["by_visual_tokens"])
    rows = {**models, "QueCC": OTHERS["quecc"]["by_visual_tokens"]}
    seven = {name: by_number({m: mean_of_seven(scores) for m, scores in each.items()}) for name, each in rows.items()}

    figure = new_figure(4.2)
    figure.suptitle("7B models, as published by their authors; not measured by this package")
    all_tokens, some_tokens, tflops = figure.subplots(1, 3)
    for axis, scores, title in (
        (all_tokens, eleven, "eleven benchmarks (MQT-LLaVA paper)"),
        (some_tokens, seven, "seven of them (QueCC paper)"),
    ):
        for model, means in scores.items():
            plot(axis, model, list(means), list(means.values()))
        visual_token_axis(axis, (1, 4, 16, 64, 256, 576), "visual tokens per image")
        axis.set_title(title)
    for model in ("MQT-LLaVA 7B", "LLaVA-1.5 7B"):
        costs = by_number(OTHERS["tflops"][model])
        plot(tflops, model, list(costs.values()), [eleven[model][number] for number in costs])
        for number, cost in costs.items():
            side = {"ha": "right", "xytext": (-6, -3)} if number > 256 else {"ha": "left", "xytext": (6, -9)}
            tflops.annotate(str(number), (cost, eleven[model][number]), textcoords="offset points", fontsize=8, **side)
    tflops.set_xlabel("TFLOPs (labels: visual tokens)")
    tflops.set_xlim(0, None)
    tflops.set_title("eleven benchmarks, by cost")
    all_tokens.set_ylabel("mean score, % of the maximum")
    drawn = {}
    for axis in figure.axes:
        for line, label in zip(*axis.get_legend_handles_labels()):
            drawn.setdefault(label, line)
    figure.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=len(drawn))
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "images" / "published.png")
    args = parser.parse_args(argv)
    save_figure(draw(), args.output)


if __name__ == "__main__":
    main()
