"""What the tensors of an original checkpoint are called, and look like, once they are converted."""

import re

import torch
from torch import Tensor


VISION = "model.vision_tower.vision_tower.vision_model."
# QueCC keeps its modules in one sequence: (pattern of the old name, new name).
QUECC_NAMES = (
    (r"0\.text_projection\.0\.(.*)", r"text_proj.\1"),
    (r"0\.text_projection\.1\.(.*)", r"ln_text.\1"),
    (r"0\.([qkv])_proj\.(\d)\.(.*)", r"\1_mlp.\2.\3"),
    (r"0\.q_downsample\.(.*)", r"q_downsample.\1"),
    (r"0\.clip_attn\.out_proj\.(.*)", r"out_proj.\1"),
    (r"1\.(.*)", r"proj.0.\1"),
    (r"3\.(.*)", r"proj.2.\1"),
)


def converted_tensors(original: dict[str, Tensor], used_vision_layers: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """
    Args:
        original: As it is saved, tower included.
        used_vision_layers: How many of the tower's layers are kept.
        dtype: What all of it is converted to.
    """
    converted = {}
    for name, tensor in original.items():
        converted |= convert(name, tensor, used_vision_layers)
    return {name: tensor.to(dtype) for name, tensor in converted.items()}


def convert(name: str, tensor: Tensor, used_vision_layers: int) -> dict[str, Tensor]:
    if name.startswith(VISION):
        name = name.removeprefix(VISION)
        layer = re.match(r"encoder\.layers\.(\d+)\.", name)
        if (layer and int(layer[1]) >= used_vision_layers) or name.endswith("position_ids"):
            return {}
        return {f"model.vision_tower.{name}": tensor}
    resampler = re.fullmatch(r"model\.(query_abstractor|mm_projector)\.(.*)", name)
    if resampler is None:
        if name in ("model.embed_tokens.weight", "lm_head.weight"):  # a row for `<image>`
            tensor = torch.cat([tensor, tensor.float().mean(0, keepdim=True).to(tensor.dtype)])
        return {re.sub(r"^model\.", "model.language_model.", name): tensor}
    new = resampler[2]
    if joint := re.search(r"attn\.in_proj_(weight|bias)$", new):
        parts = tensor.chunk(3)
        return {f"model.resampler.{which}_proj.{joint[1]}": part for which, part in zip("qkv", parts)}
    if resampler[1] == "query_abstractor":
        if new == "proj":
            tensor = tensor.T
        new = {"pos_embed": "query_positions", "proj": "proj.weight"}.get(new, new.removeprefix("attn."))
    else:
        new = next(re.sub(old, text, new) for old, text in QUECC_NAMES if re.fullmatch(old, new))
    return {f"model.resampler.{new}": tensor}
