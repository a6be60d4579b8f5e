"""
Figures, as matplotlib objects that the caller saves or shows: `figure.savefig("heatmaps.png", dpi=100)`.

They are 9 inches wide, 900 pixels at 100 dots per inch. Colours are viridis, or of the palette of Okabe and Ito.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from .changes import largest_changes
from .extra import import_extra
from .queries import coverage


if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 9  # inches
BEFORE, AFTER = "#E69F00", "#0072B2"  # of the palette of Okabe and Ito, told apart by everyone
COLOURS = "viridis"
VISIBLE = 0.01  # smaller moves of a probability cannot be seen


def new_figure(height: float) -> Figure:
    """Without pyplot, so that no figure is kept alive behind the caller's back."""
    return import_extra("matplotlib.figure").Figure(figsize=(WIDTH, height), layout="constrained")


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
            leaves a panel out. What is positive is shown, on one scale from 0 to the largest number of all.
        row_titles: Such as tokens, one for each row.
        column_titles: Such as numbers of visual tokens, one for each column.
        title: Of the figure.
        scale: What the numbers are, such as "nats per patch".

    Raises:
        ValueError: There is no heatmap, the rows are not of one length, or a heatmap is not as large as the image.
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
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(heatmaps), len(column_titles) + 1, squeeze=False)
    highest = max(float(heat.max()) for row in heatmaps for heat in row if heat is not None)
    highest = max(highest, torch.finfo(torch.float32).tiny)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    axes[0, 0].imshow(image)
    for axis, column_title in zip(axes[0, 1:], column_titles):
        axis.set_title(column_title, fontsize=10)
    for row, row_title, row_axes in zip(heatmaps, row_titles, axes[:, 1:]):
        row_axes[0].set_ylabel(row_title, fontsize=10)
        for heatmap, axis in zip(row, row_axes):
            if heatmap is None:
                continue
            heat = heatmap.detach().float().cpu().clamp(min=0).numpy()
            # The image is dimmed, and shows through where there is no heat.
            axis.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=380)
            opacity = 0.1 + 0.7 * (heat / highest).clip(0, 1) ** 0.5
            picture = axis.imshow(heat, cmap=COLOURS, vmin=0, vmax=highest, alpha=opacity)
    figure.colorbar(picture, ax=axes, shrink=0.6, aspect=30, label=scale)
    return figure


def draw_queries(maps: torch.Tensor) -> Figure:
    """
    An atlas of queries: a row for each query with the mean over its heads, then each head.

    Args:
        maps: From [`query_maps`], `(heads, m, grid, grid)`. With many of both, cut them down first.
    """
    num_heads, num_queries = maps.shape[:2]
    panel = WIDTH / (num_heads + 2)
    figure = new_figure(0.8 + 0.96 * panel * num_queries)
    axes = figure.subplots(num_queries, num_heads + 1, squeeze=False)
    maps = maps.float().cpu()
    for query, row in enumerate(axes):
        for column, axis in enumerate(row):
            heat = maps[:, query].mean(0) if column == 0 else maps[column - 1, query]
            picture = axis.imshow(heat, cmap=COLOURS, vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            if query == 0:
                axis.set_title("mean" if column == 0 else f"head {column - 1}", fontsize=10)
        row[0].set_ylabel(f"query {query}", fontsize=9)
    figure.colorbar(picture, ax=axes, location="bottom", shrink=0.5, aspect=40, label="share of the query's attention")
    return figure


def draw_coverage(maps: torch.Tensor, num_visual_tokens: Sequence[int]) -> Figure:
    """
    How coverage grows with the number of queries, see [`coverage`].

    Args:
        maps: From [`query_maps`], `(heads, M, grid, grid)`.
        num_visual_tokens: For which numbers of queries the coverage of each patch is shown.

    Raises:
        ValueError: One of them is outside 1..M.
    """
    covered = coverage(maps).float().cpu()
    if not num_visual_tokens or not all(1 <= m <= len(covered) for m in num_visual_tokens):
        raise ValueError(f"`num_visual_tokens` is {num_visual_tokens!r}, but must be in 1..{len(covered)}.")
    figure = new_figure(4.6)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.3))[:, 0]
    axes = above.subplots(1, len(num_visual_tokens), squeeze=False)[0]
    for axis, m in zip(axes, num_visual_tokens):
        picture = axis.imshow(covered[m - 1], cmap=COLOURS, vmin=0, vmax=1)
        axis.set_title(f"m = {m}", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    above.colorbar(picture, ax=axes, shrink=0.8, label="coverage")
    axis = below.subplots()
    axis.plot(range(1, len(covered) + 1), covered.mean((1, 2)), "o-", color=AFTER, markersize=4)
    axis.set(xlabel="queries m", ylabel="coverage, mean over patches", ylim=(0, 1.02))
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(num_visual_tokens), [str(m) for m in num_visual_tokens])
    axis.grid(alpha=0.3)
    return figure


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
    """
    steps = largest_changes(probabilities, count)
    num_rows = (len(steps) + 1) // 2
    rows = max(len(step) for step in steps)
    figure = new_figure(0.7 + num_rows * (0.85 + 0.24 * rows))
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(num_rows, min(2, len(steps)), squeeze=False).flat
    for index, (step, axis) in enumerate(zip(steps, axes)):
        moves = (probabilities[index + 1] - probabilities[index]).abs()
        order = sorted(token for token in step if token == step[0] or moves[token] >= VISIBLE)
        before, after = (probabilities[i, order].float().cpu().numpy() for i in (index, index + 1))
        places = range(len(order))
        axis.hlines(places, before, after, color="#999999", linewidth=2, zorder=1)
        axis.scatter(before, places, color=BEFORE, marker="o", s=36, zorder=2, label="at the lower m")
        axis.scatter(after, places, color=AFTER, marker="D", s=36, zorder=3, label="at the higher m")
        axis.set_yticks(places, [f"{tokens[token] or '␣'}  ({token})" for token in order], fontsize=9)
        axis.set(xlim=(-0.03, 1.03), ylim=(len(order) - 0.4, -0.6))
        axis.set_title(f"m = {num_visual_tokens[index]} to {num_visual_tokens[index + 1]}", fontsize=10)
        axis.set_xlabel("probability", fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes:  # the panel that is left over
        axis.axis("off")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, fontsize=9)
    return figure
