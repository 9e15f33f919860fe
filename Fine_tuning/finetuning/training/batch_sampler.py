"""Batches and their order as a function of the seed and the epoch, so that a run resumes exactly."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor

MAX_DURATION_RATIO = 1.06  # durations within this ratio share a batch: at most 6 % of the longest is padding
MIN_BATCHES_PER_GROUP = 4  # of one duration, so that batches are still composed anew in every epoch


PHASE = (5**0.5 - 1) / 2  # of the golden ratio: its multiples, modulo 1, are spread evenly however many there are


@dataclass(frozen=True)
class Slot:
    """One of the places of an epoch, taken by utterances of nearly equal duration in turn.

    In epoch e it is the one at `(place + e * PHASE % 1) * stride` among `candidates`.
    """

    candidates: Sequence[int]  # indexes, by duration
    place: int
    stride: float
    duration_s: float  # at most
    copy: int = 0  # of an utterance that has several places in an epoch

    def key(self, epoch: int) -> tuple[int, ...]:
        """Return the epoch and the index of the utterance, and which copy it is if it is not the first."""
        index = self.candidates[min(floor((self.place + epoch * PHASE % 1) * self.stride), len(self.candidates) - 1)]
        return (epoch, index, self.copy) if self.copy else (epoch, index)


class EpochBatchSampler:
    """A batch sampler for torch's DataLoader that yields lists of (epoch, index of the utterance).

    With weights, an utterance of weight 2.5 comes twice or three times an epoch, half of those of its weight each: the
    second time as (epoch, index, 1). Every epoch has as many, and over the epochs all of a weight come equally often.

    A batch holds `size` utterances or, with `seconds`, utterances of nearly equal duration that last about so long
    together, padding included. Shuffled, each utterance comes once an epoch, in new batches every epoch; all ranks get
    the same number of batches and no batch twice. Not shuffled, every epoch is the same and every utterance is on some
    rank; some batches are on two (`repeats`) where they cannot be divided evenly.
    """

    def __init__(
        self,
        durations_s: Sequence[float],
        size: int,
        seconds: float | None,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        shuffle: bool = True,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Take the durations of all utterances by index, and the `rank` of this process out of `ranks`.

        `weights`: how often each utterance comes in an epoch, where that is not once.
        """
        self.slots = _slots(durations_s, weights or [1.0] * len(durations_s))
        self.groups = _groups([slot.duration_s for slot in self.slots], size, seconds)
        self.seed, self.rank, self.ranks, self.shuffle = seed, rank, ranks, shuffle
        self.count = sum(-(-len(indexes) // size) for indexes, size in self.groups)  # batches of all ranks
        self.epoch = 0  # that is iterated over next
        self.start = 0  # number of its batches that are done already

    def __len__(self) -> int:
        """Return the number of batches of each rank in every epoch."""
        return self.count // self.ranks if self.shuffle else -(-self.count // self.ranks)

    def repeats(self, number: int) -> bool:
        """Tell whether this rank's batch of that number is another rank's too."""
        return self.rank + number * self.ranks >= self.count

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        """Yield this rank's batches of the epoch without the first `start`, which is 0 from then on."""
        start, self.start = self.start, 0  # when the first is read: DataLoader creates iterators it does not use
        batches = self._batches_of_all_ranks()
        own = [batches[(self.rank + number * self.ranks) % self.count] for number in range(start, len(self))]
        for batch in own:
            yield [self.slots[number].key(self.epoch) for number in batch]

    def _batches_of_all_ranks(self) -> list[list[int]]:
        rng = random.Random(f"{self.seed} {self.epoch}")
        batches = []
        for indexes, size in self.groups:
            order = rng.sample(indexes, len(indexes)) if self.shuffle else indexes
            count = -(-len(order) // size)
            batches += [order[i * len(order) // count : (i + 1) * len(order) // count] for i in range(count)]
        if self.shuffle:
            rng.shuffle(batches)
        return batches


def _slots(durations_s: Sequence[float], weights: Sequence[float]) -> list[Slot]:
    """Return the places of an epoch: as many of each utterance as its weight, and of the rest of the weight a share."""
    slots = [
        Slot((index,), 0, 1.0, duration_s, copy)
        for index, (duration_s, weight) in enumerate(zip(durations_s, weights, strict=True))
        for copy in range(floor(weight))
    ]
    for weight in sorted({weight for weight in weights if weight % 1}):
        alike = [index for index, each in enumerate(weights) if each == weight]
        alike.sort(key=lambda index: (durations_s[index], index))
        count = max(1, round(weight % 1 * len(alike)))
        stride = len(alike) / count
        for place in range(count):
            longest_s = durations_s[alike[min(floor((place + 1) * stride), len(alike) - 1)]]
            slots.append(Slot(alike, place, stride, longest_s, floor(weight)))
    return slots


def _groups(durations_s: Sequence[float], size: int, seconds: float | None) -> list[tuple[list[int], int]]:
    """Return lists of utterances that may share a batch, each with its largest batch size."""
    if seconds is None:
        return [(list(range(len(durations_s))), size)]
    order = sorted(range(len(durations_s)), key=lambda i: (durations_s[i], i))
    groups: list[list[int]] = []
    for index in order:
        duration = durations_s[index]
        group = groups[-1] if groups else []
        is_full = len(group) >= MIN_BATCHES_PER_GROUP * max(1, int(seconds / duration))
        if not group or (is_full and duration > MAX_DURATION_RATIO * durations_s[group[0]]):
            groups.append([])
        groups[-1].append(index)
    return [(group, max(1, int(seconds / durations_s[group[-1]]))) for group in groups]


def padding_share(durations_s: Sequence[float], batches: Iterator[list[tuple[int, ...]]]) -> float:
    """Return the share of padding in `batches`, each padded to its longest utterance."""
    speech_s = total_s = 0.0
    for batch in batches:
        lengths = [durations_s[index] for _, index, *_ in batch]
        speech_s += sum(lengths)
        total_s += max(lengths) * len(lengths)
    return 1 - speech_s / total_s
