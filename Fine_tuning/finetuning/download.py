"""Download files over HTTP with resumption, and describe in a few words what can go wrong."""

import http.client
import re
from pathlib import Path

import requests
from tqdm import tqdm

from finetuning.files import check_disk_space

TIMEOUT_S = (10, 60)  # to connect, and between two pieces of the answer
PIECE_BYTES = 1 << 16  # written at a time
REQUEST_ERRORS = {  # the first that matches is used
    requests.Timeout: "the server does not answer",
    requests.exceptions.ChunkedEncodingError: "the connection broke off",
    requests.exceptions.ContentDecodingError: "the server's answer cannot be unpacked",
    requests.TooManyRedirects: "the server redirects without end",
    requests.exceptions.SSLError: "the server's certificate is not accepted",
    requests.exceptions.ProxyError: "the proxy cannot be reached",
    requests.ConnectionError: "the server cannot be reached",
    requests.exceptions.InvalidSchema: "the server redirects to something that is not a web address",
    requests.exceptions.InvalidURL: "the server redirects to something that is not an address",
}


def describe_request_error(error: requests.RequestException) -> str:
    """Return the cause in a few words: the messages of requests contain object addresses and whole tracebacks."""
    if isinstance(error, requests.HTTPError):
        status = error.response.status_code  # without the server's own words, which may be anything
        return f"the server answers {status} {http.client.responses.get(status, '')}".rstrip()
    for kind, words in REQUEST_ERRORS.items():
        if isinstance(error, kind):
            return words
    return str(error) if type(error) is requests.RequestException else type(error).__name__  # others may hold secrets


def resume_download(url: str, part: Path, size_bytes: int | None, label: str) -> None:
    """Append to the file `part` what it lacks of the file at `url`, and not a byte more.

    `size_bytes` is the size of the whole file where it is known; else the server has to announce it. `label` names the
    progress bar. Raises RequestException when the file is incomplete afterwards (what has arrived stays in `part`) or
    cannot be what is expected, UserError when the disk lacks room, and OSError when `part` cannot be written.
    """
    start = part.stat().st_size if part.is_file() else 0
    if start and start == size_bytes:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if url.startswith("https:") and any(not a.url.startswith("https:") for a in (*answer.history, answer)):
            raise requests.RequestException("the server redirects to an address without encryption")
        if start and answer.status_code == requests.codes.requested_range_not_satisfiable:
            # the part is complete already, or it is not of this file
            if not size_bytes and answer.headers.get("Content-Range") == f"bytes */{start}":
                return
            part.unlink()
            resume_download(url, part, size_bytes, label)
            return
        answer.raise_for_status()
        announced = None
        if answer.status_code != requests.codes.partial_content:
            start = 0
        elif rest := re.fullmatch(rf"bytes {start}-\d+/(\d{{1,18}}|\*)", answer.headers.get("Content-Range", "")):
            announced = int(rest[1]) if rest[1].isdecimal() else None
        else:
            part.unlink(missing_ok=True)
            raise requests.RequestException("the server sent another range than the one requested")
        length = answer.headers.get("Content-Length", "")
        if announced is None and re.fullmatch(r"[0-9]{1,18}", length):
            announced = start + int(length)
        total = _total_bytes(size_bytes, announced)
        check_disk_space(part.parent, total - start, label)
        _append(answer, part, start, tqdm(desc=label, total=total, initial=start, unit="B", unit_scale=True))


def _total_bytes(size_bytes: int | None, announced: int | None) -> int:
    """Return the size of the file: as expected, else as announced; raise RequestException when the two differ."""
    if size_bytes and announced is not None and size_bytes != announced:
        raise requests.RequestException(f"the server announces {announced:,} bytes, and size_bytes is {size_bytes:,}")
    if not (total := size_bytes or announced):
        raise requests.RequestException("the server does not announce how many bytes there are; state size_bytes")
    return total


def _append(answer: requests.Response, part: Path, start: int, bar: "tqdm") -> None:
    with part.open("ab" if start else "wb") as file, bar:
        for piece in answer.iter_content(PIECE_BYTES):
            if file.tell() + len(piece) > bar.total:
                part.unlink()
                raise requests.RequestException(f"the server sends more than the expected {bar.total:,} bytes")
            file.write(piece)
            bar.update(len(piece))
        if file.tell() < bar.total:  # requests notices this only where the server announced the length
            raise requests.exceptions.ChunkedEncodingError
