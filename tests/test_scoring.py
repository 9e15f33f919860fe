import math
import random

import pytest
from finetuning.predictions import Prediction
from finetuning.scoring import Errors, character_error_rate, character_errors, score, word_error_rate, word_errors


def prediction(text: str, pred_text: str, loss: float | None = 1.0) -> Prediction:
    return Prediction("a.wav", text, pred_text, loss, 1.0)


def test_counts_worked_out_by_hand() -> None:
    reference, hypothesis = ["il gatto nero dorme qui"], ["un gatto dorme qui ora"]
    assert word_errors(reference, hypothesis) == Errors(3, 1, 1, 1)  # il/un, nero deleted, ora inserted
    assert word_error_rate(reference, hypothesis) == 3 / 5
    # perché -> perche: one of six letters; e' -> è: one substituted, one deleted
    assert character_errors(["perché"], ["perche"]) == Errors(5, 1, 0, 0)
    assert character_errors(["e'"], ["è"]) == Errors(0, 1, 1, 0)


def test_rates_are_over_the_corpus_not_the_mean_of_utterances() -> None:
    references, hypotheses = ["a b c d e f g h i", "a"], ["a b c d e f g h i", "b"]
    assert word_error_rate(references, hypotheses) == 1 / 10  # the mean of utterances would be 1 / 2
    assert character_error_rate(["abcdefghi", "a"], ["abcdefghi", "b"]) == 1 / 10


def test_spaces_count_as_characters_within_a_text_only() -> None:
    assert character_error_rate(["a b"], ["ab"]) == 1 / 3
    assert character_error_rate(["a b"], [" a b "]) == 0
    assert word_error_rate(["a  b"], ["a b"]) == 0


def test_empty_hypotheses_and_references() -> None:
    assert word_errors(["a b", "c"], ["", "c"]) == Errors(1, 0, 2, 0)
    assert character_errors(["a b", "c"], ["", "c"]) == Errors(1, 0, 3, 0)
    assert word_errors(["", "c"], ["a b", "c"]) == Errors(1, 0, 0, 2)
    assert word_error_rate(["", "c"], ["a b", "c"]) == 2
    assert math.isnan(word_error_rate([""], ["a"]))


def distance(reference: list[str] | str, hypothesis: list[str] | str) -> int:
    """Levenshtein's distance by the textbook recurrence."""
    row = list(range(len(hypothesis) + 1))
    for i, r in enumerate(reference, start=1):
        before, row[0] = row[0], i
        for j, h in enumerate(hypothesis, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (r != h))
    return row[-1]


def test_agrees_with_the_textbook_on_random_text() -> None:
    rng = random.Random(0)
    words = ["l'altro", "è", "a", "casa", "perché", "no"]
    pairs = [[" ".join(rng.choices(words, k=rng.randint(1, 8))) for _ in range(2)] for _ in range(200)]
    references, hypotheses = [list(column) for column in zip(*pairs, strict=True)]
    by_words = sum(distance(r.split(), h.split()) for r, h in pairs) / sum(len(r.split()) for r in references)
    by_characters = sum(distance(r, h) for r, h in pairs) / sum(map(len, references))
    assert word_error_rate(references, hypotheses) == pytest.approx(by_words, abs=1e-12)
    assert character_error_rate(references, hypotheses) == pytest.approx(by_characters, abs=1e-12)


def test_loss_is_the_mean_of_the_finite_ones_and_the_others_are_counted() -> None:
    found = score([prediction("a b", "a b", 2.0), prediction("a", "b", 4.0), prediction("a", "", None)])
    assert (found.utterances, found.loss, found.loss_left_out) == (3, 3.0, 1)
    assert found.words == Errors(2, 1, 1, 0)
    assert score([prediction("a", "a", None)]).loss is None
