# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""MQT-LLaVA for vLLM: `pip install "mqt_llava[serve]"`, and `vllm serve CHECKPOINT` works without remote code."""


def register() -> None:
    """What vLLM's entry point `vllm.general_plugins` calls in each of its processes."""
    from vllm import ModelRegistry

    # By name, since importing the class would initialise CUDA before vLLM forks. The auto classes are registered by
    # importing this package.
    ModelRegistry.register_model(
        "MQTLlavaForConditionalGeneration", "mqt_llava.serving.vllm_mqt_llava:MQTLlavaForVLLM"
    )


__all__ = ["register"]
