import io
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from finetuning import audio, sound
from finetuning.sound import BadClip
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
    duration_s, decoded_s = audio.convert(clip, tmp_path / "a.wav", None)
    samples = read(tmp_path / "a.wav")
    assert duration_s == decoded_s == len(samples) / 16000
    assert duration_s == pytest.approx(1.5, abs=0.1)  # an mp3 may be longer by a frame or two
    assert dominant(samples, 16000) == pytest.approx(440, abs=1)
    assert np.abs(samples[4000:-4000]).max() == pytest.approx(16384, rel=0.15)  # lossy
    assert audio.wav_size(duration_s) == (tmp_path / "a.wav").stat().st_size


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = np.full(1600, 0.5), np.full(1600, -0.25)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([left, right], axis=1), 16000, format="WAV", subtype="FLOAT")
    audio.convert(buffer.getvalue(), tmp_path / "a.wav", None)
    assert set(read(tmp_path / "a.wav")) == {4096}  # (0.5 - 0.25) / 2 of 32768


def test_beyond_full_scale_is_held_and_does_not_wrap(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([1.5, -1.5, 1.0, -1.0, 0.0]), 16000, format="WAV", subtype="FLOAT")
    audio.convert(buffer.getvalue(), tmp_path / "a.wav", None)
    assert list(read(tmp_path / "a.wav")) == [32767, -32768, 32767, -32768, 0]


def test_a_path_and_its_bytes_give_the_same_wav(tmp_path: Path) -> None:
    (tmp_path / GOOD).write_bytes(sample_files()[GOOD])
    audio.convert(tmp_path / GOOD, tmp_path / "a.wav", None)
    audio.convert(sample_files()[GOOD], tmp_path / "b.wav", None)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def not_numbers() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([0.0, np.nan]), 16000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (b"", "clip_empty"),
        (tone(440, 16000, 1, 0, "WAV"), "clip_empty"),
        (b"<html>not found</html>" * 50, "clip_undecodable"),
        (bytes(5000), "clip_undecodable"),
        (sample_files()[GOOD][:50], "clip_undecodable"),
        (not_numbers(), "clip_undecodable"),
        (Path("/nonexistent.mp3"), "clip_unreadable"),
    ],
    ids=["0 bytes", "0 samples", "a page", "zeros", "cut off", "no numbers", "no file"],
)
def test_bad_clips_have_a_reason_and_leave_nothing(tmp_path: Path, clip: bytes | Path, reason: str) -> None:
    with pytest.raises(BadClip) as caught:
        audio.convert(clip, tmp_path / "a.wav", None)
    assert caught.value.reason == reason
    assert "0x" not in caught.value.detail and "/tmp" not in caught.value.detail
    assert not list(tmp_path.iterdir())


def test_a_header_that_promises_hours_costs_no_memory_and_the_sound_is_read() -> None:
    clip = sample_files()[GOOD]
    at = clip.index(b"Xing") + 8  # the number of frames
    samples, _ = audio.decode(clip[:at] + b"\x7f\xff\xff\xff" + clip[at + 4 :])
    expected, _ = audio.decode(clip)
    assert abs(len(samples) - len(expected)) < 3000


def test_what_libsndfile_cannot_read_is_read_by_ffmpeg_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    monkeypatch.setenv("PATH", str(tmp_path))  # neither ffmpeg nor ffprobe: what pip installed must do
    (tmp_path / "a.wav").write_bytes(tone(440, 44100, 2, 1.0, "WAV"))
    subprocess.run(
        [sound.ffmpeg(), "-loglevel", "error", "-i", tmp_path / "a.wav", "-c:a", "aac", tmp_path / "a.m4a"], check=True
    )
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(tmp_path / "a.m4a")
    duration_s, _ = audio.convert(tmp_path / "a.m4a", tmp_path / "b.wav", None)
    assert duration_s == pytest.approx(1.0, abs=0.05)
    assert dominant(read(tmp_path / "b.wav"), 16000) == pytest.approx(440, abs=1)


def test_without_any_ffmpeg_the_detail_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "ffmpeg", lambda: None)
    with pytest.raises(BadClip, match="no ffmpeg"):
        audio.decode(b"no sound" * 100)


def test_silence_is_trimmed_at_both_ends_only(tmp_path: Path) -> None:
    sound, rate = soundfile.read(io.BytesIO(tone(440, 16000, 1, 1.0, "WAV")))
    silence = np.zeros(rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.concatenate([silence, sound, silence, sound, silence]), rate, format="WAV")
    duration_s, decoded_s = audio.convert(buffer.getvalue(), tmp_path / "a.wav", 40.0)
    assert decoded_s == 5.0
    assert duration_s == pytest.approx(3.0, abs=0.15)  # librosa trims in frames of 2,048 samples
    assert len(read(tmp_path / "a.wav")) == round(duration_s * 16000)


def test_a_full_disk_is_not_the_fault_of_the_clip(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        audio.convert(sample_files()[GOOD], tmp_path / "no folder" / "a.wav", None)
