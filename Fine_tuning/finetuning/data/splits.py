"""Who goes to train, validation and test, and what the three have in common."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import combinations
from math import floor, log2

from finetuning.config.schema import Split, SplitBy
from finetuning.data.common_voice import RejectedRow
from finetuning.data.manifest import SPLITS, Utterance
from finetuning.errors import UserError

Assignment = dict[str, str]  # audio_filepath: split


def validate_split(split: Split, speakers: set[str], speakers_named: bool) -> None:
    """UserError where `by: speaker` cannot work, before any clip is converted."""
    if split.by is not SplitBy.speaker:
        return
    if not speakers_named:
        raise UserError("validated.tsv has no column client_id: the speakers are unknown; give dataset.split.by=clip")
    if len(speakers) < len(SPLITS):
        raise UserError(
            f"{len(speakers)} speakers cannot be kept apart in {len(SPLITS)} splits; give dataset.split.by=clip"
        )


def assign_splits(split: Split, utterances: list[Utterance]) -> tuple[Assignment, Assignment]:
    """`by: speaker` or `by: clip`: each utterance's split, and those left out with the split that has their sentence.

    The same for a seed whatever the order of `utterances`.
    """
    shares = {"train": split.train, "validation": split.validation, "test": split.test}
    if split.by is SplitBy.clip:
        return split_by_clip(utterances, shares, split.seed), {}
    return split_by_speaker(utterances, shares, split.seed)


def split_by_clip(utterances: list[Utterance], shares: dict[str, float], seed: int) -> Assignment:
    """Shares met in clips; speakers and sentences stand in several splits (the published protocol)."""
    paths = sorted((u.audio_filepath for u in utterances), key=lambda path: _hash_order(seed, path))
    ends = {"train": round(len(paths) * shares["train"]), "validation": 0, "test": len(paths)}
    ends["validation"] = round(len(paths) * (shares["train"] + shares["validation"]))
    starts = dict(zip(SPLITS, (0, ends["train"], ends["validation"]), strict=True))
    return {path: split for split in SPLITS for path in paths[starts[split] : ends[split]]}


def split_by_speaker(utterances: list[Utterance], shares: dict[str, float], seed: int) -> tuple[Assignment, Assignment]:
    """Shares met in hours; no speaker and no sentence stands in two splits.

    A speaker goes to the split that lacks most hours, those with most hours first: they end in train, so that
    validation and test hold many voices. Then a sentence read in several splits stays in the one furthest below its
    share, and the other splits lose it.
    """
    hours = defaultdict(float)
    for u in sorted(utterances, key=lambda u: u.audio_filepath):  # one order of adding: one result to the last bit
        hours[u.speaker] += u.duration
    lacking = {split: shares[split] * sum(hours[speaker] for speaker in sorted(hours)) for split in SPLITS}
    home: dict[str, str] = {}
    order = sorted(hours, key=lambda speaker: (-floor(log2(hours[speaker] or 1e-9)), _hash_order(seed, speaker)))
    for left, speaker in zip(range(len(order), 0, -1), order, strict=True):
        empty = [split for split in SPLITS if split not in home.values()] if left <= len(SPLITS) else []
        home[speaker] = max(empty if left <= len(empty) else SPLITS, key=lambda split: lacking[split])
        lacking[home[speaker]] -= hours[speaker]
    return _separate_sentences(utterances, home, shares, seed)


def _separate_sentences(
    utterances: list[Utterance], home: dict[str, str], shares: dict[str, float], seed: int
) -> tuple[Assignment, Assignment]:
    """Every utterance in its speaker's split, except where another split has its sentence."""
    hours = dict.fromkeys(SPLITS, 0.0)
    sentences: dict[str, dict[str, list[Utterance]]] = defaultdict(lambda: defaultdict(list))
    for u in sorted(utterances, key=lambda u: u.audio_filepath):
        hours[home[u.speaker]] += u.duration
        sentences[u.text][home[u.speaker]].append(u)
    kept, lost = {}, {}
    for text in sorted(sentences, key=lambda text: _hash_order(seed, text)):
        total = sum(hours.values())
        keeper = max(sentences[text], key=lambda split: (shares[split] * total - hours[split], split))
        for split, group in sentences[text].items():
            (kept if split == keeper else lost).update((u.audio_filepath, keeper) for u in group)
            hours[split] -= sum(u.duration for u in group) if split != keeper else 0.0
    return kept, lost


def check_splits_not_empty(splits: dict[str, list[Utterance]], rejected: list[RejectedRow]) -> None:
    """UserError names a split without an utterance, and the reasons for which rows were rejected."""
    empty = [name for name in SPLITS if not splits[name]]
    if not empty:
        return
    counts = Counter(row.reason for row in rejected)
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items())) or "none"
    sentence = f"no utterance is left for {' and '.join(empty)} (rejected rows: {left_out})"
    if len(empty) == len(SPLITS) and rejected:
        reason = max(counts, key=lambda name: (counts[name], name))
        example = min(row for row in rejected if row.reason == reason)
        raise UserError(f"{sentence}; most are {reason}, such as {example.path!r}: {example.detail}")
    raise UserError(
        f"{sentence}; give a larger release, other filters (dataset.max_duration_s=…), other shares "
        "(dataset.split.train=…) or another dataset.split.by"
    )


def describe_splits(splits: dict[str, list[Utterance]]) -> dict[str, dict[str, float]]:
    """By split: hours, clips, speakers and different sentences."""
    return {
        name: {
            "hours": round(sum(u.duration for u in utterances) / 3600, 4),
            "clips": len(utterances),
            "speakers": len(_speakers(utterances)),
            "sentences": len({u.text for u in utterances}),
        }
        for name, utterances in splits.items()
    }


def split_overlap(splits: dict[str, list[Utterance]]) -> dict[str, dict[str, int | None]]:
    """By pair of splits: speakers and different sentences that stand in both; None where no clip names its speaker."""
    named = any(map(_speakers, splits.values()))
    return {
        f"{a} and {b}": {
            "speakers": len(_speakers(splits[a]) & _speakers(splits[b])) if named else None,
            "sentences": len({u.text for u in splits[a]} & {u.text for u in splits[b]}),
        }
        for a, b in combinations(SPLITS, 2)
    }


def seen_in_train(splits: dict[str, list[Utterance]]) -> dict[str, dict[str, dict[str, float] | None]]:
    """Of validation and of test: clips by a speaker heard in train, with a sentence read in train, and with neither.

    Each as a count and as a share of the split's clips; what concerns speakers is None where no clip names its speaker.
    """
    speakers, sentences = _speakers(splits["train"]), {u.text for u in splits["train"]}
    named = any(map(_speakers, splits.values()))

    def counted(clips: list[bool]) -> dict[str, float]:
        return {"clips": sum(clips), "share": round(sum(clips) / (len(clips) or 1), 4)}

    known = {}
    for name in SPLITS[1:]:
        heard = [u.speaker in speakers for u in splits[name]]
        read = [u.text in sentences for u in splits[name]]
        neither = [not (a or b) for a, b in zip(heard, read, strict=True)]
        known[name] = {
            "speaker": counted(heard) if named else None,
            "sentence": counted(read),
            "neither": counted(neither) if named else None,
        }
    return known


def _speakers(utterances: Iterable[Utterance]) -> set[str]:
    return {u.speaker for u in utterances if u.speaker}


def _hash_order(seed: int, key: str) -> bytes:
    """A place in a random order that depends on nothing but the seed and the key."""
    return hashlib.sha256(f"{seed} {key}".encode()).digest()
