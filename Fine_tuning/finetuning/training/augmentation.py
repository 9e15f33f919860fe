"""Changes of the sound of training clips, by NeMo's parts: their speed, loudness and room, and noise that is added."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from nemo.collections.asr.parts.preprocessing.perturb import (
    AudioAugmentor,
    GainPerturbation,
    ImpulsePerturbation,
    NoisePerturbation,
    SpeedPerturbation,
)

from finetuning.config.schema import Training
from finetuning.training.augmentation_files import Piece, list_noise, list_rooms


class SoxrSpeedPerturbation(SpeedPerturbation):
    """NeMo's speed perturbation by soxr, a tenth of scipy's time: NeMo's own class refuses that name."""

    def __init__(self, sample_rate: int, share: float) -> None:
        """Take a rate in Hz and the largest change of speed: one of five factors from 1 - share to 1 + share."""
        super().__init__(sample_rate, "scipy", 1 - share, 1 + share, num_rates=5)
        self._res_type = "soxr_hq"


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
    return AudioAugmentor(parts) if parts else None


@contextmanager
def _manifest(pieces: list[Piece]) -> Iterator[str]:
    """Yield the path of a manifest of the pieces, which is there as long as NeMo reads it."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(piece)) + "\n" for piece in pieces)
        file.flush()
        yield file.name
