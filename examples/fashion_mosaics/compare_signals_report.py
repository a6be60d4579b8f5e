"""
Tables and figure of what compare_signals.py has measured:

    python examples/fashion_mosaics/compare_signals_report.py

Prints the tables of docs/signals.md and writes `docs/images/signals.png`.
"""

import argparse
import json
from pathlib import Path

from collect_looks import REPOSITORY
from compare_signals import DECIDING
from signals import LEAST, unended

from mqt_llava.models.adaptive_budget import AdaptiveBudget
from mqt_llava.plotting import BLUE, GRAY, GREEN, INK, ORANGE, in_style, new_figure, save_figure


DEFAULT = unended(AdaptiveBudget.unended_power)
SHOWN = ("3 coarse : 1 fine", "all kinds alike", "fine alone")
MIXTURE_STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"))
CURVES = {LEAST: (GRAY, "-"), DEFAULT: (BLUE, "-."), "all known so far": (GREEN, "--")}
RISK = str(DECIDING)


def at_risk(row: dict) -> str:
    """Tokens, and the difference with its interval where there is one."""
    low, high = row["difference_95"]
    if low == high == 0:
        return f"{row['tokens']:.2f}"
    return f"{row['tokens']:.2f} ({row['difference']:+.2f}, {low:+.2f} to {high:+.2f})"


def with_looks(row: dict) -> str:
    return f"{at_risk(row)}; {row['looks']:.1f} looks"


def to_table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def is_near_default(name: str, results: dict) -> bool:
    """Whether these levels are the default ones, but for one more or less, or all."""
    levels, default = set(map(int, name.split())), set(results["default_levels"])
    return len(levels ^ default) <= 1 or levels == set(results["looks"]["levels"])


def to_tables(results: dict) -> list[str]:
    """Of the rules, of the kinds of questions, of the levels, and of the number of places."""
    mixtures = results["mixtures"]
    alike = mixtures[SHOWN[1]]
    low, middle = map(str, results["default_levels"][:2])
    rules = []
    for name, rule in alike["rules"].items():
        level = rule["at_levels"]
        numbers = [level[low]["auroc"], level[middle]["auroc"], level[middle]["ece"], level[middle]["ece_fitted"]]
        tokens = (at_risk(mixtures[mixture]["rules"][name]["at_risk"][RISK]) for mixture in SHOWN)
        rules.append([name, *map(share, numbers), *tokens])
    head = ["rule", f"AUROC at {low}", f"AUROC at {middle}", f"ECE at {middle}", "ECE, fitted", *SHOWN]
    kinds = [
        [kind, *("{:.2f}, {:.1%}".format(*alike["rules"][name]["at_risk"][RISK]["by_kind"][kind]) for name in CURVES)]
        for kind in results["looks"]["kinds"]
    ]
    by_levels, by_places = (
        [
            [name.replace(" ", ", "), *(with_looks(mixtures[m][which][name][RISK]) for m in SHOWN)]
            for name in alike[which]
            if which == "places" or is_near_default(name, results)
        ]
        for which in ("levels", "places")
    )
    return [
        to_table(head, rules),
        to_table(["kind", *CURVES], kinds),
        to_table(["levels", *SHOWN], by_levels),
        to_table(["first tokens", *SHOWN], by_places),
    ]


def in_per_cent(points: list) -> tuple[list[float], list[float]]:
    return [tokens for tokens, _ in points], [100 * agree for _, agree in points]


@in_style
def draw(results: dict):
    """Agreement against tokens, where all kinds are asked alike; and what each rule saves in each mixture."""
    figure = new_figure(height=5)
    curves, rules = figure.subplots(1, 2, width_ratios=(1, 1.1))
    alike = results["mixtures"][SHOWN[1]]
    for name, (color, line) in CURVES.items():
        points = alike["rules"][name]["curve"]
        curves.plot(
            [tokens for tokens, _ in points], [100 * agree for _, agree in points], line, color=color, label=name
        )
    fixed = alike["fixed"]
    curves.plot(*zip(*((m, 100 * agree) for m, agree in fixed)), "s:", color=ORANGE, label="the same m for all")
    curves.plot([alike["oracle"][0]], [100], "*", color=INK, markersize=12, clip_on=False, label="oracle")
    curves.set_xlabel("mean visual tokens per question")
    curves.set_ylabel("% of answers that are those at M")
    curves.set_title(f"all kinds of questions alike, {results['mosaics']['judged']} mosaics")
    curves.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12))

    names = list(alike["rules"])
    for number, (mixture, (color, marker)) in enumerate(zip(SHOWN, MIXTURE_STYLES)):
        for index, name in enumerate(names):
            row, height = results["mixtures"][mixture]["rules"][name]["at_risk"][RISK], index + 0.22 * (number - 1)
            rules.plot(row["difference_95"], [height] * 2, "-", color=color)
            label = None if index else mixture
            rules.plot(row["difference"], height, marker, color=color, markersize=4, label=label)
    rules.axvline(0, color=INK, linewidth=0.8)
    rules.set_yticks(range(len(names)), names)
    rules.invert_yaxis()
    rules.set_title(f"{1 - DECIDING:.0%} of answers are those at M")
    rules.set_xlabel("visual tokens more or fewer")
    rules.legend(loc="lower right")
    return figure


def main(argv: list[str] | None = None) -> list[str]:
    results = REPOSITORY / "benchmarks" / "results" / "signals.json"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--figure", type=Path, default=REPOSITORY / "docs" / "images" / "signals.png")
    args = parser.parse_args(argv)
    results = json.loads(args.results.read_text())
    tables = to_tables(results)
    print("\n\n".join(tables))
    save_figure(draw(results), args.figure)
    return tables


if __name__ == "__main__":
    main()
