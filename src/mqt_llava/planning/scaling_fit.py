"""
A scaling law fitted to scores by least squares, and how well they determine it.

A law with a larger D and larger exponents can be almost the same over the sizes and tokens that were measured. So the
fit starts from several D, the bootstrap shows what noise does to every quantity, and the profile over D how much worse
the best law with another D fits.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np

from .observations import Observation, check_observations
from .scaling_law import ScalingLaw


NUM_UNKNOWNS = 4
LOWER = np.array([-np.inf, 0.0, 0.0, 0.0])  # of ln A, alpha, beta and D
UPPER = np.array([np.inf, np.inf, np.inf, 1.0])
STARTS = np.array([0.0, 0.25, 0.5, 0.75])  # D as a share of the least error that was measured
LEAST_ERROR = 1e-3  # whose logarithm is taken for a start
TOLERANCE = 1e-10


@dataclass(frozen=True)
class ScalingFit:
    """
    Args:
        law: Of least squared error.
        observations: What it is fitted to, n of them.
        bootstrap: Laws fitted to scores that are drawn anew.
    """

    law: ScalingLaw
    observations: tuple[Observation, ...]
    bootstrap: tuple[ScalingLaw, ...]

    @property
    def residuals(self) -> np.ndarray:
        """Errors that were measured less those of the law: `(n,)`."""
        return _residuals(self.law, self.observations)

    @cached_property
    def squared_error(self) -> float:
        """Sum of the squared residuals."""
        return float(np.square(self.residuals).sum())

    def interval(self, quantity: str | Callable[[ScalingLaw], float], confidence: float = 0.95) -> tuple[float, float]:
        """
        Percentile interval over the bootstrap.

        Args:
            quantity: The name of a parameter, or a function of the law.
            confidence: In 0..1.

        Raises:
            ValueError: There is no such parameter or no bootstrap, or `confidence` is out of range.
        """
        _check_confidence(confidence)
        if not self.bootstrap:
            raise ValueError("There is no bootstrap: pass `num_bootstrap` to `fit_scaling_law`.")
        if isinstance(quantity, str):
            if quantity not in vars(self.law):
                raise ValueError(f"`quantity` is {quantity!r}, but must be one of {', '.join(vars(self.law))}.")
            values = [getattr(law, quantity) for law in self.bootstrap]
        else:
            values = [quantity(law) for law in self.bootstrap]
        low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)

    def at(self, D: float) -> ScalingLaw:
        """The law of least squared error among those with this D."""
        _require_scipy()
        return _least_squares(_design(self.observations), _errors(self.observations), D)

    def profile_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """
        All D, up to the least error that was measured, with which a law fits not much worse: the least squared error
        at D is at most 1 + F / (n - 4) times that of the best law, F being the quantile of the F distribution with 1
        and n - 4 degrees of freedom (Bates and Watts, Nonlinear Regression Analysis, 1988, chapter 6).

        Raises:
            ValueError: `confidence` is out of range.
        """
        _check_confidence(confidence)
        _require_scipy()
        from scipy.optimize import brentq
        from scipy.stats import f

        freedom = len(self.observations) - NUM_UNKNOWNS
        limit = self.squared_error * (1 + f.ppf(confidence, 1, freedom) / freedom)

        def excess(D: float) -> float:
            return float(np.square(_residuals(self.at(D), self.observations)).sum()) - limit

        if excess(self.law.D) >= 0:  # scores without noise
            return self.law.D, self.law.D
        least_error = float(_errors(self.observations).min())
        ends = (0.0, max(self.law.D, least_error))
        low, high = [end if excess(end) <= 0 else brentq(excess, self.law.D, end, xtol=1e-6) for end in ends]
        return low, high


def fit_scaling_law(table: Iterable, *, num_bootstrap: int = 1000, seed: int = 0) -> ScalingFit:
    """
    Fits error = A / N**alpha / T**beta + D by least squares, with A > 0, alpha >= 0, beta >= 0 and D in 0..1.

    The bootstrap is one of residuals, which keeps the table's sizes and tokens as they are: to the law's errors,
    residuals are added that are drawn with replacement, centred and scaled by sqrt(n / (n - 4)) for what the fit has
    taken from them (Davison and Hinkley, Bootstrap Methods and their Application, 1997, chapters 6 and 7). It takes
    the noise of all scores to be equally large and independent. Scores of one model at several numbers of tokens
    hardly are, so the intervals are rather too narrow.

    Args:
        table: Rows of (billions of parameters, visual tokens, score in 0..1), or dicts of `params_billion`, `tokens`
            and `score`.
        num_bootstrap: How often to fit again; 0 for none.
        seed: Of the bootstrap.

    Raises:
        ImportError: SciPy is missing.
        ValueError: Fewer than 5 different points, sizes and tokens that do not vary independently, or figures out of
            range.
    """
    _require_scipy()
    observations = tuple(check_observations(table))
    different = {(observation.params_billion, observation.tokens) for observation in observations}
    if len(different) <= NUM_UNKNOWNS:
        raise ValueError(
            f"`table` has {len(different)} different pairs of parameters and tokens, but to fit and judge "
            f"{NUM_UNKNOWNS} unknowns it must have at least {NUM_UNKNOWNS + 1}."
        )
    if np.linalg.matrix_rank(_design(observations)) < 3:
        raise ValueError(
            "`table` must have several sizes and several numbers of tokens that vary independently of each other."
        )
    if isinstance(num_bootstrap, bool) or not isinstance(num_bootstrap, int) or num_bootstrap < 0:
        raise ValueError(f"`num_bootstrap` is {num_bootstrap!r}, but must be an integer of at least 0.")

    design, errors, count = _design(observations), _errors(observations), len(observations)
    law = _least_squares(design, errors)
    residuals = _residuals(law, observations)
    predicted = errors - residuals
    noise = (residuals - residuals.mean()) * math.sqrt(count / (count - NUM_UNKNOWNS))
    rng = np.random.default_rng(seed)
    bootstrap = [_least_squares(design, predicted + rng.choice(noise, count), start=law) for _ in range(num_bootstrap)]
    return ScalingFit(law, observations, tuple(bootstrap))


def _design(observations: tuple[Observation, ...]) -> np.ndarray:
    """`(n, 3)`: ln(error - D) of a law is the product with (ln A, alpha, beta)."""
    figures = np.array(observations)
    return np.stack([np.ones(len(figures)), -np.log(figures[:, 0]), -np.log(figures[:, 1])], axis=1)


def _errors(observations: tuple[Observation, ...]) -> np.ndarray:
    return 1 - np.array(observations)[:, 2]


def _residuals(law: ScalingLaw, observations: tuple[Observation, ...]) -> np.ndarray:
    figures = np.array(observations)
    return _errors(observations) - law.predict(figures[:, 0], figures[:, 1])


def _least_squares(
    design: np.ndarray, errors: np.ndarray, D: float | None = None, start: ScalingLaw | None = None
) -> ScalingLaw:
    """
    The best descent over (ln A, alpha, beta) and, where it is not given, D: from `start`, or else from straight lines
    through the logarithms for several D.
    """
    from scipy.optimize import least_squares

    is_free = D is None
    size = 4 if is_free else 3

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.exp(design @ x[:3]) + (x[3] if D is None else D) - errors

    def jacobian(x: np.ndarray) -> np.ndarray:
        slopes = np.exp(design @ x[:3])[:, None] * design
        return np.column_stack([slopes, np.ones(len(errors))]) if is_free else slopes

    if start is not None:
        starts = [[math.log(start.A), *astuple(start)[1:]]]
    else:
        starts = []
        for first_D in STARTS * errors.min() if is_free else [D]:
            logarithms = np.log(np.maximum(errors - first_D, LEAST_ERROR))
            starts.append([*np.linalg.lstsq(design, logarithms, rcond=None)[0], first_D])
    lower, upper = LOWER[:size], UPPER[:size]
    descents = [
        least_squares(
            residuals,
            np.clip(x[:size], lower, upper),
            jacobian,
            bounds=(lower, upper),
            x_scale="jac",
            ftol=TOLERANCE,
            xtol=TOLERANCE,
            gtol=TOLERANCE,
        )
        for x in starts
    ]
    x = min(descents, key=lambda descent: descent.cost).x.tolist()
    return ScalingLaw(math.exp(x[0]), x[1], x[2], x[3] if D is None else D)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` is {confidence}, but must be between 0 and 1.")


def _require_scipy() -> None:
    try:
        import scipy  # noqa: F401
    except ImportError as error:
        raise ImportError('Fitting a scaling law needs SciPy: `pip install "mqt_llava[plan]"`.') from error
