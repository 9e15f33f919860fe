"""A shard: wavs in one large tar, for storage that hates small files. Written whole, read where a wav lies."""

import os
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO, FileIO
from pathlib import Path

from finetuning import archive
from finetuning.errors import UserError
from finetuning.files import replacing

HEADER = tarfile.BLOCKSIZE  # bytes before each wav
FIRST = 2 * HEADER  # bytes before the first member: what the shard was made from
OPEN = 256  # shards a process keeps open


@dataclass(frozen=True, slots=True)
class Member:
    """A wav in a shard."""

    shard: Path
    name: str
    offset: int  # bytes before its header
    size: int  # bytes of the wav

    def __str__(self) -> str:
        """For a sentence about it."""
        return f"{self.name} in {self.shard}"

    def read(self) -> bytes:
        """The wav; UserError where the shard is missing, cut off, or holds something else there."""
        try:
            data = os.pread(_open(self.shard).fileno(), HEADER + self.size, self.offset)
            header = tarfile.TarInfo.frombuf(data[:HEADER], "ascii", "replace")
        except FileNotFoundError as error:
            raise UserError(f"there is no {self.shard}; run step 1 again, it makes only what is missing") from error
        except OSError as error:
            raise UserError(f"cannot read {self.shard} ({error.strerror}); mend that, type it again") from error
        except (tarfile.HeaderError, OverflowError, ValueError):  # OverflowError: no file is so long
            data = b""
            header = tarfile.TarInfo()
        if (header.name, header.size) != (self.name, self.size) or len(data) < HEADER + self.size:
            raise UserError(
                f"{self.shard} does not hold {self.name} where the manifest says: it is damaged or belongs to another "
                "manifest; delete it and run step 1 again, or copy the whole folder again"
            )
        return data[HEADER:]


@lru_cache(maxsize=OPEN)
def _open(shard: Path) -> FileIO:
    """Opened once: on storage of a cluster that costs more than reading. Closed when it has gone out of use.

    Only `os.pread` reads from it, so that it may be shared with forked processes.
    """
    return shard.open("rb", buffering=0)


def opened(wav: Path | Member) -> Path | BytesIO:
    """What soundfile reads a wav from, wherever it lies."""
    return BytesIO(wav.read()) if isinstance(wav, Member) else wav


def check(members: Iterable[Member]) -> None:
    """UserError unless each shard is there, is no other's and goes on to its last member; two reads a shard."""
    ends: dict[Path, tuple[Member, Member]] = {}
    for member in members:
        first, last = ends.get(member.shard, (member, member))
        ends[member.shard] = min(first, member, key=_offset), max(last, member, key=_offset)
    _open.cache_clear()  # step 1 may have replaced them
    for pair in ends.values():
        for member in pair:
            member.read()


def _offset(member: Member) -> int:
    return member.offset


def layout(sizes: Iterable[int]) -> tuple[list[int], int]:
    """The offset of each wav of these sizes in a shard, and the size of the shard, in bytes."""
    offsets, end = [], FIRST
    for size in sizes:
        offsets.append(end)
        end += HEADER + _up(size, HEADER)
    return offsets, _up(end + 2 * HEADER, tarfile.RECORDSIZE)


def _up(size: int, block: int) -> int:
    return -(-size // block) * block


def write(path: Path, wavs: Iterable[tuple[Member, Path]], made_from: str, progress: Callable[[int], object]) -> None:
    """Write a shard that holds a copy of each wav where its member says; `made_from` is what it is known by.

    That stands in a global pax header, as a commit does in `git archive`'s; no time, user or place is in it. UserError
    when a wav is gone or changed, or the disk is full; then nothing has its name. `progress` is told the bytes of each.
    """
    with (
        replacing(path) as temporary,
        tarfile.open(temporary, "w:", format=tarfile.PAX_FORMAT, pax_headers={"comment": made_from}) as tar,
    ):
        for member, wav in wavs:
            data = _read(wav, member.size)
            assert tar.offset == member.offset, "a shard is not laid out as planned"
            header = tarfile.TarInfo(member.name)
            header.size = member.size
            tar.addfile(header, BytesIO(data))
            progress(member.size)


def _read(wav: Path, size: int) -> bytes:
    try:
        data = wav.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {wav} ({error.strerror}); type it again, only what is missing is made") from error
    if len(data) != size:
        raise UserError(f"{wav} has changed meanwhile; type it again, only what is missing is made")
    return data


def made_from(path: Path) -> str | None:
    """What the shard at `path` is known by: "" for another's tar, None where there is none or it cannot be read."""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:", tarinfo=archive.Header) as tar:
            return tar.pax_headers.get("comment", "")
    except (FileNotFoundError, tarfile.TarError, RecursionError, ValueError, OverflowError, IndexError):
        return None
