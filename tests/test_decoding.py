import numpy as np
import pytest
from finetuning.decoding import best_path, greedy, spelt, words

LABELS = ["a", "b", " "]  # the blank, written _ below, is 3


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
    assert greedy(frames(path), LABELS) == text
    assert spelt(best_path(frames(path)), LABELS) == text


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
    assert words(best_path(frames(path)), LABELS) == found
    assert [word for word, *_ in found] == greedy(frames(path), LABELS).split()
