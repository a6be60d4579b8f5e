"""Measures that tests hold against a bound."""

import torch


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The greatest difference, over the greatest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()
