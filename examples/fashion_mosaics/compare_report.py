"""
Table and figure of what compare.py has measured:

    python examples/fashion_mosaics/compare_report.py

Writes `docs/images/mqt_vs_qt.png` and prints the tables of docs/training.md. Means over the seeds, with their standard
deviation.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mqt_llava.plotting import BLUE, ORANGE, in_style, new_figure, save_figure, visual_token_axis


REPOSITORY = Path(__file__).parents[2]
QUESTIONS = {
    "position": "What is in the top row, column 3?",
    "row": "List the items in the second row.",
    "column": "List the items in column 4.",
    "list": "List the items.",
    "presence": "Is there any footwear?",
    "most": "What is there most of?",
}
BUDGETS = (1, 2, 4, 8, 16)


def read_by_seed(path: Path) -> dict[tuple[str, str, int], dict[int, float]]:
    """Per cent of right answers by variant, kind of question and number of visual tokens; of each, by seed."""
    accuracies = defaultdict(dict)
    for run in map(json.loads, path.read_text().splitlines()):
        for kind, figures in run["evaluation"].items():
            for budget, accuracy in figures["accuracy"].items():
                accuracies[run["variant"], kind, int(budget)][run["seed"]] = 100 * accuracy
    return dict(accuracies)


def read_accuracies(path: Path) -> dict[tuple[str, str, int], list[float]]:
    """The same, without the seeds."""
    return {key: list(seeds.values()) for key, seeds in read_by_seed(path).items()}


def cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def print_table(accuracies: dict, columns: list[tuple[str, str, int]]) -> None:
    """A row for each kind of question, a column for each title, variant and number of visual tokens."""
    print(f"\n| question | {' | '.join(title for title, _, _ in columns)} |")
    print("|---|" + "---|" * len(columns))
    for kind, question in QUESTIONS.items():
        cells = [cell(accuracies[variant, kind, budget]) for _, variant, budget in columns]
        print(f'| "{question}" | {" | ".join(cells)} |')


def draw_questions(figure: Figure, kinds: list[str]) -> list[Axes]:
    """Panels for kinds of questions, on one scale of per cent in which the marker of 100 is whole."""
    axes = list(figure.subplots(2, 3, sharex=True, sharey=True).flat)
    for axis, kind in zip(axes, kinds):
        axis.set_title(QUESTIONS[kind])
        axis.tick_params(labelbottom=True)
        axis.set_ylim(25, 105)
    figure.supxlabel("number of visual tokens m")
    figure.supylabel("% of answers that are right, mean ± standard deviation")
    return axes


def draw_accuracies(
    axis: Axes, accuracies: dict, points: list[tuple[str, str, int]], style: str, shift: float = 1, **how
) -> None:
    """Means over the seeds with their standard deviation, cut off at 100%; shifted, so that none covers another."""
    values = [accuracies[point] for point in points]
    means, deviations = list(map(statistics.mean, values)), list(map(statistics.stdev, values))
    above = [min(deviation, 100 - mean) for mean, deviation in zip(means, deviations)]
    axis.errorbar([shift * budget for _, _, budget in points], means, [deviations, above], fmt=style, **how)


@in_style
def draw(accuracies: dict) -> Figure:
    figure = new_figure(5.4)
    axes = draw_questions(figure, list(QUESTIONS))
    for axis, kind in zip(axes, QUESTIONS):
        one, each = [("mqt", kind, budget) for budget in BUDGETS], [(f"qt_{m}", kind, m) for m in (1, 4, 16)]
        draw_accuracies(axis, accuracies, one, "o-", color=BLUE, label="MQT: one model, trained at random m")
        label = "QT: a query transformer trained at this m alone, one model for each"
        draw_accuracies(axis, accuracies, each, "s", 1.1, color=ORANGE, label=label)
        visual_token_axis(axis, BUDGETS)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results" / "mqt_vs_qt.jsonl")
    parser.add_argument("--figure", type=Path, default=REPOSITORY / "docs" / "images" / "mqt_vs_qt.png")
    args = parser.parse_args(argv)
    accuracies = read_accuracies(args.results)
    budgets = (1, 4, 16)
    pairs = [[(f"MQT, m = {m}", "mqt", m), (f"QT, m = {m}", f"qt_{m}", m)] for m in budgets]
    print_table(accuracies, [column for pair in pairs for column in pair])
    pairs = [
        [(f"one m a step, m = {m}", "single", m), (f"three at once, m = {m}", "nested_equal_compute", m)]
        for m in budgets
    ]
    print_table(accuracies, [column for pair in pairs for column in pair])
    save_figure(draw(accuracies), args.figure)


if __name__ == "__main__":
    main()
