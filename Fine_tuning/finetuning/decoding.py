"""From log-probabilities to text."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np


def greedy(log_probabilities: np.ndarray, labels: Sequence[str]) -> str:
    """The text of the most probable path: repeats merged, then blanks dropped (Graves et al. 2006, section 3.2).

    `log_probabilities`: (frames, labels + 1), the blank last. No frame gives no text. NeMo's own decoding also
    removes a space before an apostrophe, which it takes for punctuation; here the path is written as it is.
    """
    return "".join(letter for letter, _ in _path(log_probabilities, labels))


def words(log_probabilities: np.ndarray, labels: Sequence[str]) -> list[tuple[str, int, int]]:
    """The words of the greedy text, each with the frame of its first letter and the one after that of its last."""
    found = []
    for is_space, letters in groupby(_path(log_probabilities, labels), key=lambda emitted: emitted[0] == " "):
        if not is_space:
            spelt, frames = zip(*letters, strict=True)
            found.append(("".join(spelt), frames[0], frames[-1] + 1))
    return found


def _path(log_probabilities: np.ndarray, labels: Sequence[str]) -> list[tuple[str, int]]:
    """The letters of the most probable path, each with the frame that it begins in."""
    blank = len(labels)
    path = log_probabilities.argmax(axis=1)  # (T,)
    changes = np.flatnonzero(np.diff(path, prepend=-1))  # a frame that repeats the one before is not written again
    return [(labels[path[frame]], int(frame)) for frame in changes if path[frame] != blank]
