"""What guards the folder of a training run, and what its record and its metrics hold when somebody has changed them."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings

from conftest import ROOT, Script, assert_refused
from finetuning.config.loading import load_config
from finetuning.data.manifest import Utterance, manifest_path, write_manifest
from finetuning.errors import UserError
from finetuning.files import changed_keys, read_json, sha256, write_json
from finetuning.metrics import history
from finetuning.metrics.history import COLUMNS, read_metrics, write_metrics
from finetuning.training import run_record
from mutations import mutated

BASE = ROOT / "models" / "demo" / "quartznet_small_en.nemo"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run as step 2 leaves it, but for what no test reads."""
    output, data = tmp_path / "run", tmp_path / "data"
    (output / "checkpoints").mkdir(parents=True)
    data.mkdir()
    for split in ("train", "validation"):
        (data / f"{split}.wav").touch()
        write_manifest(manifest_path(data, split), [Utterance(f"{split}.wav", 1.0, "sì")])
    config = load_config("configs/demo.yaml", options(output)[2:])
    record = run_record.start_run(output, config, BASE)
    run_record.add_session(output, record, device="CPU")
    (output / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    (output / "Model-IT-finetuned.nemo").write_bytes(b"a model")
    run_record.finish_run(output, record, model=sha256(output / "Model-IT-finetuned.nemo"), epochs=2, warnings=[])
    return output


def options(output: Path, *more: str) -> list[str]:
    folders = [f"dataset.output={output.parent}/data", f"training.output={output}"]
    models = f"evaluation.models=[{output}/Model-IT-finetuned.nemo]"
    return ["--config", "configs/demo.yaml", *folders, models, *more]


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


ELSE = ["type training.output=… for another run, or delete the whole folder"]
DAMAGED = ["run.json is damaged", "restore it from a copy, type training.output=… for another run, or delete the whole"]


@pytest.mark.parametrize(
    ("changed", "typed", "words"),
    [
        ({"run.json": None}, [], ["run holds checkpoints/last.ckpt and no run.json", *ELSE]),
        ({"run.json": None, "checkpoints/last.ckpt": None}, [], ["holds Model-IT-finetuned.nemo and no run", *ELSE]),
        ({"run.json": None, "Model-IT-finetuned.nemo": None}, [], ["holds checkpoints/last.ckpt and no", *ELSE]),
        ({"run.json": "hello"}, [], DAMAGED),
        ({"run.json": "{}"}, [], DAMAGED),
        ({"run.json": "[" * 3000}, [], DAMAGED),
        ({"run.json": '{"made_from": [], "config": {}, "commit": "", "versions": {}}'}, [], DAMAGED),
        ({}, ["training.seed=7"], ["made from something else (different: training.seed)"]),
        ({"checkpoints/last.ckpt": None}, ["training.seed=7"], ["made from something else (different: training.seed)"]),
        (
            {"Model-IT-finetuned.nemo": "b model"},
            [],
            ["is not the model that run.json", "delete it", "(it is exported again from the last checkpoint)"],
        ),
        (
            {"Model-IT-finetuned.nemo": "cut", "checkpoints/last.ckpt": None},
            [],
            ["is not the model that run.json", "(training starts over)"],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_run_is_gone_on_with_only_where_its_record_says_what_it_is(
    run: Path, run_in_process: Script, changed: dict[str, str | None], typed: list[str], words: list[str]
) -> None:
    for name, text in changed.items():
        (run / name).unlink() if text is None else (run / name).write_text(text)
    before = content(run)
    assert_refused(run_in_process("train.py", *options(run, *typed)), *words)
    assert content(run) == before


def test_a_finished_model_stays_when_its_checkpoints_are_deleted(run: Path, run_in_process: Script) -> None:
    shutil.rmtree(run / "checkpoints")
    before = content(run)
    again = run_in_process("train.py", *options(run))
    assert again.returncode == 0 and "Already finished" in again.stdout
    assert content(run) == before


def test_a_model_that_an_unfinished_record_does_not_speak_of_is_kept(run: Path, run_in_process: Script) -> None:
    """As when the record of another run was copied there."""
    write_json(run / "run.json", {k: v for k, v in read_json(run / "run.json").items() if k != "model"})
    (run / "checkpoints" / "last.ckpt").unlink()
    refused = run_in_process("train.py", *options(run))
    assert_refused(refused, "holds Model-IT-finetuned.nemo and a run.json that does not mention it", *ELSE)


def test_where_nothing_is_learnt_yet_a_record_is_made_anew(run: Path) -> None:
    (run / "checkpoints" / "last.ckpt").rename(run / "checkpoints" / ".123-last.ckpt")  # of a run that was killed
    (run / "Model-IT-finetuned.nemo").unlink()
    (run / "run.json").write_text("hello")
    (run / "logger.json").write_text("{}")
    config = load_config("configs/demo.yaml", options(run)[2:])
    assert run_record.start_run(run, config, BASE, is_main_process=False)["experiment"] == "demo"
    assert (run / "run.json").read_text() == "hello", "one process of several writes"
    assert (run / "logger.json").exists()
    run_record.start_run(run, config, BASE)
    assert read_json(run / "run.json")["experiment"] == "demo"
    assert not (run / "logger.json").exists(), "another run of the tracking service"


@pytest.mark.slow
def test_a_damaged_record_is_one_sentence(run: Path) -> None:
    path, whole = run / "run.json", (run / "run.json").read_bytes()
    config = load_config("configs/demo.yaml", options(run)[2:])

    @given(mutated(whole))
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    def read(changed: bytes) -> None:
        path.write_bytes(changed)
        try:
            record = run_record.read_record(run)
            run_record.is_finished(run, config, record)
            assert isinstance(changed_keys(record["made_from"], {"base": "x"}), list)
            assert isinstance([*record["versions"].items(), *record.get("sessions", [])], list)
        except UserError as error:
            assert "\n" not in str(error) and re.search("training.output=|delete it and rerun", str(error))

    read()
    path.write_bytes(b"null")
    with pytest.raises(UserError, match=r"run.json is damaged \(it is not the record of a run"):
        run_record.read_record(run)


ROWS = pd.DataFrame([(n, "unfrozen", 20.5 / n, 10.25 / n, 0.5, 0.25, 1e-4) for n in range(1, 5)], columns=COLUMNS)


@pytest.mark.slow
def test_a_damaged_table_of_metrics_is_one_sentence_or_a_table_of_numbers(tmp_path: Path) -> None:
    write_metrics(path := tmp_path / "metrics.csv", ROWS)
    pd.testing.assert_frame_equal(read_metrics(path), ROWS)
    whole = path.read_bytes()

    @given(mutated(whole))
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    def read(changed: bytes) -> None:
        path.write_bytes(changed)
        try:
            table = read_metrics(path)
        except UserError as error:
            assert "\n" not in str(error) and "delete it, training continues without it" in str(error)
            return
        figures = table.drop(columns="phase").to_numpy(dtype=float)
        assert not np.isinf(figures).any() and not np.isnan(table["epoch"].to_numpy(dtype=float)).any()
        history.append_row(table, {**dict.fromkeys(COLUMNS, 0.5), "epoch": 3})
        assert history.last_validation_metrics(table).keys() == {"val_loss", "val_wer", "val_cer"}

    read()


def test_epochs_whose_metrics_are_lost_are_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert history.missing_epochs(path, 0) == ""
    assert "has no row of 4 of the 4 epochs that are done (the first is 1)" in history.missing_epochs(path, 4)
    assert history.last_validation_metrics(read_metrics(path)) == {"val_loss": None, "val_wer": None, "val_cer": None}
    write_metrics(path, ROWS)
    assert history.missing_epochs(path, 4) == ""
    write_metrics(path, ROWS[2:])
    assert "has no row of 2 of the 4 epochs" in history.missing_epochs(path, 4)
    assert history.last_validation_metrics(read_metrics(path))["val_loss"] == 10.25 / 4
