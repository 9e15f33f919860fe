"""What a recording is: how it was stored, how much of the spectrum it holds, how loud, clipped and silent it is."""

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np

    from finetuning.audio.stream import AudioStream

TELEPHONE_HZ = 4250  # the highest bandwidth of a telephone's sound: 4,000 Hz, and what other codecs smear beyond
FRAME = 512  # samples, 32 ms at 16 kHz: what is silent or not, and what a spectrum is taken of
BAND = 4  # bins of a spectrum, 125 Hz at 16 kHz: the step in which the bandwidth is measured
SPECTRA = 32  # frames of which they are taken: consonants, which reach highest, and not all, for speed
REFERENCE_HZ = 2000  # the strongest band above it is what the others are compared with: vowels would hide consonants
EDGE_DB = 35  # below that band; where no band is stronger any more, the sound ends
LOUD_QUANTILE = 0.95  # of the frames' power
SILENCE_DB = 35  # below the loud frames; a quieter one is silent, and so is …
SILENCE_DBFS = -70.0  # … one below this, which is less than the noise of most microphones
MIN_DBFS = -120.0  # stated for digital silence
FULL_SCALE = 0.98  # the largest sample of mu-law and, about, what mp3 makes of a clipped peak
CLIPPED_RUN = 3  # samples in succession at full scale; fewer are the peak of a clip that was made as loud as possible
MAX_CHANNELS = 1 << 16
MAX_RATE_HZ = 1 << 31


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a clip was measured to be, before silence is trimmed; rounded, so that it is the same in every run."""

    rate_hz: int  # of the recording
    channels: int  # of the recording
    codec: str  # as ffmpeg or libsndfile names it: mp3, pcm_16
    bandwidth_hz: int  # the highest frequency that its sound or its noise reaches, at most 8,000; 0: digital silence
    level_dbfs: float  # RMS; 0 is that of a square wave at full scale
    clipped_share: float  # of the samples: those in runs at full scale
    silent_share: float  # of the time

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Self:
        """Return the measurement that a log holds; raise TypeError when it is not one."""
        measurement = cls(**fields)
        shares = (measurement.clipped_share, measurement.silent_share)
        is_valid = (
            0 < measurement.rate_hz <= MAX_RATE_HZ
            and 0 < measurement.channels <= MAX_CHANNELS
            and isinstance(measurement.codec, str)
            and measurement.codec.isascii()
            and 0 <= measurement.bandwidth_hz <= MAX_RATE_HZ
            and MIN_DBFS <= measurement.level_dbfs <= -MIN_DBFS
            and all(0 <= share <= 1 for share in shares)
        )
        if not is_valid:
            raise TypeError("these are no measurements")
        return measurement


def is_telephone(bandwidth_hz: float) -> bool:
    """Return whether a bandwidth is that of a telephone, whatever the sound was resampled to later."""
    return bandwidth_hz <= TELEPHONE_HZ


def measure(sound: "AudioStream", samples: "np.ndarray", mono: "np.ndarray", mono_rate: int) -> Measurement:
    """Return what samples (time, channels) of `sound` are; `mono` (time,) is their mean, resampled to `mono_rate` Hz.

    Takes about half a millisecond for three seconds, a tenth of what decoding and writing them does.
    """
    import numpy as np

    whole = mono if len(mono) >= FRAME else np.pad(mono, (0, FRAME - len(mono)))
    frames = whole[: len(whole) // FRAME * FRAME].reshape(-1, FRAME)
    energy = np.vecdot(frames, frames)  # (frames,)
    power = [each / FRAME for each in energy.tolist()]  # full scale 1; a list, since a call of numpy costs more here
    loud = sorted(power)[int(LOUD_QUANTILE * (len(power) - 1))]
    silence = max(loud * 10 ** (-SILENCE_DB / 10), 10 ** (SILENCE_DBFS / 10))
    return Measurement(
        rate_hz=sound.rate,
        channels=sound.channels,
        codec=sound.codec,
        bandwidth_hz=_bandwidth(frames, energy, mono_rate),
        level_dbfs=_dbfs(sum(power) / len(power)),
        clipped_share=round(_clipped_share(samples), 5),
        silent_share=round(sum(each < silence for each in power) / len(power), 3),
    )


def _dbfs(power: float) -> float:
    """Return a power, full scale 1, in dB, rounded to a tenth."""
    return round(max(10 * math.log10(power), MIN_DBFS), 1) if power > 0 else MIN_DBFS


def _bandwidth(frames: "np.ndarray", energy: "np.ndarray", rate: int) -> int:
    """Return the frequency in Hz at which the spectrum of frames (frames, time) ends, 0 for digital silence.

    That is the upper edge of the highest band within EDGE_DB of the strongest one above REFERENCE_HZ, in the mean over
    the frames with the largest steps from sample to sample. `energy` (frames,) is that of all frames.
    """
    import numpy as np

    steps = energy - np.vecdot(frames[:, 1:], frames[:, :-1])  # half their squares, but for the frame's ends
    chosen = frames[np.argsort(steps, kind="stable")[-SPECTRA:]]
    spectra = np.fft.rfft(chosen * _window()).view(np.float32)[:, :FRAME]  # (frames, real and imaginary parts by turns)
    bands = np.square(spectra).sum(axis=0).reshape(-1, 2 * BAND).sum(axis=1).tolist()
    band_hz = BAND * rate / FRAME
    weakest = max(bands[round(REFERENCE_HZ / band_hz) :]) * 10 ** (-EDGE_DB / 10)
    return round(max((number for number, band in enumerate(bands, start=1) if band > weakest), default=0) * band_hz)


@cache
def _window() -> "np.ndarray":
    import numpy as np

    return np.hanning(FRAME).astype(np.float32)


def _clipped_share(samples: "np.ndarray") -> float:
    """Return the share of samples (time, channels) that lie in runs of CLIPPED_RUN or more at full scale."""
    import numpy as np

    if max(samples.max(), -samples.min()) < FULL_SCALE:
        return 0.0
    at = np.abs(samples) >= FULL_SCALE
    count = max(len(at) - CLIPPED_RUN + 1, 0)
    runs = np.logical_and.reduce([at[first : first + count] for first in range(CLIPPED_RUN)])
    clipped = np.zeros_like(at)
    for first in range(CLIPPED_RUN):
        clipped[first : first + count] |= runs
    return float(clipped.mean())
