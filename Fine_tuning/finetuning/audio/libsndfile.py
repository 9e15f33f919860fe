"""Read audio with libsndfile, in this process: to its true end, whatever its header says, or not at all."""

import io
import mmap
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from finetuning.audio.mp3 import read_stream
from finetuning.audio.stream import BLOCK, TOLERATED_S, AudioError, AudioStream, checked_blocks, missing_audio

if TYPE_CHECKING:
    import numpy as np
    import soundfile

UNKNOWN = 1 << 62  # frames that libsndfile reports for a file that was written into a pipe
CODECS = {  # libsndfile's names, where ffmpeg has another one for the same
    **{"MPEG_LAYER_I": "mp1", "MPEG_LAYER_II": "mp2", "MPEG_LAYER_III": "mp3", "GSM610": "gsm"},
    **{"ULAW": "pcm_mulaw", "ALAW": "pcm_alaw", "MS_ADPCM": "adpcm_ms", "IMA_ADPCM": "adpcm_ima_wav"},
}
UNKNOWN_SIZES = (1 << 31, 1 << 32, 1 << 63, 1 << 64)  # bytes; a size within 64 KiB of these means "unknown"


class UnsupportedError(Exception):
    """Raised for audio that libsndfile cannot read, or would not read to its end."""

    def __init__(self, reason: str, counted_s: float | None = None) -> None:
        """Take the reason and, where the frames were counted, the duration in seconds."""
        super().__init__(reason, counted_s)
        self.reason, self.counted_s = reason, counted_s


def open_sound(source: bytes | Path) -> AudioStream:
    """Open the audio of a clip's bytes or of a file.

    Raises UnsupportedError when another reader may read it, and AudioError when it is empty.
    """
    import soundfile

    file = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
    with _content(source, file) as data:
        if not len(data):
            raise AudioError("clip_empty", "0 bytes")
        try:
            with _silent_stderr():
                sound = soundfile.SoundFile(_FileFrom(file, 0))  # without its name, whose suffix would set the format
        except soundfile.LibsndfileError as error:
            raise UnsupportedError(error.error_string) from error
        stream = read_stream(data) if sound.format == "MP3" else None
        if stream:
            is_complete, promised_frames = stream.is_as_stated(sound.frames), stream.promised_samples
        else:
            sound, is_complete = _reopen_beyond_header(sound, file, data)
            promised_frames = sound.frames + _missing_frames(sound)
        fault = "its last page is cut off" if sound.format == "OGG" and _ends_within_page(data) else ""
    if is_complete:
        duration_s = min(sound.frames, promised_frames) / sound.samplerate
        blocks = checked_blocks(_blocks(sound, promised_frames, fault))
        return AudioStream(sound.samplerate, sound.channels, _codec(sound), duration_s, blocks)
    sound.close()
    raise UnsupportedError("It does not say where it ends.", stream.duration_s if stream else None)


def _codec(sound: "soundfile.SoundFile") -> str:
    """Return the name of the encoding; flac is stored as whole numbers, which libsndfile would name."""
    return "flac" if sound.format == "FLAC" else CODECS.get(sound.subtype, sound.subtype.lower())


@contextmanager
def _content(source: bytes | Path, file: BinaryIO) -> Iterator[Any]:
    """Yield the bytes of the file without moving the position of `file`, from which libsndfile reads."""
    if isinstance(source, bytes) or not os.fstat(file.fileno()).st_size:
        yield source if isinstance(source, bytes) else b""
    else:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped


def _reopen_beyond_header(
    sound: "soundfile.SoundFile", file: BinaryIO, data: bytes | mmap.mmap
) -> tuple["soundfile.SoundFile", bool]:
    """Return the file, reopened as raw samples when its header states too few, and whether all of it will be read."""
    import soundfile

    if sound.format == "OGG":
        return sound, _is_one_stream(data)
    raw = _unstated_samples(data) if sound.format in ("WAV", "WAVEX", "RF64", "AU") else None
    if raw is None:
        return sound, sound.frames < UNKNOWN
    start, order = raw
    if not soundfile.check_format("RAW", sound.subtype):
        return sound, False
    encoding = (sound.samplerate, sound.channels, sound.subtype, order, "RAW")
    sound.close()
    return soundfile.SoundFile(_FileFrom(file, start), "r", *encoding), True


class _FileFrom:
    """A file without its first bytes, in the form that soundfile reads."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.file, self.start = file, start
        self.readinto = file.readinto
        file.seek(start)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset + (self.start if whence == os.SEEK_SET else 0), whence) - self.start

    def tell(self) -> int:
        return self.file.tell() - self.start


def _unstated_samples(data: bytes | mmap.mmap) -> tuple[int, str] | None:
    """Return the offset of the first sample and the byte order when a wav or au holds more than its header states.

    That is so when the recorder crashed (the header states 0 bytes) and beyond 4 GB, which 32 bits cannot state.
    """
    order = "big" if data[:4] in (b"RIFX", b".snd") else "little"

    def number(at: int, length: int = 4) -> int:
        return int.from_bytes(data[at : at + length], order)

    if data[:4] in (b".snd", b"dns."):
        start, size = number(4), number(8)
        return (start, order) if size < 0xFFFFFFFF and start + size < len(data) else None
    at = 12
    while at + 8 <= len(data) and data[at : at + 4] != b"data":
        at += 8 + number(at + 4) + number(at + 4) % 2
    start, size = at + 8, number(at + 4)
    if data[:4] == b"RF64" and size == 0xFFFFFFFF:
        size = number(28, 8)  # in the chunk ds64, which comes first
    ends = (start + size, start + size + size % 2)  # the padding byte may be missing
    return None if any(_holds_chunks(data, end, order) for end in ends) else (start, order)


def _holds_chunks(data: bytes | mmap.mmap, at: int, order: str) -> bool:
    """Return whether the file ends at `at`, or continues from there with well-formed chunks to its end."""
    while at + 8 <= len(data):
        if not (data[at : at + 4].isascii() and data[at : at + 4].decode("ascii").isprintable()):
            return False
        size = int.from_bytes(data[at + 4 : at + 8], order)
        at += 8 + size + size % 2
    return True


def _missing_frames(sound: "soundfile.SoundFile") -> int:
    """Return how many frames the header promises beyond those in the file, by libsndfile's log of opening it."""
    pattern = r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)"
    frames = 0
    for stated, actual in re.findall(pattern, sound.extra_info, re.MULTILINE):
        if not any(abs(int(stated) - unknown) < 1 << 16 for unknown in UNKNOWN_SIZES) and int(actual):
            frames = sound.frames * (int(stated) - int(actual)) // int(actual)
    return frames


def _is_one_stream(data: bytes | mmap.mmap) -> bool:
    """Return whether an ogg has only one page that begins a stream; of several streams libsndfile reads only one."""
    at = 0
    while (at := data.find(b"OggS", at + 4)) >= 0:
        if data[at + 4] == 0 and data[at + 5] & 2:
            return False
    return True


def _ends_within_page(data: bytes | mmap.mmap) -> bool:
    """Return whether the file ends before the last page of an ogg does."""
    at = data.rfind(b"OggS")
    segments = data[at + 26] if at + 26 < len(data) else 0
    return at + 27 + segments + sum(data[at + 27 : at + 27 + segments]) > len(data)


def _blocks(file: "soundfile.SoundFile", promised_frames: int, fault: str) -> Iterator["np.ndarray"]:
    """Yield the blocks of `file`, which should hold `promised_frames`; raise AudioError at the end for a `fault`."""
    import soundfile

    done = 0
    file.seekable = lambda: False  # or soundfile seeks after each block, and an mp3's next frame is decoded wrong
    with file:
        while True:
            try:
                with _silent_stderr():
                    block = file.read(BLOCK, "float32", always_2d=True)  # (time, channels)
            except soundfile.LibsndfileError as error:
                raise AudioError("clip_damaged", error.error_string) from error
            if not len(block):
                break
            done += len(block)
            yield block
        if promised_frames - done > TOLERATED_S * file.samplerate:
            fault = missing_audio(done / file.samplerate, promised_frames / file.samplerate)
        if fault:
            raise AudioError("clip_truncated", fault)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Suppress what libmpg123 writes directly to stderr about a damaged mp3."""
    sys.stderr.flush()
    original, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.close(null)
