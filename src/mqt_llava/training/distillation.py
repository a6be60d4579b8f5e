"""
The loss of distillation: how far a model's answers are from its teacher's.

Teacher and model read the same answers after prompts of different length, since each has visual tokens of its own
number. So logits are compared answer token by answer token, wherever in its row each stands.
"""

import torch
from torch import nn


IGNORED = -100


def answer_columns(labels: torch.Tensor) -> torch.Tensor:
    """
    The columns whose logits predict an answer token in some row, long `(columns,)`: what `logits_to_keep` is told
    where nothing else is looked at.

    Args:
        labels: Long `(batch, length)`, -100 where there is no answer.
    """
    return labels[:, 1:].ne(IGNORED).any(0).nonzero()[:, 0]


def answer_logits(logits: torch.Tensor, labels: torch.Tensor, columns: torch.Tensor | None = None) -> torch.Tensor:
    """
    The logits that predict answer tokens, row by row.

    Args:
        logits: `(batch, length, vocabulary)`, or `(batch, columns, vocabulary)` of these columns alone.
        labels: Long `(batch, length)`, -100 where there is no answer.
        columns: Which columns `logits` holds, all by default.

    Returns:
        `(answer tokens, vocabulary)`.
    """
    is_answer = labels[:, 1:].ne(IGNORED)
    return logits[:, :-1][is_answer] if columns is None else logits[is_answer[:, columns]]


def divergence(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    KL(teacher || student) of distributions softened by a temperature T, times T^2, so that gradients are of one size
    whatever T is ("Distilling the Knowledge in a Neural Network", arXiv 1503.02531).

    Args:
        logits, teacher_logits: `(answer tokens, vocabulary)`, of any dtype.
        temperature: T.

    Returns:
        The sum over the answer tokens in nats, float32.
    """
    student = (logits.float() / temperature).log_softmax(-1)
    teacher = (teacher_logits.float() / temperature).log_softmax(-1)
    return temperature**2 * nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)
