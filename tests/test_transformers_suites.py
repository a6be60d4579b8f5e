"""tests/transformers_suites: what it makes of outcomes, and what it refuses. The suites themselves do not run here."""

import json
import subprocess
import sys

import pytest

from tests.builders.paths import REPOSITORY
from tests.transformers_suites.comparison import differences, table
from tests.transformers_suites.run_suites import PICTURE, main


SUITES = REPOSITORY / "tests" / "transformers_suites"

# Stands for a suite, with a test of each kind that the outcomes tell apart.
TOY_SUITE = """
import unittest
import pytest

class ModelTesterMixin:
    def test_passes(self):
        pass

    def test_fails(self):
        assert False

    def test_skips(self):
        self.skipTest("a reason")

    @pytest.mark.xfail
    def test_is_expected_to_fail(self):
        assert False

    def test_fails_in_part(self):
        for part in (0, 1):
            with self.subTest(part):
                assert part

    @pytest.mark.xfail
    def test_is_expected_to_fail_in_part(self):
        self.test_fails_in_part()

class LLaVA(ModelTesterMixin, unittest.TestCase):
    def test_config(self):
        pass

    def test_of_its_own(self):
        assert False

class Broken(ModelTesterMixin, unittest.TestCase):
    def setUp(self):
        assert False

    def test_passes(self):
        super().test_passes()
"""


def outcome(model, name, outcome, suite="model"):
    return {"model": model, "suite": suite, "name": name, "outcome": outcome}


def test_outcomes_are_those_of_the_suites_tests(tmp_path):
    (tmp_path / "suite_toy.py").write_text(TOY_SUITE)
    (tmp_path / "pytest.ini").write_text((SUITES / "pytest.ini").read_text())
    environment = {"PYTHONPATH": str(REPOSITORY), "OUTCOMES": str(tmp_path / "outcomes.jsonl")}
    command = [sys.executable, "-m", "pytest", "-q", str(tmp_path / "suite_toy.py")]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)

    rows = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    found = {(row["model"], row["name"]): (row["suite"], row["outcome"]) for row in rows}
    assert len(rows) == len(found) == 13
    assert {key: found[key] for key in found if key[0] == "LLaVA"} == {
        ("LLaVA", "test_passes"): ("model", "passed"),
        ("LLaVA", "test_fails"): ("model", "failed"),
        ("LLaVA", "test_skips"): ("model", "skipped"),
        ("LLaVA", "test_is_expected_to_fail"): ("model", "failed"),
        ("LLaVA", "test_fails_in_part"): ("model", "failed"),
        ("LLaVA", "test_is_expected_to_fail_in_part"): ("model", "failed"),
        ("LLaVA", "test_config"): ("configuration", "passed"),
    }
    assert found["Broken", "test_passes"] == ("model", "failed")


def test_only_what_passes_for_llava_counts_as_a_difference():
    rows = [
        outcome("LLaVA", "test_a", "passed"),
        outcome("LLaVA", "test_b", "failed"),
        outcome("LLaVA", "test_c", "passed", "processor"),
        outcome("MQT", "test_a", "failed"),
        outcome("MQT", "test_b", "failed"),
        outcome("MQT", "test_c", "failed", "model"),
        outcome("MQT", "test_c", "skipped", "processor"),
    ]
    assert differences(rows, "failed") == ["MQT: test_a"]
    assert differences(rows, "skipped") == ["MQT: test_c"]


def test_the_table_counts_by_model_and_suite():
    rows = [
        outcome("LLaVA", "test_a", "passed"),
        outcome("LLaVA", "test_b", "passed"),
        outcome("MQT", "test_a", "failed"),
    ]
    head, *lines = [line.split() for line in table(rows).splitlines()]
    assert head == "LLaVA passed LLaVA failed LLaVA skipped MQT passed MQT failed MQT skipped".split()
    assert lines[0] == ["model", "2", "0", "0", "0", "1", "0"]
    assert lines[1] == ["generation", *"000000"]


def test_without_the_suites_it_says_why_nothing_runs(capsys):
    assert main([]) == 0
    assert "SUITES=FOLDER" in capsys.readouterr().out


@pytest.mark.parametrize("version, said", [(None, "it lacks"), ("4.0.0", "transformers 4.0.0, but must be")])
def test_no_other_folder_is_taken_for_the_suites(tmp_path, capsys, version, said):
    if version is not None:
        names = ("src/transformers/__init__.py", "tests/test_modeling_common.py", "tests/models/llava", "utils/x")
        for name in (*names, "tests/generation/test_utils.py", PICTURE):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f'__version__ = "{version}"\n')
    assert main([str(tmp_path)]) == 1
    assert said in capsys.readouterr().err
