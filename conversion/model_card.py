"""The README.md of a converted checkpoint."""

from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCard, ModelCardData


TEXT = """\
# {title}

{introduction}

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "{folder}"
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype="auto")

messages = [{{"role": "user", "content": [{{"type": "image", "image": Image.open("photo.jpg")}},
                                        {{"type": "text", "text": "What is in this image?"}}]}}]
inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True,
                                       return_tensors="pt"{call_arguments})
output = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

`trust_remote_code` is not needed where the package `mqt_llava` is installed and imported.

## How it was made

Converted from the original weights ({sources}) by `conversion/{script}`. The weights are the
original's, stored as {dtype}, with these differences in form: {differences} the vocabulary is filled up from
{old_vocab_size} to {vocab_size} rows, of which row {image_token_id} stands for `<image>`.
"""


class CardTexts(NamedTuple):
    """
    What the cards of one kind of model say.

    Args:
        tag: The model's name on the Hub.
        introduction: What it does; may name `{max_visual_tokens}`.
        call_arguments: What the example passes to the processor, beyond what every processor needs.
        differences: What of its form differs from the original's.
    """

    tag: str
    introduction: str
    call_arguments: str
    differences: str


def write_model_card(
    folder: Path, original: Path, sources: list[str], title: str, texts: CardTexts, max_visual_tokens: int, **facts
) -> None:
    """
    Args:
        folder: Where README.md goes.
        original: The original checkpoint's folder, whose own card may name a licence.
        sources: Paths or Hub ids of the original weights.
        title: What the converted checkpoint is called.
        texts: What the kind of model adds.
        max_visual_tokens: Of an image.
        facts: The script's name, and numbers that the text names.
    """
    # A path on somebody's disk says nothing to others: of a path only the last part is named.
    names = [Path(source).resolve().name if Path(source).exists() else source for source in sources]
    data = ModelCardData(
        license=original_license(original),
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=[texts.tag],
        base_model=[source for source in sources if not Path(source).exists()] or None,
    )
    text = TEXT.format(
        title=title,
        folder=title,
        sources=", ".join(f"`{name}`" for name in names),
        introduction=texts.introduction.format(max_visual_tokens=max_visual_tokens),
        call_arguments=texts.call_arguments,
        differences=texts.differences,
        **facts,
    )
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")


def original_license(original: Path) -> str | None:
    """The licence that the original's own card names."""
    try:
        return ModelCard.load(original / "README.md").data.license
    # A card without readable metadata names none, and the readers of YAML have errors of their own.
    except Exception:
        return None
