"""
Figures, as matplotlib objects that the caller saves or shows: `figure.savefig("heatmaps.png", dpi=100)`.

They are in the style of [`mqt_llava.plotting`], 9 inches wide: 900 pixels at 100 dots per inch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import nn

from ..extra import import_extra
from ..plotting import BLUE, COLOUR_MAP, GRAY, ORANGE, WIDTH, YELLOW, in_style, new_figure, visual_token_axis
from .changes import largest_changes
from .queries import coverage


if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

CHANGES_IN_A_ROW = 3
VISIBLE = 0.01  # smaller moves of a probability cannot be seen


@in_style
def draw_heatmaps(
    image: Image.Image,
    heatmaps: Sequence[Sequence[torch.Tensor | None]],
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    title: str = "",
    scale: str = "",
) -> Figure:
    """
    Heatmaps laid over an image, beside the image itself.

    Args:
        heatmaps: Rows of heatmaps over the image's pixels from [`heat_over_image`], each `(height, width)`; `None`
            leaves a panel out. What is positive is shown, on one scale from 0, where nothing covers the image, to the
            largest number of all.
        row_titles: Such as tokens, one for each row.
        column_titles: Such as numbers of visual tokens, one for each column.
        title: Of the figure.
        scale: What the numbers are, such as "added to the word's log-probability".

    Raises:
        ValueError: There is no heatmap, the rows are not of one length, or a heatmap is not as large as the image.
        ImportError: matplotlib is not installed.
    """
    if any(len(row) != len(column_titles) for row in heatmaps) or len(heatmaps) != len(row_titles):
        raise ValueError(
            f"There are rows of {[len(row) for row in heatmaps]} heatmaps, but {len(row_titles)} row titles and "
            f"{len(column_titles)} column titles."
        )
    shapes = {tuple(heatmap.shape) for row in heatmaps for heatmap in row if heatmap is not None}
    if shapes != {image.size[::-1]}:
        raise ValueError(f"The heatmaps' shapes are {shapes}, but that of the image is {image.size[::-1]}.")

    panel = (WIDTH - 1) / (len(column_titles) + 1)
    figure = new_figure(0.8 + len(heatmaps) * panel * image.height / image.width)
    figure.suptitle(title)
    axes = figure.subplots(len(heatmaps), len(column_titles) + 1, squeeze=False)
    highest = max(float(heat.max()) for row in heatmaps for heat in row if heat is not None)
    highest = max(highest, torch.finfo(torch.float32).tiny)
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("the image")
    for axis, column_title in zip(axes[0, 1:], column_titles):
        axis.set_title(column_title)
    for row, heats, row_title in zip(axes[:, 1:], heatmaps, row_titles):
        row[0].text(-0.05, 0.5, row_title, transform=row[0].transAxes, rotation=90, ha="right", va="center")
        for axis, heatmap in zip(row, heats):
            if heatmap is None:
                continue
            heat = heatmap.detach().float().cpu().clamp(min=0).numpy()
            axis.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=380)  # dimmed
            picture = axis.imshow(heat, cmap=glow(), vmin=0, vmax=highest)
    figure.colorbar(picture, ax=axes, shrink=0.6, aspect=30, label=scale)
    return figure


def glow() -> Colormap:
    """From transparent over orange to yellow."""
    colors = import_extra("matplotlib.colors")
    to_rgba = colors.to_rgba
    return colors.LinearSegmentedColormap.from_list(
        "glow", [to_rgba(ORANGE, 0), to_rgba(ORANGE, 0.7), to_rgba(YELLOW, 0.85), to_rgba("#F0E442", 0.95)]
    )


@in_style
def draw_queries(maps: torch.Tensor) -> Figure:
    """
    An atlas of queries: a row for each query with the mean over its heads, then each head.

    Args:
        maps: From [`query_maps`], `(heads, m, grid, grid)`. With many of both, cut them down first.

    Raises:
        ImportError: matplotlib is not installed.
    """
    num_heads, num_queries, side, _ = maps.shape
    maps = maps.float().cpu()
    step = side + -(-side // 4)  # with a gap
    maps = torch.cat([maps.mean(0, keepdim=True), maps])
    maps = nn.functional.pad(maps, (0, step - side, 0, step - side), value=math.nan)
    figure = new_figure(1 + 0.9 * WIDTH * num_queries / (num_heads + 1))
    axis = figure.subplots()
    # All maps as one picture: as many axes take seconds to lay out.
    picture = axis.imshow(maps.permute(1, 2, 0, 3).flatten(2).flatten(0, 1), cmap=COLOUR_MAP, vmin=0, vmax=1)
    middles = [step * place + (side - 1) / 2 for place in range(max(num_queries, num_heads + 1))]
    axis.set_xticks(middles[: num_heads + 1], ["mean", *(f"head {head}" for head in range(num_heads))])
    axis.set_yticks(
        middles[:num_queries], [f"query {query}" for query in range(num_queries)], rotation=90, va="center"
    )
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    axis.grid(False)
    label = "share of the query's attention on a patch"
    figure.colorbar(picture, location="bottom", shrink=0.5, aspect=40, label=label)
    return figure


@in_style
def draw_coverage(maps: torch.Tensor, num_visual_tokens: Sequence[int]) -> Figure:
    """
    How coverage grows with the number of queries, see [`coverage`].

    Args:
        maps: From [`query_maps`], `(heads, M, grid, grid)`.
        num_visual_tokens: For which numbers of queries the coverage of each patch is shown.

    Raises:
        ValueError: One of them is outside 1..M.
        ImportError: matplotlib is not installed.
    """
    covered = coverage(maps).float().cpu()
    if not num_visual_tokens or not all(1 <= m <= len(covered) for m in num_visual_tokens):
        raise ValueError(f"`num_visual_tokens` is {num_visual_tokens!r}, but must be in 1..{len(covered)}.")
    figure = new_figure(4.6)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.3))[:, 0]
    axes = above.subplots(1, len(num_visual_tokens), squeeze=False)[0]
    for axis, m in zip(axes, num_visual_tokens):
        picture = axis.imshow(covered[m - 1], cmap=COLOUR_MAP, vmin=0, vmax=1)
        axis.set_title("the first query" if m == 1 else f"the first {m} queries")
        axis.set_axis_off()
    above.colorbar(picture, ax=axes, shrink=0.8, label="coverage of a patch")
    axis = below.subplots()
    axis.plot(range(1, len(covered) + 1), covered.mean((1, 2)), "o-", color=BLUE, markersize=4)
    axis.set(ylabel="coverage, mean over patches", ylim=(0, 1.02))
    powers = [2**power for power in range(len(covered).bit_length())]
    visual_token_axis(axis, [*powers, *num_visual_tokens, len(covered)], "number of queries, and of visual tokens")
    return figure


@in_style
def draw_changes(
    tokens: Sequence[str],
    probabilities: torch.Tensor,
    num_visual_tokens: Sequence[int],
    count: int = 6,
    title: str = "",
) -> Figure:
    """
    The answer tokens whose probability moves most from each m to the next, before and after.

    Args:
        tokens: The answer, as in `ImageAnswer.tokens`.
        probabilities: From [`probabilities_by_num_visual_tokens`], `(numbers, answer tokens)`.
        num_visual_tokens: Those numbers.
        count: How many tokens of each step.
        title: Of the figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    steps = largest_changes(probabilities, count)
    names, columns = distinct(tokens), min(CHANGES_IN_A_ROW, len(steps))
    num_rows = -(-len(steps) // columns)
    rows = max(len(step) for step in steps)
    figure = new_figure(0.9 + num_rows * (0.85 + 0.24 * rows))
    figure.suptitle(title)
    axes = figure.subplots(num_rows, columns, squeeze=False).flat
    for index, (step, axis) in enumerate(zip(steps, axes)):
        moves = (probabilities[index + 1] - probabilities[index]).abs()
        order = sorted(token for token in step if token == step[0] or moves[token] >= VISIBLE)
        before, after = (probabilities[i, order].float().cpu().numpy() for i in (index, index + 1))
        places = range(len(order))
        axis.hlines(places, before, after, color=GRAY, linewidth=2, zorder=1)
        axis.scatter(before, places, color=YELLOW, marker="o", s=36, zorder=2, label="with the fewer visual tokens")
        axis.scatter(after, places, color=BLUE, marker="D", s=36, zorder=3, label="with the more")
        axis.set_yticks(places, [names[token] for token in order])
        axis.set(xlim=(-0.03, 1.03), ylim=(len(order) - 0.4, -0.6))
        axis.set_title(f"from {num_visual_tokens[index]} to {num_visual_tokens[index + 1]} visual tokens")
        axis.set_xlabel("probability")
    for axis in axes:  # what is left of the grid
        axis.set_axis_off()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def distinct(tokens: Sequence[str]) -> list[str]:
    """Names for tokens of an answer: one that it has several times is told apart by a number, such as "coat #2"."""
    named: list[str] = []
    for place, token in enumerate(tokens):
        number = f" #{tokens[: place + 1].count(token)}" if tokens.count(token) > 1 else ""
        named.append((token or "␣") + number)
    return named
