"""From log-probabilities to text."""

from collections.abc import Sequence

import numpy as np


def greedy(log_probabilities: np.ndarray, labels: Sequence[str]) -> str:
    """The text of the most probable path: repeats merged, then blanks dropped (Graves et al. 2006, section 3.2).

    `log_probabilities`: (frames, labels + 1), the blank last. No frame gives no text. NeMo's own decoding also
    removes a space before an apostrophe, which it takes for punctuation; here the path is written as it is.
    """
    blank = len(labels)
    path = log_probabilities.argmax(axis=1)  # (T,)
    changes = np.diff(path, prepend=-1) != 0  # (T,) a frame that repeats the one before is not written again
    return "".join(labels[token] for token in path[changes] if token != blank)
