"""The README.md of what a run has trained: what every model's card says, and how it was trained."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedModel
from transformers.modelcard import TrainingSummary
from transformers.utils.hub import create_and_tag_model_card

from ..models.configuration_compressed_llava import CompressedLlavaConfig
from ..models.model_card import (
    LOADING,
    WITH_THE_PACKAGE,
    base_models,
    describe,
    is_hub_id,
    is_written,
    metadata,
    usage,
    write_card,
)


LOADING_ADAPTERS = """\
from peft import PeftModel
{import_base}
name = "{{repo_id}}"
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
model = {base}
model = PeftModel.from_pretrained(model, name)
"""

LOADING_PARTS = """\
from huggingface_hub import snapshot_download

from mqt_llava.training import load_trained_parts
{import_base}
name = "{{repo_id}}"
processor = AutoProcessor.from_pretrained(name)
model = {base}
load_trained_parts(model, snapshot_download(name))
"""

PARTS_ALONE = "The repository holds only what was trained; the rest is that of the model before.\n"


def write_training_card(path: Path, trainer: Any, model_name: str | None = None, **kwargs: Any) -> None:
    """
    Writes the card of what a trainer has trained, unless somebody wrote one, into that file or on the Hub.

    Args:
        path: Of README.md.
        trainer: An [`MQTLlavaTrainer`].
        model_name, kwargs: As in [`~transformers.Trainer.create_model_card`].
    """
    if path.is_file() and is_written(ModelCard.load(path)):
        return
    if trainer.hub_model_id is not None:
        card = create_and_tag_model_card(trainer.hub_model_id, token=trainer.args.hub_token)
        if is_written(card):
            card.save(path)
            return

    model = trainer.accelerator.unwrap_model(trainer.model)
    model = model.get_base_model() if trainer.is_peft else model
    repo_id = trainer.hub_model_id or Path(trainer.args.output_dir).absolute().name
    base_model = base_models(model.config, repo_id)
    kwargs.setdefault("finetuned_from", base_model[0] if len(base_model) == 1 else "")
    summary = TrainingSummary.from_trainer(trainer, model_name=model_name or repo_id.split("/")[-1], **kwargs)
    texts = model.card_texts
    known = metadata(texts, base_model)
    known = {**summary.create_metadata(), **known, "tags": [*known["tags"], *summary.tags]}
    if trainer.is_peft:
        known["library_name"] = "peft"
    if not known["model-index"][0]["results"]:
        del known["model-index"]

    loading, remark = how_to_load(trainer, model)
    lines = usage(texts, repo_id, getattr(model.config, texts.number_name), loading)
    _, heading, training = summary.to_model_card().partition("\n## Training procedure\n")
    write_card(path, known, f"{describe(model, repo_id, lines)}\n{remark}{results(summary)}{heading}{training}")


def how_to_load(trainer: Any, model: PreTrainedModel) -> tuple[str, str]:
    """The lines that load what a trainer saves, and a remark on them."""
    if not (trainer.is_peft or trainer.saves_parts_alone):
        return LOADING, WITH_THE_PACKAGE
    import_base, base = how_to_load_base(model)
    loading, remark = (LOADING_ADAPTERS, WITH_THE_PACKAGE) if trainer.is_peft else (LOADING_PARTS, PARTS_ALONE)
    return loading.format(import_base=import_base, base=base), remark


def how_to_load_base(model: PreTrainedModel) -> tuple[str, str]:
    """An import and an expression for the model before it was trained: a checkpoint, or new between others' parts."""
    config, name = model.config, type(model).__name__
    if config._name_or_path and not model.is_made_of_llava:
        path = public_name(config._name_or_path)
        return "", f'AutoModelForImageTextToText.from_pretrained("{path}", trust_remote_code=True, dtype="auto")'
    settings = {*CompressedLlavaConfig.__annotations__, *type(config).__annotations__}
    settings -= {"vision_config", "text_config", "tie_word_embeddings"}
    method, sources = "from_vision_text_pretrained", [config.vision_config, config.text_config]
    if model.is_made_of_llava:
        method, sources = "from_llava", [config]
        settings -= {"image_token_id"}  # the LLaVA's own
    parts = [f'"{public_name(source._name_or_path)}"' for source in sources]
    arguments = [*parts, *(f"{setting}={json.dumps(getattr(config, setting))}" for setting in sorted(settings))]
    lines = "".join(f"    {argument},\n" for argument in arguments)
    return f"from mqt_llava import {name}\n", f"{name}.{method}(\n{lines})"


def public_name(name: str) -> str:
    """A Hub id, or of a path on somebody's disk the last part."""
    return name if is_hub_id(name) else Path(name).name


def results(summary: TrainingSummary) -> str:
    """What the last evaluation gave, or nothing."""
    if not summary.eval_results:
        return ""
    lines = [f"- {name}: {round(value, 4)}" for name, value in summary.eval_results.items()]
    return "\n## Results on the evaluation set\n\n" + "\n".join(lines) + "\n"
