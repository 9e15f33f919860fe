import numpy as np
import pytest
from finetuning.decoding import greedy

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
