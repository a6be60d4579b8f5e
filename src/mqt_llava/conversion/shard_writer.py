"""
Writes tensors into safetensors files one by one.

A safetensors file is the length of its header (8 bytes, little-endian), a JSON header that gives every tensor's dtype,
shape and place, then the tensors' bytes (https://github.com/huggingface/safetensors#format). Names, shapes and dtypes
are known before the first tensor is computed, so the header goes out first and the tensors follow it one at a time:
what is held in memory is one tensor, however large the model or the shards.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from .conversion_error import ConversionError


DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# More than one tensor ever adds to a header, so that the files, headers included, stay under the asked size.
HEADER_BYTES_PER_TENSOR = 512
# Beside what transformers writes, what a file of a conversion is known by.
METADATA = {"format": "pt", "written_by": "conversion of mqt_llava"}


class TensorSpec(NamedTuple):
    """What is known of a tensor before it is there."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_shards(
    folder: Path, specs: dict[str, TensorSpec], tensor: Callable[[str], torch.Tensor], max_shard_size: int
) -> list[Path]:
    """
    Writes `model.safetensors`, or several shards with `model.safetensors.index.json`.

    Args:
        folder: An existing folder.
        specs: Every tensor's dtype and shape by name, in the order to write them in.
        tensor: Called once per name for the tensor itself.
        max_shard_size: Bytes that no file exceeds, unless one tensor alone does.

    Returns:
        The weight files.

    Raises:
        ConversionError: A tensor is not what its spec says.
        OSError: The disk is full, or something else that writing can meet.
    """
    shards = split_into_shards(specs, max_shard_size)
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards):
        write_shard(folder / name, {key: specs[key] for key in shard}, tensor)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(spec.nbytes for spec in specs.values())},
            "weight_map": {key: name for name, shard in zip(names, shards) for key in shard},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [folder / name for name in names]


def split_into_shards(specs: dict[str, TensorSpec], max_shard_size: int) -> list[list[str]]:
    """Names in order, cut wherever the next tensor would make the file too large."""
    shards, size = [[]], 0
    for name, spec in specs.items():
        added = spec.nbytes + HEADER_BYTES_PER_TENSOR
        if shards[-1] and size + added > max_shard_size:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += added
    return shards


def write_shard(file: Path, specs: dict[str, TensorSpec], tensor: Callable[[str], torch.Tensor]) -> None:
    """One safetensors file, the wider dtypes first, which keeps every tensor aligned to its own width."""
    specs = dict(sorted(specs.items(), key=lambda item: -item[1].dtype.itemsize))
    header, end = {"__metadata__": METADATA}, 0
    for name, spec in specs.items():
        begin, end = end, end + spec.nbytes
        header[name] = {"dtype": DTYPE_NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(file, "wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little"))
        stream.write(encoded)
        for name, spec in specs.items():
            value = tensor(name)
            if value.dtype != spec.dtype or tuple(value.shape) != tuple(spec.shape):
                raise ConversionError(
                    f"{name} is {value.dtype} {list(value.shape)}, but was announced as {spec.dtype} "
                    f"{list(spec.shape)}."
                )
            # Through uint8, since NumPy has no bfloat16.
            stream.write(value.contiguous().reshape(-1).view(torch.uint8).numpy())


def parse_size(text: str) -> int:
    """Bytes in "2GB", "500MB", "1.5GiB" or a plain number, as transformers' `max_shard_size` counts them."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    size = (
        int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " ")) if found else 0
    )
    if size < 1:
        raise ValueError(f"{text!r} is not a size. Allowed are sizes such as 2GB, 500MB or 1.5GiB.")
    return size
