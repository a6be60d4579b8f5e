"""
Score against visual tokens, a panel for each benchmark; what is measured and what is published never look alike.

    python -m mqt_llava.evaluation.figure runs/sweep/results.json results.png

draws the table of a sweep again.
"""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..plotting import BLUE, GREEN, INK, ORANGE, in_style, new_figure, save_figure, visual_token_axis
from .benchmarks import AVERAGE, PAPER
from .report import MEASURED, PUBLISHED, Row, order, read_table


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
MAXIMA = {AVERAGE: 100.0, **{benchmark.name: benchmark.maximum for benchmark in PAPER}}


@in_style
def draw(rows: list[Row]) -> "Figure":
    """
    All panels show the same part of what can be reached, so that a steeper curve is a larger gain.

    Args:
        rows: Of [`tabulate`].

    Raises:
        ImportError: matplotlib is not installed.
    """
    panels: dict[str, list[Row]] = {
        name: [] for name in sorted(dict.fromkeys(row.benchmark for row in rows), key=order)
    }
    for row in rows:
        panels[row.benchmark].append(row)
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(1 + max(1.9 * lines, 3))
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    low, high = shown_part(panels)
    labels: dict[str, Any] = {}
    for (name, panel), axis in zip(panels.items(), axes):
        labels = draw_panel(axis, panel) | labels
        axis.set_ylim(low * maximum(panel), high * maximum(panel))
        counts = {row.count for row in panel if row.count}
        count = f"\n{counts.pop()} questions" if len(counts) == 1 else ""
        axis.set_title(name.replace("_", " ") + count)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.legend(list(labels.values()), list(labels), loc="outside upper center", ncols=min(3, len(labels)))
    figure.supxlabel("visual tokens per image")
    figure.supylabel("score, with 95% intervals" if any(row.count for row in rows) else "score")
    return figure


def draw_panel(axis: "Axes", rows: list[Row]) -> dict[str, Any]:
    """One benchmark, with 95% intervals where they are known; returns what belongs into the legend, by label."""
    drawn: dict[str, Any] = {}
    for source, color, style in ((PUBLISHED, ORANGE, "s--"), (MEASURED, BLUE, "o-")):
        for model in dict.fromkeys(row.model for row in rows if row.source == source):
            points = [row for row in rows if isinstance(row.m, int) and (row.model, row.source) == (model, source)]
            if not points:
                continue
            face = color if source == MEASURED else "white"
            if source == PUBLISHED and len(points) == 1:  # LLaVA-1.5, whose number of tokens is its only one
                color, style = INK, "D"
            label, points = f"{model}, {source}", sorted(points, key=lambda row: int(row.m or 0))
            tokens = [float(row.m or 0) for row in points]
            drawn[label] = draw_points(axis, tokens, points, style, color=color, markerfacecolor=face, label=label)
    for row in rows:
        if row.m == "auto" and row.visual_tokens:
            label = "adaptive, measured, at its mean number of tokens"
            drawn[label] = draw_points(axis, [row.visual_tokens], [row], "*", color=GREEN, markersize=11, label=label)
    numbers = sorted({row.m for row in rows if isinstance(row.m, int)})
    visual_token_axis(axis, thinned(numbers))
    return drawn


def draw_points(axis: "Axes", tokens: list[float], rows: list[Row], style: str, **how: Any) -> Any:
    scores = [row.score for row in rows]
    below = [row.score - (row.score if row.low is None else row.low) for row in rows]
    above = [(row.score if row.high is None else row.high) - row.score for row in rows]
    line, *_ = axis.errorbar(tokens, scores, [below, above] if any(below + above) else None, fmt=style, **how)
    return line


def maximum(panel: list[Row]) -> float:
    """The best score that there is on a benchmark; where that is not known, 1 or the best of the panel's."""
    return MAXIMA.get(panel[0].benchmark) or max(1.0, *(row.score for row in panel))


def shown_part(panels: dict[str, list[Row]]) -> tuple[float, float]:
    """The part of the scores' range that holds all panels."""
    shares = [
        value / maximum(panel)
        for panel in panels.values()
        for row in panel
        for value in (row.low, row.score, row.high)
        if value is not None
    ]
    margin = 0.05 * (max(shares) - min(shares)) or 0.05
    return min(shares) - margin, max(shares) + margin


def thinned(ticks: list[int]) -> list[int]:
    """Ticks so far apart that their numbers do not touch."""
    kept: list[int] = []
    for tick in ticks:
        if not kept or tick >= 1.7 * kept[-1]:
            kept.append(tick)
    return kept


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="a sweep's results.json")
    parser.add_argument("figure", type=Path, help="PNG file")
    args = parser.parse_args(argv)
    save_figure(draw(read_table(args.table)), args.figure)


if __name__ == "__main__":
    main()
