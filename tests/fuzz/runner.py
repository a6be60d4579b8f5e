"""Runs cases, counts what they come to, and shows for every kind of failure the first case and how to run it again."""

import contextlib
import logging
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import torch

from .outcomes import KINDS, Outcome
from .surfaces import SURFACES


CALLS, MINUTES = "calls", "minutes"


@dataclass
class Failure:
    surface: str
    number: int
    call: int  # of the case's calls
    outcome: Outcome
    log: dict

    @property
    def signature(self) -> tuple[str, ...]:
        """Failures of one kind, whatever the numbers."""
        message = re.sub(r"'[^']*'|\"[^\"]*\"", "...", self.outcome.message)
        message = re.sub(r"[\[\](), \d.e+-]*\d[\[\](), \d.e+-]*", " N ", message)
        return self.surface, self.outcome.kind, str(self.log.get("group")), message[:80]


@dataclass
class Report:
    seed: int
    counts: Counter = field(default_factory=Counter)  # of (surface, kind)
    seconds: Counter = field(default_factory=Counter)  # by surface
    failures: list[Failure] = field(default_factory=list)

    @property
    def num_calls(self) -> int:
        return sum(self.counts.values())


def run_case(surface: str, seed: int, number: int) -> tuple[list[Outcome], dict]:
    """One case: its outcomes, call by call up to the first failure, and what was drawn."""
    log, outcomes = {}, []
    try:
        for outcome in SURFACES[surface].run_case(Random(f"{seed} {surface} {number}"), log):
            outcomes.append(outcome)
            if outcome.is_failure:
                break
    except Exception:  # of the fuzzer itself: shown like a failure, since a case that cannot be judged is none
        outcomes.append(Outcome("bad error", f"in the fuzzer: {traceback.format_exc()}"))
    return outcomes, log


@contextlib.contextmanager
def quiet():
    """Without the warnings of transformers and of Pillow about what is tried here on purpose."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def run(
    seed: int,
    calls: int,
    surfaces: list[str] | None = None,
    minutes: float | None = None,
    progress: Callable[[Report], None] | None = None,
    until: Callable[[Failure], bool] | None = None,
) -> Report:
    """
    Runs cases of all surfaces in turn, so that wherever it stops each has had its share.

    Args:
        calls: How many to make; a conversation of three turns is three.
        surfaces: Names, all by default.
        minutes: When to stop at the latest.
        progress: Called now and then.
        until: Whether a failure is what was looked for, and ends the run.
    """
    report, start, numbers, shown = Report(seed), time.monotonic(), Counter(), 0.0
    order = [name for name in surfaces or SURFACES for _ in range(SURFACES[name].share)]
    Random(seed).shuffle(order)
    with quiet():
        while True:
            for surface in order:
                now = time.monotonic()
                if report.num_calls >= calls or (minutes is not None and now - start > 60 * minutes):
                    return report
                if progress is not None and now - shown > 2:
                    progress(report)
                    shown = now
                outcomes, log = run_case(surface, seed, numbers[surface])
                report.counts.update((surface, outcome.kind) for outcome in outcomes)
                report.seconds[surface] += time.monotonic() - now
                if outcomes and outcomes[-1].is_failure:
                    report.failures.append(Failure(surface, numbers[surface], len(outcomes), outcomes[-1], log))
                    if until is not None and until(report.failures[-1]):
                        return report
                numbers[surface] += 1


def show_progress(report: Report) -> None:
    if sys.stderr.isatty():
        failed = len(report.failures)
        print(f"\r{report.num_calls:>6} calls, {failed} failures", end="", file=sys.stderr, flush=True)


def show_failure(seed: int, failure: Failure) -> str:
    outcome = failure.outcome
    message = " ".join(outcome.message.split())[:800]
    lines = [f"{outcome.kind.upper()} in {failure.surface}, call {failure.call}: {message}"]
    lines += [f"    {key}: {str(value)[:600]}" for key, value in failure.log.items()]
    lines.append(f"    again: --surface {failure.surface} --seed {seed} --case {failure.number}")
    return "\n".join(lines)


def summary(report: Report) -> str:
    """A table of outcomes by surface, and the first failure of each kind."""
    lines = []
    groups: dict = {}
    for failure in report.failures:
        groups.setdefault(failure.signature, []).append(failure)
    for failures in sorted(groups.values(), key=len, reverse=True):
        lines += [show_failure(report.seed, failures[0]), f"    {len(failures)} such failures", ""]
    lines.append(f"{'surface':<12}" + "".join(f"{kind:>11}" for kind in KINDS) + f"{'calls':>9}{'seconds':>9}")
    for surface in [*sorted({surface for surface, _ in report.counts}), "all"]:
        counts = [
            sum(n for (name, which), n in report.counts.items() if which == kind and surface in (name, "all"))
            for kind in KINDS
        ]
        seconds = sum(report.seconds.values()) if surface == "all" else report.seconds[surface]
        numbers = "".join(f"{count:>11}" for count in counts)
        lines.append(f"{surface:<12}{numbers}{sum(counts):>9}{seconds:>9.1f}")
    return "\n".join(lines)
