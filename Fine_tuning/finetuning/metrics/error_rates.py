"""WER and CER: error counts of a minimal alignment, by jiwer.

Rate: (S + D + I) / (S + D + H) over the corpus, not averaged over utterances, where a minimal alignment of each
utterance (Levenshtein 1966) has S substitutions (another word stands for the reference's), D deletions (the reference's
has no counterpart), I insertions (the hypothesis's has none) and H hits. Above 1 when more is inserted than hit. WER
counts words, which are what spaces separate. CER counts characters, a space among them, but not spaces at either end
(NeMo counts those of a hypothesis). Where several alignments are minimal, S + D + I is the same in all of them; which
of them is counted is jiwer's choice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

CLEAR_WORDS = 2  # that both of two models have right end a segment of the matched-pairs test, as NIST's sc_stats does


@dataclass(frozen=True)
class ErrorCounts:
    """Counts over a corpus, of words or of characters."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def reference(self) -> int:
        """Return the number of words or characters in the references."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Return WER or CER as a fraction; NaN when the references are empty."""
        errors = self.substitutions + self.deletions + self.insertions
        return errors / self.reference if self.reference else math.nan


def alignment_counts(alignment: jiwer.WordOutput | jiwer.CharacterOutput) -> tuple[int, int, int, int]:
    """Return hits, substitutions, deletions and insertions of one of jiwer's alignments."""
    return alignment.hits, alignment.substitutions, alignment.deletions, alignment.insertions


def position_errors(alignment: jiwer.WordOutput) -> np.ndarray:
    """Return the errors before, at and after each word of the reference of one of jiwer's alignments.

    Position 2k holds what was inserted before word k, position 2k + 1 whether word k is wrong. At the end stand
    CLEAR_WORDS words without an error, so that the positions of many utterances can follow each other: (2 words + 2 +
    2 CLEAR_WORDS,).
    """
    errors = np.zeros(2 * (len(alignment.references[0]) + 1 + CLEAR_WORDS), dtype=np.int32)
    for chunk in alignment.alignments[0]:
        if chunk.type == "insert":
            errors[2 * chunk.ref_start_idx] += chunk.hyp_end_idx - chunk.hyp_start_idx
        elif chunk.type != "equal":
            errors[2 * chunk.ref_start_idx + 1 : 2 * chunk.ref_end_idx : 2] = 1
    return errors


def sum_counts(counts: np.ndarray) -> ErrorCounts:
    """Return the sums of the counts of utterances, (utterances, 4)."""
    return ErrorCounts(*counts.sum(axis=0).tolist())


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Return the counts of words. Where a reference holds none, all words of its hypothesis are insertions."""
    return ErrorCounts(*alignment_counts(jiwer.process_words(list(references), list(hypotheses))))


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Return the counts of characters, spaces within the text included."""
    return ErrorCounts(*alignment_counts(jiwer.process_characters(list(references), list(hypotheses))))


def count_word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> list[int]:
    """Return the substitutions, deletions and insertions of words in each utterance."""
    pairs = zip(references, hypotheses, strict=True)
    return [sum(alignment_counts(jiwer.process_words(*pair))[1:]) for pair in pairs]


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return the WER over the corpus, as a fraction."""
    return word_errors(references, hypotheses).rate


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return the CER over the corpus, as a fraction."""
    return character_errors(references, hypotheses).rate
