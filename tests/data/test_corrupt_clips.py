"""Among hundreds of good clips one is broken in each of many ways: every good one comes out, every bad one is named."""

import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import Script
from finetuning.data.manifest import SPLITS, manifest_path, read_manifest
from releases import digest, good_rows, lines_of, sample_files, table, tone, write_folder

GOOD = 330
MANIFESTS = [f"{split}_manifest.json" for split in SPLITS]


def wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def few_frames(clip: bytes) -> bytes:
    """A header that states three frames, where there are a hundred."""
    at = clip.index(b"Xing") + 8
    return clip[:at] + (3).to_bytes(4, "big") + clip[at + 4 :]


def half_without_header(clip: bytes) -> bytes:
    """From the second frame on; the first holds no sound but how many there are."""
    second = clip.index(clip[:2], 4)
    return clip[second : second + len(clip) // 2]


FOLDER, NOTHING = "a folder", "nothing"
BAD: dict[str, tuple[Callable[[bytes], bytes | str], str, str]] = {  # what becomes of a good clip: reason, detail
    "empty": (lambda clip: b"", "clip_empty", "0 bytes"),
    "only_a_tag": (lambda clip: b"ID3\x03\0\0\0\0\x07\x6c" + bytes(1004), "clip_undecodable", "ffmpeg cannot read"),
    "random": (lambda clip: random.Random(0).randbytes(9000), "clip_undecodable", "ffmpeg cannot read"),
    "half": (lambda clip: clip[: len(clip) // 2], "clip_truncated", "that its header promises"),
    "half_without_header": (lambda clip: half_without_header(clip), "clip_truncated", "that clip_durations.tsv states"),
    "forty_bytes": (lambda clip: clip[:40], "clip_undecodable", "ffmpeg cannot read"),
    "web_page": (lambda clip: b"<!doctype html><title>404</title>" * 40, "clip_undecodable", "ffmpeg cannot read"),
    "no_samples": (lambda clip: tone(440, 16000, 1, 0, "WAV"), "clip_empty", "0 samples"),
    "header_cut": (lambda clip: tone(440, 16000, 1, 1, "WAV")[:20], "clip_undecodable", "Malformed 'fmt ' chunk"),
    "all_bits_flipped": (lambda clip: bytes(byte ^ 255 for byte in clip), "clip_undecodable", "ffmpeg cannot read"),
    "folder": (lambda clip: FOLDER, "clip_missing", "not in clips/"),
    "missing": (lambda clip: NOTHING, "clip_missing", "not in clips/"),
    "text": (lambda clip: b"path\tsentence\n" * 99, "clip_undecodable", "ffmpeg cannot read"),
    "not_a_number": (lambda clip: wav(np.array([0.0] * 8000 + [np.nan])), "clip_undecodable", "not numbers"),
    "infinite": (lambda clip: wav(np.full(8000, np.inf)), "clip_undecodable", "not numbers"),
    "zeros": (lambda clip: bytes(len(clip)), "clip_undecodable", "ffmpeg cannot read"),
    "endless_tag": (lambda clip: b"ID3\x03\0\0" + b"\x7f" * 4 + clip, "clip_undecodable", "ffmpeg cannot read"),
    "integers_as_floats": (lambda clip: wav(np.full(32000, 20000.0)), "clip_out_of_range", "divide them by 32,768"),
    "opposite": (lambda clip: wav(np.outer(np.sin(np.arange(48000)), [1, -1])), "channels_cancel", "their mean"),
}
Clips = dict[str, bytes | str]


@pytest.fixture(scope="module")
def release() -> tuple[Clips, Clips, dict[str, bytes]]:
    """Good clips, bad clips and the tables; the good are the sample's under other names, one is no mp3."""
    rows, durations, good, bad = good_rows(GOOD + 2 + len(BAD)), ["clip\tduration[ms]"], {}, {}
    stated = dict(line.split("\t") for line in sample_files()["clip_durations.tsv"].decode().splitlines())
    names = (
        [f"good {i:03}.mp3" for i in range(GOOD)] + ["vorbis.mp3", "few_frames.mp3"] + [f"{what}.mp3" for what in BAD]
    )
    for row, name in zip(rows, names, strict=True):
        clip = sample_files()[row["path"]]
        durations.append(f"{name}\t{stated[row['path']]}")
        if name.startswith("good"):
            good[name] = clip
        elif name == "few_frames.mp3":
            good[name] = few_frames(clip)
        elif name == "vorbis.mp3":
            good[name] = tone(440, 44100, 2, float(stated[row["path"]]) / 1000, "OGG")
        else:
            bad[name] = BAD[name.removesuffix(".mp3")][0](clip)
    renamed = [row | {"path": name} for row, name in zip(rows, names, strict=True)]
    random.Random(1).shuffle(renamed)
    return good, bad, {"validated.tsv": table(renamed), "clip_durations.tsv": "\n".join(durations).encode() + b"\n"}


def as_folder(folder: Path, tables: dict[str, bytes], clips: Clips) -> Path:
    files = {f"clips/{name}": clip for name, clip in clips.items() if isinstance(clip, bytes)}
    source = write_folder(folder / "cv-corpus-9.0" / "it", tables | files)
    for name in (name for name, clip in clips.items() if clip == FOLDER):
        (source / "clips" / name).mkdir()
    return source


def as_archive(folder: Path, tables: dict[str, bytes], clips: Clips) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "release.tar.gz", "w:gz", compresslevel=1) as tar:
        tar.add(as_folder(folder, tables, clips).parent, "cv-corpus-9.0")
    return folder / "release.tar.gz"


@pytest.fixture(scope="module")
def make(run_script: Script) -> Callable[..., str]:
    """Run step 1 and give what it prints."""

    def run(source: Path, output: Path) -> str:
        arguments = (f"dataset.source={source}", f"dataset.output={output}", "dataset.split.by=speaker")
        made = run_script("dataset_creation.py", *arguments, "dataset.workers=2")
        assert made.returncode == 0, made.stderr[-2000:]
        assert not [word for word in ("Traceback", "mpg123", "Xing", "arning") if word in made.stderr]
        return made.stdout

    return run


@pytest.fixture(scope="module")
def clean(make, release: tuple[Clips, Clips, dict[str, bytes]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the good clips alone give."""
    good, _, tables = release
    folder = tmp_path_factory.mktemp("clean")
    make(as_folder(folder / "source", tables, good), folder / "data")
    assert len(list((folder / "data" / "wavs").iterdir())) == len(good) >= 300
    return folder / "data"


@pytest.mark.slow
@pytest.mark.parametrize("pack", [as_folder, as_archive])
def test_a_few_corrupt_clips_cost_nothing_but_themselves(
    make, clean: Path, release: tuple[Clips, Clips, dict[str, bytes]], tmp_path: Path, pack: Callable[..., Path]
) -> None:
    good, bad, tables = release
    mixed = dict(random.Random(2).sample([*(good | bad).items()], len(good | bad)))
    source, corrupt = pack(tmp_path / "source", tables, mixed), tmp_path / "data"
    make(source, corrupt)
    wavs = digest(corrupt / "wavs")
    assert {wav: wavs.pop(wav) for wav in digest(clean / "wavs")} == digest(clean / "wavs")
    assert wavs.keys() <= {"half_without_header.wav"}, "kept for another dataset.max_missing_share"
    assert [(corrupt / m).read_bytes() for m in MANIFESTS] == [(clean / m).read_bytes() for m in MANIFESTS]
    heard = {u.audio_filepath for split in SPLITS for u in read_manifest(manifest_path(corrupt, split))}
    assert heard == {f"wavs/{name.removesuffix('.mp3')}.wav" for name in good}

    found = {line["path"]: (line["reason"], line["detail"]) for line in lines_of(corrupt / "rejected.jsonl")}
    assert len(found) == len(lines_of(corrupt / "rejected.jsonl")) == len(BAD)
    for name, (_, reason, detail) in BAD.items():
        assert found[f"{name}.mp3"][0] == reason, name
        assert detail in found[f"{name}.mp3"][1], name
        assert str(tmp_path) not in found[f"{name}.mp3"][1]
    again = make(source, corrupt)
    assert " 0 to convert" in again and "nothing to do" in again, "a clip that stays bad was tried again"
