"""WER and CER: error counts of a minimal alignment, by jiwer.

Rate: (S + D + I) / (S + D + H) over the corpus, not averaged over utterances, where a minimal alignment of each
utterance (Levenshtein 1966) has S substitutions (another word stands for the reference's), D deletions (the reference's
has no counterpart), I insertions (the hypothesis's has none) and H hits. Above 1 when more is inserted than hit. WER
counts words, which are what spaces separate. CER counts characters, a space among them, but not spaces at either end
(NeMo counts those of a hypothesis). Where several alignments are minimal, S + D + I is the same in all of them; which
of them is counted is jiwer's choice.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np


@dataclass(frozen=True)
class ErrorCounts:
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


def count_errors(
    process: Callable, reference: str | list[str], hypothesis: str | list[str]
) -> tuple[int, int, int, int]:
    """Return hits, substitutions, deletions and insertions as `process`, one of jiwer's two, counts them."""
    alignment = process(reference, hypothesis)
    return alignment.hits, alignment.substitutions, alignment.deletions, alignment.insertions


def sum_counts(counts: np.ndarray) -> ErrorCounts:
    """Counts of utterances, (utterances, 4), over all of them."""
    return ErrorCounts(*counts.sum(axis=0).tolist())


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Aligned words. Where a reference holds none, all words of the hypothesis are insertions."""
    return ErrorCounts(*count_errors(jiwer.process_words, list(references), list(hypotheses)))


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Aligned characters, spaces within the text included."""
    return ErrorCounts(*count_errors(jiwer.process_characters, list(references), list(hypotheses)))


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """WER over the corpus, as a fraction."""
    return word_errors(references, hypotheses).rate


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """CER over the corpus, as a fraction."""
    return character_errors(references, hypotheses).rate
