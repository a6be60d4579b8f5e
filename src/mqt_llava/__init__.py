# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""MQT-LLaVA for transformers: importing this package registers the model with the auto classes."""

from importlib.metadata import version

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .adaptive_mqt_llava import AdaptiveBudget
from .configuration_mqt_llava import MQTLlavaConfig
from .modeling_mqt_llava import MQTLlavaForConditionalGeneration, MQTLlavaModel, MQTLlavaPreTrainedModel
from .processing_mqt_llava import MQTLlavaProcessor


AutoConfig.register("mqt_llava", MQTLlavaConfig)
AutoModel.register(MQTLlavaConfig, MQTLlavaModel)
AutoModelForImageTextToText.register(MQTLlavaConfig, MQTLlavaForConditionalGeneration)
AutoProcessor.register(MQTLlavaConfig, MQTLlavaProcessor)

__version__ = version("mqt_llava")

__all__ = [
    "AdaptiveBudget",
    "MQTLlavaConfig",
    "MQTLlavaForConditionalGeneration",
    "MQTLlavaModel",
    "MQTLlavaPreTrainedModel",
    "MQTLlavaProcessor",
]
