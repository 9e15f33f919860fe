import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from finetuning.config import Model
from finetuning.errors import UserError
from finetuning.registry import find

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Server(BaseHTTPRequestHandler):
    """Gives CONTENT; the class attributes say how badly."""

    dies_after: int | None = None  # bytes, then the connection is closed
    knows_ranges = True
    says_length = True
    asked: list[str | None]  # the Range headers that came

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.asked.append(wanted)
        if self.path != "/m.nemo":
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.knows_ranges else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if self.says_length:
            self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : self.dies_after])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(**behaviour: object) -> Iterator[tuple[str, list[str | None]]]:
    """The address of a server on this machine, and the Range headers it was sent."""
    asked: list[str | None] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("AsToldServer", (Server,), {**behaviour, "asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def registry(address: str, folder: Path) -> Model:
    return Model(registry={"m": address}, folder=str(folder))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_downloaded_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as (address, asked):
        model = registry(f"{address}/m.nemo", tmp_path / "models")
        path = find("m", model)
        assert path == tmp_path / "models" / "m.nemo"
        assert path.read_bytes() == CONTENT
        assert find("m", model) == path
    assert asked == [None]
    assert [p.name for p in path.parent.iterdir()] == ["m.nemo"]
    assert "1.05M/1.05M" in capsys.readouterr().err  # the progress bar


def test_processes_that_ask_at_the_same_time_download_once(tmp_path: Path) -> None:
    with serving(dies_after=300_000) as (address, _), pytest.raises(UserError):
        find("m", registry(f"{address}/m.nemo", tmp_path))
    with serving() as (address, asked), ThreadPoolExecutor() as pool:
        for path in pool.map(find, ["m"] * 4, [registry(f"{address}/m.nemo", tmp_path)] * 4):
            assert path.read_bytes() == CONTENT
    assert len(asked) == 1


def test_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    part = tmp_path / "m.nemo.part"
    with serving(dies_after=300_000) as (address, _):
        with pytest.raises(UserError) as refusal:
            find("m", registry(f"{address}/m.nemo", tmp_path))
        assert f"{address}/m.nemo" in str(refusal.value)
        assert "the connection broke off" in str(refusal.value)
        assert str(tmp_path / "m.nemo") in str(refusal.value)
    have = part.stat().st_size
    assert part.read_bytes() == CONTENT[:have]
    assert have > 0
    assert not (tmp_path / "m.nemo").exists()
    with serving() as (address, asked):
        assert find("m", registry(f"{address}/m.nemo", tmp_path)).read_bytes() == CONTENT
    assert asked == [f"bytes={have}-"]
    assert not part.exists()


def test_starts_over_when_the_server_ignores_ranges(tmp_path: Path) -> None:
    (tmp_path / "m.nemo.part").write_bytes(b"x" * 1000)
    with serving(knows_ranges=False) as (address, _):
        assert find("m", registry(f"{address}/m.nemo", tmp_path)).read_bytes() == CONTENT


def test_a_server_that_does_not_say_the_length(tmp_path: Path) -> None:
    with serving(says_length=False) as (address, _):
        assert find("m", registry(f"{address}/m.nemo", tmp_path)).read_bytes() == CONTENT


@pytest.mark.parametrize(("part", "requests"), [(CONTENT, 1), (CONTENT + b"x", 2)], ids=["whole", "too long"])
def test_a_part_that_is_already_whole_or_cannot_be(tmp_path: Path, part: bytes, requests: int) -> None:
    (tmp_path / "m.nemo.part").write_bytes(part)
    with serving() as (address, asked):
        assert find("m", registry(f"{address}/m.nemo", tmp_path)).read_bytes() == CONTENT
    assert len(asked) == requests


def test_refusals_say_what_to_fetch_and_where_to_put_it(tmp_path: Path) -> None:
    with serving() as (address, _):
        with pytest.raises(UserError, match="the server answers 404") as refusal:
            find("m", registry(f"{address}/gone.nemo", tmp_path))
        assert f"{address}/gone.nemo" in str(refusal.value)
        assert str(tmp_path / "m.nemo") in str(refusal.value)
    with pytest.raises(UserError, match="cannot be reached") as refusal:  # the server is gone by now
        find("m", registry(f"{address}/m.nemo", tmp_path))
    assert f"put the file at {tmp_path / 'm.nemo'}" in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_path_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.nemo").touch()
    assert find(str(tmp_path / "own.nemo"), Model()) == tmp_path / "own.nemo"
    monkeypatch.chdir(tmp_path)
    assert find("own.nemo", Model()) == tmp_path / "own.nemo"
    with pytest.raises(UserError, match=r"no model runs/none.nemo; .*train.py.* model.registry \(m\)"):
        find("runs/none.nemo", registry("http://127.0.0.1:9/m.nemo", tmp_path))
