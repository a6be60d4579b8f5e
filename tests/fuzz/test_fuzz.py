"""The fuzzer itself: a short run of it, and whether it sees what is wrong."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

from tests.builders.paths import REPOSITORY
from tests.builders.processes import run_python

from .oracle import Oracle
from .outcomes import EITHER, REFUSED, RIGHT, Outcome, attempt
from .planted import PLANTS, find
from .rows import Image
from .runner import run, run_case, summary
from .subjects import subject
from .surfaces import SURFACES


# Older releases do what the contract forbids: they drop the images of chunked prompts, and take no arrays in
# `images_kwargs`.
judged = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.20"), reason="the contract is judged with newer releases"
)
SEED = 1
CALLS = {"processor": 300, "generate": 200, "adaptive": 80, "caches": 250, "pipelines": 50, "conversion": 15}


@judged
@pytest.mark.parametrize("surface", SURFACES)
def test_a_short_run_finds_nothing(surface):
    report = run(SEED, CALLS[surface], [surface])
    assert report.num_calls >= CALLS[surface]
    assert not report.failures, summary(report)


@pytest.mark.parametrize("surface", SURFACES)
def test_a_case_depends_on_its_number_alone(surface):
    run_case(surface, SEED, 0)
    first, again = (run_case(surface, SEED, 3) for _ in range(2))
    assert [outcome[:2] for outcome in first[0]] == [outcome[:2] for outcome in again[0]]
    assert all(str(first[1].get(key)) == str(again[1].get(key)) for key in ("rows", "text", "change"))


@judged
@pytest.mark.parametrize("plant", PLANTS, ids=[plant.name for plant in PLANTS])
def test_planted_bugs_are_found(plant):
    found = find(plant, SEED, 5000)
    assert found.failure is not None, f"not in {found.num_calls} calls"
    assert found.is_right_without, found.failure


def test_oracles_import_nothing_of_the_package(tmp_path):
    """Neither at once, nor by what they import, nor in a function."""
    oracles = sorted(Path(__file__).parent.glob("oracle*.py"))
    assert not [path for path in oracles if re.search(r"import.*mqt_llava", path.read_text(encoding="utf-8"))]
    modules = ["tests.builders.pictures", "tests.builders.prompts", *(f"tests.fuzz.{path.stem}" for path in oracles)]
    code = f"import {', '.join(modules)}, sys; print('RESULT', *sys.modules)"
    modules = run_python(code, environment={"PYTHONPATH": str(REPOSITORY)}, folder=tmp_path).split()
    assert "tests.fuzz.oracle" in modules and "mqt_llava" not in modules


def test_outcomes():
    def raises(error: Exception):
        raise error

    def judge(result):
        return Outcome("right")

    def kind(error: Exception, expected: str) -> str:
        return attempt(lambda: raises(error), judge, {"num_visual_tokens"}, expected).kind

    assert kind(ValueError("`num_visual_tokens` is 0"), REFUSED) == "refused"
    assert kind(ValueError("`num_visual_tokens` is 0"), EITHER) == "refused"
    assert kind(ValueError("`num_visual_tokens` is 0"), RIGHT) == "wrong"
    assert kind(ValueError("something is 0"), REFUSED) == "bad error"
    assert kind(ValueError("`my_num_visual_tokens` is 0"), REFUSED) == "bad error"
    assert kind(RuntimeError("`num_visual_tokens` is 0"), REFUSED) == "bad error"
    assert attempt(lambda: 1, judge, (), REFUSED).kind == "wrong"
    assert attempt(lambda: 1, judge, (), EITHER).kind == "right"


@pytest.mark.parametrize("name", ["llama", "quecc"])
def test_the_oracle_sees_every_visual_token(name):
    """An image's last visual token, another image and another question change what the oracle says."""
    oracle: Oracle = subject(name).oracle

    def logits(index: int, question: int, number: int) -> torch.Tensor:
        return oracle.logits([1, 5, Image(index, (1, question)), 9], [number])

    shown = logits(0, 7, 4)
    finite = torch.isfinite(shown)
    for other in (logits(1, 7, 4), logits(0, 8, 4) if name == "quecc" else logits(0, 7, 3)):
        assert (other - shown)[finite].abs().max() > 0.05


def test_the_oracle_judges_every_token():
    oracle = subject("llama").oracle
    row, counts = [1, 5, Image(0, ()), 9], [4]
    answer, _, _ = oracle.greedy(row, counts, 4)
    assert oracle.judge(row, counts, answer, 4).kind == "right"
    for step in range(4):
        changed = [*answer[:step], (answer[step] + 1) % 90, *answer[step + 1 :]]
        assert oracle.judge(row, counts, changed, 4).kind == "wrong"
    assert oracle.judge(row, counts, answer[:3], 4).kind == "wrong"
    assert oracle.judge(row, counts, [*answer[:2], 0, 0], 4, eos=(answer[1],)).kind == "right"
    assert oracle.judge(row, counts, answer, 4, eos=(answer[1],)).kind == "wrong"
