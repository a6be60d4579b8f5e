"""
Names our classes in transformers' own tables. Its tests look there for what a class is for and for the processor of a
model, but `AutoModel.register` and its like write elsewhere.
"""

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from mqt_llava import MQTLlavaConfig, MQTLlavaProcessor, QueCCLlavaConfig, QueCCLlavaProcessor
from tests import test_pipeline_mixin


def register() -> None:
    for config_class, processor_class in (
        (MQTLlavaConfig, MQTLlavaProcessor),
        (QueCCLlavaConfig, QueCCLlavaProcessor),
    ):
        model_type = config_class.model_type
        name = processor_class.__name__.removesuffix("Processor")
        MODEL_MAPPING_NAMES[model_type] = f"{name}Model"
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type] = f"{name}ForConditionalGeneration"
        PROCESSOR_MAPPING_NAMES[model_type] = processor_class.__name__
        setattr(test_pipeline_mixin.transformers_module, processor_class.__name__, processor_class)
