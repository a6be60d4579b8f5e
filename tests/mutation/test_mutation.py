"""The mutation run itself, on a tiny package whose functions are tested well, badly or not at all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.sites import draw


SOURCE = '''"""Some functions."""


def larger(a: int, b: int) -> int:
    if not isinstance(a, int):
        raise TypeError("`a` is no number" or "it is something else")
    return a if a > b else b


def in_a_fixture():
    return 3


def in_a_process():
    return 4


def badly_tested(rows):
    return rows[1:]


def untested():
    return 7
'''
TESTS = """import subprocess, sys
import pytest
from tiny.numbers import badly_tested, in_a_fixture, larger

@pytest.fixture(scope="module")
def three():
    return in_a_fixture()

def test_that_sees_nothing(three):
    badly_tested([1])

def test_larger(three):
    assert three == larger(3, 2) == larger(2, 3)

def test_refusal():
    with pytest.raises(TypeError):
        larger(1.5, 1)

def test_process():
    code = "from tiny.numbers import in_a_process; print(in_a_process())"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"4\\n"

def test_that_fails():
    assert badly_tested([1, 2]) is None
"""
OUTCOMES = {
    ("if not isinstance(a, int):", "if  isinstance(a, int):"): "killed",
    ('raise TypeError("`a` is no number" or "it is something else")', "pass"): "killed",
    ("return a if a > b else b", "return None"): "killed",
    ("return a if a > b else b", "return a if a >= b else b"): "survived",
    ("return 3", "return 4"): "killed",
    ("return 4", "return 5"): "killed",
    ("return rows[1:]", "return None"): "survived",
    ("return rows[1:]", "return rows[2:]"): "survived",
    ("return 7", "return 8"): "survived",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two runs one after the other, and the outcomes by the old and the new line."""
    root = tmp_path_factory.mktemp("repository")
    for path, text in {"src/tiny/numbers.py": SOURCE, "tests/test_numbers.py": TESTS}.items():
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(text)
    shutil.copytree(Path(__file__).parent, root / "tests" / "mutation", ignore=shutil.ignore_patterns("test_*"))
    subprocess.run("git init -q && git add .", shell=True, cwd=root, check=True)
    command = [sys.executable, "-m", "tests.mutation", "--files", "src/tiny/*.py", "--folder", str(root / "runs")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    runs = [subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True) for _ in range(2)]
    (path,) = (root / "runs").glob("results*")
    results = [json.loads(line) for line in path.read_text().splitlines()]
    return runs, {tuple(line[1:].strip() for line in one["diff"].splitlines()): one["outcome"] for one in results}


def test_what_is_tested_well_is_killed(run):
    assert run[1] == OUTCOMES


def test_a_test_that_fails_by_itself_kills_nothing(run):
    assert "judges no mutant, since it fails without: tests/test_numbers.py::test_that_fails" in run[0][0].stdout


def test_a_run_goes_on_where_it_stopped(run):
    (first, again), _ = run
    assert first.stdout.endswith(again.stdout.partition("\n")[2])
    assert "9 mutants: 5 killed, 4 survived" in again.stdout and again.returncode == 1


def test_a_change_elsewhere_leaves_a_mutant_drawn(tmp_path):
    drawn = []
    for head in ("", "def new(a, b):\n    return a + b or 1\n\n\n"):
        (tmp_path / "numbers.py").write_text(head + SOURCE)
        mutants = draw(tmp_path, ["numbers.py"], 99, seed=0)
        drawn.append([mutant.diff for mutant in mutants if "a + b" not in mutant.diff])
    assert drawn[0] == drawn[1] and len(drawn[0]) == len(OUTCOMES)
