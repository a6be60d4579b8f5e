# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""MQT-LLaVA and QueCC-LLaVA for transformers: importing this package registers both with the auto classes."""

from importlib.metadata import version
from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForPreTraining,
    AutoProcessor,
)

from .models.adaptive_budget import AdaptiveBudget
from .models.configuration_mqt_llava import MQTLlavaConfig
from .models.configuration_quecc_llava import QueCCLlavaConfig
from .models.modeling_mqt_llava import MQTLlavaForConditionalGeneration, MQTLlavaModel, MQTLlavaPreTrainedModel
from .models.modeling_quecc_llava import QueCCLlavaForConditionalGeneration, QueCCLlavaModel, QueCCLlavaPreTrainedModel
from .models.processing_mqt_llava import MQTLlavaProcessor
from .models.processing_quecc_llava import QueCCLlavaProcessor
from .models.visual_token_cache import VisualTokenCache


for config, model, model_with_head, processor in (
    (MQTLlavaConfig, MQTLlavaModel, MQTLlavaForConditionalGeneration, MQTLlavaProcessor),
    (QueCCLlavaConfig, QueCCLlavaModel, QueCCLlavaForConditionalGeneration, QueCCLlavaProcessor),
):
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForPreTraining):
        auto_class.register(config, model_with_head)
    AutoProcessor.register(config, processor)

__version__ = version("mqt_llava")

EMBEDDED_CHECKPOINT = Path(__file__).parent / "mqt-llava-tiny"
"""Folder of a small checkpoint that comes with the package."""

__all__ = [
    "EMBEDDED_CHECKPOINT",
    "AdaptiveBudget",
    "MQTLlavaConfig",
    "MQTLlavaForConditionalGeneration",
    "MQTLlavaModel",
    "MQTLlavaPreTrainedModel",
    "MQTLlavaProcessor",
    "QueCCLlavaConfig",
    "QueCCLlavaForConditionalGeneration",
    "QueCCLlavaModel",
    "QueCCLlavaPreTrainedModel",
    "QueCCLlavaProcessor",
    "VisualTokenCache",
]
