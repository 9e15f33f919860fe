"""From predictions to loss, CER and WER: pure functions, references are the manifest's own texts.

A rate is taken over the corpus, not averaged over utterances: (S + D + I) / (S + D + H), where a minimal alignment of
each utterance has S substitutions, D deletions, I insertions and H hits; the denominator is the number of words (WER)
or characters (CER) in the references. Words are what spaces separate. For the CER a space counts as a character, and
spaces at either end do not count. Aligned by jiwer. Above 1 when more is inserted than hit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

from finetuning.predictions import Prediction


@dataclass(frozen=True)
class Errors:
    """Counts over a corpus, of words or of characters."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def reference(self) -> int:
        """Number of words or characters in the references."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """WER or CER, as a fraction; NaN when the references hold nothing at all."""
        errors = self.substitutions + self.deletions + self.insertions
        return errors / self.reference if self.reference else math.nan


@dataclass(frozen=True)
class Score:
    """What one model did on one manifest."""

    utterances: int
    loss: float | None  # nats; mean over utterances of the CTC negative log-likelihood; None: finite for none
    loss_left_out: int  # utterances without a finite loss: more letters than frames
    words: Errors
    characters: Errors


def score(predictions: Sequence[Prediction]) -> Score:
    """Loss and error counts over all predictions. An empty hypothesis deletes the whole reference."""
    losses = [p.loss for p in predictions if p.loss is not None]
    references, hypotheses = [p.text for p in predictions], [p.pred_text for p in predictions]
    return Score(
        utterances=len(predictions),
        loss=math.fsum(losses) / len(losses) if losses else None,
        loss_left_out=len(predictions) - len(losses),
        words=word_errors(references, hypotheses),
        characters=character_errors(references, hypotheses),
    )


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Aligned words. Where a reference holds none, all words of the hypothesis are insertions."""
    found = jiwer.process_words(list(references), list(hypotheses))
    return Errors(found.hits, found.substitutions, found.deletions, found.insertions)


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Aligned characters, spaces within the text included."""
    found = jiwer.process_characters(list(references), list(hypotheses))
    return Errors(found.hits, found.substitutions, found.deletions, found.insertions)


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """WER over the corpus, as a fraction."""
    return word_errors(references, hypotheses).rate


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """CER over the corpus, as a fraction."""
    return character_errors(references, hypotheses).rate
