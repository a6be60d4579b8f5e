"""What several test files need that is no fixture."""

from pathlib import Path

from mqt_llava import MQTLlavaConfig, QueCCLlavaConfig


REPOSITORY = Path(__file__).parents[1]
FIXTURES = REPOSITORY / "tests" / "fixtures"
GOLDEN_NAMES = ("mqt_llava_original_tiny", "mqt_llava_original_tiny_legacy_false")
QUECC_GOLDEN_NAME = "quecc_original_tiny"


VISION_CONFIG = {
    "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 7,
}  # fmt: skip
TEXT_CONFIG = {
    "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def tiny_config(**kwargs) -> MQTLlavaConfig:
    """28-pixel images in 16 patches, M = 16, a vocabulary of 100 with `<image>` = 99."""
    defaults = {"vision_config": VISION_CONFIG, "text_config": TEXT_CONFIG}
    return MQTLlavaConfig(**{**defaults, "image_token_id": 99, "max_visual_tokens": 16, **kwargs})


def tiny_quecc_config(**kwargs) -> QueCCLlavaConfig:
    """28-pixel images in 16 patches, windows of 2 x 2, so 4 visual tokens; a vocabulary of 100 with `<image>` = 99."""
    defaults = {"vision_config": VISION_CONFIG, "text_config": TEXT_CONFIG, "vision_context_layers": [1, 2]}
    return QueCCLlavaConfig(**{**defaults, "image_token_id": 99, "kernel_size": 2, **kwargs})
