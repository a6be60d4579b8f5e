"""
What the benchmarks share: their command line, the machine and its load, turns and ratios, tables and files.

What is compared takes turns: a round makes every call once, in random order, so that all meet the same load. Times are
medians over the rounds; a ratio is that of two medians, beside the least and greatest ratio of one round, which show
the noise. A result is a JSON file that names machine, load and versions, with its tables in Markdown beside it.
"""

import argparse
import json
import os
import platform
import random
import re
import time
from collections.abc import Callable, Hashable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TypeVar


Name, Value = TypeVar("Name", bound=Hashable), TypeVar("Value")
REPOSITORY = Path(__file__).parents[1]
SEED = 0


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


ARGUMENTS = {
    "size": {"help": "of the models"},
    "rounds": {"type": at_least_one, "help": "in each of which every call has its turn"},
    "threads": {"type": at_least_one, "help": "of the CPU; by default as many as torch takes"},
    "dtype": {"choices": ("float32", "bfloat16")},
    "device": {"choices": ("cpu", "cuda"), "default": "cpu"},
    "output": {"type": Path, "help": "JSON file for the figures; the tables go beside it"},
}


def command_line(description: str, **arguments: dict) -> argparse.ArgumentParser:
    """
    A parser of `--output` and of those [`ARGUMENTS`] that are named.

    Args:
        description: The script's docstring.
        arguments: By name, what `add_argument` is told differently here, such as a default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, own in ({"output": {}} | arguments).items():
        parser.add_argument(f"--{name}", **ARGUMENTS[name] | own)
    return parser


def load_average() -> float:
    return round(os.getloadavg()[0], 2)


def machine(*packages: str) -> dict:
    """Processor, what else runs on it, and the versions of packages."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return {
        "cpu": f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores",
        "load_average_before": load_average(),
        **{package: version(package) for package in packages},
    }


def begin(args: argparse.Namespace, **settings) -> dict:
    """
    The head of a result that is measured with torch in this process, whose seed and threads are set here.

    Args:
        args: What was parsed; those of [`ARGUMENTS`] are noted.
        settings: What else is noted.
    """
    import torch  # not before the arguments are known to be good

    torch.manual_seed(SEED)
    chosen = {name: value for name, value in vars(args).items() if name in ARGUMENTS and name != "output"}
    if chosen.get("threads"):
        torch.set_num_threads(chosen["threads"])
    return {
        **chosen, **machine("torch", "transformers"), "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if chosen.get("device") == "cuda" else None, "seed": SEED, **settings,
    }  # fmt: skip


def synchronize(device: str) -> None:
    """Waits for what a GPU was asked to do: calls return before it is done."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def time_call(function: Callable, device: str = "cpu") -> float:
    """Seconds, to the microsecond."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return round(time.perf_counter() - start, 6)


def take_turns(calls: Mapping[Name, Callable[[], Value]], rounds: int, rng: random.Random) -> dict[Name, list[Value]]:
    """What each call returns in each round."""
    returned = {name: [] for name in calls}
    for _ in range(rounds):
        for name in rng.sample(list(calls), len(calls)):
            returned[name].append(calls[name]())
    return returned


def compare(name: str, numerator: list[float], denominator: list[float]) -> dict:
    """The ratio of the medians, and under `{name}_by_round` the least and greatest ratio of one round."""
    by_round = [a / b for a, b in zip(numerator, denominator)]
    return {name: median(numerator) / median(denominator), f"{name}_by_round": [min(by_round), max(by_round)]}


def spread(row: dict, name: str, digits: int = 3) -> str:
    """What [`compare`] found, for a table."""
    least, greatest = row[f"{name}_by_round"]
    return f"{row[name]:.{digits}f} ({least:.{digits}f} to {greatest:.{digits}f})"


def table(head: str, lines: list[str]) -> str:
    """A table in Markdown of a head and lines, whose cells stand between ` | `."""
    return "\n".join(f"| {line} |" for line in (head, " | ".join(["---"] * (head.count("|") + 1)), *lines))


def save(result: dict, output: Path | None, markdown: str) -> None:
    """Writes what there is so far, where there is a file to write to."""
    result["load_average_after"] = load_average()
    if output is not None:
        from mqt_llava.files.atomic_file import write_atomically  # not on top: `--help` need not wait for torch

        write_atomically(output, json.dumps(result, indent=1) + "\n")
        write_atomically(output.with_suffix(".md"), markdown + "\n")
