"""
A process that runs tests against one mutant after the other, in a copy of the repository of its own.

It imports once what the tests import of other packages, which takes most of the time, and runs each mutant in a child
that begins there. Jobs and answers are lines of JSON on its standard input and output.
"""

import importlib
import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from .judge import Judge
from .recorder import Recorder


OPTIONS = ["-m", "not slow", "-q", "-p", "no:cacheprovider"]


class Worker:
    """
    Args:
        scratch: A folder of its own.
    """

    def __init__(self, scratch: Path):
        self.scratch = scratch
        # A cached module is known by its time and size, and a mutant can take less than the second that tells times.
        self.times = itertools.count(1)

    def preload(self, files: list[str]) -> dict:
        """Imports what the collection of these tests imports from outside the repository."""

        def collect() -> list[str]:
            known, here = set(sys.modules), str(Path.cwd())
            pytest.main([*files, *OPTIONS, "--collect-only"])
            paths = {name: getattr(sys.modules[name], "__file__", None) for name in sys.modules if name not in known}
            return [name for name, path in paths.items() if path and not path.startswith(here)]

        for name in self.in_child(collect):
            try:
                importlib.import_module(name)
            except Exception:  # such as a module that only another one can import
                pass
        return {}

    def record(self, file: str, sources: list[str]) -> dict:
        return self.in_child(partial(self.run_pytest, [file], Recorder(sources, self.scratch)))

    def judge(self, file: str, source: str, tests: dict[str, float], cpu_seconds: float) -> dict:
        """
        Args:
            source: Of the mutant.
            tests: How many seconds each takes, in the order in which they run.
        """
        path, begun = Path(file), time.monotonic()
        original = path.read_bytes()
        files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
        # Only for what does not end by itself: several processes share the machine.
        timeout = 300 + 4 * cpu_seconds + 10 * max(tests.values(), default=0)
        try:
            self.write(path, source.encode())
            answer = self.in_child(partial(self.run_pytest, files, Judge(tests, cpu_seconds)), timeout)
        finally:
            self.write(path, original)
        return {**answer, "seconds": round(time.monotonic() - begun, 1)}

    def write(self, path: Path, source: bytes) -> None:
        path.write_bytes(source)
        now = next(self.times)
        os.utime(path, (now, now))

    def run_pytest(self, files: list[str], plugin: Recorder | Judge) -> dict:
        plugin.start()
        return plugin.finish(pytest.main([*files, *OPTIONS, f"--basetemp={self.scratch / 'tmp'}"], plugins=[plugin]))

    def in_child(self, function: Callable, timeout: float = 3600):
        """What a function returns in a child, or how the child ended without."""
        result = self.scratch / "result.json"
        result.unlink(missing_ok=True)
        if (child := os.fork()) == 0:
            os.setsid()  # so that what the tests start ends with them
            log = os.open(self.scratch / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            try:
                answer = function()
            except Exception:  # of this code: pytest keeps those of the tests to itself
                answer = {"error": traceback.format_exc()}
            result.write_text(json.dumps(answer))
            os._exit(0)
        deadline = time.monotonic() + timeout
        while not (has_ended := os.waitpid(child, os.WNOHANG)[0]) and time.monotonic() < deadline:
            time.sleep(0.02)
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if not has_ended:
            os.waitpid(child, 0)
        lost = {"outcome": "killed", "by": "crash" if has_ended else "no end"}
        return json.loads(result.read_text()) if has_ended and result.exists() else lost


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what else is printed must not get between the answers
    worker = Worker(Path(sys.argv[1]))
    for line in sys.stdin:
        method, arguments = json.loads(line)
        answers.write(json.dumps(getattr(worker, method)(**arguments)) + "\n")


if __name__ == "__main__":
    main()
