"""How the weights of the beam search are found, with real searches over log-probabilities made by hand."""

import json
import random
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from test_beam_search import LETTERS, SENTENCES, frames

from finetuning.config.loading import load_config
from finetuning.data.manifest import Utterance
from finetuning.decoding import partial_predictions, predictions, weight_search
from finetuning.decoding.beam_search import BeamSearch, Settings
from finetuning.decoding.decoding_pool import processes
from finetuning.decoding.greedy import greedy_decode
from finetuning.decoding.predictions import Prediction
from finetuning.errors import UserError
from finetuning.files import ensure_writable_dir, sha256, write_json
from finetuning.language_model import arpa, kenlm, kneser_ney, lexicon_file
from finetuning.metrics.error_rates import character_error_rate, word_error_rate
from mutations import mutated

HEARD = [  # path, what is nearly as probable, what was said
    ("una cosa ros_sa", {5: "a"}, "una casa rossa"),
    ("la casa è chiara", {4: "o"}, "la cosa è chiara"),
    ("il gattto", {6: "_"}, "il gatto"),
    ("la zup_pa è ros_sa", {}, "la zuppa è rossa"),
    ("la gat_ta", {8: "o"}, "la gatta"),  # a word that the language model lacks beside one that it has
]
FRAMES = [frames(path, instead) for path, instead, _ in HEARD]
GREEDY = [
    Prediction(f"{number}.wav", text, greedy_decode(own, LETTERS), 1.0, 1.5)
    for number, (own, (*_, text)) in enumerate(zip(FRAMES, HEARD, strict=True))
]

REFERENCES = [prediction.text for prediction in GREEDY]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As train_language_model.py leaves it."""
    folder = tmp_path_factory.mktemp("lm")
    model = kneser_ney.estimate_model(SENTENCES, 2)
    arpa.write_arpa(folder / kenlm.ARPA, model)
    words = model.words[len(kneser_ney.SPECIAL) :]
    lexicon_file.write_lexicon(folder / kenlm.LEXICON, dict(zip(words, words, strict=True)))
    hashes = {"arpa": sha256(folder / kenlm.ARPA), "lexicon": sha256(folder / kenlm.LEXICON)}
    write_json(folder / kenlm.ABOUT, {"sha256": hashes, "inputs": {"file": None}})
    return folder


@pytest.fixture(scope="module")
def search(folder: Path) -> BeamSearch:
    path, words, _ = kenlm.find_language_model(str(folder), "my.yaml")
    return BeamSearch(path, words, LETTERS)


def test_the_second_half_is_drawn_around_the_best_of_the_first() -> None:
    def errors(settings: Settings) -> float:  # least at the setting that the search should approach
        return abs(settings.lm_weight - 3) + abs(settings.word_score + 2) + abs(settings.unknown_score + 9) / 3

    def draw() -> list[weight_search.Trial]:
        rng, trials = random.Random(7), []
        while len(trials) < weight_search.TRIALS:
            settings = weight_search.draw_settings(rng, trials)
            trials.append(weight_search.Trial(settings, errors(settings), 0.0))
        return trials

    trials = draw()
    random.random()  # whoever else draws
    assert draw() == trials
    found = [trial.settings for trial in trials]
    assert found[0] == replace(Settings(), beam=weight_search.BEAMS[0])
    assert len(set(found)) == len(found) == weight_search.TRIALS
    assert {settings.beam for settings in found} == {weight_search.BEAMS[0]}
    for name, (low, high) in weight_search.TUNED.items():
        assert all(low <= getattr(settings, name) <= high for settings in found)
    half = weight_search.TRIALS // 2
    early, late = ([trial.wer for trial in part] for part in (trials[1:half], trials[half:]))
    assert np.mean(late) < np.mean(early) - 1 and min(late) < min(early)


def test_the_choice_on_few_utterances_is_called_chance() -> None:
    """Of 5 utterances the second setting has one error less in one: a resample lacks that with (4 / 5) ** 5 = 33 %."""
    start, better = Settings(beam=25), Settings(3.0, -1.0, -9.0, 25)
    trials = [weight_search.Trial(start, 0.2, 0.1, (1, 0, 0, 0, 0)), weight_search.Trial(better, 0.0, 0.0, (0,) * 5)]
    bootstrap = weight_search.bootstrap_choice(trials)
    assert bootstrap["start_wins"] == pytest.approx(0.8**5, abs=0.04)
    assert bootstrap["lm_weight"] == [2.0, 3.0] and bootstrap["unknown_score"] == [-9.0, -5.0]
    assert bootstrap["gain"] == 0, "the better one wins only where the utterance that shows it is not left out"
    told = weight_search.describe_choice(better, trials)
    assert "tuned on 5 utterances: lm_weight 3.0 [2.0, 3.0]" in told
    assert f"0.2000 at the start, which wins in {bootstrap['start_wins']:.0%} of 1,000" in told
    told = weight_search.describe_choice(start, [trials[0]] * 3)
    assert "none of 2 other settings beats the start, which wins in 100% of 1,000" in told


def test_the_gain_is_that_of_utterances_not_tuned_on() -> None:
    """Settings that are better everywhere save what they save; those that suit one utterance each lose elsewhere."""
    many, few = Settings(beam=25), Settings(3.0, beam=25)
    everywhere = [weight_search.Trial(many, 1.0, 0.0, (2,) * 30), weight_search.Trial(few, 0.5, 0.0, (1,) * 30)]
    assert weight_search.bootstrap_choice(everywhere)["gain"] == 0.5
    rng = np.random.default_rng(1)
    by_chance = [weight_search.Trial(many, 1.0, 0.0, tuple(errors)) for errors in rng.integers(0, 3, (40, 30)).tolist()]
    bootstrap = weight_search.bootstrap_choice([everywhere[1], *by_chance])
    assert bootstrap["start_wins"] < 0.2 and bootstrap["gain"] < 0.1
    opposite = [weight_search.Trial(many, 0.1, 0.1, (0, 1)), weight_search.Trial(few, 0.1, 0.1, (1, 0))]
    assert weight_search.bootstrap_choice(opposite)["gain"] == pytest.approx(-1, abs=0.2)
    assert " more word errors than the start" in weight_search.describe_choice(many, opposite)


def test_the_lowest_error_rate_wins_by_the_narrowest_beam(search: BeamSearch) -> None:
    settings, trials = weight_search.search_weights(search, FRAMES, REFERENCES, "model")
    texts = [p.text for p in GREEDY]
    assert len(trials) == weight_search.TRIALS + len(weight_search.BEAMS) - 1
    for trial in trials:
        said = [search.text(own, trial.settings) for own in FRAMES]
        assert trial.wer == word_error_rate(texts, said)
        assert trial.cer == character_error_rate(texts, said)
        assert sum(trial.errors) == pytest.approx(trial.wer * sum(len(text.split()) for text in texts))
    rates = [(trial.wer, trial.cer) for trial in trials]
    assert min(rates) == (0, 0) < rates[0], "the defaults miss a word"
    assert settings == trials[rates.index(min(rates))].settings
    assert settings.beam == weight_search.BEAMS[0], "wider ones are no better"
    chosen_from = [trial.settings for trial in trials[weight_search.TRIALS :]]
    assert chosen_from == [replace(settings, beam=beam) for beam in weight_search.BEAMS[1:]]
    assert weight_search.search_weights(search, FRAMES, REFERENCES, "model") == (settings, trials)


def test_a_wider_beam_is_chosen_where_it_is_better(search: BeamSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one hypothesis a frame none is left for what the context asks for."""
    monkeypatch.setattr(weight_search, "BEAMS", (1, 50, 100))
    settings, trials = weight_search.search_weights(search, FRAMES, REFERENCES, "model")
    assert settings.beam == 50
    best, wide, widest = (
        min(trials[: weight_search.TRIALS], key=lambda trial: trial.wer),
        *trials[weight_search.TRIALS :],
    )
    assert best.wer > wide.wer == widest.wer


def test_the_decoded_texts_stand_in_the_place_of_the_greedy_ones(search: BeamSearch, tmp_path: Path) -> None:
    decoded = weight_search.decode_utterances(search, Settings(), FRAMES, GREEDY, tmp_path).predictions
    assert predictions.read_predictions(tmp_path) == decoded
    assert [p.pred_text for p in decoded][:4] == [text for *_, text in HEARD][:4]
    assert [p.pred_text for p in GREEDY][:3] == ["una cosa rossa", "la casa è chiara", "il gato"]
    assert [replace(p, pred_text="") for p in decoded] == [replace(p, pred_text="") for p in GREEDY]
    spent = json.loads((tmp_path / "inference.json").read_text())
    assert (spent["audio_seconds"], spent["device"], spent["threads"]) == (7.5, "cpu", processes())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "inference.json",
        "inputs.json",
        predictions.PREDICTIONS,
    ]


def test_what_an_interrupted_run_decoded_is_not_decoded_again(search: BeamSearch, tmp_path: Path) -> None:
    with partial_predictions.open_partial(tmp_path) as part:
        for number in (0, 3):
            part.append(number, replace(GREEDY[number], pred_text="kept"), FRAMES[number])
    with (tmp_path / f"{predictions.PREDICTIONS}.part").open("a") as part:
        part.write('{"utterance": 1, "audio_fi')
    decoded = weight_search.decode_utterances(search, Settings(), FRAMES, GREEDY, tmp_path).predictions
    folder = ensure_writable_dir(tmp_path / "whole")
    whole = weight_search.decode_utterances(search, Settings(), FRAMES, GREEDY, folder).predictions
    expected = [replace(p, pred_text="kept") if number in (0, 3) else p for number, p in enumerate(whole)]
    assert decoded == expected == predictions.read_predictions(tmp_path)


def test_what_is_tuned_on_does_not_depend_on_the_order_of_the_manifest() -> None:
    utterances = [Utterance(f"{number}.wav", 1.0, "sì") for number in range(weight_search.MAX_UTTERANCES + 300)]
    drawn = weight_search.sample_utterances(utterances)
    assert len(drawn) == len(set(drawn)) == weight_search.MAX_UTTERANCES
    shuffled = random.Random(1).sample(utterances, len(utterances))
    assert weight_search.sample_utterances(shuffled) == drawn
    assert max(int(u.audio_filepath[:-4]) for u in drawn) > weight_search.MAX_UTTERANCES, "not the first ones"
    assert sorted(weight_search.sample_utterances(shuffled[:7]), key=shuffled.index) == shuffled[:7]


def recorded(path: Path, folder: Path, **changed: str) -> dict:
    """A decoder.json as evaluate.py writes it; `changed` hashes."""
    config = load_config("configs/demo.yaml", [f"language_model.output={folder}"])
    _, _, hashes = kenlm.find_language_model(str(folder), "my.yaml")
    settings = Settings(1.5, -0.25, -7.5, 100)
    trials = [weight_search.Trial(settings, 1 / 3, 0.1, (1, 0, 0, 0, 0))]
    found = weight_search.decoder_record(config, settings, trials, GREEDY, {**hashes, "model": "m", **changed}, "a")
    write_json(path, found)
    return found


def test_a_decoder_is_there_and_back(folder: Path, search: BeamSearch, tmp_path: Path) -> None:
    found = recorded(tmp_path / weight_search.DECODER, folder)
    assert found["trials"] == [
        {"lm_weight": 1.5, "word_score": -0.25, "unknown_score": -7.5, "beam": 100, "wer": 0.333333, "cer": 0.1}
    ]
    assert found["validation"] == {"utterances": 5, "greedy_wer": 0.2, "audio": "a"}, "cosa, casa, gato of 15 words"
    restored, settings = weight_search.restore_decoder(tmp_path / weight_search.DECODER, LETTERS)
    assert settings == Settings(1.5, -0.25, -7.5, 100)
    assert [restored.text(own, settings) for own in FRAMES] == [search.text(own, settings) for own in FRAMES]


def test_a_decoder_of_another_language_model_is_refused(folder: Path, tmp_path: Path) -> None:
    recorded(tmp_path / weight_search.DECODER, folder, arpa="0" * 64)
    with pytest.raises(UserError, match=r"was tuned with another language model; rerun evaluate.py") as refused:
        weight_search.restore_decoder(tmp_path / weight_search.DECODER, LETTERS)
    assert "\n" not in str(refused.value)
    found = recorded(tmp_path / weight_search.DECODER, folder)
    write_json(tmp_path / weight_search.DECODER, {**found, "language_model": str(tmp_path / "gone")})
    with pytest.raises(UserError, match=r"there is no language model in .*gone yet; make it with"):
        weight_search.restore_decoder(tmp_path / weight_search.DECODER, LETTERS)


@pytest.mark.parametrize(
    "text", ["", "hello", "[]", "{}", json.dumps({"settings": {"beam": 1, "width": 2}}), "\ufeff", None]
)
def test_what_describes_no_beam_search_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / weight_search.DECODER).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"decoder.json, or it describes no beam search") as refused:
        weight_search.read_decoder(tmp_path / weight_search.DECODER)
    assert "\n" not in str(refused.value)


def test_an_utterance_without_frames_and_one_of_noise_are_tuned_on_too(search: BeamSearch) -> None:
    noise = np.log(np.random.default_rng(0).dirichlet(np.full(len(LETTERS) + 1, 0.1), 30) + 1e-9)
    rows = [Prediction("a.wav", "la casa", "", 1.0, 1.0), Prediction("b.wav", "la", "xx", 1.0, 1.0)]
    settings, trials = weight_search.search_weights(search, [frames(""), noise], [p.text for p in rows], "model")
    assert settings in [trial.settings for trial in trials]


def test_a_decoder_whose_settings_were_changed_by_hand_is_not_taken_for_tuned(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / weight_search.DECODER
    found = recorded(path, folder)
    hashes = found["sha256"]
    assert weight_search.read_current_settings(path, hashes, "a")
    assert not weight_search.read_current_settings(path, hashes, "b") and not weight_search.read_current_settings(
        path, hashes | {"model": "n"}, "a"
    )
    for settings in ({"lm_weight": 9.0}, {"beam": 25}):
        write_json(path, found | {"settings": found["settings"] | settings})
        assert not weight_search.read_current_settings(path, hashes, "a")
    better = found["trials"][0] | {"beam": 25, "wer": 0.1}
    write_json(path, found | {"trials": [*found["trials"], better]})
    assert not weight_search.read_current_settings(path, hashes, "a"), "another trial is better"


def test_whatever_a_decoder_says_it_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / weight_search.DECODER
    hashes = recorded(path, folder)["sha256"]
    whole, own = path.read_bytes(), FRAMES[0]

    @given(mutated(whole))
    @hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    def restore(changed: bytes) -> None:
        path.write_bytes(changed)
        assert isinstance(weight_search.read_current_settings(path, hashes, "a"), Settings | None)
        try:
            search, settings = weight_search.restore_decoder(path, LETTERS)
            search.text(own, settings)
        except UserError as error:
            assert "\n" not in str(error)

    restore()
