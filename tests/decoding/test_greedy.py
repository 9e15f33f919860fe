import numpy as np
import pytest

from finetuning.decoding.greedy import ctc_collapse, greedy_decode, greedy_path, word_confidences, word_spans
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
        ("aaa_", [("a", 0, 3)]),  # as long as its last letter is held
        ("a _ b", [("a", 0, 1), ("b", 4, 5)]),
        ("_ _", []),
        ("", []),
    ],
)
def test_words_have_the_frames_of_their_letters(path: str, found: list[tuple[str, int, int]]) -> None:
    assert word_spans(greedy_path(frames(path)), LABELS) == found
    assert [word for word, *_ in found] == greedy_decode(frames(path), LABELS).split()


def test_a_word_is_as_sure_as_its_least_sure_letter_is_at_its_best() -> None:
    path = "aa_b a"
    log_probs = frames(path)
    for frame, probability in enumerate((0.5, 0.9, 0.99, 0.6, 0.1, 0.8)):
        log_probs[frame, "ab _".index(path[frame])] = np.log(probability)
    found = word_confidences(np.array(["ab _".index(character) for character in path]), log_probs, LABELS)
    assert found == pytest.approx([0.6, 0.8])
