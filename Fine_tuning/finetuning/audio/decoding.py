"""Decode a clip of any format to a 16 kHz mono 16-bit wav."""

import io
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

from finetuning.audio import ffmpeg, libsndfile
from finetuning.audio.measurement import Measurement, measure
from finetuning.audio.stream import AudioError, AudioStream, to_mono
from finetuning.errors import UserError
from finetuning.files import create_temp_file

SAMPLE_RATE = 16000  # Hz, what the models were trained on
MAX_DURATION_S = 600  # of a clip; the rest is not read
WAV_HEADER = 44  # bytes before the samples
MAX_FILE_BYTES = 200_000_000  # of a file that is read whole; a longer one is streamed
MIN_DURATION_RATIO = 0.9  # of the duration in the manifest; a shorter wav was cut off


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a recording, and the wav that it becomes."""

    wav: Path
    start_s: float = 0.0
    end_s: float | None = None  # None: the end of the recording
    channel: str = "mix"  # 0, 1, …, or mix: their mean; "": the only one


@dataclass(frozen=True, slots=True)
class ConvertedPart:
    """The wav of a part, and what was decoded for it."""

    duration_s: float  # of the wav
    decoded_s: float  # more, when silence was trimmed
    sound: Measurement


def check_not_truncated(duration_s: float, stated_s: float) -> None:
    """Raise OSError when a wav is clearly shorter than its manifest states, which libsndfile does not report."""
    if duration_s < MIN_DURATION_RATIO * stated_s:
        raise OSError(f"it lasts {duration_s:.2f} s of {stated_s:.2f} s")


def check_installation(trim_silence_db: float | None) -> None:
    """Raise UserError when the libraries that read, write or trim audio do not work: that is no clip's fault."""
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
        _trim_silence(np.ones(SAMPLE_RATE, np.float32), trim_silence_db)
    except Exception as error:  # numba's, when neither its own folder nor the user's is writable
        raise UserError(
            f"dataset.trim_silence_db does not work here ({error}); type: export NUMBA_CACHE_DIR=FOLDER, naming a "
            "writable folder, and rerun the same command"
        ) from error


def convert_to_wav(clip: bytes | Path, wav: Path, trim_silence_db: float | None) -> tuple[float, float]:
    """Write `clip` to `wav` and return the seconds written and the seconds decoded (more, when silence is trimmed).

    `wav` appears under its name only when it is complete. Raises AudioError when the clip is unreadable, empty or
    undecodable, and OSError when `wav` cannot be written.
    """
    [outcome] = convert_parts(clip, [Part(wav)], trim_silence_db)
    if isinstance(outcome, AudioError):
        raise outcome
    return outcome.duration_s, outcome.decoded_s


def convert_parts(
    recording: bytes | Path, parts: Sequence[Part], trim_silence_db: float | None
) -> list[ConvertedPart | AudioError]:
    """Write the wav of each part while the recording is decoded once.

    Return what became of each, or its AudioError. Raises AudioError when the recording cannot be opened, and OSError
    when a wav cannot be written.
    """
    outcomes: list[ConvertedPart | AudioError] = [AudioError("clip_empty", "0 samples")] * len(parts)
    sound, written = _open_recording(recording), set[int]()
    try:
        for number, samples in _iter_parts(sound, parts):
            written.add(number)
            part = parts[number]
            try:
                outcomes[number] = _convert(samples, sound, part, trim_silence_db)
            except AudioError as error:
                outcomes[number] = error
    except AudioError as error:  # the recording is damaged there
        return [outcome if number in written else error for number, outcome in enumerate(outcomes)]
    return outcomes


def _open_recording(recording: bytes | Path) -> AudioStream:
    try:
        if isinstance(recording, Path) and recording.stat().st_size <= MAX_FILE_BYTES:
            recording = recording.read_bytes()
        return open_sound(recording, all_channels=True)
    except OSError as error:
        raise AudioError("clip_unreadable", error.strerror or "", passing=True) from error


def _iter_parts(sound: AudioStream, parts: Sequence[Part]) -> Iterator[tuple[int, "np.ndarray"]]:
    """Yield number and samples (time, channels) of each part that has any, when its end is read."""
    import numpy as np

    def frames(part: Part) -> tuple[int, int]:
        first, longest = round(part.start_s * sound.rate), MAX_DURATION_S * sound.rate  # limits memory
        return first, first + longest if part.end_s is None else min(round(part.end_s * sound.rate), first + longest)

    waiting = sorted(((*frames(part), number) for number, part in enumerate(parts)), reverse=True)
    begun: list[tuple[int, int, int, list[np.ndarray]]] = []
    position = 0
    for block in sound.blocks:
        start, position = position, position + len(block)
        while waiting and waiting[-1][0] < position:
            begun.append((*waiting.pop(), []))
        for first, last, _, pieces in begun:
            pieces.append(block[max(first - start, 0) : last - start])
        for _, _, number, pieces in [each for each in begun if each[1] <= position]:
            yield number, np.concatenate(pieces)
        begun = [each for each in begun if each[1] > position]
        if not (begun or waiting):
            return
    for _, _, number, pieces in begun:
        yield number, np.concatenate(pieces)


def _convert(samples: "np.ndarray", sound: AudioStream, part: Part, trim_silence_db: float | None) -> ConvertedPart:
    """Write samples (time, channels) of `sound` to the part's wav; raise AudioError when that would hold nothing."""
    if not len(samples):
        raise AudioError("clip_empty", "holds no sound")
    samples = _chosen_channel(samples, part.channel)
    mono = to_mono_16k(samples, sound.rate)
    decoded_samples, measurement = len(mono), measure(sound, samples, mono, SAMPLE_RATE)
    if trim_silence_db is not None:
        mono = _trim_silence(mono, trim_silence_db)
    if not len(mono):
        raise AudioError("clip_empty", "holds no sound")
    _write_wav(mono, part.wav)
    return ConvertedPart(len(mono) / SAMPLE_RATE, decoded_samples / SAMPLE_RATE, measurement)


def _chosen_channel(samples: "np.ndarray", channel: str) -> "np.ndarray":
    """Return the channel of samples (time, channels) that `channel` means, or all of them to be mixed."""
    count = samples.shape[1]
    if channel == "mix" or (not channel and count == 1):
        return samples
    if not channel and (samples == samples[:, :1]).all():
        return samples[:, :1]
    if not channel:
        raise AudioError("several_channels", f"{count}, which are not mixed unasked; state channel: 0, 1 or mix")
    if int(channel) >= count:
        raise AudioError("no_such_channel", f"there is no channel {channel}; the first of its {count} is 0")
    return samples[:, int(channel) :][:, :1]


def open_sound(source: bytes | Path, all_channels: bool = False) -> AudioStream:
    """Open the audio of a clip's bytes or of a file.

    libsndfile reads the formats of Common Voice; ffmpeg, which is much slower, reads what libsndfile cannot read, or
    not to its end, and mixes more than two channels down to two unless `all_channels` are to be kept. Raises AudioError
    when neither can read it, and OSError when the file cannot be opened.
    """
    try:
        return libsndfile.open_sound(source)
    except libsndfile.UnsupportedError as error:
        return ffmpeg.open_sound(source, error.reason, error.counted_s, all_channels)


def decode_audio(clip: bytes) -> tuple["np.ndarray", int]:
    """Return samples (time, channels), float32 with full scale 1, and their rate in Hz.

    Raises AudioError when they cannot all be read.
    """
    import numpy as np

    sound = open_sound(clip)
    blocks, remaining = [], MAX_DURATION_S * sound.rate  # limits memory: a damaged header may state any number
    for block in sound.blocks:
        blocks.append(block[:remaining])
        remaining -= len(blocks[-1])
        if not remaining:
            break
    if not blocks:
        raise AudioError("clip_empty", "0 samples")
    return np.concatenate(blocks), sound.rate


def to_mono_16k(samples: "np.ndarray", rate: int) -> "np.ndarray":
    """Return the mean of the channels, (time, channels) at `rate` Hz, as (time,) at 16 kHz.

    Raises AudioError when the channels cancel each other.
    """
    import soxr

    mono, cancels = to_mono(samples)
    if cancels:
        raise AudioError(
            "channels_cancel", "one channel is another inverted, so their mean is silence; keep one of them"
        )
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


def _trim_silence(samples: "np.ndarray", top_db: float) -> "np.ndarray":
    """Return `samples` (time,) without what is more than `top_db` below the peak at both ends."""
    import librosa

    return librosa.effects.trim(samples, top_db=top_db)[0]


def _write_wav(samples: "np.ndarray", path: Path) -> None:
    """Write float samples (time,) as a 16-bit wav; values beyond full scale are clipped instead of wrapping around."""
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
    """Return the size in bytes of a wav written here that lasts `duration_s`."""
    return WAV_HEADER + 2 * round(duration_s * SAMPLE_RATE)
