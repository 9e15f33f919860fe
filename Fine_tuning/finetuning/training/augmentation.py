"""Changes of the sound of training clips, by NeMo's parts: speed, loudness, room, noise that is added, a telephone."""

import io
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

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

from finetuning.config.schema import Training
from finetuning.training.augmentation_files import Piece, list_noise, list_rooms


class SoxrSpeedPerturbation(SpeedPerturbation):
    """NeMo's speed perturbation by soxr, a tenth of scipy's time: NeMo's own class refuses that name."""

    def __init__(self, sample_rate: int, share: float) -> None:
        """Take a rate in Hz and the largest change of speed: one of five factors from 1 - share to 1 + share."""
        super().__init__(sample_rate, "scipy", 1 - share, 1 + share, num_rates=5)
        self._res_type = "soxr_hq"


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
