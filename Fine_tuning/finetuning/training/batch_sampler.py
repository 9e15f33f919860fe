"""Batches and their order as a function of the seed and the epoch, so that a run resumes exactly."""

import random
from collections.abc import Iterator, Sequence

MAX_DURATION_RATIO = 1.06  # durations within this ratio share a batch: at most 6 % of the longest is padding
MIN_BATCHES_PER_GROUP = 4  # of one duration, so that batches are still composed anew in every epoch


class EpochBatchSampler:
    """A batch sampler for torch's DataLoader that yields lists of (epoch, index of the utterance).

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
    ) -> None:
        """Take the durations of all utterances by index, and the `rank` of this process out of `ranks`."""
        self.groups = _groups(durations_s, size, seconds)
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

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this rank's batches of the epoch without the first `start`, which is 0 from then on."""
        start, self.start = self.start, 0  # when the first is read: DataLoader creates iterators it does not use
        batches = self._batches_of_all_ranks()
        own = [batches[(self.rank + number * self.ranks) % self.count] for number in range(start, len(self))]
        for batch in own:
            yield [(self.epoch, index) for index in batch]

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


def padding_share(durations_s: Sequence[float], batches: Iterator[list[tuple[int, int]]]) -> float:
    """Return the share of padding in `batches`, each padded to its longest utterance."""
    speech_s = total_s = 0.0
    for batch in batches:
        lengths = [durations_s[index] for _, index in batch]
        speech_s += sum(lengths)
        total_s += max(lengths) * len(lengths)
    return 1 - speech_s / total_s
