"""A recording of any length, read block by block -> segments of a length a model can take, cut where nobody speaks.

Models are trained on single sentences with little silence around them, and normalise what they are given as a whole:
they read such a piece best. So a long recording is cut at each pause, and of a pause no more is kept than a clip has.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.audio.decoding import open_sound
from finetuning.audio.stream import TOLERATED_S, AudioError, to_mono
from finetuning.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    Listener = Callable[[np.ndarray, bool], Sequence[bool]]  # as voice_activity.make_listener returns it

MAX_SEGMENT_S = 17.0  # what is longer is cut: step 1 trains on clips of up to 16.7 s
CUT_S = (4.0, 16.0)  # range of the cut where there is no pause; at least a second follows it
PAUSE_S = 0.3  # without speech, at which a recording is cut; over which loudness is averaged: longer than a closure
MARGIN_S = 0.25  # of a pause that stays with the segment on either side
MIN_SPEECH_S = 0.1  # what is shorter is a click
SPEECH_FRAME_S = 0.032  # for each of which a listener says whether there is speech
MIN_SEGMENT_S = 0.05  # models need as much
INAUDIBLE = 2**-16  # of full scale: below what a 16-bit wav can hold
CANCELS = "has channels that cancel where they are mixed; one of them is taken"


@dataclass(frozen=True)
class Segment:
    """A part of a recording."""

    start: int  # samples before it
    samples: "np.ndarray"  # (time,) float32, mono
    speaker: str = ""  # where each channel is one

    def is_audible(self, rate: int) -> bool:
        """Return whether there is any sound: models write characters even for digital silence."""
        return len(self.samples) >= MIN_SEGMENT_S * rate and bool(abs(self.samples).max() >= INAUDIBLE)


def iter_segments(
    blocks: Iterable["np.ndarray"], rate: int, listener: "Listener", is_conversation: bool = False
) -> Iterator[Segment]:
    """Yield segments of at most MAX_SEGMENT_S from mono blocks of any size at `rate` Hz: those with speech.

    A recording of no more than that is one segment, whatever it holds, unless it `is_conversation`. The cuts depend on
    the samples alone, not on the blocks. What precedes a UserError of `blocks` is yielded before it is raised.
    """
    import numpy as np

    start, pending, failure = 0, np.zeros(0, np.float32), None
    longest, speech = round(MAX_SEGMENT_S * rate), list[bool]()
    is_cut = is_conversation
    try:
        for block in blocks:
            pending = np.concatenate([pending, block])
            speech += listener(block, False)
            while round(len(speech) * SPEECH_FRAME_S * rate) - start > longest:
                is_cut = True
                end, used = _next_segment(pending[:longest], start, speech, rate)
                if end:
                    yield Segment(start, pending[:end])
                start, pending = start + used, pending[used:]
    except UserError as error:
        failure = error
    speech += listener(np.zeros(0, np.float32), True)
    while len(pending):
        is_last = len(pending) <= longest
        is_cut = is_cut or not is_last
        whole = len(pending), len(pending)
        end, used = _next_segment(pending[:longest], start, speech, rate, is_last) if is_cut else whole
        if end:
            yield Segment(start, pending[:end])
        start, pending = start + used, pending[used:]
    if failure:
        raise failure


def _next_segment(
    samples: "np.ndarray", start: int, speech: Sequence[bool], rate: int, is_last: bool = False
) -> tuple[int, int]:
    """Return where the segment that begins with the samples ends, 0 in a pause, and where to look for the next one.

    `samples`: of at most MAX_SEGMENT_S, `start` of them after the recording's first one. Without a pause, the segment
    ends at the quietest point or, if it `is_last`, with the samples.
    """
    margin = round(MARGIN_S * rate)
    for first, end in _pauses(start, start + len(samples), speech, rate):
        middle = (first + end) // 2
        rest = len(samples) if is_last and end == len(samples) else max(end - margin, middle)
        return (min(first + margin, middle) if first else 0), rest
    cut = len(samples) if is_last else quietest_point(samples, rate)
    return cut, cut


def _pauses(start: int, end: int, speech: Sequence[bool], rate: int) -> list[tuple[int, int]]:
    """Return the pauses of at least PAUSE_S among these samples, counted from the `start`."""
    import numpy as np

    frame = SPEECH_FRAME_S * rate
    first = int(start / frame)
    flags = np.array(speech[first : int(end / frame) + 1], dtype=np.int8)

    def runs(flags: "np.ndarray") -> list[tuple[int, int]]:
        edges = np.flatnonzero(np.diff(flags, prepend=0, append=0)).tolist()
        return list(zip(edges[::2], edges[1::2], strict=True))

    for begins, ends in runs(flags):
        if ends - begins < MIN_SPEECH_S / SPEECH_FRAME_S:
            flags[begins:ends] = 0
    samples = [[min(max(round((first + at) * frame), start), end) - start for at in run] for run in runs(1 - flags)]
    return [(begins, ends) for begins, ends in samples if ends - begins >= PAUSE_S * rate]


def quietest_point(samples: "np.ndarray", rate: int) -> int:
    """Return the sample within CUT_S around which there is least energy over PAUSE_S, to 10 ms."""
    import numpy as np

    frame = rate // 100
    whole = len(samples) // frame * frame
    energy = np.square(samples[:whole], dtype=np.float64).reshape(-1, frame).sum(axis=1)
    smooth = np.convolve(energy, np.hanning(round(PAUSE_S * 100) + 2), mode="same")
    first, last = (round(seconds * 100) for seconds in CUT_S)
    return (first + int(smooth[first:last].argmin())) * frame + frame // 2


def check_readable(path: Path) -> None:
    """Raise UserError unless `path` is a file that can be opened and may hold sound."""
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


def read_blocks(
    path: Path, rate: int, notes: set[str] | None = None, channel: int | None = None
) -> Iterator["np.ndarray"]:
    """Yield a file's sound as mono float32 blocks, (time,), at `rate` Hz, with silence where its timestamps leave gaps.

    `channel`: 0 or 1 of two; None: the mean of all.

    Raise UserError before the first block where the file cannot be read, after the last where it is damaged. Whatever
    else the user should know of it is added to `notes`.
    """
    import numpy as np
    import soxr

    check_readable(path)
    read, resampler, notes = 0, None, set() if notes is None else notes
    try:
        sound = open_sound(path)
        notes.update(sound.notes)
        if channel is not None and sound.channels != 2:
            raise UserError(f"{path} has {sound.channels} channel(s), not 2; transcribe it without --channels split")
        if sound.rate != rate:
            resampler = soxr.ResampleStream(sound.rate, rate, 1, "float32")
        for samples in sound.blocks:
            mono, cancels = to_mono(samples) if channel is None else (samples[:, channel], False)
            notes.update([CANCELS] if cancels else [])
            block = resampler.resample_chunk(mono) if resampler else mono
            read += len(block)
            yield block
        fault = None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    except AudioError as bad:
        fault = _fault(path, read / rate, bad)
    if resampler and read:
        rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        read += len(rest)
        yield rest
    if fault:
        raise fault
    notes.update(sound.notes)
    if read < MIN_SEGMENT_S * rate:
        raise UserError(f"{path} holds {f'less than {MIN_SEGMENT_S} s of' if read else 'no'} sound")


def crop_blocks(
    blocks: Iterable["np.ndarray"], path: Path, rate: int, offset_s: float, duration_s: float
) -> Iterator["np.ndarray"]:
    """Yield the part of `blocks`, those of `path` at `rate` Hz, that begins at `offset_s`.

    Raise UserError, after what there is, where the recording ends before the part does.
    """
    start, end, position = round(offset_s * rate), round((offset_s + duration_s) * rate), 0
    for block in blocks:
        part = block[max(0, start - position) : max(0, end - position)]
        position += len(block)
        if len(part):
            yield part
        if position >= end:
            return
    if position <= start or end - position > TOLERATED_S * rate:
        raise UserError(
            f"{path} ends at {position / rate:.1f} s, before its part of {duration_s:g} s at {offset_s:g} s"
        )


def _fault(path: Path, read_s: float, bad: AudioError) -> UserError:
    if read_s:
        return UserError(
            f"{path} is damaged, {read_s:.1f} s of it could be read ({bad.detail}); only they are transcribed"
        )
    if bad.passing:
        return UserError(f"{path} cannot be read ({bad.detail})")
    return UserError(f"{path} is no audio that can be read ({bad.detail})")


def stated_duration_s(path: Path) -> float:
    """Return the duration of a recording as its header states or estimates it; 0 where it is not known."""
    try:
        return open_sound(path).duration_s
    except (AudioError, OSError):
        return 0.0
