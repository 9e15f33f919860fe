"""Words with their times -> subtitles: SubRip (.srt) and WebVTT (.vtt).

Lines and times follow Netflix's "Timed Text Style Guide" (general requirements, and English for the reading speed),
which broadcasters' own guides resemble.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, LINES = 42, 2  # characters a line, lines a cue
MAX_CUE_S, MIN_CUE_S = 7.0, 1.0  # of a cue; it is shorter where the next one begins
READING_SPEED = 20.0  # characters a second; a cue stays as long as this takes, unless the next one begins
PAUSE_S = 1.0  # after which a new cue begins


@dataclass(frozen=True)
class Word:
    """A word with its times, in seconds from the beginning of the recording."""

    text: str
    start_s: float
    end_s: float
    confidence: float | None = None  # probability that it is right


@dataclass(frozen=True)
class Cue:
    """What is shown at a time."""

    start_s: float
    end_s: float
    lines: Sequence[str]
    speaker: str


def time_cues(words: Sequence[Word], duration_s: float, speaker: str = "", prefix: str = "") -> list[Cue]:
    """Return cues of at most LINES lines and MAX_CUE_S; each begins with the `prefix`.

    None lasts beyond `duration_s`, where what is said ends, unless the last one would be shorter than MIN_CUE_S.

    A word is never divided: one of more than WIDTH characters has a line to itself.
    """
    cues = make_cues(words, prefix)
    starts_s = [cue[0].start_s for cue in cues]
    limits_s = [*starts_s[1:], max([duration_s, *(start_s + MIN_CUE_S for start_s in starts_s[-1:])])]
    timed = []
    for cue, limit_s in zip(cues, limits_s, strict=False):
        start_s, lines = cue[0].start_s, _lines(cue, prefix)
        reading_s = len(" ".join(lines)) / READING_SPEED
        end_s = min(max(cue[-1].end_s, start_s + max(MIN_CUE_S, reading_s)), start_s + MAX_CUE_S, limit_s)
        timed.append(Cue(start_s, end_s, lines, speaker))
    return timed


def make_cues(words: Sequence[Word], prefix: str = "") -> list[list[Word]]:
    """Return the words of each cue, as many as fit behind the `prefix`."""
    cues: list[list[Word]] = []
    for word in words:
        if cues and _fits([*cues[-1], word], prefix):
            cues[-1].append(word)
        else:
            cues.append([word])
    return cues


def format_srt(cues: Sequence[Cue]) -> str:
    """Return the cues, numbered, as SubRip has them."""
    return "\n".join(
        f"{number}\n{_time(cue.start_s, ',')} --> {_time(cue.end_s, ',')}\n" + "\n".join(cue.lines) + "\n"
        for number, cue in enumerate(cues, start=1)
    )


def format_vtt(cues: Sequence[Cue]) -> str:
    """Return the cues as WebVTT (W3C) has them, each with its speaker's voice."""
    parts = ["WEBVTT\n"]
    for cue in cues:
        text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        voice = f"<v {cue.speaker}>" if cue.speaker else ""
        parts.append(f"{_time(cue.start_s, '.')} --> {_time(cue.end_s, '.')}\n{voice}{text}\n")
    return "\n".join(parts)


def _fits(words: Sequence[Word], prefix: str) -> bool:
    pause_s = words[-1].start_s - words[-2].end_s
    is_short = words[-1].end_s - words[0].start_s <= MAX_CUE_S
    return pause_s <= PAUSE_S and is_short and len(_lines(words, prefix)) <= LINES


def _lines(words: Sequence[Word], prefix: str) -> list[str]:
    text = prefix + " ".join(word.text for word in words)
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _time(seconds: float, point: str) -> str:
    """Return the time as 00:00:01,250."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
