"""How m is drawn: the right frequencies, from nothing but the seed, the epoch and the ids."""

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from mqt_llava.training import FixedBudget, LogBudget, UniformBudget, WeightedBudget, parse_budget
from tests.builders.paths import REPOSITORY


PAPER = UniformBudget(2, 256, step=2)


def draw(sampler, number: int, seed: int = 0, epoch: int = 0, size: int = 4) -> list[int]:
    """The m of as many batches, each of other records."""
    return [sampler(seed, epoch, [f"record {batch}.{i}" for i in range(size)]) for batch in range(number)]


# Distributions


@pytest.mark.parametrize(
    "sampler, expected",
    [
        (PAPER, dict.fromkeys(range(2, 257, 2), 1)),
        (UniformBudget(1, 16), dict.fromkeys(range(1, 17), 1)),
        (UniformBudget(3, 10, step=3), dict.fromkeys((3, 6, 9), 1)),
        (UniformBudget(7, 7), {7: 1}),
        (LogBudget(256), dict.fromkeys((1, 2, 4, 8, 16, 32, 64, 128, 256), 1)),
        (LogBudget(100), dict.fromkeys((1, 2, 4, 8, 16, 32, 64), 1)),
        (LogBudget(1), {1: 1}),
        (WeightedBudget({4: 1, 64: 2, 256: 0.5}), {4: 1, 64: 2, 256: 0.5}),
        (WeightedBudget({1: 99, 9: 1}), {1: 99, 9: 1}),
        (FixedBudget(36), {36: 1}),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("vary", ["records", "epoch", "seed"])
def test_each_m_is_drawn_as_often_as_it_should_be(sampler, expected, vary):
    number = 60 * len(expected) + 400
    if vary == "records":
        drawn = draw(sampler, number)
    else:
        drawn = [sampler(**{"seed": 3, "epoch": 5, "record_ids": ["a", "b"], vary: value}) for value in range(number)]
    counts, total = Counter(drawn), sum(expected.values())
    assert counts.keys() <= expected.keys() and sampler.largest == max(expected)
    chi_square = sum(
        (counts[m] - number * weight / total) ** 2 / (number * weight / total) for m, weight in expected.items()
    )
    freedom = len(expected) - 1
    assert chi_square <= freedom + 4 * math.sqrt(2 * freedom)  # passed by one seed in ten thousand or fewer


def test_the_papers_budget_is_every_even_number():
    assert set(draw(PAPER, 3000)) == set(range(2, 257, 2))


def test_batches_are_drawn_independently_of_one_another():
    """Neither the previous batch, nor the same batch in the next epoch, nor with the next seed tells the m."""
    drawn = draw(PAPER, 4000)
    for others in (drawn[1:], draw(PAPER, 3999, epoch=1), draw(PAPER, 3999, seed=1)):
        assert abs(np.corrcoef(drawn[:3999], others)[0, 1]) < 4 / math.sqrt(3999)
        equal = sum(one == other for one, other in zip(drawn, others))
        assert abs(equal - 3999 / 128) < 5 * math.sqrt(3999 / 128)


# A pure function


def test_the_same_arguments_give_the_same_m():
    before = draw(PAPER, 50, seed=3, epoch=2)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    state = random.getstate(), torch.get_rng_state()
    again = [PAPER(3, 2, tuple(f"record {batch}.{i}" for i in range(4))) for batch in range(50)]
    assert before == again == draw(UniformBudget(2, 256, step=2), 50, seed=3, epoch=2)
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])


@pytest.mark.parametrize("changes", [{"seed": 4}, {"epoch": 3}, {"size": 3}], ids=str)
def test_seed_epoch_and_records_change_the_draw(changes):
    arguments = {"seed": 3, "epoch": 2, "size": 4}
    assert draw(PAPER, 50, **arguments) != draw(PAPER, 50, **{**arguments, **changes})


def test_two_ranks_draw_different_m():
    """Ranks share seed and epoch; the records of a step differ."""
    ranks = [[PAPER(0, 0, [str(i) for i in range(rank, 64, 2)][step::8]) for step in range(8)] for rank in (0, 1)]
    assert ranks[0] != ranks[1]


def test_ids_are_not_run_together():
    assert len({UniformBudget(1, 10**5)(0, 0, ids) for ids in (["ab", "c"], ["a", "bc"], ["abc"], ["a, b", "c"])}) == 4


def test_another_process_draws_the_same():
    code = (
        "import json, runpy, sys; budgets = runpy.run_path(sys.argv[1]);"
        "sampler = budgets['UniformBudget'](2, 256, step=2);"
        "print(json.dumps([sampler(7, 1, [f'é{i}', 'x']) for i in range(50)]))"
    )
    path = REPOSITORY / "src" / "mqt_llava" / "training" / "budgets.py"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        output = subprocess.run(
            [sys.executable, "-c", code, path], env=environment, check=True, capture_output=True, text=True
        ).stdout
        assert json.loads(output) == [PAPER(7, 1, [f"é{i}", "x"]) for i in range(50)]


# Bad arguments


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: FixedBudget(True), TypeError, "`m` is True, but must be an integer"),
        (lambda: FixedBudget(4.0), TypeError, "`m` is 4.0, but must be an integer"),
        (lambda: FixedBudget("4"), TypeError, "`m` is '4', but must be an integer"),
        (lambda: FixedBudget(0), ValueError, "`m` is 0, but must be at least 1"),
        (lambda: FixedBudget(-3), ValueError, "`m` is -3, but must be at least 1"),
        (lambda: UniformBudget(True, 4), TypeError, "`low` is True"),
        (lambda: UniformBudget(1, 4.5), TypeError, "`high` is 4.5"),
        (lambda: UniformBudget(0, 4), ValueError, "`low` is 0"),
        (lambda: UniformBudget(1, 4, step=0), ValueError, "`step` is 0, but must be at least 1"),
        (lambda: UniformBudget(1, 4, step=-1), ValueError, "`step` is -1"),
        (lambda: UniformBudget(8, 4), ValueError, "`low` is 8 and `high` is 4, but `low` must not exceed `high`"),
        (lambda: LogBudget(0), ValueError, "`high` is 0"),
        (lambda: LogBudget(True), TypeError, "`high` is True"),
        (lambda: LogBudget(2.0), TypeError, "`high` is 2.0"),
        (lambda: WeightedBudget({}), ValueError, "`weights` is {}, but must say how often each m is drawn"),
        (lambda: WeightedBudget([4, 16]), ValueError, r"`weights` is \[4, 16\]"),
        (lambda: WeightedBudget({0: 1}), ValueError, "`m` is 0"),
        (lambda: WeightedBudget({True: 1}), TypeError, "`m` is True"),
        (lambda: WeightedBudget({4.0: 1}), TypeError, "`m` is 4.0"),
        (lambda: WeightedBudget({4: -1}), ValueError, r"`weights\[4\]` is -1, but must be a positive number"),
        (lambda: WeightedBudget({4: 0}), ValueError, r"`weights\[4\]` is 0"),
        (lambda: WeightedBudget({4: True}), ValueError, r"`weights\[4\]` is True"),
        (lambda: WeightedBudget({4: "1"}), ValueError, r"`weights\[4\]` is '1'"),
        (lambda: WeightedBudget({4: float("nan")}), ValueError, r"`weights\[4\]` is nan"),
        (lambda: WeightedBudget({4: float("inf")}), ValueError, r"`weights\[4\]` is inf"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


# From a configuration file


@pytest.mark.parametrize(
    "text, expected",
    [
        ("UniformBudget(2, 256, step=2)", [PAPER]),
        ("UniformBudget(high=8, low=2)", [UniformBudget(2, 8)]),
        (" FixedBudget( 256 ) ", [FixedBudget(256)]),
        ("WeightedBudget({4: 1, 64: 2.5})", [WeightedBudget({4: 1, 64: 2.5})]),
        ("FixedBudget(2), LogBudget(64),\n FixedBudget(256)", [FixedBudget(2), LogBudget(64), FixedBudget(256)]),
    ],
)
def test_budgets_are_read_from_text(text, expected):
    samplers = parse_budget(text)
    assert [type(sampler) for sampler in samplers] == [type(sampler) for sampler in expected]
    assert [sampler.weights for sampler in samplers] == [sampler.weights for sampler in expected]


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ",", "16", "FixedBudget", "FixedBudget()", "FixedBudget(4", "FixedBudget(4)) + (FixedBudget(4)",
        "FixedBudget(4) FixedBudget(8)", "FixedBudget(4),,", "FixedBudget(4, 5)", "FixedBudget(size=4)",
        "FixedBudget(0)", "FixedBudget(4.5)", "FixedBudget(True)", "UniformBudget(8, 4)", "WeightedBudget({})",
        "LinearBudget(4)", "BudgetSampler({4: 1})", "dict(a=4)", "FixedBudget(*[4])", "FixedBudget(**{'m': 4})",
        "FixedBudget(4).__class__", "FixedBudget.__init__(4)", "lambda: FixedBudget(4)", "\0",
    ],
)  # fmt: skip
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"(?s)`budget` is .* but must be one or several of FixedBudget, Uniform"):
        parse_budget(text)


@pytest.mark.parametrize(
    "attack",
    [
        "__import__('pathlib').Path({path!r}).touch()",
        "FixedBudget(__import__('pathlib').Path({path!r}).touch())",
        "FixedBudget(m=__import__('pathlib').Path({path!r}).touch())",
        "FixedBudget(4), [open({path!r}, 'w')]",
        "FixedBudget(open({path!r}, 'w') and 4)",
        "(open({path!r}, 'w'), FixedBudget)[1](4)",
        "FixedBudget(4) if open({path!r}, 'w') else 0",
    ],
)
def test_text_is_never_run(attack, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(ValueError, match="`budget` is "):
        parse_budget(attack.format(path=str(path)))
    assert not path.exists()
