"""
The diagram of nested visual tokens: image, vision tower, query transformer, the first m of M tokens, language model.

    python figures/nested_tokens.py
"""

import argparse
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from PIL import Image

from mqt_llava.plotting import BLUE, GRAY, INK, ORANGE, SKY, in_style, new_figure, save_figure


REPOSITORY = Path(__file__).parents[1]
SHOWN, CHOSEN = 8, 4  # tokens of which the first few are taken
SIZE, PITCH, FIRST, MIDDLE = 2.2, 3.4, 49.5, 17  # of the tokens' squares: size, distance, left edge, height


def box(axis: Axes, left: float, text: str) -> None:
    axis.add_patch(
        FancyBboxPatch((left, 12), 11, 10, boxstyle="round,pad=0,rounding_size=1", facecolor="#EEF5FA", edgecolor=BLUE)
    )
    axis.text(left + 5.5, MIDDLE, text, ha="center", va="center")


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0})


def draw_tokens(axis: Axes) -> None:
    """The chosen ones full, the others dashed; around the first 1, 2, 4 and 8 of them a frame in a frame."""
    for number in range(SHOWN):
        style = {"facecolor": BLUE, "edgecolor": BLUE} if number < CHOSEN else {"facecolor": "white", "linestyle": ":"}
        left = FIRST + number * PITCH
        axis.add_patch(Rectangle((left, MIDDLE - SIZE / 2), SIZE, SIZE, **{"edgecolor": GRAY, **style}))
    for depth, count in enumerate((1, 2, 4, 8)):
        pad = 0.6 + 0.7 * depth
        corner, width = (FIRST - pad, MIDDLE - SIZE / 2 - pad), SIZE + (count - 1) * PITCH + pad + 0.6
        shape = "round,pad=0,rounding_size=0.6"
        color = BLUE if count == CHOSEN else SKY
        axis.add_patch(
            FancyBboxPatch(corner, width, SIZE + 2 * pad, boxstyle=shape, facecolor="none", edgecolor=color)
        )
        label = {1: "m = 1", SHOWN: "M"}.get(count, str(count))
        x, weight = FIRST + SIZE / 2 + (count - 1) * PITCH, "bold" if count == CHOSEN else "normal"
        axis.text(x, MIDDLE + 4.6, label, ha="center", fontsize=9, color=INK, weight=weight)


@in_style
def draw(image: Image.Image) -> Figure:
    figure = new_figure(3.1)
    axis = figure.subplots()
    axis.set(xlim=(0, 95), ylim=(1, 33), aspect="equal")
    axis.set_axis_off()
    axis.imshow(image, extent=(1, 15, 10, 24), zorder=2)
    axis.text(8, 25.2, "image", ha="center")
    for left, text in ((18.5, "vision\ntower"), (33, "query\ntransformer"), (81, "language\nmodel")):
        box(axis, left, text)
    for start, end in ((15.3, 18.2), (29.8, 32.7), (44.3, 46.6), (77, 80.7)):
        arrow(axis, (start, MIDDLE), (end, MIDDLE))
    for number in range(SHOWN):
        axis.add_patch(Circle((34.1 + 1.25 * number, 27), 0.45, color=ORANGE))
    axis.text(38.5, 29, "M learned queries", ha="center")
    arrow(axis, (38.5, 26), (38.5, 22.3))
    draw_tokens(axis)
    axis.text(62, 25.2, "nested visual tokens", ha="center")
    words = f"Any m works (here {CHOSEN}): the first m tokens\nare the same whatever m is."
    axis.text(62, 10.4, words, ha="center", va="top", fontsize=9)
    axis.text(86.5, 6, "What is in\nthe top right?", ha="center", va="top", fontsize=9)
    arrow(axis, (86.5, 6.6), (86.5, 11.7))
    axis.text(86.5, 28, "coat", ha="center", fontsize=9)
    arrow(axis, (86.5, 22.3), (86.5, 27.4))
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "images" / "nested_tokens.png")
    args = parser.parse_args(argv)
    with Image.open(REPOSITORY / "examples" / "images" / "mosaic_0.png") as image:
        save_figure(draw(image.convert("RGB")), args.output)


if __name__ == "__main__":
    main()
