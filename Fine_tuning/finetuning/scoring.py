"""From predictions to loss, CER and WER and how sure they are: pure functions, references are the manifest's own texts.

Loss: mean over utterances of -ln p(reference | audio), in nats (CTC: Graves et al. 2006, equation 8).

Rate: (S + D + I) / (S + D + H) over the corpus, not averaged over utterances, where a minimal alignment of each
utterance (Levenshtein 1966) has S substitutions (another word stands for the reference's), D deletions (the reference's
has no counterpart), I insertions (the hypothesis's has none) and H hits. Above 1 when more is inserted than hit. WER
counts words, which are what spaces separate. CER counts characters, a space among them, but not spaces at either end
(NeMo counts those of a hypothesis). Where several alignments are minimal, S + D + I is the same in all of them; which
of them is counted is jiwer's choice.

Interval: 95 %, percentiles of the rate over resamples (Bisani and Ney 2004, "Bootstrap estimates for confidence
intervals in ASR performance evaluation"). Speakers are drawn with replacement, each with all of its utterances, since
the utterances of a speaker resemble each other. Two models are compared by the difference of their rates on the same
resamples.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

from finetuning.manifest import Utterance
from finetuning.predictions import Prediction

RESAMPLES = 1000
SEED = 0
BLOCK = 30_000  # units drawn at once, to stay in the processor's cache


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
    """What one model did on one manifest; the counts of each utterance are (hits, S, D, I)."""

    loss: float | None  # nats; mean over utterances of the CTC negative log-likelihood; None: finite for none
    loss_left_out: int  # utterances without a finite loss: more letters than frames
    word_counts: np.ndarray  # (utterances, 4)
    character_counts: np.ndarray  # (utterances, 4)

    @property
    def words(self) -> Errors:
        """Over all utterances."""
        return total(self.word_counts)

    @property
    def characters(self) -> Errors:
        """Over all utterances."""
        return total(self.character_counts)


def score(predictions: Iterable[Prediction]) -> Score:
    """Loss and error counts, in one pass. An empty hypothesis deletes the whole reference."""
    losses, words, characters = [], [], []
    for p in predictions:
        losses.append(p.loss)
        words.append(_counted(jiwer.process_words, p.text, p.pred_text))
        characters.append(_counted(jiwer.process_characters, p.text, p.pred_text))
    finite = [loss for loss in losses if loss is not None]
    return Score(
        loss=math.fsum(finite) / len(finite) if finite else None,
        loss_left_out=len(losses) - len(finite),
        word_counts=np.array(words, dtype=np.int64).reshape(-1, 4),
        character_counts=np.array(characters, dtype=np.int64).reshape(-1, 4),
    )


def _counted(process: Callable, reference: str | list[str], hypothesis: str | list[str]) -> tuple[int, int, int, int]:
    found = process(reference, hypothesis)
    return found.hits, found.substitutions, found.deletions, found.insertions


def total(counts: np.ndarray) -> Errors:
    """Counts of utterances, (utterances, 4), over all of them."""
    return Errors(*counts.sum(axis=0).tolist())


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Aligned words. Where a reference holds none, all words of the hypothesis are insertions."""
    return Errors(*_counted(jiwer.process_words, list(references), list(hypotheses)))


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Aligned characters, spaces within the text included."""
    return Errors(*_counted(jiwer.process_characters, list(references), list(hypotheses)))


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """WER over the corpus, as a fraction."""
    return word_errors(references, hypotheses).rate


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """CER over the corpus, as a fraction."""
    return character_errors(references, hypotheses).rate


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
            others[number] = _counted(jiwer.process_words, reference, hypothesis)
    counts = found.word_counts.copy()
    for number, changed in others.items():
        counts[number] = changed
    return total(counts).rate


@dataclass(frozen=True)
class Units:
    """What is drawn with replacement."""

    kind: str  # speakers | utterances
    number: np.ndarray  # (utterances,) of the unit that each belongs to, from 0

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.number.max()) + 1


def units(utterances: Sequence[Utterance]) -> Units:
    """Speakers, an utterance without one counting as a speaker of its own; utterances where no two speakers are named.

    Numbered by name, so that the order of the manifest does not matter.
    """
    kind = "speakers" if len({u.speaker for u in utterances} - {""}) > 1 else "utterances"
    names = [
        (u.speaker, "", 0) if kind == "speakers" and u.speaker else ("", u.audio_filepath, number)
        for number, u in enumerate(utterances)
    ]
    place = {name: number for number, name in enumerate(sorted(set(names)))}
    return Units(kind, np.array([place[name] for name in names]))


def resampled(found: Score, drawn_from: Units) -> np.ndarray:
    """WER and CER of each resample, (RESAMPLES, 2); the same resamples for every model of the same units."""
    size = drawn_from.count
    sums = np.zeros((size, 8))  # of each unit; whole numbers far below 2**53, so exact in any order of adding
    np.add.at(sums, drawn_from.number, np.hstack([found.word_counts, found.character_counts]))
    rng = np.random.default_rng(SEED)
    at_once = max(1, BLOCK // size)
    draws = [_drawn(rng, min(at_once, RESAMPLES - done), size) @ sums for done in range(0, RESAMPLES, at_once)]
    hits, substitutions, deletions, insertions = np.concatenate(draws).reshape(-1, 2, 4).transpose(2, 0, 1)
    return (substitutions + deletions + insertions) / (hits + substitutions + deletions)


def _drawn(rng: np.random.Generator, resamples: int, size: int) -> np.ndarray:
    """How often each of `size` units is drawn in `size` draws with replacement, (resamples, size)."""
    draws = rng.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
    return np.bincount(draws.ravel(), minlength=resamples * size).reshape(resamples, size)


def interval(samples: np.ndarray) -> tuple[float, float]:
    """Between which 95 % of the samples, (RESAMPLES,), lie: the percentiles 2.5 and 97.5."""
    low, high = np.quantile(samples, (0.025, 0.975)).tolist()
    return low, high
