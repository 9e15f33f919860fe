"""Which rows of a release become utterances, and why the others do not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from operator import eq
from typing import Any

from finetuning.config.schema import Dataset
from finetuning.data.common_voice import Clip, RejectedRow
from finetuning.data.conversion_pool import ConvertedClip
from finetuning.data.manifest import Utterance
from finetuning.data.text_normalization import Language
from finetuning.errors import UserError

LARGE_SHARE = 0.2  # of the rows rejected for one reason: something is wrong with the release or with the settings


@dataclass(frozen=True)
class ForeignCharacter:
    """A character outside the alphabet, and what it cost."""

    character: str
    rows: int  # rejected rows whose text holds it
    sentence: str  # the shortest of theirs


@dataclass(frozen=True)
class TextReport:
    """What the rules did to the sentences of a release; the same whatever the order of its rows."""

    rules: dict[str, int]  # each rule, in the order they are applied: rows whose text it changed
    foreign_characters: list[ForeignCharacter]  # those that cost most rows first


def filter_by_text(rows: list[Clip], language: Language) -> tuple[dict[Clip, str], list[RejectedRow], TextReport]:
    """The normalised text of each row that has a usable path and sentence; of several rows for a clip, the first."""
    texts: dict[Clip, str] = {}
    taken: dict[str, str] = {}  # wav: the clip it is made from
    rejected = []
    changed = dict.fromkeys(language.rule_names(), 0)
    sentences: dict[str, list[str]] = {}  # by foreign character
    for clip in rows:
        text, rules = language.trace(clip.sentence)
        for rule in rules:
            changed[rule] += 1
        if not is_file_name(clip.path):
            rejected.append(RejectedRow(clip.path, "path_outside_clips", "not the name of a file in clips/"))
        elif fault := language.fault(clip.sentence):
            rejected.append(RejectedRow(clip.path, *fault))
        elif not text:
            rejected.append(RejectedRow(clip.path, "empty_sentence", clip.sentence.strip()))
        elif foreign := language.foreign(text):
            rejected.append(RejectedRow(clip.path, "foreign_character", foreign))
            for character in foreign:
                sentences.setdefault(character, []).append(clip.sentence)
        elif clip.wav in taken:
            rejected.append(RejectedRow(clip.path, "duplicate_clip", f"another row makes a wav of {taken[clip.wav]}"))
        else:
            texts[clip] = text
            taken[clip.wav] = clip.path
    return texts, rejected, TextReport(changed, _foreign_characters(sentences))


def _foreign_characters(sentences: dict[str, list[str]]) -> list[ForeignCharacter]:
    found = [
        ForeignCharacter(character, len(those), min(those, key=lambda sentence: (len(sentence), sentence)))
        for character, those in sentences.items()
    ]
    return sorted(found, key=lambda foreign: (-foreign.rows, foreign.character))


def check_rows_left(
    clips: list[Clip], rejected: list[RejectedRow], report: TextReport, alphabet: str, present: set[str]
) -> None:
    """UserError where no row is worth converting; it shows what most have in common. `present`: the files in clips/."""
    if clips:
        return
    if not rejected:
        raise UserError("validated.tsv has no row below its header; get the release again")
    counts = Counter(row.reason for row in rejected)
    reason = max(counts, key=lambda name: (counts[name], name))
    example = min(row for row in rejected if row.reason == reason)
    if reason == "foreign_character":
        worst = ", ".join(f"{one.character!r} in {one.rows:,}" for one in report.foreign_characters[:5])
        raise UserError(
            f"no row is left: all hold characters outside of text.alphabet, which is {alphabet!r} ({worst} rows); is "
            "this --config the one of the language?"
        )
    if reason in ("clip_missing", "path_outside_clips"):
        there = f"clips/ holds {min(present)!r} and {len(present) - 1:,} more" if present else "clips/ is empty"
        raise UserError(
            f"no row is left: of {len(rejected):,} rows, {counts[reason]:,} name a clip that is not there; "
            f"validated.tsv names {example.path!r} and {there}; make the names agree, or get the clips of this table"
        )
    raise UserError(
        f"no row is left: of {len(rejected):,} rows, {counts[reason]:,} are rejected as {reason}, such as "
        f"{example.path!r} ({example.detail}); is dataset.source the release you mean?"
    )


def rejection_warnings(rejected: list[RejectedRow], rows: int) -> list[str]:
    """A sentence for each reason that has cost a large share of the rows, those apart that are a matter of settings."""
    counts = Counter(row.reason for row in rejected if row.reason != "not_in_release_split")
    found = []
    for reason, count in counts.most_common():
        if count > LARGE_SHARE * rows:
            example = min(row for row in rejected if row.reason == reason)
            detail = f"{example.path!r}: {example.detail}"
            found.append(f"warning: {count / rows:.0%} of the rows are rejected as {reason}, such as {detail}")
    return found


def is_file_name(path: str) -> bool:
    """Whether `path` names a visible file in a folder, short enough for every file system, and nothing elsewhere."""
    return bool(path) and not path.startswith(".") and not set(path) & set("/\\\0") and len(path.encode()) <= 200


def filter_by_clip(clips: list[Clip], present: dict[str, str]) -> tuple[list[Clip], list[RejectedRow]]:
    """The rows whose clip is in the release (`present`)."""
    missing = [RejectedRow(clip.path, "clip_missing", "not in clips/") for clip in clips if clip.path not in present]
    return [clip for clip in clips if clip.path in present], missing


def filter_by_release_split(clips: list[Clip], splits: dict[str, list[str]]) -> tuple[list[Clip], list[RejectedRow]]:
    """The rows that exactly one of the release's own splits names."""
    kept, rejected = [], []
    for clip in clips:
        named = splits.get(clip.path, [])
        if len(named) == 1:
            kept.append(clip)
        else:
            detail = f"in {' and '.join(named)}" if named else "in none of train.tsv, dev.tsv and test.tsv"
            rejected.append(RejectedRow(clip.path, "not_in_release_split", detail))
    return kept, rejected


def filter_by_audio(
    clips: list[Clip],
    texts: dict[Clip, str],
    converted: dict[str, ConvertedClip],
    stated_s: dict[str, float],
    dataset: Dataset,
) -> tuple[list[Utterance], list[RejectedRow]]:
    """The rows whose clip was converted and passes the filters of `dataset`."""
    utterances, rejected = [], []
    for clip in clips:
        sound, text = converted[clip.path], texts[clip]
        fault = _rejection(sound, text, stated_s.get(clip.path, 0.0), dataset)
        if fault:
            rejected.append(RejectedRow(clip.path, *fault))
        else:
            about = (clip.sentence, clip.speaker, clip.gender, clip.age, clip.accents)
            utterances.append(Utterance(f"wavs/{clip.wav}", sound.duration_s, text, *about))
    return utterances, rejected


def _rejection(sound: ConvertedClip, text: str, stated_s: float, dataset: Dataset) -> tuple[str, str] | None:
    """The first reason why a clip and its text make no utterance, and the figures behind it."""
    frames = floor(sound.duration_s * dataset.encoder_frames_per_second + 1e-6)
    if sound.reason:
        return sound.reason, sound.detail
    if sound.decoded_s < stated_s * (1 - dataset.max_missing_share):
        return "clip_truncated", f"{sound.decoded_s:.2f} s of the {stated_s:.2f} s that clip_durations.tsv states"
    if sound.duration_s < dataset.min_duration_s:
        return "too_short", f"{sound.duration_s:.2f} s"
    if sound.duration_s > dataset.max_duration_s:
        return "too_long", f"{sound.duration_s:.2f} s"
    if min_ctc_frames(text) > frames:
        return "too_many_characters", f"needs {min_ctc_frames(text)} encoder frames and has {frames}"
    return None


def min_ctc_frames(text: Sequence[Any]) -> int:
    """Frames below which CTC gives `text` no probability: one a letter, and a blank between equal neighbours.

    Graves et al. 2006, section 3: "anno" needs a-n-blank-n-o, five frames. `text` may hold the numbers of its
    letters instead.
    """
    return len(text) + sum(map(eq, text, text[1:]))
