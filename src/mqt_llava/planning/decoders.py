"""Decoders by the `model_type` of their configuration, with transformers' `DynamicCache`."""

from dataclasses import dataclass

from transformers import PreTrainedConfig

from .blocks import Blocks


@dataclass(frozen=True)
class Decoder:
    """
    Args:
        windows: How many tokens each layer looks back at, its own included; `None` without sliding window.
        other_weights: Outside blocks, embeddings and head: position embeddings, last norm.
        is_tied: Whether the head is the embedding matrix.
    """

    blocks: Blocks
    windows: tuple[int | None, ...]
    vocab_size: int
    other_weights: int
    is_tied: bool

    @property
    def head_weights(self) -> int:
        return self.blocks.hidden_size * self.vocab_size

    @property
    def num_weights(self) -> int:
        return self.blocks.num_weights + self.other_weights + self.head_weights * (1 if self.is_tied else 2)

    def read_flops(self, length: int) -> int:
        """`length` tokens, without logits."""
        return self.blocks.flops(length, self.blocks.num_layers * length**2)

    def prefill_flops(self, length: int) -> int:
        """A prompt of `length` tokens, with logits for its last token alone, which is what `generate` asks for."""
        return self.read_flops(length) + 2 * self.head_weights

    def decode_flops(self, past: int, steps: int = 1) -> int:
        """`steps` tokens, one after the other, after `past` tokens in the cache."""
        pairs = 0
        for window in self.windows:
            # Step s sees past + s keys as long as they fit into the window.
            growing = steps if window is None else min(max(window - past, 0), steps)
            pairs += growing * past + growing * (growing + 1) // 2
            pairs += 0 if window is None else (steps - growing) * window
        return self.blocks.flops(steps, pairs) + steps * 2 * self.head_weights

    def cached_numbers(self, length: int) -> int:
        """Numbers that the cache holds after `length` tokens. Of a window it keeps all but the newest's place."""
        tokens = sum(length if window is None else min(length, window - 1) for window in self.windows)
        return 2 * tokens * self.blocks.kv_width


@dataclass(frozen=True)
class _Kind:
    """What tells a decoder with rotary positions and RMSNorm from another: biases, norms of queries and keys."""

    qkv_bias: str | bool = False  # the name of the option, where there is one
    output_bias: str | bool = False
    mlp_bias: str | bool = False
    has_qk_norm: bool = False


LLAMA_LIKE = {
    "llama": _Kind("attention_bias", "attention_bias", "mlp_bias"),
    "mistral": _Kind(),
    "qwen2": _Kind(qkv_bias=True),
    "qwen3": _Kind("attention_bias", "attention_bias", has_qk_norm=True),
    "gemma": _Kind("attention_bias", "attention_bias"),
}


def _llama_like(config: PreTrainedConfig) -> tuple[Blocks, int]:
    kind, width, mlp_width = LLAMA_LIKE[config.model_type], config.hidden_size, config.intermediate_size

    def has(bias: str | bool) -> bool:
        return getattr(config, bias) if isinstance(bias, str) else bias

    head_dim = getattr(config, "head_dim", None) or width // config.num_attention_heads
    query_width, kv_width = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    vectors = 2 * width + 2 * head_dim * kind.has_qk_norm  # RMSNorms
    vectors += (query_width + 2 * kv_width) * has(kind.qkv_bias) + width * has(kind.output_bias)
    vectors += (2 * mlp_width + width) * has(kind.mlp_bias)
    return Blocks(config.num_hidden_layers, width, query_width, kv_width, mlp_width, 3, vectors), width


def _gpt2(config: PreTrainedConfig) -> tuple[Blocks, int]:
    width, mlp_width = config.n_embd, config.n_inner or 4 * config.n_embd
    vectors = 4 * width + mlp_width + width + 4 * width  # biases, two LayerNorms
    return Blocks(config.n_layer, width, width, width, mlp_width, 2, vectors), (config.n_positions + 2) * width


def _gpt_neox(config: PreTrainedConfig) -> tuple[Blocks, int]:
    width, mlp_width = config.hidden_size, config.intermediate_size
    vectors = 4 * width * config.attention_bias + mlp_width + width + 4 * width
    return Blocks(config.num_hidden_layers, width, width, width, mlp_width, 2, vectors), 2 * width


DECODERS = {**dict.fromkeys(LLAMA_LIKE, _llama_like), "gpt2": _gpt2, "gpt_neox": _gpt_neox}


def decoder(config: PreTrainedConfig, is_tied: bool) -> Decoder:
    """
    A decoder and its head.

    Raises:
        ValueError: A kind of decoder whose costs are not known.
    """
    if config.model_type not in DECODERS:
        raise ValueError(
            f"The decoder is a {config.model_type!r}, but costs are known for {', '.join(DECODERS)} only."
        )
    blocks, other_weights = DECODERS[config.model_type](config)
    window = getattr(config, "sliding_window", None)
    # Where a configuration does not say which layers slide, all do.
    layer_types = getattr(config, "layer_types", None) or ["sliding_attention"] * blocks.num_layers
    windows = tuple(window if layer_type == "sliding_attention" else None for layer_type in layer_types)
    return Decoder(blocks, windows, config.vocab_size, other_weights, is_tied)
