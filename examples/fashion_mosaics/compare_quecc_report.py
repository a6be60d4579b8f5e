"""
Table and figure of what compare_quecc.py has measured:

    python examples/fashion_mosaics/compare_quecc_report.py

Writes `docs/images/mqt_vs_quecc.png` and prints the table of docs/quecc.md. Means over the seeds, with their standard
deviation.
"""

import argparse
from pathlib import Path

from compare_report import QUESTIONS, REPOSITORY, cell, draw_accuracies, draw_questions, read_accuracies
from matplotlib.figure import Figure

from mqt_llava.plotting import BLUE, ORANGE, in_style, new_figure, save_figure, visual_token_axis


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


@in_style
def draw(accuracies: dict) -> Figure:
    figure = new_figure(5.4)
    axes = draw_questions(figure, list(KINDS))
    labels = ("MQT: one model\nfor all numbers", "QueCC: a model\nfor each number")
    for axis, kind in zip(axes, KINDS):
        styles = zip(labels, (BLUE, ORANGE), ("o-", "s--"), (1, 1.07))
        for variants, (label, color, style, shift) in zip(MODELS.values(), styles):
            points = [(variant, kind, budget) for variant, budget in zip(variants, BUDGETS)]
            draw_accuracies(axis, accuracies, points, style, shift, color=color, label=label)
        visual_token_axis(axis, BUDGETS)
    axes[-1].set_axis_off()
    axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="center", labelspacing=1.2)
    return figure


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = REPOSITORY / "benchmarks" / "results" / "mqt_vs_quecc.jsonl"
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--figure", type=Path, default=REPOSITORY / "docs" / "images" / "mqt_vs_quecc.png")
    args = parser.parse_args(argv)
    accuracies = read_accuracies(args.results)
    print_table(accuracies)
    save_figure(draw(accuracies), args.figure)


if __name__ == "__main__":
    main()
