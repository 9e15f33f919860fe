"""Step 2 on a real small model: the phases, the resume, what is exported, what is refused."""

import csv
import gzip
import json
import shutil
import threading
import time
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from conftest import ROOT, Script, assert_refused
from finetuning.model.vocabulary import Vocabulary
from forked import Forked
from small import as_published, config_changed, rewritten

pytestmark = pytest.mark.nemo
ENGLISH = ROOT / "models/demo/quartznet_small_en.nemo"


def read_rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights(checkpoint: Path) -> dict:
    import torch

    return torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"]


def differing(one: dict, other: dict) -> set[str]:
    import torch

    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def checkpoint_of(run: Path, epoch: int) -> Path:
    (path,) = (run / "checkpoints").glob(f"epoch={epoch:03d}-*.ckpt")
    return path


def test_while_frozen_only_the_batch_normalisation_of_the_encoder_adapts(tiny_run: Path):
    from finetuning.model.ctc_model import change_vocabulary, restore_model
    from finetuning.training.encoder_freezing import set_phase

    first, second, last = (weights(checkpoint_of(tiny_run, epoch)) for epoch in (0, 1, 2))
    convolutions = {name for name in first if name.startswith("encoder.") and ".conv.weight" in name}
    normalisation = {name for name in first if name.endswith("running_mean")}
    assert convolutions
    assert normalisation

    frozen = differing(first, second)  # epochs 0 and 1 are frozen, 2 is not
    assert not frozen & convolutions
    assert normalisation <= frozen
    assert {name for name in first if name.startswith("decoder.")} <= frozen
    assert convolutions <= differing(second, last)

    base = restore_model(ROOT / "models/demo/quartznet_small_en.nemo")
    start = base.state_dict()
    assert not {name for name in convolutions if not start[name].equal(first[name])}
    change_vocabulary(base, Vocabulary.of_characters(" 'abcdefghijklmnopqrstuvwxyzàèéìòù"))
    assert set_phase(base, 1, 2) == "frozen"
    assert not base.encoder.training
    assert base.decoder.training
    assert set_phase(base, 2, 2) == "unfrozen"
    assert base.encoder.training
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_the_run_leaves_a_model_that_stock_nemo_restores(tiny_run: Path):
    from nemo.collections.asr.models import EncDecCTCModel

    from finetuning.model.ctc_model import restore_model

    model = EncDecCTCModel.restore_from(str(tiny_run / "Model-IT-finetuned.nemo"), map_location="cpu")
    assert list(model.cfg.labels) == list(" abcdefghijklmnopqrstuvwxyz'àéèíìîóòúù") == list(model.decoder.vocabulary)
    assert model.cfg.get("train_ds") is None
    assert not differing(restore_model(tiny_run / "Model-IT-finetuned.nemo").state_dict(), model.state_dict())
    last = tiny_run / "checkpoints" / "last.ckpt"
    checkpoint = EncDecCTCModel.load_from_checkpoint(str(last), map_location="cpu")
    assert not differing(weights(last), checkpoint.state_dict())


def test_the_run_leaves_its_metrics_its_picture_and_its_record(tiny_run: Path):
    rows = read_rows(tiny_run)
    assert [(row["epoch"], row["phase"]) for row in rows] == [("1", "frozen"), ("2", "frozen"), ("3", "unfrozen")]
    assert all(float(row[name]) > 0 for row in rows for name in ("train_loss", "val_loss", "val_wer", "val_cer"))
    assert (tiny_run / "image.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert any((tiny_run / "tensorboard").glob("events.*"))
    record = json.loads((tiny_run / "run.json").read_text())
    assert record["epochs"] == 3
    assert record["versions"]["nemo_toolkit"] == "3.0.0"
    assert str(Path.home()) not in json.dumps(record["made_from"])


def test_validation_is_scored_as_step_3_scores(tiny_run: Path, tiny_dataset: Path):
    from finetuning.data.manifest import read_manifest
    from finetuning.decoding.inference import predict
    from finetuning.evaluation.scoring import score_predictions
    from finetuning.model.ctc_model import restore_model

    utterances = read_manifest(tiny_dataset / "validation_manifest.json")
    model = restore_model(tiny_run / "Model-IT-finetuned.nemo")
    model.load_state_dict(weights(tiny_run / "checkpoints" / "last.ckpt"))
    predictions = [prediction for _, prediction in predict(model, None, utterances, tiny_dataset, 4)]
    score = score_predictions(predictions)
    last = read_rows(tiny_run)[-1]
    in_bfloat16 = json.loads((tiny_run / "run.json").read_text())["sessions"][-1]["precision"] == "bf16-mixed"
    rate_tolerance = 0.01 if in_bfloat16 else 1e-4  # a processor with AMX validates in bfloat16 too
    assert float(last["val_loss"]) == pytest.approx(score.loss, rel=2e-3 if in_bfloat16 else 1e-4)
    assert float(last["val_wer"]) == pytest.approx(score.words.rate, abs=rate_tolerance)
    assert float(last["val_cer"]) == pytest.approx(score.characters.rate, abs=rate_tolerance)


def test_the_three_scripts_end_in_a_table(tiny_run: Path, tiny_config: Path, run_script: Script):
    evaluated = run_script("evaluate.py", "--config", str(tiny_config))
    assert evaluated.returncode == 0, evaluated.stderr[-2000:]
    table = evaluated.stdout.partition("| Model ")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:-1] for line in f"| Model {table}".splitlines() if line.startswith("| ")]
    names = [row[0].split()[0] for row in rows]
    assert names == ["Model", "quartznet_small_en", "Model-IT-finetuned"]
    for name, row in zip(names[1:], rows[1:], strict=True):
        result = json.loads((tiny_config.parent / "results" / f"{name}.json").read_text())
        assert [f"{result[key]:.4f}" for key in ("loss", "cer", "wer")] == [cell.split()[0] for cell in row[1:]]
    assert "The vocabulary lacks: à è é ì í î ò ó ù ú" in evaluated.stdout


def test_tensorboard_holds_the_validation_figures(tiny_run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tiny_run / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"train_loss", "learning_rate", "val_loss", "val_wer", "val_cer"}
    for name in ("val_loss", "val_wer", "val_cer"):
        written = [event.value for event in events.Scalars(name)]
        assert written == pytest.approx([float(row[name]) for row in read_rows(tiny_run)], abs=1e-4)


def test_a_tracking_service_without_its_package_is_named(
    tiny_config: Path, tiny_dataset: Path, tmp_path: Path, run_script: Script
):
    if find_spec("mlflow"):
        pytest.skip("mlflow is installed")
    refused = run_script(
        "train.py", "--config", str(tiny_config), "training.logger=mlflow", f"training.output={tmp_path}"
    )
    assert_refused(refused, "training.logger=mlflow needs the package mlflow; type: pip install mlflow")
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_left_alone_and_another_recipe_is_refused(
    tiny_run: Path, tiny_config: Path, run_script: Script
):
    before = (tiny_run / "Model-IT-finetuned.nemo").stat().st_mtime_ns
    again = run_script("train.py", "--config", str(tiny_config))
    assert again.returncode == 0, again.stderr[-2000:]
    assert "Already finished" in again.stdout
    other = run_script("train.py", "--config", str(tiny_config), "training.optimizer.lr=0.5")
    assert_refused(other, "training.optimizer.lr", "training.output=")
    assert (tiny_run / "Model-IT-finetuned.nemo").stat().st_mtime_ns == before


def progress(checkpoint: Path) -> tuple[int, int]:
    """Epoch, and its batches that are done."""
    import torch

    state = torch.load(checkpoint, map_location="cpu", weights_only=False)
    return state["epoch"], state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["completed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("minutes", "workers", "where"),
    [(30, 1, [(1, 6)]), (0, 0, [(2, 2), (2, 3), (2, 4)]), (0, 2, [(1, 1), (1, 2), (1, 3), (1, 4)])],
    ids=["at the switch", "unfrozen, within an epoch", "frozen, within an epoch, other readers"],
)
def test_killed_and_started_again_it_ends_with_the_same_weights(
    tiny_run: Path,
    tiny_config: Path,
    tmp_path: Path,
    run_script: Script,
    minutes: int,
    workers: int,
    where: list[tuple[int, int]],
):
    command = [
        "train.py", "--config", str(tiny_config), f"training.checkpoint_minutes={minutes}",
        f"training.workers={workers}", f"training.output={tmp_path / 'run'}",
    ]  # fmt: skip
    process = Forked(*command)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
        with suppress(FileNotFoundError):
            if progress(last) in where:
                break
    process.kill()
    process.wait()

    moved = (tmp_path / "run").rename(tmp_path / "moved")  # as to another disk
    resumed = run_script(*command[:-1], f"training.output={moved}")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "Resuming from" in resumed.stdout
    assert {path.name for path in (moved / "checkpoints").glob("[lp.]*")} == {"last.ckpt", "previous.ckpt"}
    assert not differing(weights(moved / "checkpoints" / "last.ckpt"), weights(tiny_run / "checkpoints" / "last.ckpt"))
    assert read_rows(moved) == read_rows(tiny_run)


def test_the_published_recipe_trains(tiny_config: Path, tiny_dataset: Path, tmp_path: Path, run_script: Script):
    recipe = ["training.optimizer.name=novograd", "training.optimizer.lr=5e-4", "training.optimizer.betas=[0.95,0.5]"]
    recipe += ["training.optimizer.weight_decay=1e-3", "training.schedule.min_lr=1e-5", "training.gradient_clip=null"]
    short = [
        "training.max_epochs=1",
        "training.frozen_epochs=0",
        "training.workers=0",
        f"training.output={tmp_path}/run",
    ]
    trained = run_script("train.py", "--config", str(tiny_config), *recipe, *short)
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert (tmp_path / "run" / "Model-IT-finetuned.nemo").is_file()


def test_a_wav_that_is_missing_is_named(tiny_dataset: Path, tiny_config: Path, tmp_path: Path, run_script: Script):
    manifest = tmp_path / "data"
    manifest.mkdir()
    for split in ("train", "validation"):
        lines = (tiny_dataset / f"{split}_manifest.json").read_text().replace("wavs/", f"{tiny_dataset}/wavs/")
        (manifest / f"{split}_manifest.json").write_text(lines.replace("wavs/common", "wavs/gone", 1))
    refused = run_script("train.py", "--config", str(tiny_config), f"dataset.output={manifest}")
    assert_refused(refused, "wavs/gone", "train_manifest.json", "run step 1 again")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset.output=datasets/none-such", ["train_manifest.json", "dataset_creation.py"]),
        ("text.alphabet=abcdefghijklmnopqrstuvwxyz ", ["text.alphabet"]),
        ("training.output=README.md/run", ["README.md/run"]),
        ("model.base=README.md", ["README.md", ".nemo"]),
        ("model.base=null", ["model.base"]),
        ("model.architecture=configs/models/none.yaml", ["configs/models/none.yaml", "model.architecture"]),
        ("training.name=comparisons", ["training.name=comparisons", "step 3"]),
        ("training.name=italian+LM", ["training.name=italian+LM", "step 3"]),
        (f"training.name={'è' * 91}", ["training.name", "at most 180 bytes"]),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tiny_config: Path, tmp_path: Path, run_script: Script, override: str, words: list[str]
):
    overrides = dict(part.split("=", 1) for part in (f"training.output={tmp_path / 'run'}", override))
    overrides |= {"model.base": "null"} if "model.architecture" in overrides else {}
    refused = run_script("train.py", "--config", str(tiny_config), *(f"{k}={v}" for k, v in overrides.items()))
    assert_refused(refused, *words)
    assert not (tmp_path / "run" / "Model-IT-finetuned.nemo").exists()


def test_the_base_and_folders_in_the_way_are_not_written_over(
    tiny_config: Path, tiny_dataset: Path, tmp_path: Path, run_script: Script
):
    base = Path(shutil.copy(ENGLISH, tmp_path / "mine.nemo"))
    command = ["--config", str(tiny_config), f"training.output={tmp_path}"]
    itself = run_script("train.py", *command, f"model.base={base}", "training.name=mine")
    assert_refused(itself, f"model.base is {base}", "training.name=")
    assert base.read_bytes() == ENGLISH.read_bytes()
    both = f"evaluation.models=[{base},{tmp_path}/other/mine.nemo]"
    alike = run_script("train.py", *command[:2], f"training.output={tmp_path}/other", "training.name=mine", both)
    assert_refused(alike, "training.name=mine: step 3")
    (tmp_path / "image.png").mkdir()
    assert_refused(run_script("train.py", *command), "image.png is a folder")


def test_a_base_of_the_published_shape_passes_all_steps(
    tiny_config: Path, tiny_dataset: Path, tmp_path: Path, run_in_process: Script, monkeypatch: pytest.MonkeyPatch
):
    """Gzipped, with its trainers' paths, and by name from a server."""
    served = tmp_path / "served"
    served.mkdir()
    plain = rewritten(ENGLISH, tmp_path / "plain.nemo", config_changed(as_published))
    (served / "published.nemo").write_bytes(gzip.compress(plain.read_bytes(), 1))
    monkeypatch.setenv("NO_PROXY", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        config = tmp_path / "published.yaml"
        config.write_text(
            f"""
extends: {tiny_config}
model:
  base: published
  folder: {tmp_path}/models
  registry: {{published: {{url: "http://127.0.0.1:{server.server_port}/published.nemo"}}}}
training: {{output: {tmp_path}/run, max_epochs: 1, frozen_epochs: 0, workers: 0}}
evaluation:
  models: [published, {tmp_path}/run/Model-IT-finetuned.nemo]
  predictions: {tmp_path}/predictions
  results: {tmp_path}/results
"""
        )
        wav = next((tiny_dataset / "wavs").iterdir())
        steps = {
            "train.py": [], "evaluate.py": [], "export.py": ["--license", "cc-by-4.0"],
            "transcribe.py": ["published", str(wav)],
        }  # fmt: skip
        for script, arguments in steps.items():
            done = run_in_process(script, *arguments, "--config", str(config))
            assert done.returncode == 0, done.stderr[-2000:]
            assert "runs in torch" not in done.stderr and "/asr_set" not in done.stderr + done.stdout
        server.shutdown()
    assert {row["model"] for row in map(result_of, (tmp_path / "results").glob("*d.json"))} == {
        "published",
        "Model-IT-finetuned",
    }
    assert b"/asr_set" not in (tmp_path / "run" / "export" / "Model-IT-finetuned.nemo").read_bytes()


class Files(SimpleHTTPRequestHandler):
    """Says nothing."""

    def log_message(self, *_: object) -> None:
        pass


def result_of(path: Path) -> dict:
    return json.loads(path.read_text())
