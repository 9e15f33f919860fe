"""95 % confidence intervals of error rates: bootstrap-t over speakers.

Speakers are drawn with replacement, each with all of its utterances, since the utterances of a speaker resemble each
other (Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation"). What is
resampled is (rate - measured rate) / standard error, whose percentiles hold up with few speakers, where those of the
rate itself lie too close together (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 12.5).
"""

from collections.abc import Sequence

import numpy as np

from finetuning.data.manifest import Utterance
from finetuning.evaluation.scoring import Score

MIN_SPEAKERS = 6  # for an interval; a two-sided permutation test cannot reach 5 % with fewer either
RESAMPLES = 2000
SEED = 0
BLOCK = 200_000  # speakers drawn at a time
NOISE = 1e-12  # share of a sum of squares that is taken for rounding
Interval = tuple[float, float]


def sum_by_speaker(score: Score, utterances: Sequence[Utterance]) -> np.ndarray:
    """Return word errors, words, character errors and characters of each speaker, (speakers, 4).

    There are no rows where no utterance names its speaker. Those of some that do not count as of one speaker more.
    Speakers are sorted by name, so that the order of the manifest does not matter.
    """
    names = [utterance.speaker for utterance in utterances]
    if not any(names):
        return np.zeros((0, 4), dtype=np.int64)
    _, number = np.unique(names, return_inverse=True)
    sums = np.zeros((number.max() + 1, 4), dtype=np.int64)
    np.add.at(sums, number, score.utterance_errors)
    return sums


def bootstrap_t(errors: np.ndarray, totals: np.ndarray) -> list[Interval | None]:
    """Return the interval of each rate, sum of errors / sum of totals; None where the speakers do not allow one.

    `errors`, `totals`: whole numbers of each speaker, (speakers, rates). There is no interval with fewer than
    MIN_SPEAKERS, nor where a bound would be infinite: where all speakers of too many resamples have the same rate.
    """
    if len(errors) < MIN_SPEAKERS:
        return [None] * errors.shape[1]
    columns = np.stack([errors, totals, errors**2, errors * totals, totals**2]).astype(float)
    rate, deviation = _rate_and_standard_error(columns.sum(axis=1))
    resampled_rate, resampled_deviation = _rate_and_standard_error(_resample(columns))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num((resampled_rate - rate) / resampled_deviation, nan=0.0, posinf=np.inf, neginf=-np.inf)
    high, low = np.quantile(t, (0.975, 0.025), axis=0, method="inverted_cdf")
    with np.errstate(invalid="ignore"):
        bounds = np.stack([rate - high * deviation, rate - low * deviation], axis=1)
    is_known = (deviation > 0) & np.isfinite(bounds).all(axis=1)
    return [tuple(pair) if known else None for pair, known in zip(bounds.tolist(), is_known, strict=True)]


def _resample(columns: np.ndarray) -> np.ndarray:
    """Return the sums over the speakers of each resample, (columns, RESAMPLES, rates); of (columns, speakers, rates).

    The sums are whole numbers far below 2**53, so they are exact in any order of adding.
    """
    kinds, speakers, rates = columns.shape
    side_by_side = columns.transpose(1, 0, 2).reshape(speakers, -1)
    rng, block = np.random.default_rng(SEED), max(1, BLOCK // speakers)
    draws = (_draw_counts(rng, min(block, RESAMPLES - done), speakers) for done in range(0, RESAMPLES, block))
    sums = np.concatenate([drawn @ side_by_side for drawn in draws])
    return sums.reshape(RESAMPLES, kinds, rates).transpose(1, 0, 2)


def _draw_counts(rng: np.random.Generator, resamples: int, speakers: int) -> np.ndarray:
    """Return how often each speaker is drawn in as many draws as there are speakers, (resamples, speakers)."""
    draws = rng.integers(speakers, size=(resamples, speakers)) + speakers * np.arange(resamples)[:, None]
    return np.bincount(draws.ravel(), minlength=resamples * speakers).reshape(resamples, speakers).astype(float)


def _rate_and_standard_error(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rates and their standard errors; `sums`: of errors, totals, and their squares and products, (5, …).

    A rate R is a ratio of two sums over n speakers. Linearised, its deviation is the mean of (errors - R * total) /
    mean total; the variance is the sum of (errors - R * total)² / (sum of totals)² (the delta method: Cochran 1977,
    "Sampling Techniques", section 2.11). The factor n / (n - 1) is left out: it cancels in bootstrap-t.
    """
    errors, totals, errors_squared, products, totals_squared = sums
    rate = errors / totals
    squares = errors_squared - 2 * rate * products + rate**2 * totals_squared
    squares[squares < NOISE * (errors_squared + rate**2 * totals_squared)] = 0
    return rate, np.sqrt(squares) / totals
