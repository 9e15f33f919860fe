"""From log-probabilities to a path, one index of a letter or the blank a frame, and from a path to text."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np


def greedy_decode(log_probabilities: np.ndarray, labels: Sequence[str]) -> str:
    """The text of the most probable path. `log_probabilities`: (T, labels + 1), the blank last; no frame gives no text.

    NeMo's own decoding also removes a space before an apostrophe, which it takes for punctuation; here the path is
    written as it is.
    """
    return ctc_collapse(greedy_path(log_probabilities), labels)


def greedy_path(log_probabilities: np.ndarray) -> np.ndarray:
    """The most probable index in each frame, (T,)."""
    return log_probabilities.argmax(axis=1)


def ctc_collapse(path: np.ndarray, labels: Sequence[str]) -> str:
    """The text of a path, (T,): repeats merged, then blanks dropped (Graves et al. 2006, section 3.2)."""
    return "".join(letter for letter, _ in _letters(path, labels))


def word_spans(path: np.ndarray, labels: Sequence[str]) -> list[tuple[str, int, int]]:
    """The words of a path, (T,), each with the frame of its first letter and the one after that of its last."""
    found = []
    for is_space, emitted in groupby(_letters(path, labels), key=lambda emitted: emitted[0] == " "):
        if not is_space:
            letters, frames = zip(*emitted, strict=True)
            found.append(("".join(letters), frames[0], frames[-1] + 1))
    return found


def _letters(path: np.ndarray, labels: Sequence[str]) -> list[tuple[str, int]]:
    """The letters of a path, each with the frame that it begins in."""
    blank = len(labels)
    changes = np.flatnonzero(np.diff(path, prepend=-1))  # a frame that repeats the one before is not written again
    return [(labels[path[frame]], int(frame)) for frame in changes if path[frame] != blank]
