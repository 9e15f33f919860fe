"""Bootstrap confidence intervals of error rates, resampled by speaker.

Interval: 95 %, percentiles of the rate over resamples (Bisani and Ney 2004, "Bootstrap estimates for confidence
intervals in ASR performance evaluation"). Speakers are drawn with replacement, each with all of its utterances, since
the utterances of a speaker resemble each other. Two models are compared by the difference of their rates on the same
resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetuning.data.manifest import Utterance
from finetuning.evaluation.scoring import Score

RESAMPLES = 1000
SEED = 0
BLOCK = 30_000  # units drawn at once, to stay in the processor's cache


@dataclass(frozen=True)
class ResamplingUnits:
    """What is drawn with replacement."""

    kind: str  # speakers | utterances
    number: np.ndarray  # (utterances,) of the unit that each belongs to, from 0

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.number.max()) + 1


def resampling_units(utterances: Sequence[Utterance]) -> ResamplingUnits:
    """Speakers, an utterance without one counting as a speaker of its own; utterances where no two speakers are named.

    Numbered by name, so that the order of the manifest does not matter.
    """
    kind = "speakers" if len({u.speaker for u in utterances} - {""}) > 1 else "utterances"
    names = [
        (u.speaker, "", 0) if kind == "speakers" and u.speaker else ("", u.audio_filepath, number)
        for number, u in enumerate(utterances)
    ]
    place = {name: number for number, name in enumerate(sorted(set(names)))}
    return ResamplingUnits(kind, np.array([place[name] for name in names]))


def resample(found: Score, drawn_from: ResamplingUnits) -> np.ndarray:
    """WER and CER of each resample, (RESAMPLES, 2); the same resamples for every model of the same units."""
    size = drawn_from.count
    sums = np.zeros((size, 8))  # of each unit; whole numbers far below 2**53, so exact in any order of adding
    np.add.at(sums, drawn_from.number, np.hstack([found.word_counts, found.character_counts]))
    rng = np.random.default_rng(SEED)
    at_once = max(1, BLOCK // size)
    draws = [_draw_counts(rng, min(at_once, RESAMPLES - done), size) @ sums for done in range(0, RESAMPLES, at_once)]
    hits, substitutions, deletions, insertions = np.concatenate(draws).reshape(-1, 2, 4).transpose(2, 0, 1)
    return (substitutions + deletions + insertions) / (hits + substitutions + deletions)


def _draw_counts(rng: np.random.Generator, resamples: int, size: int) -> np.ndarray:
    """How often each of `size` units is drawn in `size` draws with replacement, (resamples, size)."""
    draws = rng.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
    return np.bincount(draws.ravel(), minlength=resamples * size).reshape(resamples, size)


def percentile_interval(samples: np.ndarray) -> tuple[float, float]:
    """Between which 95 % of the samples, (RESAMPLES,), lie: the percentiles 2.5 and 97.5."""
    low, high = np.quantile(samples, (0.025, 0.975)).tolist()
    return low, high
