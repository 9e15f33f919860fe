"""One clip in any format -> 16 kHz mono 16-bit wav and its duration."""

import io
import os
import shutil
import wave
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

from finetuning.errors import UserError

RATE = 16000  # Hz, what the models were trained on
LONGEST_S = 600  # of a clip, more is not read
WAV_HEADER = 44  # bytes before the samples
WHOLE = 0.9  # of the duration in the manifest: a wav that lasts less was cut off


class BadClip(ValueError):
    """A clip that cannot become a wav."""

    def __init__(self, reason: str, detail: str = "", passing: bool = False) -> None:
        """`reason` in snake_case; `detail` is the same in every run, so no addresses and no temporary names.

        `passing`: the fault is this machine's, not the clip's; another run may read it.
        """
        super().__init__(reason, detail)
        self.reason, self.detail, self.passing = reason, detail, passing


def refuse_cut_off(found_s: float, stated_s: float) -> None:
    """OSError where a wav lasts clearly less than its manifest states: libsndfile reads what there is of it."""
    if found_s < WHOLE * stated_s:
        raise OSError(f"it lasts {found_s:.2f} s of {stated_s:.2f} s")


def refuse_broken_installation() -> None:
    """UserError where what reads and writes sound cannot be imported: no clip's fault."""
    try:
        import numpy  # noqa: F401
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
    except (ImportError, OSError) as error:
        raise UserError(f"the installation is broken ({error}); type: pip install -r requirements.txt") from error


def convert(clip: bytes | Path, wav: Path, trim_silence_db: float | None) -> tuple[float, float]:
    """Write `clip` to `wav` and return the seconds written and the seconds decoded (more, when silence is trimmed).

    `wav` appears under its name only when it is whole. BadClip: unreadable, empty or undecodable; OSError: `wav` cannot
    be written.
    """
    if isinstance(clip, Path):
        try:
            clip = clip.read_bytes()
        except OSError as error:
            raise BadClip("clip_unreadable", error.strerror or "", passing=True) from error
    samples = mono_16k(*decode(clip))
    decoded = len(samples)
    if trim_silence_db is not None:
        samples = _trimmed(samples, trim_silence_db)
    if not len(samples):
        raise BadClip("clip_empty", "holds no sound")
    _write(samples, wav)
    return len(samples) / RATE, decoded / RATE


def decode(clip: bytes) -> tuple["np.ndarray", int]:
    """Samples (time, channels) as float32, full scale 1, and their rate in Hz; BadClip when nobody can read them.

    libsndfile reads what Common Voice holds, in this process; ffmpeg, slower by far, is asked about the rest.
    """
    import numpy as np
    import soundfile

    if not clip:
        raise BadClip("clip_empty", "0 bytes")
    try:
        with soundfile.SoundFile(io.BytesIO(clip)) as file:
            rate = file.samplerate
            frames = min(file.frames, LONGEST_S * rate)  # a damaged header may promise any number: memory
            samples = file.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        samples, rate = _decode_with_ffmpeg(clip, error.error_string)
    if not len(samples):
        raise BadClip("clip_empty", "0 samples")
    if not np.isfinite(samples).all():
        raise BadClip("clip_undecodable", "holds samples that are not numbers")
    return samples, rate


def _decode_with_ffmpeg(clip: bytes, refused: str) -> tuple["np.ndarray", int]:
    """As `decode`, by pydub; `refused` is what libsndfile said."""
    import warnings

    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydub warns at import that it finds no ffmpeg; it is told below
        from pydub import AudioSegment
        from pydub.exceptions import CouldntDecodeError
    AudioSegment.converter = ffmpeg()
    if AudioSegment.converter is None:
        detail = f"libsndfile: {refused} There is no ffmpeg to ask (pip install imageio-ffmpeg)"
        raise BadClip("clip_undecodable", detail, passing=True)
    try:
        # by way of temporary files: the other way needs ffprobe too, which imageio-ffmpeg does not carry
        segment = AudioSegment.from_file_using_temporary_files(io.BytesIO(clip))
    except (CouldntDecodeError, wave.Error, EOFError) as error:
        raise BadClip("clip_undecodable", f"libsndfile: {refused} ffmpeg cannot read it either") from error
    samples = np.array(segment.get_array_of_samples(), dtype=np.float32).reshape(-1, segment.channels)
    return samples / float(1 << (8 * segment.sample_width - 1)), segment.frame_rate


def ffmpeg() -> str | None:
    """Path of the ffmpeg on PATH, else of the one in the package imageio-ffmpeg, else None."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None


def mono_16k(samples: "np.ndarray", rate: int) -> "np.ndarray":
    """(time, channels) at `rate` Hz -> (time,) at 16 kHz, the mean of the channels."""
    import soxr

    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    return mono if rate == RATE else soxr.resample(mono, rate, RATE)


def _trimmed(samples: "np.ndarray", top_db: float) -> "np.ndarray":
    """`samples` (time,) without what is more than `top_db` below the peak at both ends."""
    import librosa

    return librosa.effects.trim(samples, top_db=top_db)[0]


def _write(samples: "np.ndarray", path: Path) -> None:
    """Float samples (time,) as a 16-bit wav; what goes beyond full scale is held there instead of wrapping around."""
    import numpy as np

    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file, wave.open(file) as wav:
            wav.setnchannels(1)
            wav.setsampwidth(2)
            wav.setframerate(RATE)
            wav.writeframes((samples * 32768).round().clip(-32768, 32767).astype(np.int16).tobytes())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def wav_size(duration_s: float) -> int:
    """Bytes of a wav written here that lasts `duration_s`."""
    return WAV_HEADER + 2 * round(duration_s * RATE)
