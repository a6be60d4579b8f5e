r"""
Tables and figure of what compare_elastic.py has measured:

    python examples/fashion_mosaics/compare_elastic_report.py
    python examples/fashion_mosaics/compare_elastic_report.py \
        --results benchmarks/results/elastic.jsonl --budgets 1 4 8 16

Prints the tables of docs/elasticize.md. Means over the seeds; differences by seed, with the 95% interval of Student's
t, where there are several.
"""

import argparse
import math
import statistics
from collections import defaultdict
from pathlib import Path

from compare_report import QUESTIONS, REPOSITORY, draw_questions, read_by_seed
from matplotlib.figure import Figure

from mqt_llava.plotting import BLUE, GRAY, GREEN, INK, ORANGE, in_style, new_figure, save_figure, visual_token_axis


RESULTS = REPOSITORY / "benchmarks" / "results"
M = 16
SQUARES = (1, 4, 16)
# Quantiles of Student's t at 97.5%, by degrees of freedom.
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: list[float]) -> float:
    """Half the width of the 95% interval of the mean, of two values or more."""
    return T_975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {interval(values):.1f}"


def differences(accuracies: dict, first: tuple[str, int], second: tuple[str, int], kind: str) -> list[float]:
    """Of the accuracies of two variants, each at its m, by the seeds that both have: of the same mosaics."""
    ours, theirs = (accuracies.get((variant, kind, budget), {}) for variant, budget in (first, second))
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def print_table(head: list[str], rows: list[list[str]]) -> None:
    print(f"\n| {' | '.join(head)} |\n|---|{'---|' * (len(head) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


@in_style
def draw(accuracies: dict, best: str) -> Figure:
    figure, budgets = new_figure(5.6), (1, 2, 4, 8, 16)
    axes = draw_questions(figure, list(QUESTIONS))
    for axis, kind in zip(axes, QUESTIONS):
        most = statistics.mean(accuracies["llava", kind, 64].values())
        axis.axhline(most, color=INK, linestyle=":", label="the LLaVA that they are made of, 64 tokens")
        for label, color, style, points in (
            ("one elastic model", BLUE, "o-", [(best, m) for m in budgets]),
            ("trained at one number alone, by the same means", ORANGE, "s", [(f"qt_{m}", m) for m in SQUARES]),
            ("average pooling", GREEN, "^--", [("average_pooling", m) for m in SQUARES]),
            ("image scaled down", GRAY, "v--", [("scaled_image", m) for m in SQUARES]),
        ):
            found = {m: accuracies[variant, kind, m] for variant, m in points if (variant, kind, m) in accuracies}
            values = {m: list(seeds.values()) for m, seeds in found.items()}
            means = [statistics.mean(each) for each in values.values()]
            errors = [0 if len(each) < 2 else interval(each) for each in values.values()]
            axis.errorbar(list(values), means, errors, fmt=style, color=color, label=label)
        visual_token_axis(axis, budgets)
        axis.set_ylim(None, 105)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.supylabel("% of answers that are right, mean and 95% interval")
    return figure


def in_order(accuracies: dict) -> list[str]:
    """The LLaVA, what answers at every number of tokens from the best to the worst, and the rest."""
    means = defaultdict(list)
    for (variant, _, m), seeds in accuracies.items():
        if m in (*SQUARES, 64):
            means[variant] += seeds.values()
    rest = {variant for variant in means if (variant, "list", 2) not in accuracies}
    return sorted(means, key=lambda name: (name != "llava", name in rest, -statistics.mean(means[name])))


def to_row(accuracies: dict, variant: str, budgets: tuple[int, ...] = SQUARES) -> list[str]:
    """By kind the means at these numbers of tokens, or at the one that it has."""
    row = [f"`{variant}`"]
    for kind in QUESTIONS:
        found = [accuracies.get((variant, kind, m)) for m in (*budgets, 64)]
        row.append(" / ".join(f"{statistics.mean(seeds.values()):.1f}" for seeds in found if seeds))
    return row


def to_differences(accuracies: dict, variant: str) -> list[list[str]]:
    """Rows of differences, with intervals: to the LLaVA, and to models that were trained at one number alone."""
    others = {f"LLaVA, at m = {m}": (m, ("llava", 64)) for m in (M, M // 4)}
    others |= {f"`qt_{m}`": (m, (f"qt_{m}", m)) for m in SQUARES}
    rows = []
    for name, (m, other) in others.items():
        values = [differences(accuracies, (variant, m), other, kind) for kind in QUESTIONS]
        if other[0] != variant and all(len(each) > 1 for each in values):
            rows.append([f"`{variant}` - {name}", *map(cell, values)])
    return rows


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "elastic_ranking.jsonl")
    parser.add_argument("--budgets", type=int, nargs="+", default=SQUARES, help="numbers of tokens in the table")
    parser.add_argument("--figure", type=Path, help="draw it there")
    parser.add_argument("--best", default="fit", help="the variant that the figure shows")
    args = parser.parse_args(argv)
    accuracies = read_by_seed(args.results)
    variants = in_order(accuracies)
    head = f"m = {' / '.join(map(str, args.budgets))}"
    print_table([head, *QUESTIONS], [to_row(accuracies, variant, args.budgets) for variant in variants])
    if rows := [row for variant in variants for row in to_differences(accuracies, variant)]:
        print_table(["difference", *QUESTIONS], rows)
    if args.figure:
        save_figure(draw(accuracies, args.best), args.figure)


if __name__ == "__main__":
    main()
