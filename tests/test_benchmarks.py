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
    assert all(row["audio_h_per_h"] > 0 for row in measured["training"]) and len(measured["training"]) == 4
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


def test_english_human_speech_becomes_a_table(tmp_path: Path, run_script: Script) -> None:
    """A LibriSpeech folder whose wavs are mp3, and Kaldi's tables, of which children are left out."""
    from releases import good_rows, sample_files

    mp3s = [sample_files()[row["path"]] for row in good_rows(12)]
    chapter = tmp_path / "libri" / "data" / "LibriSpeech" / "dev-clean" / "84" / "121123"
    chapter.mkdir(parents=True)
    lines = [f"84-121123-{number:04} MISTER QUILTER'S MANNER {'AND ' * number}MATTER" for number in range(6)]
    (chapter / "84-121123.trans.txt").write_text("\n".join(lines) + "\n")
    for line, mp3 in zip(lines, mp3s[:6], strict=True):
        (chapter / f"{line.split()[0]}.wav").write_bytes(mp3)
    for part, ages in (("train", {"0001": 6, "0002": 16}), ("test", {"0003": 40})):
        folder = tmp_path / "ocean" / part
        folder.mkdir(parents=True)
        tables: dict[str, list[str]] = {"text": [], "wav.scp": [], "utt2spk": [], "spk2age": []}
        for number, (speaker, age) in enumerate(ages.items()):
            tables["spk2age"].append(f"{speaker}\t{age}")
            tables["text"].append(f"{speaker}1\tWE CALL IT {'BEAR ' * int(speaker)}")
            tables["wav.scp"].append(f"{speaker}1\tWAVE/{speaker}1.WAV")
            tables["utt2spk"].append(f"{speaker}1\t{speaker}")
            (tmp_path / "ocean" / "WAVE").mkdir(exist_ok=True)
            (tmp_path / "ocean" / "WAVE" / f"{speaker}1.WAV").write_bytes(mp3s[6 + number])
        for name, rows in tables.items():
            (folder / name).write_text("\n".join(rows) + "\n")
    command = [sys.executable, str(ROOT / "benchmarks" / "english_speech.py"), "--table", str(tmp_path / "table.jsonl")]
    made = subprocess.run([*command, str(tmp_path / "libri"), str(tmp_path / "ocean")], capture_output=True, text=True)
    assert "8 recordings of 3 speakers" in made.stdout, made.stderr
    places = (f"dataset.source={tmp_path}/table.jsonl", f"dataset.output={tmp_path}/data")
    done = run_script("dataset_creation.py", "--config", "configs/english_speech.yaml", *places)
    assert done.returncode == 0 and "rejected: 0 of 8 rows" in done.stdout, done.stderr
    texts = {u.text for split in SPLITS for u in read_manifest(tmp_path / "data" / f"{split}_manifest.json")}
    assert "mister quilter's manner and and matter" in texts and "we call it bear bear" in texts
    wrong = subprocess.run([*command, str(tmp_path), str(tmp_path / "ocean")], capture_output=True, text=True)
    assert_refused(wrong, "there is no */*/*.trans.txt in", "name the folder of the clone")
    wrong = subprocess.run([*command, str(tmp_path / "libri"), str(tmp_path)], capture_output=True, text=True)
    assert_refused(wrong, "train/text cannot be read", "name the folder of the clone")


def test_the_recipes_on_human_speech_differ_from_a_stated_baseline() -> None:
    """The baseline states every key of training that configs/mboshi.yaml, or what it extends, may change some day."""
    import yaml

    sys.path.insert(0, str(ROOT / "benchmarks"))
    import recipes

    stated = {override.partition("=")[0].removeprefix("training.") for override in recipes.SHORT}
    changed = set()
    for name in ("mboshi", "demo"):
        changed |= set(yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))["training"])
    assert changed - {"name", "workers", "accelerator"} <= stated
