"""Log-probabilities -> path -> text; a path holds one index per frame, of a token or the blank."""

import numpy as np

from finetuning.model.vocabulary import Vocabulary


def greedy_decode(log_probs: np.ndarray, vocabulary: Vocabulary) -> str:
    """Return the text of the most probable path. `log_probs`: (T, vocabulary + 1), the blank last; T may be 0.

    NeMo's own decoding also removes a space before an apostrophe, which it takes for punctuation; here the text is that
    of the path.
    """
    return ctc_collapse(greedy_path(log_probs), vocabulary)


def greedy_path(log_probs: np.ndarray) -> np.ndarray:
    """Return the most probable index in each frame, (T,)."""
    return log_probs.argmax(axis=1)


def ctc_collapse(path: np.ndarray, vocabulary: Vocabulary) -> str:
    """Return the text of a path, (T,): repeats merged, then blanks dropped (Graves et al. 2006, section 3.2)."""
    return vocabulary.decode(output for output, _ in emissions(path, len(vocabulary)))


def word_spans(path: np.ndarray, vocabulary: Vocabulary) -> list[tuple[str, int, int]]:
    """Return the words of a path, (T,), each with its first frame and the one after its last token's last frame."""
    return [(word, frames[0], _end(path, frames[-1])) for word, _, frames in _words(path, vocabulary)]


def word_confidences(path: np.ndarray, log_probs: np.ndarray, vocabulary: Vocabulary) -> list[float]:
    """Return the probability of the least probable token of each word of a path, (T,), in the frame it is surest of.

    `log_probs`: (T, vocabulary + 1). A word is as sure as its weakest part: the minimum, as Laptev and Ginsburg
    aggregate tokens (2022, "Fast entropy-based methods of word-level confidence estimation").
    """
    weakest = (
        min(log_probs[first : _end(path, first), path[first]].max() for first in frames)
        for _, _, frames in _words(path, vocabulary)
    )
    return [float(np.exp(min(value, 0.0))) for value in weakest]


def word_tokens(path: np.ndarray, vocabulary: Vocabulary) -> dict[str, list[int]]:
    """Return the words of a path, (T,), with the tokens that spell each where it is written first."""
    return {word: tokens for word, tokens, _ in reversed(_words(path, vocabulary))}


def _words(path: np.ndarray, vocabulary: Vocabulary) -> list[tuple[str, list[int], list[int]]]:
    """Return each word of a path, its tokens (of a character model, without spaces), and their first frames."""
    words: list[tuple[str, list[int], list[int]]] = []
    is_within = False
    spaces: list[tuple[int, int]] = []  # pieces before the next word that are but the space before it
    for token, frame in emissions(path, len(vocabulary)):
        if vocabulary.sentencepiece and vocabulary[token] == " ":
            spaces, is_within = [(token, frame)], False
            continue
        for number, part in enumerate(vocabulary[token].split(" ")):
            is_within = is_within and not number
            if part and is_within:
                word, tokens, frames = words[-1]
                words[-1] = word + part, [*tokens, token], [*frames, frame]
            elif part:
                tokens, frames = zip(*spaces, (token, frame), strict=True)
                words.append((part, list(tokens), list(frames)))
                is_within, spaces = True, []
    return words


def _end(path: np.ndarray, first: int) -> int:
    """Return the frame after those that repeat the output of the `first`."""
    changes = np.flatnonzero(path[first:] != path[first])
    return first + int(changes[0]) if len(changes) else len(path)


def emissions(path: np.ndarray, blank: int) -> list[tuple[int, int]]:
    """Return the outputs of a path but for the `blank`, each with its first frame."""
    changes = np.flatnonzero(np.diff(path, prepend=-1))  # frames that do not repeat the one before
    return [(int(path[frame]), int(frame)) for frame in changes if path[frame] != blank]
