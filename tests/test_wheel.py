"""What somebody has who installs a wheel, and nothing else of this repository."""

import re
import shutil
import subprocess
import sys

import pytest

from mqt_llava import EMBEDDED_CHECKPOINT
from tests.builders.paths import REPOSITORY
from tests.builders.processes import run_python


BLOCKS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)


def test_the_package_brings_a_checkpoint_along():
    assert EMBEDDED_CHECKPOINT.samefile(REPOSITORY / "model_cards" / "mqt-llava-tiny")


@pytest.mark.slow
def test_a_wheel_alone_answers_a_question(tmp_path):
    source = tmp_path / "source"
    for name in ("src", "model_cards", "examples/images"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    build = subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, source], capture_output=True, text=True)
    if "No matching distribution found for setuptools" in build.stderr:
        pytest.skip(f"pip cannot build here: {build.stderr[-500:]}")
    assert build.returncode == 0, build.stderr[-3000:]
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True)
    shutil.rmtree(source)

    (lines,) = [block for block in BLOCKS if "EMBEDDED_CHECKPOINT" in block]
    environment = {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    code = f"import mqt_llava\nprint('RESULT', mqt_llava.__file__)\n{lines}"
    where, answer = run_python(code, environment=environment, folder=tmp_path).strip().splitlines()
    assert where.startswith(str(installed)) and answer.strip() == "sneaker, coat, dress, sandal"
