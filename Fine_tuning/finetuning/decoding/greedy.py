"""Log-probabilities -> path -> text; a path holds one index a frame, of a character or the blank."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np


def greedy_decode(log_probs: np.ndarray, vocabulary: Sequence[str]) -> str:
    """Return the text of the most probable path. `log_probs`: (T, vocabulary + 1), the blank last; T may be 0.

    NeMo's own decoding also removes a space before an apostrophe, which it takes for punctuation; here the text is that
    of the path.
    """
    return ctc_collapse(greedy_path(log_probs), vocabulary)


def greedy_path(log_probs: np.ndarray) -> np.ndarray:
    """Return the most probable index in each frame, (T,)."""
    return log_probs.argmax(axis=1)


def ctc_collapse(path: np.ndarray, vocabulary: Sequence[str]) -> str:
    """Return the text of a path, (T,): repeats merged, then blanks dropped (Graves et al. 2006, section 3.2)."""
    return "".join(character for character, _ in _emissions(path, vocabulary))


def word_spans(path: np.ndarray, vocabulary: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the words of a path, (T,), each with its first frame and the one after the start of its last character."""
    words = []
    for is_space, emissions in groupby(_emissions(path, vocabulary), key=lambda emission: emission[0] == " "):
        if not is_space:
            characters, frames = zip(*emissions, strict=True)
            words.append(("".join(characters), frames[0], frames[-1] + 1))
    return words


def _emissions(path: np.ndarray, vocabulary: Sequence[str]) -> list[tuple[str, int]]:
    """Return the characters of a path, each with its first frame."""
    blank = len(vocabulary)
    changes = np.flatnonzero(np.diff(path, prepend=-1))  # frames that do not repeat the one before
    return [(vocabulary[path[frame]], int(frame)) for frame in changes if path[frame] != blank]
