"""Tiny checkpoints with random weights, laid out as transformers' pipeline tests look for them in a folder."""

import json
from pathlib import Path

from transformers import (
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from mqt_llava import (
    MQTLlavaForConditionalGeneration,
    MQTLlavaProcessor,
    QueCCLlavaForConditionalGeneration,
    QueCCLlavaProcessor,
)
from mqt_llava.models.processing_compressed_llava import IMAGE_TOKEN
from tests.builders.configs import TEXT_CONFIG, VISION_CONFIG, tiny_config, tiny_quecc_config
from tests.builders.paths import CHECKPOINT


MQT_TOKENS, QUECC_TOKENS = tiny_config().max_visual_tokens, tiny_quecc_config().num_visual_tokens


def tokenizer() -> PreTrainedTokenizerBase:
    # Under this name, transformers' tests ask tokenizers for the placeholder.
    return AutoTokenizer.from_pretrained(CHECKPOINT, extra_special_tokens={"image_token": IMAGE_TOKEN})


def image_processor() -> LlavaImageProcessorPil:
    side = VISION_CONFIG["image_size"]
    return LlavaImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def processors() -> dict[str, ProcessorMixin]:
    """By model type."""
    parts = {"image_processor": image_processor(), "tokenizer": tokenizer()}
    return {
        "llava": LlavaProcessor(
            **parts,
            patch_size=VISION_CONFIG["patch_size"],
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        ),
        "mqt_llava": MQTLlavaProcessor(**parts, max_visual_tokens=MQT_TOKENS),
        "quecc_llava": QueCCLlavaProcessor(**parts, max_visual_tokens=QUECC_TOKENS),
    }


def models() -> dict:
    """By model type."""
    names = tokenizer()
    text_config = {**TEXT_CONFIG, "vocab_size": len(names), "pad_token_id": names.pad_token_id}
    arguments = {"text_config": text_config, "image_token_id": names.convert_tokens_to_ids(IMAGE_TOKEN)}
    llava_config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION_CONFIG},
        text_config={"model_type": "llama", **text_config},
        image_token_index=arguments["image_token_id"],
    )
    return {
        "llava": LlavaForConditionalGeneration(llava_config),
        "mqt_llava": MQTLlavaForConditionalGeneration(tiny_config(**arguments)),
        "quecc_llava": QueCCLlavaForConditionalGeneration(tiny_quecc_config(**arguments)),
    }


def save(folder: Path) -> None:
    """Saves models with their processors, and the list of them that the pipeline tests read."""
    summary = {}
    named_processors = processors()
    for model_type, model in models().items():
        name = type(model).__name__
        processor = named_processors[model_type]
        model.save_pretrained(folder / model_type / name)
        processor.save_pretrained(folder / model_type / name)
        summary[name] = {
            "tokenizer_classes": [type(processor.tokenizer).__name__],
            "processor_classes": [type(processor.image_processor).__name__],
        }
    (folder / "reports").mkdir()
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary), encoding="utf-8")
