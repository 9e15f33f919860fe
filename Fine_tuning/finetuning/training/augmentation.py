"""Changes of the sound of training clips: speed, silence, loudness, room, noise that is added, a telephone."""

import io
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import soundfile
import soxr
from nemo.collections.asr.parts.preprocessing.perturb import (
    AudioAugmentor,
    GainPerturbation,
    ImpulsePerturbation,
    NoisePerturbation,
    Perturbation,
    SpeedPerturbation,
)
from nemo.collections.asr.parts.preprocessing.segment import AudioSegment
from scipy.signal import oaconvolve

from finetuning.config.schema import Training
from finetuning.training.augmentation_files import Piece, list_noise, list_rooms


class SoxrSpeedPerturbation(SpeedPerturbation):
    """NeMo's speed perturbation by soxr, a tenth of scipy's time: NeMo's own class refuses that name."""

    def __init__(self, sample_rate: int, share: float) -> None:
        """Take a rate in Hz and the largest change of speed: one of five factors from 1 - share to 1 + share."""
        super().__init__(sample_rate, "scipy", 1 - share, 1 + share, num_rates=5)
        self._res_type = "soxr_hq"


class SilencePadding(Perturbation):
    """Adds silence before and after a clip: digital, as NeMo's SilencePerturbation, or the clip's own background."""

    FRAME_S = 0.05  # of which the quietest one is the background

    def __init__(self, max_s: float) -> None:
        """Take the longest silence at each end, in seconds."""
        self.max_s = max_s

    def perturb(self, data: AudioSegment) -> None:
        """Change the samples in place; there may be more afterwards."""
        samples = data._samples
        before, after = (round(random.uniform(0, self.max_s) * data.sample_rate) for _ in range(2))
        silence = np.zeros(before + after, samples.dtype)
        if random.random() < 0.5:
            silence = background(samples, round(self.FRAME_S * data.sample_rate), before + after)
        data._samples = np.concatenate([silence[:before], samples, silence[before:]])


def background(samples: np.ndarray, frame: int, count: int) -> np.ndarray:
    """Return `count` samples of noise with the level and the spectrum of the quietest `frame` samples, shape (count,).

    Frames of digital silence are passed over; a clip without any other has no background.
    """
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    power = np.square(frames).mean(axis=1)
    if not count or not power.any():
        return np.zeros(count, samples.dtype)
    quietest = frames[np.where(power > 0, power, np.inf).argmin()]
    white = np.random.default_rng(random.getrandbits(32)).normal(size=count + frame - 1)
    return oaconvolve(white, quietest / np.sqrt(frame))[frame - 1 :][:count].astype(samples.dtype)


class TelephonePerturbation(Perturbation):
    """Sends a clip over a telephone: 8 kHz, and one of its codecs. NeMo's own part for this needs the program sox."""

    RATE = 8000  # Hz
    CODECS = ("ULAW", "ALAW", "GSM610")  # G.711 and GSM full rate, by libsndfile's names

    def perturb(self, data: AudioSegment) -> None:
        """Change the samples in place; there are as many afterwards."""
        line = io.BytesIO()
        codec = random.choice(self.CODECS)
        sent = soxr.resample(data._samples, data.sample_rate, self.RATE)
        soundfile.write(line, sent, self.RATE, format="WAV", subtype=codec)
        line.seek(0)
        received, _ = soundfile.read(line, dtype=data._samples.dtype.name)
        data._samples = soxr.resample(received, self.RATE, data.sample_rate)[: len(data._samples)]


def build_augmentor(training: Training, sample_rate: int) -> AudioAugmentor | None:
    """Return what changes each training clip before its features are computed, None where nothing does.

    It draws from Python's global random state, which SeededDataset seeds for each clip and epoch.
    """
    noise, room, parts = training.noise, training.room, []
    if training.speed_perturbation:
        parts.append((1.0, SoxrSpeedPerturbation(sample_rate, training.speed_perturbation)))
    if training.silence_s:
        parts.append((1.0, SilencePadding(training.silence_s)))
    if training.gain_db:
        parts.append((1.0, GainPerturbation(-training.gain_db, training.gain_db)))
    if room.folder:
        with _manifest(list_rooms(room.folder)) as path:
            rooms = ImpulsePerturbation(path, normalize_impulse=True, shift_impulse=True)
        parts.append((room.probability, rooms))
    if noise.folder:
        with _manifest(list_noise(noise.folder)) as path:
            parts.append((noise.probability, NoisePerturbation(path, noise.min_snr_db, noise.max_snr_db)))
    if training.telephone:
        parts.append((training.telephone, TelephonePerturbation()))
    return AudioAugmentor(parts) if parts else None


@contextmanager
def _manifest(pieces: list[Piece]) -> Iterator[str]:
    """Yield the path of a manifest of the pieces, which is there as long as NeMo reads it."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(piece)) + "\n" for piece in pieces)
        file.flush()
        yield file.name
