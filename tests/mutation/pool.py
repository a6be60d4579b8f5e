"""Workers, each in a copy of the repository, and jobs for them."""

import json
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class Pool:
    """
    Starts its workers when there is something to do.

    Args:
        files: The tests whose imports a worker has ready.
    """

    def __init__(self, root: Path, folder: Path, num_workers: int, files: list[str]):
        self.root, self.folder, self.num_workers, self.files = root, folder, num_workers, files
        self.workers, self.idle = [], queue.Queue()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for worker in self.workers:
            worker.stdin.close()
            worker.wait()

    def map(self, function: Callable, items: Iterable) -> None:
        """Calls a function of each item, as many at a time as there are workers."""
        if not (items := list(items)):
            return
        if not self.workers:
            self.start()
        with ThreadPoolExecutor(self.num_workers) as threads:
            for _ in threads.map(function, items):
                pass

    def ask(self, method: str, **arguments) -> dict:
        """What a worker that is idle answers."""
        worker = self.idle.get()
        worker.stdin.write(json.dumps([method, arguments]) + "\n")
        worker.stdin.flush()
        answer = json.loads(worker.stdout.readline())
        self.idle.put(worker)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def start(self) -> None:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=self.root, capture_output=True, text=True, check=True)
        for number in range(self.num_workers):
            place = self.folder / f"worker_{number}"
            shutil.rmtree(place, ignore_errors=True)
            for file in filter(None, listed.stdout.split("\0")):
                copy = place / "repository" / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.root / file, copy, follow_symlinks=False)
            environment = {**os.environ, "PYTHONPATH": str(place / "repository" / "src"), "OMP_NUM_THREADS": "1"}
            worker = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker", str(place)],
                cwd=place / "repository", env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                stderr=open(place / "errors.txt", "w"),
            )  # fmt: skip
            self.workers.append(worker)
            self.idle.put(worker)
        with ThreadPoolExecutor(self.num_workers) as threads:
            list(threads.map(lambda _: self.ask("preload", files=self.files), self.workers))
