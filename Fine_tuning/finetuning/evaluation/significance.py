"""Whether two models differ by more than the choice of speakers explains.

Sign-flip test over speakers: were two models equal, either could have made the other's errors on all that a speaker
said, so each speaker's difference of word errors could have the other sign. p is the share of sign patterns whose sum
is as far from 0 as the one measured (Fisher 1935, "The Design of Experiments", chapter III; Good 2005, "Permutation,
Parametric and Bootstrap Tests of Hypotheses"). Beside it stands MAPSSWE of NIST (Gillick and Cox 1989, "Some
statistical issues in the comparison of speech recognition algorithms"; Pallett et al. 1990), which takes parts of
utterances for independent, whoever speaks. Of all pairs of a table both are corrected as Holm 1979 does ("A simple
sequentially rejective multiple test procedure").
"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from finetuning.evaluation.bootstrap import bootstrap_t
from finetuning.evaluation.results import EXTERNAL, Comparison, Row, round_or_none
from finetuning.metrics.error_rates import CLEAR_WORDS

LEVEL = 0.05  # of the test, over all pairs of a table together
MAX_EXACT = 16  # speakers whose sign patterns are all tried: 65,536
FLIPS = 9999  # sign patterns drawn at random for more speakers; the measured one is added to them
SEED = 0
BLOCK = 2_000_000  # signs at a time
MIN_SEGMENTS = 30  # for MAPSSWE, whose statistic is normal for many segments only


def compare_models(rows: Sequence[Row]) -> list[Comparison]:
    """Return for each pair the difference of the rates, `one` minus `other`, its interval and whether it may be chance.

    Pairs are two models by the same decoder, or two decoders of the same model. Intervals are those of
    bootstrap.bootstrap_t, None where there is none; each p is of word errors, None where it cannot be computed.
    """
    pairs = [(one, other) for one, other in combinations(rows, 2) if _are_comparable(one, other)]
    if not pairs:
        return []
    # (speakers, pairs, 4): word errors, words, character errors, characters; as many runs in one row as in the other
    sides = [(one.by_speaker * _runs(other), other.by_speaker * _runs(one)) for one, other in pairs]
    totals = np.stack([one for one, _ in sides], axis=1)
    differences = totals - np.stack([other for _, other in sides], axis=1)
    wer, cer = (bootstrap_t(differences[..., column], totals[..., column + 1]) for column in (0, 2))
    flips = sign_flip_test(differences[..., 0])
    segments, matched = zip(
        *(matched_pairs_test(one.score.position_errors, other.score.position_errors) for one, other in pairs),
        strict=True,
    )
    tests = {"p": flips, "p_holm": holm(flips), "mapsswe_p": matched, "mapsswe_p_holm": holm(matched)}
    return [
        {
            "one": one.result["model"],
            "other": other.result["model"],
            "wer_difference": round_or_none(one.result["wer"] - other.result["wer"]),
            "wer_interval": wer[k] and list(map(round_or_none, wer[k])),
            "cer_difference": round_or_none(one.result["cer"] - other.result["cer"]),
            "cer_interval": cer[k] and list(map(round_or_none, cer[k])),
            "speakers": len(differences),
            "pairs": len(pairs),
            **{name: values[k] and float(f"{values[k]:.4g}") for name, values in tests.items()},
            "mapsswe_segments": segments[k],
        }
        for k, (one, other) in enumerate(pairs)
    ]


def _runs(row: Row) -> int:
    return row.result.get("runs", 1)


def _are_comparable(one: Row, other: Row) -> bool:
    """Return whether two rows are compared: of one decoder, of one model, or one of another system."""
    decoders = {one.result["decoder"]["name"], other.result["decoder"]["name"]}
    return (
        len(decoders) == 1 or EXTERNAL in decoders or one.result["sha256"]["model"] == other.result["sha256"]["model"]
    )


def sign_flip_test(differences: np.ndarray) -> list[float | None]:
    """Return the two-sided p of each pair, None without speakers; `differences`: whole numbers, (speakers, pairs).

    Of up to MAX_EXACT speakers all sign patterns are tried, of more a sample; all pairs share them.
    scipy.stats.permutation_test gives the same, in 24 times the time of 1,000 speakers and 15 pairs.
    """
    speakers, pairs = differences.shape
    if not speakers:
        return [None] * pairs
    measured = np.abs(differences.sum(axis=0))
    extreme, tried = np.zeros(pairs), 0
    for signs in _sign_patterns(speakers):
        extreme += (np.abs(signs @ differences.astype(float)) >= measured).sum(axis=0)
        tried += len(signs)
    sampled = speakers > MAX_EXACT
    return ((extreme + sampled) / (tried + sampled)).tolist()


def _sign_patterns(speakers: int) -> Iterator[np.ndarray]:
    """Yield blocks of sign patterns, 1 or -1, (patterns, speakers)."""
    if speakers <= MAX_EXACT:
        numbers = np.arange(2**speakers)[:, None]
        yield 1.0 - 2 * ((numbers >> np.arange(speakers)) & 1)
        return
    rng, block = np.random.default_rng(SEED), max(1, BLOCK // speakers)
    for done in range(0, FLIPS, block):
        yield 1.0 - 2 * rng.integers(2, size=(min(block, FLIPS - done), speakers), dtype=np.int8)


def matched_pairs_test(one: np.ndarray, other: np.ndarray) -> tuple[int, float | None]:
    """Return the number of segments and MAPSSWE's two-sided p, None with fewer than MIN_SEGMENTS.

    `one`, `other`: the errors of two models by position, as in `Score.position_errors`. A segment holds the errors of
    either model between words, at least CLEAR_WORDS, that both have right with nothing inserted between; the statistic
    is the mean difference of errors of a segment by its standard error.
    """
    positions = np.flatnonzero(one + other) if len(one) == len(other) else ()  # a row of several runs has none
    if len(positions) == 0:
        return 0, None
    clear = positions[1:] // 2 - (positions[:-1] + 1) // 2  # words without an error between one position and the next
    starts = np.concatenate([[0], 1 + np.flatnonzero(clear >= CLEAR_WORDS)])
    differences = np.add.reduceat((one - other)[positions], starts)
    if len(starts) < MIN_SEGMENTS:
        return len(starts), None
    mean, deviation = differences.mean(), differences.std(ddof=1) / math.sqrt(len(starts))
    if mean == 0:
        return len(starts), 1.0
    return len(starts), math.erfc(abs(mean) / deviation / math.sqrt(2)) if deviation else 0.0


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return each p corrected for being one of several; those that are None are no tests."""
    known = [k for k, p in enumerate(values) if p is not None]
    corrected, least = list(values), 0.0
    for rank, k in enumerate(sorted(known, key=lambda k: values[k])):
        corrected[k] = least = max(least, min(1.0, values[k] * (len(known) - rank)))
    return corrected


def verdict(pair: dict[str, Any]) -> str:
    """Return in words what the tests of a comparison say, for the table and the page."""
    speakers, pairs = pair["speakers"], pair["pairs"]
    least = min(1.0, 2.0 ** (1 - speakers) * pairs)
    of_pairs = f" and {pairs} pairs" if pairs > 1 else ""
    if not speakers:
        says = "undecided, for the speakers are not known"
    elif least > LEVEL:
        says = f"undecided: with {speakers} speaker{'s' * (speakers > 1)}{of_pairs} p is at least {least:.2g}"
    else:
        how = "not explained" if pair["p_holm"] <= LEVEL else "may be explained"
        says = f"{how} by the choice of speakers ({format_p(pair['p_holm'])}, {speakers:,} speakers)"
    if pair["mapsswe_p_holm"] is None:
        return says
    return f"{says}; MAPSSWE {format_p(pair['mapsswe_p_holm'])}, {pair['mapsswe_segments']:,} segments"


def format_p(p: float) -> str:
    """Return p with two digits, as in "p = 0.031"."""
    return f"p = {p:.2g}" if p >= 0.0001 else "p < 0.0001"
