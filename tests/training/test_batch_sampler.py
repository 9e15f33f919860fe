"""Which utterances make a batch."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetuning.training.batch_sampler import MAX_DURATION_RATIO, EpochBatchSampler, padding_share

DURATIONS = st.lists(st.floats(0.1, 16.7), min_size=1, max_size=200)


def like_common_voice(count: int) -> list[float]:
    rng = random.Random(1)
    return [min(16.7, max(0.8, rng.lognormvariate(math.log(5.1), 0.35))) for _ in range(count)]


def indexes(batches: EpochBatchSampler) -> list[list[int]]:
    return [[index for _, index in batch] for batch in batches]


@given(DURATIONS, st.integers(1, 9), st.none() | st.floats(1, 60), st.integers(0, 3))
def test_each_epoch_holds_each_utterance_once(
    durations_s: list[float], size: int, seconds: float | None, epoch: int
) -> None:
    batches = EpochBatchSampler(durations_s, size, seconds, seed=0)
    batches.epoch = epoch
    epoch_batches = list(batches)
    assert len(epoch_batches) == len(batches)
    assert {number for batch in epoch_batches for number, _ in batch} == {epoch}
    assert sorted(index for batch in epoch_batches for _, index in batch) == list(range(len(durations_s)))
    for batch in epoch_batches:
        longest = max(durations_s[index] for _, index in batch)
        if seconds is None:
            assert len(batch) <= size
        else:
            assert len(batch) == 1 or len(batch) * longest <= seconds + 1e-6


@pytest.mark.parametrize("seconds", [None, 40.0])
def test_weights_say_how_often_an_utterance_comes(seconds: float | None) -> None:
    """Every epoch has as many of each weight, and over the epochs each utterance of a weight comes equally often."""
    durations_s, epochs = like_common_voice(300), 20
    weights = [1.0] * 100 + [2.5] * 150 + [0.3] * 50
    batches = EpochBatchSampler(durations_s, 8, seconds, seed=0, weights=weights)
    drawn = Counter[int]()
    for epoch in range(epochs):
        batches.epoch = epoch
        keys = [key for batch in batches for key in batch]
        counts = Counter(weights[key[1]] for key in keys)
        assert counts == {1.0: 100, 2.5: 375, 0.3: 15}
        assert len(set(keys)) == len(keys)  # a copy has a key, and so a perturbation, of its own
        drawn.update(key[1] for key in keys)
        if seconds:
            batch_s = [[durations_s[key[1]] for key in batch] for batch in batches]
            assert all(len(each) == 1 or len(each) * max(each) <= seconds for each in batch_s)
    assert {drawn[index] for index in range(100)} == {epochs}
    assert {drawn[index] for index in range(100, 250)} == {50}  # 2.5 times 20
    assert {drawn[index] for index in range(250, 300)} <= {5, 6, 7}  # 0.3 times 20


def test_a_weighted_epoch_is_resumed_where_it_was() -> None:
    durations_s, weights = like_common_voice(50), [1.7] * 20 + [0.4] * 30
    whole, rest = (EpochBatchSampler(durations_s, 4, None, seed=3, weights=weights) for _ in range(2))
    whole.epoch = rest.epoch = 5
    rest.start = 4
    assert list(whole)[4:] == list(rest)
    ranks = [EpochBatchSampler(durations_s, 4, None, 3, rank, 2, weights=weights) for rank in (0, 1)]
    shared = [key for batches in ranks for batch in batches for key in batch]
    assert len(shared) == len(set(shared))


@given(DURATIONS, st.integers(1, 5), st.none() | st.floats(1, 60), st.integers(1, 4))
def test_several_processes_share_an_epoch_without_overlap(
    durations_s: list[float], size: int, seconds: float | None, ranks: int
) -> None:
    rank_batches = [indexes(EpochBatchSampler(durations_s, size, seconds, 0, rank, ranks)) for rank in range(ranks)]
    assert len({len(batches) for batches in rank_batches}) == 1
    trained = [index for batches in rank_batches for batch in batches for index in batch]
    assert len(trained) == len(set(trained))

    validated = set()
    for rank in range(ranks):
        batches = EpochBatchSampler(durations_s, size, seconds, 0, rank, ranks, shuffle=False)
        counted = [batch for number, batch in enumerate(indexes(batches)) if not batches.repeats(number)]
        assert not validated.intersection(*counted) if counted else True
        validated.update(index for batch in counted for index in batch)
    assert validated == set(range(len(durations_s)))


def test_the_order_is_a_function_of_seed_and_epoch():
    durations_s = like_common_voice(100)

    def epoch_batches(seed: int, epoch: int, start: int = 0) -> list[list[int]]:
        batches = EpochBatchSampler(durations_s, 8, 40.0, seed)
        batches.epoch, batches.start = epoch, start
        return indexes(batches)

    assert epoch_batches(0, 3) == epoch_batches(0, 3)
    assert epoch_batches(0, 3) != epoch_batches(0, 4)
    assert epoch_batches(0, 3) != epoch_batches(1, 3)
    assert epoch_batches(0, 3, start=5) == epoch_batches(0, 3)[5:]
    fixed = EpochBatchSampler(durations_s, 8, 40.0, 0, shuffle=False)
    assert indexes(fixed) == indexes(fixed)


def test_who_meets_whom_changes_from_epoch_to_epoch():
    batches = EpochBatchSampler(like_common_voice(2000), 32, 170.0, 0)
    first = {frozenset(batch) for batch in indexes(batches)}
    batches.epoch = 1
    assert len(first & {frozenset(batch) for batch in indexes(batches)}) < len(first) / 10


def test_by_duration_at_most_a_twentieth_is_padding_where_random_batches_pad_nearly_half():
    durations_s = like_common_voice(20_000)
    assert padding_share(durations_s, iter(EpochBatchSampler(durations_s, 32, 32 * 5.4, 0))) < 0.05
    assert padding_share(durations_s, iter(EpochBatchSampler(durations_s, 32, None, 0))) > 0.3
    together = [durations_s[index] for index in indexes(EpochBatchSampler(durations_s, 32, 32 * 5.4, 0))[0]]
    assert max(together) <= MAX_DURATION_RATIO * min(together)


def test_padding_is_what_is_computed_and_not_spoken():
    assert padding_share([1.0, 3.0, 2.0], iter([[(0, 0), (0, 1)], [(0, 2)]])) == pytest.approx(1 - 6 / 8)
