"""How the weights of the beam search are found, with real searches over log-probabilities made by hand."""

import json
import random
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from finetuning import arpa, language_model, ngrams, predictions, tuning
from finetuning.beam_search import BeamSearch, Settings
from finetuning.config_file import load
from finetuning.decoding import greedy
from finetuning.errors import UserError
from finetuning.files import make_folder, sha256, write_json
from finetuning.manifest import Utterance
from finetuning.predictions import Prediction
from finetuning.scoring import character_error_rate, word_error_rate
from hypothesis import HealthCheck, given
from mutations import mutated
from test_beam_search import LETTERS, SENTENCES, frames

HEARD = [  # path, what is nearly as probable, what was said
    ("una cosa ros_sa", {5: "a"}, "una casa rossa"),
    ("la casa è chiara", {4: "o"}, "la cosa è chiara"),
    ("il gattto", {6: "_"}, "il gatto"),
    ("la zup_pa è ros_sa", {}, "la zuppa è rossa"),
    ("la gat_ta", {8: "o"}, "la gatta"),  # a word that the language model lacks beside one that it has
]
FRAMES = [frames(path, instead) for path, instead, _ in HEARD]
GREEDY = [
    Prediction(f"{number}.wav", text, greedy(own, LETTERS), 1.0, 1.5)
    for number, (own, (*_, text)) in enumerate(zip(FRAMES, HEARD, strict=True))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As train_language_model.py leaves it."""
    folder = tmp_path_factory.mktemp("lm")
    model = ngrams.estimate(SENTENCES, 2)
    arpa.write(folder / language_model.ARPA, model)
    words = model.words[len(ngrams.SPECIAL) :]
    language_model.write_lexicon(folder / language_model.LEXICON, dict(zip(words, words, strict=True)))
    hashes = {"arpa": sha256(folder / language_model.ARPA), "lexicon": sha256(folder / language_model.LEXICON)}
    write_json(folder / language_model.ABOUT, {"sha256": hashes, "inputs": {"file": None}})
    return folder


@pytest.fixture(scope="module")
def search(folder: Path) -> BeamSearch:
    path, words, _ = language_model.find(str(folder), "my.yaml")
    return BeamSearch(path, words, LETTERS)


def test_the_same_settings_are_tried_each_time_the_defaults_first() -> None:
    found = list(tuning.candidates())
    random.random()  # whoever else draws
    assert list(tuning.candidates()) == found
    assert found[0] == replace(Settings(), beam=tuning.BEAMS[0])
    assert len(set(found)) == len(found) == tuning.TRIALS
    assert {settings.beam for settings in found} == {tuning.BEAMS[0]}
    assert max(s.unknown_score for s in found) <= 0 < min(s.lm_weight for s in found)


def test_the_lowest_error_rate_wins_by_the_narrowest_beam(search: BeamSearch) -> None:
    settings, trials = tuning.tune(search, FRAMES, GREEDY, "model")
    texts = [p.text for p in GREEDY]
    assert [trial.settings for trial in trials[: tuning.TRIALS]] == list(tuning.candidates())
    for trial in trials:
        said = [search.text(own, trial.settings) for own in FRAMES]
        assert trial.wer == word_error_rate(texts, said)
        assert trial.cer == character_error_rate(texts, said)
    rates = [(trial.wer, trial.cer) for trial in trials]
    assert min(rates) == (0, 0) < rates[0], "the defaults miss a word"
    assert settings == trials[rates.index(min(rates))].settings
    assert settings.beam == tuning.BEAMS[0], "wider ones are no better"
    chosen_from = [trial.settings for trial in trials[tuning.TRIALS :]]
    assert chosen_from == [replace(settings, beam=beam) for beam in tuning.BEAMS[1:]]
    assert tuning.tune(search, FRAMES, GREEDY, "model") == (settings, trials)


def test_a_wider_beam_is_chosen_where_it_is_better(search: BeamSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one hypothesis a frame none is left for what the context asks for."""
    monkeypatch.setattr(tuning, "BEAMS", (1, 50, 100))
    settings, trials = tuning.tune(search, FRAMES, GREEDY, "model")
    assert settings.beam == 50
    best, wide, widest = min(trials[: tuning.TRIALS], key=lambda trial: trial.wer), *trials[tuning.TRIALS :]
    assert best.wer > wide.wer == widest.wer


def test_the_decoded_texts_stand_in_the_place_of_the_greedy_ones(search: BeamSearch, tmp_path: Path) -> None:
    decoded = tuning.decode(search, Settings(), FRAMES, GREEDY, tmp_path)
    assert predictions.read(tmp_path) == decoded
    assert [p.pred_text for p in decoded][:4] == [text for *_, text in HEARD][:4]
    assert [p.pred_text for p in GREEDY][:3] == ["una cosa rossa", "la casa è chiara", "il gato"]
    assert [replace(p, pred_text="") for p in decoded] == [replace(p, pred_text="") for p in GREEDY]
    spent = json.loads((tmp_path / "inference.json").read_text())
    assert (spent["audio_seconds"], spent["device"], spent["threads"]) == (7.5, "cpu", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inference.json", "inputs.json", predictions.NAME]


def test_what_an_interrupted_run_decoded_is_not_decoded_again(search: BeamSearch, tmp_path: Path) -> None:
    with predictions.appending(tmp_path) as part:
        for number in (0, 3):
            part.append(number, replace(GREEDY[number], pred_text="kept"), FRAMES[number])
    with (tmp_path / f"{predictions.NAME}.part").open("a") as part:
        part.write('{"utterance": 1, "audio_fi')
    decoded = tuning.decode(search, Settings(), FRAMES, GREEDY, tmp_path)
    whole = tuning.decode(search, Settings(), FRAMES, GREEDY, make_folder(tmp_path / "whole"))
    expected = [replace(p, pred_text="kept") if number in (0, 3) else p for number, p in enumerate(whole)]
    assert decoded == expected == predictions.read(tmp_path)


def test_what_is_tuned_on_does_not_depend_on_the_order_of_the_manifest() -> None:
    utterances = [Utterance(f"{number}.wav", 1.0, "sì") for number in range(tuning.MOST_UTTERANCES + 300)]
    drawn = tuning.drawn(utterances)
    assert len(drawn) == len(set(drawn)) == tuning.MOST_UTTERANCES
    shuffled = random.Random(1).sample(utterances, len(utterances))
    assert tuning.drawn(shuffled) == drawn
    assert max(int(u.audio_filepath[:-4]) for u in drawn) > tuning.MOST_UTTERANCES, "not the first ones"
    assert sorted(tuning.drawn(shuffled[:7]), key=shuffled.index) == shuffled[:7]


def recorded(path: Path, folder: Path, **changed: str) -> dict:
    """A decoder.json as evaluate.py writes it; `changed` hashes."""
    config = load("configs/demo.yaml", [f"language_model.output={folder}"])
    _, _, hashes = language_model.find(str(folder), "my.yaml")
    settings = Settings(1.5, -0.25, -7.5, 100)
    trials = [tuning.Trial(settings, 1 / 3, 0.1)]
    found = tuning.record(config, settings, trials, GREEDY, {**hashes, "model": "m", **changed}, "a")
    write_json(path, found)
    return found


def test_a_decoder_is_there_and_back(folder: Path, search: BeamSearch, tmp_path: Path) -> None:
    found = recorded(tmp_path / tuning.DECODER, folder)
    assert found["trials"] == [
        {"lm_weight": 1.5, "word_score": -0.25, "unknown_score": -7.5, "beam": 100, "wer": 0.333333, "cer": 0.1}
    ]
    assert found["validation"] == {"utterances": 5, "greedy_wer": 0.2, "audio": "a"}, "cosa, casa, gato of 15 words"
    restored, settings = tuning.restore(tmp_path / tuning.DECODER, LETTERS)
    assert settings == Settings(1.5, -0.25, -7.5, 100)
    assert [restored.text(own, settings) for own in FRAMES] == [search.text(own, settings) for own in FRAMES]


def test_a_decoder_of_another_language_model_is_refused(folder: Path, tmp_path: Path) -> None:
    recorded(tmp_path / tuning.DECODER, folder, arpa="0" * 64)
    with pytest.raises(UserError, match=r"was tuned with another language model; type evaluate.py") as refused:
        tuning.restore(tmp_path / tuning.DECODER, LETTERS)
    assert "\n" not in str(refused.value)
    found = recorded(tmp_path / tuning.DECODER, folder)
    write_json(tmp_path / tuning.DECODER, {**found, "language_model": str(tmp_path / "gone")})
    with pytest.raises(UserError, match=r"there is no language model in .*gone yet; make it with"):
        tuning.restore(tmp_path / tuning.DECODER, LETTERS)


@pytest.mark.parametrize(
    "text", ["", "hello", "[]", "{}", json.dumps({"settings": {"beam": 1, "width": 2}}), "\ufeff", None]
)
def test_what_describes_no_beam_search_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / tuning.DECODER).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"decoder.json, or it describes no beam search") as refused:
        tuning.read(tmp_path / tuning.DECODER)
    assert "\n" not in str(refused.value)


def test_an_utterance_without_frames_and_one_of_noise_are_tuned_on_too(search: BeamSearch) -> None:
    noise = np.log(np.random.default_rng(0).dirichlet(np.full(len(LETTERS) + 1, 0.1), 30) + 1e-9)
    rows = [Prediction("a.wav", "la casa", "", 1.0, 1.0), Prediction("b.wav", "la", "xx", 1.0, 1.0)]
    settings, trials = tuning.tune(search, [frames(""), noise], rows, "model")
    assert settings in [trial.settings for trial in trials]


def test_a_decoder_whose_settings_were_changed_by_hand_is_not_taken_for_tuned(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / tuning.DECODER
    found = recorded(path, folder)
    hashes = found["sha256"]
    assert tuning.is_of(path, hashes, "a")
    assert not tuning.is_of(path, hashes, "b") and not tuning.is_of(path, hashes | {"model": "n"}, "a")
    for settings in ({"lm_weight": 9.0}, {"beam": 25}):
        write_json(path, found | {"settings": found["settings"] | settings})
        assert not tuning.is_of(path, hashes, "a")
    better = found["trials"][0] | {"beam": 25, "wer": 0.1}
    write_json(path, found | {"trials": [*found["trials"], better]})
    assert not tuning.is_of(path, hashes, "a"), "another trial is better"


def test_whatever_a_decoder_says_it_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / tuning.DECODER
    hashes = recorded(path, folder)["sha256"]
    whole, own = path.read_bytes(), FRAMES[0]

    @given(mutated(whole))
    @hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    def restore(changed: bytes) -> None:
        path.write_bytes(changed)
        assert tuning.is_of(path, hashes, "a") in (True, False)
        try:
            search, settings = tuning.restore(path, LETTERS)
            search.text(own, settings)
        except UserError as error:
            assert "\n" not in str(error)

    restore()
