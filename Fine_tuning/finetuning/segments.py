"""A recording of any length, read block by block -> segments that a model can take, cut where it is quiet."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.audio import ffmpeg
from finetuning.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import soundfile

LONGEST_S = 17.0  # what is longer is cut: step 1 trains on clips of up to 16.7 s
CUT_S = (4.0, 16.0)  # where; what follows a cut lasts a second at least
PAUSE_S = 0.3  # over which loudness is averaged: longer than the closure of a p or a t
SHORTEST_S = 0.05  # no model takes less
INAUDIBLE = 2**-16  # of full scale: what a 16-bit wav cannot hold
BLOCK = 1 << 16  # frames read at a time
UNKNOWN = 1 << 62  # frames, says libsndfile of what was written into a pipe
MP3_TAGS = 2048  # bytes that may follow the last frame


@dataclass(frozen=True)
class Segment:
    """A part of a recording."""

    start: int  # samples before it
    samples: "np.ndarray"  # (time,) float32, mono

    def is_audible(self, rate: int) -> bool:
        """Whether there is something to hear: models write letters even for digital silence."""
        return len(self.samples) >= SHORTEST_S * rate and bool(abs(self.samples).max() >= INAUDIBLE)


def segments(blocks: Iterable["np.ndarray"], rate: int) -> Iterator[Segment]:
    """Cut a stream of mono blocks at `rate` Hz, of any size, into segments of at most LONGEST_S; no sample is lost.

    Where the cuts are depends on the samples alone, not on the blocks. What comes before a UserError of `blocks` is
    cut all the same, then it is raised.
    """
    import numpy as np

    start, kept, failure = 0, np.zeros(0, np.float32), None
    longest = round(LONGEST_S * rate)
    try:
        for block in blocks:
            kept = np.concatenate([kept, block])
            while len(kept) > longest:
                cut = quietest(kept[:longest], rate)
                yield Segment(start, kept[:cut])
                start, kept = start + cut, kept[cut:]
    except UserError as error:
        failure = error
    if len(kept):
        yield Segment(start, kept)
    if failure:
        raise failure


def quietest(samples: "np.ndarray", rate: int) -> int:
    """The sample between CUT_S around which there is least energy over PAUSE_S, to 10 ms."""
    import numpy as np

    frame = rate // 100
    whole = len(samples) // frame * frame
    energy = np.square(samples[:whole], dtype=np.float64).reshape(-1, frame).sum(axis=1)
    smooth = np.convolve(energy, np.hanning(round(PAUSE_S * 100) + 2), mode="same")
    first, last = (round(seconds * 100) for seconds in CUT_S)
    return (first + int(smooth[first:last].argmin())) * frame + frame // 2


def check(path: Path) -> None:
    """UserError unless `path` is a file that can be opened and may hold sound."""
    try:
        if path.is_dir():
            os.scandir(path).close()
            raise UserError(f"{path} is a folder without audio files")
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is a device or a pipe; give a file")  # it could be read only once
        with path.open("rb") as file:
            head = file.read(7)
        if not head:
            raise UserError(f"{path} is empty (0 bytes)")
        if head == b"#EXTM3U":  # ffmpeg would wait for what a broadcast adds to it
            raise UserError(f"{path} is a playlist; give the files that it names")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error


def blocks(path: Path, rate: int) -> Iterator["np.ndarray"]:
    """The sound of a file as mono float32 blocks (time,) at `rate` Hz: libsndfile reads it, or else ffmpeg.

    UserError names the file: before the first block when nobody can read it, after the last when it is damaged.
    """
    import numpy as np

    check(path)
    file, refusal = _opened(path)
    read = 0
    for block in _by_libsndfile(file, path, rate) if file else _by_ffmpeg(path, rate, refusal):
        if not np.isfinite(block).all():
            raise UserError(
                f"{path} holds samples that are not numbers after {read / rate:.1f} s; the rest is left out"
            )
        read += len(block)
        yield block
    if read < SHORTEST_S * rate:
        raise UserError(f"{path} holds {f'less than {SHORTEST_S} s of' if read else 'no'} sound")


def duration_s(path: Path) -> float:
    """Seconds of a recording as its header states or estimates them; 0 when nobody can say."""
    file, _ = _opened(path)
    if file:
        with file:
            return file.frames / file.samplerate
    if program := ffmpeg():
        said = subprocess.run(
            [program, "-nostdin", "-i", f"file:{path.absolute()}"], capture_output=True, check=False
        ).stderr
        if stated := re.search(rb"Duration: (\d+):(\d+):([\d.]+)", said):
            return float(stated[1]) * 3600 + float(stated[2]) * 60 + float(stated[3])
    return 0.0


def _opened(path: Path) -> tuple["soundfile.SoundFile | None", str]:
    """The file as libsndfile opens it, or None and why it is better left to ffmpeg."""
    import soundfile

    try:
        with _silenced():
            file = soundfile.SoundFile(os.fsencode(path))
    except soundfile.LibsndfileError as error:
        return None, error.error_string
    except TypeError:  # .raw, which soundfile knows by its name
        return None, "Format not recognised."
    if _is_read_to_its_end(file, path):
        return file, ""
    file.close()
    return None, "It does not say where it ends."


def _is_read_to_its_end(file: "soundfile.SoundFile", path: Path) -> bool:
    """Whether libsndfile finds it: it reads the first of several streams in a file, and guesses what is not stated."""
    with path.open("rb") as opened:
        head, size = opened.read(18), opened.seek(0, os.SEEK_END)
        if file.format == "OGG":  # the number of the first page's stream is that of the last's; no page is longer
            opened.seek(max(0, size - (1 << 16)))
            tail = opened.read()
            last = tail.rfind(b"OggS")
            return tail[last + 14 : last + 18] == head[14:18]
        if file.format != "MP3":
            return file.frames < UNKNOWN
        has_tag = head.startswith(b"ID3")
        start = 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10]))) if has_tag else 0
        opened.seek(start)
        frame = opened.read(64)  # the first says how many frames (flag 1) and bytes (flag 2) there are
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    flags, stated = (int.from_bytes(frame[at + offset : at + offset + 4]) for offset in (4, 12))
    return at >= 0 and flags & 3 == 3 and size - start - stated < MP3_TAGS


def _by_libsndfile(file: "soundfile.SoundFile", path: Path, rate: int) -> Iterator["np.ndarray"]:
    import soundfile
    import soxr

    resampler = soxr.ResampleStream(file.samplerate, rate, 1, "float32") if file.samplerate != rate else None
    stated, done, more = file.frames, 0, True
    with file:
        while more:
            try:
                with _silenced():
                    block = file.read(BLOCK, "float32", always_2d=True)  # (time, channels)
            except soundfile.LibsndfileError as error:
                raise _broken(path, done / file.samplerate, error.error_string) from error
            more, done = len(block) > 0, done + len(block)
            mono = block.mean(axis=1)
            yield resampler.resample_chunk(mono, last=not more) if resampler else mono
        if stated - done > file.samplerate / 2:
            raise _broken(path, done / file.samplerate, f"its header promises {stated / file.samplerate:.1f} s")


def _by_ffmpeg(path: Path, rate: int, refusal: str) -> Iterator["np.ndarray"]:
    import numpy as np

    program = ffmpeg()
    if program is None:
        raise UserError(
            f"{path}: libsndfile cannot read it ({refusal}) and there is no ffmpeg to ask; install ffmpeg, or type: "
            "pip install imageio-ffmpeg"
        )
    sound = ["-vn", "-sn", "-dn", "-ac", "1", "-ar", str(rate), "-f", "s16le", "-"]
    done = 0
    with tempfile.TemporaryFile() as said:
        command = [program, "-nostdin", "-v", "error", "-i", f"file:{path.absolute()}", *sound]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said)
        try:
            while data := process.stdout.read(2 * BLOCK):
                done += len(data) // 2
                yield np.frombuffer(data, "<i2", len(data) // 2) / np.float32(32768)
            process.wait()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
        said.seek(0)
        complaint = re.sub(r"\[[^]]*\] ?", "", said.readline().decode(errors="replace")).strip()
    if not done and complaint:
        raise UserError(f"{path} is no audio that can be read ({complaint})")
    if complaint or process.returncode:
        raise _broken(path, done / rate, complaint or f"ffmpeg ended with status {process.returncode}")


def _broken(path: Path, seconds: float, reason: str) -> UserError:
    return UserError(f"{path} is damaged, {seconds:.1f} s of it could be read ({reason}); only they are transcribed")


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
