"""
The paper's question at small scale: does one model for every number of visual tokens (MQT) keep up with models that
are each trained at one number (QT)?

    python examples/fashion_mosaics/compare.py --output runs/compare --jobs 1

Trains and evaluates every variant with every seed, each by train.py and evaluate.py, and collects what they measured
in `results.jsonl`; runs that are finished already are not repeated. On a GPU, `--jobs 8 --device cuda` trains several
models at once; on two CPU cores one model takes most of an hour. `compare_report.py` makes the table and the figure.
"""

import argparse

from studies import losses, run_all, study_parser, train_and_evaluate
from torch.utils.flop_counter import FlopCounterMode
from train import MosaicConversations, TinyTrainingArguments, build_model, build_processor, collator

from mqt_llava.training import MQTLlavaTrainer


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


def main():
    parser = study_parser(__doc__, "runs/compare", seeds=[0, 1, 2], mosaics=1000)
    parser.add_argument("--train-flags", nargs=argparse.REMAINDER, default=[], help="for train.py, to try things out")
    args = parser.parse_args()
    cost = cost_of_nesting(args.data_folder)
    defaults = TinyTrainingArguments(use_cpu=True)
    known = variants(defaults.position_steps + round((defaults.max_steps - defaults.position_steps) / cost))

    def run(name: str, seed: int) -> dict:
        budgets = [name.rpartition("_")[2]] if "qt_" in name else BUDGETS
        state, evaluation = train_and_evaluate(
            args,
            args.output / f"{name}-{seed}",
            "train.py",
            ["--seed", seed, *known[name], *args.train_flags],
            ["--num-visual-tokens", *budgets],
        )
        return {
            "variant": name,
            "seed": seed,
            "arguments": known[name],
            "steps": state["global_step"],
            "loss": losses(state),
            "evaluation": evaluation,
        }

    run_all(args, known, run, cost_of_nesting=cost)


if __name__ == "__main__":
    main()
