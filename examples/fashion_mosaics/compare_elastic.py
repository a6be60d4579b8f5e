"""
Which way of making a LLaVA elastic loses least at few visual tokens?

    python examples/fashion_mosaics/compare_elastic.py --output runs/compare-elastic --seeds 1

Trains and evaluates every variant with every seed, each by train_elastic.py and evaluate.py, all with the same FLOPs:
a share of what the LLaVA's own training took. Collects what they measured in `results.jsonl`; runs that are finished
already are not repeated, and those that were stopped go on.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from compressors import CLASSES
from studies import evaluate, losses, run_all, study_parser, train_and_evaluate
from torch.utils.flop_counter import FlopCounterMode
from train import MOSTLY_POWERS
from train_elastic import ElasticTrainingArguments, build_trainers
from train_llava import LlavaTrainingArguments
from train_llava import build_trainer as build_llava_trainer
from transformers import HfArgumentParser

from mqt_llava.files.atomic_file import write_atomically


ONE_AT_A_TIME = Lock()  # `from_pretrained` puts all threads' new parameters on one device
LLAVA = Path(__file__).parents[2] / "model_cards" / "llava-tiny"
BUDGETS = (1, 2, 4, 8, 16)
SQUARES = (1, 4, 16)
EARLY = ["--early_share", 0.38]  # at M at first, as in train.py
SCRATCH = ["--from_scratch", "true", "--trained_parts", "vision_tower", "resampler", "language_model"]
SCRATCH += ["--list_share", 0.06, *EARLY]
KL = ["--distillation", "llava"]
FIT = [*KL, "--fit_steps", 600]
COARSE = [*FIT, "--fit_order", "coarse_to_fine"]
UNIFORM, LOG, POWERS = ["--budget", "UniformBudget(1, 16)"], ["--budget", "LogBudget(16)"], ["--budget", MOSTLY_POWERS]
SANDWICH = ["--budget", "FixedBudget(1), UniformBudget(2, 15), FixedBudget(16)"]
SQUARE = ["--budget", "WeightedBudget({1: 1, 4: 1, 16: 1})"]
NESTED = ["--fit_steps", 2400, "--fit_levels", 4, 8]
MOSTLY_LARGE = ["--budget", "WeightedBudget({1: 1, 2: 1, 4: 3, 8: 3, 16: 3})"]
# Arguments of train_elastic.py by name. From `labels` to `fit_labels`, each changes one thing of another.
VARIANTS = {
    "llava": [],  # the teacher itself; a seed draws other mosaics to judge all by
    "scratch": [*SCRATCH, *UNIFORM],
    "scratch_whole": [*SCRATCH, *UNIFORM],  # with the FLOPs of the LLaVA's own training besides
    "labels": UNIFORM,
    "kl": [*KL, *UNIFORM],
    "kl_alone": [*KL, "--cross_entropy_weight", 0, *UNIFORM],
    "fit": [*FIT, *UNIFORM],
    "fit_early": [*FIT, *UNIFORM, *EARLY],
    "coarse": [*COARSE, *UNIFORM],
    "fit_log": [*FIT, *LOG],
    "fit_powers": [*FIT, *POWERS],
    "fit_squares": [*FIT, *SQUARE],
    "fit_labels": ["--fit_steps", 600, *POWERS],  # `fit_powers` without the teacher
    "nested": [*NESTED, *MOSTLY_LARGE],
    "no_levels": ["--fit_steps", 2400, *MOSTLY_LARGE],
    "nested_stable": [*NESTED, *MOSTLY_LARGE, "--lr_scheduler_type", "warmup_stable_decay"],
    "nested_kl": [*NESTED, *MOSTLY_LARGE, *KL],
    "fit_sandwich": [*FIT, *SANDWICH],
    "fit_sandwich_self": [*FIT, *SANDWICH, "--distillation", "self"],
    # As `nested`, but for one number of tokens alone.
    **{f"qt_{m}": [*NESTED, "--budget", f"FixedBudget({m})"] for m in SQUARES},
    "average_pooling": [*KL, "--compressor", "average_pooling", *SQUARE],
    "scaled_image": [*KL, "--compressor", "scaled_image", *SQUARE],
}


def flops(trainer, *models, num_batches: int = 16, batch_size: int = 16) -> float:
    """
    Of the whole training, forward and backward, as FlopCounterMode counts them: from batches of fewer conversations,
    spread over its steps.

    Args:
        models: That are run. Their attention is counted where it is plain products.
    """
    for model in models:
        model.set_attn_implementation("eager")
    args, dataset = trainer.args, trainer.train_dataset
    with FlopCounterMode(display=False) as counter:
        for number in range(num_batches):
            start = number * args.max_steps // num_batches * args.train_batch_size
            batch = trainer.data_collator([dataset[index] for index in range(start, start + batch_size)])
            trainer.compute_loss(trainer.model, batch).backward()
    return counter.get_total_flops() / num_batches * args.train_batch_size / batch_size * args.max_steps


def parse(arguments_class, flags: list):
    (args,) = HfArgumentParser(arguments_class).parse_args_into_dataclasses(list(map(str, flags)))
    return args


def count(own: list) -> dict[str, float]:
    """FLOPs of a variant's stage 0, and of a step of what follows."""
    args = parse(ElasticTrainingArguments, [*own, "--max_steps", 1600])
    first, build_trainer = build_trainers(args)
    fit = flops(first, first.model.teacher.base) if first else 0
    trainer = build_trainer()
    models = [trainer.model] if trainer.teacher is None else [trainer.model, trainer.teacher.llava]
    return {"fit_flops": fit, "step_flops": flops(trainer, *models) / args.max_steps}


def kept(path: Path, key: dict, make: Callable[[], dict]) -> dict:
    """What was made for a key, out of a file or into it."""
    with ONE_AT_A_TIME:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"key": key, **make()}))
    found = json.loads(path.read_text())
    if found["key"] != key:
        sys.exit(f"{path} is about {found['key']}, but this call about {key}: take another folder.")
    return found


def main():
    parser = study_parser(__doc__, "runs/compare-elastic", seeds=[1, 2, 3, 4, 5], mosaics=500)
    parser.add_argument("--llava", type=Path, default=LLAVA, help="what train_llava.py has trained")
    parser.add_argument("--share", type=float, default=0.2, help="FLOPs of a training, of those of the LLaVA's")
    parser.add_argument(
        "--counts", type=Path, default=Path("runs/flops"), help="folder for what was counted, at any share"
    )
    parser.add_argument("--train-flags", nargs=argparse.REMAINDER, default=[], help="for both train_*.py")
    args = parser.parse_args()

    flags = ["--use_cpu", "true"] if args.device == "cpu" else []
    flags += ["--data_folder", args.data_folder, *args.train_flags]

    def whole_training() -> dict[str, float]:
        trainer = build_llava_trainer(parse(LlavaTrainingArguments, flags))
        return {"flops": flops(trainer, trainer.model)}

    llava = {"llava": str(args.llava)}
    kept(args.output / "study.json", {**llava, "share": args.share}, dict)
    whole = kept(args.counts / "llava.json", {**llava, "arguments": flags}, whole_training)["flops"]

    def run(name: str, seed: int) -> dict:
        if name == "llava":
            folder = args.output / f"{name}-{seed}"
            return {"variant": name, "seed": seed, "evaluation": evaluate(args, args.llava, folder, ["--seed", seed])}
        own = [*flags, "--llava", str(args.llava), *VARIANTS[name]]
        counted = kept(args.counts / f"{name}.json", {"arguments": list(map(str, own))}, lambda: count(own))
        total = (args.share + (name == "scratch_whole")) * whole
        steps = int((total - counted["fit_flops"]) / counted["step_flops"])
        if steps < 1:
            sys.exit(f"--share: {name} would not make a step beside its stage 0.")
        folder = args.output / f"{name}-{seed}"
        budgets = [name.removeprefix("qt_")] if name.startswith("qt_") else BUDGETS
        compressor = ["--compressor", name] if name in CLASSES else []
        state, evaluation = train_and_evaluate(
            args,
            folder,
            "train_elastic.py",
            ["--seed", seed, *own, "--max_steps", steps],
            ["--seed", seed, "--num-visual-tokens", *(SQUARES if compressor else budgets), *compressor],
        )
        return {
            "variant": name,
            "seed": seed,
            "arguments": VARIANTS[name],
            "steps": state["global_step"],
            "fit_flops": counted["fit_flops"],
            "flops": state["global_step"] * counted["step_flops"],
            "loss": losses(state),
            "evaluation": evaluation,
        }

    run_all(args, VARIANTS, run, share=args.share, llava_flops=whole)


if __name__ == "__main__":
    main()
