"""transcribe.py, evaluate.py and export.py need nothing of Linux."""

import json
from pathlib import Path

import pytest
from test_export import make

from conftest import ROOT, Script, assert_refused
from small import write_clips

MODEL = ROOT / "models" / "demo" / "quartznet_small_en.nemo"


@pytest.mark.nemo
def test_three_scripts_run_without_what_only_linux_has(
    run_script: Script, sample_archive: Path, tmp_path: Path
) -> None:
    clips = write_clips(sample_archive, tmp_path / "clips", 4).parent
    config = make(tmp_path)
    evaluated = tmp_path / "evaluated.yaml"
    evaluated.write_text(
        f"extends: configs/demo.yaml\ndataset: {{output: {clips}}}\nevaluation: {{models: [{MODEL}], decoder: greedy, "
        f"predictions: {tmp_path}/own, results: {tmp_path}/table}}\n"
    )
    commands = [
        ["evaluate.py", "--config", str(evaluated)],
        ["transcribe.py", str(MODEL), str(clips / "wavs"), "--output", str(tmp_path / "texts"), "--format", "jsonl"],
        ["export.py", "--config", config, "--license", "mit"],
    ]
    unfinished = tmp_path / "run" / f".finetuning-{2**22 + 1}-0123456789abcdef-x"  # no process has this number
    unfinished.touch()
    done = run_script("../tests/without_linux.py", json.dumps(commands))
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert "| quartznet_small_en" in done.stdout
    predictions = (tmp_path / "own" / "quartznet_small_en" / "predictions.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["audio_filepath"].startswith("wavs/") for line in predictions.splitlines()] == [True] * 4
    assert len(list((tmp_path / "texts").glob("common_voice_it_*.jsonl"))) == 4
    assert (tmp_path / "run" / "export" / "README.md").is_file()
    assert unfinished.is_file(), "whether its process still runs is not known there"


def test_the_other_scripts_say_where_they_run(run_script: Script) -> None:
    refused = run_script("../tests/without_linux.py", json.dumps([["train.py", "--help"]]))
    assert_refused(refused, "train.py: error: on Windows only transcribe.py, evaluate.py and export.py run", "WSL")
