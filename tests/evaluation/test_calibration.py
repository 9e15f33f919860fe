"""Calibration of confidence: by words whose probabilities are known, and of a model's words."""

import numpy as np
import pytest

from finetuning.decoding.greedy import greedy_path
from finetuning.decoding.predictions import Prediction
from finetuning.evaluation.calibration import Words, calibration_error, decoded_words, fit
from finetuning.model.vocabulary import Vocabulary


def test_what_a_model_overstates_is_put_right() -> None:
    """Stated: what three times the logit of the truth is."""
    rng = np.random.default_rng(0)
    true = rng.uniform(0.05, 0.95, 5000)
    words = Words(1 / (1 + ((1 - true) / true) ** 3), rng.random(5000) < true)
    calibration = fit(words)
    assert (calibration.slope, calibration.offset) == pytest.approx((1 / 3, 0), abs=0.05)
    calibrated = np.array([calibration.of(probability) for probability in words.probabilities])
    assert calibration_error(words.probabilities, words.right) > 0.1
    assert calibration_error(calibrated, words.right) < 0.03


@pytest.mark.parametrize("right", [True, False])
def test_words_that_are_all_right_or_all_wrong_are_fitted_too(right: bool) -> None:
    words = Words(np.linspace(0.5, 1, 100), np.full(100, right))
    calibrated = [fit(words).of(probability) for probability in (0.5, 1.0)]
    assert all(probability > 0.9 if right else probability < 0.1 for probability in calibrated)


def test_calibration_error_by_hand() -> None:
    probabilities, right = np.array([0.95, 0.95, 0.05, 1.0]), np.array([True, False, False, True])
    assert calibration_error(probabilities, right) == pytest.approx(3 / 4 * abs(2.9 / 3 - 2 / 3) + 1 / 4 * 0.05)


def test_a_word_is_right_where_the_reference_has_it() -> None:
    vocabulary, written = Vocabulary.of_characters("abAB ."), "ab Ab . b"
    log_probs = np.full((len(written), 7), np.log(0.05))
    for frame, character in zip(log_probs, written, strict=True):
        frame[vocabulary.tokens.index(character)] = np.log(0.7)
    of_one = [Prediction("a.wav", "ab ab a", written, None, 1.0)], [log_probs]
    assert decoded_words(of_one, greedy_path, vocabulary).right.tolist() == [True, False, False, False]
    words = decoded_words(of_one, greedy_path, vocabulary, lambda word: word.lower().strip("."))
    assert words.right.tolist() == [True, True, False], "without the mark, of which the rules leave nothing"
    assert words.probabilities == pytest.approx([0.7] * 3)
