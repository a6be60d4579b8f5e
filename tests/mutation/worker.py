"""
A process that runs tests against one mutant after the other, in a copy of the repository of its own.

It imports once what the tests import of other packages, which takes most of the time, and runs each mutant in a child
that begins there. Jobs and outcomes are lines of JSON on its standard input and output.
"""

import importlib
import json
import os
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import pytest

from .plugins import Judge, Recorder


def main(scratch: Path) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what else is printed must not get between the answers
    for line in sys.stdin:
        job = json.loads(line)
        if job["kind"] == "preload":
            preload(job["files"], scratch)
            answer = {}
        elif job["kind"] == "record":
            answer = in_child(partial(run_pytest, job["files"], Recorder(job["sources"], scratch), scratch), scratch)
        else:
            answer = judge(job, scratch)
        answers.write(json.dumps(answer) + "\n")


def judge(job: dict, scratch: Path) -> dict:
    path, start = Path(job["file"]), time.monotonic()
    original = path.read_bytes()
    path.write_bytes(job["source"].encode())
    try:
        files = list(dict.fromkeys(test.partition("::")[0] for test in job["tests"]))
        longest = job["cpu_seconds"] + 2 * max(job["tests"].values(), default=0)
        plugin = Judge(job["tests"], job["cpu_seconds"])
        # The wall clock only ends what does not end by itself: several processes share the machine.
        answer = in_child(partial(run_pytest, files, plugin, scratch), scratch, 120 + 4 * longest)
    finally:
        path.write_bytes(original)
    return {**answer, "seconds": round(time.monotonic() - start, 1)}


def in_child(function, scratch: Path, timeout: float = 3600) -> dict:
    """What a function returns in a child, or how the child ended without."""
    result = scratch / "result.json"
    result.unlink(missing_ok=True)
    if (child := os.fork()) == 0:
        os.setsid()  # so that what the tests start ends with them
        log = os.open(scratch / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            answer = function()
        except Exception:  # of the tool; pytest keeps those of the tests to itself
            answer = {"outcome": "error", "by": traceback.format_exc()}
        result.write_text(json.dumps(answer))
        os._exit(0)
    deadline = time.monotonic() + timeout
    while not (ended := os.waitpid(child, os.WNOHANG)[0]) and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if not ended:
        os.waitpid(child, 0)
        return {"outcome": "killed", "by": "no end"}
    return json.loads(result.read_text()) if result.exists() else {"outcome": "killed", "by": "crash"}


def run_pytest(files: list[str], plugin, scratch: Path) -> dict:
    arguments = [*files, "-m", "not slow", "-q", "-p", "no:cacheprovider", f"--basetemp={scratch / 'tmp'}"]
    plugin.start()
    status = pytest.main(arguments, plugins=[plugin])
    return plugin.finish(status)


def preload(files: list[str], scratch: Path) -> None:
    """Imports the modules that the collection of these files imports from outside the repository."""

    def collect() -> list[str]:
        known, here = set(sys.modules), str(Path.cwd())
        pytest.main([*files, "--collect-only", "-q", "-p", "no:cacheprovider"])
        modules = [(name, getattr(sys.modules[name], "__file__", None)) for name in sys.modules if name not in known]
        return [name for name, file in modules if file and not file.startswith(here)]

    for name in in_child(collect, scratch):
        try:
            importlib.import_module(name)
        except Exception:  # such as a module that only another can import
            pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
