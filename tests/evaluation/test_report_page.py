"""report.html: what stands in it, and what a real browser makes of it, opened from the disk as a user does."""

import csv
import json
import re
import shutil
import time
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import axe_core_python
import numpy as np
import pytest
import soundfile

import browser as chromium
from conftest import ROOT
from finetuning.config.loading import load_config
from finetuning.config.schema import Config, SecondWer
from finetuning.data import shard_writer
from finetuning.data.manifest import SPLITS, Utterance, read_manifest, write_manifest
from finetuning.decoding.predictions import Prediction
from finetuning.evaluation import report_page, results
from finetuning.evaluation.bootstrap import sum_by_speaker
from finetuning.evaluation.scoring import Score, score_predictions
from finetuning.metrics.confusions import accent_confusions, char_diff, most_frequent
from finetuning.metrics.history import COLUMNS

# an alert would stop the page; setting a mark shows that a script of the data ran
HOSTILE = [
    "<script>window.ran = 1</script>",
    "</script><script>window.ran = 2</script>",
    '"\'><img src=x onerror="window.ran=3">',
    "<!-- <script> & &amp; &lt; @content@ @title@",
    "right\u202eto left\u2066 isolated",
    "line\u2028separator\u2029and \u0085 nel",
    "una parola " + "lunghissima" * 60,
    "${window.ran = 4} `window.ran = 5` \\u003c {{ran}}",
    "שלום עולם " + "مرحبا",
]
TEXTS = [("perché è là", "perche e là casa"), ("è qui", "è qui"), ("un museo", ""), ("il caffè", "il caffé")]


@dataclass
class Evaluated:
    """What evaluate.py has when it writes the page."""

    config: Config
    models: dict[str, str]
    rows: list[results.Row]
    utterances: list[Utterance]
    comparisons: tuple[results.Comparison, ...] = ()

    def write(self) -> Path:
        return report_page.write_report(self.config, self.models, self.rows, self.utterances, self.comparisons)

    def content(self) -> dict[str, Any]:
        return content_of(self.write())


def evaluated(folder: Path, said: dict[str, list[str]], texts: list[str], seconds: float = 0.5) -> Evaluated:
    """An experiment on tones: what each model wrote for each of the texts."""
    data = folder / "data"
    (data / "wavs").mkdir(parents=True)
    tone = 0.1 * np.sin(np.arange(int(16000 * seconds)) / 8)
    utterances = []
    for number, text in enumerate(texts):
        wav = f"wavs/clip {number % 10}#.wav"  # a name that a link must quote
        if number < 10:
            soundfile.write(data / wav, tone, 16000)
        speaker = f"{number % 3:08d}speaker"
        utterances.append(Utterance(wav, seconds + number / 1000, text, text.upper(), speaker, "female_feminine"))
    write_manifest(data / "test_manifest.json", utterances)
    (data / "dataset.json").write_text(json.dumps({"release": "cv-corpus/it"}))
    rows = []
    (folder / "run").mkdir()
    for name, hypotheses in said.items():
        found = [
            Prediction(u.audio_filepath, u.text, hypothesis, float(number), u.duration)
            for number, (u, hypothesis) in enumerate(zip(utterances, hypotheses, strict=True))
        ]
        score = score_predictions(found)
        result = results.make_result(name, score, 0.1, "", {"model": "0" * 64, "manifest": "1" * 64})
        rows.append(results.Row(result, found, score, sum_by_speaker(score, utterances), ""))
        (folder / "run" / f"{name}.nemo").touch()
    metrics = [",".join(COLUMNS), "1,frozen,90.5,80.5,1,1,0", "2,unfrozen,9,,1,1,0", ""]
    (folder / "run" / "metrics.csv").write_text("\n".join(metrics))
    given = {"dataset.output": data, "evaluation.predictions": folder / "run/predictions", "evaluation.results": folder}
    config = load_config(str(ROOT / "configs" / "demo.yaml"), [f"{key}={value}" for key, value in given.items()])
    return Evaluated(config, {name: str(folder / "run" / f"{name}.nemo") for name in said}, rows, utterances)


def content_of(path: Path) -> dict[str, Any]:
    (found,) = re.findall(
        r'<script type="application/json" id="content">(.*?)</script>', path.read_text(encoding="utf-8")
    )
    return json.loads(found)


class Elements(HTMLParser):
    """Start tags with their attributes, as a browser finds them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def small(tmp_path: Path) -> Evaluated:
    references, hypotheses = zip(*TEXTS, strict=True)
    return evaluated(tmp_path, {"one": list(hypotheses), "other": list(references)}, list(references))


def scored(texts: list[tuple[str, str]]) -> Score:
    return score_predictions(Prediction("a.wav", reference, written, 1.0, 1.0) for reference, written in texts)


def test_confusions_are_counted_as_by_hand() -> None:
    found = scored(TEXTS)
    letters = {(c.reference, c.hypothesis): (c.count, c.of) for c in most_frequent(found.character_pairs)}
    # perché -> perche, è -> e, " casa" inserted; "un museo" deleted; caffè -> caffé
    assert letters[("è", "e")] == (1, 3)
    assert letters[("è", "é")] == (1, 3)
    assert letters[("é", "e")] == (1, 1)
    assert letters[("u", "")] == (2, 3), "un and museo are deleted, qui is not"
    assert letters[("", "a")] == (2, 0)
    assert {(c.reference, c.hypothesis) for c in accent_confusions(most_frequent(found.character_pairs))} == {
        ("è", "e"), ("è", "é"), ("é", "e"),
    }  # fmt: skip
    words = [(c.reference, c.hypothesis, c.count, c.of) for c in most_frequent(found.word_pairs)]
    assert ("", "casa", 1, 0) in words
    assert ("è", "e", 1, 2) in words
    assert ("museo", "", 1, 1) in words
    assert len(words) == 6
    assert found.utterance_errors[[0, 2]].tolist() == [[3, 3, 7, 11], [2, 2, 8, 8]]


def test_frequent_pairs_come_first() -> None:
    found = scored([("a b", "a c"), ("a b", "a c"), ("a b", "x b")])
    assert [(c.reference, c.hypothesis, c.count, c.of) for c in most_frequent(found.word_pairs)] == [
        ("b", "c", 2, 3),
        ("a", "x", 1, 3),
    ]


def test_a_word_is_taken_to_pieces_where_it_differs() -> None:
    assert char_diff("qui", "qui") == "qui"
    assert char_diff("perché", "perche") == (["perch", "é"], ["perch", "e"])
    assert char_diff("mercato", "marcaato") == (["m", "e", "rc", "", "ato"], ["m", "a", "rc", "a", "ato"])
    assert char_diff("un", "") == (["", "un"], ["", ""])
    assert char_diff("", "casa") == (["", ""], ["", "casa"])
    assert ["".join(side) for side in char_diff("mercato", "mmtaa")] == ["mercato", "mmtaa"]


def test_the_errors_are_those_of_the_results(small: Evaluated) -> None:
    found = small.content()
    one, other = found["models"]
    for i, model in enumerate((one, other)):
        counts = np.array([shown["by_model"][i]["counts"] for shown in found["shown"]]).sum(axis=0)
        row = model["result"]
        assert counts[0] == row["substitutions"] + row["deletions"] + row["insertions"]
        assert counts[1] == row["words"]
        assert counts[2] / counts[3] == pytest.approx(row["cer"], abs=1e-6)
        assert sum(errors for *_, errors in model["by_speaker"]) == counts[0]
    assert (one["without_error"], other["without_error"]) == (1, 4)
    # with 20 words of the average WER of 6/9: 15.3/22, 17.3/25, 13.3/22
    assert one["by_speaker"] == [["00000002", 1, 2, 2], ["00000000", 2, 5, 4], ["00000001", 1, 2, 0]]
    assert one["confusions"]["accents"][0] == ["è", "e", 1, 3, 1]
    assert ["è", "é", 1, 3, 4] in one["confusions"]["letters"]
    assert other["confusions"] == {"letters": [], "accents": [], "words": []}
    assert one["loss_curve"] == [[1, "frozen", 90.5, 80.5], [2, "unfrozen", 9.0, None]]
    assert found["shown"][3]["by_model"][0]["words"] == ["il", [["caff", "è"], ["caff", "é"]]]


def test_everything_is_in_one_file_and_nothing_is_loaded(small: Evaluated, tmp_path: Path) -> None:
    path = small.write()
    assert path == tmp_path / "run" / "report.html"
    elements = Elements(path).found
    assert [tag for tag, _ in elements].count("script") == 2
    assert [tag for tag, _ in elements].count("h1") == 1
    assert not [tag for tag, _ in elements if tag in ("link", "img", "iframe", "audio", "base")]
    assert all(attributes.get("href", "#").startswith("#") for _, attributes in elements)
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on") or name == "style"]
    policy = next(a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'; " in policy
    assert "unsafe" not in policy
    labels = {attributes.get("for") for tag, attributes in elements if tag == "label"}
    assert labels == {None}, "each label holds its field"


def test_the_same_results_give_the_same_bytes_wherever_they_lie(small: Evaluated, tmp_path: Path) -> None:
    first = small.write().read_bytes()
    assert small.write().read_bytes() == first
    assert str(tmp_path) not in first.decode()
    moved = tmp_path / "moved" / "deeper"
    shutil.copytree(tmp_path / "data", moved / "data")
    shutil.copytree(tmp_path / "run", moved / "run")
    given = {"dataset.output": moved / "data", "evaluation.predictions": moved / "run/predictions"}
    config = load_config(str(ROOT / "configs/demo.yaml"), [f"{k}={v}" for k, v in given.items()])
    models = {name: source.replace(str(tmp_path), str(moved)) for name, source in small.models.items()}
    assert replace(small, config=config, models=models).write().read_bytes() == first


def test_what_the_data_says_stays_text(tmp_path: Path) -> None:
    given = evaluated(tmp_path, {"<b>model": HOSTILE[::-1]}, HOSTILE)
    given.config.name = given.config.evaluation.note = "</title><script>window.ran = 6</script>"
    path = given.write()
    written = path.read_text(encoding="utf-8")
    assert [tag for tag, _ in Elements(path).found].count("script") == 2
    assert "\u2028" not in written
    assert "</title><script>" not in written
    found = content_of(path)
    assert [shown["sentence"] for shown in found["shown"]] == [text.upper() for text in HOSTILE]
    assert found["note"] == "</title><script>window.ran = 6</script>"
    assert '<p id="note"></p>' in written
    assert "&lt;b&gt;model" in written, "the summary for readers without JavaScript"


@pytest.fixture
def in_groups(small: Evaluated, tmp_path: Path) -> Evaluated:
    """With intervals, groups and a comparison."""
    tests = {"speakers": 8, "pairs": 2, "p_holm": 0.016, "mapsswe_p_holm": 0.25, "mapsswe_segments": 40}
    comparison = {"one": "one", "other": "other", "wer_difference": -0.5, "wer_interval": [-0.7, -0.2], **tests}
    few = {**comparison, "one": "other", "other": "one", "wer_interval": None, "speakers": 3, "mapsswe_p_holm": None}
    women = {"utterances": 4, "words": 9, "characters": 40, "wer": 0.5, "cer": 0.2}
    slices = {"gender": {"female_feminine": women, "not stated": {**women, "wer": 0.25}}}
    for row in small.rows:
        row.result.update(
            wer_interval=[0.1, 0.9], cer_interval=None, speakers=8, no_interval="for a test", slices=slices
        )
    small.rows[0].result["may_know_test_set"] = True
    return replace(small, comparisons=(comparison, few))


def test_intervals_groups_and_differences_are_taken_over(in_groups: Evaluated) -> None:
    found = in_groups.content()
    assert [(c["one"], c["other"]) for c in found["comparisons"]] == [("one", "other"), ("other", "one")]
    assert found["models"][0]["result"] == in_groups.rows[0].result


def test_a_speaker_of_few_words_does_not_lead_by_chance() -> None:
    errors = np.array([[1, 1, 0, 0], [15, 30, 0, 0], [1, 69, 0, 0]])  # WER 1, 0.5, 0.01; on average 0.17
    ranked = report_page.by_speaker(errors, ["once", "often", "good"])
    assert [name for name, *_ in ranked] == ["often", "once", "good"], "18.4/50, 4.4/21, 4.4/89"


def test_words_that_training_never_showed(small: Evaluated, tmp_path: Path) -> None:
    assert small.content()["unseen_words"] is None, "no training manifest"
    training = [replace(small.utterances[0], text="il caffè è qui")]
    write_manifest(tmp_path / "data" / "train_manifest.json", training)
    assert small.content()["unseen_words"] == ["là", "museo", "perché", "un"]


def test_utterances_of_a_large_set_lie_beside_the_page(small: Evaluated, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "run" / "report_data"
    everything = small.content()
    monkeypatch.setattr(report_page, "CHUNK_SIZE", 3)
    found = small.content()
    assert found["shown"] == []
    chunks = [read_chunk(tmp_path / "run" / name) for name in found["chunks"]]
    assert [len(chunk) for chunk in chunks] == [3, 1]
    assert [*chunks[0], *chunks[1]] == everything["shown"]
    (folder / "mine.js").touch()
    small.utterances[3] = replace(small.utterances[3], sentence="another")
    changed = small.content()["chunks"]
    assert changed[0] == found["chunks"][0] and changed[1] != found["chunks"][1]
    assert {path.name for path in folder.iterdir()} == {"mine.js", *(Path(name).name for name in changed)}
    (folder / "mine.js").unlink()
    monkeypatch.undo()
    assert small.content()["chunks"] == []
    assert not folder.exists()


def read_chunk(path: Path) -> list[dict[str, Any]]:
    (found,) = re.findall(r"addUtterances\((.*)\);\n", path.read_text(encoding="utf-8"))
    return json.loads(found)


def test_audio_is_embedded_or_linked_by_its_length(small: Evaluated, tmp_path: Path) -> None:
    found = small.content()
    assert found["audio"] == "embedded"
    decoded, rate = decode(found["shown"][0]["audio"])
    assert (rate, len(decoded) / rate) == (16000, pytest.approx(0.5, abs=0.1))
    (tmp_path / "data" / "wavs" / "clip 1#.wav").write_bytes(b"no audio")
    assert [bool(shown["audio"]) for shown in small.content()["shown"]] == [True, False, True, True]

    long = [replace(u, duration=500.0) for u in small.utterances]
    linked = replace(small, utterances=long).content()
    assert linked["audio"] == "linked"
    assert linked["shown"][1]["audio"] == "../data/wavs/clip%201%23.wav"


def test_audio_in_shards_is_embedded_too_and_never_linked(small: Evaluated, tmp_path: Path) -> None:
    loose, folder = small.content(), tmp_path / "packed"
    folder.mkdir()
    exact = [replace(u, duration=0.5) for u in small.utterances]
    stamps = {u.audio_filepath: "" for u in exact}
    shard_writer.pack_dataset(tmp_path / "data", dict.fromkeys(SPLITS, exact), stamps, {}, folder)
    utterances = read_manifest(folder / "test_manifest.json")
    packed = replace(small, config=replace(small.config, dataset=replace(small.config.dataset, shards=str(folder))))
    found = replace(packed, utterances=utterances).content()
    assert [shown["audio"] for shown in found["shown"]] == [shown["audio"] for shown in loose["shown"]]
    long = [replace(u, duration=500.0) for u in utterances]
    found = replace(packed, utterances=long).content()
    assert found["audio"] == "packed" and not any(shown["audio"] for shown in found["shown"])


def decode(mp3: str) -> tuple[np.ndarray, int]:
    return soundfile.read(BytesIO(b64decode(mp3)))


def test_speakers_are_cut_to_what_tells_them_apart() -> None:
    assert report_page.short_names(["a" * 128, "b" * 128, ""]) == ["a" * 8, "b" * 8, ""]
    assert report_page.short_names(["x" * 9 + "a", "x" * 9 + "b"]) == ["x" * 9 + "a", "x" * 9 + "b"]


@pytest.mark.parametrize(
    ("release", "code"), [("cv-corpus-24.0/it", "it"), ("cv/sv-SE", "sv-SE"), ("", ""), ("a/my corpus", "")]
)
def test_the_language_is_that_of_the_release(release: str, code: str) -> None:
    assert report_page.language(release) == code


EXECUTABLE = chromium.find()
in_a_browser = pytest.mark.skipif(
    EXECUTABLE is None,
    reason="no Chromium or Chrome here; on Debian and Ubuntu: apt-get install chromium-headless-shell",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    with chromium.running(EXECUTABLE, tmp_path_factory.mktemp("profile")) as running:
        yield running


def numbers(shown: chromium.Page) -> list[int]:
    """Of the utterances on the page, from above."""
    return [int(heading.removeprefix("No. ")) for heading in shown.texts("article h3")]


@in_a_browser
def test_a_reader_sorts_and_filters(small: Evaluated, browser: chromium.Browser) -> None:
    shown = browser.open(small.write())
    assert shown.texts("h1") == ["demo: where the models fail"]
    assert shown.texts("#model option") == ["one", "other"]
    assert shown.run("document.querySelector('#model').value") == "1", "the model with the lowest WER"
    shown.choose("#model", "0")
    assert numbers(shown) == [3, 1, 4, 2], "WER: 1 with a CER of 1, 1, 1/2, 0"
    shown.choose("#sort", "loss")
    assert numbers(shown) == [4, 3, 2, 1]
    shown.click("#reversed")
    assert numbers(shown) == [1, 2, 3, 4]
    shown.click("#errors")
    assert numbers(shown) == [1, 3, 4]
    shown.click("button[type=reset]")
    shown.wait("document.querySelectorAll('article').length === 4")
    shown.type("#text", "CAFFÉ")
    assert numbers(shown) == [4], "what a model wrote is searched too"
    shown.click("button[type=reset]")
    shown.wait("document.querySelectorAll('article').length === 4")
    shown.type("#text", "Caffe")
    assert numbers(shown) == [4], "without an accent, any is as good"
    shown.type("#text", "xyz")
    assert numbers(shown) == []
    assert shown.texts("#nothing") == ["Nothing matches the text “Caffexyz”."]
    shown.click("button[type=reset]")
    shown.wait("document.querySelectorAll('article').length === 4")
    shown.type("#text", "perchè")
    assert numbers(shown) == [], "an accent must be there"
    shown.click("button[type=reset]")
    shown.wait("document.querySelectorAll('article').length === 4")
    shown.type("#text", "CAFFÉ")
    assert shown.texts("#status") == ["1 of 4 utterances, 0.5 s"]
    shown.click("#all")
    shown.wait("document.querySelectorAll('article').length === 4")
    shown.type("#least", "0.6")
    assert numbers(shown) == [3, 1]
    shown.choose("#speaker", "00000000")
    assert numbers(shown) == [1]
    assert shown.complaints() == []


@in_a_browser
def test_intervals_groups_and_differences_are_shown(in_groups: Evaluated, browser: chromium.Browser) -> None:
    shown = browser.open(in_groups.write())
    assert shown.texts("#table tbody tr:first-child td:nth-child(4) small") == ["[0.100, 0.900]"]
    assert shown.texts("#differences li") == [
        "one minus other: WER −0.5000 [−0.700, −0.200], not explained by the choice of speakers (p = 0.016, 8 "
        "speakers); MAPSSWE p = 0.25, 40 segments.",
        "other minus one: WER −0.5000, undecided: with 3 speakers and 2 pairs p is at least 0.5.",
    ]
    footnotes = shown.texts("#footnotes")[0]
    assert "In brackets: 95 % intervals, bootstrap-t over 8 speakers." in footnotes
    assert "Where there is no interval: for a test." in footnotes
    assert "corrected for 2 pairs (Holm). One run is one run" in footnotes
    assert "one: Published by NVIDIA" in footnotes and "other: Published by NVIDIA" not in footnotes
    shown.choose("#model", "0")
    assert shown.texts("#slices th[scope=rowgroup]") == ["gender", "speakers, the highest WER first"]
    widths = shown.run("[...document.querySelectorAll('#slices .bar')].map((bar) => bar.firstChild.style.width)")
    assert widths[:2] == ["50%", "25%"], "the widest is the speaker with a WER of 1"
    assert shown.texts("nav a") == ["Results", "Training", "Groups", "Confusions", "Words", "Utterances"]
    assert shown.texts("#training figcaption b") == ["one", "other"]
    assert shown.run("document.querySelector('#training .frozen').getBoundingClientRect().width") > 20
    assert shown.complaints() == []


@in_a_browser
def test_the_mean_of_several_runs_is_a_row(tmp_path: Path, browser: chromium.Browser) -> None:
    runs = evaluated(tmp_path, {"warm-1": ["a", "b c", "d"], "warm-2": ["a", "b", "x"]}, ["a", "b c", "d"])
    runs.config.evaluation.recipes = {"warm": ["1.nemo", "2.nemo"]}
    shown = browser.open(runs.write())
    assert shown.texts("#table tbody tr:last-child th") == ["warm (mean of 2 runs)"]
    assert shown.texts("#table tbody tr:last-child td:nth-child(4)") == [
        "0.2500± 5.502"
    ]  # 0 and 2 of 4; 12.706 · 0.354 · √1.5
    assert "±: how far a new run may lie" in shown.texts("#footnotes")[0]
    assert shown.texts("#model option") == ["warm-1", "warm-2"]
    assert shown.complaints() == []


@in_a_browser
def test_a_second_wer_is_a_column(small: Evaluated, browser: chromium.Browser) -> None:
    small.config.evaluation.second_wer = SecondWer.orthographic
    for number, row in enumerate(small.rows):
        second = {"second_wer": 0.5 + number / 4, "second_wer_interval": None, "second_wer_kind": "orthographic"}
        small.rows[number] = replace(row, result=row.result | second)
    shown = browser.open(small.write())
    assert shown.texts("#table thead th")[3:6] == ["WER", "WER, orthographic", "Substituted"]
    assert shown.texts("#table tbody td:nth-child(5)") == ["0.5000", "0.7500"]
    assert shown.texts("#table tbody td.best:nth-child(5)") == ["0.5000"]
    assert "WER, orthographic: words as they stand in the sentences" in shown.texts("#footnotes")[0]
    assert shown.complaints() == []


@in_a_browser
def test_errors_are_read_without_colour(small: Evaluated, browser: chromium.Browser) -> None:
    shown = browser.open(small.write())
    shown.choose("#model", "0")
    assert shown.texts("#u1 .sub .r") == ["perché", "è"]
    assert shown.texts("#u1 .sub .h") == ["perche", "e"]
    assert shown.texts("#u1 .sub .h u") == ["e", "e"]
    assert shown.texts("#u1 .ins .h") == ["[casa]"]
    assert shown.texts("#u3 .del .r") == ["un", "museo"]
    decorated = "getComputedStyle(document.querySelector('{}')).textDecorationLine"
    assert shown.run(decorated.format("#u3 .del .r")) == "line-through"
    assert shown.run(decorated.format("#u1 .sub .h")) == "underline"
    assert "Reference: perché è là. Written: perche e là casa." in shown.run(
        "document.querySelector('#u1').textContent"
    )
    assert shown.run("document.querySelector('#u1 .said').lang") == "it"


@in_a_browser
def test_an_example_is_followed_and_models_are_compared(small: Evaluated, browser: chromium.Browser) -> None:
    shown = browser.open(small.write())
    shown.choose("#model", "0")
    assert shown.texts("#lists tr:has(a[href='#u4']) th") == ["è → é", "è → é", "caffè → caffé"], (
        "letters, accents, words"
    )
    shown.click("#lists a[href='#u4']")
    shown.wait("document.querySelectorAll('article').length === 1")
    assert numbers(shown) == [4]
    shown.click("#all")
    shown.wait("document.querySelectorAll('article').length === 4")
    assert shown.run("document.querySelector('#sort [value=worse]').disabled")
    shown.choose("#other", "1")
    shown.choose("#sort", "worse")
    assert numbers(shown) == [1, 3, 4, 2], "3, 2, 1 and 0 errors more"
    assert shown.texts("#u1 .said > small") == ["one: WER 1.000", "other: WER 0.000"]
    shown.click("#slices button")
    assert numbers(shown) == [3], "the speaker with the highest WER"


@in_a_browser
@pytest.mark.parametrize("is_embedded", [True, False], ids=["embedded", "linked"])
def test_audio_plays_from_the_disk(small: Evaluated, browser: chromium.Browser, is_embedded: bool) -> None:
    if not is_embedded:
        small = replace(small, utterances=[replace(u, duration=500.0) for u in small.utterances])
    shown = browser.open(small.write())
    assert not [address for address in shown.requests() if re.search(r"\.wav$|^data:audio", address)], "not asked for"
    assert "The audio is " + ("in this file" if is_embedded else "linked") in shown.texts("#audio-note")[0]
    assert shown.texts("#u2 .play") == ["▶ 0.5 s" if is_embedded else "▶ 500.0 s"], "how long, before it plays"
    shown.click("#u2 .play")
    shown.run("window.player = document.querySelector('#u2 audio')")
    shown.wait("player.ended || player.currentTime > 0.2")
    assert shown.run("player.readyState >= 2 && player.error === null && Math.abs(player.duration - 0.5) < 0.1")
    assert {address.partition(":")[0] for address in shown.requests()} <= {"file", "data"}
    assert shown.complaints() == []


@in_a_browser
def test_a_wav_that_is_gone_is_said(small: Evaluated, browser: chromium.Browser, tmp_path: Path) -> None:
    small = replace(small, utterances=[replace(u, duration=500.0) for u in small.utterances])
    path = small.write()
    (tmp_path / "data" / "wavs" / "clip 1#.wav").unlink()
    shown = browser.open(path)
    shown.click("#u2 .play")
    shown.wait("document.querySelector('#u2').innerText.includes('the audio is not where it was')")


@in_a_browser
@pytest.mark.parametrize(("width", "chunks"), [(1280, 0), (390, 3)], ids=["wide, in one file", "phone, in several"])
def test_nothing_of_the_data_runs_or_breaks_the_page(
    tmp_path: Path, browser: chromium.Browser, width: int, chunks: int, monkeypatch
) -> None:
    monkeypatch.setattr(report_page, "CHUNK_SIZE", 4 if chunks else 9)
    name = "<img src=x onerror='window.ran=7'>" + "long" * 20
    given = evaluated(tmp_path, {name: HOSTILE[::-1], "other": [*HOSTILE[:-1], ""]}, HOSTILE)
    given.config.name = given.config.evaluation.note = "</title><script>window.ran = 6</script>"
    shown = browser.open(given.write(), width, 844)
    shown.wait("document.querySelectorAll('article').length === 9")
    shown.choose("#other", "0")
    assert shown.run("window.ran") is None
    assert shown.complaints() == []
    assert shown.texts("#note") == ["</title><script>window.ran = 6</script>"]
    assert shown.run("document.querySelectorAll('script, img').length") == 2 + chunks
    assert shown.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    beyond = """[...document.querySelectorAll("article *")].filter((e) => e.checkVisibility()
      && e.getBoundingClientRect().right > innerWidth && !e.closest(".unseen")).length"""
    assert shown.run(beyond) == 0, "cut off at the edge"
    for number, text in enumerate(HOSTILE, start=1):
        written = shown.run(f"[...document.querySelectorAll('#u{number} .said:last-of-type .words > span > .r')]"
                            ".map((e) => e.textContent).filter(Boolean)")  # fmt: skip
        assert written == [word.strip() for word in text.split(" ") if word.strip()]


@in_a_browser
def test_a_page_without_its_folder_says_what_is_missing(
    small: Evaluated, browser: chromium.Browser, monkeypatch
) -> None:
    monkeypatch.setattr(report_page, "CHUNK_SIZE", 3)
    path = small.write()
    (path.parent / small.content()["chunks"][0]).unlink()
    shown = browser.open(path)
    shown.wait("document.querySelectorAll('article').length === 1")
    assert shown.texts("#choice") == [
        "3 utterances of 4 cannot be shown: the folder report_data must lie beside this page, as it was made."
    ]
    assert shown.texts("#table tbody th") == ["one", "other"]


@in_a_browser
@pytest.mark.parametrize("chunk_size", [4, 3], ids=["in one file", "in several"])
def test_the_pages_policy_keeps_a_strange_script_from_running(
    small: Evaluated, browser: chromium.Browser, chunk_size: int, monkeypatch
) -> None:
    monkeypatch.setattr(report_page, "CHUNK_SIZE", chunk_size)
    path = small.write()
    path.write_text(path.read_text(encoding="utf-8").replace("</main>", "<script>window.ran = 8</script></main>"))
    shown = browser.open(path)
    assert shown.run("window.ran") is None
    assert any("Content Security Policy" in json.dumps(complaint) for complaint in shown.complaints())


NEAREST = """[...document.querySelectorAll("#cloud a")].map((a) => a.getAttribute("aria-label"))"""


@in_a_browser
def test_words_lead_to_the_sentences_they_are_wrong_in(
    small: Evaluated, browser: chromium.Browser, tmp_path: Path
) -> None:
    write_manifest(tmp_path / "data" / "train_manifest.json", [replace(small.utterances[0], text="è là qui il caffè")])
    shown = browser.open(small.write())
    shown.choose("#model", "0")
    assert shown.texts("#words-about") == [
        "8 words in the references, 44.4 % of their occurrences right. "
        "3 of them are in no training sentence: 0.0 % right, against 66.7 % of the others."
    ]
    rows = shown.run(
        "[...document.querySelectorAll('#words-table tbody tr')].map((r) => [...r.cells].map((c) => c.innerText))"
    )
    # 20 words with an error rate of 5/9 added: 12.1/21 for one that is wrong once of once, 12.1/22 for è
    assert [row[1:4] for row in rows] == [["1", "1", "0.0 %"]] * 4 + [["2", "1", "50.0 %"]]
    assert [row[0].split()[0] for row in rows] == ["caffè", "museo", "perché", "un", "è"]
    shown.click("#unseen")
    assert shown.texts("#words-table a[lang=it]") == ["museo", "perché", "un"]
    shown.click("#unseen")
    shown.run("[...document.querySelectorAll('#words-table a')].find((a) => a.textContent === 'è').click()")
    shown.wait("document.querySelectorAll('article').length === 1")
    assert numbers(shown) == [1], "è is in 2 as well, but right there"
    assert shown.texts("#status") == ["1 of 4 utterances, 0.5 s, with the word “è”, misrecognised"]
    assert shown.complaints() == []


@in_a_browser
def test_a_circle_leads_to_the_utterances_of_its_error_rates(small: Evaluated, browser: chromium.Browser) -> None:
    shown = browser.open(small.write())
    shown.choose("#model", "0")
    assert shown.texts("#scatter-about") == [
        "Of 4 utterances, one has fewer word errors in 0, other in 3, and both have as many in 1."
    ]
    assert shown.run(NEAREST) == [
        "2 utterances: WER 1.0 by one, 0.0 by other",
        "1 utterance: WER 0.0 by one, 0.0 by other",
        "1 utterance: WER 0.5 by one, 0.0 by other",
    ]
    shown.click("#cloud a:first-of-type circle")
    shown.wait("document.querySelectorAll('article').length === 2")
    assert numbers(shown) == [3, 1]
    assert shown.texts("#u1 .said > small") == ["one: WER 1.000", "other: WER 0.000"]


@in_a_browser
def test_a_link_keeps_what_was_chosen(small: Evaluated, browser: chromium.Browser) -> None:
    path = small.write()
    shown = browser.open(path)
    shown.choose("#model", "0")
    shown.choose("#other", "1")
    shown.choose("#sort", "worse")
    shown.click("#errors")
    shown.type("#text", "è")
    shown.wait("location.hash.includes('text')")
    link = shown.run("location.hash")
    assert link == "#model=one&other=other&text=%C3%A8&sort=worse&errors=1"
    again = browser.open(path, link=link)
    assert numbers(again) == [1, 4] and numbers(shown) == [1, 4]
    assert again.run("document.querySelector('#sort').value") == "worse"
    assert again.texts("#link-note") == [""]
    stranger = browser.open(path, link="#model=none&sort=toString&speaker=%3Cimg%20src%3Dx%3E&__proto__=1&text=qui")
    assert numbers(stranger) == [2]
    assert stranger.texts("#link-note") == [
        "The link names what this page does not have: model none, sort toString, speaker <img src=x>, __proto__ 1."
    ]
    assert browser.open(path, link="#u9").texts("#nothing") == ["Nothing matches number 9."]
    assert stranger.complaints() == []


@in_a_browser
def test_what_is_found_is_downloaded_as_csv(tmp_path: Path, browser: chromium.Browser) -> None:
    texts = ["=1+1", "+1", "-1", "@sum(a1)", "\t=1+1", 'says "so", twice', "plain è"]
    given = evaluated(tmp_path, {"=cmd()": texts}, texts)
    given.utterances[6] = replace(given.utterances[6], speaker="=speaker")
    shown = browser.open(given.write())
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    shown.choose("#sort", "number")
    shown.click("#download")
    shown.wait("new Promise((done) => setTimeout(() => done(true), 50))")
    downloaded = tmp_path / "utterances.csv"
    end = time.monotonic() + chromium.PATIENCE_S
    while not downloaded.is_file() and time.monotonic() < end:
        time.sleep(0.02)
    written = downloaded.read_bytes()
    assert written.startswith(b"\xef\xbb\xbf") and written.endswith(b"\r\n")
    with downloaded.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == ["1", "2", "3", "4", "5", "6", "7"]
    assert [row["sentence"] for row in rows][:4] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)"]
    assert rows[4]["sentence"] == "'\t=1+1"
    assert rows[5]["reference"] == rows[5]["'=cmd()"] == 'says "so", twice'
    assert (rows[6]["speaker"], rows[6]["reference"], rows[6]["WER of =cmd()"]) == ("'=speaker", "plain è", "0")
    cells = [cell for row in rows for cell in [*row, *row.values()]]
    assert not [cell for cell in cells if re.match(r"\s*[=+\-@]", cell)]
    assert shown.complaints() == []


@in_a_browser
def test_the_sound_is_drawn(tmp_path: Path, browser: chromium.Browser) -> None:
    """A tone of 2000 Hz in the second half: dark there, at a quarter of the height."""
    given = evaluated(tmp_path, {"one": ["a"]}, ["a"], seconds=1.0)
    samples = 0.3 * np.sin(2 * np.pi * 2000 * np.arange(16000) / 16000) * (np.arange(16000) >= 8000)
    soundfile.write(tmp_path / "data" / "wavs" / "clip 0#.wav", samples, 16000)
    shown = browser.open(given.write())
    shown.click(".play")
    shown.wait("document.querySelectorAll('.drawing canvas').length === 2 && document.querySelector('.scale') !== null")
    shown.wait("document.querySelector('.drawing canvas').width === 900")
    drawings = shown.run("""[...document.querySelectorAll('.drawing canvas')].map((canvas) => {
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const [red, opaque] = [0, 3].map((channel) => [...data].filter((_, i) => i % 4 === channel));
        return [canvas.width, canvas.height, red, opaque];
    })""")
    (width, height, _, opaque), (frames, bins, red, _) = drawings
    painted = np.array(opaque).reshape(height, width).astype(bool).sum(axis=0)
    assert painted[: width // 3].max() < 10 < painted[2 * width // 3 : 9 * width // 10].min()
    assert (bins, 95 <= frames <= 110) == (256, True)
    darkness = -np.array(red).reshape(bins, frames)[::-1].astype(int)  # light theme: ink is dark
    late = darkness[:, 2 * frames // 3 : 9 * frames // 10].mean(axis=1)
    assert abs(int(late.argmax()) - 64) <= 1, "2000 Hz is bin 64 of 31.25 Hz"
    assert late.max() - darkness[64, : frames // 3].max() > 100
    assert shown.complaints() == []


AXE = files(axe_core_python) / "axe.min.js"


@in_a_browser
@pytest.mark.parametrize(("width", "is_dark"), [(1400, False), (390, True)], ids=["wide light", "phone dark"])
def test_the_page_is_accessible(in_groups: Evaluated, browser: chromium.Browser, width: int, is_dark: bool) -> None:
    """What axe-core checks of WCAG 2.1 A and AA and of its own best practices."""
    shown = browser.open(in_groups.write(), width, 900, is_dark)
    shown.choose("#model", "0")
    shown.choose("#other", "1")
    shown.click("#u1 .play")
    shown.wait("document.querySelector('.drawing') !== null")
    shown.run(AXE.read_text(encoding="utf-8"))
    result = shown.run("axe.run().then(({violations, passes}) => ({passes: passes.length, violations: "
                       "violations.map(({id, nodes}) => [id, nodes.map(({html}) => html)])}))")  # fmt: skip
    assert result["violations"] == []
    assert result["passes"] > 30


@in_a_browser
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_text_has_contrast(small: Evaluated, browser: chromium.Browser, is_dark: bool) -> None:
    """4.5 to 1, WCAG 2.2 success criterion 1.4.3."""
    shown = browser.open(small.write(), dark=is_dark)
    shown.choose("#model", "0")
    colours = shown.run("""
        [...document.querySelectorAll("p, th, td, a, small, h2, li, label, .r, .h, .legend span, .facts span, button")]
          .filter((e) => e.textContent.trim() && e.checkVisibility())
          .map((e) => {
            let behind = e;
            while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
            return [e.outerHTML.slice(0, 80), getComputedStyle(e).color, getComputedStyle(behind).backgroundColor];
          })""")
    assert len(colours) > 50
    for element, ink, paper in colours:
        lighter, darker = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (element, ink, paper)


def luminance(colour: str) -> float:
    """Relative luminance of rgb(…), after WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
              for c in (int(c) / 255 for c in re.findall(r"\d+", colour)[:3])]  # fmt: skip
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@in_a_browser
def test_more_utterances_than_the_page_holds(tmp_path: Path, browser: chromium.Browser, record_property) -> None:
    rng = Random(0)
    words = ["".join(rng.choices("aeiouctlmnè", k=rng.randint(2, 8))) for _ in range(3000)]
    texts = [" ".join(rng.choices(words, k=11)) for _ in range(2100)]
    said = [" ".join(w if rng.random() < 0.85 else rng.choice(words) for w in text.split()) for text in texts]
    given = evaluated(tmp_path, {"one": said, "other": texts}, texts, seconds=1.0)
    start = time.monotonic()
    path = given.write()
    record_property("written_s", time.monotonic() - start)
    start = time.monotonic()
    shown = browser.open(path, 390, 844)
    record_property("opened_s", time.monotonic() - start)
    shown.wait("document.querySelectorAll('article').length")
    first = len(numbers(shown))
    assert first < 200, "not all at once"
    shown.run("document.querySelector('#more').scrollIntoView()")
    shown.wait(f"document.querySelectorAll('article').length > {first}")
    shown.choose("#model", "0")
    for character in "con":
        start = time.monotonic()
        shown.type("#text", character)
        shown.run("new Promise(requestAnimationFrame)")
        record_property("keystroke_s", time.monotonic() - start)
    expected = sum("con" in f"{text}\n{hypothesis}" for text, hypothesis in zip(texts, said, strict=True))
    assert shown.texts("#status")[0].startswith(f"{expected} of 2,100 utterances")
    assert shown.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert shown.complaints() == []
