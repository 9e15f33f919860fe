import hashlib
import io
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import ROOT
from finetuning.config.schema import Model, RegistryEntry
from finetuning.errors import UserError
from finetuning.model.pretrained import locate_model


def nemo(*names: str, mode: str = "w") -> bytes:
    """An archive of files with these names; the last one is large."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1_000_000 if name == names[-1] else 5
            archive.addfile(member, io.BytesIO(bytes(range(250)) * 4000))
    return packed.getvalue()


CONTENT = nemo("./model_config.yaml", "./model_weights.ckpt")  # 1.0 MB
SIZE, SHA256 = len(CONTENT), hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Gives CONTENT; the class attributes say how badly."""

    dies_after: int | None = None  # bytes, then the connection is closed
    knows_ranges = True
    says_length = True
    length: str | None = None  # what it announces instead of the truth
    endless = False  # the content again and again, without a length, 20 MB at most
    content = CONTENT
    sends_to: str | None = None  # another address, of which a * is the number of those before it
    asked: list[str | None]  # the Range headers that came

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.asked.append(wanted)
        if self.sends_to:
            self.send_response(302)
            self.send_header("Location", self.sends_to.replace("*", str(len(self.asked))))
            self.end_headers()
            return
        if not self.path.partition("?")[0].endswith("/m.nemo"):
            self.send_error(404)
            return
        size = len(self.content)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.knows_ranges else 0
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start and self.says_length:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if start and not self.says_length:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/*")
        if self.says_length and not self.endless:
            self.send_header("Content-Length", self.length or str(size - start))
        self.end_headers()
        with suppress(ConnectionError):  # the client has enough
            for _ in range(20 if self.endless else 1):
                self.wfile.write(self.content[start : self.dies_after])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(encrypted: ssl.SSLContext | None = None, **behaviour: object) -> Iterator[tuple[str, list[str | None]]]:
    """The address of a server on this machine, and the Range headers it was sent."""
    asked: list[str | None] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("AsToldServer", (Server,), {**behaviour, "asked": asked}))
    if encrypted:
        server.socket = encrypted.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http{'s' if encrypted else ''}://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def registry(address: str, folder: Path, **stated: object) -> Model:
    return Model(registry={"m": RegistryEntry(address, **stated)}, folder=str(folder))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_downloaded_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as (address, asked):
        model = registry(f"{address}/m.nemo", tmp_path / "models")
        path = locate_model("m", model)
        assert path == tmp_path / "models" / "m.nemo"
        assert path.read_bytes() == CONTENT
        assert locate_model("m", model) == path
    assert asked == [None]
    assert [p.name for p in path.parent.iterdir()] == ["m.nemo"]
    said = capsys.readouterr()
    assert "1.00M/1.00M" in said.err  # the progress bar
    assert f"model.registry.m: size_bytes: {SIZE}, sha256: {SHA256}" in said.err
    assert said.out == ""  # where transcribe.py prints texts


def test_stated_size_and_checksum_are_held_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as (address, asked):
        model = registry(f"{address}/m.nemo", tmp_path, size_bytes=SIZE, sha256=SHA256)
        path = locate_model("m", model)
        assert "add below" not in capsys.readouterr().err
        path.write_bytes(CONTENT[:-1] + b"x")
        with pytest.raises(UserError, match=r"m\.nemo has the SHA-256 .* delete the file"):
            locate_model("m", model)
        path.write_bytes(CONTENT + b"x")
        with pytest.raises(UserError, match=rf"m\.nemo has {SIZE + 1:,} bytes, .* delete the file"):
            locate_model("m", model)
    assert asked == [None]


WRONG = {
    "another checksum": ({}, {"sha256": "0" * 64}, rf"has the SHA-256 {SHA256}, and model\.registry\.m states 000"),
    "a page": ({"content": b"<html>log in first</html>" * 99}, {}, r"is not a \.nemo file"),
    "another archive": ({"content": nemo("a", "b.ckpt", mode="w:gz")}, {}, r"is not a \.nemo file"),
    "a damaged one": (
        {"content": nemo("model_config.yaml", "m.ckpt", mode="w:gz")[:-3000]},
        {},
        r"is not a \.nemo file",
    ),
}


@pytest.mark.parametrize(("behaviour", "stated", "words"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_model_is_set_aside(tmp_path: Path, behaviour: dict, stated: dict, words: str) -> None:
    with serving(**behaviour) as (address, _):
        with pytest.raises(UserError, match=words) as refusal:
            locate_model("m", registry(f"{address}/m.nemo", tmp_path, **stated))
        assert "set aside as m.nemo.wrong" in str(refusal.value)
        assert [path.name for path in tmp_path.iterdir()] == ["m.nemo.wrong"]
    with serving() as (address, _):
        assert locate_model("m", registry(f"{address}/m.nemo", tmp_path)).read_bytes() == CONTENT


def test_a_packed_model(tmp_path: Path) -> None:
    packed = nemo("model_config.yaml", "model_weights.ckpt", mode="w:gz")
    with serving(content=packed) as (address, _):
        assert locate_model("m", registry(f"{address}/m.nemo", tmp_path)).read_bytes() == packed


@pytest.mark.parametrize("have", [0, 1000])
def test_an_endless_answer_ends(tmp_path: Path, have: int) -> None:
    if have:
        (tmp_path / "m.nemo.part").write_bytes(CONTENT[:have])
    due = pytest.raises(UserError, match=f"sends more than the expected {SIZE:,} bytes")
    with serving(endless=True, says_length=False) as (address, _), due:
        locate_model("m", registry(f"{address}/m.nemo", tmp_path, size_bytes=SIZE))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (None, r"model\.registry\.m .*does not announce how many bytes there are; state size_bytes"),
        ("many", "does not announce how many bytes"),
        ("-5", "does not announce how many bytes"),
        ("9" * 17, "make room"),
    ],
)
def test_a_length_that_cannot_be(tmp_path: Path, length: str | None, words: str) -> None:
    refused = pytest.raises(UserError, match=words)
    with serving(says_length=length is not None, length=length) as (address, _), refused:
        locate_model("m", registry(f"{address}/m.nemo", tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_another_length_than_the_one_that_is_stated(tmp_path: Path) -> None:
    with (
        serving() as (address, _),
        pytest.raises(UserError, match=rf"model.registry.m .*announces {SIZE:,} bytes, and size_bytes is 5"),
    ):
        locate_model("m", registry(f"{address}/m.nemo", tmp_path, size_bytes=5))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_sends_elsewhere(tmp_path: Path) -> None:
    with serving() as (address, _), serving(sends_to=f"{address}/m.nemo") as (first, _):
        assert locate_model("m", registry(f"{first}/x.nemo", tmp_path)).read_bytes() == CONTENT
    for elsewhere, words in {"/*": "without end", "file:///etc/passwd": "not a web address"}.items():
        with serving(sends_to=elsewhere) as (first, _), pytest.raises(UserError, match=words):
            locate_model("m", registry(f"{first}/x.nemo", tmp_path / "other"))


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes the server's certificate")
def test_encryption_is_not_given_up_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=127.0.0.1"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    encrypted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    encrypted.load_cert_chain(certificate, key)
    with serving(encrypted) as (address, _):
        assert locate_model("m", registry(f"{address}/m.nemo", tmp_path / "models")).read_bytes() == CONTENT
    refused = pytest.raises(UserError, match="redirects to an address without encryption")
    with serving() as (plain, _), serving(encrypted, sends_to=f"{plain}/m.nemo") as (address, _), refused:
        locate_model("m", registry(f"{address}/m.nemo", tmp_path / "other"))
    assert list((tmp_path / "other").iterdir()) == []


def test_a_token_in_an_address_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as (address, _), pytest.raises(UserError, match="404") as refusal:
        locate_model("m", registry(f"{address}/gone.nemo?token=s3cret", tmp_path))
    with serving() as (address, _):
        locate_model("m", registry(f"{address}/m.nemo?token=s3cret", tmp_path))
    with pytest.raises(UserError, match="there is no model") as unknown:
        locate_model("https://user:s3cret@host/m.nemo", Model())
    assert "s3cret" not in f"{refusal.value} {unknown.value} {capsys.readouterr()}"


def test_a_link_in_the_place_of_the_part_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.nemo.part").symlink_to(tmp_path / "precious")
    with serving() as (address, _):
        assert locate_model("m", registry(f"{address}/m.nemo", tmp_path / "models")).read_bytes() == CONTENT
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_processes_that_ask_at_the_same_time_download_once(tmp_path: Path) -> None:
    with serving(dies_after=300_000) as (address, _), pytest.raises(UserError):
        locate_model("m", registry(f"{address}/m.nemo", tmp_path))
    with serving() as (address, asked), ThreadPoolExecutor() as pool:
        for path in pool.map(locate_model, ["m"] * 4, [registry(f"{address}/m.nemo", tmp_path)] * 4):
            assert path.read_bytes() == CONTENT
    assert len(asked) == 1


def test_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    part = tmp_path / "m.nemo.part"
    with serving(dies_after=300_000) as (address, _):
        with pytest.raises(UserError) as refusal:
            locate_model("m", registry(f"{address}/m.nemo", tmp_path))
        assert f"{address}/m.nemo" in str(refusal.value)
        assert "the connection broke off" in str(refusal.value)
        assert str(tmp_path / "m.nemo") in str(refusal.value)
    have = part.stat().st_size
    assert part.read_bytes() == CONTENT[:have]
    assert have > 0
    assert not (tmp_path / "m.nemo").exists()
    with serving() as (address, asked):
        assert locate_model("m", registry(f"{address}/m.nemo", tmp_path)).read_bytes() == CONTENT
    assert asked == [f"bytes={have}-"]
    assert not part.exists()


def test_starts_over_when_the_server_ignores_ranges(tmp_path: Path) -> None:
    (tmp_path / "m.nemo.part").write_bytes(b"x" * 1000)
    with serving(knows_ranges=False) as (address, _):
        assert locate_model("m", registry(f"{address}/m.nemo", tmp_path)).read_bytes() == CONTENT


def test_a_server_that_does_not_say_the_length(tmp_path: Path) -> None:
    broken = pytest.raises(UserError, match="the connection broke off")
    with serving(says_length=False, dies_after=300_000) as (address, _), broken:
        locate_model("m", registry(f"{address}/m.nemo", tmp_path, size_bytes=SIZE))
    assert (tmp_path / "m.nemo.part").read_bytes() == CONTENT[:300_000]
    with serving(says_length=False) as (address, _):
        assert locate_model("m", registry(f"{address}/m.nemo", tmp_path, size_bytes=SIZE)).read_bytes() == CONTENT


@pytest.mark.parametrize(("part", "requests"), [(CONTENT, 1), (CONTENT + b"x", 2)], ids=["whole", "too long"])
def test_a_part_that_is_already_whole_or_cannot_be(tmp_path: Path, part: bytes, requests: int) -> None:
    (tmp_path / "m.nemo.part").write_bytes(part)
    with serving() as (address, asked):
        assert locate_model("m", registry(f"{address}/m.nemo", tmp_path)).read_bytes() == CONTENT
    assert len(asked) == requests


def test_refusals_say_what_to_fetch_and_where_to_put_it(tmp_path: Path) -> None:
    with serving() as (address, _):
        with pytest.raises(UserError, match="the server answers 404") as refusal:
            locate_model("m", registry(f"{address}/gone.nemo", tmp_path))
        assert f"{address}/gone.nemo" in str(refusal.value)
        assert str(tmp_path / "m.nemo") in str(refusal.value)
    with pytest.raises(UserError, match="cannot be reached") as refusal:  # the server is gone by now
        locate_model("m", registry(f"{address}/m.nemo", tmp_path))
    assert f"put the file at {tmp_path / 'm.nemo'}" in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_path_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.nemo").touch()
    assert locate_model(str(tmp_path / "own.nemo"), Model()) == tmp_path / "own.nemo"
    monkeypatch.chdir(tmp_path)
    assert locate_model("own.nemo", Model()) == tmp_path / "own.nemo"
    with pytest.raises(UserError, match=r"no model runs/none.nemo; .*train.py.* model.registry \(m\)"):
        locate_model("runs/none.nemo", registry("http://127.0.0.1:9/m.nemo", tmp_path))


def test_a_name_of_the_hub_is_downloaded_from_there_once(tmp_path: Path) -> None:
    """In a process of its own: the hub's client reads the address of the hub when it is imported."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from finetuning.config.schema import Model\n"
        "from finetuning.model.pretrained import locate_model\n"
        "print(locate_model('some-owner/m', Model(folder=sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(ROOT / "Fine_tuning"), str(tmp_path / "models")]
    with serving() as (address, asked):
        for _ in range(2):
            found = subprocess.run(
                command, env={**os.environ, "HF_ENDPOINT": address}, capture_output=True, text=True, check=True
            )
            assert found.stdout == f"{tmp_path}/models/some-owner--m.nemo\n"
    assert asked == [None]
    assert (tmp_path / "models" / "some-owner--m.nemo").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["models/none", "datasets/none.nemo", "a/b/c", "none.nemo", "../x", "a b"])
def test_what_is_a_path_is_not_asked_for_anywhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="there is no model"):
        locate_model(name, Model(folder=str(tmp_path)))


@pytest.mark.nemo
def test_names_of_nemos_own_list_have_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    from finetuning.model.pretrained import _public_address

    for name in ("stt_it_conformer_ctc_large", "stt_it_fastconformer_hybrid_large_pc", "stt_en_citrinet_512"):
        address = _public_address(name)
        assert address.startswith("https://") and address.endswith(f"/{name}.nemo")
    assert _public_address("stt_none_such") == ""
    assert "looked up in NeMo's list" in capsys.readouterr().err
