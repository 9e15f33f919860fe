"""What goes wrong while a model trains: each time one sentence, nothing lost, and the same command goes on."""

import fcntl
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conftest import ROOT, Script, assert_refused
from forked import Forked

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecCTCModel

    from finetuning.training.checkpoints import ResumePoint

pytestmark = [pytest.mark.nemo, pytest.mark.slow]

Train = Callable[..., subprocess.CompletedProcess[str]]
GOES_ON = "finished work is kept; rerun the same command to resume"
ENGLISH = ROOT / "models/demo/quartznet_small_en.nemo"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def train(run_in_process: Script, tiny_config: Path, tiny_dataset: Path, output: Path) -> Train:
    """Step 2 on 28 utterances, 6 steps an epoch; one last and no best checkpoints where nothing else is said."""
    usual = {"training.output": output, "training.workers": 0, "training.keep_best": 0}

    def run(**overrides: object) -> subprocess.CompletedProcess[str]:
        settings = usual | {key.replace("__", "."): value for key, value in overrides.items()}
        return run_in_process("train.py", "--config", str(tiny_config), *(f"{k}={v}" for k, v in settings.items()))

    return run


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> "EncDecCTCModel":
    """Of the shape of the checkpoints."""
    from finetuning.model.ctc_model import restore_model

    return restore_model(tiny_run / "Model-IT-finetuned.nemo")


@pytest.fixture
def cut_off(tiny_run: Path, output: Path) -> Path:
    """A run with all its epochs, interrupted before the model was written."""
    for name in ("checkpoints/last.ckpt", "checkpoints/previous.ckpt", "metrics.csv"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_run / name, output / name)
    record = json.loads((tiny_run / "run.json").read_text())
    del record["model"]
    record["made_from"]["training"]["keep_best"] = 0  # as `train` does
    (output / "run.json").write_text(json.dumps(record))
    return output


def start_of(run: Path, model: "EncDecCTCModel") -> "ResumePoint":
    """Where a run would go on; it goes on from the newest checkpoint, which is whole."""
    from finetuning.training.checkpoints import find_resume_point

    start = find_resume_point(run / "checkpoints", model)
    assert start.path == run / "checkpoints" / "last.ckpt"
    assert not list(run.rglob(".*"))
    return start


@contextmanager
def meanwhile(moment: Callable[[], object], act: Callable[[], object], again: bool = False) -> Iterator[None]:
    """Beside the block, from another thread: `act` when `moment` has come, `again` whenever it has."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if moment():
                act()
                if not again:
                    break
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Disk:
    """A small disk that can be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self) -> bool:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", self.folder]
        return subprocess.run(mount, capture_output=True).returncode == 0

    def leave(self, size: int) -> None:
        """Fill it up to so many bytes."""
        filler = self.folder / "filler"
        filler.unlink(missing_ok=True)
        filler.write_bytes(bytes(max(0, shutil.disk_usage(self.folder).free - size)))


@pytest.fixture
def disk(output: Path) -> Iterator[Disk]:
    output.mkdir()
    disk = Disk(output)
    if not disk.mount():
        pytest.skip("only root may make a disk")
    yield disk
    subprocess.run(["umount", output], check=True)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    """In the middle of the largest weights, where torch does not notice."""
    import torch

    with zipfile.ZipFile(path) as packed:
        largest = max(packed.infolist(), key=lambda member: member.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 64
    path.write_bytes(content)
    assert torch.load(path, weights_only=False)["state_dict"]


def other_model(path: Path) -> None:
    import torch

    state = torch.load(path, weights_only=False)
    state["state_dict"].popitem()
    torch.save(state, path)


class Hostile:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def hostile(path: Path) -> None:
    import torch

    state = torch.load(path, weights_only=False)
    state["callbacks"]["MetricsLogger"]["loss_sum"] = Hostile(path.with_name("executed"))
    torch.save(state, path)


DAMAGES = {
    "it runs something": hostile,
    "cut short": cut_short,
    "empty": lambda path: path.write_bytes(b""),
    "a bit": flip_a_bit,
    "a model": lambda path: shutil.copy(ENGLISH, path),
    "a zip": lambda path: zipfile.ZipFile(path, "w").writestr("README", "nothing"),
    "of another model": other_model,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(
    cut_off: Path, model: "EncDecCTCModel", capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    from finetuning.errors import UserError
    from finetuning.training.checkpoints import find_resume_point

    folder = cut_off / "checkpoints"
    whole = find_resume_point(folder, model)
    assert (whole.epochs, whole.batches, whole.steps) == (3, 0, 18)
    DAMAGES[damage](folder / "last.ckpt")
    damaged = (folder / "last.ckpt").read_bytes()
    start = find_resume_point(folder, model)
    assert (start.path, start.epochs, start.steps) == (folder / "previous.ckpt", 2, 12)
    assert capsys.readouterr().out.count("using the one before it") == 1
    assert (folder / "damaged.ckpt").read_bytes() == damaged
    assert not (folder / "last.ckpt").exists()

    DAMAGES[damage](folder / "previous.ckpt")
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        find_resume_point(folder, model)
    assert (folder / "previous.ckpt").is_file()
    assert not (folder / "executed").exists()


def test_lightning_reads_checkpoints_without_running_anything(
    cut_off: Path, model: "EncDecCTCModel", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where somebody has switched that off for all of torch; what earlier versions wrote is read."""
    import torch
    from omegaconf import DictConfig

    from finetuning.training.checkpoints import AtomicCheckpointIO, find_resume_point

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    last = cut_off / "checkpoints" / "last.ckpt"
    assert torch.serialization.get_unsafe_globals_in_checkpoint(last) == ["omegaconf.dictconfig.DictConfig"]
    state = torch.load(last, weights_only=False)
    before = AtomicCheckpointIO().load_checkpoint(last)
    assert all(weights.equal(before["state_dict"][name]) for name, weights in state["state_dict"].items())
    torch.save(state | {"hyper_parameters": DictConfig(state["hyper_parameters"])}, last)
    assert find_resume_point(last.parent, model).steps == 18
    hostile(last)
    with pytest.raises(ValueError, match="more than tensors and plain values"):
        AtomicCheckpointIO().load_checkpoint(last)
    assert not last.with_name("executed").exists()


def test_a_checkpoint_names_no_file_that_is_to_be_deleted(tmp_path: Path) -> None:
    """Lightning removes the worst of those it names as the best, folders too."""
    from finetuning.training.checkpoints import BestCheckpoints

    best = BestCheckpoints(tmp_path, 3)
    best.load_state_dict(
        {"monitor": "val_wer", "best_k_models": {"/x/..": 9.0, "last.ckpt": 8.0, "/old/epoch=001.ckpt": 7.0}}
    )
    assert best.best_k_models == {str(tmp_path / "epoch=001.ckpt"): 7.0}


def test_after_a_damaged_checkpoint_the_run_goes_on_and_says_that_the_code_changed(
    cut_off: Path, train: Train, model: "EncDecCTCModel"
) -> None:
    folder = cut_off / "checkpoints"
    before = (folder / "previous.ckpt").read_bytes()
    flip_a_bit(folder / "last.ckpt")
    record = json.loads((cut_off / "run.json").read_text())
    record["versions"]["torch"] = "2.12.0"
    (cut_off / "run.json").write_text(json.dumps(record))
    left_over = folder / ".finetuning-99999999-0123456789abcdef-last.ckpt"
    left_over.write_bytes(b"half a checkpoint")

    done = train()
    assert done.returncode == 0, done.stderr[-2000:]
    assert "damaged.ckpt: using the one before it" in done.stdout
    assert f"Resuming from {folder / 'previous.ckpt'}" in done.stdout
    assert "Resuming with other code than this run was started with (versions.torch)" in done.stdout
    assert start_of(cut_off, model).steps == 18
    assert (folder / "previous.ckpt").read_bytes() == before
    assert [line.split(",")[0] for line in (cut_off / "metrics.csv").read_text().splitlines()[1:]] == ["1", "2", "3"]
    first, second = json.loads((cut_off / "run.json").read_text())["sessions"]
    assert (first["epochs_done"], first["steps_done"], second["epochs_done"], second["steps_done"]) == (0, 0, 2, 12)
    assert first["versions"] == second["versions"] != record["versions"]
    assert second["commit"] and second["threads"]
    assert second["device"].removesuffix(f", {second['threads']} threads") in Path("/proc/cpuinfo").read_text()

    for name in ("last.ckpt", "previous.ckpt"):
        cut_short(folder / name)
    (cut_off / "Model-IT-finetuned.nemo").unlink()
    assert_refused(train(), "last.ckpt", "previous.ckpt", "can be read", "delete that folder")


def test_a_full_disk_costs_no_checkpoint(disk: Disk, output: Path, train: Train, model: "EncDecCTCModel") -> None:
    """It is full from the first epoch on, then still at the next start, then too full for the third checkpoint."""
    with meanwhile((output / "checkpoints" / "last.ckpt").exists, lambda: disk.leave(0)):
        assert_refused(train(), "cannot write", "metrics.csv", "No space left", "make room", "same command")
    assert start_of(output, model).epochs == 1
    assert_refused(train(), "cannot write", "run.json", "make room")
    assert start_of(output, model).epochs == 1
    disk.leave(4_500_000)
    assert_refused(train(), "cannot write", "last.ckpt", "make room")  # it is larger: the encoder learns
    assert start_of(output, model).epochs == 2
    disk.leave(30_000_000)
    done = train()
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((output / "metrics.csv").read_text().splitlines()) == 4


def test_a_disk_that_is_full_at_the_end_costs_no_training(
    disk: Disk, cut_off: Path, train: Train, model: "EncDecCTCModel", monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetuning.errors import UserError
    from finetuning.model.ctc_model import save_model

    exported = cut_off / "Model-IT-finetuned.nemo"
    disk.leave(1_000_000)
    assert_refused(train(), "cannot write", exported.name, "No space left", "make room")
    monkeypatch.setattr(tempfile, "tempdir", str(cut_off))  # where NeMo packs the model
    with pytest.raises(UserError, match="TMPDIR"):
        save_model(model, exported)
    monkeypatch.undo()
    assert not exported.exists()
    disk.leave(20_000_000)
    done = train()
    assert done.returncode == 0, done.stderr[-2000:]
    assert start_of(cut_off, model).epochs == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wav_that_vanishes_or_is_cut_short_meanwhile_is_named(
    tiny_dataset: Path, tmp_path: Path, output: Path, train: Train, model: "EncDecCTCModel", workers: int
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data)
    wav = data / json.loads((data / "train_manifest.json").read_text().splitlines()[0])["audio_filepath"]
    with meanwhile((output / "checkpoints" / "last.ckpt").exists, lambda: cut_short(wav) if workers else wav.unlink()):
        refused = train(dataset__output=data, training__workers=workers)
    assert_refused(refused, str(wav), "it lasts" if workers else "System error", "run step 1 again")
    assert refused.stderr.strip().count("\n") == 0
    assert start_of(output, model).epochs in (1, 2)


@pytest.mark.parametrize(("minutes", "words"), [(30, "the training loss is nan"), (0, "are not finite any more")])
def test_a_loss_and_weights_that_are_no_numbers_are_never_kept(
    output: Path, train: Train, model: "EncDecCTCModel", minutes: int, words: str
) -> None:
    import torch

    wild = {"training__optimizer__lr": 1e10, "training__gradient_clip": "null", "training__frozen_epochs": 0}
    refused = train(**wild, training__checkpoint_minutes=minutes)
    assert_refused(refused, words, "lower training.optimizer.lr", "in a new training.output")
    assert (output / "checkpoints").exists() == (minutes == 0)
    if minutes == 0:  # after every step
        state = torch.load(start_of(output, model).path, weights_only=False)["state_dict"]
        assert all(weights.isfinite().all() for weights in state.values())


def test_what_lightning_cannot_do_here_is_one_sentence(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_JOB_NAME": "italian", "SLURM_NTASKS": "2"}.items():  # not as srun starts processes
        monkeypatch.setenv(name, value)
    words = "training.accelerator, devices, num_nodes and precision"
    assert_refused(train(), words, "--ntasks-per-node=2")


def test_a_gpu_that_is_not_there_is_not_called_lightnings_fault(train: Train) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    refused = train(training__accelerator="gpu")
    assert_refused(refused, "training.accelerator=gpu, and torch finds no GPU")
    assert "Lightning cannot" not in refused.stderr


def memory_of(process: int | str) -> int:
    """Bytes of addresses it has."""
    return 1024 * int(re.search(r"VmSize:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1])


# In processes of their own: where memory has run short once, torch compiles no convolution any more.


def test_too_little_memory_for_a_batch_is_one_sentence(tiny_config: Path, tiny_dataset: Path, output: Path) -> None:
    overrides = [f"training.output={output}", "training.max_epochs=40", "training.workers=0"]
    process = Forked("train.py", "--config", str(tiny_config), *overrides)
    while process.poll() is None and not (output / "checkpoints/previous.ckpt").is_file():  # two epochs
        time.sleep(0.01)
    resource.prlimit(process.pid, resource.RLIMIT_AS, (memory_of(process.pid), resource.RLIM_INFINITY))
    stderr = process.communicate()[1]
    refused = subprocess.CompletedProcess(process.args, process.returncode, "", stderr)
    assert_refused(refused, "not enough memory for a batch; the last checkpoint is intact", "training.batch_size=")
    assert zipfile.is_zipfile(output / "checkpoints/last.ckpt")


def test_too_little_memory_for_a_model_is_one_sentence(tiny_config: Path, tiny_run: Path, tmp_path: Path) -> None:
    script, limited = ROOT / "Fine_tuning/evaluate.py", tmp_path / "limited.py"
    arguments = [str(script), "--config", str(tiny_config), f"evaluation.predictions={tmp_path / 'new'}"]
    limited.write_text(f"""
import resource, runpy, sys
sys.path[:0] = {[str(script.parent), str(ROOT / "tests"), str(Path(__file__).parent)]}
import finetuning.decoding.inference
from test_failures import memory_of
resource.setrlimit(resource.RLIMIT_AS, (memory_of("self") + 2**21, resource.RLIM_INFINITY))
sys.argv = {arguments}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
""")
    process = Forked(str(limited))
    refused = subprocess.CompletedProcess(process.args, process.wait(), *process.communicate())
    assert_refused(refused, "not enough memory: finished work is kept")


@pytest.mark.parametrize(("ends", "status"), [("exit 3", 2), ("kill -9 $$", 2), ("exit 0", 7)])
def test_when_a_process_ends_and_this_one_does_not_notice_all_end_in_words(
    tmp_path: Path, ends: str, status: int
) -> None:
    script = tmp_path / "watches.py"
    script.write_text(f"""
import subprocess, sys
from finetuning.training.peer_processes import monitor_peers
sleeper = subprocess.Popen(["sleep", "600" if {status} == 2 else "0.1"])
print(sleeper.pid, flush=True)
monitor_peers([sleeper, subprocess.Popen(["sh", "-c", {ends!r}])], grace_s=0.1)
sys.exit(7)
""")
    process = Forked(str(script))
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert ("trains together with this one has ended; the last checkpoint is intact" in err) == (status == 2)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{out.strip()}/exe").exists():  # the one that waits is ended too
        assert time.monotonic() < deadline
        time.sleep(0.01)


def readers() -> list[str]:
    """Processes of this one that read audio."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    with suppress(FileNotFoundError, ProcessLookupError):  # one has just ended
        return [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "pt_data_worker\n"]
    return []


@pytest.mark.parametrize(("name", "words"), [("KILL", "fewer training.workers="), ("BUS", "/dev/shm")])
def test_a_process_that_reads_audio_and_is_ended_by_the_system(
    output: Path, train: Train, model: "EncDecCTCModel", name: str, words: str
) -> None:
    last = output / "checkpoints" / "last.ckpt"

    def end_them() -> None:
        subprocess.run(["kill", f"-{name}", *readers()], capture_output=True)

    with meanwhile(lambda: last.exists() and readers(), end_them, again=True):
        assert_refused(train(training__workers=1, training__max_epochs=6), words, "the last checkpoint is intact")
    assert start_of(output, model).epochs


def test_the_end_of_a_process_that_reads_audio_is_noticed_at_the_next_batch_and_nowhere_else() -> None:
    """An error at any other moment may leave a lock of the queue to that process held, which would wait for ever."""
    from finetuning.training.data_loading import InterruptSafeDataLoader

    iterator = iter(InterruptSafeDataLoader(list(range(1_000)), num_workers=1, prefetch_factor=2))
    assert next(iterator).tolist() == [0]
    (reader,) = readers()
    os.kill(int(reader), signal.SIGKILL)
    os.waitid(os.P_PID, int(reader), os.WEXITED | os.WNOWAIT)  # a handler would be run after it
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(iterator)


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_to_all_processes_saves_after_the_step(
    output: Path, train: Train, model: "EncDecCTCModel", workers: int
) -> None:
    """A scheduler sends it to all processes, also to those that read; sent again where it comes between two epochs."""
    last = output / "checkpoints" / "last.ckpt"
    begun, delay_s = 0.0, 0.0

    def is_within_an_epoch() -> bool:
        began = last.stat().st_mtime if last.exists() else 0.0
        return began > begun and time.time() > began + delay_s and len(readers()) >= workers

    def terminate() -> None:
        subprocess.run(["kill", "-TERM", str(os.getpid()), *readers()], capture_output=True)

    for attempt in range(10):
        begun, delay_s = time.time(), 0.1 * (attempt + 1)
        with meanwhile(is_within_an_epoch, terminate):
            ended = train(training__workers=workers, training__max_epochs=60)
        assert ended.returncode == 143, ended.stderr[-2000:]
        assert ended.stderr.strip() == f"train.py: ended by SIGTERM: {GOES_ON}"
        start = start_of(output, model)
        assert start.steps == 6 * start.epochs + start.batches
        if start.batches:
            return
    pytest.fail("no step within an epoch was saved")


@pytest.mark.parametrize(("error", "is_reported"), [(ConnectionResetError, False), (EOFError, False), (KeyError, True)])
def test_what_a_thread_says_of_a_closed_connection_is_dropped(
    error: type[Exception], is_reported: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """multiprocessing's thread in a process that reads audio calls sys.excepthook when the training has ended."""
    from finetuning.training.failures import as_user_error

    with as_user_error(distributed=False):
        thread = threading.Thread(target=lambda: sys.excepthook(error, error("gone"), None))
        thread.start()
        thread.join()
    assert ("gone" in capsys.readouterr().err) == is_reported


def test_two_runs_into_one_folder_exclude_each_other_and_a_killed_one_does_not(output: Path, train: Train) -> None:
    from finetuning.files import exclusive_lock

    output.mkdir()
    with exclusive_lock(output):
        assert_refused(train(), "another run is writing to", str(output))
        reader = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
        reader.start()
    held = os.open(output, os.O_RDONLY)
    deadline = time.monotonic() + 10  # until the reader has begun to live
    while time.monotonic() < deadline:
        with suppress(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
    else:
        pytest.fail("the reader holds the lock")
    os.close(held)
    assert reader.is_alive()
    reader.kill()
    reader.join()


def test_ctrl_c_ends_all_processes_in_one_sentence_and_the_same_command_goes_on(
    tiny_config: Path, tiny_dataset: Path, output: Path, train: Train
) -> None:
    command = [
        "train.py",
        "--config",
        str(tiny_config),
        f"training.output={output}",
        "training.workers=2",
        "training.keep_best=0",
    ]
    process = Forked(*command, group=True)  # as of a shell: Ctrl-C reaches all of it
    while not (output / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    for _ in range(2):  # an impatient user
        with suppress(ProcessLookupError):  # all have ended at the first
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err[-2000:]
    assert "Traceback" not in out + err
    assert err.strip().endswith(f"train.py: interrupted: {GOES_ON}")
    done = train()
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Resuming from" in done.stdout
