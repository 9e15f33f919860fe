"""Where a model is: a file of the user's, or one of the registry's that is downloaded once. Needs no NeMo."""

import lzma
import re
import sys
import tarfile
import zlib
from pathlib import Path

import requests
from tqdm import tqdm

from finetuning.config import schema as experiment
from finetuning.config.key_types import shown_value
from finetuning.config.schema import RegistryEntry, strip_query
from finetuning.download import TIMEOUT_S, describe_request_error
from finetuning.errors import UserError
from finetuning.files import check_disk_space, ensure_writable_dir, exclusive_lock, sha256

MAX_UNPACKED_BYTES = 20e9  # bytes of a .nemo, of which the largest known are a few 1e9


def locate_model(name_or_path: str, model: experiment.Model) -> Path:
    """The `.nemo` file of a registry name (downloaded when it is not there yet) or of a path.

    A relative path starts at the project's folder or, where nothing is there, at the current folder. UserError says
    what to type, or what to fetch by other means and where to put it; also where a file is not what the registry says.
    """
    if name_or_path in model.registry:
        path, wanted = experiment.resolve_path(model.folder) / f"{name_or_path}.nemo", model.registry[name_or_path]
        if not path.is_file():
            # processes that train together ask at the same time
            with exclusive_lock(ensure_writable_dir(path.parent), waits=True):
                if not path.is_file():
                    download_model(name_or_path, wanted, path)
                    return path
        _check_registered(name_or_path, wanted, path)
        return path
    for path in (experiment.resolve_path(name_or_path), Path(name_or_path).expanduser().resolve()):
        if path.is_file():
            return path
    known = ", ".join(model.registry) or "it is empty"
    raise UserError(
        f"there is no model {shown_value(name_or_path)}; train it with Fine_tuning/train.py (the demo's English "
        f"base: make demo-base), or give the path of a .nemo file or a name of model.registry ({known})"
    )


def download_model(name: str, wanted: RegistryEntry, path: Path) -> None:
    """Fetch a model of the registry to `path`; a download that broke off goes on from its `.part` file.

    The file gets its name when it has the size that is stated or announced and the SHA-256 that is stated, and is a
    .nemo. UserError where it cannot be fetched or is something else: names the address, and the path to put it at by
    other means.
    """
    part, address = path.with_name(path.name + ".part"), strip_query(wanted.url)
    if part.is_symlink():  # it would be written through
        part.unlink()
    try:
        _fetch(name, wanted, part)
    except requests.RequestException as error:
        raise UserError(
            f"cannot download {address} ({describe_request_error(error)}); the same command goes on from what "
            f"is there, or fetch that address by other means and put the file at {path}"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write {part} ({error.strerror}); make room or name another model.folder") from error
    found = sha256(part)
    if fault := _fault(name, wanted, part, found):
        aside = path.with_name(path.name + ".wrong")
        part.replace(aside)
        raise UserError(
            f"what {address} sent {fault}; it was set aside as {aside.name}: the same command downloads it again, or "
            f"fetch that address by other means and put the file at {path}"
        )
    part.replace(path)
    if not (wanted.sha256 and wanted.size_bytes):
        print(
            f"{name}: downloaded; to hold it to the same from now on, add below model.registry.{name}: "
            f"size_bytes: {path.stat().st_size}, sha256: {found}",
            file=sys.stderr,
        )


def _fetch(name: str, wanted: RegistryEntry, part: Path) -> None:
    """Append to `part` what is missing of the file, and no byte more; RequestException where it stays incomplete."""
    have = part.stat().st_size if part.is_file() else 0
    if have and have == wanted.size_bytes:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(wanted.url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if wanted.url.startswith("https:") and any(not s.url.startswith("https:") for s in (*answer.history, answer)):
            raise requests.RequestException("the server sends on to an address without encryption")
        if (
            have and answer.status_code == requests.codes.requested_range_not_satisfiable
        ):  # the part is whole, or not this file
            if not wanted.size_bytes and answer.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()
            _fetch(name, wanted, part)
            return
        answer.raise_for_status()
        piece = re.fullmatch(rf"bytes {have}-\d+/(\d{{1,18}}|\*)", answer.headers.get("Content-Range", ""))
        is_rest = answer.status_code == requests.codes.partial_content
        if is_rest and not piece:
            part.unlink(missing_ok=True)
            raise requests.RequestException("the server sent another piece than the one asked for")
        start = have if is_rest else 0
        total = _total_bytes(name, wanted, answer, start, piece[1] if is_rest else "")
        check_disk_space(part.parent, total - start, name)
        _append(answer, part, start, tqdm(desc=name, total=total, initial=start, unit="B", unit_scale=True))


def _total_bytes(name: str, wanted: RegistryEntry, answer: requests.Response, start: int, whole: str) -> int:
    """How many bytes the file has: as is stated, else as the server announces; RequestException where neither is."""
    length = answer.headers.get("Content-Length", "")
    announced = int(whole) if whole.isdecimal() else None
    if announced is None and re.fullmatch(r"[0-9]{1,18}", length):
        announced = start + int(length)
    stated = wanted.size_bytes
    if stated and announced is not None and stated != announced:
        raise requests.RequestException(
            f"the server announces {announced:,} bytes, and model.registry.{name} states {stated:,}"
        )
    if not (total := stated or announced):
        raise requests.RequestException(
            f"the server does not say how many bytes there are; state them, model.registry.{name}.size_bytes=…"
        )
    return total


def _append(answer: requests.Response, part: Path, start: int, bar: "tqdm") -> None:
    with part.open("ab" if start else "wb") as file, bar:
        for piece in answer.iter_content(1 << 16):
            if file.tell() + len(piece) > bar.total:
                part.unlink()
                raise requests.RequestException(f"the server sends more than the {bar.total:,} bytes that are due")
            file.write(piece)
            bar.update(len(piece))
        if file.tell() < bar.total:  # requests notices by itself only where the server announced the length
            raise requests.exceptions.ChunkedEncodingError


def _fault(name: str, wanted: RegistryEntry, part: Path, found: str) -> str:
    """What is wrong with the bytes that came; "" when they are the model."""
    if wanted.sha256 and found != wanted.sha256:
        return f"has the SHA-256 {found}, and model.registry.{name} states {wanted.sha256}"
    if not _is_nemo(part):
        return "is no .nemo file (a tar archive that holds model_config.yaml and weights)"
    return ""


def _is_nemo(path: Path) -> bool:
    """Whether it is a tar, packed or not, that holds a configuration and weights."""
    names = set()
    try:
        with tarfile.open(path) as archive:
            while member := archive.next():
                archive.members.clear()  # tarfile would keep them all
                names.add(Path(member.name).name[:100])
                if member.offset_data + member.size > MAX_UNPACKED_BYTES or len(names) > 1000:
                    return False
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError, zlib.error, lzma.LZMAError):
        return False
    return "model_config.yaml" in names and any(name.endswith(".ckpt") for name in names)


def _check_registered(name: str, wanted: RegistryEntry, path: Path) -> None:
    """UserError where a file that is there is not what the registry states."""
    size = path.stat().st_size
    other = f"{size:,} bytes" if wanted.size_bytes and size != wanted.size_bytes else ""
    if not other and wanted.sha256 and (found := sha256(path)) != wanted.sha256:
        other = f"the SHA-256 {found}"
    if other:
        raise UserError(
            f"{path} has {other}, and model.registry.{name} states another; delete the file, the same command "
            "downloads it again, or state what it has"
        )
