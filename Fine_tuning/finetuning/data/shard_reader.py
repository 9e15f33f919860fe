"""A shard: wavs in one large tar, for storage that hates small files. Written whole, read where a wav lies."""

import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO, FileIO
from pathlib import Path

from finetuning.errors import UserError

HEADER = tarfile.BLOCKSIZE  # bytes before each wav
MAX_OPEN_SHARDS = 256  # shards a process keeps open


@dataclass(frozen=True, slots=True)
class ShardMember:
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


@lru_cache(maxsize=MAX_OPEN_SHARDS)
def _open(shard: Path) -> FileIO:
    """Opened once: on storage of a cluster that costs more than reading. Closed when it has gone out of use.

    Only `os.pread` reads from it, so that it may be shared with forked processes.
    """
    return shard.open("rb", buffering=0)


def open_wav(wav: Path | ShardMember) -> Path | BytesIO:
    """What soundfile reads a wav from, wherever it lies."""
    return BytesIO(wav.read()) if isinstance(wav, ShardMember) else wav


def check_shards(members: Iterable[ShardMember]) -> None:
    """UserError unless each shard is there, is no other's and goes on to its last member; two reads a shard."""
    ends: dict[Path, tuple[ShardMember, ShardMember]] = {}
    for member in members:
        first, last = ends.get(member.shard, (member, member))
        ends[member.shard] = min(first, member, key=_offset), max(last, member, key=_offset)
    _open.cache_clear()  # step 1 may have replaced them
    for pair in ends.values():
        for member in pair:
            member.read()


def _offset(member: ShardMember) -> int:
    return member.offset
