"""Read a .tar.gz as a stream; nothing is ever unpacked under the name that a member gives itself."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from hashlib import _Hash

from finetuning.errors import UserError

MAX_HEADER_BYTES = 1 << 20  # bytes of a long name or of a pax header: tarfile reads them whole
HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


@contextmanager
def iter_members(
    source: Path, what: str = "", digest: "_Hash | None" = None
) -> Iterator[Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]]:
    """Yield an iterator over the members of a .tar.gz in stored order, in constant memory.

    `what` names a progress bar; without it there is none. `digest` has received every byte of the file when the
    iterator is exhausted. Raises UserError when the archive is damaged anywhere, or holds a link, a device or a member
    outside of it.
    """
    from tqdm import tqdm

    def members() -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        while (member := tar.next()) is not None:
            tar.members.clear()  # tarfile would keep them all
            bar.update(file.tell() - bar.n)
            _check(member, source)
            yield tar, member
        while rest := tar.fileobj.read(1 << 16):  # reading to the end checks length and checksum
            if rest.strip(b"\0"):
                raise tarfile.ReadError("there are data after the last member")

    with (
        _errors_explained(source),
        source.open("rb") as file,
        gzip.open(_DigestingFile(file, digest) if digest else file) as unpacked,
        tarfile.open(fileobj=unpacked, mode="r|", bufsize=1 << 16, tarinfo=TarHeader) as tar,
        tqdm(total=source.stat().st_size, desc=what, unit="B", unit_scale=True, leave=False, disable=not what) as bar,
    ):
        yield members()


@contextmanager
def _errors_explained(source: Path) -> Iterator[None]:
    """Turn errors of gzip, tarfile and the disk about an archive into UserError."""
    try:
        yield
    except gzip.BadGzipFile as error:
        raise UserError(
            f"{source} is not a .tar.gz archive, or damaged ({error}); download it again, or give the unpacked folder"
        ) from error
    except EOFError as error:
        raise UserError(f"{source} is truncated; download it again") from error
    except UserError:
        raise
    except RecursionError as error:  # tarfile calls itself for each header before a member
        raise UserError(f"{source} has thousands of headers before a member; do not use this file") from error
    except (tarfile.TarError, zlib.error, ValueError, OverflowError, IndexError) as error:
        raise UserError(f"{source} is damaged or not a .tar.gz archive ({error}); download it again") from error
    except OSError as error:
        raise UserError(f"cannot read {source} ({error.strerror or error})") from error


class TarHeader(tarfile.TarInfo):
    """A member's header as tarfile reads it, except that one which would fill the memory counts as damaged."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:  # which subclasses may extend, tarfile says
        if self.type in HEADERS and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(tar)


class _DigestingFile:
    """A file whose bytes update a digest as they are read."""

    def __init__(self, file: BinaryIO, digest: "_Hash") -> None:
        self.file, self.digest = file, digest

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes."""
        data = self.file.read(size)
        self.digest.update(data)
        return data


def _check(member: tarfile.TarInfo, source: Path) -> None:
    """Raise UserError unless the member is a plain file or a folder inside the archive."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise UserError(f"{source}: the member {member.name!r} points outside the archive; do not use this file")
    if not (member.isreg() or member.isdir()):
        raise UserError(f"{source}: the member {member.name!r} is a link or a device; do not use this file")
