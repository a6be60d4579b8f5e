"""The parts of an original: which are fetched from the Hub, and in which checkpoint each of them lies."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from .checkpoint_kinds import KINDS, CheckpointKind, refuse_other_kinds
from .checkpoint_reader import CheckpointReader
from .conversion_error import ConversionError
from .input_files import read_json
from .weight_files import find_weight_files


VISION_PREFIX = "model.vision_tower.vision_tower.vision_model."  # in a whole checkpoint


class Part(NamedTuple):
    """A part of the model, under a prefix of some checkpoint."""

    checkpoint: CheckpointReader
    prefix: str


def fetch_input(is_stage_1: bool, folder: Path, fetch: Callable[[list[str]], object]) -> None:
    """Fetches a whole checkpoint, or else its parts of stage 1, and the vision tower that lies in a folder inside."""
    if is_stage_1 or not find_weight_files(folder, fetch):
        fetch([kind.stage_1_file for kind in KINDS])
    name = read_json(folder / "config.json").get("mm_vision_tower")
    if isinstance(name, str) and name and os.path.isfile(folder / name / "config.json"):
        find_weight_files(folder / name, lambda files: fetch([f"{name}/{file}" for file in files]))


def open_parts(kind: CheckpointKind, folder: Path, language_folder: Path) -> tuple[Part, Part]:
    """Compressor and language model: both in one checkpoint, or the former by itself after stage 1."""
    stage_1 = folder / kind.stage_1_file
    if not stage_1.is_file() and not find_weight_files(folder):
        for other in KINDS:
            if (folder / other.stage_1_file).is_file():
                refuse_other_kinds(CheckpointReader(folder / other.stage_1_file), kind)
    if language_folder == folder:
        if stage_1.is_file() and not find_weight_files(folder):
            raise ConversionError(f"{folder} holds a stage-1 {stage_1.name} alone. Pass --language-model.")
        checkpoint = CheckpointReader(folder)
        refuse_other_kinds(checkpoint, kind)
        return Part(checkpoint, kind.prefix), Part(checkpoint, "")
    if not stage_1.is_file():
        raise ConversionError(f"--language-model is for a stage-1 checkpoint, but {folder} has no {stage_1.name}.")
    checkpoint = CheckpointReader(stage_1)
    prefix = kind.prefix_in(checkpoint.keys()) or kind.prefix
    return Part(checkpoint, prefix), Part(CheckpointReader(language_folder), "")


def open_vision_tower(folder: Path) -> Part:
    return Part(CheckpointReader(folder), "vision_model.")


def landmark(resampler: Part, kind: CheckpointKind) -> torch.Tensor:
    """The tensor of the compressor without which nothing else need be asked."""
    name = resampler.prefix + kind.landmark
    if name not in resampler.checkpoint:
        raise ConversionError(f"The checkpoint does not fit its configuration: missing tensors: {name}.")
    return resampler.checkpoint.tensor(name)
