"""
Writes tensors into safetensors files one by one. The library's own writer asks for all that go into a file at once.

A safetensors file is the length of its header (8 bytes, little-endian), a JSON header that gives every tensor's dtype,
shape and place, then the tensors' bytes (https://github.com/huggingface/safetensors#format). Names and shapes are
known before the first tensor is computed, so the header goes out first and the tensors follow it one at a time: what
is held in memory is one tensor, however large the model or the shards.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_WEIGHTS_FILE_PATTERN

from .conversion_error import ConversionError


DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
# More than one tensor ever adds to a header, so that the files, headers included, stay under the asked size.
HEADER_BYTES_PER_TENSOR = 512
# Beside what transformers writes, what a file of a conversion is known by.
METADATA = {"format": "pt", "written_by": "conversion of mqt_llava"}

Shapes = dict[str, tuple[int, ...]]


def write_shards(
    folder: Path, shapes: Shapes, dtype: torch.dtype, tensor: Callable[[str], torch.Tensor], max_shard_size: int
) -> None:
    """
    Writes `model.safetensors`, or several shards with `model.safetensors.index.json`.

    Args:
        folder: An existing folder.
        shapes: Every tensor's shape by name, in the order to write them in.
        dtype: Of all of them.
        tensor: Called once per name for the tensor itself.
        max_shard_size: Bytes that no file exceeds, unless one tensor alone does.

    Raises:
        ConversionError: A tensor is not of its shape and dtype.
        OSError: The disk is full, or something else that writing can meet.
    """
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    split = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size + HEADER_BYTES_PER_TENSOR,
        filename_pattern=SAFETENSORS_WEIGHTS_FILE_PATTERN,
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        write_shard(folder / file, {name: shapes[name] for name in names}, dtype, tensor)
    if split.is_sharded:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": split.tensor_to_filename}
        (folder / SAFETENSORS_INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_shard(file: Path, shapes: Shapes, dtype: torch.dtype, tensor: Callable[[str], torch.Tensor]) -> None:
    """One safetensors file."""
    header: dict[str, dict] = {"__metadata__": METADATA}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(file, "wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little"))
        stream.write(encoded)
        for name, shape in shapes.items():
            write_tensor(stream, name, shape, dtype, tensor(name))  # in a call, so that it is let go before the next


def write_tensor(
    stream: BinaryIO, name: str, shape: tuple[int, ...], dtype: torch.dtype, tensor: torch.Tensor
) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
        raise ConversionError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}, but was announced as {dtype} {list(shape)}."
        )
    # Through uint8, since NumPy has no bfloat16.
    stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def parse_size(text: str) -> int:
    """
    Bytes in "2GB", "500MB", "1.5GiB" or a plain number. huggingface_hub's own parser knows neither GiB nor a plain
    number, and transformers' takes 500mb for bits.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    size = (
        int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " ")) if found else 0
    )
    if size < 1:
        raise ValueError(f"{text!r} is not a size. Allowed are sizes such as 2GB, 500MB or 1.5GiB.")
    return size
