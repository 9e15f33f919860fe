"""Step 3 with a language model, as a user runs it: a real small model, a real n-gram model, real clips."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import soundfile

from conftest import ROOT, TORCHRUN, Script, assert_refused
from forked import Forked
from small import ITALIAN, lively_model, write_clips

pytestmark = pytest.mark.nemo

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # small matrices: a second thread costs more than it does
Finished = tuple[Path, CompletedProcess[str]]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def data(sample_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder: six clips to test, four to tune on. An untrained model writes rubbish, so that is what their
    texts are made of: what it writes, two letters of each clip changed, so that there is something to correct.
    """
    from finetuning.data.manifest import read_manifest
    from finetuning.decoding.inference import transcribe

    folder = tmp_path_factory.mktemp("data") / "it"
    manifest = write_clips(sample_archive, folder, 10)
    rows = lines(manifest)
    heard = transcribe(lively_model(ITALIAN), read_manifest(manifest), folder)
    for number, (row, text) in enumerate(zip(rows, heard, strict=True)):
        words = text.split()
        words[-1] = words[-1][:-1] + ("x" if words[-1][-1] != "x" else "y")
        row |= {"text": " ".join(words), "speaker": f"speaker {number % 3}"}
    write(manifest, rows[:6])
    write(folder / "validation_manifest.json", rows[6:])
    others = " ".join(" ".join(heard).split()[::2])
    write(folder / "train_manifest.json", [{**rows[0], "audio_filepath": "gone.wav", "text": others}])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from finetuning.model.ctc_model import save_model

    save_model(lively_model(ITALIAN), path := tmp_path_factory.mktemp("models") / "italian.nemo")
    return path


def options(out: Path, data: Path, model: Path) -> list[str]:
    return [
        "--config",
        "configs/demo.yaml",
        f"dataset.output={data}",
        f"language_model.output={data.parent}/lm",
        "language_model.order=3",
        f"evaluation.models=[{model}]",
        f"evaluation.predictions={out}/predictions",
        f"evaluation.results={out}/results",
    ]


@pytest.fixture(scope="module")
def greedy(run_script: Script, data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run without a language model, before there is one."""
    out = tmp_path_factory.mktemp("greedy")
    process = run_script("evaluate.py", *options(out, data, model), "evaluation.decoder=greedy", env=ONE_THREAD)
    assert process.returncode == 0, process.stderr
    return out, process


@pytest.fixture(scope="module")
def language_model(run_script: Script, data: Path, model: Path) -> Path:
    process = run_script("train_language_model.py", *options(data.parent / "none", data, model), env=ONE_THREAD)
    assert process.returncode == 0, process.stderr
    return data.parent / "lm"


@pytest.fixture(scope="module")
def both(
    run_script: Script, data: Path, model: Path, language_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """A run with it, beside which others are started: into the same folders, one of them, and into others."""
    out = tmp_path_factory.mktemp("both")
    command = [*options(out, data, model), "evaluation.decoder=lm"]
    first = Forked("evaluate.py", *command, env=ONE_THREAD)
    while not (out / "results").is_dir():
        time.sleep(0.01)
    time.sleep(0.2)
    first.send_signal(signal.SIGSTOP)
    same = run_script("evaluate.py", *command)
    results = run_script("evaluate.py", *command, f"evaluation.predictions={out}/others")
    others = [f"evaluation.predictions={out}/others", f"evaluation.results={out}/others"]
    elsewhere = run_script("evaluate.py", *command, *others, "evaluation.models=[gone.nemo]")
    assert first.poll() is None, "it has ended too early for this test"
    first.send_signal(signal.SIGCONT)
    printed, said = first.communicate()
    assert_refused(same, f"another run is writing to {out}/predictions; wait until it has finished")
    assert_refused(results, f"another run is writing to {out}/results; wait until it has finished")
    assert_refused(elsewhere, "not evaluated, for the reasons above: gone")
    assert first.returncode == 0, said
    shutil.rmtree(out / "others")
    return out, CompletedProcess(command, 0, printed, said)


def kept(out: Path) -> dict[str, bytes]:
    """What a run leaves that must not depend on when or how often it ran."""
    names = [path for path in out.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl", ".f32")]
    return {str(path.relative_to(out)): path.read_bytes() for path in names if path.name != "inference.json"}


def test_each_model_has_a_row_by_each_decoder(both: Finished, data: Path, language_model: Path) -> None:
    out, process = both
    names = ["comparisons.json", "italian+LM.json", "italian.json"]
    assert sorted(path.name for path in (out / "results").iterdir()) == names
    results = {name: json.loads((out / "results" / f"{name}.json").read_text()) for name in ("italian", "italian+LM")}
    assert results["italian"]["decoder"] == {"name": "greedy"}
    decoder = json.loads((out / "predictions" / "italian+LM" / "decoder.json").read_text())
    assert results["italian+LM"]["decoder"] == {"name": "lm", **decoder["settings"]}
    assert decoder["settings"] in [{key: trial[key] for key in decoder["settings"]} for trial in decoder["trials"]]
    best = min(trial["wer"] for trial in decoder["trials"])
    (chosen,) = {trial["wer"] for trial in decoder["trials"] if trial.items() >= decoder["settings"].items()}
    assert chosen == best and decoder["validation"]["utterances"] == 4
    hashes = json.loads((language_model / "language_model.json").read_text())["sha256"]
    used = {key: results["italian"]["sha256"][key] for key in ("model", "manifest")}
    assert results["italian+LM"]["sha256"].items() >= {**hashes, **used}.items()
    (compared,) = json.loads((out / "results" / "comparisons.json").read_text())
    assert (compared["one"], compared["other"]) == ("italian", "italian+LM")
    difference = results["italian"]["wer"] - results["italian+LM"]["wer"]
    assert compared["wer_difference"] == pytest.approx(difference, abs=2e-6)
    assert "italian minus italian+LM: WER " in process.stdout

    header, _, *rows = process.stdout[process.stdout.index("| Insertions") :].splitlines()[:4]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["Insertions", "Deletions", "Substitutions"]
    for row, (name, result) in zip(rows, results.items(), strict=True):
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        assert cells[0] == name and cells[1].startswith(f"{result['wer']:.4f}")
        counts = [f"{result[kind]:,}" for kind in ("insertions", "deletions", "substitutions")]
        assert cells[2:] == counts
    for chatter in ("Loading the LM", "NeMo W", "Traceback"):
        assert chatter not in process.stdout + process.stderr


def test_two_processes_write_what_one_writes(both: Finished, data: Path, model: Path, tmp_path: Path) -> None:
    command = [*TORCHRUN, str(ROOT / "Fine_tuning" / "evaluate.py"), *options(tmp_path, data, model)]
    together = subprocess.run([*command, "evaluation.decoder=lm"], capture_output=True, text=True)
    assert together.returncode == 0, together.stderr
    assert kept(tmp_path) == kept(both[0]) and len(kept(tmp_path)) > 10
    assert "openvino, 1 thread(s), 2 processes)" in together.stdout
    assert together.stdout.count("| italian ") == both[1].stdout.count("| italian "), "one table"
    timing = json.loads((tmp_path / "predictions" / "italian" / "inference.json").read_text())
    assert timing["audio_seconds"] == pytest.approx(
        sum(row["duration"] for row in lines(data / "test_manifest.json")), abs=0.01
    )
    assert not list(tmp_path.rglob("share-*"))


def test_predictions_differ_by_their_texts_alone(both: Finished, data: Path) -> None:
    greedy, decoded = (
        lines(both[0] / "predictions" / name / "predictions.jsonl") for name in ("italian", "italian+LM")
    )
    manifest = lines(data / "test_manifest.json")
    assert [row["audio_filepath"] for row in decoded] == [row["audio_filepath"] for row in manifest]
    assert [row | {"pred_text": ""} for row in greedy] == [row | {"pred_text": ""} for row in decoded]
    assert greedy != decoded


def test_again_nothing_is_run_and_the_bytes_are_the_same(
    both: Finished, run_script: Script, data: Path, model: Path
) -> None:
    out, first = both
    before = kept(out)
    again = run_script("evaluate.py", *options(out, data, model), "evaluation.decoder=lm")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("predictions are reused") == 2 and "loading" not in again.stdout
    assert "tuning" not in again.stderr
    assert kept(out) == before
    assert first.stdout.split("\n\n", 1)[1] == again.stdout.split("\n\n", 1)[1], "the same tables"


@pytest.mark.parametrize("folder", ["italian", "italian+LM"])
def test_predictions_of_other_code_are_made_again(
    both: Finished, run_in_process: Script, data: Path, model: Path, tmp_path: Path, folder: str
) -> None:
    shutil.copytree(both[0], tmp_path / "out")
    path = tmp_path / "out" / "predictions" / folder / "inputs.json"
    inputs = json.loads(path.read_text())
    path.write_text(json.dumps(inputs | {"sha256": inputs["sha256"] | {"code": "of another version"}}))
    process = run_in_process("evaluate.py", *options(tmp_path / "out", data, model), "evaluation.decoder=lm")
    reused = 1 + (folder == "italian+LM")  # those of validation too, by which its confidence is calibrated
    assert process.stdout.count("predictions are reused") == reused, "those of the other row"
    assert kept(tmp_path / "out") == kept(both[0])


def test_the_greedy_results_are_those_of_a_run_without(both: Finished, greedy: Finished) -> None:
    for name in ("results/italian.json", "predictions/italian/predictions.jsonl"):
        assert (both[0] / name).read_bytes() == (greedy[0] / name).read_bytes()
    assert not list(greedy[0].rglob("*.f32")) and not list(greedy[0].rglob("*+LM*"))
    assert "Insertions" not in greedy[1].stdout


def test_a_run_without_and_then_one_with_is_the_same(
    both: Finished, greedy: Finished, run_in_process: Script, data: Path, model: Path, tmp_path: Path
) -> None:
    """And so is one whose decoder.json was deleted, and the one without after it."""
    shutil.copytree(greedy[0], tmp_path / "out")
    command = ["evaluate.py", *options(tmp_path / "out", data, model)]
    process = run_in_process(*command, "evaluation.decoder=lm")
    assert process.returncode == 0, process.stderr
    assert kept(tmp_path / "out") == kept(both[0])
    (tmp_path / "out" / "predictions" / "italian+LM" / "decoder.json").unlink()
    process = run_in_process(*command, "evaluation.decoder=lm")
    assert process.stdout.count("predictions are reused") == 2, "of test and validation, by the best path"
    assert kept(tmp_path / "out") == kept(both[0])
    process = run_in_process(*command, "evaluation.decoder=greedy")
    assert process.stdout.count("predictions are reused") == 1 and "Insertions" not in process.stdout
    assert (tmp_path / "out" / "results" / "italian.json").read_bytes() == (
        greedy[0] / "results" / "italian.json"
    ).read_bytes()


@pytest.mark.parametrize("part", ["", "validation"])
def test_damaged_log_probabilities_are_made_again(
    both: Finished, run_in_process: Script, data: Path, model: Path, tmp_path: Path, part: str
) -> None:
    """Where they are needed, and so that size and time tell nothing: a byte of them is another."""
    shutil.copytree(both[0], tmp_path / "out")
    work = tmp_path / "out" / "predictions"
    (work / "italian+LM" / "decoder.json").unlink()
    frames = work / "italian" / part / "log_probabilities.f32"
    times = frames.stat()
    content = bytearray(frames.read_bytes())
    content[100] ^= 1
    frames.write_bytes(content)
    os.utime(frames, ns=(times.st_atime_ns, times.st_mtime_ns))
    process = run_in_process("evaluate.py", *options(tmp_path / "out", data, model), "evaluation.decoder=lm")
    assert process.returncode == 0, process.stderr
    assert f"{frames} is damaged (it is not what was written there)" in process.stdout
    assert kept(tmp_path / "out") == kept(both[0])


def test_predictions_that_are_gone_are_made_again_and_nothing_is_tuned_anew(
    both: Finished, run_in_process: Script, data: Path, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(both[0], tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "predictions" / "italian")
    process = run_in_process("evaluate.py", *options(tmp_path / "out", data, model), "evaluation.decoder=lm")
    assert process.returncode == 0, process.stderr
    whole = {name: content for name, content in kept(both[0]).items() if "/validation/" not in name}
    assert kept(tmp_path / "out") == whole


@pytest.mark.parametrize("changed", [{"lm_weight": 0.01}, {"beam": 1}])
def test_a_decoder_that_was_changed_by_hand_is_found_anew(
    both: Finished, run_in_process: Script, data: Path, model: Path, tmp_path: Path, changed: dict[str, float]
) -> None:
    shutil.copytree(both[0], tmp_path / "out")
    path = tmp_path / "out" / "predictions" / "italian+LM" / "decoder.json"
    decoder = json.loads(path.read_text())
    path.write_text(json.dumps(decoder | {"settings": decoder["settings"] | changed}))
    process = run_in_process("evaluate.py", *options(tmp_path / "out", data, model), "evaluation.decoder=lm")
    assert process.returncode == 0, process.stderr
    assert "italian+LM: predictions are made again (decoder.json is not what was written there)" in process.stdout
    assert kept(tmp_path / "out") == kept(both[0])


def test_another_language_model_is_tuned_anew(
    both: Finished, run_in_process: Script, data: Path, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(both[0], tmp_path / "out")
    text = tmp_path / "text.txt"
    text.write_text("la casa è rossa\n", encoding="utf-8")
    other = [
        f"language_model.output={tmp_path}/lm",
        f"language_model.sources=[{{name: training, weight: 0.5}}, {{name: text, file: '{text}', weight: 0.5}}]",
    ]
    command = [*options(tmp_path / "out", data, model), *other]
    assert run_in_process("train_language_model.py", *command).returncode == 0
    process = run_in_process("evaluate.py", *command, "evaluation.decoder=lm")
    assert process.returncode == 0, process.stderr
    assert "loading" not in process.stdout, "the log-probabilities are the same"
    assert "italian+LM, tuning" in process.stderr
    decoder = json.loads((tmp_path / "out" / "predictions" / "italian+LM" / "decoder.json").read_text())
    assert decoder["language_model"] == f"{tmp_path}/lm"


@pytest.mark.parametrize("decoder", ["lm", "greedy"])
def test_boosted_words_have_a_row_which_transcribe_writes_too(
    both: Finished, run_in_process: Script, data: Path, model: Path, tmp_path: Path, decoder: str
) -> None:
    """Of the words that end the references, which differ from what the model writes by a letter."""
    shutil.copytree(both[0], tmp_path / "out")
    name = "italian+LM+boost" if decoder == "lm" else "italian+boost"
    evaluated, listed = tmp_path / "out" / "predictions" / name / "predictions.jsonl", tmp_path / "words.txt"
    command = [*options(tmp_path / "out", data, model), f"evaluation.decoder={decoder}", f"evaluation.boost={listed}"]
    ends, texts = [row["text"].split()[-1] for row in lines(data / "test_manifest.json")], []
    for words, weight, why in ((ends[:3], "19", ""), (ends[:3], "19.0", "are reused"), (ends[3:], "19", "(different")):
        listed.write_text("".join(f"{word.upper()}\t{weight}\n" for word in words), encoding="utf-8")
        process = run_in_process("evaluate.py", *command)
        assert process.returncode == 0, process.stderr
        assert f"| {name} " in process.stdout and "loading" not in process.stdout
        reused = [
            line for line in process.stdout.splitlines() if line.startswith(f"{name}: ") and "predictions are" in line
        ]
        assert (why in "".join(reused)) if why else not reused
        texts.append([row["pred_text"] for row in lines(evaluated)])
    assert texts[0] == texts[1] != texts[2]
    assert any(word in text.split() for word, text in zip(ends[3:], texts[2][3:], strict=True)), "one is near enough"
    result = json.loads((tmp_path / "out" / "results" / f"{name}.json").read_text())
    assert result["decoder"]["name"] == ("lm+boost" if decoder == "lm" else "boost")

    lm = ["--language-model", str(tmp_path / "out" / "predictions" / "italian+LM" / "decoder.json")]
    wavs = [str(data / row["audio_filepath"]) for row in lines(evaluated)]
    given = [str(model), *wavs, "--format", "jsonl", "--boost", str(listed), *(lm if decoder == "lm" else [])]
    transcribed = run_in_process("transcribe.py", *given)
    assert transcribed.returncode == 0, transcribed.stderr
    assert [json.loads(line)["pred_text"] for line in transcribed.stdout.splitlines()] == texts[2]
    listed.write_text("casa\theavy\n")
    for script, arguments in (("evaluate.py", command), ("transcribe.py", given)):
        assert_refused(run_in_process(script, *arguments), f"{listed}, line 1: 'heavy' is no weight")


def test_transcribe_writes_what_evaluate_does(
    both: Finished, run_script: Script, data: Path, model: Path, tmp_path: Path
) -> None:
    decoder = both[0] / "predictions" / "italian+LM" / "decoder.json"
    evaluated = lines(both[0] / "predictions" / "italian+LM" / "predictions.jsonl")
    command = [str(model), str(data / "wavs"), "--format", "jsonl", "--output", str(tmp_path / "out")]
    process = run_script("transcribe.py", *command, "--language-model", str(decoder), env=ONE_THREAD)
    assert process.returncode == 0, process.stderr
    assert len(evaluated) == 6
    for row in evaluated:
        wav = data / row["audio_filepath"]
        found = lines(tmp_path / "out" / f"{wav.stem}.jsonl")
        assert [passage["pred_text"] for passage in found] == [row["pred_text"]]
        assert found[0]["duration"] == round(soundfile.info(wav).duration, 3)
    assert "was tuned for another model" not in process.stderr
    again = run_script("transcribe.py", *command, "--language-model", str(decoder))
    assert "10 of 10 recordings are transcribed already" in again.stderr
    english = str(ROOT / "models" / "demo" / "quartznet_small_en.nemo")
    others = run_script("transcribe.py", english, *command[1:], "--language-model", str(decoder))
    assert_refused(others, f"{decoder} was tuned for another model than quartznet_small_en.nemo", "is there already")
    refused = run_script("transcribe.py", *command)
    assert_refused(refused, "is there already", "delete it or name another --output")
    greedily = run_script("transcribe.py", *command[:-1], str(tmp_path / "greedy"), env=ONE_THREAD)
    assert greedily.returncode == 0, greedily.stderr
    texts = [
        lines(tmp_path / "greedy" / f"{Path(row['audio_filepath']).stem}.jsonl")[0]["pred_text"] for row in evaluated
    ]
    assert texts == [row["pred_text"] for row in lines(both[0] / "predictions" / "italian" / "predictions.jsonl")]
