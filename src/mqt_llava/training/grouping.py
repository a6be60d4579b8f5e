"""The order of the records: batches of one modality and of like length."""

import random
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


CHUNK_BATCHES = 50  # sorted by length together


class ModalityLengthSampler(Sampler[int]):
    """
    Shuffles records so that a global batch is all images or all text, and holds conversations of like length.

    Few of a batch's tokens are padding then, and no process waits for another's images. Batches that are left over at
    the end of either kind are mixed. The order is a pure function of the seed and the epoch.

    Args:
        sizes: Of each record, whether it shows an image, and its length in any unit.
        batch_size: Records of a global batch, over all processes and accumulated steps.
        seed: Changes the order.
        epoch: A number that its owner keeps up to date.
    """

    def __init__(
        self, sizes: list[tuple[bool, int]], batch_size: int, seed: int = 0, epoch: torch.Tensor | None = None
    ):
        self.sizes, self.batch_size, self.seed = sizes, batch_size, seed
        self.epoch = torch.zeros((), dtype=torch.long) if epoch is None else epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(repr((self.seed, int(self.epoch))))
        batches, rest = [], []
        for kind in (True, False):
            indices = [index for index, (shows_image, _) in enumerate(self.sizes) if shows_image is kind]
            rng.shuffle(indices)
            # Sorted within chunks of many batches, chance still decides which records meet.
            chunk = CHUNK_BATCHES * self.batch_size
            indices = [
                index
                for start in range(0, len(indices), chunk)
                for index in sorted(indices[start : start + chunk], key=lambda index: -self.sizes[index][1])
            ]
            full = len(indices) - len(indices) % self.batch_size
            batches += [indices[start : start + self.batch_size] for start in range(0, full, self.batch_size)]
            rest += indices[full:]
        rng.shuffle(batches)
        for batch in batches:
            rng.shuffle(batch)  # so that the processes share it evenly
        yield from (index for batch in batches for index in batch)
        yield from rest
