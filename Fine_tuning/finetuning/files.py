"""Files that are written completely or not at all, locks of folders, and checksums."""

import ast
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from finetuning.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

TEMP_NAME = re.compile(r"\.finetuning-(\d{1,10})-[0-9a-f]{16}-.+", re.DOTALL)  # with the process that writes it
MAX_NAME_SUFFIX = 40  # last characters of a file's name in that of its temporary one: a name has at most 255 bytes


def ensure_writable_dir(folder: Path) -> Path:
    """Create `folder` with its parents and return it; raise UserError when that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        create_temp_file(folder / "writable").unlink()
    except OSError as error:
        raise UserError(f"cannot write to the folder {folder} ({error.strerror}); name another one") from error
    return folder


def check_disk_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise UserError when the disk of `folder`, which exists, has less room than `what` needs."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise UserError(
            f"{what} needs {needed_bytes / 1e9:.2f} GB on the disk of {folder}, which has {free / 1e9:.2f} GB left; "
            "make room or name a folder elsewhere"
        )


@contextmanager
def exclusive_lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Lock `folder` for this process; raise UserError when another run holds the lock, or `wait` until it is free.

    The lock ends with the process. On a file system without locks for folders, as on some clusters, and on Windows
    nothing is locked.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _lock_descriptors.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(f"another run is writing to {folder}; wait until it has finished") from error
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield
    finally:
        _lock_descriptors.discard(descriptor)
        os.close(descriptor)


@contextmanager
def exclusive_locks(*folders: Path) -> Iterator[None]:
    """Lock several folders, two of which may be the same, and remove the temporary files of killed runs in them.

    Raises UserError when another run holds one of the locks.
    """
    distinct = {(state.st_dev, state.st_ino): folder for folder in folders for state in [folder.stat()]}
    with ExitStack() as locks:
        for folder in distinct.values():
            locks.enter_context(exclusive_lock(folder))
            remove_stale_temp_files(folder)
        yield


_lock_descriptors: set[int] = set()


def _release_locks() -> None:
    """Close the locks in a forked process: it may outlive its parent for a moment, the parent's lock must not."""
    while _lock_descriptors:
        os.close(_lock_descriptors.pop())


if hasattr(os, "register_at_fork"):  # not on Windows, where no process is forked
    os.register_at_fork(after_in_child=_release_locks)


def create_temp_file(path: Path) -> Path:
    """Create an empty file beside `path` that only this process writes, and return its path.

    Its name is random and must be new, so no symbolic link that somebody has put there is followed.
    """
    temporary = path.with_name(f".finetuning-{os.getpid()}-{secrets.token_hex(8)}-{path.name[-MAX_NAME_SUFFIX:]}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield the path of a new temporary file beside `path`, which is renamed to `path` when the block succeeds.

    Otherwise it is removed. Raises UserError when it cannot be written; an error about another file passes through.
    """
    temporary = None
    try:
        temporary = create_temp_file(path)
        yield temporary
        with temporary.open("rb+" if os.name == "nt" else "rb") as written:  # Windows needs it open for writing
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        if temporary and error.filename is not None and Path(os.fsdecode(error.filename)) != temporary:
            raise
        raise UserError(
            f"cannot write {path} ({error.strerror or error}); nothing was replaced: fix this (if the disk is full, "
            "make room) and rerun the same command"
        ) from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def remove_stale_temp_files(folder: Path) -> None:
    """Remove the temporary files of processes that were killed; those of running processes, and other files, stay."""
    with os.scandir(folder) as entries:
        stale = [
            entry.name
            for entry in entries
            if (temporary := TEMP_NAME.fullmatch(entry.name))
            and entry.is_file(follow_symlinks=False)
            and not _is_alive(int(temporary[1]))
        ]
    for name in stale:
        (folder / name).unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # where os.kill ends the process; so nothing is taken for stale
        return True
    try:
        os.kill(pid, 0)  # sends nothing, only checks
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's process, or not a process number
        return True
    return True


@contextmanager
def atomic_open(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file that appears under the name `path` only when the block succeeds."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as text:
        yield text


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, keys in their order; the same content gives the same bytes."""
    with atomic_open(path) as text:
        json.dump(content, text, ensure_ascii=False, indent=2)
        text.write("\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, None when there is no such file; raise UserError when it cannot be read."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); delete it and rerun the same command") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); fix this and rerun the same command") from error


def parse_json(text: str | bytes) -> Any:
    """Return the content of a JSON text that another program, or a person, may have written.

    Raises ValueError for everything that is wrong with it, including bytes that are not UTF-8, nesting too deep for
    Python, and a lone surrogate, which cannot be written to a file.
    """
    try:
        content = json.loads(text)
        if re.search(r"\\u[dD][89a-fA-F]" if isinstance(text, str) else rb"\\u[dD][89a-fA-F]", text):
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds a lone surrogate") from error
    return content


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(content: Any) -> str:
    """Return the SHA-256, in hexadecimal, of `content` written as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def changed_keys(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ between the two."""
    changed = []
    for key in now.keys() | before.keys():
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += changed_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            changed.append(prefix + key)
    return changed


@cache
def code_fingerprint(*modules: str) -> str:
    """Return the SHA-256 of these modules of the library, named like "decoding.inference", and of all they import.

    It tells whether results were computed by the same code.
    """
    package = Path(__file__).parent
    hashes: dict[str, str] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        path = package.joinpath(*name.split(".")).with_suffix(".py")
        if name not in hashes and path.is_file():
            hashes[name] = sha256(path)
            pending += _imported_modules(path.read_bytes())
    if missing := set(modules) - hashes.keys():
        raise ValueError(f"the library has no module {', '.join(sorted(missing))}")
    return sha256_of(hashes)


def _imported_modules(source: bytes) -> set[str]:
    """Return the names in the library that a module imports anywhere: modules and, harmlessly, what is in them."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("finetuning.") for name in names if name.startswith("finetuning.")}
