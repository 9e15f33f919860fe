"""Words with their times -> SubRip subtitles (.srt)."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, LINES = 42, 2  # characters a line, lines a cue
MAX_CUE_S, MIN_CUE_S = 7.0, 1.0  # of a cue; it is shorter where the next one begins
PAUSE_S = 1.0  # after which a new cue begins


@dataclass(frozen=True)
class Word:
    """A word with its times, in seconds from the beginning of the recording."""

    text: str
    start_s: float
    end_s: float


def format_srt(words: Sequence[Word], duration_s: float) -> str:
    """Return numbered cues of at most LINES lines and MAX_CUE_S, none beyond `duration_s`.

    A word is never divided: one of more than WIDTH characters has a line to itself.
    """
    cues = make_cues(words)
    limits_s = [*(cue[0].start_s for cue in cues[1:]), duration_s]
    parts = []
    for number, (cue, limit_s) in enumerate(zip(cues, limits_s, strict=False), start=1):
        start_s = cue[0].start_s
        end_s = min(max(cue[-1].end_s, start_s + MIN_CUE_S), start_s + MAX_CUE_S, limit_s)
        parts.append(f"{number}\n{_time(start_s)} --> {_time(end_s)}\n" + "\n".join(_lines(cue)) + "\n")
    return "\n".join(parts)


def make_cues(words: Sequence[Word]) -> list[list[Word]]:
    """Return the words of each cue, as many as fit."""
    cues: list[list[Word]] = []
    for word in words:
        if cues and _fits([*cues[-1], word]):
            cues[-1].append(word)
        else:
            cues.append([word])
    return cues


def _fits(words: Sequence[Word]) -> bool:
    pause_s = words[-1].start_s - words[-2].end_s
    return pause_s <= PAUSE_S and words[-1].end_s - words[0].start_s <= MAX_CUE_S and len(_lines(words)) <= LINES


def _lines(words: Sequence[Word]) -> list[str]:
    text = " ".join(word.text for word in words)
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _time(seconds: float) -> str:
    """Return the time in SubRip's format, as 00:00:01,250."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02},{milliseconds % 1000:03}"
