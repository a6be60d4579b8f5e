"""
Reads the tensors of a checkpoint one by one, whatever number and kind of files they lie in.

Files are mapped into memory, never read as a whole: a tensor's bytes come from disk when something computes with it,
and the system may drop them again. Pickles are opened with `weights_only=True`, so that code in them is never run.
"""

import json
import logging
import pickle
import re
import zipfile
from pathlib import Path

import torch
from conversion_error import ConversionError, listed
from safetensors import SafetensorError, safe_open


logger = logging.getLogger(__name__)

INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Where no index says which files belong together. Of one checkpoint saved both ways, safetensors is the safer half.
FILE_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")


class CheckpointReader:
    """
    A checkpoint as a mapping from names to tensors.

    Args:
        path: A folder with one or many `.safetensors` or `.bin` shards, with or without an index, or one such file.

    Raises:
        ConversionError: There are no weights, a shard is missing or damaged, holds anything else than tensors, or two
            shards hold the same name.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._shards = {}
        for file in weight_files(self.path):
            shard = SafetensorsShard(file) if file.suffix == ".safetensors" else PickleShard(file)
            twice = self._shards.keys() & shard.keys()
            if twice:
                raise ConversionError(f"{file} holds tensors that another shard holds too: {listed(twice)}.")
            self._shards.update(dict.fromkeys(shard.keys(), shard))

    def keys(self) -> list[str]:
        return list(self._shards)

    def __contains__(self, name: str) -> bool:
        return name in self._shards

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shards[name].shape(name)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor, backed by the mapped file: compute with it, but do not write to it."""
        return self._shards[name].tensor(name)


class SafetensorsShard:
    """One `.safetensors` file."""

    def __init__(self, file: Path):
        try:
            self._file = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ConversionError(f"{file} is not a readable safetensors file: {error}") from error

    def keys(self) -> list[str]:
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)


class PickleShard:
    """One file of `torch.save`, holding a flat dictionary of tensors."""

    def __init__(self, file: Path):
        self._tensors = load_pickle(file)
        if not isinstance(self._tensors, dict):
            raise ConversionError(f"{file} holds a {type(self._tensors).__name__}, not a dictionary of tensors.")
        others = [str(name) for name, value in self._tensors.items() if not isinstance(value, torch.Tensor)]
        if others:
            raise ConversionError(f"{file} holds entries that are not tensors: {listed(others)}.")

    def keys(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]


def load_pickle(file: Path):
    """What `torch.save` wrote, mapped where the format allows it, with everything but tensors refused."""
    try:
        if not zipfile.is_zipfile(file):
            logger.warning("%s is in torch's format from before 1.6, which cannot be mapped: all of it is read.", file)
            return torch.load(file, map_location="cpu", weights_only=True)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ConversionError(
            f"{file} is refused: it is a pickle with more in it than tensors"
            + (f" (it asks for `{found[1]}`)" if found else "")
            + ", and such a file can run any code when it is opened. Nothing in it was run. "
            "If you trust its author, ask them for a .safetensors file."
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ConversionError(f"{file} is not a readable file of torch.save: {error}") from error


def weight_files(path: Path) -> list[Path]:
    """The files that make up the checkpoint at `path`, a file or a folder."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConversionError(f"There is no checkpoint at {path}.")
    for index in INDEX_FILES:
        if (path / index).is_file():
            return indexed_files(path / index)
    for pattern in FILE_PATTERNS:
        files = sorted(path.glob(pattern))
        if files:
            return files
    raise ConversionError(
        f"{path} holds no weights. Looked for {', '.join(INDEX_FILES)} and, without an index, for "
        f"{', '.join(FILE_PATTERNS)}."
    )


def has_weight_files(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in INDEX_FILES + FILE_PATTERNS)


def indexed_files(index: Path) -> list[Path]:
    """The shards that an index names, each of which must lie beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{index} is not an index of shards: it has no readable `weight_map`.") from error
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if missing:
        raise ConversionError(f"{index} names shards that do not lie beside it: {listed(missing)}.")
    return [index.parent / name for name in names]
