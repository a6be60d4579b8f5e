# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""QueCC, query-based convolutional cross-attention: patches and a question in, few visual tokens out."""

import math

import torch
from torch import nn

from .configuration_quecc_llava import QueCCLlavaConfig


class QueCCMLP(nn.Sequential):
    def __init__(self, in_width: int, width: int):
        super().__init__(nn.Linear(in_width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width, eps=1e-6))


class QueCCLlavaResampler(nn.Module):
    """
    The compressor of "Inference Optimal VLMs Need Fewer Visual Tokens and More Parameters" (arXiv 2411.03312, section
    4), as in the published code.

    The patches are cut into windows of k x k. What the decoder makes of the question is added to all of them; a
    convolution turns each window into one query, which attends to the patches of its own window alone, as several
    layers of the vision tower show them.
    """

    def __init__(self, config: QueCCLlavaConfig):
        super().__init__()
        width, decoder_width = config.vision_config.hidden_size, config.text_config.hidden_size
        self.num_heads, self.kernel_size = config.resampler_num_attention_heads, config.kernel_size
        if self.num_heads < 1 or width % self.num_heads:
            raise ValueError(
                f"The vision tower's hidden size is {width}, but must be divisible by "
                f"`resampler_num_attention_heads`, which is {self.num_heads}."
            )
        context_width = width * len(config.vision_context_layers)
        self.text_proj = nn.Linear(decoder_width, width)
        self.ln_text = nn.LayerNorm(width, eps=1e-6)
        self.q_mlp = QueCCMLP(width, width)
        self.k_mlp = QueCCMLP(context_width, width)
        self.v_mlp = QueCCMLP(context_width, width)
        self.q_downsample = nn.Conv2d(width, width, self.kernel_size, stride=self.kernel_size, groups=width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.proj = nn.Sequential(nn.Linear(width, decoder_width), nn.GELU(), nn.Linear(decoder_width, decoder_width))

    def windows(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches `(images, patches, width)`, row by row, as `(images, windows, patches of a window, width)`."""
        side = math.isqrt(patches.shape[1])
        kernel = self.kernel_size
        patches = patches.unflatten(1, (side // kernel, kernel, side // kernel, kernel))
        return patches.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def forward(self, patches: torch.Tensor, context: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        """
        Args:
            patches: `(images, patches, vision width)`, which the queries are made of.
            context: `(images, patches, context layers * vision width)`, for keys and values.
            question: `(images, decoder width)`, the decoder's last hidden state behind the question.

        Returns:
            Visual tokens `(images, windows, decoder width)`, window by window from the top left.

        Raises:
            ValueError: The patches are no square grid that the windows divide.
        """
        side = math.isqrt(patches.shape[1])
        if side * side != patches.shape[1] or side % self.kernel_size:
            raise ValueError(
                f"The vision tower gives {patches.shape[1]} tokens per image, which is no square grid that windows of "
                f"{self.kernel_size} x {self.kernel_size} divide (`kernel_size`)."
            )

        def split_heads(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

        question = self.ln_text(self.text_proj(question))
        grid = self.q_mlp(patches + question[:, None]).transpose(1, 2).unflatten(-1, (side, side))
        queries = self.q_downsample(grid).flatten(2).transpose(1, 2)

        # (images, windows, heads, 1 query or the patches of a window, width of a head)
        queries = split_heads(self.q_proj(queries)[:, :, None])
        keys = split_heads(self.windows(self.k_proj(self.k_mlp(context))))
        values = split_heads(self.windows(self.v_proj(self.v_mlp(context))))
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype)
        return self.proj(self.out_proj((weights @ values).flatten(2)))
