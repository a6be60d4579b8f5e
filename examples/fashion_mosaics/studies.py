"""What the studies compare_*.py share: many models, trained and measured by other scripts, some at the same time."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
import transformers
from mosaics import DATASET_FOLDER

from mqt_llava.files.json_lines import append_json_lines, read_json_lines


HERE = Path(__file__).parent


def study_parser(description: str, output: str, seeds: list[int], mosaics: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--variants", nargs="+", help="of those in this script, all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--mosaics", type=int, default=mosaics, help="held-out mosaics per model")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at the same time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-folder", default=DATASET_FOLDER, help="folder with Fashion-MNIST's four files")
    return parser


def train_and_evaluate(
    args: argparse.Namespace, folder: Path, script: str, flags: list, evaluation_flags: list
) -> tuple[dict, dict]:
    """
    Trains a model by a script and measures it by evaluate.py, or reads what an earlier call has measured of it.

    Returns:
        The trainer's last state and the figures of evaluate.py.
    """
    if not (folder / "evaluation.json").exists():
        shared = ["--data_folder", args.data_folder, "--disable_tqdm", "true"]
        shared += ["--use_cpu", "true"] if args.device == "cpu" else []
        call(script, ["--output_dir", folder, *shared, *flags], folder, args.threads)
    results = evaluate(args, folder, folder, evaluation_flags)
    # Some scripts save the last state, some checkpoints, which hold it too.
    states = [*folder.glob("trainer_state.json"), *folder.glob("checkpoint-*/trainer_state.json")]
    return json.loads(max(states, key=lambda path: path.stat().st_mtime).read_text()), results


def evaluate(args: argparse.Namespace, model: Path, folder: Path, flags: list) -> dict:
    """What evaluate.py measures of a model, or has measured; it stands in a folder of the study."""
    path = folder / "evaluation.json"
    if not path.exists():
        flags = [*flags, "--mosaics", args.mosaics, "--data-folder", args.data_folder, "--device", args.device]
        call("evaluate.py", [*flags, "--model", model, "--output", path], folder, args.threads)
    return json.loads(path.read_text())["results"]


def call(script: str, arguments: list, folder: Path, threads: int) -> None:
    """Runs a script of this folder, which logs to the model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    with open(folder / f"{script}.log", "a") as log:
        command = [sys.executable, HERE / script, *map(str, arguments)]
        subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)


def losses(state: dict) -> list[list[float]]:
    """Of a trainer's state: step and loss."""
    return [[entry["step"], round(float(entry["loss"]), 4)] for entry in state["log_history"] if "loss" in entry]


def run_all(args: argparse.Namespace, known: dict[str, list], run: Callable[[str, int], dict], **facts) -> None:
    """
    Every variant with every seed, all variants of one seed first. What is measured is added to `results.jsonl`; what
    is there, from another machine perhaps, is not repeated.

    Args:
        known: The variants by name.
        run: Of a name and a seed, what was measured.
        facts: Said of every run.
    """
    if unknown := sorted({*(args.variants or ())} - {*known}):
        sys.exit(f"--variants: there is no {', '.join(unknown)}, but {', '.join(known)}.")
    facts["mosaics"] = args.mosaics
    results = args.output / "results.jsonl"
    done, _ = read_json_lines(results)
    for line in done:
        if others := {name: line.get(name) for name, fact in facts.items() if line.get(name) != fact}:
            ours = {name: facts[name] for name in others}
            sys.exit(f"{results} is about {others}, but this call about {ours}: take another folder.")
        arguments = known.get(line["variant"])
        if line.get("arguments", arguments) != arguments:
            sys.exit(
                f"{results} has {line['variant']} by {line['arguments']}, which is not so here: take another folder."
            )
    finished = {(line["variant"], line["seed"]) for line in done}
    facts |= {
        "hardware": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    with ThreadPoolExecutor(args.jobs) as pool:
        left = [(name, seed) for seed in args.seeds for name in args.variants or known if (name, seed) not in finished]
        for future in as_completed([pool.submit(run, name, seed) for name, seed in left]):
            result = future.result()
            append_json_lines(results, [{**result, **facts}])
            print(result["variant"], result["seed"], flush=True)
