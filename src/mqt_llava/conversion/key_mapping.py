"""
Names of original checkpoints of the LLaVA family for those of this package's models.

Vision tower and language model are called alike in all of them. What a compressor's tensors are called is passed in.
"""

import re
from collections.abc import Callable, Iterable
from functools import partial

import torch

from .original_parts import Part
from .tensor_recipes import Recipe


EMBEDDINGS = ("model.language_model.embed_tokens.weight", "lm_head.weight")

# A compressor's tensors by their new names, each with the original name and what is done to the original.
Sources = dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor] | None]]


def input_projection(tensor: torch.Tensor, index: int) -> torch.Tensor:
    """One of the query, key and value projections, which `nn.MultiheadAttention` keeps as one."""
    return tensor.tensor_split(3)[index]


def attention_sources(attention: str) -> Sources:
    """The four projections of the `nn.MultiheadAttention` that the original calls `attention`."""
    return {
        **{
            f"{name}_proj.{kind}": (f"{attention}.in_proj_{kind}", partial(input_projection, index=index))
            for index, name in enumerate("qkv")
            for kind in ("weight", "bias")
        },
        "out_proj.weight": (f"{attention}.out_proj.weight", None),
        "out_proj.bias": (f"{attention}.out_proj.bias", None),
    }


def with_mean_rows(weight: torch.Tensor, number: int) -> torch.Tensor:
    """
    Rows for tokens that the original does not have, each the mean of the others (taken in float32). The model never
    predicts `<image>`; in engines with a head of their own, the mean of the logits is never the greedy choice either.
    """
    mean = weight.mean(dim=0, dtype=torch.float32).to(weight.dtype)
    return torch.cat([weight, mean.expand(number, -1)])


def llava_recipes(
    names: Iterable[str], vision: Part, resampler: Part, language: Part, num_new_tokens: int, sources: Sources
) -> dict[str, Recipe]:
    """
    Args:
        names: The new model's tensors.
        vision, resampler, language: Where the original's parts are.
        num_new_tokens: Rows by which the vocabulary grows.
        sources: The compressor's tensors, without prefixes. One that is not in it is called the same as before.

    Returns:
        A recipe per name, whose source need not exist.
    """
    recipes = {}
    for name in names:
        if name.startswith("model.vision_tower."):
            source = vision.prefix + name.removeprefix("model.vision_tower.")
            recipes[name] = Recipe(vision.checkpoint, source)
        elif name.startswith("model.resampler."):
            key = name.removeprefix("model.resampler.")
            source, transform = sources.get(key, (key, None))
            recipes[name] = Recipe(resampler.checkpoint, resampler.prefix + source, transform)
        else:
            source = language.prefix + name.replace("model.language_model.", "model.", 1)
            transform = partial(with_mean_rows, number=num_new_tokens) if name in EMBEDDINGS else None
            recipes[name] = Recipe(language.checkpoint, source, transform)
    return recipes


COMPUTED = re.compile(r"\.position_ids$|\.inv_freq$")
OTHER_HALF_OF_CLIP = re.compile(r"text_model\.|(visual|text)_projection\.|logit_scale$")


def is_dropped(name: str, num_vision_layers: int, is_head_tied: bool = False) -> bool:
    """
    Whether an original tensor is left out on purpose: layers of the vision tower above the last one whose output is
    used, tables that are computed today, the parts of a whole CLIP that are not its vision tower, and a head that is
    the embedding matrix.
    """
    layer = re.search(r"vision_model\.encoder\.layers\.(\d+)\.", name)
    if layer:
        return int(layer[1]) >= num_vision_layers
    if name == "lm_head.weight":
        return is_head_tied
    return bool(COMPUTED.search(name) or OTHER_HALF_OF_CLIP.match(name))
