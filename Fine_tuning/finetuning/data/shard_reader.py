"""Read wavs from shards: large tars for storage that handles small files badly, read at the offset of each wav."""

import os
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from io import BytesIO, FileIO
from pathlib import Path, PurePosixPath

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
        """Return its name for messages."""
        return f"{self.name} in {self.shard}"

    def read(self) -> bytes:
        """Return the wav; raise UserError when the shard is missing, cut off, or holds something else there."""
        try:
            data = os.pread(_open(self.shard).fileno(), HEADER + self.size, self.offset)
            header = tarfile.TarInfo.frombuf(data[:HEADER], "ascii", "replace")
        except FileNotFoundError as error:
            raise UserError(f"there is no {self.shard}; run step 1 again, it makes only what is missing") from error
        except OSError as error:
            raise UserError(
                f"cannot read {self.shard} ({error.strerror}); fix this and rerun the same command"
            ) from error
        except (tarfile.HeaderError, OverflowError, ValueError):  # OverflowError: beyond any file's size
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
    """Open a shard, which stays open: on the storage of a cluster, opening costs more than reading.

    It is read by `os.pread` only, so it may be shared with forked processes.
    """
    return shard.open("rb", buffering=0)


def open_wav(wav: Path | ShardMember) -> Path | BytesIO:
    """Return what soundfile can read the wav from, whether it is a file or in a shard."""
    return BytesIO(wav.read()) if isinstance(wav, ShardMember) else wav


def check_shards(members: Iterable[ShardMember]) -> None:
    """Raise UserError unless each shard exists and holds its first and last member; takes two reads per shard."""
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


def member_name(wav: str) -> str:
    """Return a wav's name in a shard: without folders, short and ASCII, so that it fits a plain header.

    It has one dot, since webdataset takes everything after the first for the suffix. Other names are replaced by a part
    of them and a digest.
    """
    path = PurePosixPath(wav)
    stem = "_".join([*path.parts[:-2], path.stem])  # of several sources: their name, before wavs/
    if not re.fullmatch(r"\w{1,90}", stem, re.ASCII):
        stem = f"{re.sub(r'[^A-Za-z0-9]', '_', stem)[:60]}_{sha256(stem.encode()).hexdigest()[:16]}"
    return f"{stem}.wav"
