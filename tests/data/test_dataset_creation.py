import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import unicodedata
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import ROOT, Script, assert_refused
from finetuning.audio.decoding import Part
from finetuning.data import conversion_pool
from finetuning.data.listing import Clip
from finetuning.data.manifest import SPLITS, manifest_path, read_manifest
from releases import (
    COLUMNS,
    SAMPLE,
    digest,
    good_rows,
    lines_of,
    release_files,
    sample_files,
    small_release,
    table,
    tone,
    write_archive,
    write_folder,
)

MADE = (*(f"{split}_manifest.json" for split in SPLITS), "rejected.jsonl", "dataset.json", "dataset.png")
BY_SPEAKER = ("dataset.split.by=speaker", "dataset.workers=2")


@pytest.fixture(scope="module")
def make(run_script: Script):
    """Run step 1 on `source` into `output`."""

    def run(source: Path, output: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
        return run_script("dataset_creation.py", f"dataset.source={source}", f"dataset.output={output}", *overrides)

    return run


@pytest.fixture(scope="module")
def sample_dataset(make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample, by speaker."""
    output = tmp_path_factory.mktemp("sample") / "data"
    before = SAMPLE.read_bytes()
    made = make(SAMPLE, output, *BY_SPEAKER)
    assert made.returncode == 0, made.stderr[-2000:]
    assert SAMPLE.read_bytes() == before
    return output


def made_files(output: Path) -> dict[str, bytes]:
    return {name: (output / name).read_bytes() for name in MADE}


def reasons(output: Path) -> dict[str, str]:
    return {line["path"]: line["reason"] for line in lines_of(output / "rejected.jsonl")}


def test_every_row_of_the_sample_is_an_utterance_or_has_its_reason(sample_dataset: Path) -> None:
    utterances = [u for split in SPLITS for u in read_manifest(manifest_path(sample_dataset, split))]
    assert reasons(sample_dataset) == {
        "common_voice_it_49000000.mp3": "clip_missing",
        "common_voice_it_49000001.mp3": "clip_empty",
        "common_voice_it_49000002.mp3": "clip_truncated",
        "common_voice_it_49000003.mp3": "duplicate_clip",
        "common_voice_it_49000004.mp3": "foreign_character",
        "common_voice_it_49000005.mp3": "empty_sentence",
    }
    assert len(utterances) + 6 == 446
    assert sum(u.duration for u in utterances) / 60 == pytest.approx(24.4, abs=0.3)
    for u in utterances[::50]:
        with wave.open(str(sample_dataset / u.audio_filepath)) as wav:
            assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (1, 2, 16000)
            assert wav.getnframes() / 16000 == u.duration


def test_dataset_json_agrees_with_the_manifests_and_names_no_place(sample_dataset: Path) -> None:
    about = json.loads((sample_dataset / "dataset.json").read_text())
    speakers = {}
    for split in SPLITS:
        utterances = read_manifest(manifest_path(sample_dataset, split))
        assert [u.audio_filepath for u in utterances] == sorted(u.audio_filepath for u in utterances)
        speakers[split] = {u.speaker for u in utterances}
        assert about["splits"][split]["clips"] == len(utterances)
        assert about["splits"][split]["speakers"] == len(speakers[split])
        assert about["splits"][split]["hours"] == pytest.approx(sum(u.duration for u in utterances) / 3600, abs=1e-4)
    assert sum(map(len, speakers.values())) == 40 == len(set.union(*speakers.values()))
    pairs = ("train and validation", "train and test", "validation and test")
    assert about["overlap"] == {pair: {"speakers": 0, "sentences": 0} for pair in pairs}
    for split, known in about["known_from_train"].items():
        assert known["neither"] == {"clips": about["splits"][split]["clips"], "share": 1.0}
        assert known["speaker"] == known["sentence"] == {"clips": 0, "share": 0.0}
    assert (about["rows"], about["utterances"], about["rejected"]) == (446, 440, 6)
    assert about["release"] == "cv-corpus-sample-1.0-2026-11-22/it"
    assert str(sample_dataset.parent) not in json.dumps(about)


def test_a_rerun_does_nothing_and_a_missing_wav_alone_is_made_again(make, sample_dataset: Path) -> None:
    before, times = digest(sample_dataset), {p: p.stat().st_mtime_ns for p in sample_dataset.rglob("*")}
    again = make(SAMPLE, sample_dataset, *BY_SPEAKER)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert digest(sample_dataset) == before
    assert {p: p.stat().st_mtime_ns for p in sample_dataset.rglob("*")} == times
    assert "recordings" not in again.stdout, "nothing of it is notable"
    gone, cut, edited, touched = sorted((sample_dataset / "wavs").iterdir())[:4]
    gone.unlink()
    edited.write_bytes(edited.read_bytes()[:-2] + b"\1\2")
    touched.touch()
    cut.write_bytes(cut.read_bytes()[:1000])
    (sample_dataset / "train_manifest.json").unlink()
    again = make(SAMPLE, sample_dataset, *BY_SPEAKER)
    assert again.returncode == 0 and "440 converted already, 3 to convert" in again.stdout
    assert f"2 wavs have changed since they were made, such as {cut.name}; they are made again" in again.stdout
    after = digest(sample_dataset)
    assert {k: v for k, v in after.items() if "conversion" not in k} == {
        k: v for k, v in before.items() if "conversion" not in k
    }


def test_other_splits_texts_and_filters_convert_nothing_again(make, sample_dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    shutil.copytree(sample_dataset, output)
    by_clip = make(SAMPLE, output, "dataset.split.by=clip", "dataset.max_duration_s=4.0")
    assert by_clip.returncode == 0, by_clip.stderr
    assert "443 converted already, 0 to convert" in by_clip.stdout
    assert "changed since the last run: dataset.max_duration_s, dataset.split;" in by_clip.stdout
    in_split = {split: read_manifest(manifest_path(output, split)) for split in SPLITS}
    heard = {u.speaker for u in in_split["train"]}
    known = json.loads((output / "dataset.json").read_text())["known_from_train"]["test"]
    clips = sum(u.speaker in heard for u in in_split["test"])
    assert known["speaker"] == {"clips": clips, "share": round(clips / len(in_split["test"]), 4)} and clips
    assert f"{clips:,} ({clips / len(in_split['test']):.1%})" in by_clip.stdout
    utterances = [u for split in SPLITS for u in in_split[split]]
    assert max(u.duration for u in utterances) <= 4.0 and "too_long" in reasons(output).values()
    assert len(utterances) + len(reasons(output)) == 446
    by_release = make(SAMPLE, output, "dataset.split.by=release", "text.alphabet=' abcdefghijklmnopqrstuvwxyzàèéìòù'")
    assert by_release.returncode == 0 and "dataset.split, text.alphabet;" in by_release.stdout
    assert " 0 to convert" in by_release.stdout
    of_release = {row.split("\t")[1] for row in sample_files()["test.tsv"].decode().splitlines()[1:]}
    in_test = {u.audio_filepath[5:-4] + ".mp3" for u in read_manifest(manifest_path(output, "test"))}
    assert in_test == of_release - reasons(output).keys()
    assert "'" in {line["detail"] for line in lines_of(output / "rejected.jsonl")}


def silence(seconds: float) -> bytes:
    """An mp3 of what a muted microphone records: less than the last bit, and a click."""
    samples, buffer = np.random.default_rng(0).normal(0, 2e-5, round(seconds * 48000)), io.BytesIO()
    samples[9000:9010] = 0.5
    soundfile.write(buffer, samples, 48000, format="MP3")
    return buffer.getvalue()


def defective() -> tuple[dict[str, bytes], dict[str, str]]:
    """A release of 12 good clips and one of each defect, and the reason expected for each path."""
    files, rows = small_release(12), good_rows(12)
    clips = {row["path"]: sample_files()[row["path"]] for row in rows}
    good = clips[rows[2]["path"]]
    added = {  # path: clip, sentence, reason (None: an utterance)
        "stereo.mp3": (tone(440, 44100, 2, 3.0), "Uno.", None),
        "fast.mp3": (tone(440, 48000, 1, 3.0), "Due.", None),
        "decomposed.mp3": (tone(500, 24000, 1, 3.0), unicodedata.normalize("NFD", "Perché è più là."), None),
        "quote.mp3": (tone(600, 24000, 1, 3.0), '"Ciao', None),
        "wav in disguise.mp3": (tone(440, 22050, 1, 3.0, "WAV"), "Tre.", None),
        "missing.mp3": (None, "Quattro.", "clip_missing"),
        "empty.mp3": (b"", "Cinque.", "clip_empty"),
        "text.mp3": (b"<html>gone</html>" * 99, "Sei.", "clip_undecodable"),
        "zeros.mp3": (bytes(4000), "Sette.", "clip_undecodable"),
        "blip.mp3": (tone(440, 16000, 1, 0.05, "WAV"), "Otto.", "too_short"),
        "long.mp3": (tone(440, 16000, 1, 17.0, "WAV"), "Nove.", "too_long"),
        "crowded.mp3": (
            tone(440, 16000, 1, 0.5, "WAV"),
            "Una frase più lunga del suo suono.",
            "too_many_characters",
        ),
        "hasty.mp3": (tone(440, 16000, 1, 1.0, "WAV"), "Una frase lunga per un secondo di suono.", "too_fast"),
        "silent.mp3": (silence(3.0), "Dodici.", "no_speech"),
        "foreign.mp3": (good, "Søren 8.", "foreign_character"),
        "blank.mp3": (good, "  ", "empty_sentence"),
        "marks.mp3": (good, "?!", "empty_sentence"),
        "../outside.mp3": (None, "Dieci.", "path_outside_clips"),
        "/etc/passwd": (None, "Undici.", "path_outside_clips"),
    }
    for path, (clip, sentence, _) in added.items():
        rows = [*rows, rows[0] | {"path": path, "sentence": sentence, "client_id": f"speaker of {path}"}]
        if clip is not None:
            clips[path] = clip
    cut = "common_voice_it_40000011.mp3"  # a good row's clip, of which clip_durations.tsv tells the length
    clips[cut] = clips[cut][: len(clips[cut]) // 3]
    files = release_files([*rows, rows[0]], clips)
    files["validated.tsv"] += b"a row of one field\n"
    expected = {path: reason for path, (_, _, reason) in added.items() if reason}
    return files, expected | {cut: "clip_truncated", rows[0]["path"]: "duplicate_clip", "": "malformed_row"}


@pytest.mark.slow
def test_each_defect_is_rejected_alone_from_folder_and_archive_alike(make, tmp_path: Path) -> None:
    files, expected = defective()
    folder = write_folder(tmp_path / "cv-corpus-9.0" / "it", files)
    archive = write_archive(tmp_path / "release.tar.gz", dict(reversed(files.items())))
    before = digest(folder) | {"archive": archive.read_bytes()}
    for source, output in ((folder, tmp_path / "a"), (archive, tmp_path / "b")):
        made = make(source, output, *BY_SPEAKER)
        assert made.returncode == 0, made.stderr[-2000:]
        assert "Xing" not in made.stderr  # what libmpg123 says about the truncated clip
    assert digest(folder) | {"archive": archive.read_bytes()} == before
    assert reasons(tmp_path / "a") == expected
    assert made_files(tmp_path / "a") == made_files(tmp_path / "b")
    assert digest(tmp_path / "a" / "wavs") == digest(tmp_path / "b" / "wavs")
    utterances = [u for split in SPLITS for u in read_manifest(manifest_path(tmp_path / "a", split))]
    by_wav = {u.audio_filepath: u for u in utterances}
    assert len(utterances) == 12 - 1 + 5
    assert by_wav["wavs/decomposed.wav"].text == "perché è più là"
    assert by_wav["wavs/quote.wav"].text == "ciao"
    for name in ("stereo", "fast", "wav in disguise"):
        assert by_wav[f"wavs/{name}.wav"].duration == pytest.approx(3.0, abs=0.1)


@pytest.mark.slow
def test_new_clips_and_other_trimming_convert_what_depends_on_them(make, tmp_path: Path) -> None:
    folder, output = write_folder(tmp_path / "it", small_release(12)), tmp_path / "data"
    late = folder / "clips" / good_rows(12)[0]["path"]
    clip = late.read_bytes()
    late.unlink()
    (folder / "clip_durations.tsv").unlink()
    made = make(folder, output, *BY_SPEAKER)
    assert made.returncode == 0 and "no clip_durations.tsv" in made.stdout, made.stderr
    assert reasons(output)[late.name] == "clip_missing"
    late.write_bytes(clip)
    made = make(folder, output, *BY_SPEAKER)
    assert "11 converted already, 1 to convert" in made.stdout and late.name not in reasons(output)
    late.write_bytes(sample_files()[good_rows(12)[1]["path"]])
    assert "11 converted already, 1 to convert" in make(folder, output, *BY_SPEAKER).stdout
    full = {u.audio_filepath: u.duration for s in SPLITS for u in read_manifest(manifest_path(output, s))}
    trimmed = make(folder, output, *BY_SPEAKER, "dataset.workers=1", "dataset.trim_silence_db=30")
    assert trimmed.returncode == 0, trimmed.stderr
    assert "every clip is converted again" in trimmed.stdout and "12 to convert" in trimmed.stdout
    short = {u.audio_filepath: u.duration for s in SPLITS for u in read_manifest(manifest_path(output, s))}
    assert all(short[wav] <= full[wav] for wav in short) and sum(short.values()) < sum(full.values())


class Deadly:
    """Ends the process that receives it, as a decoder that crashes does."""

    def __reduce__(self):
        return os._exit, (1,)


@pytest.mark.slow
def test_clips_that_end_their_process_are_bad_clips_and_the_others_are_converted(tmp_path: Path) -> None:
    """One in the middle of a batch, two side by side in another, and batches without any."""
    good, deadly = sample_files()[good_rows(1)[0]["path"]], {"3.mp3", "20.mp3", "21.mp3"}
    clips = {f"{i}.mp3": good for i in range(4 * conversion_pool.BATCH)} | {name: Deadly() for name in deadly}
    tasks = [(clip, [(name, "stamp")], [Part(tmp_path / f"{name}.wav")], None) for name, clip in clips.items()]
    found = list(conversion_pool.iter_results(iter(tasks), len(tasks), workers=2))
    assert sorted(result.path for result in found) == sorted(clips)
    blame = ("clip_undecodable", "ends the process that decodes it")
    assert {r.path: (r.reason, r.detail) for r in found if r.reason} == dict.fromkeys(deadly, blame)
    assert {wav.name.removesuffix(".wav") for wav in tmp_path.iterdir()} == clips.keys() - deadly


def test_a_wav_is_used_only_as_it_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copied folder has other times and is used; a log without times and checksums, of an earlier version, too."""
    names = ("same", "touched", "edited", "cut", "gone", "old")
    clips, stamps = [Clip(f"{name}.mp3", "Ciao") for name in names], {f"{name}.mp3": "1 1" for name in names}
    good = sample_files()[good_rows(1)[0]["path"]]
    log = conversion_pool.ConversionLog(tmp_path, {"source": "it"})
    log.wavs.mkdir()
    log.start()
    names, parts = [(clip.path, "1 1") for clip in clips], [Part(log.wavs / clip.wav) for clip in clips]
    log.record(conversion_pool._convert_recording(good, names, parts, None))
    lines = log.path.read_text().splitlines()
    old = {key: value for key, value in json.loads(lines[-1]).items() if not key.startswith("wav_")}
    log.path.write_text("\n".join([*lines[:-1], json.dumps(old), ""]))
    for name in ("touched", "old"):
        os.utime(log.wavs / f"{name}.wav", ns=(5, 5))
    whole = (log.wavs / "edited.wav").read_bytes()
    (log.wavs / "edited.wav").write_bytes(whole[:-2] + b"\1\2")
    (log.wavs / "cut.wav").write_bytes(whole[:-2])
    (log.wavs / "gone.wav").unlink()
    for _ in range(2):
        missing = conversion_pool.ConversionLog(tmp_path, {"source": "it"}).missing(clips, stamps)
        assert {clip.path for clip in missing} == {"edited.mp3", "cut.mp3", "gone.mp3"}
        assert (
            "2 wavs have changed since they were made, such as edited.wav; they are made again"
            in capsys.readouterr().out
        )
    assert {line["path"]: line.get("wav_mtime_ns") for line in lines_of(log.path)[1:]}["touched.mp3"] == 5


@pytest.mark.slow
def test_few_clips_are_held_at_a_time(tmp_path: Path) -> None:
    good, taken, most = sample_files()[good_rows(1)[0]["path"]], 0, 0

    def tasks() -> Iterator[conversion_pool.Task]:
        nonlocal taken
        for taken in range(1, 10 * conversion_pool.BATCH + 1):
            yield good, [(f"{taken}.mp3", "stamp")], [Part(tmp_path / f"{taken}.wav")], None

    for landed, _ in enumerate(conversion_pool.iter_results(tasks(), 10 * conversion_pool.BATCH, workers=1)):
        most = max(most, taken - landed)
    assert landed + 1 == taken == 10 * conversion_pool.BATCH
    assert most <= conversion_pool.IN_FLIGHT * conversion_pool.BATCH


def test_a_clip_that_failed_for_a_passing_reason_is_tried_again(make, tmp_path: Path) -> None:
    source, output = write_folder(tmp_path / "it", small_release(12)), tmp_path / "data"
    assert make(source, output, *BY_SPEAKER).returncode == 0
    before, log = made_files(output), output / "conversion.jsonl"
    first, *entries = log.read_text().splitlines()
    failed = {"path": json.loads(entries[0])["path"], "stamp": json.loads(entries[0])["stamp"]}
    failed |= {"reason": "clip_unreadable", "detail": "Permission denied", "passing": True}
    log.write_text("\n".join([first, json.dumps(failed), *entries[1:]]) + "\n")
    again = make(source, output, *BY_SPEAKER)
    assert "1 to convert" in again.stdout, again.stdout + again.stderr
    assert made_files(output) == before


def without(column: str) -> dict[str, bytes]:
    return small_release(12) | {"validated.tsv": table(good_rows(12), [c for c in COLUMNS if c != column])}


def two_speakers() -> dict[str, bytes]:
    rows = [row | {"client_id": str(i % 2)} for i, row in enumerate(good_rows(12))]
    return small_release(12) | {"validated.tsv": table(rows)}


def not_utf8() -> dict[str, bytes]:
    files = small_release(12)
    return files | {"validated.tsv": files["validated.tsv"].replace("è".encode(), b"\xe8")}


@pytest.mark.parametrize(
    ("files", "overrides", "words"),
    [
        (lambda: without("path"), (), ("no column path", "client_id")),
        (lambda: without("sentence"), (), ("no column sentence",)),
        (lambda: without("client_id"), ("dataset.split.by=speaker",), ("no column client_id", "dataset.split.by=clip")),
        (not_utf8, (), ("validated.tsv, line", "not UTF-8")),
        (two_speakers, ("dataset.split.by=speaker",), ("2 speakers",)),
        (lambda: small_release(12), ("dataset.split.by=release",), ("no train.tsv",)),
        (lambda: small_release(2), ("dataset.split.by=clip",), ("no utterance is left for",)),
        (lambda: small_release(12), ("text.alphabet=' x'",), ("no row is left", "'e' in 12", "--config")),
        (lambda: small_release(12), ("text.alphabet=' ABC'",), ("text.alphabet", "no capital")),
        (lambda: small_release(12), ("dataset.source=~nobody-here/x",), ("~nobody-here/x",)),
    ],
)
def test_releases_that_cannot_work_are_refused_in_a_sentence(make, tmp_path: Path, files, overrides, words) -> None:
    source = write_folder(tmp_path / "it", files())
    assert_refused(make(source, tmp_path / "data", *overrides), *words)
    assert not list((tmp_path / "data").glob("*_manifest.json"))


def named(*paths: str) -> dict[str, bytes]:
    """A release whose table has these names for its clips."""
    rows = [row | {"path": path} for row, path in zip(good_rows(len(paths)), paths, strict=True)]
    return small_release(len(paths)) | {"validated.tsv": table(rows)}


@pytest.mark.parametrize(
    ("files", "overrides", "words", "reason"),
    [
        (lambda: named("x1.mp3", "x2.mp3"), (), ("2 name a clip", "'x1.mp3'", "40000000.mp3' and 1 more"),
         "clip_missing"),
        (lambda: named("/a/x1", "/a/x2"), (), ("'/a/x1'", "'common_voice_it_40000000.mp3'"), "path_outside_clips"),
        (lambda: small_release(4), ("text.alphabet=' x'",), ("no row is left", "'e' in 4"), "foreign_character"),
        (lambda: small_release(4), ("dataset.split.by=speaker", "dataset.max_duration_s=0.2"),
         ("for train and validation and test", "4 too_long", "most are too_long", "common_voice_it_40000000.mp3"),
         "too_long"),
        (lambda: small_release(1) | {"validated.tsv": table([])}, (), ("no row below its header",), None),
    ],
)  # fmt: skip
def test_when_nothing_is_left_it_is_said_what_all_rows_have_in_common(
    make, tmp_path: Path, files, overrides, words, reason: str | None
) -> None:
    source, output = write_folder(tmp_path / "it", files()), tmp_path / "data"
    refused = make(source, output, *overrides)
    assert_refused(refused, *words)
    assert "larger release" not in refused.stderr
    if reason is None:
        assert not output.exists()
    else:
        assert set(reasons(output).values()) == {reason} and str(output / "rejected.jsonl") in refused.stderr


def test_a_dataset_that_is_there_keeps_its_rejections(make, tmp_path: Path) -> None:
    source, output = write_folder(tmp_path / "it", small_release(12)), tmp_path / "data"
    assert make(source, output, *BY_SPEAKER).returncode == 0
    before = made_files(output)
    assert_refused(make(source, output, *BY_SPEAKER, "text.alphabet=' x'"), "no row is left")
    assert made_files(output) == before


def test_clips_named_otherwise_are_taken_and_many_missing_ones_are_warned_of(
    run_script: Script, tmp_path: Path
) -> None:
    """The source is named from the folder the script is started in."""
    good = [row["path"] for row in good_rows(6)]
    given = [good[0][:-4], f"clips/{good[1]}", f"clips\\{good[2]}", f"/cv/it/clips/{good[3]}", good[4].upper()]
    given.append(good[5].replace(".mp3", ".wav"))
    rows = good_rows(16)
    tables = table(
        [row | {"path": path} for row, path in zip(rows, given + [f"x{i}.mp3" for i in range(10)], strict=True)]
    )
    write_folder(tmp_path / "it", small_release(6) | {"validated.tsv": tables})
    arguments = ("dataset.source=it", f"dataset.output={tmp_path / 'data'}", "dataset.workers=1")
    made = run_script("dataset_creation.py", *arguments, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "the tables name 6 clips otherwise than clips/ does: '/cv/it/clips/" in made.stdout
    assert "warning: 62% of the rows are rejected as clip_missing, such as 'x0.mp3': not in clips/" in made.stdout
    wavs = {u.audio_filepath for s in SPLITS for u in read_manifest(manifest_path(tmp_path / "data", s))}
    assert wavs == {f"wavs/{path[:-4]}.wav" for path in good}
    elsewhere = run_script("dataset_creation.py", *arguments, cwd=tmp_path / "data")
    assert_refused(elsewhere, f"there is no release {ROOT / 'it'}", "nor it in the current folder")


def test_a_dangerous_or_broken_archive_is_refused_in_a_sentence(make, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", {"clips/../../../x.mp3": b"x"})
    assert_refused(make(archive, tmp_path / "data"), "clips/../../../x.mp3", "points outside")
    archive.write_bytes(SAMPLE.read_bytes()[:1_000_000])
    assert_refused(make(archive, tmp_path / "data"), "truncated")
    assert not (tmp_path / "data").exists()


def test_an_output_that_cannot_be_written_is_refused_in_a_sentence(make, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "it", small_release(12))
    (tmp_path / "file").write_text("")
    assert_refused(make(source, tmp_path / "file" / "data"), "cannot write to the folder", "file/data")
    assert_refused(make(SAMPLE, tmp_path / "file"), "cannot write to the folder")
    before = digest(source)
    assert_refused(make(source, source), "lies in the release", "dataset.output=")
    assert_refused(make(source, source / ".." / source.name / "clips" / "wavs"), "lies in the release")
    assert digest(source) == before


@pytest.mark.slow
def test_a_disk_without_room_for_the_wavs_is_told_before_the_first_is_made(make, tmp_path: Path) -> None:
    """On a disk of 1 MB; what a row states beyond all reason is not believed."""
    files, disk = small_release(), tmp_path / "disk"
    durations = files["clip_durations.tsv"]
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may make a disk")
    try:
        refused = make(write_folder(tmp_path / "it", files), disk / "data", *BY_SPEAKER)
        assert_refused(refused, "missing wavs", "has 0.00 GB left", str(disk / "data"), "make room")
        assert not (disk / "data").exists()
    finally:
        subprocess.run(["umount", disk], check=True)
    for number, wrong in enumerate((b"nan", b"inf", b"-1", b"1e18")):
        files["clip_durations.tsv"] = re.sub(rb"\t\d+\n", b"\t" + wrong + b"\n", durations, count=1)
        made = make(write_folder(tmp_path / f"it{number}", files), tmp_path / f"data{number}", *BY_SPEAKER)
        assert made.returncode == 0, made.stderr[-2000:]


def test_another_release_does_not_replace_a_dataset(make, tmp_path: Path) -> None:
    output = tmp_path / "data"
    made = make(write_archive(tmp_path / "a.tar.gz", small_release(12)), output, *BY_SPEAKER)
    assert made.returncode == 0, made.stderr[-2000:]
    before = digest(output)
    other = make(write_archive(tmp_path / "b.tar.gz", small_release(9)), output, "dataset.max_duration_s=0.2")
    assert_refused(other, "holds another source", "dataset.output=")
    after = digest(output)
    assert {name: after[name] for name in before if not name.startswith("release/")} == {
        name: before[name] for name in before if not name.startswith("release/")
    }


def test_what_reads_the_output_may_be_full_or_gone(make, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "Fine_tuning" / "dataset_creation.py"), f"dataset.output={tmp_path / 'data'}"]
    command.append(f"dataset.source={write_folder(tmp_path / 'it', small_release(12))}")
    with Path("/dev/full").open("w") as full:
        to_full = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert_refused(to_full, "the disk of the output is full")
    reading, writing = os.pipe()
    os.close(reading)
    to_nobody = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert_refused(to_nobody, "the output was closed by its reader")
    plain = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True)
    assert plain.returncode == 0, plain.stderr[-2000:]


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(make, tmp_path: Path) -> None:
    """A limit of 64 KiB a file stands for the full disk: the third longest wav does not fit."""
    source, output = write_folder(tmp_path / "it", small_release(12)), tmp_path / "data"
    script = [sys.executable, str(ROOT / "Fine_tuning" / "dataset_creation.py"), "dataset.workers=1"]
    script += [f"dataset.source={source}", f"dataset.output={output}"]
    limited = subprocess.run(["bash", "-c", 'ulimit -f 64; exec "$@"', "-", *script], capture_output=True, text=True)
    assert_refused(limited, "cannot write to", "rerun the same command")
    assert not list(output.glob("wavs/.*")) and not list(output.glob("*_manifest.json"))
    assert make(source, output, "dataset.workers=1").returncode == 0


def test_help_is_quick_and_needs_no_heavy_import(run_script: Script) -> None:
    started = time.monotonic()
    shown = run_script("dataset_creation.py", "--help")
    assert shown.returncode == 0 and "--config" in shown.stdout
    assert time.monotonic() - started < 1


def test_two_runs_into_one_folder_exclude_each_other(make, tmp_path: Path) -> None:
    source, output = write_folder(tmp_path / "it", small_release(12)), tmp_path / "data"
    output.mkdir()
    held = os.open(output, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert_refused(make(source, output), "another run is writing to")
    os.close(held)
