"""A second WER, of sentences and texts before the rules; counted by hand."""

from pathlib import Path

import numpy as np
import pytest
from test_recipes import ONE, OTHER, RECIPE

from finetuning.config.schema import Evaluation, SecondWer
from finetuning.data.manifest import Utterance
from finetuning.decoding.predictions import Prediction
from finetuning.errors import UserError
from finetuning.evaluation import recipes, results_table, second_wer
from finetuning.evaluation.evaluated_data import Data

SENTENCES = ("Perché l’ora è [ride] 5?", "Sì, va  bene.", "I'm twenty-five, colour!", "Sono (forse) cinque")
WRITTEN = ("perché l'ora è 5", "Si\u0300, va bene.", "i am 25 color", "sono cinque")
UTTERANCES = [Utterance(f"{n}.wav", 1.0, "x", text, f"speaker {n % 2}") for n, text in enumerate(SENTENCES)]
PREDICTIONS = [Prediction(f"{n}.wav", "x", text, None, 1.0) for n, text in enumerate(WRITTEN)]


@pytest.mark.parametrize(
    ("kind", "errors", "words"),
    [
        (
            SecondWer.orthographic,
            [4, 0, 4, 2],
            [5, 3, 3, 3],
        ),  # Perché, l’ora, [ride], 5?; the third: all, and one word more
        (SecondWer.whisper, [0, 0, 4, 0], [5, 3, 5, 2]),  # i m twenty five colour
        (SecondWer.whisper_english, [0, 0, 0, 0], [5, 3, 4, 2]),
    ],
)
def test_each_scoring_counts_the_words_that_it_leaves(kind: SecondWer, errors: list[int], words: list[int]) -> None:
    score, by_speaker = second_wer.score_words(kind, PREDICTIONS, UTTERANCES)
    assert score.utterance_errors[:, :2].T.tolist() == [errors, words]
    assert by_speaker[:, :2].tolist() == [[errors[n] + errors[n + 2], words[n] + words[n + 2]] for n in (0, 1)]
    fields = second_wer.second_fields(kind, (score, by_speaker))
    assert (fields["second_wer"], fields["second_wer_interval"]) == (round(sum(errors) / sum(words), 6), None)
    assert fields["second_wer_counts"]["words"] == sum(words)
    assert fields["second_wer_kind"] == kind.value and ("0.1.15" in fields["second_wer_by"]) == ("whisper" in kind)


def test_a_manifest_without_a_sentence_is_refused_by_its_place() -> None:
    data = Data(Path("it/test_manifest.json"), "", [UTTERANCES[0], Utterance("a.wav", 1.0, "x", " ")])
    with pytest.raises(UserError, match=r"it/test_manifest.json, utterance 2 has no sentence, .*second_wer=whisper "):
        second_wer.check_sentences(SecondWer.whisper, [data])
    second_wer.check_sentences(SecondWer.whisper, [Data(data.manifest, "", UTTERANCES)])


def test_the_table_and_the_mean_of_a_recipe_have_a_column_of_it() -> None:
    """Seven speakers of a hundred words: 38 errors in all in the first run, 48 in the second."""
    rows = []
    for row in (ONE, OTHER):
        kind, second = SecondWer.orthographic, (row.score, row.score.utterance_errors)
        fields = second_wer.second_fields(kind, second)
        low, high = fields["second_wer_interval"]
        assert low < fields["second_wer"] < high
        rows.append(recipes.replace(row, result=row.result | fields, second=second))
    (pooled,) = recipes.pool_recipes(rows, RECIPE)
    assert pooled.result["second_wer"] == 0.061429 and pooled.result["second_wer_counts"]["words"] == 1400
    assert pooled.result["second_wer_new_run"] == pooled.result["wer_new_run"]
    table = results_table.format_table([row.result for row in (rows[0], pooled)], Evaluation())
    header, _, first, mean = table.splitlines()[:4]
    assert header.split(" | ")[-1].split() == ["WER,", "orthographic", "|"]
    assert first.split("|")[-2].strip() == first.split("|")[-3].strip()
    assert first.split("|")[-2].strip().startswith("0.0543 [")
    assert mean.count("0.0614 ± ") == 3
    assert "WER, orthographic: words as they stand in the sentences, with capitals and punctuation." in table
    plain = results_table.format_table([ONE.result], Evaluation())
    assert "orthographic" not in plain

    sets = results_table.format_test_sets({"test": [pooled.result], "news": [ONE.result]})
    distance = pooled.result["wer_new_run"]
    assert f"| warm   | 0.0614 ± {distance:.3f} | 0.0614 ± {distance:.3f} |" in sets and "| warm-1 " in sets


def test_errors_of_nobody_and_of_empty_texts_are_counted() -> None:
    score, by_speaker = second_wer.score_words(
        SecondWer.whisper, [Prediction("a", "x", "due parole", None, 1.0)], [Utterance("a", 1.0, "x", "[rumore]")]
    )
    assert score.words.insertions == 2 and score.words.reference == 0 and by_speaker.shape == (0, 4)
    assert second_wer.second_fields(SecondWer.whisper, (score, by_speaker))["second_wer"] is None
    assert np.array_equal(second_wer.pool([(score, by_speaker)] * 2)[0].word_counts, [[0, 0, 0, 2]] * 2)
