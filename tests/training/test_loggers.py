"""What leaves a run for TensorBoard, Weights & Biases (offline) and MLflow (its own SQLite file)."""

import re
import sqlite3
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from conftest import shipped
from finetuning.errors import UserError
from finetuning.files import read_json, write_json

HOST_TAG = rb"j."  # of the host's name, after that of the run
METRICS = [{"val_wer": 0.75, "epoch": 0, "global_step": 9.0}, {"val_wer": 0.5, "epoch": 1, "global_step": 19.0}]


def needs(package: str) -> None:
    """Skip where the package is missing; requirements.lock has wandb, which NeMo brings along, and no mlflow."""
    try:
        version(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")


@pytest.mark.nemo
def test_two_sessions_are_one_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    from finetuning.training.loggers import start_tracking

    monkeypatch.setenv("WANDB_MODE", "offline")
    config = shipped("demo", "training.logger=wandb", "training.noise.folder=/home/me/noise")
    for step, metrics in enumerate(METRICS):
        time.sleep(1.1 * step)  # wandb names a session by the second
        tracking = start_tracking(config, tmp_path)
        tracking.log_metrics(metrics, step)
        tracking.finalize("success")
    sessions = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert {path.name.rpartition("-")[2] for path in sessions} == {read_json(tmp_path / "logger.json")["wandb"]}
    for folder, value in zip(sessions, (b"0.75", b"0.5"), strict=True):
        (path,) = folder.glob("*.wandb")  # written by a process of wandb's own
        deadline = time.monotonic() + 10
        while b"val_wer" not in (log := path.read_bytes()) and time.monotonic() < deadline:  # fields: tag, length, text
            time.sleep(0.1)
        assert b"val_wer\x82\x01" + bytes([len(value)]) + value in log and b'"max_epochs":14' in log
        assert not re.search(rb"/home|\x0bglobal_step|B\x04demo" + HOST_TAG, log)


@pytest.mark.nemo
def test_two_sessions_are_one_run_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mlflow")
    from finetuning.training.loggers import start_tracking

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for step, metrics in enumerate(METRICS):
        tracking = start_tracking(shipped("demo", "training.logger=mlflow"), tmp_path)
        tracking.log_metrics(metrics, step)
        tracking.finalize("success")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        logged = database.execute("select key, value, step from metrics order by step, key desc").fetchall()
        assert logged == [("val_wer", 0.75, 0), ("epoch", 0, 0), ("val_wer", 0.5, 1), ("epoch", 1, 1)]
        assert database.execute("select status, name from runs").fetchall() == [("FINISHED", "demo")]
        assert ("training/max_epochs",) in database.execute("select key from params").fetchall()


@pytest.mark.nemo
def test_a_service_that_is_lost_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("wandb")
    from finetuning.training.loggers import start_tracking

    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking = start_tracking(shipped("demo", "training.logger=wandb"), tmp_path)
    tracking.service.experiment.finish()  # as when its process was killed: it takes nothing more
    for step, metrics in enumerate(METRICS):
        tracking.log_metrics(metrics, step)
    tracking.finalize("success")
    assert capsys.readouterr().out.count("wandb takes no more metrics (") == 1


@pytest.mark.nemo
def test_a_service_that_does_not_start_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    from finetuning.training.loggers import start_tracking

    monkeypatch.setenv("WANDB_MODE", "offline")
    write_json(tmp_path / "logger.json", {"wandb": "no/id:of a run"})
    with pytest.raises(UserError, match=r"training.logger=wandb cannot start \(.*wandb login, or set WANDB_MODE") as no:
        start_tracking(shipped("demo", "training.logger=wandb"), tmp_path)
    assert "\n" not in str(no.value)
