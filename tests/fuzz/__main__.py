"""The fuzzer's command line, see the package's docstring."""

import argparse
import secrets
import sys

import torch

from .planted import find_all
from .runner import Failure, quiet, run, run_case, show_failure, show_progress, summary
from .surfaces import SURFACES


def main(argv: list[str] | None = None) -> int:
    """0 where every call came to what the contract says, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, help="default: a random one, which is printed")
    parser.add_argument("--calls", type=int, default=20_000, help="default: %(default)s")
    parser.add_argument("--minutes", type=float, help="stop after this time at the latest")
    parser.add_argument("--surface", action="append", choices=SURFACES, help="default: all; can be repeated")
    parser.add_argument("--case", type=int, help="run this case of one surface alone")
    parser.add_argument("--planted", action="store_true", help="restore known bugs one by one and find them again")
    args = parser.parse_args(argv)
    if args.case is not None and (args.seed is None or len(args.surface or ()) != 1):
        parser.error("--case needs --seed and one --surface")
    torch.set_num_threads(1)
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    if args.case is not None:
        return run_one(args.surface[0], seed, args.case)
    if args.planted:
        print(f"seed {seed}", flush=True)
        return int(not find_all(seed, args.calls))
    print(f"seed {seed}, up to {args.calls} calls", flush=True)
    report = run(seed, args.calls, args.surface, args.minutes, show_progress)
    print(summary(report))
    return int(bool(report.failures))


def run_one(surface: str, seed: int, number: int) -> int:
    with quiet():
        outcomes, log = run_case(surface, seed, number)
    for call, outcome in enumerate(outcomes, 1):
        print(f"call {call}: {outcome.kind} {outcome.message}")
    if not outcomes or not outcomes[-1].is_failure:
        print(log)
        return 0
    print(show_failure(seed, Failure(surface, number, len(outcomes), outcomes[-1], log)))
    return 1


if __name__ == "__main__":
    sys.exit(main())
