"""The law itself and what it says to spend a budget on."""

import re

import numpy as np
import pytest

from mqt_llava.planning import ScalingLaw, request_flops


LAW = ScalingLaw(A=0.59, alpha=0.071, beta=0.0151, D=0.01)
OCR = ScalingLaw(A=0.9, alpha=0.03, beta=0.05, D=0.0)


def test_predictions():
    assert LAW.predict(1, 1) == pytest.approx(0.6)
    assert LAW.predict(7, 144) == pytest.approx(0.59 / 7**0.071 / 144**0.0151 + 0.01)
    errors = LAW.predict(np.array([[0.5], [7]]), np.array([1, 16, 576]))
    assert errors.shape == (2, 3) and errors[1, 2] == LAW.predict(7, 576)
    assert (np.diff(errors, axis=0) < 0).all() and (np.diff(errors, axis=1) < 0).all()


def test_flops_are_two_for_each_parameter_and_token():
    assert request_flops(7, 14, 50) == 2 * 7e9 * 64


@pytest.mark.parametrize("law", [LAW, OCR, ScalingLaw(0.5, 0.1, 0.09, 0.2), ScalingLaw(0.5, 0.1, 0.0, 0.2)])
@pytest.mark.parametrize("text_tokens", [0, 1, 50, 500])
@pytest.mark.parametrize("flops", [1e10, 3e12])
def test_the_best_of_any_size_is_what_trying_all_finds(law, text_tokens, flops):
    tokens = np.linspace(1, 576, 200_001)
    errors = law.predict(flops / 2e9 / (text_tokens + tokens), tokens)
    best = law.optimal(flops, text_tokens)
    assert best.error == pytest.approx(errors.min(), rel=1e-9) and best.error <= errors.min() * (1 + 1e-12)
    assert best.tokens == pytest.approx(tokens[errors.argmin()], rel=1e-2)
    assert best.flops == pytest.approx(flops)
    assert request_flops(best.params_billion, best.tokens, text_tokens) == pytest.approx(flops)


@pytest.mark.parametrize("law", [LAW, OCR])
@pytest.mark.parametrize("text_tokens", [0, 50])
@pytest.mark.parametrize("flops", [6e10, 1e12, 1e14])
def test_the_best_of_a_list_is_what_trying_all_finds(law, text_tokens, flops):
    models = [7, 0.5, 4, 1.8]
    pairs = [(N, T) for N in models for T in range(1, 257) if request_flops(N, T, text_tokens) <= flops]
    N, T = min(pairs, key=lambda pair: (law.predict(*pair), request_flops(*pair, text_tokens)))
    best = law.optimal(flops, text_tokens, models, max_tokens=256)
    assert (best.params_billion, best.tokens) == (N, T) and isinstance(best.tokens, int)
    assert best.error == law.predict(N, T) and best.flops == request_flops(N, T, text_tokens) <= flops


def test_a_budget_that_is_just_enough_for_a_number_of_tokens():
    for tokens in range(1, 100):
        assert LAW.optimal(request_flops(1.8, tokens, 50), 50, [1.8]).tokens == tokens


def test_the_optimum_moves_with_the_text_and_not_with_the_budget():
    assert LAW.optimal(1e12).tokens == 1
    assert LAW.optimal(1e12, 50).tokens == LAW.optimal(1e14, 50).tokens == pytest.approx(50 * 0.0151 / 0.0559)
    assert LAW.optimal(1e12, 10_000).tokens == 576
    assert OCR.optimal(1e12).tokens == 576 and OCR.optimal(1e12, max_tokens=256).tokens == 256


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"flops": 0}, ValueError, "`flops` holds 0, but must be above 0"),
        ({"flops": -1e12}, ValueError, "`flops` holds -1"),
        ({"flops": float("nan")}, ValueError, "`flops` holds nan"),
        ({"flops": "1e12"}, TypeError, "`flops` holds '1e12', but must be a number"),
        ({"text_tokens": -1}, ValueError, "`text_tokens` holds -1, but must be at least 0"),
        ({"max_tokens": 0}, ValueError, "`max_tokens` holds 0, but must be at least 1"),
        ({"models": []}, ValueError, "`models` is empty"),
        ({"models": [7, 0]}, ValueError, "`models` holds 0, but must be above 0"),
        ({"models": ["7B"]}, TypeError, "`models` holds '7B'"),
        (
            {"models": [7, 4], "flops": 4e11, "text_tokens": 50},
            ValueError,
            "`flops` is 4e+11, but the smallest of `models`, 4 billion parameters, needs 4.08e+11 for 50 text tokens",
        ),
    ],
)
def test_impossible_budgets(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        LAW.optimal(**{"flops": 1e12, **arguments})
