"""
Where in an image an answer, or a visual token, comes from.

What is explained is a number y, a function of the patch features A that the query transformer compresses (`(patches,
width)`, the hidden state of the vision tower that `config.vision_feature_layer` names). The MQT-LLaVA paper shows
Grad-CAMs but does not say which y it differentiates; here it is

- for an answer at m visual tokens, y(A) = sum of log p(token | question, first m visual tokens, tokens before it) over
  the chosen tokens of the answer (teacher forcing);
- for an answer through visual token i alone, the same with the other m - 1 visual tokens held at what they are for
  the image: what goes from the image through that token into the answer;
- for visual token i without a question, y(A) = v_i(A) . u, with u the direction of v_i at the image. At the image, its
  gradient is that of the token's L2 norm. It does not depend on m, since tokens nest.

The methods give each patch p a number, positive where the patch speaks for the answer:

- `integrated_gradients`: (A_p - B_p) . mean of dy/dA_p on the straight line from B to A (Sundararajan et al. 2017,
  arXiv 1703.01365), with B the features of an image that is all padding. The numbers sum to y(A) - y(B).
- `grad_cam`: A_p . mean over q of dy/dA_q (Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2 without ReLU).
  The mean says which features matter but forgets where.

Without that mean, A_p . dy/dA_p (HiResCAM, Draelos and Carin 2020, arXiv 2011.08891) is not offered: the query
transformer begins with a LayerNorm of each patch, so y does not change along A_p, and the product is rounding.
"""

import math
from collections.abc import Callable, Sequence

import torch

from ..extra import import_extra
from .image_answer import ImageAnswer


METHODS = ("integrated_gradients", "grad_cam")
"""What `method` may be."""
STEPS = 32  # of the integral, a Gauss-Legendre quadrature; with half of them no difference can be seen
BATCH_SIZE = 8  # images that are run at once

Score = Callable[[torch.Tensor], torch.Tensor]


def answer_heatmap(
    answer: ImageAnswer,
    num_visual_tokens: int,
    answer_tokens: Sequence[int] | int | None = None,
    visual_token: int | None = None,
    method: str = "integrated_gradients",
    steps: int = STEPS,
) -> torch.Tensor:
    """
    Where an answer comes from.

    Args:
        num_visual_tokens: m, at which it is given.
        answer_tokens: Which of `answer.tokens` to explain, counted from 0; all of them by default.
        visual_token: Follow the image through this visual token alone, 0..m - 1.
        method: One of `METHODS`, see above.
        steps: Of integrated gradients; the time that a heatmap takes is in proportion.

    Returns:
        `(grid, grid)`, signed. With integrated gradients it is in nats.

    Raises:
        TypeError, ValueError: There is no such token or method, or m is outside 1..M.
        ImportError: Integrated gradients need captum.
    """
    score = answer_score(answer, num_visual_tokens, answer_tokens, visual_token)
    return attribute(score, answer.patches, answer.blank_patches, method, steps)


def visual_token_heatmap(answer: ImageAnswer, visual_token: int, method: str = "integrated_gradients") -> torch.Tensor:
    """
    Where a visual token comes from, whatever the question and the number of tokens.

    Args:
        visual_token: 0..M - 1.
        method: One of `METHODS`, see above.

    Returns:
        `(grid, grid)`, signed.

    Raises:
        TypeError, ValueError: There is no such token or method.
        ImportError: Integrated gradients need captum.
    """
    check_visual_token(visual_token, answer.model.config.max_visual_tokens)

    def score(patches: torch.Tensor) -> torch.Tensor:
        return answer.visual_tokens(patches, visual_token + 1)[:, visual_token] @ direction

    with torch.no_grad():
        token = answer.visual_tokens(answer.patches, visual_token + 1)[0, visual_token]
        direction = token / token.norm()
    return attribute(score, answer.patches, answer.blank_patches, method)


def answer_score(
    answer: ImageAnswer,
    num_visual_tokens: int,
    answer_tokens: Sequence[int] | int | None = None,
    visual_token: int | None = None,
) -> Score:
    """
    The y of [`answer_heatmap`] as a function of patch features: `(images, patches, width)` to `(images,)`.

    Raises:
        TypeError, ValueError: There is no such token, or m is outside 1..M.
    """
    with torch.no_grad():
        held = answer.visual_tokens(answer.patches, num_visual_tokens)
    chosen = answer.check_answer_tokens(answer_tokens)
    if visual_token is not None:
        check_visual_token(visual_token, num_visual_tokens)

    def score(patches: torch.Tensor) -> torch.Tensor:
        tokens = answer.visual_tokens(patches, num_visual_tokens)
        if visual_token is not None:
            is_followed = torch.arange(num_visual_tokens, device=tokens.device) == visual_token
            tokens = torch.where(is_followed[:, None], tokens, held)
        return answer.log_probabilities(tokens)[:, chosen].sum(-1)

    return score


@torch.enable_grad()
def attribute(
    score: Score, patches: torch.Tensor, blank_patches: torch.Tensor, method: str, steps: int = STEPS
) -> torch.Tensor:
    """
    What each patch contributes to the score of an image.

    Args:
        score: `(images, patches, width)` to `(images,)`.
        patches, blank_patches: `(1, patches, width)`.
        method: One of `METHODS`, see above.
        steps: Of integrated gradients.

    Returns:
        `(grid, grid)`.
    """
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}, but must be one of {', '.join(METHODS)}.")
    if method == "integrated_gradients":
        integrated_gradients = import_extra("captum.attr").IntegratedGradients(score)
        products = integrated_gradients.attribute(
            patches, blank_patches, n_steps=steps, internal_batch_size=BATCH_SIZE
        )
    else:
        patches = patches.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(score(patches).sum(), patches)
        products = patches * gradient.mean(1, keepdim=True)
    grid = math.isqrt(patches.shape[1])
    return products.detach().sum(-1).reshape(grid, grid)


def check_visual_token(visual_token: int, num_visual_tokens: int) -> None:
    if isinstance(visual_token, bool) or not isinstance(visual_token, int):
        raise TypeError(f"`visual_token` is {visual_token!r}, but must be an integer.")
    if not 0 <= visual_token < num_visual_tokens:
        raise ValueError(
            f"`visual_token` is {visual_token}, but of {num_visual_tokens} visual tokens it must be in "
            f"0..{num_visual_tokens - 1}."
        )
