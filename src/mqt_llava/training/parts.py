"""The parts of a model, and which of them are trained how fast."""

from torch import nn

from ..models.modeling_compressed_llava import CompressedLlavaForConditionalGeneration


# The head goes with the decoder, whose embeddings it may share.
PARTS = {
    "vision_tower": ("model.vision_tower.",),
    "resampler": ("model.resampler.",),
    "language_model": ("model.language_model.", "lm_head."),
}


def part_of(name: str) -> str:
    """
    The part that a parameter belongs to, also inside the wrappers of PEFT and of distributed training.

    Args:
        name: As in `model.named_parameters()`.
    """
    return next(part for part, prefixes in PARTS.items() if any(prefix in name for prefix in prefixes))


def train_parts(model: CompressedLlavaForConditionalGeneration, parts: list[str]) -> None:
    """
    Lets the named parts be trained and freezes the others.

    Args:
        model: The model.
        parts: Of `"resampler"` (the compressor), `"language_model"` and `"vision_tower"`.

    Raises:
        ValueError: An unknown part, or none.
    """
    if not parts or not set(parts) <= set(PARTS):
        raise ValueError(f"`trained_parts` is {parts}, but must name some of {', '.join(PARTS)}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)


def parameter_groups(
    model: nn.Module, decayed: set[str], weight_decay: float, learning_rates: dict[str, float | None]
) -> list[dict]:
    """
    What an optimizer is given: the parameters that are trained, by part and by whether they decay.

    Args:
        model: The model, wrapped or not.
        decayed: Names of the parameters with weight decay.
        weight_decay: Of those.
        learning_rates: Of each part, where it is not the common one.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name), name in decayed), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if is_decayed else 0.0}
        | ({"lr": learning_rates[part]} if learning_rates.get(part) is not None else {})
        for (part, is_decayed), parameters in groups.items()
    ]
