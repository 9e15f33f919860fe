"""Forced alignment, compared with every path there is; and words that a model writes into silence."""

from itertools import groupby, product

import numpy as np
import pytest

from finetuning.decoding.alignment import align_to_sound, forced_alignment
from finetuning.decoding.greedy import ctc_collapse, word_spans
from finetuning.model.vocabulary import Vocabulary

LABELS = Vocabulary.of_characters("ab ")
BLANK = 3
RATE, FRAME = 1000, 20  # samples a second and a frame


def collapse(path: tuple[int, ...]) -> list[int]:
    return [output for output, _ in groupby(path) if output != BLANK]


@pytest.mark.parametrize("tokens", [[], [0], [0, 0], [0, 1, 0], [1, 2, 0], [0, 0, 1]])
@pytest.mark.parametrize("frames", [1, 3, 5, 6])
def test_of_all_paths_of_the_tokens_it_is_the_most_probable_one(tokens: list[int], frames: int) -> None:
    log_probs = np.log(np.random.default_rng(len(tokens) + frames).dirichlet(np.ones(4), frames))
    paths = [path for path in product(range(4), repeat=frames) if collapse(path) == tokens]
    if not paths:
        with pytest.raises(ValueError, match="tokens need"):
            forced_alignment(log_probs, tokens)
        return
    best = max(paths, key=lambda path: log_probs[np.arange(frames), path].sum())
    assert tuple(forced_alignment(log_probs, tokens)) == best


def sound(loud: str) -> np.ndarray:
    """A tone in the frames that are x, noise 60 dB below it in the others."""
    level = np.repeat([1.0 if frame == "x" else 1e-3 for frame in loud], FRAME)
    return level * np.random.default_rng(0).normal(size=len(level))


def aligned(written: str, sure: float, loud: str) -> str:
    path = np.array(["ab _".index(character) for character in written])
    log_probs = np.full((len(path), 4), np.log((1 - sure) / 3))
    log_probs[np.arange(len(path)), path] = np.log(sure)
    return "".join("ab _"[output] for output in align_to_sound(path, log_probs, sound(loud), FRAME, LABELS))


def test_what_is_written_before_and_after_the_sound_is_moved_into_it() -> None:
    assert aligned("a___ b____b", 0.9, "...xxxxx...") in ("___a bb____", "___a b_b___")
    assert aligned("a___ b____b", 0.9, "xxxxxxxxxxx") == "a___ b____b"
    assert aligned("_a_ _b_", 0.9, ".xx..xx") == "_a_ _b_", "a space may stand in a pause"
    assert aligned("abab", 0.9, ".x..") == "abab", "where there is no room, they stay"
    assert aligned("____", 0.9, "x..x") == "____"


def test_a_click_does_not_make_silence_of_the_speech() -> None:
    samples = 0.005 * sound("xxxxxxxx..")
    samples[3 * FRAME : 4 * FRAME] *= 2000
    path = np.array(["ab _".index(character) for character in "a_b_a_b__a"])
    log_probs = np.where(np.arange(4) == path[:, None], np.log(0.97), np.log(0.01))
    assert "_" not in "".join("ab _"[o] for o in align_to_sound(path, log_probs, samples, FRAME, LABELS))[3]
    moved = "".join("ab _"[output] for output in align_to_sound(path, log_probs, samples, FRAME, LABELS, 1))
    assert moved[:7] == "a_b_a_b" and moved[8:] == "__", moved


def test_silence_alone_and_no_frame_at_all() -> None:
    log_probs = np.log(np.full((3, 4), 0.25))
    path = np.array([0, 3, 1])
    assert (align_to_sound(path, log_probs, np.zeros(60), FRAME, LABELS) == path).all()
    assert not len(align_to_sound(path[:0], log_probs[:0], np.zeros(0), FRAME, LABELS))


def test_words_stay_the_same_words() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        path = rng.integers(0, 4, 30)
        log_probs = np.log(rng.dirichlet(np.ones(4), 30))
        moved = align_to_sound(path, log_probs, sound("".join(rng.choice([*"x.x"], 30))), FRAME, LABELS)
        assert ctc_collapse(moved, LABELS) == ctc_collapse(path, LABELS)
        assert [word for word, *_ in word_spans(moved, LABELS)] == [word for word, *_ in word_spans(path, LABELS)]
