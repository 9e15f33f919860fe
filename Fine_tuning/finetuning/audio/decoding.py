"""One clip in any format -> 16 kHz mono 16-bit wav and its duration."""

import io
import wave
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

from finetuning.audio import ffmpeg, libsndfile
from finetuning.audio.stream import AudioError, AudioStream, to_mono
from finetuning.errors import UserError
from finetuning.files import create_temp_file

SAMPLE_RATE = 16000  # Hz, what the models were trained on
MAX_DURATION_S = 600  # of a clip, more is not read
WAV_HEADER = 44  # bytes before the samples
MIN_DURATION_RATIO = 0.9  # of the duration in the manifest: a wav that lasts less was cut off


def check_not_truncated(found_s: float, stated_s: float) -> None:
    """OSError where a wav lasts clearly less than its manifest states: libsndfile reads what there is of it."""
    if found_s < MIN_DURATION_RATIO * stated_s:
        raise OSError(f"it lasts {found_s:.2f} s of {stated_s:.2f} s")


def check_installation(trim_silence_db: float | None) -> None:
    """UserError where what reads, writes or trims sound does not work: no clip's fault."""
    try:
        import numpy as np
        import soundfile

        wav = io.BytesIO()
        soundfile.write(wav, np.full(SAMPLE_RATE, 0.5), 2 * SAMPLE_RATE, format="WAV")
        to_mono_16k(*decode_audio(wav.getvalue()))
        if trim_silence_db is not None:
            import librosa  # noqa: F401
    except Exception as error:
        raise UserError(f"the installation is broken ({error}); type: pip install -r requirements.txt") from error
    if trim_silence_db is None:
        return
    try:
        _trimmed(np.ones(SAMPLE_RATE, np.float32), trim_silence_db)
    except Exception as error:  # of numba, where neither its own folder nor the user's may be written to
        raise UserError(
            f"dataset.trim_silence_db does not work here ({error}); type: export NUMBA_CACHE_DIR=FOLDER, one that can "
            "be written to, and the same command again"
        ) from error


def convert_to_wav(clip: bytes | Path, wav: Path, trim_silence_db: float | None) -> tuple[float, float]:
    """Write `clip` to `wav` and return the seconds written and the seconds decoded (more, when silence is trimmed).

    `wav` appears under its name only when it is whole. BadClip: unreadable, empty or undecodable; OSError: `wav` cannot
    be written.
    """
    if isinstance(clip, Path):
        try:
            clip = clip.read_bytes()
        except OSError as error:
            raise AudioError("clip_unreadable", error.strerror or "", passing=True) from error
    samples = to_mono_16k(*decode_audio(clip))
    decoded = len(samples)
    if trim_silence_db is not None:
        samples = _trimmed(samples, trim_silence_db)
    if not len(samples):
        raise AudioError("clip_empty", "holds no sound")
    _write(samples, wav)
    return len(samples) / SAMPLE_RATE, decoded / SAMPLE_RATE


def open_sound(source: bytes | Path) -> AudioStream:
    """The sound of a clip's bytes or of a file; BadClip when nobody can read it, OSError when it cannot be opened.

    libsndfile reads what Common Voice holds; ffmpeg, slower by far, is asked about what that does not read, or not to
    its end.
    """
    try:
        return libsndfile.open_sound(source)
    except libsndfile.Unsupported as refused:
        return ffmpeg.open_sound(source, refused.reason, refused.counted_s)


def decode_audio(clip: bytes) -> tuple["np.ndarray", int]:
    """Samples (time, channels) as float32, full scale 1, and their rate in Hz; BadClip when they cannot all be read."""
    import numpy as np

    sound = open_sound(clip)
    blocks, left = [], MAX_DURATION_S * sound.rate  # a damaged header may promise any number: memory
    for block in sound.blocks:
        blocks.append(block[:left])
        left -= len(blocks[-1])
        if not left:
            break
    if not blocks:
        raise AudioError("clip_empty", "0 samples")
    return np.concatenate(blocks), sound.rate


def to_mono_16k(samples: "np.ndarray", rate: int) -> "np.ndarray":
    """(time, channels) at `rate` Hz -> (time,) at 16 kHz, the mean of the channels; BadClip where they cancel."""
    import soxr

    mono, cancels = to_mono(samples)
    if cancels:
        raise AudioError(
            "channels_cancel", "one channel is another turned over, their mean is silence; keep one of them"
        )
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


def _trimmed(samples: "np.ndarray", top_db: float) -> "np.ndarray":
    """`samples` (time,) without what is more than `top_db` below the peak at both ends."""
    import librosa

    return librosa.effects.trim(samples, top_db=top_db)[0]


def _write(samples: "np.ndarray", path: Path) -> None:
    """Float samples (time,) as a 16-bit wav; what goes beyond full scale is held there instead of wrapping around."""
    import numpy as np

    temporary = create_temp_file(path)
    try:
        with temporary.open("wb") as file, wave.open(file) as wav:
            wav.setnchannels(1)
            wav.setsampwidth(2)
            wav.setframerate(SAMPLE_RATE)
            wav.writeframes((samples * 32768).round().clip(-32768, 32767).astype(np.int16).tobytes())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def wav_size(duration_s: float) -> int:
    """Bytes of a wav written here that lasts `duration_s`."""
    return WAV_HEADER + 2 * round(duration_s * SAMPLE_RATE)
