"""Laws that are found again in scores made from them, and what noise does to them."""

import sys

import numpy as np
import pytest

from mqt_llava.planning import ScalingLaw, fit_scaling_law


pytest.importorskip("scipy")

SIZES, TOKENS = (0.5, 1.8, 4, 7), (1, 4, 16, 36, 64, 144, 576)
LAWS = [ScalingLaw(0.5, 0.3, 0.1, 0.2), ScalingLaw(0.59, 0.071, 0.015, 0.0), ScalingLaw(0.4, 0.05, 0.4, 0.3)]


def table_of(law: ScalingLaw, noise: float = 0.0, seed: int = 0) -> list[tuple[float, float, float]]:
    rng = np.random.default_rng(seed)
    return [(N, T, 1 - law.predict(N, T) + noise * rng.standard_normal()) for N in SIZES for T in TOKENS]


@pytest.mark.parametrize("law", LAWS)
def test_a_law_is_found_in_scores_without_noise(law):
    fit = fit_scaling_law(table_of(law), num_bootstrap=0)
    for name, value in vars(law).items():
        assert getattr(fit.law, name) == pytest.approx(value, abs=2e-5)
    assert fit.squared_error < 1e-12 and fit.residuals.shape == (28,)
    assert fit.profile_interval() == pytest.approx((law.D, law.D), abs=1e-4)


@pytest.mark.parametrize("law", LAWS)
def test_no_other_law_is_nearer(law):
    fit = fit_scaling_law(table_of(law, noise=0.005), num_bootstrap=0)
    figures = np.array(fit.observations)
    rng = np.random.default_rng(1)
    for _ in range(300):
        other = np.array(list(vars(fit.law).values())) * np.exp(rng.normal(scale=0.05, size=4))
        errors = ScalingLaw(*other).predict(figures[:, 0], figures[:, 1])
        assert np.square(1 - figures[:, 2] - errors).sum() >= fit.squared_error


def test_dicts_and_tuples_in_any_order_are_the_same_table():
    table = table_of(LAWS[0], noise=0.01)
    dicts = [dict(zip(("params_billion", "tokens", "score"), row)) for row in reversed(table)]
    laws = [fit_scaling_law(rows, num_bootstrap=0).law for rows in (table, iter(dicts))]
    assert list(vars(laws[0]).values()) == pytest.approx(list(vars(laws[1]).values()), rel=1e-4)


def test_intervals_cover_and_narrow_with_the_noise():
    law, widths = LAWS[0], []
    for noise in (0.01, 0.002):
        fit = fit_scaling_law(table_of(law, noise), num_bootstrap=200)
        for name, value in vars(law).items():
            low, high = fit.interval(name)
            assert low < value < high
        low, high = fit.interval(lambda law: law.optimal(1e12, 50).tokens)
        assert low < law.optimal(1e12, 50).tokens < high
        low, high = fit.profile_interval()
        assert low < law.D < high
        narrow = fit.interval("alpha", confidence=0.5)
        widths.append(np.diff(fit.interval("alpha")).item())
        assert np.diff(narrow).item() < widths[-1]
    assert widths[1] < widths[0] / 3


def test_intervals_are_right_about_as_often_as_they_say():
    law, covered = LAWS[0], []
    for seed in range(20):
        fit = fit_scaling_law(table_of(law, noise=0.005, seed=seed), num_bootstrap=40, seed=seed)
        intervals = [fit.interval(name, 0.8) for name in vars(law)]
        covered.append([low < value < high for value, (low, high) in zip(vars(law).values(), intervals)])
    assert all(10 <= count <= 20 for count in np.sum(covered, axis=0))


def test_a_seed_gives_the_same_intervals():
    table = table_of(LAWS[0], noise=0.01)
    fits = [fit_scaling_law(table, num_bootstrap=5, seed=seed) for seed in (3, 3, 4)]
    assert fits[0].bootstrap == fits[1].bootstrap != fits[2].bootstrap


def test_the_profile_ends_where_a_law_fits_too_badly():
    from scipy.stats import f

    fit = fit_scaling_law(table_of(LAWS[0], noise=0.005), num_bootstrap=0)
    limit = fit.squared_error * (1 + f.ppf(0.95, 1, 24) / 24)
    figures = np.array(fit.observations)
    for D in fit.profile_interval():
        law = fit.at(D)
        assert law.D == D
        squared_error = np.square(1 - figures[:, 2] - law.predict(figures[:, 0], figures[:, 1])).sum()
        assert squared_error == pytest.approx(limit, rel=1e-3)
    assert fit.at(fit.law.D).alpha == pytest.approx(fit.law.alpha, rel=1e-4)


def test_scores_that_tokens_do_not_change():
    fit = fit_scaling_law([(N, T, 0.5 + 0.02 * N) for N in SIZES for T in TOKENS], num_bootstrap=0)
    assert fit.law.beta == pytest.approx(0, abs=1e-5) and fit.law.optimal(1e12, 50).tokens == 1


def test_perfect_scores_and_useless_ones():
    for score in (0.0, 1.0):
        law = fit_scaling_law([(N, T, score) for N in SIZES for T in TOKENS], num_bootstrap=2).law
        assert law.predict(4, 36) == pytest.approx(1 - score, abs=1e-3)


@pytest.mark.parametrize(
    "table, message",
    [
        ([], "`table` has 0 different pairs of parameters and tokens"),
        (table_of(LAWS[0])[:4] * 3, "`table` has 4 different pairs .* must have at least 5"),
        (table_of(LAWS[0])[:7], "several sizes and several numbers of tokens"),
        ([row for row in table_of(LAWS[0]) + [(9, 1, 0.5)] if row[1] == 1], "several sizes and several numbers"),
        ([(2**k, 4**k, 0.1 * k) for k in range(6)], "vary independently"),
        ([*table_of(LAWS[0]), (7, 576, 48.5)], "Row 29 of `table` has score 48.5"),
        ([*table_of(LAWS[0]), (-7, 576, 0.5)], "Row 29 of `table` has params_billion -7"),
    ],
)
def test_tables_that_determine_no_law(table, message):
    with pytest.raises(ValueError, match=message):
        fit_scaling_law(table)


def test_bad_arguments():
    table = table_of(LAWS[0], noise=0.01)
    with pytest.raises(ValueError, match="`num_bootstrap` is -1"):
        fit_scaling_law(table, num_bootstrap=-1)
    fit = fit_scaling_law(table, num_bootstrap=0)
    with pytest.raises(ValueError, match="There is no bootstrap"):
        fit.interval("alpha")
    fit = fit_scaling_law(table, num_bootstrap=2)
    with pytest.raises(ValueError, match="`quantity` is 'gamma', but must be one of A, alpha, beta, D"):
        fit.interval("gamma")
    for confidence in (0, 1, 95):
        with pytest.raises(ValueError, match=f"`confidence` is {confidence}"):
            fit.interval("alpha", confidence)
        with pytest.raises(ValueError, match=f"`confidence` is {confidence}"):
            fit.profile_interval(confidence)


def test_without_scipy_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r'pip install "mqt_llava\[plan\]"'):
        fit_scaling_law(table_of(LAWS[0]))
