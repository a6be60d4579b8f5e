# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""The models for vLLM: `pip install "mqt_llava[serve]"`, and `vllm serve CHECKPOINT` works without remote code."""


def register() -> None:
    """What vLLM's entry point `vllm.general_plugins` calls in each of its processes."""
    from vllm import ModelRegistry

    # By name, since importing the classes would initialise CUDA before vLLM forks. The auto classes are registered by
    # importing this package.
    for name, module in (("MQTLlava", "vllm_mqt_llava"), ("QueCCLlava", "vllm_quecc_llava")):
        ModelRegistry.register_model(f"{name}ForConditionalGeneration", f"mqt_llava.serving.{module}:{name}ForVLLM")


__all__ = ["register"]
