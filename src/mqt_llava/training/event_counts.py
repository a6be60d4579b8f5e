"""Counts that data workers and the trainer share."""

import torch
from torch.utils.data import get_worker_info


MOST_WORKERS = 1024


class EventCounts:
    """
    How often things happened in this process and its data workers.

    The counts lie in shared memory, one row for each worker, so that no worker waits for or overwrites another.

    Args:
        names: What is counted.
    """

    def __init__(self, *names: str):
        self.names = names
        self.counts = torch.zeros((MOST_WORKERS, len(names)), dtype=torch.long).share_memory_()

    def add(self, name: str, number: int = 1) -> None:
        worker = get_worker_info()
        self.counts[0 if worker is None else worker.id + 1, self.names.index(name)] += number

    def total(self, name: str) -> int:
        return int(self.counts[:, self.names.index(name)].sum())

    def totals(self) -> dict[str, int]:
        return dict(zip(self.names, self.counts.sum(0).tolist()))
