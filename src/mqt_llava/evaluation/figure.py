"""Score against visual tokens, a panel for each benchmark; what is measured and what is published never look alike."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from .report import MEASURED, PUBLISHED, Row, order


if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes


# Of the palette of Okabe and Ito, told apart by everyone; so are the markers, and full from hollow.
BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"
COLUMNS = 3


def draw(rows: list[Row], path: Path) -> None:
    """
    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('The figure needs matplotlib: pip install "mqt_llava[eval]"') from error

    names = sorted(dict.fromkeys(row.benchmark for row in rows), key=order)
    columns = min(COLUMNS, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(max(5.2, 3.2 * columns), 0.7 + max(2.2 * lines, 3.2)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).flat
    labels: dict[str, Artist] = {}
    for name, axis in zip(names, axes):
        for line in draw_panel(axis, [row for row in rows if row.benchmark == name]):
            labels.setdefault(str(line.get_label()), line)
        axis.set_title(name.replace("_", " "), fontsize=10)
    for axis in list(axes):  # what is left of the grid
        axis.set_axis_off()
    ncols = min(len(labels), columns + 1)
    figure.legend(list(labels.values()), list(labels), loc="outside upper center", ncols=ncols, fontsize=9)
    figure.supxlabel("visual tokens per image")
    figure.supylabel("score")
    figure.savefig(path, dpi=120)


def draw_panel(axis: "Axes", rows: list[Row]) -> list["Artist"]:
    """One benchmark; returns what belongs into the legend."""
    drawn: list[Artist] = []
    ticks: set = set()
    for source, color, style in ((PUBLISHED, ORANGE, "s--"), (MEASURED, BLUE, "o-")):
        for model in dict.fromkeys(row.model for row in rows if row.source == source):
            points = sorted(
                (row.m, row.score) for row in rows if is_fixed(row) and (row.model, row.source) == (model, source)
            )
            ticks |= {m for m, _ in points}
            if not points:
                continue
            face = color if source == MEASURED else "white"
            if source == PUBLISHED and len(points) == 1:  # LLaVA-1.5, whose number of tokens is its only one
                color, style = BLACK, "D"
            lines = axis.plot(*zip(*points), style, color=color, markerfacecolor=face, label=f"{model}, {source}")
            drawn += lines
    adaptive = [(row.visual_tokens, row.score) for row in rows if row.m == "auto" and row.visual_tokens]
    if adaptive:
        label = "adaptive, measured (at the task's mean)"
        drawn += axis.plot(*zip(*adaptive), "*", color=GREEN, markersize=12, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xticks(thinned(sorted(ticks)), labels=map(str, thinned(sorted(ticks))), fontsize=7)
    axis.set_xticks([], minor=True)
    axis.tick_params(axis="y", labelsize=8)
    axis.grid(alpha=0.3)
    return drawn


def is_fixed(row: Row) -> bool:
    return isinstance(row.m, int)


def thinned(ticks: list[int]) -> list[int]:
    """Ticks so far apart that their numbers do not touch."""
    kept: list[int] = []
    for tick in ticks:
        if not kept or tick >= 1.7 * kept[-1]:
            kept.append(tick)
    return kept
