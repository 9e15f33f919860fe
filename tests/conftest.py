import os
import runpy
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from finetuning.config.loading import load_config
from finetuning.config.schema import Config
from forked import Forked

ROOT = Path(__file__).resolve().parents[1]
collect_ignore_glob = []  # tests of what has no package for this Python, see requirements.txt
if sys.version_info >= (3, 13):
    of_flashlight = ("beam_search", "boosting", "evaluate_lm", "weight_search")
    collect_ignore_glob += ["*/language_model/*", *(f"*test_{name}.py" for name in of_flashlight)]
if sys.version_info < (3, 11, 4):
    collect_ignore_glob += ["*test_mozilla_data_collective.py"]
if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each process of tests, and for what it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")
Script = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what runs a whole script or a browser or tries many inputs; begin with what takes longest."""
    longest = ("training", "transcription", "evaluation")
    items.sort(key=lambda item: longest.index(item.path.parent.name) if item.path.parent.name in longest else 3)
    for item in items:
        runs_script = not {"run_script", "run_in_process", "browser"}.isdisjoint(getattr(item, "fixturenames", ()))
        if runs_script or getattr(item.obj, "is_hypothesis_test", False):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def run_script() -> Script:
    """Run one of the three scripts as a user does: run_script("train.py", "--config", …, "training.max_epochs=2")."""

    def run(name: str, *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: int = 600):
        if all(key == "OMP_NUM_THREADS" or key.startswith("SLURM_") for key in env or {}):
            process = Forked(name, *arguments, cwd=cwd, env=env)
            output = process.communicate(timeout)
            return subprocess.CompletedProcess(process.args, process.returncode, *output)
        command = [sys.executable, str(ROOT / "Fine_tuning" / name), *arguments]
        return subprocess.run(  # a library may read what is set while it is imported
            command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=timeout
        )

    return run


@pytest.fixture
def run_in_process(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Script:
    """As run_script, in this process, where NeMo is loaded once for all."""

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "Fine_tuning" / name), *arguments])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        status = 0
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # also when the tests run in the background
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return subprocess.CompletedProcess(sys.argv, status, *capfd.readouterr())

    return run


@cache
def shipped(name: str, *overrides: str) -> Config:
    """Return a configuration of configs/, read once for all tests of a process: they do not change it."""
    return load_config(f"configs/{name}.yaml", list(overrides))


# a script, named after it, in two processes that torchrun starts
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def start_by_slurm(name: str, *arguments: str) -> list[Forked]:
    """Start a script in two processes, each with one thread and with what srun tells it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"JOB_ID": "7", "JOB_NAME": "italian", "NTASKS": "2", "NTASKS_PER_NODE": "2", "NNODES": "1", "NODEID": "0"}
    job |= {"NODELIST": "127.0.0.1", "JOB_NODELIST": "127.0.0.1", "STEP_NUM_TASKS": "2"}
    each = ({f"SLURM_{key}": value for key, value in {**job, "PROCID": rank, "LOCALID": rank}.items()} for rank in "01")
    common = {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(port)}
    return [Forked(name, *arguments, env={**common, **environment}) for environment in each]


@pytest.fixture(scope="session")
def sample_archive() -> Path:
    """The shipped Italian release: 440 good clips and 6 rows with a defect."""
    return ROOT / "datasets" / "sample" / "cv-corpus-sample-it.tar.gz"


def assert_refused(process: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit status 2 and one sentence that holds all the words; no traceback."""
    assert process.returncode == 2, process.stderr[-2000:]
    assert "Traceback" not in process.stderr, process.stderr[-2000:]
    for word in words:
        assert word in process.stderr, f"{word!r} is not in {process.stderr[-2000:]!r}"


@pytest.fixture(scope="session")
def tiny_release(sample_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of the sample's first 40 rows, as an extracted language folder."""
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(sample_archive) as archive:
        archive.extractall(folder)
    (language,) = folder.glob("*/it")
    for table in ("validated.tsv", "train.tsv", "dev.tsv", "test.tsv"):
        path = language / table
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:41]), encoding="utf-8")
    return language


@pytest.fixture(scope="session")
def tiny_config(tiny_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's experiment on 40 clips: three epochs, two of them frozen, in a temporary folder."""
    folder = tmp_path_factory.mktemp("experiment")
    path = folder / "tiny.yaml"
    path.write_text(
        f"""
extends: configs/demo.yaml
name: tiny
dataset: {{source: {tiny_release}, output: {folder}/data, workers: 2}}
training:
  {{output: {folder}/run, max_epochs: 3, frozen_epochs: 2, keep_best: -1, workers: 1, batch_size: 5,
    batch_duration_s: null, speed_perturbation: 0.07, dropout: null,
    spec_augment: {{freq_masks: 2, freq_width: 12, time_masks: 2, time_width: 25}}, optimizer: {{lr: 3.0e-3}}}}
evaluation:
  models: [models/demo/quartznet_small_en.nemo, {folder}/run/Model-IT-finetuned.nemo]
  decoder: greedy
  predictions: {folder}/predictions
  results: {folder}/results
"""
    )
    return path


@pytest.fixture(scope="session")
def tiny_dataset(tiny_config: Path, run_script: Script) -> Path:
    """Manifests and wavs, made by step 1."""
    made = run_script("dataset_creation.py", "--config", str(tiny_config))
    assert made.returncode == 0, made.stderr[-2000:]
    return tiny_config.parent / "data"


@pytest.fixture(scope="session")
def tiny_run(tiny_config: Path, tiny_dataset: Path, run_script: Script) -> Path:
    """A finished training run, made by step 2."""
    trained = run_script("train.py", "--config", str(tiny_config))
    assert trained.returncode == 0, trained.stderr[-2000:]
    return tiny_config.parent / "run"
