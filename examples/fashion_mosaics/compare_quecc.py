"""
A compressor that knows the question against one that does not, at 16, 4 and 1 visual tokens:

    python examples/fashion_mosaics/compare_quecc.py --output runs/compare-quecc --jobs 2

Trains and evaluates one elastic MQT and three QueCC (windows of 1, 2 and 4 patches) with every seed, each by
train_compressor.py and evaluate.py, and collects what they measured in `results.jsonl`; runs that are finished already
are not repeated. All start from the same vision tower and decoder and see the same conversations, ten minutes or so
each on one CPU core. `compare_quecc_report.py` makes the table and the figure.
"""

import argparse
import json
import os
import platform
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
import transformers
from compare import call
from mosaics import DATASET_FOLDER

from mqt_llava.files.json_lines import append_json_lines


VARIANTS = {
    "mqt": ["--compressor", "mqt"],
    "quecc_16": ["--compressor", "quecc", "--kernel_size", "1"],
    "quecc_4": ["--compressor", "quecc", "--kernel_size", "2"],
    "quecc_1": ["--compressor", "quecc", "--kernel_size", "4"],
}
KINDS = ("position", "row", "column", "presence", "most")


def run(name: str, seed: int, args: argparse.Namespace) -> dict:
    """Trains and evaluates one model, or reads what an earlier call measured of it."""
    folder = args.output / f"{name}-{seed}"
    evaluation = folder / "evaluation.json"
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "passive"}
    if not evaluation.exists():
        flags = ["--output_dir", folder, "--seed", seed, "--max_steps", args.steps]
        flags += ["--data_folder", args.data_folder, "--disable_tqdm", "true"]
        flags += ["--use_cpu", "true"] if args.device == "cpu" else []
        call("train_compressor.py", [*flags, *VARIANTS[name]], folder, environment)
        call(
            "evaluate.py",
            ["--model", folder, "--num-visual-tokens", 1, 4, 16, "--kinds", *KINDS, "--mosaics", args.mosaics]
            + ["--device", args.device, "--data-folder", args.data_folder, "--output", evaluation],
            folder,
            environment,
        )
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {
        "variant": name,
        "seed": seed,
        "steps": args.steps,
        "loss": [[entry["step"], round(float(entry["loss"]), 4)] for entry in history if "loss" in entry],
        "evaluation": json.loads(evaluation.read_text())["results"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/compare-quecc"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--mosaics", type=int, default=500, help="held-out mosaics per model")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at the same time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-folder", default=DATASET_FOLDER, help="folder with Fashion-MNIST's four files")
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    where = {
        "hardware": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    results = args.output / "results.jsonl"
    results.unlink(missing_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(run, name, seed, args) for seed in args.seeds for name in args.variants]
        for finished in as_completed(runs):
            result = finished.result()
            append_json_lines(results, [{**result, **where}])
            print(result["variant"], result["seed"], flush=True)


if __name__ == "__main__":
    main()
