"""
The style of every figure of the package, its examples and its documentation.

    @in_style
    def draw_scores(scores: dict[int, float]) -> Figure:
        figure = new_figure(height=4)
        axis = figure.subplots()
        axis.plot(list(scores), list(scores.values()), "o-", color=BLUE, label="measured")
        visual_token_axis(axis, scores)
        return figure

    save_figure(draw_scores({1: 55.2, 4: 90.5, 16: 93.3}), "scores.png")

All figures are as wide, so that their letters are as large on a page; they bring a light background, so that they can
be read on a dark one; and what a colour tells, a marker, a line's style or a word tells too. Nothing here imports
pyplot, which would keep figures alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .extra import import_extra


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9  # inches
DPI = 150  # 1350 pixels: sharp on a page that shows them half as wide
# The palette of Okabe and Ito (jfly.uni-koeln.de/color), told apart with any kind of colour blindness.
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P")  # one for each colour
INK, GRAY = "#222222", "#767676"
COLOUR_MAP = "viridis"  # ordered by lightness too

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": GRAY,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "image.cmap": COLOUR_MAP,
    "font.family": "DejaVu Sans",  # which matplotlib brings
    "font.size": 10,
    "figure.titlesize": 11,
    "figure.labelsize": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.edgecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "errorbar.capsize": 3,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
}

Arguments = ParamSpec("Arguments")
Drawn = TypeVar("Drawn")


def in_style(draw: Callable[Arguments, Drawn]) -> Callable[Arguments, Drawn]:
    """
    A function that draws, in this style; matplotlib's settings are as before when it returns.

    Raises:
        ImportError: On drawing: matplotlib is not installed.
    """

    @wraps(draw)
    def styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Drawn:
        with import_extra("matplotlib").rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def new_figure(height: float) -> Figure:
    """An empty figure, `height` inches high."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a PNG file, and the folders above it; the same bytes for the same figure."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def visual_token_axis(axis: Axes, numbers: Iterable[int], label: str = "") -> None:
    """Makes the x axis one of numbers of visual tokens: logarithmic, with a tick at each of these and no other."""
    ticks = sorted(set(numbers))
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(number) for number in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel(label)
