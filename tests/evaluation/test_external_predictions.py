"""What another system wrote, matched to the utterances of the manifests."""

import json
from pathlib import Path

import pytest

from conftest import ROOT, Script, assert_refused
from finetuning.config.loading import load_config
from finetuning.config.schema import System
from finetuning.data.manifest import Utterance
from finetuning.errors import UserError
from finetuning.evaluation import results
from finetuning.evaluation.external_predictions import check_not_overwritten, read_predictions
from small import write_clips

MODEL = "models/demo/quartznet_small_en.nemo"
UTTERANCES = [Utterance("wavs/a.1.wav", 1.0, "ciao"), Utterance("wavs/b.wav", 2.0, "è così")]
PATHS = '{"audio_filepath": "%s", "pred_text": "%s"}\n'


def read(path: Path, content: str | bytes) -> list[str]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    manifest = path.parent / "it" / "test_manifest.json"
    found, digest = read_predictions(System("s", str(path)), {manifest: UTTERANCES})
    assert len(digest) == 64
    assert [(p.audio_filepath, p.text, p.loss) for p in found[manifest]] == [
        (u.audio_filepath, u.text, None) for u in UTTERANCES
    ]
    return [p.pred_text for p in found[manifest]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.jsonl", PATHS % ("x/b.mp3", "Così.") + PATHS % ("wavs/a.1.wav", "Ciao")),
        ("s.json", '\ufeff{"path": "a.1", "text": "Ciao"}\n\n{"path": "b", "text": "Così."}\n'),
        ("s.csv", 'path;text\nC:\\x\\a.1.wav;"Ciao"\nb.flac;Così.\n'),
        ("s.tsv", "path\ttext\na.1.wav\tCiao\nb\tCosì.\n"),
        ("s.ctm", ";; by hand\na.1 1 0.0 0.5 Ciao 0.9\nb 1 0 0.4 Così.\n"),
    ],
)
def test_each_format_is_matched_by_path_name_or_stem(tmp_path: Path, name: str, content: str) -> None:
    assert read(tmp_path / name, content) == ["Ciao", "Così."]


def test_parts_are_joined_in_order_of_time_and_nothing_can_be_stated(tmp_path: Path) -> None:
    ctm = "b 1 0.5 0.1 così\nb 1 0.1 0.1 è\na.1 1 0 0 <eps>\n"
    assert read(tmp_path / "s.ctm", ctm) == ["", "è così"]
    parts = [("b", 4.5, " così"), ("b", 0, "è"), ("a.1", 0, "")]
    lines = [json.dumps({"audio_filepath": path, "offset": at, "pred_text": text}) for path, at, text in parts]
    assert read(tmp_path / "s.jsonl", "\n".join(lines)) == ["", "è così"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("s.jsonl", PATHS % ("b", "x"), r"1 of 2 utterances have no prediction \(wavs/a.1.wav\)"),
        ("s.jsonl", PATHS % ("b", "x") * 2 + PATHS % ("a.1", ""), r"1 have more than one \(wavs/b.wav\)"),
        ("s.jsonl", PATHS % ("b", "x") + PATHS % ("b.wav", "x") + PATHS % ("a.1", ""), r"1 have more than one"),
        ("s.jsonl", PATHS % ("b", "x") + PATHS % ("a.1", "") + PATHS % ("c", ""), r"1 are of no utterance .* \(c\)"),
        ("s.jsonl", "", "holds no prediction"),
        ("s.jsonl", PATHS % ("b", "x") + "{", "line 2 does not hold audio_filepath and pred_text"),
        ("s.jsonl", PATHS % ("b", "x") + '{"audio_filepath": "a.1"}', "line 2 does not hold"),
        (
            "s.jsonl",
            '{"audio_filepath": "b", "hyp": "x"}',
            "needs audio_filepath or path and pred_text or text",
        ),
        ("s.jsonl", b'{"path": "b", "text": "\xe8"}', "line 1 is not UTF-8"),
        ("s.csv", "b,ciao\n", "it has: b, ciao|holds no prediction"),
        ("s.csv", "path,text\nb,ciao,tutti\n", "line 2 does not hold path and text"),
        ("s.ctm", "b 1 zero 0.1 x\n", "line 1 is not utterance, channel, start, duration and word"),
        ("s.ctm", "b 1 0 0.1 x\nb 2 0 0.1 y\n", "words of two channels"),
        ("s.ctm", "a.1 1 0 0 x\nb 1 0 0.1 x\nb 1 0 0.1 x\n", "1 have more than one"),
        ("s.txt", "x", "must end in .jsonl"),
        ("s.jsonl", '{"path": "b", "text": "è così"}\n{"path": "a.1", "text": "ciao"}', "the references themselves"),
    ],
)
def test_what_is_incomplete_or_broken_is_refused(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(tmp_path / name, content)


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ("{name: a, predictons: x.csv}", "did you mean evaluation.models\\[\\].predictions"),
        ("{name: a}", "does not state evaluation.models\\[0\\].predictions"),
        ("{name: a/b, predictions: x.csv}", "name must be the name of a file"),
        ("{name: a, predictions: x.csv}, {name: A, predictions: y.csv}", "would both be called A.*give another name"),
        ("x/a.nemo, {name: a, predictions: y.csv}", "x/a.nemo and y.csv would both be called a; give another name"),
        ("{name: a+LM, predictions: y.csv}", "give another name"),
        ("{name: a+Boost, predictions: y.csv}", "as the row of a model with boosted words is; give another name"),
    ],
)
def test_a_wrong_mapping_is_refused(models: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        results.row_names(load_config(str(ROOT / "configs/demo.yaml"), [f"evaluation.models=[{models}]"]))


@pytest.mark.parametrize("name", ["a.json", "test_x/a.json", "a.by_loss.tsv", "."])
def test_predictions_that_a_result_would_replace_are_refused(tmp_path: Path, name: str) -> None:
    config = load_config(str(ROOT / "configs/demo.yaml"), [f"evaluation.results={tmp_path}"])
    with pytest.raises(UserError, match=r"lies in evaluation\.results, where evaluate\.py writes; move it"):
        check_not_overwritten(System("a", str(tmp_path / name)), config)
    check_not_overwritten(System("a", str(tmp_path / "a.jsonl")), config)


@pytest.mark.nemo
def test_what_transcribe_writes_is_a_row_with_the_models_own_texts(
    sample_archive: Path, run_script: Script, tmp_path: Path
) -> None:
    write_clips(sample_archive, tmp_path / "it", 4)
    written = tmp_path / "other.jsonl"
    command = ["--format", "jsonl", "--config", "configs/demo.yaml"]
    manifest = tmp_path / "it" / "test_manifest.json"
    transcribed = run_script("transcribe.py", str(ROOT / MODEL), str(manifest), *command)
    assert transcribed.returncode == 0, transcribed.stderr
    named = [[json.loads(line)["audio_filepath"] for line in text.splitlines()] for text in
             (transcribed.stdout, manifest.read_text(encoding="utf-8"))]  # fmt: skip
    assert named[0] == named[1], "in the manifest's own words and order"
    written.write_text(transcribed.stdout, encoding="utf-8")
    given = ["--config", "configs/demo.yaml", "evaluation.decoder=greedy", f"dataset.output={tmp_path}/it"]
    given += [f"evaluation.predictions={tmp_path}/run/predictions", f"evaluation.results={tmp_path}/results"]
    rows = f"evaluation.models=[{MODEL}, {{name: other, predictions: {written}}}]"
    evaluated = run_script("evaluate.py", *given, rows)
    assert evaluated.returncode == 0, evaluated.stderr
    own, other = (
        json.loads((tmp_path / "results" / f"{name}.json").read_text()) for name in ("quartznet_small_en", "other")
    )
    assert other["decoder"] == {"name": "external"}
    assert (other["wer"], other["loss"], other["loss_left_out"]) == (own["wer"], None, 0)
    texts = [
        sorted(json.loads(line)["pred_text"] for line in path.read_text(encoding="utf-8").splitlines())
        for path in (written, tmp_path / "run" / "predictions" / "quartznet_small_en" / "predictions.jsonl")
    ]
    assert texts[0] == texts[1]
    assert "Written by another system: no loss" in evaluated.stdout
    assert "quartznet_small_en minus other: WER +0.0000" in evaluated.stdout
    assert '"model":"other"' in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    written.write_text("".join(transcribed.stdout.splitlines(keepends=True)[1:]), encoding="utf-8")
    refused = run_script("evaluate.py", *given, f"evaluation.models=[{{name: other, predictions: {written}}}]")
    assert_refused(refused, "other is not evaluated", "1 of 4 utterances have no prediction (wavs/")
