"""
Table and figure of what compare_quecc.py has measured:

    python examples/fashion_mosaics/compare_quecc_report.py

Writes `docs/images/mqt_vs_quecc.png` and prints the table of docs/quecc.md. Means over the seeds, with their standard
deviation.
"""

import argparse
import statistics
from pathlib import Path

from compare_report import BLUE, ORANGE, QUESTIONS, REPOSITORY, cell, read_accuracies
from matplotlib.figure import Figure


BUDGETS = (1, 4, 16)
KINDS = ("position", "row", "column", "presence", "most")
MODELS = {"MQT": ("mqt", "mqt", "mqt"), "QueCC": ("quecc_1", "quecc_4", "quecc_16")}  # by budget


def print_table(accuracies: dict) -> None:
    """A row for each kind of question, a column for each model and number of visual tokens."""
    columns = [(model, budget) for budget in BUDGETS for model in MODELS]
    print(f"| question | {' | '.join(f'{model}, m = {budget}' for model, budget in columns)} |")
    print("|---|" + "---|" * len(columns))
    for kind in KINDS:
        cells = [cell(accuracies[MODELS[model][BUDGETS.index(m)], kind, m]) for model, m in columns]
        print(f'| "{QUESTIONS[kind]}" | {" | ".join(cells)} |')


def draw(accuracies: dict) -> Figure:
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for axis, kind in zip(axes.flat, KINDS):
        for (label, variants), color, marker in zip(MODELS.items(), (BLUE, ORANGE), ("o-", "s--")):
            points = [accuracies[variant, kind, budget] for variant, budget in zip(variants, BUDGETS)]
            means, deviations = map(statistics.mean, points), map(statistics.stdev, points)
            axis.errorbar(BUDGETS, list(means), list(deviations), fmt=marker, color=color, capsize=3, label=label)
        axis.set_title(QUESTIONS[kind], fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        axis.tick_params(labelbottom=True)
        axis.grid(alpha=0.3)
        axis.set_ylim(25, 101)
    axes[1, 2].set_axis_off()
    handles, _ = axes[0, 0].get_legend_handles_labels()
    labels = ["one MQT model for all m", "a QueCC model for each m"]
    axes[1, 2].legend(handles, labels, loc="center", frameon=False, fontsize=11)
    figure.supxlabel("visual tokens m")
    figure.supylabel("right answers in per cent")
    return figure


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = REPOSITORY / "benchmarks" / "results" / "mqt_vs_quecc.jsonl"
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--figure", type=Path, default=REPOSITORY / "docs" / "images" / "mqt_vs_quecc.png")
    args = parser.parse_args(argv)
    accuracies = read_accuracies(args.results)
    print_table(accuracies)
    draw(accuracies).savefig(args.figure, dpi=120)


if __name__ == "__main__":
    main()
