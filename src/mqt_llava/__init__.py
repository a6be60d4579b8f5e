# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""MQT-LLaVA for transformers: importing this package registers the model with the auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .configuration_mqt_llava import MQTLlavaConfig
from .modeling_mqt_llava import MQTLlavaForConditionalGeneration, MQTLlavaModel, MQTLlavaPreTrainedModel
from .processing_mqt_llava import MQTLlavaProcessor


AutoConfig.register("mqt_llava", MQTLlavaConfig)
AutoModel.register(MQTLlavaConfig, MQTLlavaModel)
AutoModelForImageTextToText.register(MQTLlavaConfig, MQTLlavaForConditionalGeneration)
AutoProcessor.register(MQTLlavaConfig, MQTLlavaProcessor)

__version__ = "0.1.0"

__all__ = [
    "MQTLlavaConfig",
    "MQTLlavaForConditionalGeneration",
    "MQTLlavaModel",
    "MQTLlavaPreTrainedModel",
    "MQTLlavaProcessor",
]
