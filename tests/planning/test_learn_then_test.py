"""Exact binomial tests in a fixed order."""

from math import comb

import pytest
import torch

from mqt_llava.planning.learn_then_test import binomial_cdf, fewest_prompts, num_promised


@pytest.mark.parametrize("count, number, share", [(0, 1, 0.5), (3, 20, 0.1), (20, 20, 0.3), (40, 2000, 0.02)])
def test_the_binomial_distribution(count, number, share):
    exact = sum(comb(number, k) * share**k * (1 - share) ** (number - k) for k in range(count + 1))
    assert binomial_cdf(count, number, share) == pytest.approx(exact, rel=1e-9)


def test_the_first_that_cannot_be_rejected_ends_the_sequence():
    # Of 300 at a risk of 2%, one failure has a p-value of 0.017, two of 0.060.
    assert num_promised([0, 1, 1], 300, 0.02, 0.95) == 3
    assert num_promised([0, 1, 2, 0], 300, 0.02, 0.95) == 2
    assert num_promised([0, 0], 148, 0.02, 0.95) == 0


def test_as_many_prompts_as_it_takes():
    assert fewest_prompts(0.02, 0.95) == 149  # 0.98**149 < 0.05 < 0.98**148
    for share in (0.005, 0.01, 0.015):
        number = fewest_prompts(0.02, 0.95, share)
        assert num_promised([round(share * number)], number, 0.02, 0.95) == 1
        assert num_promised([round(share * number / 1.2)], round(number / 1.2), 0.02, 0.95) == 0
    assert fewest_prompts(0.02, 0.95, 0.02) is None and fewest_prompts(1e-7, 0.95) is None


def test_a_promise_is_rarely_broken():
    """Thresholds whose risks rise through the promised one: the wrong one is chosen in at most 5% of draws."""
    risks = torch.linspace(0, 0.06, 61)
    draws = torch.rand(400, 500, 1, generator=torch.Generator().manual_seed(0)) < risks  # nested, as thresholds are
    chosen = [num_promised(failures, 500, 0.02, 0.95) for failures in draws.sum(1).tolist()]
    broken = sum(bool(number and risks[number - 1] > 0.02) for number in chosen)
    assert 0 < broken / 400 < 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5
    assert sum(chosen) / 400 > 8  # of the 21 that keep the risk
