import random
from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import permutation_test

from finetuning.config.schema import Evaluation
from finetuning.decoding.predictions import Prediction
from finetuning.evaluation import results, results_table, significance
from finetuning.evaluation.scoring import Score, score_predictions

NOTHING = np.zeros(0, dtype=np.int32)


def column(*values: int) -> np.ndarray:
    return np.array(values)[:, None]


def row(name: str, errors: list[int], words: int = 100, model: str = "", decoder: str = "greedy") -> results.Row:
    """A row of speakers who say that many words each, of one character."""
    counts = np.array([[words - wrong, wrong, 0, 0] for wrong in errors])
    score = Score(1.0, 0, counts, counts, position_errors=NOTHING)
    result = results.make_result(name, score, 1.0, "", {"model": model or name}) | {"decoder": {"name": decoder}}
    return results.Row(result, [], score, score.utterance_errors, "")


# --- sign-flip test


def test_p_is_the_share_of_sign_patterns_as_far_from_0() -> None:
    assert significance.sign_flip_test(column(3, 1, 1)) == [2 / 8]  # +++ and ---
    assert significance.sign_flip_test(column(2, -1, 1)) == [6 / 8]  # sums 4 2 2 0, 0 -2 -2 -4
    assert significance.sign_flip_test(np.hstack([column(3, 1, 1), column(0, 0, 0)])) == [2 / 8, 1]
    assert significance.sign_flip_test(column(500, 700)) == [0.5], "two speakers cannot say more"
    assert significance.sign_flip_test(np.zeros((0, 2))) == [None, None]


@pytest.mark.parametrize(("speakers", "tolerance"), [(9, 1e-12), (16, 1e-12), (17, 0.015)])
def test_p_is_another_tools_and_that_of_a_sample_close_to_it(speakers: int, tolerance: float) -> None:
    differences = np.random.default_rng(speakers).integers(-3, 6, speakers)
    if speakers == 9:
        theirs = permutation_test(
            (differences,), np.sum, permutation_type="samples", n_resamples=2**speakers, alternative="two-sided"
        ).pvalue
    else:
        signs = np.array(list(product((1, -1), repeat=speakers)), dtype=np.int32)
        theirs = (np.abs(signs @ differences) >= abs(differences.sum())).mean()
    assert 0.01 < theirs < 0.9
    assert significance.sign_flip_test(differences[:, None]) == [pytest.approx(theirs, abs=tolerance)]


def test_the_least_p_of_a_sample_is_not_0() -> None:
    assert significance.sign_flip_test(np.ones((40, 1), dtype=int)) == [1 / 10_000]


# --- MAPSSWE


def noisy(rng: random.Random, words: list[str], rate: float, vocabulary: list[str]) -> list[str]:
    written = []
    for word in words:
        chance = rng.random()
        if chance < 0.6 * rate:
            written.append(rng.choice(vocabulary))
        elif chance >= 0.8 * rate:
            written.append(word)
        if rng.random() < 0.2 * rate:
            written.append(rng.choice(vocabulary))
    return written


@pytest.mark.parametrize(
    ("rate", "errors", "segments", "p"), [(0.17, 191, 190, 0.069), (0.18, 199, 184, 0.020), (0.19, 202, 188, 0.014)]
)
def test_the_matched_pairs_test_is_nists(rate: float, errors: int, segments: int, p: float) -> None:
    """Expected: sc_stats -t mapsswe of NIST's SCTK 2.4.10, whose p is read from a table of z with two decimals."""
    rng, vocabulary = random.Random(3), ["ab", "cd", "ef", "gh", "il", "mn", "op", "qr", "st", "uv", "zo"]
    references = [
        [rng.choice(vocabulary) + str(rng.randint(0, 30)) for _ in range(rng.randint(3, 14))] for _ in range(120)
    ]
    positions = []
    for its_rate in (0.15, rate):
        written = [noisy(rng, reference, its_rate, vocabulary) for reference in references]
        pairs = zip(references, written, strict=True)
        score = score_predictions(Prediction("", " ".join(r), " ".join(h), 1.0, 1.0) for r, h in pairs)
        positions.append(score.position_errors)
    assert [each.sum() for each in positions] == [159, errors]
    assert significance.matched_pairs_test(*positions) == (segments, pytest.approx(p, abs=0.002))
    assert significance.matched_pairs_test(positions[0], positions[0])[1] == 1


@pytest.mark.parametrize(
    ("one", "other", "segments"),
    [
        ("a b c d e f", "a b c d e f", 0),
        ("a x c d e f", "a b c x e f", 1),  # one word between that both have right
        ("a x c d e f", "a b c d x f", 2),  # two
        ("a x c d e f", "a b c z d x f", 1),  # an insertion between these two
        ("a b c d e x", "x b c d e f", 2),
        ("z a b c d e f", "a b c d e f z", 2),
        ("", "", 1),
    ],
)
def test_two_words_that_both_have_right_part_segments(one: str, other: str, segments: int) -> None:
    reference = "a b c d e f"

    def positions(written: str) -> np.ndarray:
        return score_predictions([Prediction("", reference, written, 1.0, 1.0)] * 2).position_errors

    assert significance.matched_pairs_test(positions(one), positions(other)) == (2 * segments, None), (
        "in two utterances"
    )


# --- several pairs


def test_holms_correction_worked_out_by_hand() -> None:
    assert significance.holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02])
    assert significance.holm([0.5, 0.9]) == [1, 1]


def test_each_pair_of_models_is_compared() -> None:
    a, same, better = [9, 4, 7, 2, 8, 5, 6, 3], [9, 4, 7, 2, 8, 5, 6, 3], [4, 2, 4, 0, 5, 3, 2, 1]
    rows = [row("a", a), row("b", better), row("c", same)]
    found = significance.compare_models(rows)
    assert [(pair["one"], pair["other"]) for pair in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    low, high = found[0]["wer_interval"]
    assert low < found[0]["wer_difference"] == 0.02875 < high  # 23 of 800 words
    assert found[0]["cer_interval"] == found[0]["wer_interval"]
    least = (0.007812, 0.02344)  # 2 of 256, and thrice
    assert [(pair["p"], pair["p_holm"]) for pair in found] == [least, (1, 1), least]
    assert found[1]["wer_interval"] is None, "no speaker's rates differ"
    assert all((pair["speakers"], pair["pairs"], pair["mapsswe_segments"]) == (8, 3, 0) for pair in found)
    table = results_table.format_table([row.result for row in rows], Evaluation(), found)
    assert f"a minus b: WER +0.0288 [{low:+.3f}, {high:+.3f}], not explained by the choice of speakers " in table
    assert "a minus c: WER +0.0000, may be explained by the choice of speakers (p = 1, 8 speakers)." in table
    assert "Both are corrected for 3 pairs (Holm). One run is one run" in table


def test_pairs_are_of_one_decoder_or_of_one_model() -> None:
    rows = [row("a", [1, 2]), row("a+LM", [1, 1], model="a", decoder="lm"), row("b+LM", [2, 1], decoder="lm")]
    found = significance.compare_models(rows)
    assert [(pair["one"], pair["other"]) for pair in found] == [("a", "a+LM"), ("a+LM", "b+LM")]
    assert significance.compare_models(rows[:1]) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "not explained by the choice of speakers (p = 0.031, 9 speakers)"),
        ({"p_holm": 0.051}, "may be explained by the choice of speakers (p = 0.051, 9 speakers)"),
        ({"speakers": 2, "pairs": 1}, "undecided: with 2 speakers p is at least 0.5"),
        ({"speakers": 1, "pairs": 1}, "undecided: with 1 speaker p is at least 1"),
        ({"speakers": 9, "pairs": 15}, "undecided: with 9 speakers and 15 pairs p is at least 0.059"),
        ({"speakers": 0, "p_holm": None}, "undecided, for the speakers are not known"),
        (
            {"mapsswe_p_holm": 1e-9, "mapsswe_segments": 1234},
            "not explained by the choice of speakers (p = 0.031, 9 speakers); MAPSSWE p < 0.0001, 1,234 segments",
        ),
    ],
)
def test_the_verdict_in_words(changed: dict[str, object], words: str) -> None:
    pair = {"speakers": 9, "pairs": 9, "p_holm": 0.03125, "mapsswe_p_holm": None, "mapsswe_segments": 9}
    assert significance.verdict(pair | changed) == words


def test_of_equal_models_hardly_any_pair_is_told_apart() -> None:
    """200 tables of four equal models on 9 speakers: of one in twenty some pair may be told apart by chance."""
    rng, told_apart = np.random.default_rng(0), 0
    for _ in range(200):
        errors = rng.binomial(100, rng.beta(4, 16, 9), size=(4, 9))
        differences = np.stack([one - other for one, other in combinations(errors, 2)], axis=1)
        told_apart += min(significance.holm(significance.sign_flip_test(differences))) <= significance.LEVEL
    assert 0 < told_apart <= 15
