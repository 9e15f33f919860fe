import math
import random

import pytest

from conftest import shipped
from finetuning.decoding.predictions import ModelOutput, Prediction
from finetuning.evaluation.scoring import (
    apply_text_rules,
    needs_text_rules,
    nemo_word_error_rate,
    score_predictions,
)
from finetuning.metrics.error_rates import (
    ErrorCounts,
    character_error_rate,
    character_errors,
    word_error_rate,
    word_errors,
)
from finetuning.model.vocabulary import Vocabulary

of_characters = Vocabulary.of_characters


def prediction(text: str, pred_text: str, loss: float | None = 1.0) -> Prediction:
    return Prediction("a.wav", text, pred_text, loss, 1.0)


def test_counts_worked_out_by_hand() -> None:
    reference, hypothesis = ["il gatto nero dorme qui"], ["un gatto dorme qui ora"]
    assert word_errors(reference, hypothesis) == ErrorCounts(3, 1, 1, 1)  # il/un, nero deleted, ora inserted
    assert word_error_rate(reference, hypothesis) == 3 / 5
    # perché -> perche: one of six letters; e' -> è: one substituted, one deleted
    assert character_errors(["perché"], ["perche"]) == ErrorCounts(5, 1, 0, 0)
    assert character_errors(["e'"], ["è"]) == ErrorCounts(0, 1, 1, 0)


def test_rates_are_over_the_corpus_not_the_mean_of_utterances() -> None:
    references, hypotheses = ["a b c d e f g h i", "a"], ["a b c d e f g h i", "b"]
    assert word_error_rate(references, hypotheses) == 1 / 10  # the mean of utterances would be 1 / 2
    assert character_error_rate(["abcdefghi", "a"], ["abcdefghi", "b"]) == 1 / 10


def test_spaces_count_as_characters_within_a_text_only() -> None:
    assert character_error_rate(["a b"], ["ab"]) == 1 / 3
    assert character_error_rate(["a b"], [" a b "]) == 0
    assert word_error_rate(["a  b"], ["a b"]) == 0


def test_empty_hypotheses_and_references() -> None:
    assert word_errors(["a b", "c"], ["", "c"]) == ErrorCounts(1, 0, 2, 0)
    assert character_errors(["a b", "c"], ["", "c"]) == ErrorCounts(1, 0, 3, 0)
    assert word_errors(["", "c"], ["a b", "c"]) == ErrorCounts(1, 0, 0, 2)
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
    found = score_predictions([prediction("a b", "a b", 2.0), prediction("a", "b", 4.0), prediction("a", "", None)])
    assert (found.loss, found.loss_left_out) == (3.0, 1)
    assert found.words == ErrorCounts(2, 1, 1, 0)
    assert score_predictions([prediction("a", "a", None)]).loss is None


def test_the_counts_of_utterances_add_up_to_those_of_the_corpus() -> None:
    pairs = [("il gatto nero", "il gatto"), ("è", ""), ("un po' di più", "un po di piu si"), ("a", "a")]
    found = score_predictions([prediction(reference, hypothesis) for reference, hypothesis in pairs])
    references, hypotheses = zip(*pairs, strict=True)
    assert found.word_counts.tolist() == [[2, 0, 1, 0], [0, 0, 1, 0], [2, 2, 0, 1], [1, 0, 0, 0]]
    assert found.words == word_errors(references, hypotheses) == ErrorCounts(5, 2, 2, 1)
    assert found.characters == character_errors(references, hypotheses)


def test_nemos_own_wer_by_hand() -> None:
    said = [prediction("perché è un po' 'sta", "perche un po' 'sta"), prediction("sì", "s")]
    found = score_predictions(said)
    assert found.words == ErrorCounts(3, 2, 1, 0)
    letters = " abcdefghijklmnopqrstuvwxyz"
    assert (
        nemo_word_error_rate(said, found, of_characters(letters + "'")) == 3 / 5
    )  # perch|perche, po'|po''sta, 'sta deleted
    assert nemo_word_error_rate(said, found, of_characters(letters + "'èéì")) == 5 / 6  # and è deleted, sì|s
    assert nemo_word_error_rate(said[1:], score_predictions(said[1:]), of_characters(letters)) == 0  # s
    assert math.isnan(nemo_word_error_rate(said, found, of_characters(" 0")))


def test_what_a_model_writes_with_capitals_and_marks_is_scored_after_the_text_rules() -> None:
    italian = shipped("italian").text
    russian, catalan, french = (shipped(language).text for language in ("russian", "catalan", "french"))
    assert not needs_text_rules(of_characters(" abc'-"), russian), "letters and apostrophes of another alphabet"
    assert not any(needs_text_rules(of_characters(text.alphabet), text) for text in (italian, russian, catalan, french))
    assert needs_text_rules(of_characters(" abcABC"), italian)
    assert needs_text_rules(of_characters(" abc?"), italian)
    assert not needs_text_rules(of_characters(" abcäöß"), italian), "which would only be transliterated"
    assert needs_text_rules(of_characters(" abclŀ"), catalan)
    assert needs_text_rules(of_characters(" abc-"), french) and needs_text_rules(of_characters(" abcœ"), french)
    written = [
        Prediction("1.wav", "è l'altro giorno", "È l’altro giorno.", 1.0, 1.0),
        Prediction("2.wav", "a", "", 1.0, 1),
        Prediction("3.wav", "ciao come stai", "Ciao, come stai? [Musica]", 1.0, 1),
        Prediction("4.wav", "sì", " ... … ", 1.0, 1),
        Prediction("5.wav", "sì", "Sì " * 700, 1.0, 1),
    ]
    output = apply_text_rules(ModelOutput(written, of_characters("abc"), None), italian)
    *texts, long = (p.pred_text for p in output.predictions)
    assert texts == ["è l'altro giorno", "", "ciao come stai musica", ""] and long == ("sì " * 700).strip()
    assert [p.text for p in output.predictions] == [p.text for p in written]
