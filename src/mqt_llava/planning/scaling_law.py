"""
How the error of a model falls with its size and its visual tokens, and what to spend a compute budget on.

The law is the one of "Inference Optimal VLMs" (arXiv 2411.03312, section 3):

    error = A / N**alpha / T**beta + D        N: billions of decoder parameters, T: visual tokens

A request costs 2 N (Q + T) FLOPs there, with Q tokens of text: each parameter is multiplied and added once per token.
That leaves out attention and the vision tower, which `request_cost` counts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Optimum:
    """
    The model and the number of visual tokens that a law expects the least error of.

    Args:
        params_billion: N.
        tokens: T, visual tokens. A whole number where the sizes of models were given.
        error: What the law predicts, a share.
        flops: Of the request; below the budget where whole tokens do not use it up.
    """

    params_billion: float
    tokens: float
    error: float
    flops: float


@dataclass(frozen=True)
class ScalingLaw:
    """
    error = A / N**alpha / T**beta + D.

    Args:
        A: Error of 1 billion parameters with 1 visual token, beyond `D`.
        alpha: How fast the error falls with the parameters.
        beta: How fast it falls with the visual tokens.
        D: Error that neither parameters nor tokens take away.
    """

    A: float
    alpha: float
    beta: float
    D: float

    def predict(self, N: ArrayLike, T: ArrayLike) -> np.ndarray:
        """Errors, of billions of parameters `N` and visual tokens `T`: numbers, or arrays that broadcast."""
        return self.A * np.power(N, -self.alpha) * np.power(T, -self.beta) + self.D

    def optimal(
        self,
        flops: float,
        text_tokens: float = 0,
        models: Sequence[float] | None = None,
        max_tokens: float = 576,
    ) -> Optimum:
        """
        The least error for a compute budget.

        With models of any size, N is flops / 2 (Q + T), and A / N**alpha / T**beta is least where its derivative by T
        is zero: at T = Q beta / (alpha - beta), the same for every budget. Where that is less than one token, one is
        best; where beta is not below alpha, the error falls with every further token.

        Args:
            flops: The most FLOPs of the decoder for one request, 2 N (Q + T).
            text_tokens: Q, tokens of a prompt that are processed besides the visual ones; 0 where they are cached.
            models: Billions of parameters of the models there are. By default of any size.
            max_tokens: The most visual tokens that a model can take.

        Raises:
            TypeError: An argument is no number.
            ValueError: An argument is out of range, `models` is empty, or no model fits with one visual token.
        """
        _check_number("flops", flops, "above 0", lambda value: value > 0)
        _check_number("text_tokens", text_tokens, "at least 0", lambda value: value >= 0)
        _check_number("max_tokens", max_tokens, "at least 1", lambda value: value >= 1)
        if models is None:
            tokens = max_tokens
            if self.alpha > self.beta:
                tokens = min(max(1.0, text_tokens * self.beta / (self.alpha - self.beta)), max_tokens)
            return self._optimum(flops / 2e9 / (text_tokens + tokens), tokens, text_tokens)

        if len(models) == 0:
            raise ValueError("`models` is empty: pass billions of parameters, or None for models of any size.")
        for model in models:
            _check_number("models", model, "above 0", lambda value: value > 0)
        # More tokens never hurt a model, so each takes all that it can afford; 3.9999999 are 4 that were rounded.
        affordable = {model: math.floor(flops / 2e9 / model - text_tokens + 1e-6) for model in models}
        fitting = {model: min(tokens, math.floor(max_tokens)) for model, tokens in affordable.items() if tokens >= 1}
        if not fitting:
            need = request_flops(min(models), 1, text_tokens)
            raise ValueError(
                f"`flops` is {flops:.4g}, but the smallest of `models`, {min(models)} billion parameters, needs "
                f"{need:.4g} for {text_tokens} text tokens and one visual token already."
            )
        optima = [self._optimum(model, tokens, text_tokens) for model, tokens in fitting.items()]
        return min(optima, key=lambda optimum: (optimum.error, optimum.flops))

    def _optimum(self, N: float, T: float, Q: float) -> Optimum:
        return Optimum(N, T, float(self.predict(N, T)), request_flops(N, T, Q))


def request_flops(N: Any, T: Any, Q: Any = 0) -> Any:
    """FLOPs of the decoder for `Q` text tokens and `T` visual tokens, with `N` billion parameters: 2 N (Q + T)."""
    return 2e9 * N * (Q + T)


def _check_number(name: str, value: Any, allowed: str, is_allowed: Callable[[Any], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` holds {value!r}, but must be a number.")
    if not (math.isfinite(value) and is_allowed(value)):
        raise ValueError(f"`{name}` holds {value}, but must be {allowed}.")
