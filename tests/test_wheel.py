"""What somebody has who installs a wheel, and nothing else of this repository."""

import os
import re
import subprocess
import sys

import pytest
import torch
import transformers

import mqt_llava
from tests.builders.paths import REPOSITORY


def test_the_package_brings_a_checkpoint_along():
    assert mqt_llava.EMBEDDED_CHECKPOINT.samefile(REPOSITORY / "model_cards" / "mqt-llava-tiny")


@pytest.mark.parametrize("file, line", [("CITATION.cff", r"version: (\S+)"), ("CHANGELOG.md", r"## (\S+) \(.*\)")])
def test_there_is_one_version(file, line):
    assert re.search(rf"(?m)^{line}$", (REPOSITORY / file).read_text())[1] == mqt_llava.__version__


@pytest.mark.slow
def test_a_release_runs_in_an_empty_environment(tmp_path):
    # A release is tried with the newest of both. Here it is with those of the other tests, and without GBs for GPUs.
    (tmp_path / "pins").write_text(f"torch=={torch.__version__}\ntransformers=={transformers.__version__}\n")
    run = subprocess.run(
        [sys.executable, "release/build.py", "--rehearsal", "--output", tmp_path / "dist"],
        cwd=REPOSITORY,
        env={**os.environ, "PIP_CONSTRAINT": str(tmp_path / "pins"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    if "No matching distribution found" in run.stderr:
        pytest.skip(f"There is no package index: {run.stderr[-500:]}")
    assert run.returncode == 0, run.stderr[-3000:]
    assert "\nsneaker, coat, dress, sandal\n" in run.stdout and "16 sneaker, coat, dress, sandal\n" in run.stdout
    assert len(list((tmp_path / "dist").iterdir())) == 2 and "twine upload" not in run.stdout
