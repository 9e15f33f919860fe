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
BLOCK = 30_000  # units drawn at a time, to stay in the processor's cache


@dataclass(frozen=True)
class ResamplingUnits:
    """The units that are drawn with replacement."""

    kind: str  # speakers | utterances
    number: np.ndarray  # (utterances,): the unit each utterance belongs to, from 0

    @property
    def count(self) -> int:
        """Return the number of units."""
        return int(self.number.max()) + 1


def resampling_units(utterances: Sequence[Utterance]) -> ResamplingUnits:
    """Return the speakers, or the utterances where no two speakers are named.

    An utterance without a speaker counts as a speaker of its own. Units are numbered by name, so that the order of the
    manifest does not matter.
    """
    kind = "speakers" if len({u.speaker for u in utterances} - {""}) > 1 else "utterances"
    names = [
        (u.speaker, "", 0) if kind == "speakers" and u.speaker else ("", u.audio_filepath, number)
        for number, u in enumerate(utterances)
    ]
    unit = {name: number for number, name in enumerate(sorted(set(names)))}
    return ResamplingUnits(kind, np.array([unit[name] for name in names]))


def resample(score: Score, units: ResamplingUnits) -> np.ndarray:
    """Return WER and CER of each resample, (RESAMPLES, 2); every model with the same units gets the same resamples."""
    size = units.count
    sums = np.zeros((size, 8))  # of each unit; whole numbers far below 2**53, so exact in any order of adding
    np.add.at(sums, units.number, np.hstack([score.word_counts, score.character_counts]))
    rng = np.random.default_rng(SEED)
    block = max(1, BLOCK // size)
    draws = [_draw_counts(rng, min(block, RESAMPLES - done), size) @ sums for done in range(0, RESAMPLES, block)]
    hits, substitutions, deletions, insertions = np.concatenate(draws).reshape(-1, 2, 4).transpose(2, 0, 1)
    return (substitutions + deletions + insertions) / (hits + substitutions + deletions)


def _draw_counts(rng: np.random.Generator, resamples: int, size: int) -> np.ndarray:
    """Return how often each of `size` units is drawn in `size` draws with replacement, (resamples, size)."""
    draws = rng.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
    return np.bincount(draws.ravel(), minlength=resamples * size).reshape(resamples, size)


def percentile_interval(rates: np.ndarray) -> tuple[float, float]:
    """Return the percentiles 2.5 and 97.5 of the rates of the resamples, (RESAMPLES,)."""
    low, high = np.quantile(rates, (0.025, 0.975)).tolist()
    return low, high
