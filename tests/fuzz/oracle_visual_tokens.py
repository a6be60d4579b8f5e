"""
Visual tokens by the formulas of the two papers, over the weights of the module and one image at a time.

Only the vision tower, which is transformers' own, is run as a module.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def affine(module, states: Tensor) -> Tensor:
    return states @ module.weight.T + (0 if module.bias is None else module.bias)


def normalise(module, states: Tensor) -> Tensor:
    centred = states - states.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * module.weight + module.bias


def attend(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int) -> Tensor:
    """Attention head by head; `(queries, width)`, `(keys, width)`, `(keys, width)`."""
    width = queries.shape[-1] // num_heads
    heads = []
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        weights = (queries[:, part] @ keys[:, part].T / math.sqrt(width)).softmax(-1)
        heads.append(weights @ values[:, part])
    return torch.cat(heads, dim=-1)


@torch.no_grad()
def mqt_visual_tokens(model, pixels: Tensor) -> Tensor:
    """All M tokens of one image, `(M, decoder width)`."""
    resampler = model.model.resampler
    patches = model.model.vision_tower(pixels[None]).last_hidden_state[0, 1:]
    positions = resampler.query_positions
    side, grid = math.isqrt(len(positions)), math.isqrt(len(patches))
    raster = positions.T.reshape(1, -1, side, side)
    if side != grid:
        raster = F.interpolate(raster, size=(grid, grid), mode="bicubic", align_corners=False)
    queries = affine(resampler.q_proj, normalise(resampler.ln_q, resampler.query + positions))
    keys = affine(resampler.k_proj, normalise(resampler.ln_k, raster.flatten(2)[0].T))
    values = affine(resampler.v_proj, normalise(resampler.ln_v, patches))
    seen = attend(queries, keys, values, model.config.resampler_num_attention_heads)
    return affine(resampler.out_proj, seen) @ resampler.proj.weight.T


@torch.no_grad()
def quecc_visual_tokens(model, pixels: Tensor, question: tuple[int, ...]) -> Tensor:
    """The tokens of one image for one question, `(visual tokens, decoder width)`."""
    resampler, config = model.model.resampler, model.config
    states = model.model.vision_tower(pixels[None], output_hidden_states=True).hidden_states
    # Layers above the last that is used are not built, so counting from the end goes by the configuration's number.
    first = config.vision_feature_layer % (config.vision_config.num_hidden_layers + 1)
    patches = states[first][0, 1:]
    context = torch.cat([states[layer][0, 1:] for layer in config.vision_context_layers], dim=-1)
    asked = model.model.language_model(input_ids=torch.tensor([question]), use_cache=False).last_hidden_state[0, -1]

    def mlp(module, x: Tensor) -> Tensor:
        return normalise(module[3], affine(module[2], F.gelu(affine(module[0], x))))

    grid = mlp(resampler.q_mlp, patches + normalise(resampler.ln_text, affine(resampler.text_proj, asked)))
    keys = affine(resampler.k_proj, mlp(resampler.k_mlp, context))
    values = affine(resampler.v_proj, mlp(resampler.v_mlp, context))
    side, kernel, tokens = math.isqrt(len(patches)), config.kernel_size, []
    for top in range(0, side, kernel):
        for left in range(0, side, kernel):
            window = [(top + y) * side + left + x for y in range(kernel) for x in range(kernel)]
            weights = resampler.q_downsample.weight.flatten(1).T  # (patches of a window, width)
            query = (grid[window] * weights).sum(0) + resampler.q_downsample.bias
            query = affine(resampler.q_proj, query[None])
            seen = attend(query, keys[window], values[window], config.resampler_num_attention_heads)
            seen = affine(resampler.out_proj, seen)
            tokens.append(affine(resampler.proj[2], F.gelu(affine(resampler.proj[0], seen))))
    return torch.cat(tokens)
