"""
Which files are a checkpoint's weights: those that an index names, or those with the names that transformers gives
them. A file that only ends like one is none: folders hold adapters, optimizers and other models as well.
"""

import re
from collections.abc import Callable
from pathlib import Path

from .conversion_error import ConversionError, listed
from .input_files import read_json


# Of a checkpoint that is saved both ways, safetensors is the safer half.
FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))
LOOKED_FOR = "model.safetensors or pytorch_model.bin, one file or shards, with an index or without"


def find_weight_files(folder: Path, fetch: Callable[[list[str]], object] = lambda names: None) -> list[Path]:
    """
    Looks for, in this order: a safetensors index, `model.safetensors`, an index of `.bin`, `pytorch_model.bin`, and
    shards without an index whose names count up.

    Args:
        folder: Where they lie, or are put by `fetch`. Indices must lie there from the start.
        fetch: Called with names, or patterns of names, before they are looked for.

    Returns:
        The files; none if there are none.

    Raises:
        ConversionError: An index cannot be read, or shards are missing.
    """
    for stem, suffix in FORMATS:
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            names = indexed_names(index)
            fetch(names)
            return indexed_files(index, names)
        single = folder / f"{stem}.{suffix}"
        fetch([single.name])
        if single.is_file():
            return [single]
    for stem, suffix in FORMATS:
        fetch([f"{stem}-*-of-*.{suffix}"])
        files = counted_files(folder, stem, suffix)
        if files:
            return files
    return []


def indexed_names(index: Path) -> list[str]:
    """The shards that an index names."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ConversionError(f"{index} is not an index of shards: it has no readable `weight_map`.")
    if not weight_map:
        raise ConversionError(f"{index} is not an index of shards: its `weight_map` is empty.")
    return sorted(set(weight_map.values()))


def indexed_files(index: Path, names: list[str]) -> list[Path]:
    """The shards that an index names, each of which must lie beside it."""
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if missing:
        raise ConversionError(f"{index} names shards that do not lie beside it: {listed(missing)}.")
    return [index.parent / name for name in names]


def counted_files(folder: Path, stem: str, suffix: str) -> list[Path]:
    """Shards by their names alone, `-00001-of-00002` and so on, which must be complete."""
    sets: dict[int, dict[int, Path]] = {}
    for file in sorted(folder.glob(f"{stem}-*-of-*.{suffix}")):
        found = re.fullmatch(r"(\d{5,})-of-(\d{5,})", file.name[len(stem) + 1 : -len(suffix) - 1])
        if found and file.is_file():
            sets.setdefault(int(found[2]), {})[int(found[1])] = file
    if len(sets) > 1:
        totals = " and ".join(str(total) for total in sorted(sets))
        raise ConversionError(f"{folder} holds shards of several checkpoints: {stem}-*.{suffix} of {totals} files.")
    for total, files in sets.items():
        if len(files) != total or min(files) != 1 or max(files) != total:
            raise ConversionError(
                f"{folder} holds {len(files)} of {total} shards, and no index: "
                f"{listed(file.name for file in files.values())}."
            )
        return [files[number] for number in sorted(files)]
    return []
