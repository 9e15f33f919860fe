"""Assign utterances to train, validation and test, and measure what the three have in common."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import combinations
from math import floor, log2

from finetuning.config.schema import Repeated, Split, SplitBy
from finetuning.data.listing import Listing, RejectedRow
from finetuning.data.manifest import SPLITS, Utterance
from finetuning.errors import UserError

MANY_LOST = 0.05  # of the clips left out for their sentence: worth a warning
Assignment = dict[str, str]  # audio_filepath: split


def validate_split(split: Split, speakers: set[str], listing: Listing) -> None:
    """Raise UserError when `by: speaker` cannot work, before any clip is converted."""
    if split.by is not SplitBy.speaker:
        return
    if not listing.speakers_named:
        column = "client_id" if listing.table == "validated.tsv" else "speaker"
        raise UserError(f"{listing.table} has no column {column}: the speakers are unknown; give dataset.split.by=clip")
    if len(speakers) < len(SPLITS):
        raise UserError(
            f"{len(speakers)} speakers cannot be kept apart in {len(SPLITS)} splits; give dataset.split.by=clip"
        )


def assign_splits(split: Split, utterances: list[Utterance]) -> tuple[Assignment, Assignment]:
    """Return the split of each utterance, and for those left out the split that has their sentence.

    It depends on the seed, not on the order of `utterances`.
    """
    shares = {"train": split.train, "validation": split.validation, "test": split.test}
    if split.by is SplitBy.clip:
        return split_by_clip(utterances, shares, split.seed), {}
    return split_by_speaker(utterances, shares, split.seed, split.repeated)


def foretell_losses(split: Split, utterances: Iterable[Utterance]) -> str:
    """Return a warning where `by: speaker` will leave out many clips for their sentence; "" where it will not.

    The durations may be estimates: the clips need not be converted yet.
    """
    if split.by is not SplitBy.speaker or split.repeated is Repeated.keep:
        return ""
    utterances = list(utterances)
    lost = len(assign_splits(split, utterances)[1])
    if not lost or lost < MANY_LOST * len(utterances):
        return ""
    return (
        f"the split by speaker will leave out about {lost:,} of {len(utterances):,} clips "
        f"({lost / len(utterances):.0%}), since their sentence is read in another split too; "
        "dataset.split.repeated=keep keeps them"
    )


def split_by_clip(utterances: list[Utterance], shares: dict[str, float], seed: int) -> Assignment:
    """Split at random by shares of the clips; splits share speakers and sentences (the published protocol)."""
    paths = sorted((u.audio_filepath for u in utterances), key=lambda path: _hash_order(seed, path))
    ends = {"train": round(len(paths) * shares["train"]), "validation": 0, "test": len(paths)}
    ends["validation"] = round(len(paths) * (shares["train"] + shares["validation"]))
    starts = dict(zip(SPLITS, (0, ends["train"], ends["validation"]), strict=True))
    return {path: split for split in SPLITS for path in paths[starts[split] : ends[split]]}


def split_by_speaker(
    utterances: list[Utterance], shares: dict[str, float], seed: int, repeated: Repeated = Repeated.drop
) -> tuple[Assignment, Assignment]:
    """Split by shares of the duration such that no speaker and, unless `repeated` ones are kept, no sentence is in two.

    Speakers are assigned in descending order of duration (in powers of two, then at random), each to the split that
    lacks most: the most active end in train, so that validation and test hold many voices. Then a sentence read in
    several splits stays in the one furthest below its share, and the other splits lose it.
    """
    seconds: dict[str, float] = defaultdict(float)
    for u in sorted(utterances, key=lambda u: u.audio_filepath):  # one order of summation: the same to the last bit
        seconds[u.speaker] += u.duration
    lacking = {split: shares[split] * sum(seconds[speaker] for speaker in sorted(seconds)) for split in SPLITS}
    split_of: dict[str, str] = {}  # by speaker
    order = sorted(seconds, key=lambda speaker: (-floor(log2(seconds[speaker] or 1e-9)), _hash_order(seed, speaker)))
    for remaining, speaker in zip(range(len(order), 0, -1), order, strict=True):
        empty = [split for split in SPLITS if split not in split_of.values()] if remaining <= len(SPLITS) else []
        split_of[speaker] = max(empty if remaining <= len(empty) else SPLITS, key=lambda split: lacking[split])
        lacking[split_of[speaker]] -= seconds[speaker]
    if repeated is Repeated.keep:
        return {u.audio_filepath: split_of[u.speaker] for u in utterances}, {}
    return _separate_sentences(utterances, split_of, shares, seed)


def _separate_sentences(
    utterances: list[Utterance], split_of: dict[str, str], shares: dict[str, float], seed: int
) -> tuple[Assignment, Assignment]:
    """Assign utterances to their speaker's split, and those whose sentence stays in another split to that, as lost."""
    seconds = dict.fromkeys(SPLITS, 0.0)
    sentences: dict[str, dict[str, list[Utterance]]] = defaultdict(lambda: defaultdict(list))
    for u in sorted(utterances, key=lambda u: u.audio_filepath):
        seconds[split_of[u.speaker]] += u.duration
        sentences[u.text][split_of[u.speaker]].append(u)
    assigned, lost = {}, {}
    for text in sorted(sentences, key=lambda text: _hash_order(seed, text)):
        total = sum(seconds.values())
        keeper = max(sentences[text], key=lambda split: (shares[split] * total - seconds[split], split))
        for split, group in sentences[text].items():
            (assigned if split == keeper else lost).update((u.audio_filepath, keeper) for u in group)
            seconds[split] -= sum(u.duration for u in group) if split != keeper else 0.0
    return assigned, lost


def separate_sources(splits: dict[str, list[Utterance]], split: Split) -> dict[str, tuple[str, str]]:
    """Return, for `by: speaker`, which utterances of train and validation must go, with the reason and a detail.

    A source that is all for training, or a test set, is in no other split; its speakers and sentences may be.
    """
    lost: dict[str, tuple[str, str]] = {}
    if split.by is not SplitBy.speaker:
        return lost
    tests = [name for name in splits if name.startswith(SPLITS[-1])]
    for name, others in (("validation", tests), ("train", ["validation", *tests])):
        speakers = {u.speaker: other for other in others for u in splits[other] if u.speaker}
        sentences = {u.text: other for other in others for u in splits[other]}
        for u in splits[name]:
            if u.text in sentences and split.repeated is Repeated.drop:
                lost[u.audio_filepath] = "sentence_in_other_split", f"also read in {sentences[u.text]}"
            elif u.speaker in speakers:
                lost[u.audio_filepath] = "speaker_in_other_split", f"also speaks in {speakers[u.speaker]}"
    return lost


def check_splits_not_empty(splits: dict[str, list[Utterance]], rejected: list[RejectedRow]) -> None:
    """Raise UserError, with the reasons for which rows were rejected, when a split has no utterance."""
    empty = [name for name, utterances in splits.items() if not utterances]
    if not empty:
        return
    counts = Counter(row.reason for row in rejected)
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items())) or "none"
    sentence = f"no utterance is left for {' and '.join(empty)} (rejected rows: {left_out})"
    if len(empty) == len(splits) and rejected:
        reason = max(counts, key=lambda name: (counts[name], name))
        example = min(row for row in rejected if row.reason == reason)
        raise UserError(f"{sentence}; most are {reason}, such as {example.path!r}: {example.detail}")
    raise UserError(
        f"{sentence}; give a larger release, other filters (dataset.max_duration_s=…), other shares "
        "(dataset.split.train=…) or another dataset.split.by"
    )


def describe_splits(splits: dict[str, list[Utterance]]) -> dict[str, dict[str, float]]:
    """Return hours, clips, speakers and distinct sentences of each split."""
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
    """Return the speakers and distinct sentences that each pair of splits shares.

    Those of speakers are None when no clip names its speaker.
    """
    named = any(map(_speakers, splits.values()))
    return {
        f"{a} and {b}": {
            "speakers": len(_speakers(splits[a]) & _speakers(splits[b])) if named else None,
            "sentences": len({u.text for u in splits[a]} & {u.text for u in splits[b]}),
        }
        for a, b in combinations(splits, 2)
    }


def seen_in_train(splits: dict[str, list[Utterance]]) -> dict[str, dict[str, dict[str, float] | None]]:
    """Return how many clips of validation and test have a speaker of train, a sentence of train, and neither.

    Each is a count and a share of the split's clips; those of speakers are None when no clip names its speaker.
    """
    speakers, sentences = _speakers(splits["train"]), {u.text for u in splits["train"]}
    named = any(map(_speakers, splits.values()))

    def figures(clips: list[bool]) -> dict[str, float]:
        return {"clips": sum(clips), "share": round(sum(clips) / (len(clips) or 1), 4)}

    seen = {}
    for name in list(splits)[1:]:
        by_speaker = [u.speaker in speakers for u in splits[name]]
        by_sentence = [u.text in sentences for u in splits[name]]
        by_neither = [not (a or b) for a, b in zip(by_speaker, by_sentence, strict=True)]
        seen[name] = {
            "speaker": figures(by_speaker) if named else None,
            "sentence": figures(by_sentence),
            "neither": figures(by_neither) if named else None,
        }
    return seen


def _speakers(utterances: Iterable[Utterance]) -> set[str]:
    return {u.speaker for u in utterances if u.speaker}


def _hash_order(seed: int, key: str) -> bytes:
    """Return a sort key for a random order that depends on nothing but the seed and the key."""
    return hashlib.sha256(f"{seed} {key}".encode()).digest()
