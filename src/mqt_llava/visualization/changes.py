"""What more visual tokens change about an answer."""

from collections.abc import Sequence

import torch

from .answers import ImageAnswer


@torch.no_grad()
def probabilities_by_budget(answer: ImageAnswer, budgets: Sequence[int]) -> torch.Tensor:
    """
    How probable each token of the answer is at several numbers of visual tokens, given the tokens before it.

    Returns:
        `(budgets, answer tokens)`.

    Raises:
        TypeError, ValueError: A budget is no integer in 1..M.
    """
    rows = [answer.log_probabilities(answer.visual_tokens(answer.patches, budget)) for budget in budgets]
    return torch.cat(rows).exp()


def largest_changes(probabilities: torch.Tensor, count: int) -> list[list[int]]:
    """
    The tokens that move most from each budget to the next.

    Args:
        probabilities: From [`probabilities_by_budget`], `(budgets, answer tokens)`.
        count: How many tokens of a step.

    Returns:
        For each of the budgets - 1 steps the indices of at most `count` answer tokens, most moved first.

    Raises:
        ValueError: There are not two budgets.
    """
    if len(probabilities) < 2:
        raise ValueError(f"There are probabilities at {len(probabilities)} budgets, but there must be at least 2.")
    moves = probabilities.diff(dim=0).abs()
    return moves.topk(min(count, moves.shape[1])).indices.tolist()
