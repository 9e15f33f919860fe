import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from conftest import ROOT, assert_refused
from finetuning.config.schema import Archive
from finetuning.data.mozilla_data_collective import download_release
from finetuning.errors import UserError
from forked import Forked
from releases import SAMPLE, digest

pytestmark = pytest.mark.slow

CONTENT = SAMPLE.read_bytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KEY = "k3y-that-nobody-may-see"
ID = "cmj8u3p9q00chnxxb5fj12aw8"
SIGNED = "X-Signature=also-secret"


class Collective(BaseHTTPRequestHandler):
    """The three addresses the client asks; the class attributes say how badly they answer."""

    details: dict | None = None  # keys of the dataset's description that differ
    refuses: ClassVar[dict[str, tuple[int, dict, str]]] = {}  # "GET /api/…": status, headers, message
    times: int = 1 << 30  # so often
    session: object = "as it should be"  # what a download session is told
    dies_after: int | None = None  # bytes of each answer with the file, then the connection is closed
    knows_ranges = True
    says_length = True
    sends = CONTENT
    endless = False  # the file again and again, without a length, 50 MB at most
    delay_s = 0.0  # between two pieces
    hurry = threading.Event()  # once set there is no delay any more
    log: list[tuple[str, str | None, str | None]]  # method and path, Range, Authorization

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def answer(self, method: str) -> None:
        what = f"{method} {self.path.partition('?')[0]}"
        self.log.append((what, self.headers["Range"], self.headers["Authorization"]))
        if what in self.refuses and sum(entry[0] == what for entry in self.log) <= self.times:
            status, headers, message = self.refuses[what]
            self.reply(status, {"message": message}, headers)
        elif what == f"GET /api/datasets/{ID}":
            known = {"filename": "mcv-scripted-it-v24.0.tar.gz", "sizeBytes": len(CONTENT), "checksum": SHA256}
            known |= {"id": ID, "datasetUrl": f"https://collective.example/datasets/{ID}"}
            self.reply(200, {**known, **(self.details or {})})
        elif what == f"POST /api/datasets/{ID}/download":
            address = f"http://127.0.0.1:{self.server.server_port}/file?{SIGNED}"
            session = {"downloadUrl": address, "sizeBytes": len(CONTENT), "checksum": SHA256}
            self.reply(200, session if self.session == "as it should be" else self.session)
        elif what == "GET /file":
            self.send_file()
        else:
            self.reply(404, {"message": "not here"})

    def send_file(self) -> None:
        wanted = self.headers["Range"]
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.knows_ranges else 0
        if start >= len(self.sends):
            self.reply(416, {})
            return
        self.send_response(206 if start else 200)
        if self.says_length and not self.endless:
            self.send_header("Content-Length", str(len(self.sends) - start))
        self.end_headers()
        if self.endless:
            for _ in range(50_000_000 // len(self.sends)):
                self.wfile.write(self.sends)
        rest = self.sends[start : None if self.dies_after is None else start + self.dies_after]
        for piece in range(0, len(rest), 1 << 16):
            self.wfile.write(rest[piece : piece + (1 << 16)])
            self.hurry.wait(self.delay_s)

    def reply(self, status: int, body: object, headers: dict | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def handle(self) -> None:
        with suppress(ConnectionError):  # clients are killed here
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(**behaviour: object) -> Iterator[tuple[str, list]]:
    log: list[tuple[str, str | None, str | None]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("AsTold", (Collective,), {**behaviour, "log": log}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api", log
    finally:
        server.shutdown()
        server.server_close()


Start = Callable[..., subprocess.Popen[str]]


def interruptible() -> None:
    """In a child: Ctrl-C works also where the tests run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Run:
    """Step 1 on a release that has to be downloaded first, as a user types it."""

    def __init__(self, folder: Path) -> None:
        self.archive = folder / "release.tar.gz"
        self.output = folder / "data"
        self.folder = folder
        self.seen = ""  # all it ever said

    def start(
        self, address: str, *overrides: str, key: str | None = KEY, project: Path = ROOT, **options: object
    ) -> subprocess.Popen[str] | Forked:
        arguments = [f"dataset.source={self.archive}", f"dataset.output={self.output}", f"dataset.download={ID}"]
        arguments += [f"dataset.archive.name={self.archive.name}", f"dataset.archive.size_bytes={len(CONTENT)}"]
        arguments += [f"dataset.archive.sha256={SHA256}", "dataset.workers=2", *overrides]
        environment = {**os.environ, "MDC_API_URL": address, "NO_PROXY": "127.0.0.1", "HOME": str(self.folder)}
        environment.pop("MDC_API_KEY", None)
        environment |= options.pop("environment", {})
        if not options and project == ROOT:
            about = environment if key is None else {**environment, "MDC_API_KEY": key}
            return Forked("dataset_creation.py", *arguments, cwd=self.folder, env=about)
        return subprocess.Popen(
            [sys.executable, str(project / "Fine_tuning" / "dataset_creation.py"), *arguments],
            env=environment if key is None else {**environment, "MDC_API_KEY": key},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **{"preexec_fn": interruptible, "cwd": self.folder, **options},
        )

    def __call__(self, address: str, *overrides: str, **options: object) -> subprocess.CompletedProcess[str]:
        process = self.start(address, *overrides, **options)
        out, err = process.communicate(timeout=120)
        self.seen += out + err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @property
    def part(self) -> Path:
        return self.folder / "release.tar.gz.download" / "mcv-scripted-it-v24.0.tar.gz.part"

    def assert_downloaded(self) -> None:
        assert self.archive.read_bytes() == CONTENT
        assert not self.part.parent.exists()


def pieces(log: list[tuple[str, str | None, str | None]]) -> list[str | None]:
    """The Range headers with which the file was asked for."""
    return [wanted for what, wanted, _ in log if what == "GET /file"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    assert KEY not in run.seen
    assert SIGNED not in run.seen
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix != ".wav":
            assert KEY.encode() not in path.read_bytes(), path


NO_CLIPS = ("dataset.split.by=release", "text.alphabet='§ '")  # every row is rejected: the run ends after the download


def assert_came(process: subprocess.CompletedProcess[str]) -> None:
    """The download went well: what stops the run is that no row is left."""
    assert_refused(process, "no row is left")


@pytest.mark.slow
def test_from_a_key_to_manifests_and_downloaded_once(run: Run) -> None:
    (run.folder / ".netrc").write_text("default login somebody password something\n")
    with serving() as (address, log):
        made = run(address)
        assert made.returncode == 0, made.stderr[-2000:]
        run.assert_downloaded()
        assert (run.output / "train_manifest.json").is_file()
        asked = list(log)
        again = run(address)
        assert "nothing to do" in again.stdout
        assert log == asked
    assert [(what, authorization) for what, _, authorization in log if what != f"GET /api/datasets/{ID}"] == [
        (f"POST /api/datasets/{ID}/download", f"Bearer {KEY}"),
        ("GET /file", None),  # the signed address needs no key, so none is sent there
    ]
    assert digest(run.output).keys() >= {"dataset.json"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, in which a `.env` may be written."""
    for folder in ("Fine_tuning", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / "project" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "project"


def test_the_key_may_stand_in_dot_env_and_nothing_else(run: Run, project: Path) -> None:
    with serving() as (address, log), serving() as (other, stolen):
        (project / ".env").write_text(f"MDC_API_KEY={KEY}\nMDC_API_URL={other}\nHTTP_PROXY={other}\nX=${{HOME}}\n")
        without_proxies = {"NO_PROXY": "", "http_proxy": "", "HTTP_PROXY": "", "ALL_PROXY": "", "all_proxy": ""}
        assert_came(run(address, *NO_CLIPS, key=None, project=project, environment=without_proxies))
    (project / ".env").unlink()
    assert log[-1][0] == "GET /file"
    assert stolen == []


def test_a_dot_env_of_the_current_folder_or_one_above_sets_nothing(run: Run) -> None:
    with serving() as (address, log), serving() as (other, stolen):
        (run.folder / ".env").write_text(f"MDC_API_KEY=a-key\nHTTP_PROXY={other}\nPYTHONPATH={run.folder}\n")
        (run.folder / "below").mkdir()
        for folder in (run.folder, run.folder / "below"):
            assert_refused(run(address, key=None, cwd=folder), "no key to download it with", str(ROOT / ".env"))
            assert_came(run(address, *NO_CLIPS, cwd=folder, environment={"NO_PROXY": "", "HTTP_PROXY": ""}))
            run.archive.unlink()
    assert {authorization for what, _, authorization in log if "/api/" in what} <= {f"Bearer {KEY}", None}
    assert stolen == []


@pytest.mark.parametrize(
    "address",
    [
        "https://mozilladatacollective.com.example/api",
        "http://mozilladatacollective.com/api",
        "http://127.0.0.1.example/api",
        "http://127.0.0.1:80@example.org/api",
        "http://127.0.0.1\\@example.org/",
        "http://localhost@example.org",
        "http://2130706433/",
        "//127.0.0.1/api",
        "example.org",
        "http://127.0.0.1/api?to=http://example.org",
    ],
)
def test_the_key_goes_to_no_other_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MDC_API_URL", address)
    monkeypatch.setenv("MDC_API_KEY", KEY)
    with pytest.raises(UserError, match=r"MDC_API_URL names another server .* type: unset MDC_API_URL") as refusal:
        download_release(ID, Archive("release.tar.gz", len(CONTENT), SHA256), tmp_path / "release.tar.gz")
    assert KEY not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_proxy_before_this_machine_does_not_see_the_key(run: Run) -> None:
    with serving() as (address, log), serving() as (other, seen):
        refused = run(address, environment={"NO_PROXY": "", "no_proxy": "", "HTTP_PROXY": other})
        assert_refused(refused, "proxy", "export NO_PROXY=127.0.0.1")
    assert log == seen == []


def test_who_is_sent_to_by_the_server_does_not_see_the_key(run: Run) -> None:
    with serving() as (other, seen):
        elsewhere = {
            f"GET /api/datasets/{ID}": (307, {"Location": f"{other}/datasets/{ID}"}, ""),
            f"POST /api/datasets/{ID}/download": (307, {"Location": f"{other}/datasets/{ID}/download"}, ""),
        }
        with serving(refuses=elsewhere) as (address, _):
            assert_came(run(address, *NO_CLIPS))
    assert {entry[0] for entry in seen} == {*elsewhere, "GET /file"}
    assert {authorization for _, _, authorization in seen} == {None}


@pytest.mark.parametrize("have", [0, 1000])
def test_an_endless_answer_ends(run: Run, have: int) -> None:
    if have:
        broken_off(run, CONTENT[:have])
    with serving(endless=True) as (address, log):
        assert_refused(run(address), f"more than the expected {len(CONTENT):,} bytes", "nothing of it was kept")
    assert len(pieces(log)) == 1
    assert not run.part.exists()


def test_a_dot_env_that_is_no_text(run: Run, project: Path) -> None:
    (project / ".env").write_bytes("MDC_API_KEY=caf\xe9".encode("latin-1"))
    with serving() as (address, _):
        assert_refused(run(address, key=None, project=project), ".env", "plain text")
    assert [path.name for path in run.folder.iterdir()] == ["project"]


def test_two_runs_do_not_download_the_same(run: Run) -> None:
    hurry = threading.Event()
    with serving(delay_s=1, hurry=hurry) as (address, _):
        first = run.start(address, *NO_CLIPS)
        while not (run.part.is_file() and run.part.stat().st_size > 100_000):
            time.sleep(0.05)
            assert first.poll() is None
        assert_refused(run(address, f"dataset.output={run.folder / 'other'}"), "another run is writing to")
        hurry.set()
        first.communicate(timeout=60)
    run.assert_downloaded()


@pytest.mark.parametrize("key", [None, "", "two words", "café", f"{KEY}\n"])
def test_no_key_or_none_that_can_be_sent(run: Run, key: str | None) -> None:
    with serving() as (address, log):
        refused = run(address, key=key)
        assert_refused(refused, "MDC_API_KEY", ".env" if not key else "copy it again")
    assert log == []
    assert list(run.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "status", "words"),
    [
        (f"POST /api/datasets/{ID}/download", 401, ("does not accept MDC_API_KEY", "make a new key at")),
        (
            f"POST /api/datasets/{ID}/download",
            403,
            ("accept the terms", f"https://collective.example/datasets/{ID}", "(403 (what the server says))"),
        ),
        (f"GET /api/datasets/{ID}", 404, (f"no dataset {ID}", "what the server says", "dataset.download=")),
        (f"GET /api/datasets/{ID}", 410, (f"no dataset {ID}", "dataset.download=")),
        (f"POST /api/datasets/{ID}/download", 402, ("402", f"https://collective.example/datasets/{ID}")),
    ],
)
def test_refusals_say_what_to_do(run: Run, what: str, status: int, words: tuple[str, ...]) -> None:
    with serving(refuses={what: (status, {}, "what the server says")}) as (address, log):
        assert_refused(run(address), *words)
        assert sum(entry[0] == what for entry in log) == 1
    assert list(run.folder.iterdir()) == []


def test_words_of_the_server_that_hold_the_key_are_not_repeated(run: Run) -> None:
    what = f"POST /api/datasets/{ID}/download"
    with serving(refuses={what: (403, {}, f"Bearer {KEY} may not")}) as (address, _):
        assert_refused(run(address), "accept the terms")


@pytest.mark.parametrize("what", [f"GET /api/datasets/{ID}", f"POST /api/datasets/{ID}/download", "GET /file"])
def test_too_many_requests_are_waited_for(run: Run, what: str) -> None:
    with serving(refuses={what: (429, {"Retry-After": "1"}, "")}, times=2) as (address, log):
        started = time.monotonic()
        came = run(address, *NO_CLIPS)
        assert_came(came)
        assert time.monotonic() - started > 2
    assert came.stdout.count("another attempt in 1 s") == 2
    run.assert_downloaded()
    assert sum(entry[0] == what for entry in log) == 3 + what.startswith("GET /api")  # which the client asks again


@pytest.mark.parametrize(("asked", "tries"), [("0", 6), ("86400", 1)])
def test_patience_ends(run: Run, asked: str, tries: int) -> None:
    what = f"POST /api/datasets/{ID}/download"
    with serving(refuses={what: (429, {"Retry-After": asked}, "")}) as (address, log):
        assert_refused(run(address), "too many requests (429)", "rerun the same command to resume")
    assert sum(entry[0] == what for entry in log) == tries
    assert list(run.folder.iterdir()) == []


@pytest.mark.parametrize("says_length", [True, False])
def test_a_connection_that_drops_again_and_again(run: Run, says_length: bool) -> None:
    """A third of the archive comes each time; the client drops the end of a piece that was not whole (64 KiB)."""
    third = len(CONTENT) // 3 + 1
    with serving(dies_after=third, says_length=says_length) as (address, log):
        came = run(address, *NO_CLIPS)
        assert_came(came)
    assert "the connection broke off" in came.stdout
    asked = [int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in pieces(log)[1:]]
    assert pieces(log)[0] is None
    assert len(asked) in (2, 3)
    assert all(0 <= third * i - have < (1 << 16) * i for i, have in enumerate(asked, start=1))
    run.assert_downloaded()


@pytest.mark.slow
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_started_again(run: Run, way: signal.Signals) -> None:
    with serving(delay_s=0.05) as (address, log):
        process = run.start(address, start_new_session=True)
        while not (run.part.is_file() and run.part.stat().st_size > 300_000):
            time.sleep(0.05)
            assert process.poll() is None
        os.killpg(process.pid, way)
        out, err = process.communicate(timeout=30)
        run.seen += out + err
        assert process.returncode == (-9 if way is signal.SIGKILL else 130)
        assert not run.archive.exists()
        have = run.part.stat().st_size
    with serving() as (address, log):
        assert_came(run(address, *NO_CLIPS))
    assert pieces(log) == [f"bytes={have}-"]
    run.assert_downloaded()


def broken_off(run: Run, have: bytes) -> None:
    """What the client leaves when it is killed."""
    run.part.parent.mkdir()
    run.part.write_bytes(have)
    run.part.with_name("mcv-scripted-it-v24.0.tar.gz.checksum").write_text(SHA256)


def test_killed_after_the_last_byte(run: Run) -> None:
    broken_off(run, CONTENT)
    with serving() as (address, log):
        assert_came(run(address, *NO_CLIPS))
    assert "GET /file" not in [entry[0] for entry in log]
    run.assert_downloaded()


def test_killed_before_it_got_its_name(run: Run) -> None:
    run.part.parent.mkdir()
    run.part.with_suffix("").write_bytes(CONTENT)
    with serving() as (address, log):
        assert_came(run(address, *NO_CLIPS))
    assert "GET /file" not in [entry[0] for entry in log]
    run.assert_downloaded()


def test_a_server_that_ignores_range(run: Run) -> None:
    broken_off(run, CONTENT[:1000])
    with serving(knows_ranges=False) as (address, log):
        assert_came(run(address, *NO_CLIPS))
    assert pieces(log) == ["bytes=1000-"]
    run.assert_downloaded()


def test_a_part_of_something_longer_starts_over(run: Run) -> None:
    broken_off(run, CONTENT + b"x")
    with serving() as (address, log):
        assert_came(run(address, *NO_CLIPS))
    assert pieces(log) == [None]
    run.assert_downloaded()


@pytest.mark.parametrize("sends", [CONTENT[:-1] + b"x", b"\0" + CONTENT[1:]], ids=["last byte", "no archive"])
def test_a_wrong_checksum_keeps_the_file_aside_and_the_next_run_is_right(run: Run, sends: bytes) -> None:
    with serving(sends=sends) as (address, _):
        refused = run(address)
        assert_refused(
            refused, "SHA-256", SHA256, "release.tar.gz.wrong", "rerun the same command to download it again"
        )
        assert not run.part.parent.exists()
    assert run.archive.with_name("release.tar.gz.wrong").read_bytes() == sends
    assert not run.archive.exists()
    assert not run.output.exists()
    with serving() as (address, _):
        assert_came(run(address, *NO_CLIPS))
    run.assert_downloaded()


def test_an_archive_fetched_by_hand_is_held_to_the_same_and_another_name_is_not(run: Run) -> None:
    run.archive.write_bytes(CONTENT[:-10])
    with serving() as (address, log):
        refused = run(address)
        assert_refused(refused, f"{len(CONTENT) - 10:,} bytes and should have {len(CONTENT):,}", "dataset.archive")
        run.archive.write_bytes(CONTENT[:-1] + b"x")
        assert_refused(run(address), "SHA-256", SHA256, "delete it", "dataset.archive")
        assert run.archive.is_file()  # it is the user's
        other = run.folder / "mine.tar.gz"
        other.write_bytes(CONTENT)
        assert_came(run(address, *NO_CLIPS, f"dataset.source={other}", f"dataset.archive.sha256={'a' * 64}"))
    assert log == []


@pytest.mark.slow
def test_a_server_that_offers_another_archive_than_the_config_states(run: Run) -> None:
    with serving(details={"checksum": "0" * 64}) as (address, log):
        assert_refused(run(address), "another archive", f"sha256 {'0' * 64} instead of {SHA256}", "dataset.download=")
        assert_refused(run(address, "dataset.archive.sha256=''"), "must state", str(len(CONTENT)), "0" * 64)
    with serving(details={"filename": "../../up.tar.gz"}) as (address, _):
        assert_refused(run(address), "'../../up.tar.gz'", "by hand")
    for answer in ([], None, "x", {"downloadUrl": "no address", "sizeBytes": 1}):
        with serving(session=answer) as (address, _):
            assert_refused(run(address), "cannot understand the server's answer")
    with serving(details={"sizeBytes": "a lot"}) as (address, _):
        assert_refused(run(address), "cannot understand the server's answer")
    assert "GET /file" not in [entry[0] for entry in log]
    assert list(run.folder.iterdir()) == []


def test_a_disk_without_room_is_told_before_a_byte_comes(run: Run) -> None:
    with serving(details={"sizeBytes": 10**17}) as (address, log):
        refused = run(address, f"dataset.archive.size_bytes={10**17}")
        assert_refused(refused, "needs 100000000.00 GB", "make room")
    assert "GET /file" not in [entry[0] for entry in log]


def test_a_disk_that_fills_up_keeps_what_came(run: Run) -> None:
    """A limit of 1 MB a file stands for the full disk."""
    limit = 1_000_000

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with serving() as (address, log):
        assert_refused(run(address, preexec_fn=limited), "cannot write to", "make room", "rerun the same command")
        have = run.part.stat().st_size
        assert 900_000 < have <= limit
        assert run.part.read_bytes() == CONTENT[:have]
        assert_came(run(address, *NO_CLIPS))
    assert pieces(log) == [None, f"bytes={have}-"]
    run.assert_downloaded()


def test_no_server_at_all(run: Run) -> None:
    with serving() as (address, _):
        pass
    process = run.start(address, cwd=run.folder)  # whose output is read as it comes
    while "another attempt in 5 s" not in run.seen:
        run.seen += process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    run.seen += out + err
    assert "the server cannot be reached" in run.seen
    assert process.returncode == 130
    assert "Traceback" not in err
