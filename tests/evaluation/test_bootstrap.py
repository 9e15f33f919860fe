import random
from collections.abc import Sequence

import kaldialign
import numpy as np
import pytest

from finetuning.data.manifest import Utterance
from finetuning.evaluation.bootstrap import RESAMPLES, SEED, bootstrap_t, sum_by_speaker
from finetuning.evaluation.scoring import Score


def speaking(*speakers: str) -> list[Utterance]:
    return [Utterance(f"{number}.wav", 1.0, "a", speaker=speaker) for number, speaker in enumerate(speakers)]


def counted(errors: Sequence[int], words: Sequence[int]) -> Score:
    """A score with these substitutions in these many words, of one character each."""
    counts = np.array([[n - wrong, wrong, 0, 0] for wrong, n in zip(errors, words, strict=True)])
    return Score(None, 0, counts, counts)


def column(*values: int) -> np.ndarray:
    return np.array(values)[:, None]


def test_errors_and_words_are_summed_by_speaker_whatever_the_order_of_the_manifest() -> None:
    utterances, found = speaking("c", "a", "", "b", "a", ""), counted([1, 0, 3, 2, 1, 1], [5, 4, 3, 8, 7, 2])
    sums = sum_by_speaker(found, utterances)
    assert sums.tolist() == [[4, 5, 4, 5], [1, 11, 1, 11], [2, 8, 2, 8], [1, 5, 1, 5]], "who is not named is one more"
    order = [3, 1, 5, 4, 2, 0]
    turned = Score(None, 0, found.word_counts[order], found.character_counts[order])
    assert np.array_equal(sum_by_speaker(turned, [utterances[n] for n in order]), sums)
    assert sum_by_speaker(counted([1, 2], [5, 5]), speaking("", "")).shape == (0, 4)


def test_the_interval_is_that_of_the_definition() -> None:
    """Written out for each resample: residuals instead of sums of squares."""
    errors, words = np.array([2, 9, 4, 1, 12, 6, 3]), np.array([40, 52, 31, 45, 60, 38, 41])

    def rate_and_deviation(chosen: np.ndarray) -> tuple[float, float]:
        e, w = errors[chosen], words[chosen]
        rate = e.sum() / w.sum()
        return rate, np.sqrt(((e - rate * w) ** 2).sum() / (len(e) * (len(e) - 1))) / w.mean()

    rate, deviation = rate_and_deviation(np.arange(7))
    draws = np.random.default_rng(SEED).integers(7, size=(RESAMPLES, 7))
    t = sorted((drawn - rate) / its_own for drawn, its_own in map(rate_and_deviation, draws))
    low, high = rate - t[int(0.975 * RESAMPLES) - 1] * deviation, rate - t[int(0.025 * RESAMPLES) - 1] * deviation
    assert bootstrap_t(errors[:, None], words[:, None]) == [pytest.approx((low, high))]
    assert low < rate < high


def test_there_is_no_interval_where_the_speakers_do_not_allow_one() -> None:
    words = column(*[50] * 9)
    assert bootstrap_t(column(3, 1, 7, 2, 9), words[:5]) == [None], "five speakers"
    assert bootstrap_t(np.zeros((0, 2)), np.zeros((0, 2))) == [None, None]
    assert bootstrap_t(column(*[5] * 9), words) == [None], "all have the same rate"
    assert bootstrap_t(column(*[0] * 9), words) == [None], "no errors"
    assert bootstrap_t(column(4, *[0] * 8), words) == [None], "a resample without the only one who errs has no spread"
    two = bootstrap_t(np.hstack([column(*[5] * 9), column(*range(9))]), np.hstack([words, words]))
    assert two[0] is None and two[1] == bootstrap_t(column(*range(9)), words)[0]


def test_the_interval_holds_the_true_rate_as_often_as_it_says() -> None:
    """400 test sets of 9 speakers, some easier than others, of whose words a fifth are wrong on average."""
    rng, held, by_percentiles = np.random.default_rng(0), 0, 0
    for _ in range(400):
        words = rng.integers(30, 130, 9)
        errors = rng.binomial(words, rng.beta(2, 8, 9))
        (interval,) = bootstrap_t(errors[:, None], words[:, None])
        held += interval is None or interval[0] <= 0.2 <= interval[1]
        drawn = rng.integers(9, size=(500, 9))
        low, high = np.quantile(errors[drawn].sum(axis=1) / words[drawn].sum(axis=1), (0.025, 0.975))
        by_percentiles += low <= 0.2 <= high
    assert held / 400 > 0.92
    assert held - by_percentiles > 12, "why percentiles of the rate are not what is given"


def test_of_many_speakers_the_interval_is_another_tools() -> None:
    """kaldialign's, which draws utterances, each of a speaker of its own here, and takes 1.96 standard deviations."""
    rng = random.Random(1)
    references = [["a"] * rng.randint(3, 12) for _ in range(300)]
    hypotheses = [[word if rng.random() < 0.8 else "b" for word in reference] for reference in references]
    theirs = kaldialign.bootstrap_wer_ci(references, hypotheses, replications=10000)
    errors = column(*(h.count("b") for h in hypotheses))
    ((low, high),) = bootstrap_t(errors, column(*map(len, references)))
    width = theirs["ci95max"] - theirs["ci95min"]
    assert (low, high) == pytest.approx((theirs["ci95min"], theirs["ci95max"]), abs=width / 10)
