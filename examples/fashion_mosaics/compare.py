"""
The paper's question at small scale: does one model for every number of visual tokens (MQT) keep up with models that
are each trained at one number (QT)?

    python examples/fashion_mosaics/compare.py --output runs/compare --jobs 1

Trains and evaluates every variant with every seed, each by train.py and evaluate.py, and collects what they measured
in `results.jsonl`; runs that are finished already are not repeated. On a GPU, `--jobs 8 --device cuda` trains several
models at once; on two CPU cores one model takes most of an hour. `compare_report.py` makes the table and the figure.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
import transformers
from mosaics import DATASET_FOLDER
from torch.utils.flop_counter import FlopCounterMode
from train import MosaicConversations, TinyTrainingArguments, build_model, build_processor, collator

from mqt_llava.files.json_lines import append_json_lines
from mqt_llava.training import MQTLlavaTrainer


HERE = Path(__file__).parent
BUDGETS = (1, 2, 4, 8, 16)


NESTED = "FixedBudget(1), FixedBudget(4), FixedBudget(16)"
SINGLE = "WeightedBudget({1: 1, 4: 1, 16: 1})"


def variants(fewer_steps: int) -> dict[str, list[str]]:
    """
    Arguments of train.py by name. All see the same mosaics in the same order.

    `mqt` is the recipe of the embedded checkpoint: all 16 visual tokens until single places are learned, then a random
    number. `qt_m` has m from the first step to the last. `single` draws one of three numbers for a batch,
    `nested_equal_compute` learns all three at once, for as many steps fewer as makes up for what that costs.

    Args:
        fewer_steps: Of `nested_equal_compute`.
    """
    return {
        "mqt": [],
        **{f"qt_{m}": ["--budget", f"FixedBudget({m})", "--early_budget", str(m)] for m in (1, 4, 16)},
        "single": ["--budget", SINGLE],
        "nested_equal_compute": ["--budget", NESTED, "--max_steps", str(fewer_steps)],
    }


def cost_of_nesting(data_folder: str) -> float:
    """FLOPs of a step with nested budgets, relative to the mean of those that draw one of them."""
    flops = []
    for budget in (NESTED, "FixedBudget(1)", "FixedBudget(4)", "FixedBudget(16)"):
        args = TinyTrainingArguments(budget=budget, position_steps=0, data_folder=data_folder, use_cpu=True)
        dataset = MosaicConversations(args)
        processor = build_processor(dataset)
        trainer = MQTLlavaTrainer(build_model(processor), args, collator(processor, args), train_dataset=dataset)
        batch = trainer.data_collator([dataset[index] for index in range(args.per_device_train_batch_size)])
        with FlopCounterMode(display=False) as counter:
            trainer.compute_loss(trainer.model, batch).backward()
        flops.append(counter.get_total_flops())
    return flops[0] / (sum(flops[1:]) / 3)


def run(name: str, seed: int, arguments: list[str], args: argparse.Namespace) -> dict:
    """Trains and evaluates one model, or reads what an earlier call measured of it."""
    folder = args.output / f"{name}-{seed}"
    evaluation = folder / "evaluation.json"
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "passive"}
    flags = ["--output_dir", folder, "--seed", seed, "--data_folder", args.data_folder, "--disable_tqdm", "true"]
    if args.device == "cpu":
        flags += ["--use_cpu", "true"]
    if not evaluation.exists():
        call("train.py", [*flags, *arguments, *args.train_flags], folder, environment)
        budgets = [name.rpartition("_")[2]] if "qt_" in name else BUDGETS
        call(
            "evaluate.py",
            ["--model", folder, "--num-visual-tokens", *budgets, "--mosaics", args.mosaics, "--device", args.device]
            + ["--data-folder", args.data_folder, "--output", evaluation],
            folder,
            environment,
        )
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    state = json.loads(states[-1].read_text())
    return {
        "variant": name,
        "seed": seed,
        "arguments": arguments,
        "steps": state["global_step"],
        "loss": [[entry["step"], round(entry["loss"], 4)] for entry in state["log_history"] if "loss" in entry],
        "evaluation": json.loads(evaluation.read_text())["results"],
    }


def call(script: str, arguments: list, folder: Path, environment: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{script}.log", "a") as log:
        subprocess.run(
            [sys.executable, HERE / script, *map(str, arguments)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/compare"))
    parser.add_argument("--variants", nargs="+", help="of those in `variants`, all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--mosaics", type=int, default=1000, help="held-out mosaics per model")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at the same time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-folder", default=DATASET_FOLDER, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--train-flags", nargs=argparse.REMAINDER, default=[], help="for train.py, to try things out")
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    cost = cost_of_nesting(args.data_folder)
    defaults = TinyTrainingArguments(use_cpu=True)
    fewer_steps = defaults.position_steps + round((defaults.max_steps - defaults.position_steps) / cost)
    known = variants(fewer_steps)
    where = {
        "hardware": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cost_of_nesting": cost,
    }
    results = args.output / "results.jsonl"
    results.unlink(missing_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [
            pool.submit(run, name, seed, known[name], args) for name in args.variants or known for seed in args.seeds
        ]
        for finished in as_completed(runs):
            result = finished.result()
            append_json_lines(results, [{**result, **where}])
            print(result["variant"], result["seed"], flush=True)


if __name__ == "__main__":
    main()
