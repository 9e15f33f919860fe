"""Which rows of a release become utterances, and why the others do not.

Each filter takes the candidates, returns those that pass and appends a RejectedRow for every other one to `rejected`.
"""

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from math import floor
from operator import eq
from pathlib import Path
from typing import Any

from finetuning.config.schema import Dataset, Repeated
from finetuning.data.conversion_pool import ConvertedClip
from finetuning.data.listing import Clip, Listing, RejectedRow
from finetuning.data.manifest import SOUND, Utterance
from finetuning.data.shard_reader import member_name
from finetuning.data.text_normalization import Language
from finetuning.errors import UserError

LARGE_SHARE = 0.2  # of the rows rejected for one reason: the release or the settings are probably wrong


@dataclass(slots=True)
class Candidate:
    """A row on its way to an utterance, with what each step finds out about it."""

    clip: Clip
    text: str  # normalised
    source: str = ""  # which of several
    release_split: str = ""  # by the release's own tables, where they decide
    stated_s: float = 0.0  # duration by clip_durations.tsv; 0: not stated
    converted: ConvertedClip | None = None

    @property
    def audio_filepath(self) -> str:
        """The wav, relative to the manifest."""
        return f"{self.source}/wavs/{self.clip.wav}" if self.source else f"wavs/{self.clip.wav}"

    def to_utterance(self) -> Utterance:
        """Return the line of the manifest; before the clip is converted, with the duration that is stated, or 1 s."""
        clip, duration_s = self.clip, self.converted.duration_s if self.converted else self.stated_s or 1.0
        about = (clip.sentence, clip.speaker, clip.gender, clip.age, clip.accents)
        measured = self.converted.sound if self.converted else None
        sound = {name: getattr(measured, name) for name in SOUND} if measured else {}
        return Utterance(self.audio_filepath, duration_s, self.text, *about, self.source or None, **sound)


@dataclass(frozen=True)
class ForeignCharacter:
    """A character outside the alphabet and the rows that were rejected for it."""

    character: str
    rows: int  # rejected rows whose text contains it
    sentence: str  # the shortest of them


@dataclass(frozen=True)
class TextReport:
    """What the rules did to the sentences of a release; it does not depend on the order of the rows."""

    rules: dict[str, int]  # for each rule, in the order of application: rows whose text it changed
    foreign_characters: list[ForeignCharacter]  # those that cost most rows first


def merge_reports(reports: Sequence[TextReport]) -> TextReport:
    """Return what the rules did to the sentences of several sources together."""
    rules: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    sentences: dict[str, list[str]] = {}
    for report in reports:
        rules.update(report.rules)
        for foreign in report.foreign_characters:
            rows[foreign.character] += foreign.rows
            sentences.setdefault(foreign.character, []).append(foreign.sentence)
    characters = [ForeignCharacter(c, rows[c], _shortest(sentences[c])) for c in rows]
    return TextReport(dict(rules), sorted(characters, key=lambda foreign: (-foreign.rows, foreign.character)))


def filter_by_text(
    rows: Iterable[Clip],
    language: Language,
    rejected: list[RejectedRow],
    source: str = "",
    repeated: Repeated = Repeated.drop,
) -> tuple[list[Candidate], TextReport]:
    """Return a candidate for each row with a usable path and sentence, and what the rules for texts did.

    Of several rows for one clip, the first is taken; none, unless `repeated` ones are kept, where their texts differ.
    `source`: which of several the rows are of.
    """
    candidates: dict[str, Candidate] = {}  # by the wav
    other_texts: dict[str, str] = {}
    rule_counts = dict.fromkeys(language.rule_names(), 0)
    sentences: dict[str, list[str]] = {}  # by foreign character
    for clip in rows:
        text, rules = language.trace(clip.sentence)
        for rule in rules:
            rule_counts[rule] += 1
        if not is_file_name(clip.cut.wav if clip.cut else clip.path):
            rejected.append(RejectedRow(clip.path, "path_outside_clips", "not the name of a file in clips/"))
        elif fault := language.fault(clip.sentence):
            rejected.append(RejectedRow(clip.path, *fault))
        elif not text:
            rejected.append(RejectedRow(clip.path, "empty_sentence", clip.sentence.strip()))
        elif foreign := language.foreign(text):
            rejected.append(RejectedRow(clip.path, "foreign_character", foreign))
            for character in foreign:
                sentences.setdefault(character, []).append(clip.sentence)
        elif (first := candidates.setdefault(clip.wav, Candidate(clip, text, source))).clip is clip:
            continue
        elif first.clip.path == clip.path and first.text != text and repeated is Repeated.drop:
            rejected.append(RejectedRow(clip.path, "audio_with_other_text", f"another row of it has {first.text!r}"))
            other_texts[clip.wav] = text
        else:
            detail = f"another row makes a wav of {first.clip.path}"
            rejected.append(RejectedRow(clip.path, "duplicate_clip", detail))
    for wav, text in other_texts.items():
        path = candidates.pop(wav).clip.path
        rejected.append(RejectedRow(path, "audio_with_other_text", f"another row of it has {text!r}"))
    return list(candidates.values()), TextReport(rule_counts, _foreign_characters(sentences))


def _foreign_characters(sentences: dict[str, list[str]]) -> list[ForeignCharacter]:
    characters = [ForeignCharacter(character, len(rows), _shortest(rows)) for character, rows in sentences.items()]
    return sorted(characters, key=lambda foreign: (-foreign.rows, foreign.character))


def source_path(source: str, path: str) -> str:
    """Return what rejected.jsonl calls a row's recording: its path, behind the name of its source if it has one."""
    return f"{source}/{path}" if source else path


def _shortest(sentences: Iterable[str]) -> str:
    return min(sentences, key=lambda sentence: (len(sentence), sentence))


def read_dropped(path: Path) -> dict[str, bool]:
    """Return the clips that a file names, one a line before its first tab, none of them found yet."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read dataset.drop={path} ({error}); it holds the path of one clip a line") from error
    return {name: False for line in lines if (name := line.partition("\t")[0].strip())}


def filter_by_name(
    candidates: list[Candidate], dropped: dict[str, bool], rejected: list[RejectedRow]
) -> list[Candidate]:
    """Return the candidates whose row or wav is not among `dropped`, and mark there which were found."""
    passed = []
    for candidate in candidates:
        wav = candidate.audio_filepath
        names = {source_path(candidate.source, candidate.clip.path), wav, member_name(wav)} & dropped.keys()
        dropped |= dict.fromkeys(names, True)
        if names:
            rejected.append(RejectedRow(candidate.clip.path, "dropped", "named by dataset.drop"))
        else:
            passed.append(candidate)
    return passed


def filter_by_clip(
    candidates: list[Candidate], present: Container[str], where: str, rejected: list[RejectedRow]
) -> list[Candidate]:
    """Return the candidates whose clip is among `present`, the files in `where`."""
    passed = []
    for candidate in candidates:
        if candidate.clip.path in present:
            passed.append(candidate)
        else:
            rejected.append(RejectedRow(candidate.clip.path, "clip_missing", f"not in {where}"))
    return passed


def filter_by_release_split(
    candidates: list[Candidate], splits: dict[str, list[str]], rejected: list[RejectedRow]
) -> list[Candidate]:
    """Return the candidates that are in exactly one of the release's own splits, and note which one.

    `splits`: for each clip, the splits whose tables name it.
    """
    passed = []
    for candidate in candidates:
        names = splits.get(candidate.clip.path, [])
        if len(names) == 1:
            candidate.release_split = names[0]
            passed.append(candidate)
        else:
            detail = f"in {' and '.join(names)}" if names else "in none of train, dev and test"
            rejected.append(RejectedRow(candidate.clip.path, "not_in_release_split", detail))
    return passed


def filter_by_audio(candidates: list[Candidate], dataset: Dataset, rejected: list[RejectedRow]) -> list[Candidate]:
    """Return the candidates whose clip was converted and passes the filters of `dataset`."""
    passed = []
    for candidate in candidates:
        if fault := _audio_fault(candidate, dataset):
            rejected.append(RejectedRow(source_path(candidate.source, candidate.clip.path), *fault))
        else:
            passed.append(candidate)
    return passed


def _audio_fault(candidate: Candidate, dataset: Dataset) -> tuple[str, str] | None:
    """Return the first reason why a clip and its text make no utterance, with the figures behind it."""
    converted, stated_s = candidate.converted, candidate.stated_s
    duration_s, sound = converted.duration_s, converted.sound
    if converted.reason:
        return converted.reason, converted.detail
    if converted.decoded_s < stated_s * (1 - dataset.max_missing_share):
        table = "the table" if candidate.clip.cut else "clip_durations.tsv"
        return "clip_truncated", f"{converted.decoded_s:.2f} s of the {stated_s:.2f} s that {table} states"
    if duration_s < dataset.min_duration_s:
        return "too_short", f"{duration_s:.2f} s"
    if duration_s > dataset.max_duration_s:
        is_whole = candidate.clip.cut and candidate.clip.cut.end_s is None
        return "too_long", f"{duration_s:.2f} s{'; cut it: state start and end' if is_whole else ''}"
    if sound and sound.silent_share > dataset.max_silence:
        return "no_speech", f"{sound.silent_share:.1%} of it is silent, at {sound.level_dbfs:.1f} dBFS"
    return _text_fault(candidate.text, duration_s, dataset)


def _text_fault(text: str, duration_s: float, dataset: Dataset) -> tuple[str, str] | None:
    """Return the reason why a text cannot be what is said in `duration_s`, with the figures behind it."""
    frames, needed = floor(duration_s * dataset.encoder_frames_per_second + 1e-6), min_ctc_frames(text)
    if needed > frames:
        return "too_many_characters", f"needs {needed} encoder frames and has {frames}"
    if len(text) > dataset.max_characters_per_second * duration_s:
        return "too_fast", f"{len(text)} characters in {duration_s:.2f} s, {len(text) / duration_s:.1f} per second"
    return None


def is_file_name(path: str) -> bool:
    """Return whether `path` is the plain name of a visible file, short enough for every file system."""
    return bool(path) and not path.startswith(".") and not set(path) & set("/\\\0") and len(path.encode()) <= 200


def min_ctc_frames(text: Sequence[Any]) -> int:
    """Return the number of frames below which CTC gives `text` (characters or tokens) no probability.

    It is one for each token and one for the blank between equal neighbours (Graves et al. 2006, section 3): "anno"
    needs a-n-blank-n-o, five frames.
    """
    return len(text) + sum(map(eq, text, text[1:]))


def check_rows_left(
    candidates: list[Candidate], rejected: list[RejectedRow], report: TextReport, alphabet: str, listing: Listing
) -> None:
    """Raise UserError when there is no candidate, with what most rows have in common."""
    present, table = listing.stamps, listing.table
    if candidates:
        return
    if not rejected:
        raise UserError(f"{table} has no row below its header; get the release again")
    counts = Counter(row.reason for row in rejected)
    reason = max(counts, key=lambda name: (counts[name], name))
    example = min(row for row in rejected if row.reason == reason)
    if reason == "foreign_character":
        worst = ", ".join(f"{one.character!r} in {one.rows:,}" for one in report.foreign_characters[:5])
        raise UserError(
            f"no row is left: all contain characters outside text.alphabet, which is {alphabet!r} ({worst} rows); is "
            "this --config the one of the language?"
        )
    if reason in ("clip_missing", "path_outside_clips"):
        there = "clips/ is empty" if table == "validated.tsv" else f"nothing of that is in {listing.where}"
        if present:
            there = f"{listing.where} holds {min(present)!r} and {len(present) - 1:,} more"
        raise UserError(
            f"no row is left: of {len(rejected):,} rows, {counts[reason]:,} name a clip that is not there; "
            f"{table} names {example.path!r} and {there}; make the names agree, or get the clips of this table"
        )
    raise UserError(
        f"no row is left: of {len(rejected):,} rows, {counts[reason]:,} are rejected as {reason}, such as "
        f"{example.path!r} ({example.detail}); is dataset.source the release you mean?"
    )


def rejection_warnings(rejected: list[RejectedRow], rows: int) -> list[str]:
    """Return a warning for each reason that cost a large share of the rows, except those the settings ask for."""
    counts = Counter(row.reason for row in rejected if row.reason not in ("not_in_release_split", "dropped"))
    warnings = []
    for reason, count in counts.most_common():
        if count > LARGE_SHARE * rows:
            example = min(row for row in rejected if row.reason == reason)
            detail = f"{example.path!r}: {example.detail}"
            warnings.append(f"warning: {count / rows:.0%} of the rows are rejected as {reason}, such as {detail}")
    return warnings
