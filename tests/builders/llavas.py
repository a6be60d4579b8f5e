"""Small LLaVAs of transformers' own class, with their processors."""

import functools
from pathlib import Path

from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessorPil,
)

from tests.builders.configs import VISION_CONFIG, decoder_config
from tests.builders.models import enlarged
from tests.builders.paths import CHECKPOINT


SIZE = VISION_CONFIG["image_size"]  # 16 patches
CROPPED = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
# Image processor, which of the tower's tokens LLaVA's projector is given, and what else its configuration says.
TOWERS = {
    "clip_vision_model": (CLIPImageProcessorPil(**CROPPED), "default", {}),
    "siglip_vision_model": (
        SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}), "full", {"vision_use_head": False}
    ),
    "pixtral": (None, "full", {}),  # any size of image: all patches in one row
}  # fmt: skip
RENDER = """{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}"""
TEMPLATES = {
    "v1": "{%- for message in messages -%}{{ message['role'].upper() + ': ' }}" + RENDER + "{{ ' ' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}",
    "chatml": "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}" + RENDER
    + "{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}",
}  # fmt: skip


@functools.cache
def tokenizer():
    loaded = AutoTokenizer.from_pretrained(CHECKPOINT)
    loaded.chat_template = None  # a LLaVA's processor brings its own
    return loaded


def tiny_llava(text: str = "llama", vision: str = "clip_vision_model", text_config=None, **kwargs):
    """Of 28-pixel images, with more rows of embeddings than the tokenizer has tokens."""
    text_config = text_config or decoder_config(text)
    text_config.vocab_size = len(tokenizer()) + 7
    settings = {
        "vision_config": AutoConfig.for_model(vision, **{**VISION_CONFIG, **TOWERS[vision][2]}),
        "text_config": text_config,
        "image_token_index": tokenizer().convert_tokens_to_ids("<image>"),
        "vision_feature_select_strategy": TOWERS[vision][1],
    }
    return enlarged(LlavaForConditionalGeneration(LlavaConfig(**{**settings, **kwargs})))


def llava_processor(vision: str = "clip_vision_model", template: str = "v1", **kwargs) -> LlavaProcessor:
    image_processor, strategy, _ = TOWERS[vision]
    settings = {
        "image_processor": image_processor,
        "patch_size": VISION_CONFIG["patch_size"],
        "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": int(strategy == "default"),
        "chat_template": TEMPLATES.get(template),
    }
    return LlavaProcessor(tokenizer=tokenizer(), **{**settings, **kwargs})


def save_llava(folder: Path, *parts: str, template: str = "v1", **kwargs) -> LlavaForConditionalGeneration:
    llava = tiny_llava(*parts, **kwargs)
    llava.save_pretrained(folder)
    llava_processor(*parts[1:], template=template).save_pretrained(folder)
    return llava
