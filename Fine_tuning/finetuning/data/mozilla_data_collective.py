"""A release from the Mozilla Data Collective, by its official client. The key is never shown, logged or written."""

import errno
import os
import re
import resource
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.config.schema import ROOT, Archive, strip_query
from finetuning.errors import UserError, printable
from finetuning.files import check_disk_space, ensure_writable_dir, exclusive_lock, sha256

if TYPE_CHECKING:
    from datacollective import DatasetDetails

SITE = "https://mozilladatacollective.com"
WAITS_S = (1, 5, 20, 60, 120)  # before the next attempt, while none brings a byte
MAX_WAIT_S = 900  # that a server may ask for
LOOPBACK = r"https?://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?(/[\w/-]*)?"


class _TransientError(Exception):
    """A fault that another attempt may not meet."""

    def __init__(self, what: str, wait_s: float | None = None) -> None:
        super().__init__(what)
        self.wait_s = wait_s  # as the server asks


def download_release(dataset_id: str, published: Archive, archive: Path) -> None:
    """Download the dataset to `archive`, which appears under its name when size and SHA-256 are the published ones.

    A download that broke off goes on, in this run and in the next. UserError says what to do and what to type.
    """
    if not find_spec("datacollective"):
        version = ".".join(map(str, sys.version_info[:3]))
        raise UserError(
            f"the download needs the package datacollective, which this Python {version} lacks and which exists for "
            "3.11.4 and newer; type: make -B .venv/.complete PYTHON=python3.12, or download "
            f"{SITE}/datasets/{dataset_id} by hand and put it at {archive}"
        )
    with _key_for_client(archive):
        print(
            f"downloading {dataset_id}, {published.size_bytes / 1e9:.2f} GB, to {archive}; the wavs come on top",
            flush=True,
        )
        folder = ensure_writable_dir(archive.with_name(archive.name + ".download"))
        try:
            with exclusive_lock(folder):
                _attempts(dataset_id, published, archive, folder)
        finally:
            with suppress(OSError):  # it holds what is to go on
                folder.rmdir()


def _attempts(dataset_id: str, published: Archive, archive: Path, folder: Path) -> None:
    """Until the archive is there, or some attempts in a row have brought no byte."""
    fruitless, had = 0, _bytes_in(folder)
    while not archive.is_file():
        try:
            _attempt(dataset_id, published, archive, folder)
        except _TransientError as fault:
            fruitless, had = (fruitless if _bytes_in(folder) <= had else 0), _bytes_in(folder)
            if fruitless == len(WAITS_S) or (fault.wait_s or 0) > MAX_WAIT_S:
                raise UserError(
                    f"cannot download {dataset_id} ({fault}); {had:,} bytes are kept, the same command goes on"
                ) from fault
            wait_s = WAITS_S[fruitless] if fault.wait_s is None else fault.wait_s
            print(f"\n{fault}; {had:,} bytes are kept, another attempt in {wait_s:g} s", flush=True)
            time.sleep(wait_s)
            fruitless += 1


@contextmanager
def _key_for_client(archive: Path) -> Iterator[None]:
    """The environment of Mozilla's client, for as long as it is needed: a key and the address that it is sent to.

    The client would set every variable that a `.env` in the current folder, or in any above, holds; and requests would
    send what a ~/.netrc holds instead of the key.
    """
    given = {"MDC_API_KEY": _key(archive), "MDC_API_URL": _api()}
    given |= {"PYTHON_DOTENV_DISABLED": "1", "NETRC": os.devnull}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _api() -> str:
    """Where the key is sent: to Mozilla or, where MDC_API_URL says so, to a server on this machine."""
    from requests.utils import get_environ_proxies

    address = os.environ.get("MDC_API_URL", "").rstrip("/") or f"{SITE}/api"
    if address == f"{SITE}/api":
        return address
    if not re.fullmatch(LOOPBACK, address, re.ASCII):
        raise UserError(
            f"MDC_API_URL names another server than {SITE}/api, and the key is sent to no other, this machine's apart "
            "(http://127.0.0.1:…); type: unset MDC_API_URL"
        )
    if get_environ_proxies(address):
        raise UserError(
            "MDC_API_URL is on this machine, and a proxy would see the key; type: export NO_PROXY=127.0.0.1"
        )
    return address


def _key(archive: Path) -> str:
    """MDC_API_KEY from the environment or, where it holds none, from .env in the project's folder."""
    from dotenv import dotenv_values

    file = ROOT / ".env"
    key = os.environ.get("MDC_API_KEY")
    if not key:
        try:
            key = dotenv_values(file, interpolate=False).get("MDC_API_KEY")
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {file} ({error}); write it anew as plain text: MDC_API_KEY=…") from error
    if not key:
        raise UserError(
            f"there is no {archive} and no key to download it with; make one at {SITE}/api-reference and write "
            f"MDC_API_KEY=… into {file}, or download the archive by hand and put it there"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError("MDC_API_KEY holds a blank or a sign that no key has; copy it again, in one line")
    return key


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".checksum")


def _attempt(dataset_id: str, published: Archive, archive: Path, folder: Path) -> None:
    """One session with the server; _Passing or UserError where it does not end with `archive` in its place."""
    from datacollective import get_dataset_details
    from datacollective.errors import DownloadError

    page, of_file = f"{SITE}/datasets/{dataset_id}", False
    try:
        details = get_dataset_details(dataset_id)
        page = strip_query(details.datasetUrl or page)
        _check_published(dataset_id, details, published)
        _download(details, published.size_bytes, folder / details.filename)
        _verify(folder / details.filename, published.sha256, archive)
    except (UserError, _TransientError):
        raise
    except DownloadError as error:  # of the file itself; whatever it was stands behind it
        fault, of_file = error.__cause__, True
    except Exception as error:  # what the client makes of an answer nobody foresaw is none of its own kinds
        fault = error
    else:
        return
    raise _explained(fault, of_file, dataset_id, page, folder) from fault


def _check_published(dataset_id: str, details: "DatasetDetails", published: Archive) -> None:
    """UserError unless the server offers what the config states: before gigabytes are on their way."""
    offered = {"size_bytes": int(details.sizeBytes or 0), "sha256": details.checksum or ""}
    stated = {"size_bytes": published.size_bytes, "sha256": published.sha256}
    if not all(stated.values()):
        raise UserError(
            f"dataset.archive must state size and checksum of {dataset_id}; the server says: "
            f"size_bytes: {offered['size_bytes']}, sha256: {offered['sha256'] or 'nothing'}"
        )
    if other := [key for key in stated if offered[key] and offered[key] != stated[key]]:
        raise UserError(
            f"{dataset_id} is another archive than dataset.archive states ("
            + ", ".join(f"{key} {offered[key]} instead of {stated[key]}" for key in other)
            + "); give the id of the one you mean (dataset.download=…), or state the new values"
        )
    name = details.filename or ""
    if Path(name).name != name or not name or name.startswith("."):
        raise UserError(f"the server gives {dataset_id} the file name {name!r}, which is none; download it by hand")


def _download(details: "DatasetDetails", size: int, whole: Path) -> None:
    """Bring `whole` to `size` bytes."""
    from datacollective import download_dataset

    part = whole.with_name(whole.name + ".part")  # the client's
    had = part.stat().st_size if part.is_file() else 0
    check_disk_space(whole.parent, size - had, f"the rest of {details.filename}")
    if had == size:  # killed before it was renamed: the client would ask for what comes after the end
        part.replace(whole)
    elif had > size:
        part.unlink()
    with _at_most(had + size, part, _too_much(size)):  # all of it may come once more
        download_dataset(details.id, str(whole.parent))
    got = whole.stat().st_size
    if got == had + size and had:  # the server sent everything instead of the rest
        _keep_the_end(whole, size)
    elif got > size:
        whole.unlink()
        raise UserError(_too_much(size))
    elif got < size:  # the client takes it for whole where the server does not say how much is to come
        whole.replace(part)
        whole.with_name(whole.name + ".checksum").write_text(details.checksum or "")
        raise _TransientError("the connection broke off")


@contextmanager
def _at_most(size: int, part: Path, sentence: str) -> Iterator[None]:
    """End a download whose file would grow beyond `size` bytes with UserError: the client writes whatever comes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft != resource.RLIM_INFINITY and soft <= size:
        yield  # what the user allows is less
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1, hard))
    try:
        yield
    except Exception as error:
        if getattr(error.__cause__, "errno", None) != errno.EFBIG:
            raise
        part.unlink()
        raise UserError(sentence) from error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _too_much(size: int) -> str:
    return (
        f"the server sends more than the {size:,} bytes that are due; nothing of it was kept: look whether "
        "dataset.download and dataset.archive are of the same release"
    )


def _verify(whole: Path, wanted: str, archive: Path) -> None:
    """Give what has come its name; what is not the published archive is set aside, with UserError."""
    found = sha256(whole)
    name = archive.name if found == wanted else archive.name + ".wrong"
    whole.replace(archive.with_name(name))
    for left in whole.parent.iterdir():
        left.unlink()
    if found != wanted:
        raise UserError(
            f"what was downloaded has the SHA-256 {found} and should have {wanted}; it was set aside as {name}, the "
            "same command downloads it again"
        )


def _keep_the_end(path: Path, size: int) -> None:
    """Cut everything before the last `size` bytes off, without a second copy on the disk."""
    surplus = path.stat().st_size - size
    with path.open("r+b") as file:
        for start in range(0, size, 1 << 24):
            file.seek(surplus + start)
            block = file.read(1 << 24)
            file.seek(start)
            file.write(block)
        file.truncate(size)


def _explained(fault: BaseException | None, of_file: bool, dataset_id: str, page: str, folder: Path) -> BaseException:
    """What to raise for a fault of the client; its own words may hold the key or a signed address."""
    import requests
    from datacollective import AuthenticationError, RateLimitError

    from finetuning.download import describe_request_error

    said = textwrap.shorten(
        printable(str(fault).partition(" — ")[2]), 300, placeholder=" …"
    )  # the server's own words, where the client passes them on
    said = "" if os.environ["MDC_API_KEY"] in said else f" ({said})" if said else ""
    match fault:
        case KeyboardInterrupt():
            return KeyboardInterrupt()
        case RateLimitError():
            asked = fault.response.headers.get("Retry-After", "")
            return _TransientError(
                "the server has too many requests (429)", float(asked) if asked.isdecimal() else None
            )
        case AuthenticationError():
            return UserError(f"the server does not accept MDC_API_KEY (401); make a new key at {SITE}/api-reference")
        case requests.HTTPError() if fault.response.status_code == requests.codes.requested_range_not_satisfiable:
            for part in folder.glob("*.part"):  # of another file
                part.unlink()
            return _TransientError(describe_request_error(fault))
        case requests.HTTPError() if fault.response.status_code < 500:
            return UserError(f"cannot download {dataset_id} ({describe_request_error(fault)}{said}); look at {page}")
        case ValueError():  # no JSON, no address
            pass
        case requests.RequestException():
            return _TransientError(describe_request_error(fault))
        case OSError(errno=None) if of_file:  # 403, 404, 410: the address was signed for a limited time
            return _TransientError("the server does not give the file any more")
        case PermissionError(errno=None):
            return UserError(
                f"the server refuses {dataset_id} to the account of MDC_API_KEY (403{said}); log in at {page}, accept "
                "the terms there and type the same command again"
            )
        case FileNotFoundError(errno=None):
            return UserError(f"there is no dataset {dataset_id}{said}; look its id up at {SITE} (dataset.download=…)")
        case OSError():
            does = "write to" if fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "read or write"
            return UserError(
                f"cannot {does} {fault.filename or folder} ({fault.strerror or fault}); what is there is kept, make "
                "room or mend that, and type the same command again"
            )
    return UserError(
        f"cannot understand the server's answer about {dataset_id} ({fault.__class__.__name__}); look at {page}"
    )
