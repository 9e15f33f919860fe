"""How often a word is right that a model is sure of to some degree: fitted on the validation set, checked on the test.

Platt's scaling ("Probabilistic outputs for support vector machines", 1999). Expected calibration error: Guo et al.,
"On calibration of modern neural networks" (2017), with BINS equal bins.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from finetuning.config.schema import Text
from finetuning.data.manifest import Utterance
from finetuning.data.text_normalization import Language
from finetuning.decoding.beam_search import BeamSearch, Settings
from finetuning.decoding.confidence import GREEDY, LM, Calibration, calibration_path, logit, read_calibration
from finetuning.decoding.greedy import greedy_path, word_confidences, word_spans
from finetuning.decoding.predictions import Prediction
from finetuning.decoding.weight_search import MAX_UTTERANCES
from finetuning.errors import UserError
from finetuning.evaluation.scoring import needs_text_rules
from finetuning.files import sha256, write_json
from finetuning.model.vocabulary import Vocabulary

BINS = 10
MIN_WORDS = 50  # of the validation set; fewer say nothing
RIDGE = 1e-3  # keeps it finite where the words that are right can be told from the others without error
Utterances = tuple[Sequence[Prediction], Sequence[np.ndarray]]  # and the log-probabilities of each, (T, vocabulary + 1)


@dataclass(frozen=True)
class Words:
    """The words that a decoder writes."""

    probabilities: np.ndarray  # (words,), the model's own
    right: np.ndarray  # (words,), of bool: whether they are those of the reference


def is_needed(model: Path, decoder: Path, validation: Sequence[Utterance]) -> bool:
    """Return whether the calibrations of a `model` and its `decoder` are missing or damaged, and can be made."""
    if sum(len(utterance.text.split()) for utterance in validation) < MIN_WORDS or not os.access(model.parent, os.W_OK):
        return False
    try:
        return None in (read_calibration(model), read_calibration(model, decoder))
    except UserError:
        return True


def calibrate(
    model: Path, decoder: Path, beam: tuple[BeamSearch, Settings], validation: Utterances, test: Utterances, text: Text
) -> str:
    """Write the calibrations of greedy and of `beam` search beside the `model`; return what to say of them.

    `decoder`: the beam search's decoder.json. Of the `test` set, MAX_UTTERANCES from its whole length are looked at.
    """
    if not os.access(model.parent, os.W_OK):
        return f"confidences are not calibrated, for {model.parent}, where that would be written, is read-only"
    vocabulary = beam[0].vocabulary
    every = -(-len(test[0]) // MAX_UTTERANCES)
    test = test[0][::every], test[1][::every]
    normalise = Language.of(text).normalise if needs_text_rules(vocabulary, text) else str
    record: dict[str, Any] = {"model": sha256(model)}
    sentences = []
    for name, decode in ((GREEDY, greedy_path), (LM, lambda log_probs: beam[0].decode(log_probs, beam[1]))):
        fitted_on = decoded_words(validation, decode, vocabulary, normalise)
        if len(fitted_on.right) < MIN_WORDS:
            return f"confidences are not calibrated: {len(fitted_on.right)} words of validation are too few"
        calibration = fit(fitted_on)
        words = decoded_words(test, decode, vocabulary, normalise)
        calibrated = np.array([calibration.of(probability) for probability in words.probabilities])
        raw_ece, ece = (calibration_error(p, words.right) for p in (words.probabilities, calibrated))
        record[name] = {"slope": calibration.slope, "offset": calibration.offset, "words": len(fitted_on.right)}
        record[name]["test"] = {"words": len(words.right), "ece": round(ece, 6), "raw_ece": round(raw_ece, 6)}
        sentences.append(f"{name} {ece:.3f} ({raw_ece:.3f} before) on {len(words.right):,} words")
    record[LM]["decoder"] = sha256(decoder)
    write_json(calibration_path(model), record)
    return f"confidence of words, expected calibration error on the test set: {', '.join(sentences)}"


def decoded_words(
    utterances: Utterances,
    decode: Callable[[np.ndarray], np.ndarray],
    vocabulary: Vocabulary,
    normalise: Callable[[str], str] = str,
) -> Words:
    """Return the words of all utterances; each is right if jiwer's alignment finds it in the reference.

    `normalise`: the rules for texts, which may leave nothing of a word, or make several of it.
    """
    probabilities: list[float] = []
    right: list[bool] = []
    for prediction, log_probs in zip(*utterances, strict=True):
        path = decode(log_probs)
        parts = [normalise(word).split() for word, *_ in word_spans(path, vocabulary)]
        is_right: list[bool] = []
        if hypothesis := " ".join(part for of_word in parts for part in of_word):
            for chunk in jiwer.process_words(prediction.text, hypothesis).alignments[0]:
                is_right += [chunk.type == "equal"] * (chunk.hyp_end_idx - chunk.hyp_start_idx)
        found = iter(is_right)
        for of_word, probability in zip(parts, word_confidences(path, log_probs, vocabulary), strict=True):
            if flags := [next(found) for _ in of_word]:
                right.append(all(flags))
                probabilities.append(probability)
    return Words(np.array(probabilities), np.array(right, dtype=bool))


def fit(words: Words) -> Calibration:
    """Return the most likely calibration, with Platt's targets, which are not quite 0 and 1."""
    logits = np.array([logit(probability) for probability in words.probabilities])
    count, wrong = words.right.sum(), (~words.right).sum()
    targets = np.where(words.right, (count + 1) / (count + 2), 1 / (wrong + 2))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the negative log-likelihood and its gradient."""
        scores = weights[0] * logits + weights[1]
        error = expit(scores) - targets
        value = np.sum(np.logaddexp(0, scores) - targets * scores) + RIDGE / 2 * weights @ weights
        return value, np.array([error @ logits, error.sum()]) + RIDGE * weights

    slope, offset = minimize(loss, np.zeros(2), jac=True).x
    return Calibration(round(float(slope), 6), round(float(offset), 6))


def calibration_error(probabilities: np.ndarray, right: np.ndarray) -> float:
    """Return the mean distance between what is stated and how often it is right, over bins of probability, (words,)."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    inside = [bins == number for number in range(BINS)]
    return sum(
        abs(float(probabilities[each].mean() - right[each].mean())) * float(each.mean())
        for each in inside
        if each.any()
    )
