"""What is measured of a recording, on real speech sent through real codecs."""

import io
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from finetuning.audio import decoding, ffmpeg
from finetuning.audio.measurement import Measurement, is_telephone
from releases import good_rows, sample_files, tone

CLIPS = list({row["client_id"]: row["path"] for row in good_rows(440)}.values())[::2]  # a speaker each


@cache
def speech(name: str) -> np.ndarray:
    """The samples (time,) of a clip at 16 kHz."""
    return decoding.to_mono_16k(*decoding.decode_audio(sample_files()[name]))


def encoded(samples: np.ndarray, rate: int, format: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def measured(clip: bytes | Path, folder: Path, trim_silence_db: float | None = None) -> Measurement:
    [outcome] = decoding.convert_parts(clip, [decoding.Part(folder / "a.wav")], trim_silence_db)
    return outcome.sound


def call(name: str, subtype: str) -> bytes:
    """A clip as a telephone transmits it."""
    return encoded(soxr.resample(speech(name), 16000, 8000), 8000, subtype=subtype)


def upsampled(clip: bytes, rate: int, format: str) -> bytes:
    samples, before = soundfile.read(io.BytesIO(clip), dtype="float32")
    return encoded(soxr.resample(samples, before, rate), rate, format)


WIDE: dict[str, Callable[[str], bytes]] = {
    "as it is": lambda name: sample_files()[name],
    "24 kHz in a wav": lambda name: upsampled(sample_files()[name], 24000, "WAV"),
    "16 kHz in mu-law": lambda name: encoded(speech(name), 16000, subtype="ULAW"),
    "48 kHz in Opus": lambda name: encoded(soxr.resample(speech(name), 16000, 48000), 48000, "OGG", "OPUS"),
    "ten times quieter": lambda name: encoded(speech(name) / 10, 16000),
}
TELEPHONE: dict[str, Callable[[str], bytes]] = {
    "8 kHz": lambda name: call(name, "PCM_16"),
    "8 kHz and back": lambda name: upsampled(call(name, "PCM_16"), 16000, "WAV"),
    "GSM": lambda name: call(name, "GSM610"),
    "GSM and back": lambda name: upsampled(call(name, "GSM610"), 16000, "WAV"),
    "mu-law and back": lambda name: upsampled(call(name, "ULAW"), 16000, "FLAC"),
    "mu-law, then an mp3": lambda name: upsampled(call(name, "ULAW"), 48000, "MP3"),
}


@pytest.mark.parametrize(
    ("sent", "telephone"),
    [*((sent, False) for sent in WIDE.values()), *((sent, True) for sent in TELEPHONE.values())],
    ids=[*WIDE, *TELEPHONE],
)
def test_a_telephone_is_told_by_its_bandwidth(tmp_path: Path, sent: Callable[[str], bytes], telephone: bool) -> None:
    bandwidths = [measured(sent(name), tmp_path).bandwidth_hz for name in CLIPS]
    assert {is_telephone(bandwidth) for bandwidth in bandwidths} == {telephone}
    assert max(bandwidths) <= 4125 if telephone else min(bandwidths) >= 7000


@pytest.mark.parametrize(
    ("clip", "about"),
    [
        (tone(440, 48000, 1, 1.0, "MP3"), (48000, 1, "mp3")),
        (tone(440, 44100, 2, 1.0, "WAV"), (44100, 2, "pcm_16")),
        (tone(440, 22050, 3, 1.0, "FLAC"), (22050, 3, "flac")),
        (tone(440, 16000, 1, 1.0, "OGG"), (16000, 1, "vorbis")),
        (encoded(np.zeros(8000), 8000, subtype="ULAW"), (8000, 1, "pcm_mulaw")),
        (encoded(np.zeros(8000), 8000, subtype="GSM610"), (8000, 1, "gsm")),
        (encoded(np.zeros(48000), 48000, "OGG", "OPUS"), (48000, 1, "opus")),
    ],
)
def test_how_a_recording_was_stored_is_kept(tmp_path: Path, clip: bytes, about: tuple[int, int, str]) -> None:
    sound = measured(clip, tmp_path)
    assert (sound.rate_hz, sound.channels, sound.codec) == about


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_ffmpeg_says_how_a_recording_was_stored(tmp_path: Path, channels: int) -> None:
    command = [ffmpeg.find_ffmpeg(), "-v", "error", "-i", "-", "-c:a", "aac", tmp_path / "a.m4a"]
    subprocess.run(command, input=tone(440, 32000, channels, 1.0, "WAV"), check=True)
    sound = measured(tmp_path / "a.m4a", tmp_path)
    assert (sound.rate_hz, sound.channels, sound.codec) == (32000, channels, "aac")


def test_ffmpeg_s_names_of_channels_are_counted() -> None:
    names = {
        "mono": 1,
        "1 channels": 1,
        "stereo": 2,
        "2.1": 3,
        "quad": 4,
        "5.1(side)": 6,
        "7.1(wide)": 8,
        "16 channels": 16,
    }
    assert {name: ffmpeg._count_channels(name) for name in names} == names


def test_the_level_is_the_rms_of_all_of_the_clip(tmp_path: Path) -> None:
    square = np.where(np.arange(32000) % 40 < 20, 0.5, -0.5)
    assert measured(encoded(square, 16000), tmp_path).level_dbfs == -6.0
    half = np.concatenate([square, np.zeros(32000)])
    assert measured(encoded(half, 16000), tmp_path).level_dbfs == -9.0
    rms = np.sqrt(np.square(speech(CLIPS[0])).mean())
    assert measured(sample_files()[CLIPS[0]], tmp_path).level_dbfs == pytest.approx(20 * np.log10(rms), abs=0.1)


def test_what_is_clipped_is_counted_and_a_loud_clip_is_not(tmp_path: Path) -> None:
    for name in CLIPS[:10]:
        loud = soxr.resample(speech(name), 16000, 48000)
        loud /= np.abs(loud).max()
        clipped = (4 * loud).clip(-1, 1)
        share = (np.abs(clipped) == 1).mean()
        for format in ("WAV", "MP3", "FLAC"):
            assert measured(encoded(loud, 48000, format), tmp_path).clipped_share < 0.0005
            found = measured(encoded(clipped, 48000, format), tmp_path).clipped_share
            assert found == pytest.approx(share, rel=0.3 if format == "MP3" else 0.05)
        phone = (4 * soxr.resample(loud, 48000, 8000)).clip(-1, 1)
        assert measured(encoded(phone, 8000, subtype="ULAW"), tmp_path).clipped_share > share / 2
    two = np.array([0.0, 1.0, 1.0, 0.0, -1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    assert measured(encoded(two, 16000), tmp_path).clipped_share == 0.3


def test_pauses_are_silence_in_noise_too_and_a_muted_clip_is_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    said = speech(CLIPS[0])
    bare = measured(encoded(said, 16000), tmp_path).silent_share
    paused = np.concatenate([np.zeros(len(said)), said])
    for level in (0, 1e-4, 1e-3):
        noisy = paused + rng.normal(0, level, len(paused)) if level else paused
        share = measured(encoded(noisy, 16000), tmp_path).silent_share
        assert share == pytest.approx(0.5 + bare / 2, abs=0.02)
    for muted in (np.zeros(48000), rng.normal(0, 1e-4, 48000)):
        assert measured(encoded(muted, 16000), tmp_path).silent_share == 1.0
    silent = measured(encoded(np.zeros(48000), 16000), tmp_path)
    assert (silent.bandwidth_hz, silent.level_dbfs, silent.clipped_share) == (0, -120.0, 0.0)
    quiet = measured(encoded(said / 100, 16000), tmp_path)  # nobody would leave it out
    assert quiet.level_dbfs < -58 and quiet.silent_share < 0.5


@pytest.mark.parametrize("count", [1, 2, 3, 511, 512, 513])
def test_a_clip_of_a_few_samples_is_measured(tmp_path: Path, count: int) -> None:
    sound = measured(encoded(np.ones(count), 16000), tmp_path)
    assert sound.clipped_share == (1.0 if count >= 3 else 0.0)
    assert sound.silent_share == 0.0 and 0 <= sound.bandwidth_hz <= 8000


def test_a_recording_is_measured_as_it_is_and_a_part_of_it_alone(tmp_path: Path) -> None:
    """Before its silence is trimmed, and without what lies outside the part or in another channel."""
    said = speech(CLIPS[0])
    clip = encoded(np.concatenate([np.zeros(len(said)), said]), 16000)
    assert measured(clip, tmp_path, 40.0) == measured(clip, tmp_path)
    seconds = len(said) / 16000
    both = encoded(np.stack([np.ones(len(said)), said], axis=1), 16000)
    parts = [decoding.Part(tmp_path / "b.wav", channel="1"), decoding.Part(tmp_path / "c.wav", channel="0")]
    right, left = (outcome.sound for outcome in decoding.convert_parts(both, parts, None))
    assert left.clipped_share == 1.0 and right.clipped_share == 0.0 and right.channels == 2
    [late] = decoding.convert_parts(clip, [decoding.Part(tmp_path / "d.wav", seconds)], None)
    assert late.sound == measured(encoded(said, 16000), tmp_path)
