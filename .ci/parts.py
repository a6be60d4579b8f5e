"""
Runs the parts that a change must pass, two at a time where memory holds both, and prints the output of each in one
piece. The last lines are a table of what passed, what failed, and what could not run and why. A part fails, too, when
its processes hold more memory than it says: the part beside it would run out. All stop when the disk is nearly full,
for what fails then tells nothing.

    .ci/run [PART ...]
    python .ci/parts.py --names      as JSON, for the workflow
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Part:
    name: str
    gigabytes: int  # that its processes may hold at once
    command: str
    decides: bool = True


NOX = ".venv/bin/nox -s"
A_FEW = "-m pytest tests/integration/test_golden.py tests/integration/test_hub.py"
CHEAP = "-m pytest -m 'not slow and not costly' -n logical --maxprocesses 4"
CHROMIUM = "command -v chromium google-chrome || { apt-get update -q && apt-get install -qy chromium; }"
PARTS = [  # the longest first
    Part("test", 8, "make test"),
    # `test` runs the costly ones.
    Part("oldest", 8, f"{NOX} oldest-3.10 -- {CHEAP}"),
    Part("vllm", 10, f"{NOX} vllm"),
    Part("slow", 10, "OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m slow"),
    # What depends on the version of Python itself.
    Part("python-3.13", 8, f"{NOX} tests-3.13 -- {CHEAP} tests/conversion tests/files tests/planning"),
    Part("python-3.12", 8, f"{NOX} tests-3.12 -- {A_FEW}"),
    Part("lmms_eval", 8, f"{NOX} lmms_eval"),
    # With a random seed: what that finds was there before, so it is reported. The fixed seed, in `test`, decides.
    Part("fuzz", 4, "make fuzz MINUTES=3", decides=False),
    Part("browser", 8, f"{CHROMIUM}; {NOX} browser"),
    Part("torchao", 4, f"{NOX} torchao"),
    Part("lint", 4, "make lint"),
    Part("docs", 2, "make docs"),
]
AT_ONCE = 2
ENVIRONMENT = {**os.environ, "PYTEST_XDIST_AUTO_NUM_WORKERS": str(max(1, os.cpu_count() // AT_ONCE))}
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
LEAST_DISK = 2  # gigabytes that stay free


def gigabytes_free() -> float:
    """Of the disks of this folder and of temporary files, the fuller one's."""
    return min(shutil.disk_usage(folder).free for folder in (".", tempfile.gettempdir())) / 2**30


def gigabytes_held(part: Part) -> float:
    """By all processes of a part, those whose parent has ended among them. What they share counts once."""
    kilobytes = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"CI_PART={part.name}".encode() in (process / "environ").read_bytes().split(b"\0"):
                (size,) = re.findall(r"^Pss: +(\d+) kB$", (process / "smaps_rollup").read_text(), re.MULTILINE)
                kilobytes += int(size)
        except OSError:
            pass  # it has ended
    return kilobytes / 2**20


class Run:
    """A part that runs."""

    def __init__(self, part: Part):
        print(f"{part.name} starts", flush=True)
        self.part, self.start = part, time.monotonic()
        self.peak = 0.0  # gigabytes
        self.file = tempfile.TemporaryFile("w+", errors="replace")
        self.process = subprocess.Popen(
            part.command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=self.file,
            stderr=self.file,
            env={**ENVIRONMENT, "CI_PART": part.name},
            start_new_session=True,
        )

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        print(f"{self.part.name}: stopped")

    def ended(self) -> bool:
        self.peak = max(self.peak, gigabytes_held(self.part))
        return self.process.poll() is not None

    def report(self) -> tuple[str, str]:
        """Prints its output. What became of it, and why."""
        minutes = (time.monotonic() - self.start) / 60
        self.file.seek(0)
        output = self.file.read()
        state, reason = "passed", ""
        if self.process.returncode:
            state = "FAILED" if self.part.decides else "found something, which does not stop a change"
        elif self.peak > self.part.gigabytes:
            state, reason = "FAILED", f": it may hold {self.part.gigabytes} GB"
        elif skipped := re.search(r"Session \S+ skipped: (.*)", output):
            state, reason = "COULD NOT RUN", f": {skipped[1].strip()}"
        print(f"\n===== {self.part.name}: {self.part.command}\n{output}===== {self.part.name}: {state}\n", flush=True)
        return state, f"{minutes:5.1f} min  {self.peak:4.1f} GB  {self.part.name:<12} {state}{reason}"


def run_all(waiting: list[Part]) -> tuple[dict[Part, tuple[str, str]], float]:
    """State and line of the table by part, and the gigabytes of disk that they took at most."""
    running: list[Run] = []
    results = {}
    free_at_first = least_free = gigabytes_free()
    try:
        while waiting or running:
            least_free = min(least_free, gigabytes_free())
            if least_free < LEAST_DISK:
                sys.exit(f"Stopped: {least_free:.1f} GB of disk are free, of {free_at_first:.1f} at first.")
            for run in [run for run in running if run.ended()]:
                running.remove(run)
                results[run.part] = run.report()
            for part in list(waiting):
                taken = sum(run.part.gigabytes for run in running)
                if not running or (len(running) < AT_ONCE and taken + part.gigabytes <= MEMORY):
                    waiting.remove(part)
                    running.append(Run(part))
            time.sleep(5)  # looking at all processes takes a moment
    finally:
        for run in running:
            run.stop()
    return results, free_at_first - least_free


def main(names: list[str]) -> int:
    if names == ["--names"]:
        print(json.dumps([part.name for part in PARTS]))
        return 0
    if unknown := sorted(set(names) - {part.name for part in PARTS}):
        sys.exit(f"No such part: {', '.join(unknown)}. There are: {', '.join(part.name for part in PARTS)}.")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("Stopped."))
    start = time.monotonic()
    results, disk = run_all([part for part in PARTS if not names or part.name in names])
    print("\n".join(results[part][1] for part in PARTS if part in results))
    print(f"{(time.monotonic() - start) / 60:5.1f} min  in all, and {disk:.1f} GB of disk")
    return int(any(state == "FAILED" for state, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
