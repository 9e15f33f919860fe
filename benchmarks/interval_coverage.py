"""How often 95 % intervals hold the true WER, and how often one of several equal models is called better.

    python benchmarks/interval_coverage.py

Simulated test sets: each speaker has a WER of their own, WER on average, with a standard deviation of SPREAD of it
(beta), and WORDS words an utterance are wrong with that probability. Speakers have UTTERANCES utterances each, or
skewed numbers with that mean (log-normal). Intervals of MODELS equal models are compared as evaluate.py did before,
by percentiles of the differences, and as it does. Writes results/reference/interval_coverage.json in a few minutes.
"""

import argparse
import sys
from itertools import combinations
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

from finetuning.evaluation.bootstrap import bootstrap_t
from finetuning.evaluation.significance import LEVEL, holm, sign_flip_test
from finetuning.files import write_json

WER, SPREAD, WORDS, UTTERANCES, SKEW = 0.15, 0.5, 8, 10, 1.0  # SKEW: standard deviation of the logarithm
OWN_SPREAD = 0.3  # of a model's WER on a speaker around the speaker's own, as a share of it
SPEAKERS = (6, 9, 20, 60)
TEST_SETS, TABLES, MODELS = 1000, 500, 6
RESAMPLES, SEED = 1000, 0  # of percentile intervals
RESULT = Path(__file__).resolve().parents[1] / "results" / "reference" / "interval_coverage.json"


def main() -> None:
    """Simulate, write and print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rng = np.random.default_rng(SEED)
    measured = {
        "wer": WER,
        "spread": SPREAD,
        "own_spread": OWN_SPREAD,
        "words": WORDS,
        "utterances": UTTERANCES,
        "skew": SKEW,
        "test_sets": TEST_SETS,
        "tables": TABLES,
        "models": MODELS,
        "coverage": [measure_coverage(rng, count, skewed) for skewed in (False, True) for count in SPEAKERS],
        "told_apart": [measure_told_apart(rng, count) for count in SPEAKERS],
    }
    write_json(RESULT, measured)
    print(RESULT.read_text())


def measure_coverage(rng: np.random.Generator, count: int, skewed: bool) -> dict[str, float]:
    """Return the share of intervals, of those that are given, that hold WER; `count`: speakers."""
    held: dict[str, list[bool]] = {"bootstrap_t": [], "percentile": [], "percentile_of_utterances": []}
    for _ in range(TEST_SETS):
        speaker = np.repeat(np.arange(count), utterance_counts(rng, count, skewed))
        errors = rng.binomial(WORDS, beta(rng, np.full(count, WER), SPREAD)[speaker])
        by_speaker, words = np.bincount(speaker, errors).astype(int), WORDS * np.bincount(speaker)
        intervals = {
            "bootstrap_t": bootstrap_t(by_speaker[:, None], words[:, None])[0],
            "percentile": percentile_interval(rng, by_speaker[:, None], words)[0],
            "percentile_of_utterances": percentile_interval(rng, errors[:, None], np.full(len(errors), WORDS))[0],
        }
        for way, interval in intervals.items():
            if interval is not None:
                held[way].append(bool(interval[0] <= WER <= interval[1]))
    shares = {way: round(sum(cases) / len(cases), 4) for way, cases in held.items()}
    return {"speakers": count, "skewed": skewed, **shares, "without": TEST_SETS - len(held["bootstrap_t"])}


def measure_told_apart(rng: np.random.Generator, count: int) -> dict[str, float]:
    """Return the share of tables of equal models in which a pair is called different, and of one pair alone."""
    before = now = one_pair = 0
    for _ in range(TABLES):
        words = WORDS * utterance_counts(rng, count, True)
        rates = beta(rng, np.full(count, WER), SPREAD)
        errors = [rng.binomial(words, beta(rng, rates, OWN_SPREAD)) for _ in range(MODELS)]
        differences = np.stack([one - other for one, other in combinations(errors, 2)], axis=1)
        before += any(low > 0 or high < 0 for low, high in percentile_interval(rng, differences, words))
        values = sign_flip_test(differences)
        now += min(holm(values)) <= LEVEL
        one_pair += values[0] <= LEVEL
    shares = {"percentile": before, "sign_flip_holm": now, "sign_flip_one_pair": one_pair}
    return {"speakers": count, **{way: round(cases / TABLES, 4) for way, cases in shares.items()}}


def utterance_counts(rng: np.random.Generator, count: int, skewed: bool) -> np.ndarray:
    """Return the number of utterances of each speaker, at least 1."""
    if not skewed:
        return np.full(count, UTTERANCES)
    return np.maximum(1, np.rint(UTTERANCES * rng.lognormal(-(SKEW**2) / 2, SKEW, count))).astype(int)


def beta(rng: np.random.Generator, mean: np.ndarray, spread: float) -> np.ndarray:
    """Return numbers between 0 and 1 of these means and a standard deviation of `spread` of each."""
    mean = np.clip(mean, 1e-3, 0.9)
    size = np.maximum((1 - mean) / (mean * spread**2) - 1, 1e-3)
    return rng.beta(mean * size, (1 - mean) * size)


def percentile_interval(rng: np.random.Generator, errors: np.ndarray, words: np.ndarray) -> list[tuple[float, float]]:
    """Return the percentiles 2.5 and 97.5 of each rate over resamples; `errors`: (units, rates), `words`: (units,)."""
    units = len(words)
    draws = rng.integers(units, size=(RESAMPLES, units)) + units * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(draws.ravel(), minlength=RESAMPLES * units).reshape(RESAMPLES, units).astype(float)
    rates = (counts @ errors) / (counts @ words)[:, None]
    return list(zip(*np.quantile(rates, (0.025, 0.975), axis=0).tolist(), strict=True))


if __name__ == "__main__":
    main()
