"""Step 1 is killed at every moment of its work, goes on with the same command and ends in the same bytes."""

import os
import signal
import subprocess
import sys
import tarfile
import time
import wave
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ROOT
from finetuning.data.manifest import SPLITS
from releases import SAMPLE, digest, lines_of

pytestmark = pytest.mark.slow

MANIFESTS = {f"{split}_manifest.json" for split in SPLITS}
CLIPS = 443  # of the sample that are worth converting
Moment = Callable[[Path], bool]


def lines(count: int) -> Moment:
    return lambda output: (output / "conversion.jsonl").is_file() and logged(output) >= count


def there(name: str) -> Moment:
    return lambda output: (output / name).exists()


def logged(output: Path) -> int:
    return (output / "conversion.jsonl").read_bytes().count(b"\n")


MOMENTS: dict[str, Moment] = {  # in the order in which a run comes by
    "nothing is there": lambda output: True,
    "the output folder is there": lambda output: output.is_dir(),
    "the wavs' folder is there": there("wavs"),
    "the log is begun": lines(1),
    "few clips are converted": lines(40),
    "some clips are converted": lines(150),
    "most clips are converted": lines(380),
    "all clips are converted": lines(1 + CLIPS),
    "a manifest is written": there("train_manifest.json"),
    "the manifests are written": there("rejected.jsonl"),
    "all but the picture is written": there("dataset.json"),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(SAMPLE) as archive:
        archive.extractall(folder)
    return {"archive": SAMPLE, "folder": next(folder.glob("*/it"))}


def start(source: Path, output: Path, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """The script in a process group of its own, which Ctrl-C reaches also when the tests run in the background."""
    script = [sys.executable, str(ROOT / "Fine_tuning" / "dataset_creation.py"), "dataset.workers=2"]
    script += [f"dataset.source={source}", f"dataset.output={output}", "dataset.split.by=speaker"]
    return subprocess.Popen(
        script,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str]) -> str:
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module", params=["archive", "folder"])
def release(request: pytest.FixtureRequest, sources: dict[str, Path], tmp_path_factory) -> tuple[Path, Path]:
    """A source, and what it gives when nothing disturbs."""
    output = tmp_path_factory.mktemp("undisturbed") / "data"
    finish(start(sources[request.param], output))
    return sources[request.param], output


def assert_all_is_whole(output: Path, undisturbed: Path) -> None:
    """What stands under its final name is what it will be; a line of the log may be cut off at its end alone."""
    ends = digest(undisturbed)
    final = {name: sha for name, sha in digest(output).items() if not Path(name).name.startswith(".")}
    final.pop("conversion.jsonl", None)
    assert final.items() <= ends.items()
    for name in final:
        if name.startswith("wavs/"):
            with wave.open(str(output / name)) as wav:
                assert 44 + 2 * wav.getnframes() == (output / name).stat().st_size == 44 + len(wav.readframes(10**6))


def assert_the_same(output: Path, undisturbed: Path) -> None:
    """File for file, with nothing left over; the log's clips come in the order in which they are done."""
    made, ends = digest(output), digest(undisturbed)
    assert made.pop("conversion.jsonl") and ends.pop("conversion.jsonl")
    assert made == ends and "dataset.png" in ends and ends.keys() >= MANIFESTS
    logs = [lines_of(folder / "conversion.jsonl") for folder in (output, undisturbed)]
    assert logs[0][0] == logs[1][0]
    for line in (*logs[0][1:], *logs[1][1:]):
        assert line.pop("wav_mtime_ns", 0) or "reason" in line
    assert sorted(logs[0][1:], key=lambda line: line["path"]) == sorted(logs[1][1:], key=lambda line: line["path"])


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def gone(process: int) -> bool:
    """Whether a process has ended; one whose end nobody asked about still has its number."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def test_killed_with_all_its_processes_at_any_moment_it_goes_on(release: tuple[Path, Path], tmp_path: Path) -> None:
    """At each moment in turn, of one output: so each run goes on with what the killed one before it left."""
    (source, undisturbed), output = release, tmp_path / "data"
    converted = 0
    moments = list(MOMENTS.items())
    for name, moment in moments if source == SAMPLE else moments[1::2]:
        process = start(source, output)
        wait_until(lambda moment=moment, process=process: moment(output) or process.poll() is not None, name)
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, f"{name}: the run had ended before"
        assert_all_is_whole(output, undisturbed)
        done = logged(output) if (output / "conversion.jsonl").is_file() else 0
        assert done >= converted, f"{name}: something was converted again"
        converted = done
        if 0 < done < 1 + CLIPS:  # as a power cut would leave it
            with (output / "conversion.jsonl").open("ab") as log:
                log.write(b'{"path": "common_voice_it_400')
        if done:
            for cut_off in ("train_manifest.json", "dataset.png", "wavs/common_voice_it_40000000.wav"):
                path = output / cut_off
                path.with_name(f".finetuning-{process.pid}-0123456789abcdef-{path.name}").write_bytes(b"RIFF")
    printed = finish(start(source, output))
    assert " 0 to convert" in printed and "written to" in printed
    assert_the_same(output, undisturbed)
    assert "nothing to do" in finish(start(source, output))
    assert_the_same(output, undisturbed)


@pytest.mark.parametrize("release", ["archive"], indirect=True)
def test_killed_after_longer_and_longer_times_it_ends_the_same(release: tuple[Path, Path], tmp_path: Path) -> None:
    """The times mean nothing: they are to hit what no other test thinks of."""
    (source, undisturbed), output = release, tmp_path / "data"
    for delay_s in (0.4, 0.7, 1.0, 1.4, 1.9):
        process = start(source, output)
        time.sleep(delay_s)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        if output.is_dir():
            assert_all_is_whole(output, undisturbed)
    finish(start(source, output))
    assert_the_same(output, undisturbed)


@pytest.mark.parametrize("release", ["archive"], indirect=True)
def test_when_the_script_alone_is_killed_its_workers_end_and_the_next_run_goes_on(
    release: tuple[Path, Path], tmp_path: Path
) -> None:
    (source, undisturbed), output = release, tmp_path / "data"
    process = start(source, output)
    wait_until(lambda: lines(60)(output), "60 clips are converted")
    workers = workers_of(process)
    process.kill()
    process.communicate(timeout=60)
    assert len(workers) == 2
    printed = finish(start(source, output))  # at once, while they may still be there
    assert " 0 converted already" not in printed
    wait_until(lambda: all(map(gone, workers)), "a worker outlived the script")
    assert_the_same(output, undisturbed)


@pytest.mark.parametrize("release", ["folder"], indirect=True)
def test_when_a_worker_is_killed_the_script_goes_on_and_no_clip_is_blamed(
    release: tuple[Path, Path], tmp_path: Path
) -> None:
    (source, undisturbed), output = release, tmp_path / "data"
    process = start(source, output)
    wait_until(lambda: lines(150)(output), "150 clips are converted")
    os.kill(workers_of(process)[0], signal.SIGKILL)
    assert " 0 converted already" in finish(process)
    assert_the_same(output, undisturbed)


@pytest.mark.parametrize("gap_s", [0.03, 0.1])
def test_an_impatient_second_ctrl_c_ends_it_as_the_first_does(
    sources: dict[str, Path], tmp_path: Path, gap_s: float
) -> None:
    process = start(sources["folder"], tmp_path / "data", stderr=subprocess.PIPE)
    while not MOMENTS["few clips are converted"](tmp_path / "data"):
        time.sleep(0.01)
        assert process.poll() is None
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(gap_s)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err[-2000:]
    assert "Traceback" not in out + err, err[-2000:]
    assert "rerun the same command to resume" in err
