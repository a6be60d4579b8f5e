"""Small random configurations of MQT-LLaVA, QueCC-LLaVA and LLaVA, with many kinds of vision towers and decoders."""

import random

from transformers import AutoConfig, LlavaConfig, PreTrainedConfig

from mqt_llava import MQTLlavaConfig, QueCCLlavaConfig


VOCABULARY, IMAGE_TOKEN_ID = 101, 100
VISION_TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers")
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2", "gpt_neox")


def random_vision_config(rng: random.Random, name: str) -> PreTrainedConfig:
    heads, patch_size = rng.choice((1, 2, 4)), rng.choice((4, 7))
    options = {
        "hidden_size": heads * rng.choice((8, 12)), "num_hidden_layers": rng.randint(2, 4),
        "num_attention_heads": heads, "patch_size": patch_size, "image_size": patch_size * rng.randint(3, 6),
    }  # fmt: skip
    if name.startswith("dinov2"):
        options |= {"mlp_ratio": rng.choice((2, 4)), "use_swiglu_ffn": rng.random() < 0.5}
        options["qkv_bias"] = rng.random() < 0.5
    else:
        options["intermediate_size"] = rng.randint(20, 60)
    if name == "dinov2":
        options["use_mask_token"] = rng.random() < 0.5
    if name == "dinov2_with_registers":
        options["num_register_tokens"] = rng.randint(1, 5)
    if name == "siglip_vision_model":
        options["vision_use_head"] = rng.random() < 0.5
    return AutoConfig.for_model(name, **options)


def random_text_config(rng: random.Random, name: str, may_tie: bool = True) -> PreTrainedConfig:
    kv_heads, group, layers = rng.choice((1, 2)), rng.choice((1, 2, 3)), rng.randint(1, 3)
    heads = kv_heads * group
    width = heads * 2 * rng.randint(2, 6)
    options = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    options["tie_word_embeddings"] = may_tie and rng.random() < 0.5
    if name == "gpt2":
        options |= {"n_embd": width, "n_layer": layers, "n_head": heads, "n_inner": rng.choice((None, 33))}
        return AutoConfig.for_model(name, **options, n_positions=300)
    options |= {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": rng.randint(20, 60), "max_position_embeddings": 300,
    }  # fmt: skip
    if name != "gpt_neox":
        options["num_key_value_heads"] = kv_heads
    if name in ("llama", "qwen3", "gemma", "gpt_neox"):
        options["attention_bias"] = rng.random() < 0.5
    if name == "llama":
        options["mlp_bias"] = rng.random() < 0.5
    if name in ("llama", "qwen3", "gemma"):
        options["head_dim"] = 2 * rng.randint(2, 6)
    if name == "mistral":
        options["sliding_window"] = rng.choice((None, rng.randint(4, 60)))
    if name in ("qwen2", "qwen3"):
        options |= {"use_sliding_window": rng.random() < 0.5, "sliding_window": rng.randint(4, 60)}
        options["max_window_layers"] = rng.randint(0, layers)
    return AutoConfig.for_model(name, **options)


def random_mqt_config(seed: int) -> MQTLlavaConfig:
    rng = random.Random(seed)
    vision_config = random_vision_config(rng, VISION_TOWERS[seed % len(VISION_TOWERS)])
    layer = rng.randint(1, vision_config.num_hidden_layers) * rng.choice((1, -1))
    return MQTLlavaConfig(
        vision_config=vision_config,
        text_config=random_text_config(rng, DECODERS[seed % len(DECODERS)]),
        image_token_id=IMAGE_TOKEN_ID,
        max_visual_tokens=rng.choice((4, 9, 16, 25)),
        resampler_num_attention_heads=rng.choice((1, 2, 4)),
        vision_feature_layer=layer,
    )


def random_quecc_config(seed: int) -> QueCCLlavaConfig:
    rng = random.Random(2000 + seed)
    vision_config = random_vision_config(rng, VISION_TOWERS[seed % len(VISION_TOWERS)])
    side, layers = vision_config.image_size // vision_config.patch_size, vision_config.num_hidden_layers

    def layer():
        return rng.randint(1, layers) * rng.choice((1, -1))

    return QueCCLlavaConfig(
        vision_config=vision_config,
        text_config=random_text_config(rng, DECODERS[seed % len(DECODERS)]),
        image_token_id=IMAGE_TOKEN_ID,
        kernel_size=rng.choice([kernel for kernel in range(1, side + 1) if side % kernel == 0]),
        resampler_num_attention_heads=rng.choice((1, 2, 4)),
        vision_feature_layer=layer(),
        vision_context_layers=[layer() for _ in range(rng.randint(1, 4))],
    )


def random_llava_config(seed: int) -> LlavaConfig:
    rng = random.Random(1000 + seed)
    vision_config = random_vision_config(rng, VISION_TOWERS[seed % len(VISION_TOWERS)])
    name = DECODERS[seed % len(DECODERS)]
    layers = vision_config.num_hidden_layers
    return LlavaConfig(
        vision_config=vision_config,
        # LLaVA ties its head to embeddings of Llama's name for them.
        text_config=random_text_config(rng, name, may_tie=not name.startswith("gpt")),
        image_token_index=IMAGE_TOKEN_ID,
        vision_feature_layer=rng.choice((-2, -1, [1, -1], layers)),
        vision_feature_select_strategy=rng.choice(("default", "full")),
        multimodal_projector_bias=rng.random() < 0.5,
    )
