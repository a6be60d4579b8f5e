"""What the page on serving and the configurations for servers say, run as it stands there."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.builders.paths import REPOSITORY
from tests.serving.serving_cases import ENVIRONMENT


pytestmark = pytest.mark.vllm
SECTION = (REPOSITORY / "docs" / "serving.md").read_text().split("\n## Start\n")[1].split("\n## ")[0]
CLIENT, OFFLINE = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
CONFIGS = sorted((REPOSITORY / "examples" / "serve").glob("*.yaml"))


@pytest.fixture(scope="module")
def environment():
    """A user's, apart from what this machine can do."""
    ours = {name: value for name, value in ENVIRONMENT.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    return {**os.environ, **ours, "VLLM_LOGGING_LEVEL": "ERROR"}  # which vLLM prints among the answers


def run(script: str, path: Path, environment: dict) -> list[str]:
    """Runs a pasted script in the repository, and gives the lines that it prints."""
    path.write_text(script)
    command = [sys.executable, str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [line.strip() for line in done.stdout.splitlines()]


def test_server_and_client(tmp_path, environment):
    (command,) = re.findall(r"^    python (-m .*)$", SECTION, re.MULTILINE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *command.split(), "--port", str(port)]
    with (tmp_path / "log.txt").open("w") as log:
        server = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
        try:
            while True:
                try:
                    urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5)
                    break
                except OSError:
                    assert server.poll() is None, (tmp_path / "log.txt").read_text()[-4000:]
                    time.sleep(0.5)
            assert CLIENT.count("localhost:8000") == 1
            lines = run(CLIENT.replace("localhost:8000", f"localhost:{port}"), tmp_path / "client.py", environment)
            script = [sys.executable, "examples/serve/ask_server.py", "--url", f"http://localhost:{port}/v1"]
            script += ["--image", "examples/images/mosaic_0.png", "--question", "List the items in the second row."]
            example = subprocess.run(script, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
        finally:
            server.terminate()
            server.wait()
    assert [line.split() for line in example.splitlines()] == [line.split() for line in lines]
    answers = dict(line.split(maxsplit=1) for line in lines)
    assert list(answers) == ["1", "4", "16"] and answers["1"] != answers["16"]
    assert len(answers["16"].split(", ")) == 4  # a row of the mosaic


def test_offline(tmp_path, environment):
    answers = run(OFFLINE, tmp_path / "offline.py", environment)[-3:]
    assert answers[0] != answers[2] and len(answers[2].split(", ")) == 4


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configurations_are_understood_by_vllm(path):
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    args = parser.parse_args(["serve", "--config", str(path)])
    for name, value in yaml.safe_load(path.read_text()).items():
        if name not in ("model", "limit-mm-per-prompt"):
            assert getattr(args, name.replace("-", "_")) == value
