"""Names of the original MQT-LLaVA checkpoint for those of `MQTLlavaForConditionalGeneration`."""

import re
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
from checkpoint_reader import CheckpointReader
from tensor_recipes import Recipe


VISION_PREFIX = "model.vision_tower.vision_tower.vision_model."
RESAMPLER_PREFIX = "model.query_abstractor."
EMBEDDINGS = ("model.language_model.embed_tokens.weight", "lm_head.weight")


class Part(NamedTuple):
    """A part of the model, under a prefix of some checkpoint."""

    checkpoint: CheckpointReader
    prefix: str


def query_projection(tensor: torch.Tensor, index: int) -> torch.Tensor:
    """One of the query, key and value projections, which `nn.MultiheadAttention` keeps as one."""
    return tensor.tensor_split(3)[index]


def with_mean_rows(weight: torch.Tensor, number: int) -> torch.Tensor:
    """
    Rows for tokens that the original does not have, each the mean of the others (taken in float32). The model never
    predicts `<image>`; in engines with a head of their own, the mean of the logits is never the greedy choice either.
    """
    mean = weight.mean(dim=0, dtype=torch.float32).to(weight.dtype)
    return torch.cat([weight, mean.expand(number, -1)])


RESAMPLER_SOURCES = {
    "query_positions": ("pos_embed", None),
    "proj.weight": ("proj", torch.t),
    **{
        f"{name}_proj.{kind}": (f"attn.in_proj_{kind}", partial(query_projection, index=index))
        for index, name in enumerate("qkv")
        for kind in ("weight", "bias")
    },
    "out_proj.weight": ("attn.out_proj.weight", None),
    "out_proj.bias": ("attn.out_proj.bias", None),
}


def mqt_llava_recipes(
    names: Iterable[str], vision: Part, resampler: Part, language: Part, num_new_tokens: int
) -> dict[str, Recipe]:
    """
    Args:
        names: The new model's tensors.
        vision, resampler, language: Where the original's parts are.
        num_new_tokens: Rows by which the vocabulary grows.

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
            source, transform = RESAMPLER_SOURCES.get(key, (key, None))
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
    Whether an original tensor is left out on purpose: layers of the vision tower above the one whose output is used,
    tables that are computed today, the parts of a whole CLIP that are not its vision tower, and a head that is the
    embedding matrix.
    """
    layer = re.search(r"vision_model\.encoder\.layers\.(\d+)\.", name)
    if layer:
        return int(layer[1]) >= num_vision_layers
    if name == "lm_head.weight":
        return is_head_tied
    return bool(COMPUTED.search(name) or OTHER_HALF_OF_CLIP.match(name))
