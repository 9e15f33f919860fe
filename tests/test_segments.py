"""Recordings in real formats, whole and damaged, read block by block; and where they are cut."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from finetuning import audio
from finetuning.errors import UserError
from finetuning.ffmpeg import program
from finetuning.segments import CUT_S, LONGEST_S, Segment, blocks, check, duration_s, segments
from finetuning.sound import BLOCK
from hypothesis import given, settings
from hypothesis import strategies as st
from releases import dominant, sample_files, tone

RATE = 16000
LOW = 200  # Hz; enough for what is said of cuts, and quick


def sound_of(path: Path) -> np.ndarray:
    return np.concatenate(list(blocks(path, RATE)))


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
    subprocess.run([program(), "-v", "error", "-i", source, *options, target], check=True)
    return target


def until_damage(path: Path) -> tuple[float, str]:
    """Seconds that can be read, and what is said of the rest."""
    read = 0
    with pytest.raises(UserError) as raised:
        for block in blocks(path, RATE):
            read += len(block)
    assert str(path) in str(raised.value)
    return read / RATE, str(raised.value)


# --- reading


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.wav", {}), ("a.flac", {}), ("a.ogg", {}), ("a.opus", {"format": "OGG", "subtype": "OPUS"}), ("a.mp3", {}),
     ("a.m4a", ["-c:a", "aac"]), ("a.webm", ["-c:a", "libopus"]), ("a.mp4", ["-c:a", "aac"])],
)  # fmt: skip
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
    assert len(found) / RATE == pytest.approx(duration_s(path), abs=0.05)
    assert dominant(found, RATE) == pytest.approx(440, abs=1)
    assert np.abs(found[4000:-4000]).max() == pytest.approx(0.3, rel=0.05)


def test_a_wav_at_the_models_rate_is_read_as_it_is(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(size=(2 * BLOCK + 7, 1)) / 10
    write(tmp_path / "a.wav", samples, RATE)
    np.testing.assert_array_equal(sound_of(tmp_path / "a.wav"), soundfile.read(tmp_path / "a.wav", dtype="float32")[0])


def test_resampled_block_by_block_it_is_what_step_1_makes_of_the_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(3 * BLOCK, 2)) / 10
    path = write(tmp_path / "a.flac", noise)
    whole = audio.mono_16k(*audio.decode(path.read_bytes()))
    np.testing.assert_allclose(sound_of(path), whole, rtol=0, atol=1e-4)


def without_its_length(mp3: bytes) -> bytes:
    """Without the first frame, which holds no sound but how many frames there are."""
    start = mp3.index(b"\xff\xfb")
    kbit = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320][mp3[start + 2] >> 4]
    return mp3[start + 144_000 * kbit // 44100 + (mp3[start + 2] >> 1 & 1) :]


def test_an_mp3_that_does_not_say_how_long_it_is_is_read_to_its_end(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(44100 * 20, 1)) * np.repeat([1e-4, 0.3], 44100 * 10)[:, None]
    path = write(tmp_path / "a.mp3", noise, bitrate_mode="VARIABLE", compression_level=0.5)
    frames = without_its_length(path.read_bytes())
    path.write_bytes(frames)
    assert soundfile.info(path).duration < 10, "libsndfile guesses well: the test would pass without ffmpeg"
    assert len(sound_of(path)) / RATE == pytest.approx(20, abs=0.1)
    path.write_bytes(b"ID3\x04\0\0\0\0\x02\0" + bytes(256) + frames)
    assert len(sound_of(path)) / RATE == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.opus"])
def test_recordings_joined_in_one_file_are_read_to_the_last(tmp_path: Path, name: str) -> None:
    options = {"format": "OGG", "subtype": "OPUS"} if name == "a.opus" else {}
    parts = [write(tmp_path / name, stereo(3, 48000), 48000, **options).read_bytes() for _ in range(3)]
    (tmp_path / name).write_bytes(b"".join(parts))
    assert abs(soundfile.info(tmp_path / name).duration - 9) > 5, "libsndfile can: the test would pass without ffmpeg"
    read_s = 0.0
    with contextlib.suppress(UserError):  # ffmpeg may complain of times that begin again
        for block in blocks(tmp_path / name, RATE):
            read_s += len(block) / RATE
    assert read_s == pytest.approx(9, abs=0.3)


def test_what_was_written_into_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    source = write(tmp_path / "a.wav", stereo(20))
    command = [program(), "-v", "error", "-i", source, "-f", "flac", "-"]
    (tmp_path / "a.flac").write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    assert len(sound_of(tmp_path / "a.flac")) / RATE == pytest.approx(20, abs=0.01)
    assert duration_s(tmp_path / "a.flac") < 100


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


def test_a_video_without_sound_is_named(tmp_path: Path) -> None:
    picture = ["-f", "lavfi", "-i", "color=size=16x16:duration=1"]
    subprocess.run([program(), "-v", "error", *picture, tmp_path / "a.mp4"], check=True)
    assert "is no audio" in until_damage(tmp_path / "a.mp4")[1]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(UserError, match="a pipe; give a file"):
        check(tmp_path / "a.wav")


def test_without_any_ffmpeg_the_sentence_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ffmpeg(write(tmp_path / "a.wav", stereo(1)), tmp_path / "a.m4a")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # as where it is not installed
    assert "pip install imageio-ffmpeg" in until_damage(path)[1]
    assert duration_s(path) == 0


# --- cutting


def cut_up(samples: np.ndarray, sizes: list[int], rate: int = LOW) -> list[Segment]:
    """Segments of a stream in blocks of these sizes, again and again."""
    ends = np.cumsum(np.resize(sizes, len(samples) // min(sizes) + 1))
    return list(segments(np.split(samples, ends[ends < len(samples)]), rate))


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(
    st.floats(0, 90), st.integers(0, 10**6), st.lists(st.integers(1, 40 * LOW), min_size=1, max_size=4), st.booleans()
)
def test_no_sample_is_lost_and_blocks_do_not_matter(seconds: float, seed: int, sizes: list[int], silent: bool) -> None:
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(0, 1, 200), LOW // 2)[: round(seconds * LOW)]  # another one every half second
    samples = (rng.normal(size=len(loudness)) * loudness * (not silent)).astype(np.float32)
    found = cut_up(samples, sizes)
    np.testing.assert_array_equal(np.concatenate([samples[:0], *(s.samples for s in found)]), samples)
    assert [s.start for s in found] == list(np.cumsum([0, *(len(s.samples) for s in found)])[: len(found)])
    lengths_s = [len(segment.samples) / LOW for segment in found]
    assert all(CUT_S[0] <= length <= CUT_S[1] + 0.01 for length in lengths_s[:-1])
    assert not lengths_s or lengths_s[-1] <= LONGEST_S
    assert len(lengths_s) < 2 or lengths_s[-1] >= 0.99
    other = cut_up(samples, [17, 1000])
    assert [s.start for s in other] == [s.start for s in found]
    assert all((a.samples == b.samples).all() for a, b in zip(other, found, strict=True))


def test_up_to_the_longest_clip_of_step_1_it_is_one_segment() -> None:
    noise = np.random.default_rng(0).normal(size=round(LONGEST_S * LOW)).astype(np.float32)
    (whole,) = cut_up(noise, [100])
    assert (whole.start, len(whole.samples)) == (0, len(noise))
    assert len(cut_up(np.append(noise, noise[:1]), [100])) == 2


def test_speech_is_cut_where_nobody_speaks() -> None:
    """Clips of the sample with a third of a second between them, and noise 50 dB below speech all over."""
    rng = np.random.default_rng(0)
    names = sorted(name for name in sample_files() if name.endswith(".mp3"))[:30]
    clips = [audio.mono_16k(*audio.decode(sample_files()[name])) for name in names]
    speech = np.concatenate([part for clip in clips for part in (clip, np.zeros(RATE // 3))])
    noisy = (speech + rng.normal(size=len(speech)) * speech.std() * 10 ** (-50 / 20)).astype(np.float32)
    cuts = [segment.start for segment in cut_up(noisy, [BLOCK], RATE)][1:]
    assert len(cuts) >= len(speech) / RATE / LONGEST_S - 1
    around_db = [20 * np.log10(noisy[cut - RATE // 20 : cut + RATE // 20].std() / speech.std()) for cut in cuts]
    assert max(around_db) < -48


def test_what_comes_before_damage_is_cut_and_then_it_is_raised() -> None:
    def broken():
        yield np.ones(30 * LOW, np.float32)
        raise UserError("broken")

    found, running = [], segments(broken(), LOW)
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
