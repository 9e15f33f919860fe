"""Where a model is: a file of the user's, or one of the registry's that is downloaded once. Needs no NeMo."""

import http.client
import re
from pathlib import Path

import requests
from tqdm import tqdm

from finetuning import config as experiment
from finetuning.errors import UserError
from finetuning.files import alone, make_folder

TIMEOUT_S = (10, 60)  # to connect, and between two pieces


def find(name_or_path: str, model: experiment.Model) -> Path:
    """The `.nemo` file of a registry name (downloaded when it is not there yet) or of a path.

    A relative path starts at the project's folder or, where nothing is there, at the current folder. UserError says
    what to type, or what to fetch by other means and where to put it.
    """
    if name_or_path in model.registry:
        path = experiment.resolve(model.folder) / f"{name_or_path}.nemo"
        if not path.is_file():
            with alone(make_folder(path.parent), waits=True):  # processes that train together ask at the same time
                if not path.is_file():
                    download(model.registry[name_or_path], path)
        return path
    for path in (experiment.resolve(name_or_path), Path(name_or_path).expanduser().resolve()):
        if path.is_file():
            return path
    known = ", ".join(model.registry) or "it is empty"
    raise UserError(
        f"there is no model {name_or_path}; train it with Fine_tuning/train.py (the demo's English base: make "
        f"demo-base), or give the path of a .nemo file or a name of model.registry ({known})"
    )


def download(address: str, path: Path) -> None:
    """Fetch `address` to `path`; a download that broke off goes on from its `.part` file.

    UserError where it cannot be fetched: names the address, and the path to put it at by other means.
    """
    part = path.with_name(path.name + ".part")
    try:
        total = _fetch(address, part, path.stem)
    except requests.RequestException as error:
        raise UserError(
            f"cannot download {address} ({reason(error)}); the same command goes on from what is there, or fetch that "
            f"address by other means and put the file at {path}"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write {part} ({error.strerror}); make room or name another model.folder") from error
    if total is not None and part.stat().st_size != total:
        part.unlink()
        raise UserError(
            f"{address} gave another number of bytes than the {total} it announced; try again, or fetch that address "
            f"by other means and put the file at {path}"
        )
    part.replace(path)


def _fetch(address: str, part: Path, name: str) -> int | None:
    """Append to `part` what is missing of `address`; the whole size in bytes, None where the server does not say."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:  # the part is whole, or not this file
            if re.fullmatch(rf"bytes \*/{have}", answer.headers.get("Content-Range", "")):
                return have
            part.unlink()
            return _fetch(address, part, name)
        answer.raise_for_status()
        goes_on = re.fullmatch(rf"bytes {have}-\d+/(?:\d+|\*)", answer.headers.get("Content-Range", ""))
        start = have if answer.status_code == requests.codes.partial_content and goes_on else 0
        if answer.status_code == requests.codes.partial_content and not goes_on:
            part.unlink(missing_ok=True)
            raise requests.RequestException("the server sent another piece than the one asked for")
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = tqdm(desc=name, total=total, initial=start, unit="B", unit_scale=True)
        with part.open("ab" if start else "wb") as file, bar:
            for piece in answer.iter_content(1 << 16):
                file.write(piece)
                bar.update(len(piece))
    return total


def reason(error: requests.RequestException) -> str:
    """Why, in a few words: requests' own sentences hold objects' addresses and whole tracebacks."""
    if isinstance(error, requests.HTTPError):
        status = error.response.status_code  # in our words: the server's may hold anything
        return f"the server answers {status} {http.client.responses.get(status, '')}".rstrip()
    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        return "the server cannot be reached"
    return str(error) if type(error) is requests.RequestException else type(error).__name__  # others may hold secrets
