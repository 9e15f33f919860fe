"""Step 3 as a user runs it."""

import json
import re
import runpy
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, Script, assert_refused, start_by_slurm
from finetuning.data.manifest import read_manifest
from finetuning.decoding import prediction_cache
from finetuning.errors import UserError
from forked import Forked
from small import ENGLISH, ITALIAN, lively_model, write_clips

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # small matrices: a second thread costs more than it does


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with english.nemo, italian.nemo, a file that is no model, one whose weights have another shape and one
    that fails when it is run: its encoder is given three frames at a time.
    """
    from finetuning.model.ctc_model import save_model

    folder = tmp_path_factory.mktemp("models")
    save_model(lively_model(ENGLISH), folder / "english.nemo")
    save_model(lively_model(ITALIAN), folder / "italian.nemo")
    (folder / "broken.nemo").write_text("hello")
    with_config(folder / "shape.nemo", "features: 64", "features: 32")
    with_config(folder / "odd.nemo", "frame_splicing: 1", "frame_splicing: 3")
    return folder


def with_config(path: Path, old: str, new: str) -> None:
    """A copy of english.nemo, with another text in the place of one of its configuration."""
    with tarfile.open(path.with_name("english.nemo")) as given, tarfile.open(path, "w") as taken:
        for member in filter(tarfile.TarInfo.isfile, given):
            content = given.extractfile(member).read()
            if member.name.endswith("model_config.yaml"):
                assert old.encode() in content
                content = content.replace(old.encode(), new.encode())
            member.size = len(content)
            taken.addfile(member, BytesIO(content))


@pytest.fixture(scope="module")
def data(sample_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder with 8 clips of 4 speakers, each three times in the manifest, the last time with too much text.

    A speaker and another's sentence are in the training manifest.
    """
    folder = tmp_path_factory.mktemp("data") / "it"
    manifest = write_clips(sample_archive, folder, 8)
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()] * 3
    lines = [{**line, "speaker": f"speaker {number % 4}"} for number, line in enumerate(lines)]
    lines[-1] = {**lines[-1], "text": "ab" * 200}
    seen = {"audio_filepath": "gone.wav", "duration": 1.0, "text": lines[1]["text"], "speaker": "speaker 2"}
    (folder / "train_manifest.json").write_text(json.dumps(seen, ensure_ascii=False) + "\n", encoding="utf-8")
    manifest.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return folder


def options(out: Path, data: Path, *models: str) -> list[str]:
    return [
        f"dataset.output={data}",
        f"evaluation.models=[{','.join(models)}]",
        f"evaluation.predictions={out}/predictions",
        f"evaluation.results={out}/results",
        "evaluation.batch_size=1",
        "evaluation.published=[{model: italian, loss: 1, cer: 0.1, wer: 0.2}]",
        "evaluation.published_on=other data",
        "evaluation.note=Untrained.",
    ]


@pytest.fixture(scope="module")
def evaluated(
    run_script: Script, models: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Two models that are there, one that is not, one that is none, and two that raise what nobody thinks of."""
    out = tmp_path_factory.mktemp("evaluated")
    names = [str(models / f"{name}.nemo") for name in ("english", "gone", "broken", "shape", "odd", "italian")]
    return out, run_script("evaluate.py", *options(out, data, *names), cwd=out, env=ONE_THREAD)


@pytest.mark.nemo
def test_the_models_that_are_there_are_evaluated(evaluated: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, process = evaluated
    assert_refused(process, "gone is not evaluated: there is no model", "train.py")
    assert_refused(process, "broken is not evaluated: ", "broken.nemo is not a .nemo file")
    assert_refused(process, "shape is not evaluated: ", "size mismatch")
    assert_refused(process, "odd is not evaluated: ", "its encoder wants 64 features, its preprocessor makes 192")
    assert_refused(process, "not evaluated, for the reasons above: gone, broken, shape, odd")
    assert sorted(path.name for path in (out / "results").iterdir()) == [
        "comparisons.json",
        "english.json",
        "italian.json",
    ]
    for line in ("| Model ", "| english [1] [2]", "| italian [", "The vocabulary lacks: à è é ì í î ò ó ù ú.",
                 "leaves out 1 of 24 utterances", "Published figures, on other data, drawn",
                 "NeMo's own test would say WER ", "No interval of CER and WER: 4 speakers, fewer than 6.",
                 "undecided: with 4 speakers p is at least 0.12",
                 "english minus italian: WER ", "| speaker seen in training      |    6 (25%) |",
                 "| sentence seen in training     |    3 (12%) |", "Real-time factor, processing time / duration",
                 "italian, ours minus published: ", "Untrained.", f"results in {out}/results",
                 f"by utterance: {out}/report.html"):  # fmt: skip
        assert line in process.stdout
    assert '"model":"italian"' in (out / "report.html").read_text(encoding="utf-8")
    for chatter in ("NeMo W", "NeMo I", "OneLogger", "Warning"):
        assert chatter not in process.stderr + process.stdout


@pytest.mark.nemo
def test_predictions_are_in_manifest_order_with_the_manifests_own_text(
    evaluated: tuple[Path, subprocess.CompletedProcess[str]], data: Path
) -> None:
    out, _ = evaluated
    manifest = [json.loads(line) for line in (data / "test_manifest.json").read_text(encoding="utf-8").splitlines()]
    for name in ("english", "italian"):
        text = (out / "predictions" / name / "predictions.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        shared = ("audio_filepath", "duration", "text")
        assert [[line[key] for key in shared] for line in lines] == [[line[key] for key in shared] for line in manifest]
        assert lines[0].keys() == {"audio_filepath", "duration", "text", "pred_text", "loss"}
        assert lines[0]["pred_text"] == lines[8]["pred_text"] != lines[1]["pred_text"]
        assert lines[-1]["loss"] is None
        result = json.loads((out / "results" / f"{name}.json").read_text(encoding="utf-8"))
        assert result["words"] == sum(len(line["text"].split()) for line in manifest)
        assert result["characters"] == sum(len(line["text"]) for line in manifest)
        losses = [line["loss"] for line in lines if line["loss"] is not None]
        assert result["loss"] == pytest.approx(sum(losses) / 23, abs=1e-4)
        assert (result["speakers"], result["wer_interval"], result["cer_interval"]) == (4, None, None)
        spent = json.loads((out / "predictions" / name / "inference.json").read_text())
        assert spent["audio_seconds"] == pytest.approx(sum(line["duration"] for line in manifest))
        assert (spent["device"], spent["by"], spent["threads"], spent["seconds"] > 0) == ("cpu", "openvino", 1, True)
        assert (result["loss_left_out"], result["letters_missing"]) == (1, "àèéìíîòóùú" if name == "english" else "")


@pytest.mark.nemo
def test_again_nothing_is_run_and_the_bytes_are_the_same(
    evaluated: tuple[Path, subprocess.CompletedProcess[str]], run_script: Script, models: Path, data: Path
) -> None:
    out, first = evaluated
    before = {path: path.read_bytes() for path in (out / "results").iterdir()}
    names = [str(models / f"{name}.nemo") for name in ("english", "italian")]
    again = run_script("evaluate.py", *options(out, data, *names), cwd=models)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("predictions are reused") == 2
    assert "loading" not in again.stdout
    assert {path: path.read_bytes() for path in (out / "results").iterdir()} == before
    assert first.stdout.split("\n\n", 1)[1] == again.stdout.split("\n\n", 1)[1], "the same table"

    kept = out / "predictions" / "italian" / "predictions.jsonl"
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(lines[:-1]))
    made = run_script("evaluate.py", *options(out, data, *names), env=ONE_THREAD)
    assert made.returncode == 0, made.stderr
    assert "italian: predictions are made again (predictions.jsonl is not what was written there)" in made.stdout
    assert kept.read_bytes() == b"".join(lines)
    assert {path: path.read_bytes() for path in (out / "results").iterdir()} == before


@pytest.mark.slow
@pytest.mark.nemo
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    evaluated: tuple[Path, subprocess.CompletedProcess[str]],
    run_script: Script,
    models: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    part = tmp_path / "predictions" / "italian" / "predictions.jsonl.part"
    command = options(tmp_path, data, str(models / "italian.nemo"))
    process = Forked("evaluate.py", *command, env=ONE_THREAD)
    while process.poll() is None and not (part.is_file() and part.read_bytes().count(b"\n") > 2):
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (part.parent / "predictions.jsonl").exists(), "it was killed too late"
    whole = part.read_bytes()[: part.read_bytes().rindex(b"\n") + 1]
    part.write_bytes(whole + b'{"utterance": 3, "audio_fi')

    goes_on = run_script("evaluate.py", *command, env=ONE_THREAD)
    assert goes_on.returncode == 0, goes_on.stderr
    assert f"italian: resumes after {whole.count(bytes([10]))} of 24 utterances" in goes_on.stdout
    for name in ("results/italian.json", "predictions/italian/predictions.jsonl"):
        assert (tmp_path / name).read_bytes() == (evaluated[0] / name).read_bytes()
    assert not part.exists()


@pytest.mark.slow
@pytest.mark.nemo
def test_when_one_of_two_processes_is_killed_a_rerun_resumes_with_what_both_have_done(
    evaluated: tuple[Path, subprocess.CompletedProcess[str]],
    run_script: Script,
    models: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    work = tmp_path / "predictions" / "italian"
    command = options(tmp_path, data, str(models / "italian.nemo"))
    processes = start_by_slurm("evaluate.py", *command)
    share = work / "share-1" / "predictions.jsonl.part"
    while all(process.poll() is None for process in processes) and not (share.is_file() and share.stat().st_size):
        time.sleep(0.001)
    processes[1].kill()
    outputs = [process.communicate(timeout=60) for process in processes]
    ended = subprocess.CompletedProcess([], processes[0].returncode, *outputs[0])
    assert_refused(ended, "another process of those that share this task has ended", "rerun the same command")
    done = share.read_bytes().count(b"\n") + (work / "predictions.jsonl.part").read_bytes().count(b"\n")

    resumed = run_script("evaluate.py", *command, env=ONE_THREAD)
    assert resumed.returncode == 0, resumed.stderr
    assert f"italian: resumes after {done} of 24 utterances" in resumed.stdout
    for name in ("results/italian.json", "predictions/italian/predictions.jsonl"):
        assert (tmp_path / name).read_bytes() == (evaluated[0] / name).read_bytes()
    assert not share.parent.exists()


@pytest.mark.slow
@pytest.mark.nemo
def test_what_another_process_cannot_read_is_said_and_the_next_model_is_evaluated(
    models: Path, data: Path, tmp_path: Path
) -> None:
    """The second longest clip, which is the second process's first, is gone."""
    shutil.copytree(data, tmp_path / "it")
    durations = {u.audio_filepath: u.duration for u in read_manifest(data / "test_manifest.json")}
    gone = sorted(durations, key=durations.get)[-2]
    manifest = tmp_path / "it" / "test_manifest.json"
    first = manifest.read_text(encoding="utf-8").splitlines(keepends=True)[:8]
    manifest.write_text("".join(first), encoding="utf-8")
    (tmp_path / "it" / gone).write_bytes(b"RIFF")
    names = [str(models / f"{name}.nemo") for name in ("english", "italian")]
    processes = start_by_slurm("evaluate.py", *options(tmp_path, tmp_path / "it", *names))
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [2, 0], outputs
    for name in ("english", "italian"):
        assert f"{name} is not evaluated: process 1: cannot read {tmp_path / 'it' / gone}" in outputs[0][1]
    assert "evaluate.py: error: not evaluated, for the reasons above: english, italian" in outputs[0][1]


@pytest.mark.nemo
def test_the_time_of_an_interrupted_pass_is_added_up(models: Path, data: Path, tmp_path: Path) -> None:
    """Stopped by a wav that is gone, the last of six: those that are being computed then are not counted."""
    from finetuning.decoding.manifest_inference import run_inference
    from finetuning.model.ctc_model import restore_model

    shutil.copytree(data, tmp_path / "it")
    utterances, work = read_manifest(tmp_path / "it" / "test_manifest.json")[:6], tmp_path / "predictions"
    shortest = tmp_path / "it" / min(utterances, key=lambda u: u.duration).audio_filepath
    shortest.rename(tmp_path / "gone.wav")
    prediction_cache.prepare_folder(work, {})
    run = partial(
        run_inference, "m", restore_model(path := models / "italian.nemo"), path, utterances, tmp_path / "it", work, 2
    )

    def spent() -> dict[str, Any]:
        return json.loads((work / "inference.json").read_text())

    with pytest.raises(UserError, match="cannot read"):
        run()
    first, durations = spent(), sorted(u.duration for u in utterances)
    assert durations[-1] <= first["audio_seconds"] <= sum(durations[1:])
    (tmp_path / "gone.wav").rename(shortest)
    run()
    assert spent()["audio_seconds"] == pytest.approx(sum(durations))
    assert spent()["seconds"] > first["seconds"] > 0
    prediction_cache.prepare_folder(work, {"model": "another"})
    run()
    assert spent()["audio_seconds"] == pytest.approx(sum(durations)), "of the last pass alone"


@pytest.mark.nemo
def test_a_wav_that_was_changed_is_heard_again_and_one_that_was_cut_off_is_named(
    evaluated: tuple[Path, subprocess.CompletedProcess[str]],
    run_in_process: Script,
    models: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(data, tmp_path / "it")
    shutil.copytree(evaluated[0] / "predictions" / "italian", tmp_path / "predictions" / "italian")
    command = ["evaluate.py", *options(tmp_path, tmp_path / "it", str(models / "italian.nemo"))]
    assert "italian: model and manifest are as before, predictions are reused" in run_in_process(*command).stdout
    wav = max((tmp_path / "it" / "wavs").iterdir(), key=lambda path: path.stat().st_size)
    wav.touch()
    again = run_in_process(*command)
    assert "italian: predictions are made again (different now: audio)" in again.stdout
    assert again.returncode == 0, again.stderr
    for name in ("results/italian.json", "predictions/italian/predictions.jsonl"):
        assert (tmp_path / name).read_bytes() == (evaluated[0] / name).read_bytes()

    whole = wav.read_bytes()
    wav.write_bytes(whole[: len(whole) // 2])
    cut = run_in_process(*command)
    assert_refused(cut, f"italian is not evaluated: cannot read {wav} as a wav (it lasts 1.10 s of 2.20 s); delete it")
    assert not (tmp_path / "predictions" / "italian" / "predictions.jsonl").exists()
    wav.write_bytes(whole)
    assert run_in_process(*command).returncode == 0
    assert (tmp_path / "results/italian.json").read_bytes() == (evaluated[0] / "results/italian.json").read_bytes()


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """The names that evaluate.py defines."""
    return runpy.run_path(str(ROOT / "Fine_tuning" / "evaluate.py"))


@pytest.mark.nemo
def test_a_model_that_is_replaced_while_it_is_read_is_not_taken_for_the_other(
    script: dict[str, Any], models: Path
) -> None:
    model = script["Model"]("italian", models / "italian.nemo", "0" * 64)
    with pytest.raises(UserError, match=r"italian.nemo was replaced while it was read; rerun the same command"):
        script["restore"](model)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (UserError("it is no model; fetch it"), "it is no model; fetch it"),
        (
            ZeroDivisionError("division by zero"),
            r"ZeroDivisionError: division by zero \(test_evaluate.py, line \d+\); ",
        ),
        (KeyError("a"), "KeyError: 'a' "),
        (RuntimeError("first line\nsecond line"), r"RuntimeError: first line \(test"),
        (AssertionError(), r"AssertionError:  \(test"),
        (MemoryError(), "not enough memory: finished work is kept; free some and rerun the same command"),
        (RuntimeError("std::bad_alloc"), "not enough memory"),
        (
            PermissionError(13, "Permission denied", "a.nemo"),
            r"cannot read or write a.nemo \(Permission denied\); ",
        ),
        (ValueError("\x1b[2J"), r"ValueError:  \[2J \(test"),
    ],
    ids=repr,
)
def test_whatever_one_model_raises_is_one_sentence(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str], raised: Exception, said: str
) -> None:
    missing: list[str] = []
    with script["report_failure"]("m", missing):
        raise raised
    assert missing == ["m"]
    assert re.fullmatch(f"\nm is not evaluated: {said}.*\n", capsys.readouterr().err)


def interrupted_import() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise ImportError("cannot import name")  # noqa: B904 as libraries do it


def interrupted_call() -> None:
    raise RuntimeError("KeyboardInterrupt: <EMPTY MESSAGE>")  # as pybind11 passes it on


def unread() -> None:
    raise BrokenPipeError


@pytest.mark.parametrize("end", [interrupted_import, interrupted_call, unread])
def test_what_ends_all_models_is_not_taken_for_a_fault_of_one(script: dict[str, Any], end: Callable[[], None]) -> None:
    missing: list[str] = []
    with pytest.raises((ImportError, RuntimeError, BrokenPipeError)), script["report_failure"]("m", missing):
        end()
    with pytest.raises(KeyboardInterrupt), script["report_failure"]("m", missing):
        raise KeyboardInterrupt
    assert not missing


def test_refusals_before_any_model_is_loaded(run_script: Script, tmp_path: Path) -> None:
    data = tmp_path / "it"
    data.mkdir()
    refused = run_script("evaluate.py", *options(tmp_path, data, "a.nemo"))
    assert_refused(refused, "no manifest", "test_manifest.json", "dataset_creation.py")

    line = {"audio_filepath": "gone.wav", "duration": 1.0, "text": "sì"}
    (data / "test_manifest.json").write_text(json.dumps(line) + "\n")
    assert_refused(run_script("evaluate.py", *options(tmp_path, data, "a.nemo")), "there is no", "gone.wav")

    shutil.copy(ROOT / "pyproject.toml", data / "gone.wav")
    refused = run_script("evaluate.py", *options(tmp_path, data, "a.nemo"))
    assert_refused(refused, "a is not evaluated: there is no model a.nemo")
    assert_refused(run_script("evaluate.py", *options(tmp_path, data, "a.nemo", "b/a.nemo")), "both be called a")
    assert_refused(run_script("evaluate.py", *options(tmp_path, data, "comparisons.nemo")), "as another result is")
    assert_refused(run_script("evaluate.py", *options(tmp_path, data)), "names no model")
    blocked = run_script(
        "evaluate.py", *options(tmp_path, data, "a.nemo"), f"evaluation.results={tmp_path}/it/gone.wav/x"
    )
    assert_refused(blocked, "cannot write to the folder", "gone.wav/x")

    (data / "test_manifest.json").write_text(json.dumps({**line, "text": " "}) + "\n")
    assert_refused(run_script("evaluate.py", *options(tmp_path, data, "a.nemo")), "utterance 1 has an empty text")


def test_what_step_2_has_not_made_yet_is_named_with_its_command(run_script: Script, tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "test_manifest.json").write_text('{"audio_filepath": "a.wav", "duration": 1.0, "text": "a"}\n')
    given = [*options(tmp_path, tmp_path, f"{tmp_path}/Mine.nemo"), f"training.output={tmp_path}", "training.name=Mine"]
    words = "make it with: python Fine_tuning/train.py --config configs/italian.yaml"
    assert_refused(run_script("evaluate.py", *given), words)
