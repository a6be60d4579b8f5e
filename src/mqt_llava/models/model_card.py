# Copyright 2026 The mqt_llava authors. Licensed under the Apache License, Version 2.0.
"""
The README.md that goes to the Hub with a model: what it is, what it was made of, and a few lines that run.

A card that somebody wrote is never touched. What transformers and PEFT put where there is none counts as none.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import ModelCard, ModelCardData


class CardTexts(NamedTuple):
    """
    What the cards of one kind of model say.

    Args:
        tag: The model's name on the Hub.
        number_name: What the configuration calls the number of visual tokens of an image.
        introduction: What it does; names that number as `{number}`.
        prompt_arguments: What the example passes to the chat template, beyond what every model needs; may name few
            visual tokens as `{few}`.
    """

    tag: str
    number_name: str
    introduction: str
    prompt_arguments: str


LOADING = """\
name = "{repo_id}"
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True, dtype="auto")
"""

USAGE = """\
```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

{loading}
messages = [
    {{
        "role": "user",
        "content": [
            {{"type": "image", "image": Image.open("photo.jpg")}},
            {{"type": "text", "text": "What is in this image?"}},
        ],
    }}
]
inputs = processor.apply_chat_template(
    messages,
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",{prompt_arguments}
)
output = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""

WITH_THE_PACKAGE = "`trust_remote_code` is not needed where the package `mqt_llava` is installed and imported.\n"

TEXT = """\
# {title}

{introduction}

{parameters} parameters; {vision} as vision tower, for images of {pixels} x {pixels} pixels; {decoder} as decoder.

{usage}"""

# As transformers describes a model whose card it writes.
UNWRITTEN = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)


def usage(texts: CardTexts, repo_id: str, number: int, loading: str = LOADING) -> str:
    """Lines that load a model and ask it about `photo.jpg`."""
    return USAGE.format(
        loading=loading.format(repo_id=repo_id),
        prompt_arguments=texts.prompt_arguments.format(few=max(1, number // 16)),
    )


def metadata(texts: CardTexts, base_model: list[str]) -> dict:
    """What the Hub reads of a card."""
    known = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": [texts.tag]}
    return {**known, "base_model": base_model} if base_model else known


def base_models(config: PreTrainedConfig, repo_id: str) -> list[str]:
    """The checkpoint on the Hub that a model was loaded from, or those that its parts were."""
    parts = (config.vision_config, config.text_config)
    for names in ([config._name_or_path], [part._name_or_path for part in parts]):
        if found := [name for name in names if is_hub_id(name) and name != repo_id]:
            return found
    return []


def is_hub_id(name: str) -> bool:
    """Whether a name can be a repository's, and is no path on this disk."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not os.path.exists(name)


def describe(model: PreTrainedModel, repo_id: str, usage: str) -> str:
    """The text of a model's card, without its metadata."""
    config = model.config
    return TEXT.format(
        title=repo_id.split("/")[-1],
        introduction=model.card_texts.introduction.format(number=getattr(config, model.card_texts.number_name)),
        parameters=in_words(model.num_parameters()),
        vision=config.vision_config.model_type,
        pixels=config.vision_config.image_size,
        decoder=config.text_config.model_type,
        usage=usage,
    )


def in_words(number: int) -> str:
    """A number of parameters as people say it."""
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:,}"


def is_written(card: ModelCard) -> bool:
    """Whether a card says anything that neither transformers nor PEFT says of every model."""
    templates = [ModelCard.from_template(ModelCardData(), **more) for more in ({}, {"model_description": UNWRITTEN})]
    return not any(card.text.strip().startswith(template.text.strip()) for template in templates)


def fill_empty_card(path: Path, model: PreTrainedModel, repo_id: str) -> None:
    """Writes a model's card to a file that nobody has written yet."""
    card = ModelCard.load(path)
    if is_written(card):
        return
    texts = model.card_texts
    filled = metadata(texts, base_models(model.config, repo_id))
    filled["tags"] += [tag for tag in card.data.tags or [] if tag not in filled["tags"]]
    lines = usage(texts, repo_id, getattr(model.config, texts.number_name))
    write_card(path, filled, describe(model, repo_id, f"{lines}\n{WITH_THE_PACKAGE}"))


def write_card(path: Path, metadata: dict, text: str) -> None:
    """Writes a README.md of metadata and text."""
    ModelCard(f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n{text}").save(path)
