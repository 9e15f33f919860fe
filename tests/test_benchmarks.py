"""Benchmarks that have to run when a machine or a corpus is at hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, Script, assert_refused
from finetuning.data.manifest import SPLITS, read_manifest
from forked import Forked

pytestmark = pytest.mark.slow


@pytest.mark.nemo
def test_what_is_measured_on_a_gpu_runs_without_one_on_a_smaller_scale(tmp_path: Path) -> None:
    command = [str(ROOT / "benchmarks" / "gpu.py"), "training", "fit", "inference", "--small"]
    refused = Forked(*command)
    assert "--output" in refused.communicate()[1] and refused.returncode == 2
    done = Forked(*command, "--output", str(tmp_path / "gpu.json"))
    said = done.communicate()[1]
    assert done.returncode == 0, said[-2000:]
    measured = json.loads((tmp_path / "gpu.json").read_text())
    assert all(row["audio_h_per_h"] > 0 for row in measured["training"]) and len(measured["training"]) == 8
    assert measured["fit"].keys() == {"NeMo", "this"}
    assert all(speed > 0 for way in measured["inference"].values() for speed in way.values())


def test_the_mboshi_corpus_becomes_a_release(tmp_path: Path, run_script: Script) -> None:
    """A clone with 12 and 2 utterances of two speakers, who say what can be read."""
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("dev", 2)):
        folder = tmp_path / "clone" / "full_corpus_newsplit" / split
        folder.mkdir(parents=True)
        for number in range(count):
            stem = f"{'abiayi' if number % 2 else 'martial'}_2015_{split}_{number:02}"
            soundfile.write(folder / f"{stem}.wav", rng.normal(0, 0.1, 32000), 16000)
            (folder / f"{stem}.mb").write_text(f'Báa  "átέε" {"ngá " * number}\n', encoding="utf-8")
            (folder / f"{stem}.mb.cleaned").write_text("not this one")
    command = [sys.executable, str(ROOT / "benchmarks" / "mboshi.py"), "--release", str(tmp_path / "release")]
    for _ in range(2):
        made = subprocess.run([*command, str(tmp_path / "clone")], capture_output=True, text=True)
        assert "10 train, 2 dev, 2 test" in made.stdout, made.stderr
    places = (f"dataset.source={tmp_path}/release", f"dataset.output={tmp_path}/data")
    done = run_script("dataset_creation.py", "--config", "configs/mboshi.yaml", *places)
    assert done.returncode == 0 and "rejected: 0 of 14 rows" in done.stdout, done.stderr
    utterances = {split: read_manifest(tmp_path / "data" / f"{split}_manifest.json") for split in SPLITS}
    assert [u.text for u in utterances["test"]] == ["báa átέε ngá", "báa átέε"]
    assert {u.speaker for u in utterances["test"]} == {"abiayi", "martial"}
    assert sorted(len(u.text.split()) for u in utterances["validation"]) == [3, 10]

    wrong = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert_refused(wrong, f"there is no wav in {tmp_path}/full_corpus_newsplit/train")
    next((tmp_path / "clone" / "full_corpus_newsplit" / "dev").glob("*.mb")).unlink()
    wrong = subprocess.run([*command, str(tmp_path / "clone")], capture_output=True, text=True)
    assert_refused(wrong, "the text of", "fetch the corpus again")
