import numpy as np
import pytest

from finetuning.decoding.greedy import ctc_collapse, greedy_decode, greedy_path, word_spans
from finetuning.model.vocabulary import Vocabulary

LABELS = Vocabulary.of_characters("ab ")  # the blank, written _ below, is 3


def frames(path: str) -> np.ndarray:
    """Log-probabilities whose best path is `path`, one character a frame."""
    probabilities = np.full((len(path), 4), 0.1)
    for frame, character in zip(probabilities, path, strict=True):
        frame["ab _".index(character)] = 0.7
    return np.log(probabilities)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("aab", "ab"),  # repeats are merged
        ("a_ab", "aab"),  # a blank between them keeps both
        ("__a__", "a"),
        ("____", ""),
        ("", ""),
        ("aa  bb", "a b"),
        ("abab", "abab"),
        ("a _ b", "a  b"),
    ],
)
def test_best_path(path: str, text: str) -> None:
    assert greedy_decode(frames(path), LABELS) == text
    assert ctc_collapse(greedy_path(frames(path)), LABELS) == text


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("_aab__ _b__b", [("ab", 1, 4), ("bb", 8, 12)]),
        ("  a ", [("a", 2, 3)]),
        ("aaa", [("a", 0, 1)]),  # where a letter begins; how long it is held says nothing
        ("a _ b", [("a", 0, 1), ("b", 4, 5)]),
        ("_ _", []),
        ("", []),
    ],
)
def test_words_have_the_frames_of_their_letters(path: str, found: list[tuple[str, int, int]]) -> None:
    assert word_spans(greedy_path(frames(path)), LABELS) == found
    assert [word for word, *_ in found] == greedy_decode(frames(path), LABELS).split()
