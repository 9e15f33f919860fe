"""Audio while it is read: blocks of samples, what is wrong with it, and which files look like audio."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.audio.mp3 import is_frame

if TYPE_CHECKING:
    import numpy as np

BLOCK = 1 << 16  # frames read at a time
TOLERATED_S = 0.5  # of audio that may be missing: durations are rounded, and encoders pad
MAX_AMPLITUDE = 64  # times full scale; larger floating-point samples are integers that were never scaled
CANCELLED = 0.01  # share of the channels' power; if their mean has less, one is another inverted
MAGIC = re.compile(  # the first bytes of audio and video files
    rb"RIFF....(WAVE|AVI )|RIFX....WAVE|RF64....WAVE|riff\x2e\x91|FORM....(AIFF|AIFC|8SVX|16SV)|\.snd|dns\.|caff"
    rb"|fLaC|OggS|ID3|wvpk|MAC |TTA1|MPCK|MP\+|tBaK|#!AMR|ADIF|qoaf|DSD |FRM8|NIST_1A|Creative Voice|\x0b\x77"
    rb"|\x7f\xfe\x80\x01|\x1a\x45\xdf\xa3|FLV\x01|\.RMF|\x30\x26\xb2\x75\x8e\x66\xcf\x11|\x06\x0e\x2b\x34"
    rb"|\x00\x00\x01\xba|\xb7\xd8\x00\x20"
    rb"|....(moov|mdat|wide|free|skip|ftyp(?!heic|heix|heim|heis|hevc|hevx|mif1|msf1|avif|avis|crx |jp2 |jpx ))"
    rb"|nut/multimedia|.{0,187}?\x47(?:.{187}\x47){4}|.{0,191}?\x47(?:.{191}\x47){4}",
    re.DOTALL,
)
HEAD_BYTES = 1 << 14  # two frames of AAC fit into it


class AudioError(ValueError):
    """Raised for audio that cannot be read, or only in part."""

    def __init__(self, reason: str, detail: str = "", passing: bool = False) -> None:
        """Take a `reason` in snake_case and a `detail` that is the same in every run (no temporary names).

        `passing`: the fault is this machine's, not the clip's; another run may succeed.
        """
        super().__init__(reason, detail)
        self.reason, self.detail, self.passing = reason, detail, passing


@dataclass
class AudioStream:
    """Audio that is open, to be read once."""

    rate: int  # Hz
    channels: int  # of the recording; the blocks have two of them where ffmpeg mixed more down
    codec: str  # as ffmpeg or libsndfile names it: mp3, pcm_16
    duration_s: float  # stated or estimated by its header
    blocks: Iterator["np.ndarray"]  # (time, channels) float32, full scale 1; raises AudioError where it is damaged
    notes: list[str] = field(default_factory=list)  # for the user; complete once all blocks are read


def checked_blocks(blocks: Iterator["np.ndarray"]) -> Iterator["np.ndarray"]:
    """Yield the blocks; raise AudioError for samples that are not numbers or far beyond full scale."""
    import numpy as np

    for block in blocks:
        peak = float(np.abs(block).max())
        if not np.isfinite(peak):
            raise AudioError("clip_undecodable", "holds samples that are not numbers")
        if peak > MAX_AMPLITUDE:
            detail = f"holds floating-point samples of {peak:,.0f}, where 1 is full scale; divide them by 32,768"
            raise AudioError("clip_out_of_range", detail)
        yield block


def to_mono(samples: "np.ndarray") -> tuple["np.ndarray", bool]:
    """Return the mean of the channels, (time, channels) -> (time,), or one of them if they cancel, and whether so."""
    import numpy as np

    if samples.shape[1] == 1:
        return samples[:, 0], False
    mean = samples.mean(axis=1)
    power = np.square(samples, dtype=np.float64).mean(axis=0)  # (channels,)
    if np.square(mean, dtype=np.float64).mean() >= CANCELLED * power.mean():
        return mean, False
    return samples[:, int((power >= power.mean() / 2).argmax())], True


def missing_audio(done_s: float, promised_s: float) -> str:
    """Return the description of audio that ends too early."""
    return f"{done_s:.2f} s of the {promised_s:.2f} s that its header promises"


def looks_like_audio(path: Path) -> bool:
    """Return whether the first bytes of a file are those of audio or video; fast, since no decoder is called."""
    try:
        if not path.is_file():  # a pipe would block
            return False
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    if head[:1] == b"\xff" and len(head) > 6:  # AAC, whose frames state their length, or MPEG
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        is_aac = head[1] & 0xF6 == 0xF0 and head[length : length + 2] == head[:2]
        return is_aac or is_frame(head, 0)
    return bool(MAGIC.match(head))
