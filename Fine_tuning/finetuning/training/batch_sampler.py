"""Which utterances make a batch, and in which order: a function of the seed and the epoch, so a run resumes exactly."""

import random
from collections.abc import Iterator, Sequence

MAX_DURATION_RATIO = 1.06  # durations within this ratio share a batch: at most 6 % of the longest is padding
MIN_BATCHES_PER_GROUP = 4  # of one duration, so that who meets whom still changes from epoch to epoch


class EpochBatchSampler:
    """A batch sampler for torch's DataLoader: lists of (epoch, index of the utterance).

    Batches of `size` utterances or, with `seconds`, of utterances of nearly equal duration that last about so long
    together, padding included. Shuffled: each utterance once an epoch, in batches that are drawn anew; every rank
    gets as many batches as the others, and others than they do. Not shuffled: the same in every epoch, every utterance
    on some rank, and some twice (`repeats`) where the ranks would not come out even.
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
        """Durations of all utterances in seconds, by index; `rank` of `ranks` processes."""
        self.groups = _groups(durations_s, size, seconds)
        self.seed, self.rank, self.ranks, self.shuffle = seed, rank, ranks, shuffle
        self.count = sum(-(-len(indexes) // size) for indexes, size in self.groups)  # of all ranks
        self.epoch = 0  # the next one to be iterated over
        self.start = 0  # its batches that are done already

    def __len__(self) -> int:
        """Batches of each rank in every epoch."""
        return self.count // self.ranks if self.shuffle else -(-self.count // self.ranks)

    def repeats(self, number: int) -> bool:
        """Whether this rank's batch of that number is another rank's too."""
        return self.rank + number * self.ranks >= self.count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """This rank's batches of the epoch, without the first `start`; the next time begins at the beginning."""
        start, self.start = self.start, 0  # by the first that is read: DataLoader asks for iterators it does not use
        batches = self._all()
        mine = [batches[(self.rank + number * self.ranks) % self.count] for number in range(start, len(self))]
        for batch in mine:
            yield [(self.epoch, index) for index in batch]

    def _all(self) -> list[list[int]]:
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
    """Utterances that may share a batch, and how many do at most."""
    if seconds is None:
        return [(list(range(len(durations_s))), size)]
    order = sorted(range(len(durations_s)), key=lambda i: (durations_s[i], i))
    groups: list[list[int]] = []
    for index in order:
        duration = durations_s[index]
        group = groups[-1] if groups else []
        full = len(group) >= MIN_BATCHES_PER_GROUP * max(1, int(seconds / duration))
        if not group or (full and duration > MAX_DURATION_RATIO * durations_s[group[0]]):
            groups.append([])
        groups[-1].append(index)
    return [(group, max(1, int(seconds / durations_s[group[-1]]))) for group in groups]


def padding_share(durations_s: Sequence[float], batches: Iterator[list[tuple[int, int]]]) -> float:
    """Share of padding in what is computed for `batches`, each as long as its longest utterance."""
    spoken = computed = 0.0
    for batch in batches:
        lengths = [durations_s[index] for _, index in batch]
        spoken += sum(lengths)
        computed += max(lengths) * len(lengths)
    return 1 - spoken / computed
