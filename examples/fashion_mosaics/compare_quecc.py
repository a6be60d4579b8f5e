"""
A compressor that knows the question against one that does not, at 16, 4 and 1 visual tokens:

    python examples/fashion_mosaics/compare_quecc.py --output runs/compare-quecc --jobs 2

Trains and evaluates one elastic MQT and three QueCC (windows of 1, 2 and 4 patches) with every seed, each by
train_compressor.py and evaluate.py, and collects what they measured in `results.jsonl`; runs that are finished already
are not repeated. All start from the same vision tower and decoder and see the same conversations, ten minutes or so
each on one CPU core. `compare_quecc_report.py` makes the table and the figure.
"""

from studies import losses, run_all, study_parser, train_and_evaluate


VARIANTS = {
    "mqt": ["--compressor", "mqt"],
    "quecc_16": ["--compressor", "quecc", "--kernel_size", "1"],
    "quecc_4": ["--compressor", "quecc", "--kernel_size", "2"],
    "quecc_1": ["--compressor", "quecc", "--kernel_size", "4"],
}
KINDS = ("position", "row", "column", "presence", "most")


def main():
    parser = study_parser(__doc__, "runs/compare-quecc", seeds=[0, 1, 2], mosaics=500)
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()

    def run(name: str, seed: int) -> dict:
        state, evaluation = train_and_evaluate(
            args,
            args.output / f"{name}-{seed}",
            "train_compressor.py",
            ["--seed", seed, "--max_steps", args.steps, *VARIANTS[name]],
            ["--num-visual-tokens", 1, 4, 16, "--kinds", *KINDS],
        )
        return {
            "variant": name,
            "seed": seed,
            "steps": args.steps,
            "loss": losses(state),
            "evaluation": evaluation,
        }

    run_all(args, VARIANTS, run)


if __name__ == "__main__":
    main()
