"""What a calibration found, for a person to read: a dict that goes into JSON, and a figure of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.atomic_file import write_atomically
from ..plotting import BLUE, GREEN, INK, ORANGE, in_style, new_figure, save_figure, visual_token_axis
from .calibration import Calibration, Point


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 200  # of the curve
Y_LABELS = {"answers at M": "% of answers as with all visual tokens", "right answers": "% of answers that are right"}


def to_pair(point: Point) -> list[float]:
    return [round(point.mean_tokens, 3), round(point.accuracy, 4)]


def report_calibration(calibration: Calibration) -> dict[str, Any]:
    """
    Args:
        calibration: Of [`calibrate`].

    Returns:
        `budget`, with its `promise`, and `num_missing` prompts for one; `chosen`, the `curve` of all thresholds,
        `fixed` numbers and the `oracle` as pairs of mean visual tokens and the share that agrees with the `reference`;
        `share_at_levels`, the share of prompts that stop at each; and `too_early`, the prompts whose answer is worse
        than at M.
    """
    budget = calibration.budget
    assert budget is not None, "a calibration has a budget"
    stops = calibration.stops_of(budget)
    too_early, curve = calibration.is_too_early(stops).nonzero().flatten().tolist(), calibration.curve()
    return {
        "budget": budget.to_dict(),
        "reference": calibration.reference,
        "num_missing": calibration.num_missing,
        "num_prompts": len(stops),
        "chosen": to_pair(calibration.point(stops)),
        "curve": [to_pair(point) for point in curve[:: max(1, len(curve) // MOST_POINTS)]],
        "fixed": [to_pair(point) for point in calibration.at_levels()],
        "oracle": to_pair(calibration.oracle()),
        "share_at_levels": {
            str(level): (stops == index).float().mean().item() for index, level in enumerate(calibration.levels)
        },
        "too_early": [
            {
                "id": calibration.ids[row],
                "level": calibration.levels[stops[row]],
                "confidence": calibration.confidence[row, stops[row]].item(),
                "answer": calibration.texts[row][stops[row]],
                "answer_at_max": calibration.texts[row][-1],
            }
            for row in too_early
        ],
    }


@in_style
def draw_report(found: dict[str, Any]) -> Figure:
    """
    The curve with the point that was chosen, and how many prompts stop at each level.

    Args:
        found: Of [`report_calibration`].

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(4)
    axis, levels = figure.subplots(1, 2, width_ratios=(2, 1))
    draw_curve(axis, found)
    promise, missing = found["budget"]["promise"], found["num_missing"]
    if promise:
        axis.axhline(100 * (1 - promise["risk"]), color=INK, linestyle=":", linewidth=1, label="promised")
        title = f"promised: at most {promise['risk']:.2%} differ, with confidence {promise['confidence']:.1%}"
    else:
        title = f"nothing promised; about {missing} more prompts might do" if missing else "nothing promised"
    axis.set_title(title)
    axis.set_xlabel("visual tokens per prompt, mean")
    axis.set_ylabel(Y_LABELS[found["reference"]])
    axis.legend(loc="lower right")

    shares = found["share_at_levels"]
    bars = levels.bar(list(shares), [100 * share for share in shares.values()], color=BLUE)
    levels.bar_label(bars, fmt="%.1f%%")
    levels.margins(y=0.1)
    levels.grid(axis="x", visible=False)
    levels.set_title(f"{found['num_prompts']} prompts, {len(found['too_early'])} stopped too early")
    levels.set_xlabel("visual tokens of a prompt")
    levels.set_ylabel("% of the prompts")
    return figure


def draw_curve(axis: Axes, found: dict[str, Any]) -> None:
    """
    Accuracy against mean visual tokens.

    Args:
        found: `curve`, `chosen`, `fixed` and `oracle` as [`report_calibration`] gives them.
    """

    def plot(points: list, style: str, **how: Any) -> None:
        axis.plot([tokens for tokens, _ in points], [100 * accuracy for _, accuracy in points], style, **how)

    plot(found["curve"], "-", color=BLUE, label="adaptive, one point for each threshold")
    tokens, accuracy = found["chosen"]
    label = f"adaptive, as chosen: {tokens:.2f} tokens, {accuracy:.2%}"
    plot([found["chosen"]], "o", color=BLUE, markersize=9, label=label)
    plot(found["fixed"], "s--", color=ORANGE, label="the same number of tokens for all")
    label = "oracle, which knows the best level of each"
    plot([found["oracle"]], "*", color=GREEN, markersize=12, label=label)
    visual_token_axis(axis, [int(number) for number, _ in found["fixed"]])
    axis.margins(y=0.12)


def save_report(calibration: Calibration, folder: str | Path) -> None:
    """
    Writes `calibration.json` and `calibration.png`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    found, folder = report_calibration(calibration), Path(folder)
    figure = draw_report(found)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "calibration.json", json.dumps(found, indent=1) + "\n")
    save_figure(figure, folder / "calibration.png")
