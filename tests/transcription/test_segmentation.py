"""Recordings in real formats, whole and damaged, read block by block; and where they are cut."""

import io
import os
import select
import struct
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning.audio import decoding
from finetuning.audio.ffmpeg import find_ffmpeg
from finetuning.audio.stream import BLOCK, AudioError
from finetuning.errors import UserError
from finetuning.transcription.segmentation import (
    CANCELS,
    CUT_S,
    MARGIN_S,
    MAX_SEGMENT_S,
    SPEECH_FRAME_S,
    Segment,
    check_readable,
    iter_segments,
    read_blocks,
    stated_duration_s,
)
from releases import dominant, tone

RATE = 16000
LOW = 200  # Hz; enough for what is said of cuts, and quick


def sound_of(path: Path) -> np.ndarray:
    return np.concatenate(list(read_blocks(path, RATE)))


def stereo(seconds: float, rate: int = 44100) -> np.ndarray:
    """440 Hz, twice as loud on the left as on the right."""
    mono = np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return np.stack([0.4 * mono, 0.2 * mono], axis=1).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = 44100, **options: str) -> Path:
    with soundfile.SoundFile(path, "w", rate, samples.shape[1], **options) as file:
        for start in range(0, len(samples), rate):  # libsndfile's vorbis takes no minute at once
            file.write(samples[start : start + rate])
    return path


def ffmpeg(source: Path, target: Path, *options: str) -> Path:
    subprocess.run([find_ffmpeg(), "-v", "error", "-i", source, *options, target], check=True)
    return target


def until_damage(path: Path) -> tuple[float, str]:
    """Seconds that can be read, and what is said of the rest."""
    read = 0
    with pytest.raises(UserError) as raised:
        for block in read_blocks(path, RATE):
            read += len(block)
    assert str(path) in str(raised.value)
    return read / RATE, str(raised.value)


# --- reading


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.wav", {}), ("a.flac", {}), ("a.ogg", {}), ("a.opus", {"format": "OGG", "subtype": "OPUS"}), ("a.mp3", {}),
     ("a.m4a", ["-c:a", "aac"]), ("a.webm", ["-c:a", "libopus"]), ("a.mp4", ["-c:a", "aac"])],
)  # fmt: skip
@pytest.mark.slow
def test_any_format_is_the_mean_of_its_channels_at_the_models_rate(
    tmp_path: Path, name: str, options: dict[str, str] | list[str]
) -> None:
    seconds, rate = 2 * BLOCK / 44100 + 0.5, 48000 if name == "a.opus" else 44100
    samples = stereo(seconds, rate)
    path = tmp_path / name
    if isinstance(options, dict):
        write(path, samples, rate, **options)
    else:
        ffmpeg(write(tmp_path / "source.wav", samples), path, *options)
    found = sound_of(path)
    assert found.dtype == np.float32
    assert len(found) / RATE == pytest.approx(seconds, abs=0.05)
    assert len(found) / RATE == pytest.approx(stated_duration_s(path), abs=0.05)
    assert dominant(found, RATE) == pytest.approx(440, abs=1)
    assert np.abs(found[4000:-4000]).max() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_at_the_models_rate_it_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    samples = np.random.default_rng(0).normal(size=(2 * BLOCK + 7, 1)) / 10
    write(tmp_path / name, samples, RATE)
    whole = soundfile.read(tmp_path / name, dtype="float32")[0]
    np.testing.assert_allclose(sound_of(tmp_path / name), whole, rtol=0, atol=1e-6)


def test_resampled_block_by_block_it_is_what_step_1_makes_of_the_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(3 * BLOCK, 2)) / 10
    path = write(tmp_path / "a.flac", noise)
    whole = decoding.to_mono_16k(*decoding.decode_audio(path.read_bytes()))
    np.testing.assert_allclose(sound_of(path), whole, rtol=0, atol=1e-4)


def without_its_length(mp3: bytes) -> bytes:
    """Without the first frame, which holds no sound but how many frames there are."""
    start = mp3.index(b"\xff\xfb")
    kbit = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320][mp3[start + 2] >> 4]
    return mp3[start + 144_000 * kbit // 44100 + (mp3[start + 2] >> 1 & 1) :]


@pytest.mark.slow
def test_an_mp3_that_does_not_say_how_long_it_is_is_read_to_its_end(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(44100 * 20, 1)) * np.repeat([1e-4, 0.3], 44100 * 10)[:, None]
    path = write(tmp_path / "a.mp3", noise, bitrate_mode="VARIABLE", compression_level=0.5)
    frames = without_its_length(path.read_bytes())
    path.write_bytes(frames)
    assert soundfile.info(path).duration < 10, "libsndfile guesses well: the test would pass without ffmpeg"
    assert len(sound_of(path)) / RATE == pytest.approx(20, abs=0.1)
    path.write_bytes(b"ID3\x04\0\0\0\0\x02\0" + bytes(256) + frames)
    assert len(sound_of(path)) / RATE == pytest.approx(20, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.opus"])
def test_recordings_joined_in_one_file_are_read_to_the_last(tmp_path: Path, name: str) -> None:
    options = {"format": "OGG", "subtype": "OPUS"} if name == "a.opus" else {}
    parts = [write(tmp_path / name, stereo(3, 48000), 48000, **options).read_bytes() for _ in range(3)]
    (tmp_path / name).write_bytes(b"".join(parts))
    assert abs(soundfile.info(tmp_path / name).duration - 9) > 5, "libsndfile can: the test would pass without ffmpeg"
    read_s = 0.0
    for block in read_blocks(tmp_path / name, RATE):
        read_s += len(block) / RATE
    assert read_s == pytest.approx(9, abs=0.3)


@pytest.mark.slow
def test_what_was_written_into_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    source = write(tmp_path / "a.wav", stereo(20))
    command = [find_ffmpeg(), "-v", "error", "-i", source, "-f", "flac", "-"]
    (tmp_path / "a.flac").write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    assert len(sound_of(tmp_path / "a.flac")) / RATE == pytest.approx(20, abs=0.01)
    assert stated_duration_s(tmp_path / "a.flac") < 100


@pytest.mark.slow
def test_a_damaged_file_is_read_as_far_as_it_goes_and_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "source.wav", np.random.default_rng(0).normal(size=(44100 * 20, 1)) / 10)
    whole = [
        write(tmp_path / "a.mp3", soundfile.read(source, always_2d=True)[0]),
        write(tmp_path / "a.flac", soundfile.read(source, always_2d=True)[0]),
        ffmpeg(source, tmp_path / "a.webm", "-c:a", "libopus"),
        ffmpeg(source, tmp_path / "a.m4a", "-c:a", "aac", "-movflags", "+faststart"),
    ]
    for path in whole:
        assert len(sound_of(path)) / RATE == pytest.approx(20, abs=0.1)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
        read_s, words = until_damage(path)
        assert read_s == pytest.approx(12, abs=1.5)
        assert f"is damaged, {read_s:.1f} s of it could be read" in words
    assert capfd.readouterr().err == "", "libmpg123 is heard"


# --- the clock of a file


def bursts(path: Path) -> Path:
    """Half a second of 440 Hz every two seconds, for 14 s."""
    time_s = np.arange(44100 * 14) / 44100
    return write(path, (0.3 * np.sin(2 * np.pi * 440 * time_s) * (time_s % 2 < 0.5))[:, None])


def onsets_s(path: Path, notes: set[str] | None = None) -> list[float]:
    """When the bursts begin, in seconds."""
    samples = np.concatenate(list(read_blocks(path, RATE, notes)))
    loud = np.abs(samples[: len(samples) // 160 * 160]).reshape(-1, 160).max(axis=1) > 0.05
    return [at / 100 for at in np.flatnonzero(loud) if not loud[max(0, at - 20) : at].any()]


PICTURE = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=25:duration=18"]
CODECS = {
    "mp4": "-c:a aac -c:v mpeg4",
    "mkv": "-c:a aac -c:v mpeg4",
    "webm": "-c:a libopus -c:v libvpx -b:v 50k",
    "flv": "-c:a aac -c:v flv",
    "ts": "-c:a aac -c:v mpeg2video",
    "vob": "-c:a mp2 -c:v mpeg2video",
}


def film(folder: Path, suffix: str, late_s: int = 0) -> Path:
    """A picture with bursts."""
    path, delay = folder / f"film.{suffix}", ["-itsoffset", str(late_s)]
    command = [find_ffmpeg(), "-v", "error", *PICTURE, *delay, "-i", bursts(folder / "bursts.wav")]
    subprocess.run([*command, *CODECS[suffix].split(), path], check=True)
    return path


@pytest.mark.parametrize("suffix", CODECS)
def test_sound_that_begins_late_stands_where_the_file_has_it(tmp_path: Path, suffix: str) -> None:
    assert onsets_s(film(tmp_path, suffix, late_s=4)) == pytest.approx([4, 6, 8, 10, 12, 14, 16], abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "flv", "ts"])
def test_a_gap_in_the_sound_moves_nothing_behind_it(tmp_path: Path, suffix: str) -> None:
    whole, gap = film(tmp_path, suffix), tmp_path / f"gap.{suffix}"
    drop = "noise=drop='between(pts*tb,3.2,7.2)'"
    subprocess.run([find_ffmpeg(), "-v", "error", "-i", whole, "-c", "copy", "-bsf:a", drop, gap], check=True)
    assert onsets_s(whole) == pytest.approx([0, 2, 4, 6, 8, 10, 12], abs=0.1)
    assert onsets_s(gap) == pytest.approx([0, 2, 8, 10, 12], abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["webm", "mkv", "ts"])
def test_a_clock_that_begins_again_costs_no_sound(tmp_path: Path, suffix: str) -> None:
    part = ffmpeg(bursts(tmp_path / "a.wav"), tmp_path / f"a.{suffix}", "-c:a", "libopus")
    part.write_bytes(part.read_bytes() * 2)
    assert onsets_s(part) == pytest.approx([*range(0, 14, 2), *range(14, 28, 2)], abs=0.15)


def test_a_broadcast_may_be_cut_anywhere_and_its_picture_be_damaged(tmp_path: Path) -> None:
    stream = bytearray(film(tmp_path, "ts").read_bytes())
    (tmp_path / "cut.ts").write_bytes(stream[len(stream) // 5 : len(stream) * 4 // 5])
    assert len(onsets_s(tmp_path / "cut.ts")) == pytest.approx(4.5, abs=1.5)
    rng = np.random.default_rng(0)
    for name, number in (("picture", 0x100), ("sound", 0x101)):
        damaged = bytearray(stream)
        for at in range(0, len(damaged), 188):
            if int.from_bytes(damaged[at + 1 : at + 3]) & 0x1FFF == number and rng.random() < 0.2:
                damaged[at + 40 : at + 180] = rng.bytes(140)
        (tmp_path / f"{name}.ts").write_bytes(damaged)
    assert onsets_s(tmp_path / "picture.ts") == pytest.approx([0, 2, 4, 6, 8, 10, 12], abs=0.1)
    assert "is damaged" in until_damage(tmp_path / "sound.ts")[1]


# --- headers that are wrong


def riff(stated: int, there: bytes, tail: bytes = b"", kind: bytes = b"RIFF", before: bytes = b"") -> bytes:
    """A 16-bit wav at 16 kHz whose header states so many bytes."""
    about = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    size = struct.pack("<I", min(stated + 36, 0xFFFFFFFF))
    return kind + size + b"WAVE" + before + about + b"data" + struct.pack("<I", stated) + there + tail


def ds64(stated: int) -> bytes:
    return b"ds64" + struct.pack("<IQQQI", 28, stated + 72, stated, stated // 2, 0)


SOUND = (8000 * np.sin(np.arange(4 * RATE) / 6)).astype("<i2").tobytes()  # 4 s
LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.29.100\0"
AU = struct.pack(">4s5I", b".snd", 24, 0, 3, RATE, 1)


@pytest.mark.parametrize(
    "data",
    [
        riff(len(SOUND), SOUND),
        riff(len(SOUND), SOUND, LIST),
        riff(len(SOUND) - 1, SOUND[:-1], LIST),
        riff(0, SOUND),
        riff(0, bytes(64000) + SOUND[64000:]),
        riff(20000, SOUND),
        riff(0xFFFFFFFF, SOUND),
        riff(0x7FFFF000, SOUND),
        riff(0x80000000, SOUND),
        riff(0xFFFFFFFF, SOUND, kind=b"RF64", before=ds64(len(SOUND))),
        riff(0xFFFFFFFF, SOUND, kind=b"RF64", before=ds64(0)),
        riff(0xFFFFFFFF, SOUND, kind=b"RF64", before=ds64(20000)),
        AU + SOUND,
        AU[:8] + struct.pack(">I", 20000) + AU[12:] + SOUND,
    ],
    ids=["as it should be", "a chunk behind", "no byte to fill up", "crashed", "crashed in silence", "over 4 GB",
         "a pipe", "another pipe", "a third", "RF64", "crashed RF64", "wrong RF64", "crashed au", "wrong au"],
)  # fmt: skip
def test_a_wav_is_read_to_its_true_end(tmp_path: Path, data: bytes) -> None:
    """A size in 32 bits begins again at 4 GB: then the header states what is left over."""
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    found = sound_of(path)
    assert len(found) / RATE == pytest.approx(4, abs=1e-3)
    assert stated_duration_s(path) == pytest.approx(4, abs=1e-3)
    assert len(decoding.decode_audio(data)[0]) == len(found)


@pytest.mark.parametrize("format", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "FLAC", "MP3"])
def test_a_file_cut_in_half_is_damaged(tmp_path: Path, format: str) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).normal(size=20 * RATE) / 10
    soundfile.write(buffer, noise, RATE, format=format, subtype="PCM_16" if format != "MP3" else None)
    path = tmp_path / "a.bin"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    read_s, words = until_damage(path)
    assert 8 < read_s < 12 and "is damaged" in words


@pytest.mark.slow
def test_channels_that_cancel_and_tracks_that_are_not_taken_are_said(tmp_path: Path) -> None:
    mono, notes = 0.3 * np.sin(np.arange(2 * RATE) / 6), set()
    path = write(tmp_path / "a.wav", np.stack([mono, -mono], axis=1), RATE)
    found = np.concatenate(list(read_blocks(path, RATE, notes)))
    np.testing.assert_allclose(found, mono, atol=1e-4)
    assert notes == {CANCELS}
    quiet, loud = (write(tmp_path / f"{name}.wav", stereo(2) * scale) for name, scale in (("q", 0.1), ("l", 1)))
    film, tracks = tmp_path / "film.mkv", ["-map", "0:a", "-map", "1:a", "-metadata:s:a:0", "language=ita"]
    for number, peak in ((0, 0.03), (1, 0.3)):
        flags = ["-disposition:a:0", "0", "-disposition:a:1", "0", f"-disposition:a:{number}", "default"]
        ffmpeg(quiet, film, "-i", loud, *tracks, *flags, "-y")
        notes = set()
        assert max(abs(block).max() for block in read_blocks(film, RATE, notes)) == pytest.approx(peak, rel=0.1)
        (note,) = notes
        assert "2 audio tracks (ita, no language stated)" in note and f"number {number + 1} is read" in note
        assert f"-map 0:a:{1 - number} " in note


def test_floats_that_are_integers_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", stereo(1) * 50000, subtype="FLOAT")
    assert "divide them by 32,768" in until_damage(path)[1]


# --- foreign files


@pytest.mark.parametrize("suffix", ["wav", "txt", "ffconcat", "m3u8"])
def test_a_file_that_names_others_has_nothing_opened(tmp_path: Path, suffix: str) -> None:
    own = bursts(tmp_path / "own.wav")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        address = f"http://127.0.0.1:{server.server_port}/a.wav"
        for text in (
            f"ffconcat version 1.0\nfile {own}\n",
            f"ffconcat version 1.0\nfile {own.name}\n",
            f"ffconcat version 1.0\nfile {address}\n",
            f"#EXTM3U\n#EXTINF:9,\n{own}\n#EXT-X-ENDLIST\n",
            f"\n#EXTM3U\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n",
            f"<?xml version='1.0'?><MPD><BaseURL>{address}</BaseURL></MPD>",
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {server.server_port} RTP/AVP 0\n",
        ):
            path = tmp_path / f"list.{suffix}"
            path.write_text(text)
            assert until_damage(path)[0] == 0
            with pytest.raises(AudioError, match="clip_undecodable"):
                decoding.decode_audio(text.encode())
        assert not select.select([server.socket], [], [], 0)[0], "somebody has called"


def zeros(path: Path) -> None:
    path.write_bytes(bytes(5000))


def not_numbers(path: Path) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([0.0] * 1000 + [np.nan]), RATE, format="WAV", subtype="FLOAT")
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("gone.wav", lambda path: None, "cannot read"),
        ("empty.mp3", lambda path: path.touch(), "is empty"),
        ("folder", lambda path: path.mkdir(), "is a folder without audio"),
        ("loop.wav", lambda path: path.symlink_to(path), "cannot read"),
        ("text.wav", lambda path: path.write_text("hello\n"), "is no audio"),
        ("text.raw", lambda path: path.write_text("hello\n"), "is no audio"),
        ("page.m4a", lambda path: path.write_text("<html>not found</html>" * 50), "is no audio"),
        ("live.m3u8", lambda path: path.write_text("#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n"), "is a playlist"),
        ("zeros.mp3", zeros, "is no audio"),
        ("none.wav", lambda path: path.write_bytes(tone(440, RATE, 1, 0, "WAV")), "holds no sound"),
        ("tick.wav", lambda path: path.write_bytes(tone(440, RATE, 1, 0.04, "WAV")), "less than 0.05 s"),
        ("nan.wav", not_numbers, "not numbers"),
    ],
)
def test_bad_files_are_named_and_nothing_else_is_on_the_screen(
    tmp_path: Path, name: str, make, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / name)
    _, said = until_damage(tmp_path / name)
    assert words in said
    assert "0x" not in said
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_video_without_sound_is_named(tmp_path: Path) -> None:
    picture = ["-f", "lavfi", "-i", "color=size=16x16:duration=1"]
    subprocess.run([find_ffmpeg(), "-v", "error", *picture, tmp_path / "a.mp4"], check=True)
    assert "is no audio" in until_damage(tmp_path / "a.mp4")[1]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(UserError, match="a pipe; give a file"):
        check_readable(tmp_path / "a.wav")


@pytest.mark.slow
def test_without_any_ffmpeg_the_sentence_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ffmpeg(write(tmp_path / "a.wav", stereo(1)), tmp_path / "a.m4a")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # as where it is not installed
    assert "pip install imageio-ffmpeg" in until_damage(path)[1]
    assert stated_duration_s(path) == 0


def test_a_side_of_a_call_is_its_channel_and_other_files_have_no_sides(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", stereo(2))
    sides = [np.concatenate(list(read_blocks(path, RATE, channel=channel))) for channel in (0, 1)]
    for side, peak in zip(sides, (0.4, 0.2), strict=True):
        assert np.abs(side[4000:-4000]).max() == pytest.approx(peak, rel=0.05)
    for channels in (1, 3):
        path = write(tmp_path / f"{channels}.wav", np.repeat(stereo(1)[:, :1], channels, axis=1))
        with pytest.raises(UserError, match=rf"has {channels} channel\(s\), not 2; .* without --channels split"):
            list(read_blocks(path, RATE, channel=0))


# --- cutting


def by_loudness(rate: int):
    """A listener that takes for speech what is beyond half of full scale: of noise it depends on nothing else."""
    heard, answered = np.zeros(0, np.float32), 0

    def listen(block: np.ndarray, is_last: bool) -> list[bool]:
        nonlocal heard, answered
        heard = np.concatenate([heard, block])
        edges = np.round(np.arange(answered, len(heard) / rate / SPEECH_FRAME_S + 1) * SPEECH_FRAME_S * rate)
        spans = [(int(a), int(b)) for a, b in pairwise(edges) if is_last or b <= len(heard)]
        answered += len(spans)
        return [bool(np.abs(heard[a:b]).max(initial=0) > 0.5) for a, b in spans]

    return listen


def cut_up(samples: np.ndarray, sizes: list[int], is_conversation: bool = False) -> list[Segment]:
    """Segments of a stream in blocks of these sizes, again and again."""
    ends = np.cumsum(np.resize(sizes, len(samples) // min(sizes) + 1))
    return list(iter_segments(np.split(samples, ends[ends < len(samples)]), LOW, by_loudness(LOW), is_conversation))


@settings(derandomize=True, deadline=None, database=None, max_examples=40)
@given(
    st.integers(0, 40),
    st.integers(0, 10**6),
    st.lists(st.integers(20, 40 * LOW), min_size=1, max_size=4),
    st.booleans(),
)
def test_no_speech_is_lost_and_blocks_do_not_matter(runs: int, seed: int, sizes: list[int], conversation: bool) -> None:
    """Speech and pauses of 0.2 to 6 s in turn."""
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(0.2, 6, runs) ** rng.choice([1, 0.2], runs)
    loud = np.repeat(np.arange(runs) % 2 == seed % 2, np.round(lengths * LOW).astype(int))
    samples = (rng.choice([-1, 1], len(loud)) * np.where(loud, 0.9, 0.1)).astype(np.float32)
    found = cut_up(samples, sizes, conversation)
    covered = np.zeros(len(samples), bool)
    for segment in found:
        place = slice(segment.start, segment.start + len(segment.samples))
        assert not covered[place].any() and len(segment.samples)
        covered[place] = True
        np.testing.assert_array_equal(segment.samples, samples[place])
    assert covered[loud].all()
    if conversation or len(samples) > MAX_SEGMENT_S * LOW:
        kept = [len(list(run)) for is_pause, run in groupby(covered & ~loud) if is_pause]
        assert max(kept, default=0) <= (2 * MARGIN_S + 2 * SPEECH_FRAME_S) * LOW + 2
    assert all(len(segment.samples) <= MAX_SEGMENT_S * LOW for segment in found)
    assert [segment.start for segment in found] == sorted(segment.start for segment in found)
    other = cut_up(samples, [17, 1000], conversation)
    assert [(s.start, len(s.samples)) for s in other] == [(s.start, len(s.samples)) for s in found]


def test_a_margin_of_a_pause_stays_on_either_side() -> None:
    samples = np.full(30 * LOW, 0.9, np.float32)
    samples[8 * LOW : 12 * LOW] = 0.1
    first, second, *_ = cut_up(samples, [100])
    frame = round(SPEECH_FRAME_S * LOW)
    assert len(first.samples) == pytest.approx((8 + MARGIN_S) * LOW, abs=frame)
    assert second.start == pytest.approx((12 - MARGIN_S) * LOW, abs=frame)


def test_without_a_pause_it_is_cut_at_the_quietest_point() -> None:
    samples = np.full(100 * LOW, 0.9, np.float32)
    samples[10 * LOW : 10 * LOW + 20] = 0.6
    found = cut_up(samples, [100])
    assert abs(found[1].start - 10 * LOW) <= 20
    lengths_s = [len(segment.samples) / LOW for segment in found]
    assert all(CUT_S[0] <= length <= CUT_S[1] + 0.01 for length in lengths_s[:-1])
    assert sum(len(segment.samples) for segment in found) == len(samples)


def test_up_to_the_longest_clip_of_step_1_it_is_one_segment() -> None:
    noise = np.random.default_rng(0).normal(size=round(MAX_SEGMENT_S * LOW)).astype(np.float32)
    (whole,) = cut_up(noise, [100])
    assert (whole.start, len(whole.samples)) == (0, len(noise))
    assert len(cut_up(np.append(noise, noise[:1]), [100])) == 2
    quiet = np.zeros(10 * LOW, np.float32)
    assert len(cut_up(quiet, [100])) == 1 and not cut_up(quiet, [100], is_conversation=True)


def test_just_above_the_longest_clip_it_is_cut_as_a_longer_one() -> None:
    for seconds in (17.1, 17.35, 17.6, 20.0):
        samples = np.full(round(seconds * LOW), 0.1, np.float32)
        for begin, end in ((0, 3.5), (12.0, 14.0)):
            samples[round(begin * LOW) : round(end * LOW)] = 0.9
        found = [(each.start / LOW, (each.start + len(each.samples)) / LOW) for each in cut_up(samples, [1024])]
        np.testing.assert_allclose(found, [(0, 3.75), (11.75, 14.25)], atol=2 * SPEECH_FRAME_S)


def test_what_comes_before_damage_is_cut_and_then_it_is_raised() -> None:
    def broken():
        yield np.ones(30 * LOW, np.float32)
        raise UserError("broken")

    found, running = [], iter_segments(broken(), LOW, by_loudness(LOW))
    with pytest.raises(UserError, match="broken"):
        for segment in running:
            found.append(segment)
    assert sum(len(segment.samples) for segment in found) == 30 * LOW


@pytest.mark.parametrize(
    ("samples", "audible"),
    [(np.zeros(1600), False), (np.full(1600, 1e-5), False), (np.full(1600, 2**-15), True), (np.ones(799), False)],
    ids=["silence", "less than 16 bits hold", "what they hold", "too short"],
)
def test_what_can_be_heard(samples: np.ndarray, audible: bool) -> None:
    assert Segment(0, samples.astype(np.float32)).is_audible(RATE) == audible
