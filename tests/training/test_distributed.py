"""Two processes that train together on the CPU."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from conftest import ROOT, Script, assert_refused, start_by_slurm
from forked import Forked

pytestmark = [pytest.mark.nemo, pytest.mark.slow]

TOGETHER = ("training.devices=2", "training.accelerator=cpu", "training.workers=0", "training.batch_size=3")
ONE = {"OMP_NUM_THREADS": "1"}
# what each process ends with, beside what train.py writes
EACH_RANK = """
import os, sys
import torch
sys.path.insert(0, {folder!r})
from pathlib import Path
from finetuning.config import loading, schema
from finetuning.training import fine_tuning
arguments = sys.argv[1:]
experiment = loading.load_config(arguments[0], arguments[1:])
model = fine_tuning.load_starting_model(experiment, schema.resolve_path(experiment.model.base))
fine_tuning.fit(model, experiment, Path(experiment.training.output))
torch.save(model.state_dict(), f"{{experiment.training.output}}/rank {{os.environ['SLURM_PROCID']}}.pt")
"""


def test_two_processes_end_alike_and_learn_what_one_learns_with_batches_of_twice_the_size(
    tiny_config: Path, tiny_dataset: Path, tmp_path: Path, run_script: Script
):
    import torch

    script, two, one = tmp_path / "each_rank.py", tmp_path / "two", tmp_path / "one"
    script.write_text(EACH_RANK.format(folder=str(ROOT / "Fine_tuning")))
    command = [str(script), str(tiny_config), *TOGETHER, f"training.output={two}"]
    processes = start_by_slurm(*command)
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [output.count("epoch   3") for output, _ in outputs] == [1, 0]  # only rank 0 prints
    first, second = (torch.load(two / f"rank {rank}.pt") for rank in (0, 1))
    parameters = [name for name in first if "running_" not in name and "num_batches" not in name]
    assert len(parameters) > 50
    assert not [name for name in parameters if not torch.equal(first[name], second[name])]
    state = torch.load(two / "checkpoints" / "last.ckpt", weights_only=False)
    assert state["global_step"] == 3 * (10 // 2)  # 28 utterances in 10 batches of 3, 3 epochs

    overrides = ("training.batch_size=6", f"training.output={one}")
    trained = run_script("train.py", "--config", str(tiny_config), *overrides, env=ONE)
    assert trained.returncode == 0, trained.stderr[-2000:]
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (one, two)]
    assert [len(lines) for lines in rows] == [4, 4]
    losses = [float(lines[-1].split(",")[3]) for lines in rows]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_when_one_process_is_killed_the_others_end_and_the_run_goes_on_later(
    tiny_config: Path, tiny_dataset: Path, tmp_path: Path
):
    arguments = ["--config", str(tiny_config), *TOGETHER, f"training.output={tmp_path / 'run'}"]
    process = Forked("train.py", *arguments, env=ONE)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    while not last.is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (child,) = (int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(child, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert_refused(
        subprocess.CompletedProcess([], process.returncode, out, err),
        "trains together",
        "rerun the same command to resume",
    )
    resumed = start_by_slurm("train.py", *arguments)
    outputs = [process.communicate(timeout=300) for process in resumed]
    assert [process.returncode for process in resumed] == [0, 0], outputs
    assert [output.count("Resuming from") for output, _ in outputs] == [1, 0]
    assert (tmp_path / "run" / "Model-IT-finetuned.nemo").is_file()


def test_a_job_of_slurm_is_stopped_at_its_time_limit_and_goes_on(tiny_config: Path, tiny_dataset: Path, tmp_path: Path):
    overrides = (*TOGETHER, f"training.output={tmp_path}")
    command = ["train.py", "--config", str(tiny_config), *overrides]
    processes = start_by_slurm(*command)
    while not (tmp_path / "checkpoints" / "last.ckpt").is_file():
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        time.sleep(0.05)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    processes = start_by_slurm(*command)
    first, second = (process.communicate(timeout=300) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], (first, second)
    assert first[0].count("Resuming from") == 1 and "Resuming from" not in second[0]
    assert (tmp_path / "Model-IT-finetuned.nemo").is_file()


def test_fewer_batches_than_processes_are_told_in_words(
    tiny_config: Path, tiny_dataset: Path, tmp_path: Path, run_script: Script
):
    command = ["train.py", "--config", str(tiny_config), *TOGETHER, f"training.output={tmp_path}"]
    assert_refused(run_script(*command, "training.batch_size=100", env=ONE), "fewer batches than processes")


def test_another_number_of_processes_than_the_job_has_is_told_in_words(
    tiny_config: Path, tiny_dataset: Path, tmp_path: Path, run_script: Script
):
    job = {"SLURM_JOB_NAME": "italian", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "0"}
    command = ["train.py", "--config", str(tiny_config), *TOGETHER, f"training.output={tmp_path}"]
    refused = run_script(*command, env={**ONE, **job, "SLURM_LOCALID": "0", "SLURM_NODEID": "0"})
    assert_refused(refused, "--ntasks-per-node equal to training.devices", "start with srun")


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({}, 0),
        ({"RANK": "5", "LOCAL_RANK": "1", "SLURM_PROCID": "2"}, 5),
        ({"SLURM_PROCID": "3"}, 3),
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "0"}, 1),
        ({"LOCAL_RANK": "1", "NODE_RANK": "2"}, 9),
    ],
    ids=["alone", "torchrun", "srun", "Lightning in a job", "Lightning on several machines"],
)
def test_the_number_of_a_process(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], number: int):
    from finetuning.training.run_record import process_rank

    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert process_rank(devices=4) == number
