"""The README.md of a converted checkpoint."""

from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, ModelCardData

from ..models.model_card import WITH_THE_PACKAGE, CardTexts, metadata, usage, write_card


TEXT = """\
# {title}

{introduction}

{usage}
{with_the_package}
## How it was made

Converted from the original weights ({sources}) by `conversion/{script}`. The weights are the
original's, stored as {dtype}, with these differences in form: {differences} the vocabulary is filled up from
{old_vocab_size} to {vocab_size} rows, of which row {image_token_id} stands for `<image>`.
"""

KEPT = ("license", "license_name", "license_link", "language", "datasets")  # of what the original's card says


class ConversionTexts(NamedTuple):
    """
    What the cards of one kind of converted model say.

    Args:
        model: What the cards of all such models say.
        differences: What of its form differs from the original's.
    """

    model: CardTexts
    differences: str


def write_model_card(
    folder: Path,
    original: Path,
    sources: list[str],
    title: str,
    texts: ConversionTexts,
    max_visual_tokens: int,
    **facts: Any,
) -> None:
    """
    Args:
        folder: Where README.md goes.
        original: The original checkpoint's folder, whose own card may name a licence and the data.
        sources: Paths or Hub ids of the original weights.
        title: What the converted checkpoint is called.
        texts: What the kind of model adds.
        max_visual_tokens: Of an image.
        facts: The script's name, and numbers that the text names.
    """
    # A path on somebody's disk says nothing to others: of a path only the last part is named.
    names = [Path(source).resolve().name if Path(source).exists() else source for source in sources]
    known = original_metadata(original)
    data = {
        **metadata(texts.model, [source for source in sources if not Path(source).exists()]),
        **{name: known.get(name) for name in KEPT},
    }
    text = TEXT.format(
        title=title,
        sources=", ".join(f"`{name}`" for name in names),
        introduction=texts.model.introduction.format(number=max_visual_tokens),
        usage=usage(texts.model, title, max_visual_tokens),
        with_the_package=WITH_THE_PACKAGE,
        differences=texts.differences,
        **facts,
    )
    write_card(folder / "README.md", data, text)


def original_metadata(original: Path) -> ModelCardData:
    """What the original's own card says, if it has one."""
    try:
        return ModelCard.load(original / "README.md").data
    # A card without readable metadata says nothing, and the readers of YAML have errors of their own.
    except Exception:
        return ModelCardData()
