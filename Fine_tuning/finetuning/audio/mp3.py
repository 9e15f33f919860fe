"""Count the frames of an mp3 to know how long it is, whatever its header says."""

from dataclasses import dataclass
from functools import lru_cache
from mmap import mmap

KBIT = {  # by version (1 or, for 2 and 2.5, 2) and layer
    (1, 1): range(32, 449, 32),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
SLACK = 2  # frames: the one with the header, and one cut off


@dataclass(frozen=True)
class Mp3Stream:
    """The frames of an mp3, counted one by one, and what its header states."""

    samples: int  # in all frames
    rate: int  # Hz, of the first frame
    frame: int  # samples of the first frame
    stated: int  # frames by the header; 0: not stated
    is_truncated: bool  # the header states more bytes than there are
    is_mixed: bool  # frames of several sample rates

    @property
    def duration_s(self) -> float:
        """Return the duration of the frames that are there, in seconds."""
        return self.samples / self.rate

    @property
    def promised_samples(self) -> int:
        """Return how many samples there should be."""
        return max(self.samples, self.stated * self.frame) if self.is_truncated else self.samples

    def is_as_stated(self, readable: int) -> bool:
        """Return whether a reader that trusts the header, and announces `readable` samples, reads all of them."""
        stated = self.stated * self.frame or readable
        return not self.is_mixed and self.samples <= stated + SLACK * self.frame


def read_stream(data: bytes | mmap) -> Mp3Stream | None:
    """Follow the frames from the first to the last, skipping tags and garbage; return None when there are none."""
    at, samples, first, rates = 0, 0, None, set()
    while at + 4 <= len(data):
        length, count, rate = _frame(int.from_bytes(data[at : at + 4]) & 0xFFFEFE00)
        if length and (first or is_frame(data, at)):
            first = first if first is not None else (at, count, rate)
            samples += count
            rates.add(rate)
            at += length
        elif data[at : at + 3] == b"ID3":
            at += 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(data[at + 6 : at + 10])))
        else:
            at = _next_frame(data, at + 1)
    if first is None:
        return None
    start, frame, rate = first
    stated, size = _header(bytes(data[start : start + 64]))
    return Mp3Stream(samples, rate, frame, stated, not size or len(data) - start < size, len(rates) > 1)


def _header(frame: bytes) -> tuple[int, int]:
    """Return the numbers of frames and bytes that the first frame states; 0 when it does not."""
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if at < 0:
        return 0, 0
    flags, first, second = (int.from_bytes(frame[at + offset : at + offset + 4]) for offset in (4, 8, 12))
    return first if flags & 1 else 0, (second if flags & 1 else first) if flags & 2 else 0


def _next_frame(data: bytes | mmap, at: int) -> int:
    """Return where the next frame begins that another one follows; the end of the data when there is none."""
    while (at := data.find(b"\xff", at)) >= 0:
        if is_frame(data, at):
            return at
        at += 1
    return len(data)


def is_frame(data: bytes | mmap, at: int) -> bool:
    """Return whether a frame begins at `at`, followed directly by another one of its kind."""
    header = int.from_bytes(data[at : at + 4])
    length, *kind = _frame(header & 0xFFFEFE00)
    after = int.from_bytes(data[at + length : at + length + 4])
    return length > 0 and _frame(after & 0xFFFEFE00)[1:] == tuple(kind)


@lru_cache(maxsize=4096)
def _frame(header: int) -> tuple[int, int, int]:
    """Return bytes, samples and sample rate of a frame by its header (ISO 11172-3, 2.4.1.3, and 13818-3).

    All are zero when the header is not valid.
    """
    version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
    kbit, rate, padding = header >> 12 & 15, header >> 10 & 3, header >> 9 & 1
    if header >> 21 != 0x7FF or version == 1 or layer == 4 or kbit in (0, 15) or rate == 3:
        return 0, 0, 0
    hz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bit = 1000 * KBIT[1 if version == 3 else 2, layer][kbit - 1]
    if layer == 1:
        return (12 * bit // hz + padding) * 4, 384, hz
    samples = 576 if layer == 3 and version != 3 else 1152
    return samples // 8 * bit // hz + padding, samples, hz
