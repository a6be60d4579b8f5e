"""Bytes of tensors that are alive at once: what an allocator reports of a GPU, counted for a CPU too."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """
    Within it, `peak` is the most bytes that were alive at once of tensors made in it. What was there before (weights,
    batches) is not counted, and neither is what a kernel uses inside.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.counted: set[int] = set()
        self.from_before: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        for storage in storages((args, kwargs)):
            if storage._cdata not in self.counted:
                self.from_before.add(storage._cdata)
        outputs = func(*args, **(kwargs or {}))
        for storage in storages(outputs):
            address = storage._cdata
            if address not in self.counted | self.from_before:
                self.counted.add(address)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.forget, address, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return outputs

    def forget(self, address: int, num_bytes: int) -> None:
        self.counted.discard(address)
        self.now -= num_bytes


def storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
