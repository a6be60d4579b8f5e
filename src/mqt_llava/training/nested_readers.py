"""
What makes the first tokens hold the whole image: all M are read off the first m of them.

A query that is fitted to its own cell tells little of the others, and the training to come changes that slowly. So
stage 0 asks, with maps that are thrown away, for what the cells of later queries look like.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .budgets import check_positive_integer


class NestedReaders(nn.Module):
    """
    For each m in `levels`: token i of the first m says by a linear map what cell i + k is like, k = m, 2 m, ... One
    map for each k serves all tokens, so what is k cells further lies in the same directions of each.

    Args:
        num_queries: M.
        width: Of a visual token. The maps take M / m - 1 times its square of parameters, for the smallest m.
        levels: Numbers of tokens below M.

    Raises:
        TypeError, ValueError: A level is no number of tokens below M.
    """

    def __init__(self, num_queries: int, width: int, levels: Sequence[int]):
        super().__init__()
        if not isinstance(levels, Sequence):
            raise TypeError(f"`levels` is {levels!r}, but must be a list of numbers of tokens.")
        for level in levels:
            if check_positive_integer("levels", level) >= num_queries:
                raise ValueError(f"`levels` holds {level}, but must be numbers of tokens below all {num_queries}.")
        self.offsets = {level: range(level, num_queries, level) for level in levels}
        names = {str(offset) for offsets in self.offsets.values() for offset in offsets}
        self.maps = nn.ParameterDict(
            {name: torch.randn(width, width) / (2 * width**0.5) for name in sorted(names, key=int)}
        )

    def forward(self, visual_tokens: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """
        Args:
            visual_tokens: Of all queries, `(images, M, width)`.
            cells: What each is to say of its own cell, in the same shape.

        Returns:
            The mean squared error of what is read, the mean over the levels. What is the same in all images of the
            batch is left out: there is nothing to tell.
        """
        ours, theirs = visual_tokens - visual_tokens.mean(0), cells - cells.mean(0)
        errors = []
        for level, offsets in self.offsets.items():
            read = [ours[:, : theirs.shape[1] - offset][:, :level] @ self.maps[str(offset)] for offset in offsets]
            errors.append((torch.cat(read, dim=1) - theirs[:, level:]).square().mean())
        return torch.stack(errors).mean()
