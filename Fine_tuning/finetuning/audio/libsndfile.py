"""Sound that libsndfile reads, in this process: to its true end, whatever its header says, or not at all."""

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

UNKNOWN = 1 << 62  # frames, says libsndfile of what was written into a pipe
NOT_STATED = (1 << 31, 1 << 32, 1 << 63, 1 << 64)  # bytes; what is within 64 KiB of it stands for "unknown"


class Unsupported(Exception):
    """What libsndfile cannot read, or would not read to its end."""

    def __init__(self, reason: str, counted_s: float | None = None) -> None:
        """`counted_s`: seconds, where its frames were counted."""
        super().__init__(reason, counted_s)
        self.reason, self.counted_s = reason, counted_s


def open_sound(source: bytes | Path) -> AudioStream:
    """The sound of a clip's bytes or of a file; Refused where another may read it, BadClip where it is empty."""
    import soundfile

    file = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
    with _bytes_of(source, file) as data:
        if not len(data):
            raise AudioError("clip_empty", "0 bytes")
        try:
            with _silenced():
                found = soundfile.SoundFile(_Rest(file, 0))  # without its name: a suffix would be taken for a format
        except soundfile.LibsndfileError as error:
            raise Unsupported(error.error_string) from error
        stream = read_stream(data) if found.format == "MP3" else None
        if stream:
            read_whole, promised = stream.is_as_stated(found.frames), stream.promised
        else:
            found, read_whole = _with_what_the_header_hides(found, file, data)
            promised = found.frames + _cut_off(found)
        fault = "its last page is cut off" if found.format == "OGG" and _ends_within_a_page(data) else ""
    if read_whole:
        duration_s = min(found.frames, promised) / found.samplerate
        return AudioStream(found.samplerate, duration_s, checked_blocks(_blocks(found, promised, fault)))
    found.close()
    raise Unsupported("It does not say where it ends.", stream.duration_s if stream else None)


@contextmanager
def _bytes_of(source: bytes | Path, file: BinaryIO) -> Iterator[Any]:
    """Bytes to look at without moving `file`, which libsndfile reads."""
    if isinstance(source, bytes) or not os.fstat(file.fileno()).st_size:
        yield source if isinstance(source, bytes) else b""
    else:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped


def _with_what_the_header_hides(
    found: "soundfile.SoundFile", file: BinaryIO, data: bytes | mmap.mmap
) -> tuple["soundfile.SoundFile", bool]:
    """The file, opened anew from its first sample on where its header states too few, and whether it is read whole."""
    import soundfile

    if found.format == "OGG":
        return found, _is_one_stream(data)
    hidden = _first_sample(data) if found.format in ("WAV", "WAVEX", "RF64", "AU") else None
    if hidden is None:
        return found, found.frames < UNKNOWN
    start, order = hidden
    if not soundfile.check_format("RAW", found.subtype):
        return found, False
    about = (found.samplerate, found.channels, found.subtype, order, "RAW")
    found.close()
    return soundfile.SoundFile(_Rest(file, start), "r", *about), True


class _Rest:
    """A file from a place on, as libsndfile reads it."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.file, self.start = file, start
        self.readinto = file.readinto
        file.seek(start)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset + (self.start if whence == os.SEEK_SET else 0), whence) - self.start

    def tell(self) -> int:
        return self.file.tell() - self.start


def _first_sample(data: bytes | mmap.mmap) -> tuple[int, str] | None:
    """Where it is and its byte order, when a wav or au holds more sound than its header states.

    So do a recording whose recorder crashed (0 bytes) and one of more than 4 GB, whose size 32 bits do not hold.
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
        size = number(28, 8)  # of the chunk ds64, which comes first
    ends = (start + size, start + size + size % 2)  # a byte that fills up may be missing
    return None if any(_holds_chunks(data, end, order) for end in ends) else (start, order)


def _holds_chunks(data: bytes | mmap.mmap, at: int, order: str) -> bool:
    """Whether the file ends at `at`, or goes on from there with chunks of its own kind to its end."""
    while at + 8 <= len(data):
        if not (data[at : at + 4].isascii() and data[at : at + 4].decode("ascii").isprintable()):
            return False
        size = int.from_bytes(data[at + 4 : at + 8], order)
        at += 8 + size + size % 2
    return True


def _cut_off(found: "soundfile.SoundFile") -> int:
    """Frames that the header promises and the file does not hold, as libsndfile notes when it opens it."""
    pattern = r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)"
    frames = 0
    for stated, there in re.findall(pattern, found.extra_info, re.MULTILINE):
        if not any(abs(int(stated) - unknown) < 1 << 16 for unknown in NOT_STATED) and int(there):
            frames = found.frames * (int(stated) - int(there)) // int(there)
    return frames


def _is_one_stream(data: bytes | mmap.mmap) -> bool:
    """Whether an ogg has one page that begins a stream, the first: of several streams libsndfile reads one."""
    at = 0
    while (at := data.find(b"OggS", at + 4)) >= 0:
        if data[at + 4] == 0 and data[at + 5] & 2:
            return False
    return True


def _ends_within_a_page(data: bytes | mmap.mmap) -> bool:
    """Whether the last page of an ogg is longer than what is left of the file."""
    at = data.rfind(b"OggS")
    segments = data[at + 26] if at + 26 < len(data) else 0
    return at + 27 + segments + sum(data[at + 27 : at + 27 + segments]) > len(data)


def _blocks(file: "soundfile.SoundFile", promised: int, fault: str) -> Iterator["np.ndarray"]:
    """The blocks of `file`, which should hold `promised` frames; `fault` is known already, and raised at the end."""
    import soundfile

    done = 0
    file.seekable = lambda: False  # soundfile would seek after each block: an mp3's next frame is then decoded wrong
    with file:
        while True:
            try:
                with _silenced():
                    block = file.read(BLOCK, "float32", always_2d=True)  # (time, channels)
            except soundfile.LibsndfileError as error:
                raise AudioError("clip_damaged", error.error_string) from error
            if not len(block):
                break
            done += len(block)
            yield block
        if promised - done > TOLERATED_S * file.samplerate:
            fault = missing_audio(done / file.samplerate, promised / file.samplerate)
        if fault:
            raise AudioError("clip_truncated", fault)


@contextmanager
def _silenced() -> Iterator[None]:
    """Without what libmpg123 writes straight to the screen about a damaged mp3."""
    sys.stderr.flush()
    screen, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)
        os.close(nowhere)
