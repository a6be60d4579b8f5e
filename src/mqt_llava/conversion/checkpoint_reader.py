"""
Reads the tensors of a checkpoint one by one, whatever number and kind of files they lie in.

Files are mapped into memory, never read as a whole: a tensor's bytes come from disk when something computes with it,
and the system may drop them again. Pickles are opened with `weights_only=True`, so that code in them is never run.
"""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .conversion_error import ConversionError, blaming, listed, one_line
from .input_files import refuse_lfs_pointer, starts_with
from .weight_files import LOOKED_FOR, find_weight_files


logger = logging.getLogger(__name__)

# What files of torch.save begin with, today's and those from before 1.6.
ZIP, PICKLE = b"PK", b"\x80"
# What safetensors calls the dtypes that weights come in; others keep the name that they have there.
SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class CheckpointReader:
    """
    A checkpoint as a mapping from names to tensors.

    Args:
        path: A folder with weights (`weight_files` says which files these are), or one file of them.

    Attributes:
        files: The files that hold the tensors.

    Raises:
        ConversionError: There are no weights, a shard is missing or damaged, holds anything else than tensors, or two
            shards hold the same name.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.files = checkpoint_files(self.path)
        self._shards: dict[str, SafetensorsShard | PickleShard] = {}
        for file in self.files:
            refuse_lfs_pointer(file)
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
        return self._shard(name).shape(name)

    def dtype(self, name: str) -> str:
        """What torch calls the dtype, or what the file does where torch has none."""
        return self._shard(name).dtype(name)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor, backed by the mapped file: compute with it, but do not write to it."""
        return self._shard(name).tensor(name)

    def _shard(self, name: str) -> "SafetensorsShard | PickleShard":
        if name not in self._shards:
            raise ConversionError(f"{self.path} has no tensor {name}.")
        return self._shards[name]


class SafetensorsShard:
    """One `.safetensors` file."""

    def __init__(self, file: Path):
        with blaming(f"{file} is not a readable safetensors file"):
            self._file = safe_open(file, framework="pt")

    def keys(self) -> list[str]:
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        dtype = self._file.get_slice(name).get_dtype()
        return SAFETENSORS_DTYPES.get(dtype, dtype)

    def tensor(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)


class PickleShard:
    """One file of `torch.save`, holding a flat dictionary of tensors."""

    def __init__(self, file: Path):
        self._tensors = load_pickle(file)
        if not isinstance(self._tensors, dict):
            raise ConversionError(f"{file} holds a {type(self._tensors).__name__}, not a dictionary of tensors.")
        others = [
            str(name)
            for name, value in self._tensors.items()
            if not isinstance(name, str) or not isinstance(value, torch.Tensor)
        ]
        if others:
            raise ConversionError(f"{file} holds entries that are not tensors: {listed(others)}.")
        without_data = [name for name, value in self._tensors.items() if not is_plain(value)]
        if without_data:
            raise ConversionError(
                f"{file} holds tensors that are no plain numbers in memory, but meta, quantised, sparse or nested: "
                f"{listed(without_data)}."
            )

    def keys(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        return str(self._tensors[name].dtype).removeprefix("torch.")

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]


def is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not tensor.is_quantized
        and not tensor.is_nested
    )


def load_pickle(file: Path) -> Any:
    """What `torch.save` wrote, mapped where the format allows it, with everything but tensors refused."""
    is_zip = starts_with(file, ZIP)
    if not is_zip and not starts_with(file, PICKLE):
        raise ConversionError(f"{file} is not a readable file of torch.save: it is no zip file and no pickle.")
    if not is_zip:
        logger.warning("%s is in torch's format from before 1.6, which cannot be mapped: all of it is read.", file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    # A damaged pickle is a program with mistakes, and ends in an error of any kind.
    except Exception as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if not found:
            # Without torch's advice, which is to open the file without this protection.
            reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0].partition(". ")[0]
            raise ConversionError(
                f"{file} is refused: it is damaged, or a pickle with more in it than tensors. Nothing in it was run. "
                f"({one_line(reason, 200)})"
            ) from None
        raise ConversionError(
            f"{file} is refused: it is a pickle with more in it than tensors (it asks for `{found[1]}`), and such a "
            "file can run any code when it is opened. Nothing in it was run. If you trust its author, ask them for a "
            ".safetensors file."
        ) from None


def checkpoint_files(path: Path) -> list[Path]:
    """The files that make up the checkpoint at `path`, a file or a folder."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConversionError(f"There is no checkpoint at {path}.")
    files = find_weight_files(path)
    if not files:
        raise ConversionError(f"{path} holds no weights. Looked for {LOOKED_FOR}.")
    return files
