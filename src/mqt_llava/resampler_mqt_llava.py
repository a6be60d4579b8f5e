# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""The Matryoshka query transformer: patches of an image in, nested visual tokens out."""

import math

import torch
from torch import nn

from .configuration_mqt_llava import MQTLlavaConfig


def sine_cosine_positions(side: int, width: int) -> torch.Tensor:
    """
    The 2-D sine-cosine table of "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377): the first half
    of the channels encodes the column, the second the row, each as sin and cos of position / 10000^(4 i / width).

    Returns:
        Float32 `(side * side, width)`, row by row.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) * 4 / width)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    one_axis = torch.cat([angles.sin(), angles.cos()], dim=-1)
    columns, rows = one_axis.repeat(side, 1), one_axis.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=-1).float()


class MQTLlavaResampler(nn.Module):
    """
    The Matryoshka query transformer (arXiv 2405.19315), as in the released weights.

    Queries are learned vectors plus their position, keys are the positions of the patches alone, values the patches.
    So queries, keys and attention weights are the same for every image and are computed once per call.
    """

    def __init__(self, config: MQTLlavaConfig):
        super().__init__()
        width, self.num_heads = config.vision_config.hidden_size, config.resampler_num_attention_heads
        if self.num_heads < 1 or width % self.num_heads or width % 4:
            raise ValueError(
                f"The vision tower's hidden size is {width}, but must be divisible by 4 (sine and cosine of two axes) "
                f"and by `resampler_num_attention_heads`, which is {self.num_heads}."
            )
        self.query = nn.Parameter(torch.empty(config.max_visual_tokens, width))
        # Frozen, but kept in the checkpoint: the released table has been rounded to half precision.
        positions = sine_cosine_positions(math.isqrt(config.max_visual_tokens), width)
        self.register_buffer("query_positions", positions)
        self.ln_q = nn.LayerNorm(width, eps=1e-6)
        self.ln_k = nn.LayerNorm(width, eps=1e-6)
        self.ln_v = nn.LayerNorm(width, eps=1e-6)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, config.text_config.hidden_size, bias=False)

    def patch_positions(self, num_patches: int) -> torch.Tensor:
        """The queries' raster, resized to the patch grid: `(num_patches, width)`."""
        # Not `math.isqrt`: when compiled, the number of patches is a symbol.
        side, grid = math.isqrt(len(self.query_positions)), int(num_patches**0.5)
        if grid * grid != num_patches:
            raise ValueError(
                f"The vision tower gives {num_patches} tokens per image, which is no square grid of patches. With "
                "`vision_feature_select_strategy='full'` nothing is dropped; with 'default' class tokens are."
            )
        if grid == side:
            return self.query_positions.to(self.query.dtype)
        raster = self.query_positions.float().T.reshape(1, -1, side, side)
        resized = nn.functional.interpolate(raster, size=(grid, grid), mode="bicubic", align_corners=False)
        return resized.flatten(2)[0].T.to(self.query.dtype)

    def attention_weights(self, num_patches: int, num_queries: int) -> torch.Tensor:
        """Where each query looks, whatever the image: `(heads, num_queries, num_patches)`."""

        def split_heads(states):
            return states.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)

        # Loading in another dtype leaves tables as they were saved.
        positions = self.query_positions[:num_queries].to(self.query.dtype)
        queries = self.q_proj(self.ln_q(self.query[:num_queries] + positions))
        keys = self.k_proj(self.ln_k(self.patch_positions(num_patches)))
        queries, keys = split_heads(queries), split_heads(keys)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        return scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)

    def forward(self, patches: torch.Tensor, num_queries: int | None = None) -> torch.Tensor:
        """
        Args:
            patches: `(images, patches, vision width)`.
            num_queries: How many of the M queries to compute, all by default.

        Returns:
            Visual tokens `(images, num_queries, decoder width)`.
        """
        num_images, num_patches, width = patches.shape
        weights = self.attention_weights(num_patches, len(self.query) if num_queries is None else num_queries)
        values = self.v_proj(self.ln_v(patches)).unflatten(-1, (self.num_heads, -1))
        # The weights are shared, so the images stand side by side in one product per head. torch's SDPA is about as
        # fast, and all this is 1% to 3% of the image path (benchmarks/resampler_attention.py): plain products stay.
        context = weights @ values.permute(2, 1, 0, 3).flatten(2)
        context = context.unflatten(-1, (num_images, -1)).permute(2, 1, 0, 3).flatten(2)
        return self.proj(self.out_proj(context))
