"""
Which tensors of old checkpoints make which tensors of the new one.

A recipe names the source of one new tensor and what is done to it. All recipes are checked against the new model's
names and shapes before any data is read; then they are cooked one at a time, straight into the files.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from .checkpoint_reader import CheckpointReader
from .conversion_error import ConversionError, listed
from .shard_writer import write_shards


# Of anything else, a cast would make numbers that are not the weights: quantised ones need their scales.
WEIGHT_DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """
    Args:
        checkpoint: Where the source is.
        source: The source's name there.
        transform: From the source, already in the new dtype, to the new tensor. Must work on the meta device.
    """

    checkpoint: CheckpointReader
    source: str
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.transform is None else self.transform(tensor)

    def tensor(self, dtype: torch.dtype) -> torch.Tensor:
        return self.apply(self.checkpoint.tensor(self.source).to(dtype))

    def shape(self) -> tuple[int, ...] | None:
        """Shape of the new tensor; `None` if the transform cannot be applied to a source of such a shape."""
        try:
            return tuple(self.apply(torch.empty(self.checkpoint.shape(self.source), device="meta")).shape)
        except (RuntimeError, IndexError):
            return None


def check_recipes(
    recipes: dict[str, Recipe], shapes: dict[str, tuple[int, ...]], is_dropped: Callable[[str], bool]
) -> None:
    """
    Args:
        recipes: By the new tensors' names.
        shapes: The new model's shapes, by the same names.
        is_dropped: Whether a source of this name has no place in the new model and is left out on purpose.

    Raises:
        ConversionError: Sources are missing, are not known, have the wrong shape, or are no plain floating-point
            numbers. Names them.
    """
    problems = []
    missing = {recipe.source for recipe in recipes.values() if recipe.source not in recipe.checkpoint}
    if missing:
        problems.append(f"missing tensors: {listed(missing)}")
    unknown = {name for name in unused(recipes.values()) if not is_dropped(name)}
    if unknown:
        problems.append(f"unknown tensors: {listed(unknown)}")
    wrong = {
        f"{recipe.source} {list(recipe.checkpoint.shape(recipe.source))}, which must become {name} "
        f"{list(shapes[name])}"
        for name, recipe in recipes.items()
        if recipe.source not in missing and recipe.shape() != tuple(shapes[name])
    }
    if wrong:
        problems.append(f"wrong shapes: {listed(wrong)}")
    others = {
        f"{recipe.source} ({recipe.checkpoint.dtype(recipe.source)})"
        for recipe in recipes.values()
        if recipe.source not in missing and recipe.checkpoint.dtype(recipe.source) not in WEIGHT_DTYPES
    }
    if others:
        problems.append(f"weights that are not stored as one of {', '.join(WEIGHT_DTYPES)}: {listed(others)}")
    if problems:
        raise ConversionError("The checkpoint does not fit its configuration: " + "; ".join(problems) + ".")


def unused(recipes: Iterable[Recipe]) -> set[str]:
    """Names in the recipes' checkpoints that no recipe uses."""
    used: dict[CheckpointReader, set[str]] = {}
    for recipe in recipes:
        used.setdefault(recipe.checkpoint, set()).add(recipe.source)
    return {name for checkpoint, names in used.items() for name in checkpoint.keys() if name not in names}


def write_recipes(
    recipes: dict[str, Recipe],
    shapes: dict[str, tuple[int, ...]],
    folder: Path,
    dtype: torch.dtype,
    max_shard_size: int,
) -> None:
    """
    Cooks every tensor into safetensors files in `folder`, one at a time.

    Raises:
        ConversionError: Weights are NaN or infinite, in the new dtype at least. Names them.
    """
    not_finite = set()
    with tqdm(total=len(recipes), desc="Converting", unit="tensor") as progress:

        def cook(name: str) -> torch.Tensor:
            progress.update()
            tensor = recipes[name].tensor(dtype)
            if not is_finite(tensor):
                not_finite.add(recipes[name].source)
            return tensor

        write_shards(folder, shapes, dtype, cook, max_shard_size)
    if not_finite:
        raise ConversionError(
            f"Weights are NaN or infinite as {str(dtype).removeprefix('torch.')}: {listed(not_finite)}. The "
            "checkpoint is damaged, or its training failed, or the dtype cannot hold its numbers."
        )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are. Through the extremes, which NaN takes over: faster than memory gives the numbers."""
    return tensor.numel() == 0 or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def compare_with_sources(recipes: dict[str, Recipe], folder: Path, dtype: torch.dtype) -> int:
    """
    Reads a written folder back and compares every tensor, bit by bit, with what its source gives.

    Returns:
        The number of tensors, all equal.

    Raises:
        ConversionError: Names differ, or tensors do.
    """
    written = CheckpointReader(folder)
    if set(written.keys()) != recipes.keys():
        raise ConversionError(f"--check: names differ: {listed(set(written.keys()) ^ recipes.keys())}.")
    different = [
        name
        for name, recipe in tqdm(recipes.items(), desc="Checking", unit="tensor")
        if not same_bits(written.tensor(name), recipe.tensor(dtype))
    ]
    if different:
        raise ConversionError(f"--check: written tensors differ from their sources: {listed(different)}.")
    return len(recipes)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equality that holds for NaN too."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))
    )
