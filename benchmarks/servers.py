"""
vLLM's OpenAI-compatible server in a process of its own, and what it says of itself.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path


def vllm_version() -> str:
    (distribution,) = packages_distributions()["vllm"]  # builds for CPUs have another name
    return f"{distribution} {version(distribution)}"


def vllm_environment() -> dict[str, str]:
    """What of the environment changes how vLLM runs on a CPU."""
    return {name: os.environ[name] for name in sorted(os.environ) if name.startswith(("VLLM_", "OMP_"))}


def with_benchmarks_on_the_path() -> dict[str, str]:
    """For a server that is told of a class in this folder."""
    return {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])}


SECONDS_TO_START = 1800  # a large model, and what is compiled for it


class Server:
    """
    Started and waited for at the beginning of a `with` block, ended at its end.

    Args:
        model: Folder of a checkpoint.
        flags: Of the server.
        environment: Besides this process's own.

    Raises:
        SystemExit: The server has not come up; the message is the end of its log.
    """

    def __init__(self, model: str, flags: Sequence[str] = (), environment: Mapping[str, str] | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.port, self.url, self.model = port, f"http://127.0.0.1:{port}", model
        self.command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        self.command += ["--host", "127.0.0.1", "--port", str(port), *flags]
        self.environment = {**os.environ, **(environment or {})}

    def __enter__(self) -> "Server":
        self.log = tempfile.NamedTemporaryFile()
        self.process = subprocess.Popen(self.command, env=self.environment, stdout=self.log, stderr=self.log)
        try:
            deadline = time.monotonic() + SECONDS_TO_START
            while not self.is_healthy():
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"The server has not come up:\n{self.read_log()[-20000:]}")
                time.sleep(1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, kind=None, *exception) -> None:
        if kind is not None:
            print(self.read_log()[-20000:], file=sys.stderr)
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def is_healthy(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200
        except OSError:
            return False

    def read_log(self) -> str:
        return Path(self.log.name).read_text()

    def metrics(self, *names: str) -> dict[str, float]:
        """Sums over all labels of vLLM's metrics of these names, which are those behind `vllm:`."""
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=30).read().decode()
        return {
            name: sum(map(float, re.findall(rf"^vllm:{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))) for name in names
        }
