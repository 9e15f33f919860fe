"""One dataset of several sources: roles, repeated audio, what must not be in training, resuming."""

import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import yaml

from conftest import Script, assert_refused
from finetuning.data.manifest import find_test_sets, manifest_path, read_manifest
from finetuning.data.row_filters import ForeignCharacter, TextReport, merge_reports
from mixtures import sources
from releases import good_rows, lines_of

Make = Callable[..., subprocess.CompletedProcess[str]]
MADE = ("train_manifest.json", "validation_manifest.json", "test_manifest.json", "rejected.jsonl", "dataset.json")


@pytest.fixture(scope="module")
def make(run_script: Script) -> Make:
    """Run step 1 with the sources of a folder."""

    def run(folder: Path, listed: list[dict[str, object]], *overrides: str) -> subprocess.CompletedProcess[str]:
        dataset = {"sources": listed, "output": str(folder / "data"), "split": {"by": "speaker"}, "workers": 2}
        config = {"extends": "configs/demo.yaml", "dataset": dataset}
        (folder / "mixture.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
        return run_script("dataset_creation.py", "--config", str(folder / "mixture.yaml"), *overrides)

    return run


@pytest.fixture(scope="module")
def mixture(make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a dataset of three sources, and what step 1 said."""
    folder = tmp_path_factory.mktemp("mixture")
    made = make(folder, sources(folder))
    assert made.returncode == 0, made.stderr
    return folder, made


def rejected(folder: Path) -> dict[str, tuple[str, str]]:
    return {line["path"]: (line["reason"], line["detail"]) for line in lines_of(folder / "rejected.jsonl")}


def test_each_source_goes_where_its_role_says(mixture: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, made = mixture
    of = {name: read_manifest(path) for name, path in find_test_sets(folder / "data").items()}
    of |= {name: read_manifest(manifest_path(folder / "data", name)) for name in ("train", "validation")}
    assert {name: {u.source for u in found} for name, found in of.items()} == {
        "train": {"cv", "calls"}, "validation": {"cv"}, "test": {"cv"}, "test_radio": {"radio"},
    }  # fmt: skip
    assert all(u.audio_filepath.startswith(f"{u.source}/wavs/") for found in of.values() for u in found)
    assert len(of["test_radio"]) == 10
    assert not any("eh" in u.text.split() for u in of["train"])
    assert "calls: 12 clips wanted, 0 converted already" in made.stdout
    about = json.loads((folder / "data" / "dataset.json").read_text())
    assert about["release"] == "cv-corpus-9.0/it + calls.jsonl + radio.jsonl"
    assert about["rows"] == 62 == about["utterances"] + about["rejected"]
    assert list(about["splits"]) == ["train", "validation", "test", "test_radio"]
    assert about["rules"]["hesitations"] == 12
    assert {"weight", "source", "download", "archive"}.isdisjoint(about["config"]["dataset.sources"][1])
    assert "test_radio" in made.stdout


def test_the_same_audio_and_what_a_test_set_has_is_not_in_training(
    mixture: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = mixture
    rows = good_rows(60)
    reasons = rejected(folder / "data")
    for number in (0, 1):
        clip = rows[38 + number]["path"].replace(".mp3", ".wav")
        assert reasons[f"calls/{number}.mp3"] == ("duplicate_clip", f"the same audio as cv/wavs/{clip}")
    heard = {u.text for u in read_manifest(manifest_path(folder / "data", "test_radio"))}
    voices = {u.speaker for u in read_manifest(manifest_path(folder / "data", "test_radio"))}
    assert reasons[f"cv/{rows[0]['path']}"] == ("sentence_in_other_split", "also read in test_radio")
    of_speaker = [row for row in rows[:40] if row["client_id"] == rows[1]["client_id"] and row is not rows[0]]
    in_training = {u.audio_filepath for u in read_manifest(manifest_path(folder / "data", "train"))}
    for row in of_speaker:
        assert f"cv/wavs/{row['path'].replace('.mp3', '.wav')}" not in in_training
    others = [u for name in ("train", "validation") for u in read_manifest(manifest_path(folder / "data", name))]
    assert not [u for u in others if u.text in heard or u.speaker in voices]


@pytest.mark.slow
def test_each_source_resumes_by_itself(make: Make, tmp_path: Path) -> None:
    listed = sources(tmp_path)
    made = make(tmp_path, listed)
    assert made.returncode == 0, made.stderr
    before = {name: (tmp_path / "data" / name).read_bytes() for name in MADE}
    again = make(tmp_path, [listed[2], listed[0], listed[1]])  # in another order
    assert again.returncode == 0 and "0 to convert" in again.stdout, again.stderr
    assert " 1 to convert" not in again.stdout
    again = make(tmp_path, [{**source, "weight": 7.0} for source in listed])
    assert "nothing to do" in make(tmp_path, listed).stdout
    assert before == {name: (tmp_path / "data" / name).read_bytes() for name in MADE}
    (tmp_path / "data" / "calls" / "wavs" / "5.wav").unlink()
    assert "calls: 12 clips wanted, 11 converted already, 1 to convert" in make(tmp_path, listed).stdout
    assert before == {name: (tmp_path / "data" / name).read_bytes() for name in MADE}
    fewer = make(tmp_path, listed[:2])
    assert fewer.returncode == 0, fewer.stderr
    assert list(find_test_sets(tmp_path / "data")) == ["test"]  # a test set that is listed no more is gone
    packed = make(tmp_path, listed, f"dataset.shards={tmp_path / 'shards'}")
    assert packed.returncode == 0, packed.stderr
    assert "test_radio audio_" in packed.stdout
    for name in ("train", "test_radio"):
        wavs = [u.wav(tmp_path / "shards") for u in read_manifest(manifest_path(tmp_path / "shards", name))]
        with tarfile.open(wavs[0].shard) as tar:
            assert soundfile.info(io.BytesIO(tar.extractfile(wavs[0].name).read())).samplerate == 16000
    trained_on = [*listed[:2], {**listed[2], "role": "train"}]
    assert make(tmp_path, trained_on, f"dataset.shards={tmp_path / 'shards'}").returncode == 0
    assert list(find_test_sets(tmp_path / "shards")) == ["test"]


@pytest.mark.slow
def test_clips_that_a_file_names_are_left_out(make: Make, tmp_path: Path) -> None:
    """By the path of the row, of the wav or of the wav in a shard, and with what by_loss.tsv says behind it."""
    listed = sources(tmp_path)
    clip = good_rows(60)[7]["path"]
    (tmp_path / "drop.tsv").write_text(
        f"\ufeffcv/{clip}\ncalls/wavs/5.wav\t3.2\tciao\tciao\n\ncalls_6.wav\t3.1\nradio/nowhere.flac\n"
    )
    made = make(tmp_path, listed, f"dataset.drop={tmp_path / 'drop.tsv'}")
    assert made.returncode == 0, made.stderr
    assert "dataset.drop names 1 clips that there are not, such as 'radio/nowhere.flac'" in made.stdout
    dropped = {path for path, (reason, _) in rejected(tmp_path / "data").items() if reason == "dropped"}
    assert dropped == {f"cv/{clip}", "calls/5.flac", "calls/6.flac"}
    assert make(tmp_path, listed).returncode == 0
    assert not {path for path, (reason, _) in rejected(tmp_path / "data").items() if reason == "dropped"}
    assert_refused(make(tmp_path, listed, f"dataset.drop={tmp_path}/none.tsv"), "cannot read dataset.drop=", "none.tsv")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ([{"name": "a", "source": "x.csv"}, {"name": "a", "source": "y.csv"}], ["two have the same name"]),
        ([{"name": "a", "source": "x.csv", "role": "train"}], ["one must have the role split"]),
        ([{"name": "a/b", "source": "x.csv"}], ["sources[0].name must be a short name"]),
        ([{"name": "wavs", "source": "x.csv"}], ["sources[0].name must be a short name"]),
        ([{"source": "x.csv"}], ["sources[0].name must be a short name"]),
        ([{"name": "a"}], ["mixture.yaml does not state dataset.sources[0].source; add it there\n"]),
        ([{"name": "a", "source": "x.tar.gz", "channel": "0"}], ["channel describe a table", "x.tar.gz is none"]),
        ([{"name": "a", "source": "x.csv", "role": "dev"}], ["'dev' is not one of split, train, test"]),
        ([{"name": "a", "source": "x.csv", "weight": 0}], ["sources[0].weight=0.0 must be above 0"]),
        ([{"name": "a", "source": "nowhere.csv"}], ["cannot read", "nowhere.csv"]),
    ],
)
@pytest.mark.slow
def test_sources_that_cannot_be_used_are_refused(
    make: Make, tmp_path: Path, change: list[dict[str, object]], words: list[str]
) -> None:
    assert_refused(make(tmp_path, change), *words)
    assert not (tmp_path / "data").exists()


def test_what_rules_did_is_summed_over_sources() -> None:
    one = TextReport({"a": 1, "b": 0}, [ForeignCharacter("x", 2, "long x"), ForeignCharacter("y", 1, "y")])
    other = TextReport({"a": 2, "c": 4}, [ForeignCharacter("x", 1, "x")])
    merged = TextReport({"a": 3, "b": 0, "c": 4}, [ForeignCharacter("x", 3, "x"), ForeignCharacter("y", 1, "y")])
    assert merge_reports([one, other]) == merged
    assert merge_reports([one]) == one
