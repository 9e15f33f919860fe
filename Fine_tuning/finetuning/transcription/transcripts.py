"""What is said in recordings: their transcripts in each format, and which of them are finished.

In a folder of transcripts: one file a recording and `.transcribed.jsonl`, a line a transcript that says of which sound
and by which model it is. Of several processes each but the first has a log of its own, `.transcribed-<rank>.jsonl`,
until the next run.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.errors import UserError, printable
from finetuning.files import atomic_open, ensure_writable_dir, parse_json, remove_stale_temp_files, sha256
from finetuning.transcription.recordings import Recording
from finetuning.transcription.subtitles import Cue, Word, format_srt, format_vtt, time_cues

SUFFIXES = {"text": ".txt", "jsonl": ".jsonl", "srt": ".srt", "vtt": ".vtt", "ctm": ".ctm", "labels": ".labels.txt"}
SPEAKERS = ("left", "right")  # of the channels, where each is a speaker
LOG, LOG_OF_RANK = ".transcribed.jsonl", ".transcribed-{}.jsonl"


@dataclass(frozen=True)
class Passage:
    """What is said in a segment of a recording."""

    start_s: float
    duration_s: float
    text: str  # as the model writes it
    words: Sequence[Word]
    speaker: str = ""  # one of SPEAKERS, or not known

    @property
    def end_s(self) -> float:
        """When the segment ends."""
        return self.start_s + self.duration_s

    @property
    def said_s(self) -> float:
        """When the first word is said."""
        return self.words[0].start_s if self.words else self.start_s


def format_transcript(
    style: str, audio: Path, passages: Sequence[Passage], named: bool = False, calibrated: bool = False
) -> str:
    """A transcript: a line a passage as plain text or as JSON with NeMo's field names, subtitles, or a line a word.

    Lines of text begin, when they are to be `named`, with the recording and a tab. `calibrated`: of the confidences.
    """
    if style in ("srt", "vtt"):
        cues = _cues(passages, named_speakers=style == "srt")
        return format_srt(cues) if style == "srt" else format_vtt(cues)
    if style == "text":
        name = f"{printable(str(audio))}\t" if named else ""
        return "".join(f"{name}{_prefix(p.speaker)}{printable(p.text).strip()}\n" for p in passages)
    if style == "ctm":
        return _ctm(audio, passages, calibrated)
    if style == "labels":
        words = [(word, passage.speaker) for passage in passages for word in passage.words]
        return "".join(f"{w.start_s:.3f}\t{w.end_s:.3f}\t{_prefix(who)}{printable(w.text)}\n" for w, who in words)
    nothing = [Passage(0.0, 0.0, "", ())]  # stated, as evaluate.py wants it
    return "".join(_line(_fields(audio, passage, calibrated)) for passage in passages or nothing)


def _prefix(speaker: str) -> str:
    return f"{speaker}: " if speaker else ""


def _cues(passages: Sequence[Passage], named_speakers: bool) -> list[Cue]:
    """The cues of each speaker, together in order of time."""
    end_s = max((passage.end_s for passage in passages), default=0.0)
    cues: list[Cue] = []
    for speaker in sorted({passage.speaker for passage in passages}):
        words = [word for passage in passages if passage.speaker == speaker for word in passage.words]
        cues += time_cues(words, end_s, speaker, _prefix(speaker) if named_speakers else "")
    return sorted(cues, key=lambda cue: cue.start_s)


def _ctm(audio: Path, passages: Sequence[Passage], calibrated: bool) -> str:
    """The words in NIST's time marked conversation format, in sclite's order: file, channel, start, duration, word."""
    name = "_".join(printable(audio.stem).split())
    lines = [] if calibrated else [";; confidence: not calibrated\n"]
    for channel, speaker in zip("AB", SPEAKERS, strict=True):
        words = [w for p in passages if (p.speaker or SPEAKERS[0]) == speaker for w in p.words]
        for word in sorted(words, key=lambda word: word.start_s):
            confidence = "" if word.confidence is None else f" {word.confidence:.3f}"
            times = f"{word.start_s:.3f} {word.end_s - word.start_s:.3f}"
            lines.append(f"{name} {channel} {times} {printable(word.text)}{confidence}\n")
    return "".join(lines)


def _fields(audio: Path, passage: Passage, calibrated: bool) -> dict[str, Any]:
    """The line of a passage; a confidence that is not calibrated has another name."""
    fields = {"audio_filepath": _utf8(audio), "offset": passage.start_s, "duration": passage.duration_s}
    fields |= {"speaker": passage.speaker} if passage.speaker else {}
    name, words = "confidence" if calibrated else "raw_confidence", []
    for word in passage.words:
        times = {"start": round(word.start_s, 3), "end": round(word.end_s, 3)}
        known = {} if word.confidence is None else {name: round(word.confidence, 3)}
        words.append({"word": word.text} | times | known)
    return fields | {"pred_text": passage.text, "words": words}


class TranscriptFolder:
    """The finished transcripts of a folder: of one format, by one model."""

    def __init__(self, folder: Path, style: str, model: str, rank: int = 0) -> None:
        """`model`: its SHA-256; `rank`: of this process."""
        self.folder, self.suffix, self.model = folder, SUFFIXES[style], model
        self.logs = [folder / LOG, *sorted(folder.glob(LOG_OF_RANK.format("*")))]
        self.log = {name: entry for log in self.logs for name, entry in _readable(log).items()}
        self.own_log = folder / (LOG_OF_RANK.format(rank) if rank else LOG)
        self.changed: list[Path] = []  # transcripts of damaged recordings, changed since: they are left as they are

    def path(self, recording: Recording) -> Path:
        """Where its transcript goes."""
        return self.folder / (recording.name + self.suffix)

    def start(self, recordings: Sequence[Recording]) -> list[Recording]:
        """Those without a transcript, and those that were damaged; what killed runs left half-written is removed.

        UserError where two would have the same one, or where there is one that is not of this sound by this model.
        """
        owner: dict[Path, Recording] = {}
        for recording in recordings:
            other = owner.setdefault(self.path(recording), recording)
            if other is not recording:
                raise UserError(
                    f"{other.audio} and {recording.audio} would both be written to {self.path(recording)}; transcribe "
                    "one of them into another --output"
                )
        left = [recording for recording in recordings if not self._has(recording)]
        for folder in {self.folder, *(path.parent for path in owner)}:
            if folder.is_dir():
                remove_stale_temp_files(folder)
        with atomic_open(self.folder / LOG) as lines:  # without a line cut short
            lines.writelines(map(_line, self.log.values()))
        for log in self.logs[1:]:
            log.unlink(missing_ok=True)
        return left

    def _has(self, recording: Recording) -> bool:
        path = self.path(recording)
        if not path.exists():
            return False
        entry = self.log.get(self._name(path))
        if not entry or (entry["audio"], entry["model"]) != (sha256(recording.audio), self.model):
            raise UserError(
                f"{path} is there already and not known as a transcript of {recording.audio} by this model; delete it "
                "or name another --output"
            )
        if not entry["whole"] and not self._is_as_written(path):
            self.changed.append(path)
            return True
        *before, last = entry["texts"] or [""]  # that before stands where a run was killed before it replaced it
        return entry["whole"] and not (before and before[0] != last and sha256(path) == before[0])

    def _name(self, path: Path) -> str:
        """Return what the log calls a transcript: another name for each, whatever bytes it has."""
        return os.fsencode(path.relative_to(self.folder).as_posix()).decode(errors="backslashreplace")

    def _is_as_written(self, path: Path) -> bool:
        """Whether nobody has changed a transcript: only then may another one take its place."""
        entry = self.log.get(self._name(path), {})
        return sha256(path) in entry.get("texts", ())

    def write(self, recording: Recording, transcript: str, whole: bool) -> None:
        """Write a transcript, whole or not at all; of a damaged recording it does not hold the `whole`.

        UserError where there is one meanwhile that was not written here.
        """
        path = self.path(recording)
        ensure_writable_dir(path.parent)
        if path.exists() and not self._is_as_written(path):
            raise UserError(f"{path} has appeared or was changed meanwhile; it is left as it is")
        name = self._name(path)
        texts = [sha256(path)] if path.exists() else []  # stays where this process is killed before it replaces it
        texts.append(hashlib.sha256(transcript.encode()).hexdigest())
        entry = {"transcript": name, "audio": sha256(recording.audio), "model": self.model, "whole": whole}
        self.log[name] = entry | {"texts": texts}
        with self.own_log.open("a", encoding="utf-8") as log:  # first: what is not in it is never replaced
            log.write(_line(self.log[name]))
        with atomic_open(path) as text:
            text.write(transcript)


def _readable(log: Path) -> dict[str, dict[str, Any]]:
    """The lines of a log by transcript, the last one counts; a line cut short is as good as none."""
    entries = {}
    for line in log.read_bytes().split(b"\n") if log.is_file() else ():
        try:
            entry = parse_json(line)
            fields = {name: entry[name] for name in ("transcript", "audio", "model", "whole")}
            entries[entry["transcript"]] = fields | {"texts": list(map(str, entry.get("texts", ())))}
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return entries


def _line(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _utf8(path: Path) -> str:
    """A name of a file may hold any bytes, a line of JSON may not; its separator is / on Windows too."""
    return os.fsencode(path.as_posix()).decode(errors="replace")
