"""
Draws every picture of docs/images again, but for demo_web.png, a photo of the browser:

    python figures/draw_all.py

Pictures of the embedded checkpoint are made with it. All else is drawn from what is committed: the JSON
files in benchmarks/results and model_cards, whose scripts say how they were measured, and published figures.
"""

import subprocess
import sys
from pathlib import Path


REPOSITORY = Path(__file__).parents[1]
COMMANDS = {
    "demo.png": "examples/answer_at_budgets.py --output docs/images/demo.png",
    "nested_tokens.png": "figures/nested_tokens.py",
    "published.png": "figures/published.py",
    "adaptive.png, calibration.png": "examples/fashion_mosaics/adaptive_report.py",
    "signals.png": "examples/fashion_mosaics/compare_signals_report.py",
    "sweep.png": "-m mqt_llava.evaluation.figure benchmarks/results/sweep.json docs/images/sweep.png",
    "mqt_vs_qt.png": "examples/fashion_mosaics/compare_report.py",
    "mqt_vs_quecc.png": "examples/fashion_mosaics/compare_quecc_report.py",
    "scaling_law.png": "examples/scaling_law/scaling_law_report.py",
    "endurance.png": "benchmarks/endurance_report.py benchmarks/results/endurance.jsonl "
    "--figure docs/images/endurance.png",
    "explain/": "examples/explain.py --output docs/images/explain",
}


def main() -> None:
    for pictures, command in COMMANDS.items():
        print(f"{pictures}: python {command}", flush=True)
        subprocess.run([sys.executable, *command.split()], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
