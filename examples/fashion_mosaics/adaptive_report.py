"""
Figures of what adaptive.py and promise.py have measured:

    python examples/fashion_mosaics/adaptive_report.py

Writes `docs/images/adaptive.png`, the judged half of the questions, and `docs/images/calibration.png`, the report of a
calibration with a promise.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from mqt_llava.planning import draw_report
from mqt_llava.planning.calibration_report import draw_curve
from mqt_llava.plotting import in_style, new_figure, save_figure


REPOSITORY = Path(__file__).parents[2]


@in_style
def draw_judged_half(results: dict) -> Figure:
    """All thresholds, the one that the other half chose, fixed numbers, and the oracle."""
    figure, judged = new_figure(4), results["judged"]
    axis = figure.subplots()
    draw_curve(axis, {**judged, "chosen": [results["mean_visual_tokens"], results["accuracy"]]})
    axis.set_title(f"{judged['questions']} questions of the judged half, which the calibration has not seen")
    axis.set_xlabel("visual tokens per question, mean")
    axis.set_ylabel("% of answers that are right")
    axis.legend(loc="lower right")
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    adaptive = REPOSITORY / "model_cards" / "mqt-llava-tiny" / "adaptive.json"
    calibration = REPOSITORY / "benchmarks" / "results" / "calibration.json"
    parser.add_argument("--adaptive", type=Path, default=adaptive, help="the JSON file of adaptive.py")
    parser.add_argument("--calibration", type=Path, default=calibration, help="that of promise.py --calibration")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "images")
    args = parser.parse_args(argv)
    save_figure(draw_judged_half(json.loads(args.adaptive.read_text())), args.output / "adaptive.png")
    save_figure(draw_report(json.loads(args.calibration.read_text())), args.output / "calibration.png")


if __name__ == "__main__":
    main()
