"""The order of the records: every one once, batches of one modality and of like length."""

import random

import pytest

from mqt_llava.training.grouping import ModalityLengthSampler


def make_sizes(num_images: int, num_texts: int, seed: int = 0) -> list[tuple[bool, int]]:
    rng = random.Random(seed)
    kinds = [True] * num_images + [False] * num_texts
    rng.shuffle(kinds)
    return [(kind, int(1000 * rng.lognormvariate(4, 1))) for kind in kinds]


def order(sizes, batch_size: int, seed: int = 0, epoch: int = 0) -> list[int]:
    sampler = ModalityLengthSampler(sizes, batch_size, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def batches_of(indices: list[int], batch_size: int) -> list[list[int]]:
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def mean_padding(sizes, batches: list[list[int]]) -> float:
    """The share of padding in batches of these lengths."""
    lengths = [[sizes[index][1] for index in batch] for batch in batches]
    return 1 - sum(map(sum, lengths)) / sum(max(batch) * len(batch) for batch in lengths)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 2000])
@pytest.mark.parametrize("num_images, num_texts", [(900, 300), (1000, 0), (0, 500), (3, 2), (1, 0), (801, 79)])
def test_every_record_once_and_batches_of_one_modality(num_images, num_texts, batch_size):
    sizes = make_sizes(num_images, num_texts)
    sampler = ModalityLengthSampler(sizes, batch_size)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        indices = list(sampler)
        assert sorted(indices) == list(range(len(sizes))) and len(sampler) == len(sizes)
        num_full = num_images // batch_size + num_texts // batch_size
        batches = batches_of(indices, batch_size)
        kinds = [{sizes[index][0] for index in batch} for batch in batches[:num_full]]
        assert all(len(kind) == 1 for kind in kinds)
        # What is left over of either kind comes last.
        rest = [index for batch in batches[num_full:] for index in batch]
        assert sum(sizes[index][0] for index in rest) == num_images % batch_size
        assert len(rest) == num_images % batch_size + num_texts % batch_size


def test_modalities_take_turns():
    sizes = make_sizes(800, 800)
    kinds = [sizes[batch[0]][0] for batch in batches_of(order(sizes, 8), 8)]
    changes = sum(one != other for one, other in zip(kinds, kinds[1:]))
    assert 70 < changes < 130  # a fair coin changes 100 times in 200


def test_lengths_of_a_batch_are_alike():
    sizes = make_sizes(4000, 0)
    shuffled = list(range(4000))
    random.Random(0).shuffle(shuffled)
    grouped = mean_padding(sizes, batches_of(order(sizes, 8), 8))
    assert grouped < 0.2 < 0.5 < mean_padding(sizes, batches_of(shuffled, 8))


def test_long_and_short_batches_are_mixed():
    sizes = make_sizes(4000, 0)
    batches = batches_of(order(sizes, 8), 8)
    means = [sum(sizes[index][1] for index in batch) / 8 for batch in batches]
    halves = sum(means[:250]) / 250, sum(means[250:]) / 250
    assert 0.7 < halves[0] / halves[1] < 1.4
    # Within a batch no process always has the longest.
    longest = [max(range(8), key=lambda place: sizes[batch[place]][1]) for batch in batches]
    assert all(longest.count(place) > 500 / 8 / 2 for place in range(8))


def test_other_records_meet_in_another_epoch():
    sizes = make_sizes(4000, 0)
    pairs = []
    for epoch in (0, 1):
        batches = batches_of(order(sizes, 8, epoch=epoch), 8)
        pairs.append({frozenset((one, other)) for batch in batches for one in batch for other in batch if one < other})
    assert len(pairs[0]) == 14000 and len(pairs[0] & pairs[1]) < 1400


def test_the_order_depends_on_seed_and_epoch_alone():
    sizes = make_sizes(300, 100)
    first = order(sizes, 8, seed=3, epoch=2)
    random.seed(5)
    state = random.getstate()
    sampler = ModalityLengthSampler(sizes, 8, 3)
    for epoch in (0, 1, 2, 2):  # what came before does not count
        sampler.set_epoch(epoch)
        last = list(sampler)
    assert first == last == list(sampler)
    assert random.getstate() == state
    others = [order(sizes, 8, seed=3, epoch=3), order(sizes, 8, seed=4, epoch=2), order(sizes, 8, seed=2, epoch=3)]
    assert len({tuple(each) for each in (first, *others)}) == 4
