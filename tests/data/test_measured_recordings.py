"""Step 1 says what the recordings are: in its log, in dataset.json, in the manifests and on the screen."""

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import soxr

from conftest import Script
from finetuning.audio.measurement import is_telephone
from finetuning.data.manifest import SOUND, SPLITS, manifest_path, read_manifest
from releases import good_rows, lines_of, release_files, sample_files, write_folder

MADE = (*(f"{split}_manifest.json" for split in SPLITS), "rejected.jsonl", "dataset.json", "dataset.png")
CALLS = {row["path"] for row in good_rows(24)[::3]}
Make = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips, of which eight went over a telephone before they became mp3s like the others."""
    clips = {row["path"]: sample_files()[row["path"]] for row in good_rows(24)}
    for name in CALLS:
        (samples, rate), call, clip = soundfile.read(io.BytesIO(clips[name])), io.BytesIO(), io.BytesIO()
        soundfile.write(call, soxr.resample(samples, rate, 8000), 8000, format="WAV", subtype="GSM610")
        call.seek(0)
        soundfile.write(clip, soxr.resample(soundfile.read(call)[0], 8000, rate), rate, format="MP3")
        clips[name] = clip.getvalue()
    return write_folder(tmp_path_factory.mktemp("release") / "it", release_files(good_rows(24), clips))


@pytest.fixture(scope="module")
def make(run_script: Script, release: Path) -> Make:
    def run(output: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
        made = run_script("dataset_creation.py", f"dataset.source={release}", f"dataset.output={output}", *overrides)
        assert made.returncode == 0, made.stderr[-2000:]
        return made

    return run


def files(output: Path) -> dict[str, bytes]:
    return {name: (output / name).read_bytes() for name in MADE}


@pytest.mark.slow
def test_calls_are_told_and_a_run_of_another_part_gives_the_same(make: Make, tmp_path: Path) -> None:
    made = make(tmp_path / "data", "dataset.workers=2")
    assert "recordings: 8 (33%) telephone\n" in made.stdout
    about = json.loads((tmp_path / "data" / "dataset.json").read_text())["recordings"]
    assert (about["measured"], about["telephone"], about["clipped"]) == (24, 8, 0)
    assert (about["rate_hz"], about["channels"], about["codec"]) == ({"24000": 24}, {"1": 24}, {"mp3": 24})
    utterances = [u for split in SPLITS for u in read_manifest(manifest_path(tmp_path / "data", split))]
    assert {Path(u.audio_filepath).stem + ".mp3" for u in utterances if is_telephone(u.bandwidth_hz)} == CALLS
    before = files(tmp_path / "data")
    for wav in sorted((tmp_path / "data" / "wavs").iterdir())[::5]:
        wav.unlink()
    for name in MADE:
        (tmp_path / "data" / name).unlink()
    assert "19 converted already, 5 to convert" in make(tmp_path / "data", "dataset.workers=1").stdout
    assert files(tmp_path / "data") == before


@pytest.mark.slow
def test_clips_of_an_older_log_stay_as_they_are(make: Make, tmp_path: Path) -> None:
    """Nothing is converted again for the sake of what was not measured, and the manifests are those of before."""
    make(tmp_path / "new", "dataset.workers=1")
    make(tmp_path / "old", "dataset.workers=1")
    log = tmp_path / "old" / "conversion.jsonl"
    log.write_text("".join(json.dumps({k: v for k, v in e.items() if k != "sound"}) + "\n" for e in lines_of(log)))
    again = make(tmp_path / "old")
    assert " 0 to convert" in again.stdout and "recordings" not in again.stdout
    assert json.loads((tmp_path / "old" / "dataset.json").read_text())["recordings"] == {"measured": 0}
    for split in SPLITS:
        new, old = (lines_of(manifest_path(tmp_path / name, split)) for name in ("new", "old"))
        assert [{k: v for k, v in line.items() if k not in SOUND} for line in new] == old
    assert "nothing to do" in make(tmp_path / "old").stdout
