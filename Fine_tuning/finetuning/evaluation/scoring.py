"""From predictions to loss, CER and WER: pure functions; references are the manifest's own texts.

Loss: mean over utterances of -ln p(reference | audio), in nats (CTC: Graves et al. 2006, equation 8).
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

from finetuning.decoding.predictions import Prediction
from finetuning.metrics.error_rates import ErrorCounts, count_errors, sum_counts


@dataclass(frozen=True)
class Score:
    """What one model did on one manifest; the counts of each utterance are (hits, S, D, I)."""

    loss: float | None  # nats; mean over utterances of the CTC negative log-likelihood; None: finite for none
    loss_left_out: int  # utterances without a finite loss: more letters than frames
    word_counts: np.ndarray  # (utterances, 4)
    character_counts: np.ndarray  # (utterances, 4)

    @property
    def words(self) -> ErrorCounts:
        """Over all utterances."""
        return sum_counts(self.word_counts)

    @property
    def characters(self) -> ErrorCounts:
        """Over all utterances."""
        return sum_counts(self.character_counts)


def score_predictions(predictions: Iterable[Prediction]) -> Score:
    """Loss and error counts, in one pass. An empty hypothesis deletes the whole reference."""
    losses, words, characters = [], [], []
    for p in predictions:
        losses.append(p.loss)
        words.append(count_errors(jiwer.process_words, p.text, p.pred_text))
        characters.append(count_errors(jiwer.process_characters, p.text, p.pred_text))
    finite = [loss for loss in losses if loss is not None]
    return Score(
        loss=math.fsum(finite) / len(finite) if finite else None,
        loss_left_out=len(losses) - len(finite),
        word_counts=np.array(words, dtype=np.int64).reshape(-1, 4),
        character_counts=np.array(characters, dtype=np.int64).reshape(-1, 4),
    )


def nemo_word_error_rate(predictions: Sequence[Prediction], found: Score, letters: Sequence[str]) -> float:
    """The WER that NeMo's own test would say of a model that writes `letters`; `found`: the score of `predictions`.

    It drops all other characters from the references, which a model that lacks letters thus needs not write, and from
    the hypotheses the space before a punctuation mark, which the apostrophe is to it.
    """
    marks = "".join(re.escape(letter) for letter in letters if unicodedata.category(letter).startswith("P"))
    space, others = re.compile(rf"\s(?=[{marks}])" if marks else "(?!)"), {}
    for number, p in enumerate(predictions):
        reference = "".join(character for character in p.text if character in letters)
        hypothesis = space.sub("", p.pred_text)
        if (reference, hypothesis) != (p.text, p.pred_text):
            others[number] = count_errors(jiwer.process_words, reference, hypothesis)
    counts = found.word_counts.copy()
    for number, changed in others.items():
        counts[number] = changed
    return sum_counts(counts).rate
