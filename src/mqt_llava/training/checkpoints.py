"""What a run leaves on disk, and whether another run can go on from it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..models.configuration_compressed_llava import CompressedLlavaConfig


TRAINED_PARTS_NAME = "trained_parts.safetensors"
TRAINER_STATE_NAME = "trainer_state.json"  # the last file of a checkpoint that the Trainer writes

NO_SHAPE = {"_name_or_path", "architectures", "auto_map", "dtype", "transformers_version", "use_cache"}


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """
    The newest checkpoint of a run that was written to its end; one that a kill cut short is passed over.

    Args:
        output_dir: Folder of the run. It need not exist.
    """
    folders = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    steps = {int(number): folder for folder in folders if (number := folder.name.rpartition("-")[2]).isdigit()}
    return next((str(folder) for _, folder in sorted(steps.items(), reverse=True) if _is_complete(folder)), None)


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return True


def check_same_model(checkpoint: str | Path, config: CompressedLlavaConfig) -> None:
    """
    Raises:
        ValueError: The checkpoint is of another kind of model, another M or another backbone.
    """
    path = Path(checkpoint) / "config.json"
    if not path.exists():
        raise ValueError(f"{checkpoint} has no config.json: it is no checkpoint of this model.")
    saved, own = json.loads(path.read_text()), config.to_dict()
    if saved.get("model_type") != own["model_type"]:
        raise ValueError(
            f"{checkpoint} is a checkpoint of a {saved.get('model_type')!r}, not of a {own['model_type']!r}."
        )
    saved, own = _shape_of(type(config).from_dict(saved).to_dict()), _shape_of(own)
    differences = [f"{name} {saved.get(name)} (now {own.get(name)})" for name in own if own[name] != saved.get(name)]
    if differences:
        raise ValueError(f"{checkpoint} is of another model: {', '.join(differences)}.")


def _shape_of(config: dict, prefix: str = "") -> dict:
    """The flat settings of a configuration, without those that say how it is run rather than what it is."""
    settings: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("_config"):
            settings |= _shape_of(value, f"{prefix}{name}.")
        elif name not in NO_SHAPE and (name == "image_token_id" or not name.endswith("_token_id")):
            settings[prefix + name] = value
    return settings


def load_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """
    Loads what `save_pretrained` has written of a model into another of the same kind, which keeps its dtypes.

    Trainer takes a file's names for those in memory. Mixtures of experts, LLaVA and others are saved under other
    names, which it would pass over with a warning.
    """
    dtypes = {parameter.dtype for parameter in model.parameters()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32  # which holds what the others do
    model.load_state_dict(type(model).from_pretrained(folder, dtype=dtype).state_dict())


def save_trained_parts(state_dict: dict[str, torch.Tensor], folder: str | Path) -> None:
    """Writes `trained_parts.safetensors`, whole or not at all."""
    path = Path(folder) / TRAINED_PARTS_NAME
    unfinished = path.with_suffix(".unfinished")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.replace(path)


def load_trained_parts(model: PreTrainedModel, path: str | Path) -> None:
    """
    Loads what a run of stage 1 has trained into a model that has everything else.

    Args:
        model: The model.
        path: A folder with `trained_parts.safetensors`, or that file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds other tensors than this model has. Nothing is loaded then.
    """
    path = Path(path) / TRAINED_PARTS_NAME if Path(path).is_dir() else Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; a run that trains some parts alone saves it.")
    tensors, own = load_file(path), model.state_dict()
    differences = [
        f"{name} {tuple(tensor.shape)} (here {tuple(own[name].shape) if name in own else 'unknown'})"
        for name, tensor in tensors.items()
        if name not in own or own[name].shape != tensor.shape
    ]
    if differences:
        raise ValueError(f"{path} is of another model: {', '.join(differences)}.")
    model.load_state_dict(tensors, strict=False)
