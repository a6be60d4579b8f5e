"""What more visual tokens change about an answer."""

from collections.abc import Sequence

import torch

from .image_answer import ImageAnswer


@torch.no_grad()
def probabilities_by_num_visual_tokens(answer: ImageAnswer, num_visual_tokens: Sequence[int]) -> torch.Tensor:
    """
    How probable each token of the answer is at several numbers of visual tokens, given the tokens before it.

    Returns:
        `(numbers, answer tokens)`.

    Raises:
        TypeError, ValueError: One of the numbers is no integer in 1..M.
    """
    rows = [answer.log_probabilities(answer.visual_tokens(answer.patches, m)) for m in num_visual_tokens]
    return torch.cat(rows).exp()


def largest_changes(probabilities: torch.Tensor, count: int) -> list[list[int]]:
    """
    The tokens that move most from each m to the next.

    Args:
        probabilities: From [`probabilities_by_num_visual_tokens`], `(numbers, answer tokens)`.
        count: How many tokens of a step.

    Returns:
        For each of the steps from one m to the next the indices of at most `count` answer tokens, most moved first.

    Raises:
        ValueError: There are not two numbers.
    """
    if len(probabilities) < 2:
        raise ValueError(
            f"There are probabilities at {len(probabilities)} numbers of visual tokens, but there must be at least 2."
        )
    moves = probabilities.diff(dim=0).abs()
    return moves.topk(min(count, moves.shape[1])).indices.tolist()
