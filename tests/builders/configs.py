"""Configurations of small models."""

from transformers import AutoConfig, PreTrainedConfig

from mqt_llava import MQTLlavaConfig, QueCCLlavaConfig
from tests.builders.prompts import IMAGE_TOKEN_ID


VISION_CONFIG = {
    "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 7,
}  # fmt: skip
TEXT_CONFIG = {
    "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DECODERS = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma": {"head_dim": 8, "tie_word_embeddings": True},
    "mistral": {"sliding_window": None, "tie_word_embeddings": False},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {},
}


def tiny_config(**kwargs) -> MQTLlavaConfig:
    """28-pixel images in 16 patches, M = 16, a vocabulary of 100 with `<image>` = 99."""
    defaults = {"vision_config": VISION_CONFIG, "text_config": TEXT_CONFIG}
    return MQTLlavaConfig(**{**defaults, "image_token_id": IMAGE_TOKEN_ID, "max_visual_tokens": 16, **kwargs})


def tiny_quecc_config(**kwargs) -> QueCCLlavaConfig:
    """28-pixel images in 16 patches, windows of 2 x 2, so 4 visual tokens; a vocabulary of 100 with `<image>` = 99."""
    defaults = {"vision_config": VISION_CONFIG, "text_config": TEXT_CONFIG, "vision_context_layers": [1, 2]}
    return QueCCLlavaConfig(**{**defaults, "image_token_id": IMAGE_TOKEN_ID, "kernel_size": 2, **kwargs})


def decoder_config(name: str) -> PreTrainedConfig:
    text_config = {"num_key_value_heads": 2, **TEXT_CONFIG}
    if name == "gpt2":
        text_config = {key: TEXT_CONFIG[key] for key in TEXT_CONFIG if key.endswith("_id") or key == "vocab_size"}
    return AutoConfig.for_model(name, **{**text_config, **DECODERS[name]})
