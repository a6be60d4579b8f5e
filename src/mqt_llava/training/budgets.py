"""
How many visual tokens a batch is trained on.

The contract: m is a pure function of the seed, the epoch and the ids of the batch's records. No generator is
kept, so it is the same with any number of data workers and after a resume, and differs from rank to rank and from step
to step.
"""

import ast
import random
from collections.abc import Sequence
from typing import Any


class BudgetSampler:
    """
    Draws the number of visual tokens m of one batch after the other.

    Args:
        weights: How often each m is drawn, relative to the others.

    Raises:
        TypeError, ValueError: An m is no positive integer, or a weight no positive number.
    """

    def __init__(self, weights: dict[int, float]):
        if not isinstance(weights, dict) or not weights:
            raise ValueError(f"`weights` is {weights!r}, but must say how often each m is drawn: {{4: 1, 16: 2}}.")
        for m, weight in weights.items():
            check_positive_integer("m", m)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
                raise ValueError(f"`weights[{m}]` is {weight!r}, but must be a positive number.")
        self.weights = weights

    @property
    def largest(self) -> int:
        return max(self.weights)

    def __call__(self, seed: int, epoch: int, record_ids: Sequence[str]) -> int:
        """The m of the batch that holds these records."""
        rng = random.Random(repr((seed, epoch, list(record_ids))))
        return rng.choices(list(self.weights), list(self.weights.values()))[0]


class FixedBudget(BudgetSampler):
    """Always m: the paper's stage 1, and its baseline of an independent model for each m (QT-LLaVA)."""

    def __init__(self, m: int):
        super().__init__({check_positive_integer("m", m): 1})


class UniformBudget(BudgetSampler):
    """Each of `low, low + step, ..., high` as often. The paper's stage 2 is `UniformBudget(2, 256, step=2)`."""

    def __init__(self, low: int, high: int, step: int = 1):
        for name, value in (("low", low), ("high", high), ("step", step)):
            check_positive_integer(name, value)
        if low > high:
            raise ValueError(f"`low` is {low} and `high` is {high}, but `low` must not exceed `high`.")
        super().__init__(dict.fromkeys(range(low, high + 1, step), 1))


class LogBudget(BudgetSampler):
    """Each power of two up to `high` as often, as Matryoshka representation learning nests (arXiv 2205.13147)."""

    def __init__(self, high: int):
        super().__init__(
            dict.fromkeys((2**power for power in range(check_positive_integer("high", high).bit_length())), 1)
        )


class WeightedBudget(BudgetSampler):
    """A list of m, each as often as its weight says: `WeightedBudget({4: 1, 64: 2, 256: 1})`."""


SAMPLERS = {sampler.__name__: sampler for sampler in (FixedBudget, UniformBudget, LogBudget, WeightedBudget)}


def parse_budget(text: str) -> list[BudgetSampler]:
    """
    Samplers from a configuration file: `"UniformBudget(2, 256, step=2)"`, or several to be learned at once,
    `"FixedBudget(2), LogBudget(64), FixedBudget(256)"`.

    Raises:
        ValueError: The text is no list of samplers.
    """
    try:
        samplers: list[BudgetSampler] = []
        calls: Any = ast.parse(f"({text},)", mode="eval").body  # what it is not is an AttributeError
        for call in calls.elts:
            arguments = [ast.literal_eval(argument) for argument in call.args]
            keywords = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
            samplers.append(SAMPLERS[call.func.id](*arguments, **keywords))
        return samplers
    except (SyntaxError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`budget` is {text!r}, but must be one or several of {', '.join(SAMPLERS)}, "
            f"such as 'UniformBudget(2, 256, step=2)': {error}"
        ) from error


def check_positive_integer(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` is {value!r}, but must be an integer.")
    if value < 1:
        raise ValueError(f"`{name}` is {value}, but must be at least 1.")
    return value
