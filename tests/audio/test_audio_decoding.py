import io
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import Script, assert_refused
from finetuning.audio import decoding, ffmpeg
from finetuning.audio.stream import BLOCK, AudioError
from releases import dominant, sample_files, tone

GOOD = "common_voice_it_40000002.mp3"


def read(path: Path) -> np.ndarray:
    """Samples of a wav, its format checked by the standard library."""
    with wave.open(str(path)) as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (1, 2, 16000)
        return np.frombuffer(wav.readframes(wav.getnframes()), np.int16)


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (24000, 1), (32000, 2), (44100, 2), (48000, 1), (8000, 2)])
def test_any_rate_and_channels_become_16_khz_mono(tmp_path: Path, rate: int, channels: int) -> None:
    clip = tone(440, rate, channels, 1.5)
    duration_s, decoded_s = decoding.convert_to_wav(clip, tmp_path / "a.wav", None)
    samples = read(tmp_path / "a.wav")
    assert duration_s == decoded_s == len(samples) / 16000
    assert duration_s == pytest.approx(1.5, abs=0.1)  # an mp3 may be longer by a frame or two
    assert dominant(samples, 16000) == pytest.approx(440, abs=1)
    assert np.abs(samples[4000:-4000]).max() == pytest.approx(16384, rel=0.15)  # lossy
    assert decoding.wav_size(duration_s) == (tmp_path / "a.wav").stat().st_size


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = np.full(1600, 0.5), np.full(1600, -0.25)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([left, right], axis=1), 16000, format="WAV", subtype="FLOAT")
    decoding.convert_to_wav(buffer.getvalue(), tmp_path / "a.wav", None)
    assert set(read(tmp_path / "a.wav")) == {4096}  # (0.5 - 0.25) / 2 of 32768


def test_beyond_full_scale_is_held_and_does_not_wrap(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([1.5, -1.5, 1.0, -1.0, 0.0]), 16000, format="WAV", subtype="FLOAT")
    decoding.convert_to_wav(buffer.getvalue(), tmp_path / "a.wav", None)
    assert list(read(tmp_path / "a.wav")) == [32767, -32768, 32767, -32768, 0]


def test_a_path_and_its_bytes_give_the_same_wav(tmp_path: Path) -> None:
    (tmp_path / GOOD).write_bytes(sample_files()[GOOD])
    decoding.convert_to_wav(tmp_path / GOOD, tmp_path / "a.wav", None)
    decoding.convert_to_wav(sample_files()[GOOD], tmp_path / "b.wav", None)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def floats(samples: np.ndarray) -> bytes:
    """A wav of 32-bit floating-point samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


SPEECH = np.sin(np.arange(16000) / 9)


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (b"", "clip_empty"),
        (tone(440, 16000, 1, 0, "WAV"), "clip_empty"),
        (b"<html>not found</html>" * 50, "clip_undecodable"),
        (bytes(5000), "clip_undecodable"),
        (sample_files()[GOOD][:50], "clip_undecodable"),
        (floats(np.array([0.0, np.nan])), "clip_undecodable"),
        (floats(SPEECH * 20000), "clip_out_of_range"),
        (floats(np.stack([SPEECH, -0.98 * SPEECH], axis=1)), "channels_cancel"),
        (sample_files()[GOOD][:9000], "clip_truncated"),
        (floats(SPEECH)[:20000], "clip_truncated"),
        (Path("/nonexistent.mp3"), "clip_unreadable"),
    ],
    ids=[
        "0 bytes",
        "0 samples",
        "a page",
        "zeros",
        "cut off",
        "no numbers",
        "integers as floats",
        "opposite channels",
        "half an mp3",
        "half a wav",
        "no file",
    ],
)
def test_bad_clips_have_a_reason_and_leave_nothing(tmp_path: Path, clip: bytes | Path, reason: str) -> None:
    with pytest.raises(AudioError) as caught:
        decoding.convert_to_wav(clip, tmp_path / "a.wav", None)
    assert caught.value.reason == reason
    assert "0x" not in caught.value.detail and "/tmp" not in caught.value.detail
    assert not list(tmp_path.iterdir())


def test_a_header_that_promises_hours_costs_no_memory_and_the_sound_is_read() -> None:
    clip = sample_files()[GOOD]
    at = clip.index(b"Xing") + 8  # the number of frames
    samples, _ = decoding.decode_audio(clip[:at] + b"\x7f\xff\xff\xff" + clip[at + 4 :])
    expected, _ = decoding.decode_audio(clip)
    assert abs(len(samples) - len(expected)) < 3000


def steady(kbit: str, seconds: float = 9.0) -> bytes:
    """An mp3 of a second of noise, then silence, without a header: its first frames are no measure of the rest."""
    noise = np.random.default_rng(0).normal(size=round(32000 * seconds)) * 0.3
    noise[32000:] *= 1e-4
    sound, options = floats_at(32000, noise), ["-b:a", kbit] if kbit.endswith("k") else ["-q:a", kbit]
    command = [ffmpeg.find_ffmpeg(), "-v", "error", "-i", "-", *options, "-write_xing", "0", "-f", "mp3", "-"]
    return subprocess.run(command, input=sound, capture_output=True, check=True).stdout


def floats_at(rate: int, samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV")
    return buffer.getvalue()


def states(frames: int) -> bytes:
    """A good clip whose header states so many frames."""
    at = sample_files()[GOOD].index(b"Xing") + 8
    return sample_files()[GOOD][:at] + frames.to_bytes(4, "big") + sample_files()[GOOD][at + 4 :]


@pytest.mark.parametrize(
    ("clip", "seconds", "wants_ffmpeg"),
    [
        (steady("48k"), 9.0, False),
        (steady("4"), 9.0, True),
        (b"ID3\x04\0\0\0\0\x02\0" + bytes(256) + steady("4"), 9.0, True),
        (sample_files()[GOOD], 3.225, False),
        (sample_files()[GOOD] + b"TAG" + bytes(125), 3.225, False),
        (sample_files()[GOOD] * 3, 3 * 3.3, True),
        (states(3), 3.225, True),
        (states(0x7FFFFFFF), 3.225, False),
        (tone(440, 16000, 1, 2.0, "OGG") + tone(440, 16000, 1, 1.0, "OGG"), 3.0, True),
    ],
    ids=["constant bit rate", "variable bit rate", "after a tag", "a good clip", "before a tag", "three joined",
         "few frames stated", "many stated", "two ogg joined"],
)  # fmt: skip
def test_a_clip_is_read_to_its_true_end_and_by_ffmpeg_only_where_it_must(
    clip: bytes, seconds: float, wants_ffmpeg: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, rate = decoding.decode_audio(clip)
    assert len(samples) / rate == pytest.approx(seconds, abs=0.15)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # as where it is not installed
    if wants_ffmpeg:
        with pytest.raises(AudioError, match="no ffmpeg"):
            decoding.decode_audio(clip)
    else:
        np.testing.assert_array_equal(decoding.decode_audio(clip)[0], samples)


def test_a_long_mp3_is_read_in_blocks_as_at_once() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).normal(size=4 * BLOCK) / 10, 44100, format="MP3")
    clip = buffer.getvalue()
    with soundfile.SoundFile(io.BytesIO(clip)) as file:
        whole = file.read(dtype="float32", always_2d=True)
    np.testing.assert_allclose(decoding.decode_audio(clip)[0], whole, rtol=0, atol=1e-6)


def test_an_ffmpeg_that_does_not_run_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a library that it needs is missing."""
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert ffmpeg.find_ffmpeg() not in (None, str(tmp_path / "ffmpeg"))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert ffmpeg.find_ffmpeg() is None


@pytest.mark.parametrize("what", ["RuntimeError('cannot cache function')", "ImportError('no librosa')"])
def test_a_library_that_does_not_work_is_no_clips_fault(
    tmp_path: Path, tiny_release: Path, run_script: Script, what: str
) -> None:
    (tmp_path / "librosa.py").write_text(f"raise {what}\n")
    arguments = [f"dataset.source={tiny_release}", f"dataset.output={tmp_path}/data", "dataset.trim_silence_db=40"]
    refused = run_script("dataset_creation.py", *arguments, env={"PYTHONPATH": str(tmp_path)})
    assert_refused(refused, what.split("'")[1], "type: ")
    assert not list(tmp_path.rglob("*.wav")) and not list(tmp_path.rglob("rejected.jsonl"))


def test_what_libsndfile_cannot_read_is_read_by_ffmpeg_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # neither ffmpeg nor ffprobe: what pip installed must do
    (tmp_path / "a.wav").write_bytes(tone(440, 44100, 2, 1.0, "WAV"))
    subprocess.run(
        [ffmpeg.find_ffmpeg(), "-loglevel", "error", "-i", tmp_path / "a.wav", "-c:a", "aac", tmp_path / "a.m4a"],
        check=True,
    )
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(tmp_path / "a.m4a")
    duration_s, _ = decoding.convert_to_wav(tmp_path / "a.m4a", tmp_path / "b.wav", None)
    assert duration_s == pytest.approx(1.0, abs=0.05)
    assert dominant(read(tmp_path / "b.wav"), 16000) == pytest.approx(440, abs=1)


def test_without_any_ffmpeg_the_detail_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "find_ffmpeg", lambda: None)
    with pytest.raises(AudioError, match="no ffmpeg"):
        decoding.decode_audio(b"no sound" * 100)


@pytest.mark.slow
def test_silence_is_trimmed_at_both_ends_only(tmp_path: Path) -> None:
    sound, rate = soundfile.read(io.BytesIO(tone(440, 16000, 1, 1.0, "WAV")))
    silence = np.zeros(rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.concatenate([silence, sound, silence, sound, silence]), rate, format="WAV")
    duration_s, decoded_s = decoding.convert_to_wav(buffer.getvalue(), tmp_path / "a.wav", 40.0)
    assert decoded_s == 5.0
    assert duration_s == pytest.approx(3.0, abs=0.15)  # librosa trims in frames of 2,048 samples
    assert len(read(tmp_path / "a.wav")) == round(duration_s * 16000)


def test_a_full_disk_is_not_the_fault_of_the_clip(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        decoding.convert_to_wav(sample_files()[GOOD], tmp_path / "no folder" / "a.wav", None)
