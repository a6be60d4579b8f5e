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

import matplotlib.pyplot as plt


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
BLUE, ORANGE = "#0072B2", "#D55E00"  # of the palette of Okabe and Ito, told apart by everyone


def read_accuracies(path: Path) -> dict[tuple[str, str, int], list[float]]:
    """Per cent of right answers of each seed, by variant, kind of question and number of visual tokens."""
    accuracies = defaultdict(list)
    for line in path.read_text().splitlines():
        run = json.loads(line)
        for kind, figures in run["evaluation"].items():
            for budget, accuracy in figures["accuracy"].items():
                accuracies[run["variant"], kind, int(budget)].append(100 * accuracy)
    return accuracies


def cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def print_table(accuracies: dict, columns: list[tuple[str, str, int]]) -> None:
    """A row for each kind of question, a column for each title, variant and number of visual tokens."""
    print(f"\n| question | {' | '.join(title for title, _, _ in columns)} |")
    print("|---|" + "---|" * len(columns))
    for kind, question in QUESTIONS.items():
        cells = [cell(accuracies[variant, kind, budget]) for _, variant, budget in columns]
        print(f'| "{question}" | {" | ".join(cells)} |')


def draw(accuracies: dict, path: Path) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(9, 5.2), sharex=True, sharey=True, layout="constrained")
    for axis, (kind, question) in zip(axes.flat, QUESTIONS.items()):
        for label, color, marker, points in (
            ("one MQT model", BLUE, "o-", [("mqt", kind, budget) for budget in BUDGETS]),
            ("a QT model for each m", ORANGE, "s", [(f"qt_{budget}", kind, budget) for budget in (1, 4, 16)]),
        ):
            means = [statistics.mean(accuracies[point]) for point in points]
            deviations = [statistics.stdev(accuracies[point]) for point in points]
            budgets = [budget for _, _, budget in points]
            axis.errorbar(budgets, means, deviations, fmt=marker, color=color, capsize=3, label=label)
        axis.set_title(question, fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        axis.grid(alpha=0.3)
        axis.set_ylim(25, 101)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.supxlabel("visual tokens m")
    figure.supylabel("right answers in per cent")
    figure.savefig(path, dpi=120)


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
    draw(accuracies, args.figure)


if __name__ == "__main__":
    main()
