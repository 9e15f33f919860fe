"""Tables of somebody's own recordings: segments, channels, columns of any name, NeMo's manifests."""

import csv
import json
import math
import os
import re
import subprocess
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from conftest import ROOT, Script, assert_refused
from finetuning.audio import decoding
from finetuning.audio.ffmpeg import find_ffmpeg
from finetuning.data import recording_table
from finetuning.data.manifest import SPLITS, manifest_path, read_manifest
from finetuning.errors import UserError
from releases import good_rows, lines_of, sample_files

Make = Callable[..., subprocess.CompletedProcess[str]]
BY_CLIP = ("dataset.split={by: clip, train: 0.34, validation: 0.33, test: 0.33}", "dataset.workers=2")
RATE = 16000
DOCUMENTATION = ROOT / "docs" / "data.md"


@pytest.fixture(scope="module")
def make(run_script: Script) -> Make:
    """Run step 1 on the table `source` into the folder `data` beside it."""

    def run(source: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
        output = f"dataset.output={source.parent / 'data'}"
        return run_script("dataset_creation.py", f"dataset.source={source}", output, *BY_CLIP, *overrides)

    return run


def clips(count: int) -> list[tuple[np.ndarray, str]]:
    """Samples at 16 kHz and sentence of the first clips of the sample."""
    return [
        (decoding.to_mono_16k(*decoding.decode_audio(sample_files()[row["path"]])), row["sentence"])
        for row in good_rows(count)
    ]


def write_csv(path: Path, rows: list[dict[str, object]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def utterances(folder: Path) -> dict[str, object]:
    found = [u for split in SPLITS for u in read_manifest(manifest_path(folder, split))]
    return {u.audio_filepath: u for u in found}


def rejected(folder: Path) -> dict[str, tuple[str, str]]:
    return {line["path"]: (line["reason"], line["detail"]) for line in lines_of(folder / "rejected.jsonl")}


def samples(wav: Path) -> np.ndarray:
    with wave.open(str(wav)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768


def call(folder: Path, name: str, parts: list[np.ndarray], rate: int = 8000) -> list[tuple[float, float]]:
    """Write a stereo call of two sides that speak in turn, a second of silence between; when each turn is."""
    sides, times, at = [[], []], [], 0
    for number, part in enumerate(parts):
        turn = soxr.resample(part, RATE, rate)
        turn = np.concatenate([turn, np.zeros(rate)])
        sides[number % 2].append(turn)
        sides[1 - number % 2].append(np.zeros(len(turn)))
        times.append((at / rate, (at + len(turn) - rate) / rate))
        at += len(turn)
    soundfile.write(folder / name, np.stack([np.concatenate(side) for side in sides], axis=1), rate)
    return times


def test_segments_of_long_stereo_recordings_become_utterances_of_the_stated_channel(make: Make, tmp_path: Path) -> None:
    found = clips(6)
    (tmp_path / "calls").mkdir()
    times = call(tmp_path / "calls", "monday.flac", [part for part, _ in found])
    rows = [
        {
            "path": "calls/monday.flac",
            "text": text,
            "speaker": f"side {n % 2}",
            "start": begin,
            "end": end,
            "channel": n % 2,
        }
        for n, ((begin, end), (_, text)) in enumerate(zip(times, found, strict=True))
    ]
    table = write_csv(tmp_path / "calls.csv", rows)
    made = make(table)
    assert made.returncode == 0, made.stderr
    assert "calls.csv: 6 rows in calls.csv, 6 clips" in made.stdout
    of = utterances(tmp_path / "data")
    assert len(of) == 6
    assert {u.speaker for u in of.values()} == {"side 0", "side 1"}
    for number, ((begin, end), (part, text)) in enumerate(zip(times, found, strict=True)):
        name = f"wavs/calls_monday_{begin:.3f}-{end:.3f}_{number % 2}.wav"
        assert of[name].sentence == text
        cut = samples(tmp_path / "data" / name)
        expected = soxr.resample(soxr.resample(part, RATE, 8000), 8000, RATE)
        assert len(cut) == pytest.approx(len(expected), abs=16)
        shared = min(len(cut), len(expected))
        assert np.abs(cut[100 : shared - 100] - expected[100 : shared - 100]).max() < 0.01
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir() if path.is_file()}
    again = make(table)
    assert "6 converted already, 0 to convert" in again.stdout and "nothing to do" in again.stdout
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir() if path.is_file()}
    rows[0] |= {"end": rows[0]["end"] - 0.5}
    assert "5 converted already, 1 to convert" in make(write_csv(table, rows)).stdout


def test_a_recording_is_decoded_once_and_gives_the_same_whatever_its_format(tmp_path: Path) -> None:
    """Overlapping parts in any order, of a wav, a flac and an mp3, whose blocks end elsewhere."""
    whole = np.concatenate([part for part, _ in clips(12)])
    soundfile.write(tmp_path / "a.wav", whole, RATE)
    soundfile.write(tmp_path / "a.flac", whole, RATE)
    soundfile.write(tmp_path / "a.mp3", whole, RATE)
    times = [(20.5, 24.25), (0.0, 1.0), (0.5, 21.0), (4.0957, 4.0963), (len(whole) / RATE - 1, None)]
    for name in ("a.wav", "a.flac", "a.mp3"):
        decoded = decoding.to_mono_16k(*decoding.decode_audio((tmp_path / name).read_bytes()))
        parts = [decoding.Part(tmp_path / f"{n}.wav", begin, end) for n, (begin, end) in enumerate(times)]
        outcomes = decoding.convert_parts(tmp_path / name, parts, None)
        for (begin, end), part, outcome in zip(times, parts, outcomes, strict=True):
            expected = decoded[round(begin * RATE) : None if end is None else round(end * RATE)]
            assert (outcome.duration_s, outcome.decoded_s) == (len(expected) / RATE, len(expected) / RATE)
            np.testing.assert_allclose(samples(part.wav), expected.clip(-1, 1 - 1 / 32768), atol=1 / 32768)


def test_what_is_beyond_a_recording_or_behind_its_damage_is_no_utterance(tmp_path: Path) -> None:
    whole = np.concatenate([part for part, _ in clips(40)])
    soundfile.write(tmp_path / "a.flac", whole, RATE)
    seconds = len(whole) / RATE
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (tmp_path / "damaged.flac").write_bytes(data)
    for name, reason in (("a.flac", None), ("damaged.flac", "clip_")):
        parts = [
            decoding.Part(tmp_path / f"{n}.wav", begin, end)
            for n, (begin, end) in enumerate([(1.0, 2.0), (seconds - 2, seconds - 1), (seconds + 5, seconds + 6)])
        ]
        early, late, beyond = decoding.convert_parts(tmp_path / name, parts, None)
        assert early.duration_s == 1.0
        assert late.duration_s == 1.0 if reason is None else late.reason.startswith(reason)
        assert beyond.reason == "clip_empty" if reason is None else beyond.reason.startswith(reason)


@pytest.mark.slow
def test_channels_are_never_mixed_unasked(make: Make, tmp_path: Path) -> None:
    found = clips(8)
    rows = []
    for number, (part, text) in enumerate(found):
        other = part if number == 0 else part[::-1] if number < 5 else None  # the same twice, two voices, mono
        sound = part if other is None else np.stack([part, other], axis=1)
        soundfile.write(tmp_path / f"{number}.wav", sound, RATE)
        rows.append({"path": f"{number}.wav", "text": text, "channel": {1: 0, 2: "mix", 6: 1}.get(number, "")})
    table = write_csv(tmp_path / "table.csv", rows)
    made = make(table)
    assert made.returncode == 0, made.stderr
    several = ("several_channels", "2, which are not mixed unasked; state channel: 0, 1 or mix")
    assert rejected(tmp_path / "data") == {
        "3.wav": several,
        "4.wav": several,
        "6.wav#track=1": ("no_such_channel", "there is no channel 1; the first of its 1 is 0"),
    }
    assert "several_channels" in made.stdout
    assert set(utterances(tmp_path / "data")) == {f"wavs/{n}.wav" for n in "057"} | {"wavs/1_0.wav", "wavs/2_mix.wav"}
    wavs = tmp_path / "data" / "wavs"
    np.testing.assert_allclose(samples(wavs / "1_0.wav"), found[1][0], atol=1 / 32768)
    np.testing.assert_allclose(samples(wavs / "2_mix.wav"), (found[2][0] + found[2][0][::-1]) / 2, atol=2 / 32768)
    made = make(table, "dataset.channel=0")
    assert "3 converted already, 5 to convert" in made.stdout  # those of the rows that state one stay
    assert rejected(tmp_path / "data").keys() == {"6.wav#track=1"}
    np.testing.assert_allclose(samples(wavs / "3.wav"), found[3][0], atol=1 / 32768)


@pytest.mark.parametrize("name", ["four.m4a", "four.mka", "four.wav"])
def test_each_of_four_channels_is_itself_whatever_reads_the_file(tmp_path: Path, name: str) -> None:
    """A tone a channel; ffmpeg, which reads the first two files, would mix four channels down to two."""
    tones = [400, 900, 1600, 2500]
    times = np.arange(2 * RATE) / RATE
    sound = 0.3 * np.sin(2 * np.pi * np.outer(times, tones))
    soundfile.write(tmp_path / "four.wav", sound, RATE)
    if not name.endswith("wav"):
        codec = "aac" if name.endswith("m4a") else "pcm_s16le"
        command = [find_ffmpeg(), "-v", "error", "-i", tmp_path / "four.wav", "-c:a", codec, tmp_path / name]
        subprocess.run(command, check=True)
    parts = [decoding.Part(tmp_path / f"{channel}.wav", channel=channel) for channel in ("0", "1", "mix")]
    outcomes = decoding.convert_parts(tmp_path / name, parts, None)
    for part, expected in zip(parts, ([0.3, 0, 0, 0], [0, 0.3, 0, 0], [0.075] * 4), strict=True):
        heard = samples(part.wav)[RATE // 2 : RATE // 2 + RATE]
        levels = 2 * np.abs(np.fft.rfft(heard))[tones] / RATE
        np.testing.assert_allclose(levels, expected, atol=0.01)
    assert all(outcome.sound.channels == 4 for outcome in outcomes)


@pytest.mark.slow
def test_a_manifest_of_nemo_is_a_table(make: Make, tmp_path: Path) -> None:
    """Relative and absolute paths; an offset makes a segment, a duration alone is what the file should last."""
    found = clips(5)
    for number, (part, _) in enumerate(found):
        soundfile.write(tmp_path / f"{number}.wav", part, RATE)
    seconds = [len(part) / RATE for part, _ in found]
    lines = [
        {"audio_filepath": "0.wav", "duration": seconds[0], "text": found[0][1], "lang": "it"},
        {"audio_filepath": str(tmp_path / "1.wav"), "duration": seconds[1], "text": found[1][1], "speaker": 7},
        {"audio_filepath": "2.wav", "offset": 0.5, "duration": seconds[2] - 0.5, "text": found[2][1]},
        {"audio_filepath": "3.wav", "duration": 3 * seconds[3], "text": found[3][1]},
        {"audio_filepath": "4.wav", "duration": seconds[4], "text": found[4][1], "sentence": "Ciao."},
    ]
    table = tmp_path / "manifest.json"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = make(table, "evaluation.note=x")
    assert made.returncode == 0, made.stderr
    reason, detail = rejected(tmp_path / "data")["3.wav"]
    assert reason == "clip_truncated" and detail.endswith("s that the table states")
    of = utterances(tmp_path / "data")
    absolute = str(tmp_path / "1").strip("/").replace("/", "_")
    assert set(of) == {"wavs/0.wav", f"wavs/{absolute}.wav", f"wavs/2_0.500-{seconds[2]:.3f}.wav", "wavs/4.wav"}
    assert of[f"wavs/{absolute}.wav"].speaker == "7"
    assert of["wavs/4.wav"].text == "ciao"
    assert of[f"wavs/2_0.500-{seconds[2]:.3f}.wav"].duration == pytest.approx(seconds[2] - 0.5, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("csv", ";"), ("tsv", "\t")])
def test_columns_may_be_called_anything(make: Make, tmp_path: Path, suffix: str, delimiter: str) -> None:
    found = clips(4)
    rows = []
    for number, (part, text) in enumerate(found):
        soundfile.write(tmp_path / f"{number}.wav", part, RATE)
        quoted = f'"{text}", disse' if suffix == "csv" else f'"{text}'
        split = ["training", "Dev", "test", "train"][number]
        rows.append({"file": f"{number}.wav", "trascrizione": quoted, "parte": split.replace("training", "train")})
    rows.append(rows[0])  # the same line twice is one
    table = tmp_path / f"table.{suffix}"
    if suffix == "csv":
        write_csv(table, rows, delimiter)
    else:
        table.write_text("\n".join("\t".join(row) for row in [list(rows[0]), *map(dict.values, rows)]) + "\n")
    columns = "dataset.columns={path: file, text: trascrizione, split: parte}"
    made = make(table, columns, "dataset.split.by=release")
    assert made.returncode == 0, made.stderr
    of = {split: read_manifest(manifest_path(tmp_path / "data", split)) for split in SPLITS}
    assert [[u.audio_filepath for u in of[split]] for split in SPLITS] == [
        ["wavs/0.wav", "wavs/3.wav"],
        ["wavs/1.wav"],
        ["wavs/2.wav"],
    ]
    assert of["test"][0].sentence == rows[2]["trascrizione"]


@pytest.mark.slow
def test_a_row_that_means_no_part_of_a_recording_has_its_reason(make: Make, tmp_path: Path) -> None:
    found = clips(3)
    long = np.concatenate([part for part, _ in clips(12)])
    soundfile.write(tmp_path / "long.wav", long, RATE)
    for number, (part, _) in enumerate(found):
        soundfile.write(tmp_path / f"{number}.wav", part, RATE)
    (tmp_path / "folder.wav").mkdir()
    text = found[0][1]
    lines = [
        *({"path": f"{number}.wav", "text": text} for number, (_, text) in enumerate(found)),
        {"path": "long.wav", "text": text},
        {"path": "long.wav", "text": text, "start": 5, "end": 5},
        {"path": "long.wav", "text": text, "start": "1:30", "end": 95},
        {"path": "long.wav", "text": text, "start": 5, "end": 8, "channel": "left"},
        {"path": "long.wav", "text": text, "start": 1, "end": 3},
        {"path": "long.wav", "text": text, "start": 1, "end": 3},
        {"path": "long.wav", "text": text, "start": len(long) / RATE - 0.5, "end": len(long) / RATE + 5},
        {"path": "none.wav", "text": text},
        {"path": "folder.wav", "text": text},
        {"path": "", "text": text},
        {"path": "0.wav", "text": ["a", "list"]},
        {"path": "long.wav", "text": text, "start": 2.0, "end": 2.00002},
        {"path": "long.wav", "text": math.nan, "start": 3, "end": 6},
    ]
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines) + "not JSON\n")
    made = make(table)
    assert made.returncode == 0, made.stderr
    wrong = [(line["path"], line["reason"], line["detail"]) for line in lines_of(tmp_path / "data" / "rejected.jsonl")]
    end = len(long) / RATE
    assert sorted(wrong) == sorted([
        ("long.wav", "too_long", f"{end:.2f} s; cut it: state start and end"),
        ("long.wav", "no_segment", "line 5 of table.jsonl: it begins at 5 s and ends at 5 s"),
        ("long.wav", "no_segment", "line 6 of table.jsonl: start is '1:30', no number of seconds"),
        ("long.wav", "no_such_channel", "line 7 of table.jsonl: channel left is not one of 0, 1, mix"),
        ("long.wav#t=1.000,3.000", "duplicate_clip", "another row makes a wav of long.wav#t=1.000,3.000"),
        (f"long.wav#t={end - 0.5:.3f},{end + 5:.3f}", "clip_truncated", "0.50 s of the 5.50 s that the table states"),
        ("none.wav", "clip_missing", "not in the folder of the table"),
        ("folder.wav", "clip_missing", "not in the folder of the table"),
        ("", "malformed_row", "line 13 of table.jsonl: it names no recording"),
        ("0.wav", "malformed_row", "line 14 of table.jsonl: text is neither a text nor a number"),
        ("long.wav#t=2.000,2.000", "clip_empty", "holds no sound"),
        ("long.wav#t=3.000,6.000", "empty_sentence", ""),
        ("", "malformed_row", "line 17 of table.jsonl: it has not the fields of the header"),
    ])  # fmt: skip
    assert len(utterances(tmp_path / "data")) == 4


@pytest.mark.parametrize(
    ("name", "content", "overrides", "words"),
    [
        ("a.csv", "file,text\n", (), ["no column path or audio_filepath; it has: file, text", "columns={path: …}"]),
        ("a.csv", "path,words\n", (), ["has no column sentence or text", "dataset.columns={text: …}"]),
        ("a.csv", "path,text\n", ("dataset.columns={text: wort}",), ["has no column 'wort' (dataset.columns.text)"]),
        ("a.csv", "path,text\n", ("dataset.columns={txet: text}",), ["columns.txet means nothing; a row has: path"]),
        ("a.csv", "path,text\n", (), ["a.csv has no row below its header"]),
        ("a.csv", "path,path\n", (), ["names a column twice"]),
        ("a.csv", 'path,text\na.wav,"open\n', (), ["line 2 cannot be read", "look for an open quote"]),
        ("a.csv", b"path,text\na.wav,citt\xe0\n", (), ["line 2 is not UTF-8; save the table as UTF-8"]),
        ("a.jsonl", "[1, 2\n", (), ["line 1 is not JSON", "write one JSON object per line"]),
        ("a.csv", "path,text\na.wav,Ciao\n", (), ["a.csv names 'a.wav' and nothing of that is in the folder"]),
        ("a.csv", "path,text\na.wav,Ciao\n", ("dataset.split.by=release",), ["has no column split"]),
        ("a.csv", "path,text\na.wav,Ciao\n", ("dataset.channel=left",), ["channel must be 0, 1 or mix, or null"]),
        ("a.csv", "path,text\ndata/wavs/a.wav,Ciao\n", (), ["lies where step 1 writes its wavs", "dataset.output="]),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_a_table_that_cannot_be_used_is_refused(
    make: Make, tmp_path: Path, name: str, content: str | bytes, overrides: tuple[str, ...], words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(make(tmp_path / name, *overrides), *words)
    assert {path.name for path in tmp_path.iterdir()} <= {name, "data"}


def test_long_paths_have_short_names_that_differ() -> None:
    deep = "/".join(["recordings"] * 30)
    names = {recording_table._wav_name(f"{deep}/{number}/a.wav", "", "") for number in range(50)}
    assert len(names) == 50
    assert all(len(name) < 150 and "/" not in name for name in names)
    assert recording_table._wav_name("../è/.a.b.WAV", "t=1.000,2.500", "track=mix") == "_è_.a.b_1.000-2.500_mix.wav"


@pytest.mark.slow
def test_a_table_of_many_segments_is_read_in_a_moment(tmp_path: Path) -> None:
    """No step grows faster than the rows: a whole call centre's segments within seconds."""
    with (tmp_path / "a.csv").open("w") as file:
        file.write("path,text,start,end\n")
        file.writelines(f"{n // 500}.wav,Ciao a tutti,{n % 500},{n % 500 + 1}\n" for n in range(30_000))
    listing = recording_table.read_table(tmp_path / "a.csv", {}, None, False)
    assert len(listing.rows) == 30_000
    with pytest.raises(UserError, match="no column split"):
        recording_table.read_table(tmp_path / "a.csv", {}, None, True)


def test_the_same_recording_under_several_names_is_taken_once_or_not_at_all(make: Make, tmp_path: Path) -> None:
    """Not at all where its texts differ: one of them is wrong, and which cannot be told."""
    found = clips(5)
    rows = [{"path": f"{n}.wav", "text": text} for n, (_, text) in enumerate(found)]
    rows += [{"path": "5.wav", "text": rows[0]["text"].upper()}, {"path": "6.wav", "text": "tutt'altro"}]
    for row, (part, _) in zip(rows, [*found, found[0], found[1]], strict=True):
        soundfile.write(tmp_path / row["path"], part, RATE)
    table = write_csv(tmp_path / "t.csv", rows)
    made = make(table)
    assert made.returncode == 0, made.stderr
    assert set(utterances(tmp_path / "data")) == {f"wavs/{n}.wav" for n in (0, 2, 3, 4)}
    reasons = rejected(tmp_path / "data")
    assert reasons["5.wav"] == ("duplicate_clip", "the same audio as wavs/0.wav")
    assert reasons["1.wav"] == ("audio_with_other_text", 'the same audio as wavs/6.wav, whose text is "tutt\'altro"')
    assert reasons["6.wav"][0] == "audio_with_other_text" and "wavs/1.wav" in reasons["6.wav"][1]
    kept = make(table, "dataset.repeated_audio=keep")
    assert kept.returncode == 0 and len(utterances(tmp_path / "data")) == 7, kept.stderr


def test_one_recording_in_two_rows_and_two_of_one_stem(make: Make, tmp_path: Path) -> None:
    """Of two texts one is wrong, as above; a wav has the name of one recording only."""
    found = clips(6)
    names = ["0.wav", "1.wav", "2.wav", "a.wav", "a.flac", "3.wav"]
    for name, (part, _) in zip(names, found, strict=True):
        soundfile.write(tmp_path / name, part, RATE)
    rows = [{"path": name, "text": text, "channel": "0.0"} for name, (_, text) in zip(names, found, strict=True)]
    rows += [rows[0] | {"text": "tutt'altro"}, rows[1] | {"text": rows[1]["text"].upper()}]
    made = make(write_csv(tmp_path / "t.csv", rows))
    assert made.returncode == 0, made.stderr
    reasons = rejected(tmp_path / "data")
    assert {path: reason for path, (reason, _) in reasons.items()} == {
        "0.wav#track=0": "audio_with_other_text",
        "1.wav#track=0": "duplicate_clip",
    }
    by_text = {u.sentence: name for name, u in utterances(tmp_path / "data").items()}
    assert len(by_text) == 5 and all(name.endswith("_a_0.wav") for name in (by_text[found[3][1]], by_text[found[4][1]]))
    for number in (3, 4):
        wav = samples(tmp_path / "data" / by_text[found[number][1]])
        np.testing.assert_allclose(wav, found[number][0], atol=1 / 32768)


def test_other_recordings_of_the_same_names_are_converted(make: Make, tmp_path: Path) -> None:
    """Of the same sizes and times, as unpacked from an archive."""
    found = clips(4)
    for folder, share in (("clean", 1.0), ("quiet", 0.25)):
        (tmp_path / folder).mkdir()
        for number, (part, _) in enumerate(found):
            soundfile.write(tmp_path / folder / f"{number}.wav", share * part, RATE)
            os.utime(tmp_path / folder / f"{number}.wav", (1, 1))
    table = write_csv(tmp_path / "t.csv", [{"path": f"{n}.wav", "text": text} for n, (_, text) in enumerate(found)])
    for folder, share in (("clean", 1.0), ("quiet", 0.25)):
        made = make(table, f"dataset.recordings={tmp_path / folder}")
        assert made.returncode == 0, made.stderr
        wav = samples(tmp_path / "data" / "wavs" / "0.wav")
        assert np.abs(wav).max() == pytest.approx(share * np.abs(found[0][0]).max(), abs=1e-3)


def test_a_table_or_a_manifest_in_the_output_folder_is_never_replaced(make: Make, tmp_path: Path) -> None:
    found = clips(6)
    (tmp_path / "data").mkdir()
    rows = []
    for number, (part, text) in enumerate(found):
        soundfile.write(tmp_path / "data" / f"{number}.wav", part, RATE)
        rows.append({"audio_filepath": f"{number}.wav", "duration": len(part) / RATE, "text": text})
    content = "".join(json.dumps(row) + "\n" for row in rows)
    source = tmp_path / "data" / "train_manifest.json"
    source.write_text(content)
    options = (f"dataset.output={tmp_path / 'data'}",)
    assert_refused(make(source, *options), "has the name of a file that step 1 writes", "give another dataset.output=…")
    (tmp_path / "table.jsonl").write_text(content.replace('h": "', 'h": "data/'))
    assert_refused(make(tmp_path / "table.jsonl"), "train_manifest.json was not made by step 1", "dataset.output=…")
    assert source.read_text() == content
    source.rename(tmp_path / "data" / "table.json")
    made = make(tmp_path / "data" / "table.json", *options)
    assert made.returncode == 0, made.stderr
    own = tmp_path / "data" / "test_hard_manifest.json"
    own.write_text(content)
    for changed in ("", "dataset.split.seed=1", "dataset.trim_silence_db=60"):
        assert make(tmp_path / "data" / "table.json", *options, *filter(None, [changed])).returncode == 0
        assert own.read_text() == content, changed


@pytest.mark.slow
def test_what_other_libraries_hold_becomes_a_table_by_the_lines_of_the_documentation(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    of_datasets, of_lhotse = (
        block
        for block in re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
        if "table.jsonl" in block
    )
    rows = good_rows(3)
    audio = [{"bytes": sample_files()[row["path"]], "path": row["path"]} for row in rows]
    (tmp_path / "OWNER" / "NAME").mkdir(parents=True)
    held = pyarrow.table({"audio": audio, "text": [row["sentence"] for row in rows]})
    parquet.write_table(held, tmp_path / "OWNER" / "NAME" / "train-00000-of-00001.parquet")
    exec(of_datasets, {})
    made = make(tmp_path / "table.jsonl")
    assert made.returncode == 0, made.stderr
    of = utterances(tmp_path / "data")
    assert [of[name].sentence for name in sorted(of)] == [row["sentence"] for row in rows]

    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    times = call(tmp_path, "call.wav", [part for part, _ in clips(3)], RATE)
    recording = Recording.from_file(tmp_path / "call.wav")
    cuts = []
    for n, (begin, end) in enumerate(times):  # a cut that begins before what is said, which it counts from there
        side, start = n % 2, begin - 0.1 * (n > 0)
        said = SupervisionSegment(
            str(n), "call", begin - start, end - begin, side, rows[n]["sentence"], speaker=f"{side}"
        )
        cuts.append(MonoCut(str(n), start, recording.duration - start, side, [said], recording=recording))
    exec(of_lhotse, {"cuts": CutSet.from_cuts(cuts), "json": json})
    made = make(tmp_path / "table.jsonl", f"dataset.output={tmp_path / 'of lhotse'}")
    assert made.returncode == 0, made.stderr
    of = utterances(tmp_path / "of lhotse")
    assert sorted((u.speaker, u.sentence) for u in of.values()) == sorted(
        (f"{n % 2}", row["sentence"]) for n, row in enumerate(rows)
    )
    assert sorted(u.duration for u in of.values()) == pytest.approx(
        sorted(end - begin for begin, end in times), abs=0.002
    )
