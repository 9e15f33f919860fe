import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import ROOT
from finetuning.audio.measurement import Measurement
from finetuning.config.loading import load_config
from finetuning.config.schema import Config
from finetuning.data import dataset_files
from finetuning.data.listing import RejectedRow
from finetuning.data.manifest import SPLITS, Utterance
from finetuning.data.row_filters import ForeignCharacter, TextReport

REASONS = (
    *("malformed_row", "path_outside_clips", "duplicate_clip", "empty_sentence", "foreign_character", "clip_missing"),
    *("not_in_release_split", "clip_empty", "clip_unreadable", "clip_undecodable", "clip_truncated", "too_short"),
    *("too_long", "no_speech", "too_many_characters", "too_fast", "sentence_in_other_split"),
)
PLAIN = TextReport({}, [])  # no rule changed a text
CALL = Measurement(8000, 1, "gsm", 3875, -30.0, 0.01, 0.9)  # too loud, and hardly a word
SOUNDS = {f"wavs/{name}{i}.wav": CALL for name in SPLITS for i in range(6)}


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("configs/demo.yaml", [])


def small(speaker: str = "s", bandwidth_hz: int | None = None) -> dict[str, list[Utterance]]:
    """Six clips of two seconds a split, by two speakers."""
    about = {"bandwidth_hz": bandwidth_hz}
    return {
        name: [
            Utterance(f"wavs/{name}{i}.wav", 2.0, f"frase {i}", speaker=speaker and speaker + str(i % 2), **about)
            for i in range(6)
        ]
        for name in SPLITS
    }


def rejected(*reasons: str) -> list[RejectedRow]:
    return [RejectedRow(f"{i}.mp3", reason) for i, reason in enumerate(reasons)]


def write(output: Path, config: Config, chosen: dict[str, list[Utterance]], left_out: list[RejectedRow]) -> bool:
    rows = sum(map(len, chosen.values())) + len(left_out)
    return dataset_files.write_dataset(
        output, chosen, left_out, dataset_files.describe_dataset(config, "cv/it", rows, chosen, left_out, PLAIN, SOUNDS)
    )


def test_the_summary_of_the_worst_release_fits_one_page(config: Config) -> None:
    foreign = [ForeignCharacter(chr(0x2100 + i), 12_345_678, "una frase molto lunga " * 9) for i in range(30)]
    texts = TextReport({"a rule with a very long name " * 3 + str(i): 12_345_678 for i in range(30)}, foreign)
    about = dataset_files.describe_dataset(
        config, "cv/it", 18 + len(REASONS), small(), rejected(*REASONS), texts, SOUNDS
    )
    for split in about["splits"].values():
        split |= {"hours": 12345.678, "clips": 12_345_678, "speakers": 123_456, "sentences": 12_345_678}
    for both in about["overlap"].values():
        both |= {"speakers": 123_456, "sentences": 12_345_678}
    for known in about["known_from_train"].values():
        known |= {what: {"clips": 12_345_678, "share": 1.0} for what in known}
    about["recordings"] |= dict.fromkeys(("measured", "telephone", "clipped", "mostly_silent"), 12345678)
    lines = dataset_files.format_summary(about).splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 100
    assert all(any(reason in line for line in lines) for reason in REASONS)
    assert len({len(line) for line in lines if line.startswith(SPLITS)}) == 1, (
        "the columns do not stand below each other"
    )


def test_the_summary_says_how_much_of_test_training_knows(config: Config) -> None:
    lines = dataset_files.format_summary(
        dataset_files.describe_dataset(config, "cv/it", 18, small(), [], PLAIN, {})
    ).splitlines()
    (known,) = [line.split() for line in lines if line.startswith("  test ")]
    assert known == ["test", "6", "(100.0%)", "6", "(100.0%)", "0", "(0.0%)"]
    (both,) = [line.split() for line in lines if line.startswith("  train and test")]
    assert both[-2:] == ["2", "6"]
    assert "unknown" in dataset_files.format_summary(
        dataset_files.describe_dataset(config, "cv/it", 18, small(""), [], PLAIN, {})
    )


@pytest.mark.slow
def test_the_same_dataset_gives_the_same_picture_whatever_the_user_s_matplotlib_is_set_to(
    config: Config, tmp_path: Path
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "here", config, small(), rejected(*REASONS))
    (tmp_path / "matplotlibrc").write_text("figure.facecolor: red\nfont.size: 20\nsavefig.dpi: 30\n")
    code = """
import pathlib, sys
from finetuning.config.loading import load_config
from test_dataset_files import REASONS, rejected, small, write
write(pathlib.Path(sys.argv[1]), load_config("configs/demo.yaml", []), small(), rejected(*REASONS))
"""
    paths = os.pathsep.join([str(ROOT / "Fine_tuning"), str(ROOT / "tests"), str(ROOT / "tests" / "data")])
    environment = {**os.environ, "PYTHONPATH": paths, "MPLBACKEND": "pdf", "PYTHONHASHSEED": "1"}
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "there"], check=True, cwd=tmp_path, env=environment, capture_output=True
    )
    picture = (tmp_path / "here" / "dataset.png").read_bytes()
    assert picture == (tmp_path / "there" / "dataset.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and b"tEXt" not in picture and b"tIME" not in picture


@pytest.mark.slow
@pytest.mark.parametrize("speaker", ["s", ""])
@pytest.mark.parametrize("left_out", [[], rejected("too_long")])
@pytest.mark.parametrize("bandwidth_hz", [None, 0, 8000])
def test_any_dataset_can_be_drawn(
    config: Config, tmp_path: Path, speaker: str, left_out: list[RejectedRow], bandwidth_hz: int | None
) -> None:
    """A name may hold what matplotlib takes for mathematics."""
    one_each = {name: group[:1] for name, group in small(speaker, bandwidth_hz).items()}
    assert write(tmp_path, replace(config, name="$^$ 100 %"), one_each, left_out)
    assert (tmp_path / "dataset.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_picture_is_drawn_when_it_is_missing_or_another_and_not_otherwise(config: Config, tmp_path: Path) -> None:
    picture = tmp_path / "dataset.png"
    assert write(tmp_path, config, small(), [])
    first = picture.read_bytes()
    assert not write(tmp_path, config, small(), [])
    picture.unlink()
    assert write(tmp_path, config, small(), []) and picture.read_bytes() == first
    assert write(tmp_path, config, small(), rejected("too_long")) and picture.read_bytes() != first
    (tmp_path / "test_manifest.json").unlink()
    assert write(tmp_path, config, small(), []) and picture.read_bytes() == first


@pytest.mark.slow
def test_no_picture_of_another_dataset_outlives_a_run_that_ends_before_it_draws(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, config, small(), [])

    def ends(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(dataset_files.dataset_figure, "save_dataset_figure", ends)
        write(tmp_path, config, small(), rejected("too_long"))
    assert not (tmp_path / "dataset.png").exists()
    assert write(tmp_path, config, small(), rejected("too_long")) and (tmp_path / "dataset.png").exists()


@pytest.mark.slow
def test_what_a_killed_run_left_over_is_cleared_away_and_nothing_else(config: Config, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / "wavs").mkdir()
    ours = f".finetuning-{ended.pid}-0123456789abcdef-"
    left_over = [f"{ours}test_manifest.json", f"{ours}writable", f"wavs/{ours}a.wav"]
    kept = [f".{os.getpid()}-other.json", ".hidden", f".{ended.pid}", "1-a", ".x-y", f"wavs/{ended.pid}-a.wav"]
    for name in left_over + kept:
        (tmp_path / name).touch()
    write(tmp_path, config, small(), [])
    assert not [name for name in left_over if (tmp_path / name).exists()]
    assert [name for name in kept if (tmp_path / name).exists()] == kept


def test_a_manifest_that_cannot_be_written_leaves_the_others_as_they_were(config: Config, tmp_path: Path) -> None:
    """Old and new ones side by side would put clips of the test set into training."""
    write(tmp_path, config, small(), [])
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    swapped = dict(zip(SPLITS, (small()[name] for name in ("test", "validation", "train")), strict=True))
    swapped["test"].append(replace(swapped["test"][0], text="\ud800"))  # no UTF-8 can be made of it
    with pytest.raises(UnicodeEncodeError):
        write(tmp_path, config, swapped, [])
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.json")} == before
    assert not list(tmp_path.glob(".*"))
