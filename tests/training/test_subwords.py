"""Sub-word vocabularies and Conformers through all scripts, from small models saved by stock NeMo."""

import csv
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from test_train import progress

from conftest import ROOT, Script, assert_refused
from families import stock_model
from finetuning.data.manifest import read_manifest
from finetuning.errors import UserError
from forked import Forked

pytestmark = [pytest.mark.nemo, pytest.mark.slow]


@pytest.fixture(scope="module")
def bases(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The file of a model of a family whose tokenizer covers the training texts."""
    from finetuning.training.tokenizer import train_tokenizer

    texts = [
        u.text for split in ("train", "validation") for u in read_manifest(tiny_dataset / f"{split}_manifest.json")
    ]
    folder, sentencepiece = tmp_path_factory.mktemp("bases"), train_tokenizer(texts, 64)

    def base(family: str) -> Path:
        if not (folder / f"{family}.nemo").is_file():
            stock_model(family, folder, sentencepiece)
        return folder / f"{family}.nemo"

    return base


def weights(checkpoint: Path) -> dict[str, Any]:
    import torch

    return torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"]


def arguments(config: Path, output: Path, *overrides: str) -> list[str]:
    usual = ("training.max_epochs=2", "training.frozen_epochs=1", "training.workers=0", "training.keep_best=0")
    return ["--config", str(config), f"training.output={output}", *usual, *overrides]


@pytest.mark.parametrize(
    ("family", "vocabulary", "size"),
    [("fastconformer", "subwords", 48), ("hybrid", "base", 64), ("citrinet", "characters", 38)],
)
def test_any_family_is_trained_resumed_and_evaluated(
    bases: Any, tiny_config: Path, tiny_dataset: Path, tmp_path: Path, run_in_process: Script, family: str,
    vocabulary: str, size: int,
) -> None:  # fmt: skip
    import torch

    from finetuning.model.ctc_model import get_vocabulary, restore_model

    overrides = [f"model.base={bases(family)}", f"model.vocabulary={vocabulary}", "model.vocabulary_size=48"]
    overrides += ["dataset.encoder_frames_per_second=12.5", "training.checkpoint_minutes=600"]
    trained = run_in_process("train.py", *arguments(tiny_config, tmp_path / "run", *overrides))
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert f"{size} " in trained.stdout and "epoch   2 unfrozen" in trained.stdout
    model = restore_model(tmp_path / "run" / "Model-IT-finetuned.nemo")
    assert len(get_vocabulary(model)) == size

    again = tmp_path / "again"  # cut off after the first epoch
    shutil.copytree(tmp_path / "run", again)
    (again / "Model-IT-finetuned.nemo").unlink()
    (again / "checkpoints" / "previous.ckpt").replace(again / "checkpoints" / "last.ckpt")
    record = json.loads((again / "run.json").read_text())
    del record["model"]
    (again / "run.json").write_text(json.dumps(record))
    resumed = run_in_process("train.py", *arguments(tiny_config, again, *overrides))
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "Resuming from" in resumed.stdout
    one, other = (weights(run / "checkpoints" / "last.ckpt") for run in (tmp_path / "run", again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    if vocabulary == "subwords":  # another tokenizer of as many pieces
        (again / "Model-IT-finetuned.nemo").unlink()
        (again / "run.json").write_text(json.dumps(record | {"tokenizer": record["tokenizer"][::-1]}))
        replaced = run_in_process("train.py", *arguments(tiny_config, again, *overrides))
        assert_refused(replaced, f"the tokenizer in {again} is not the one this run was started with")

    language_model = run_in_process(
        "train_language_model.py", "--config", str(tiny_config), f"language_model.output={tmp_path / 'lm'}"
    )
    assert language_model.returncode == 0, language_model.stderr[-2000:]
    models = f"evaluation.models=[{tmp_path}/run/Model-IT-finetuned.nemo,{bases(family)}]"
    evaluated = run_in_process(
        "evaluate.py", *arguments(tiny_config, tmp_path / "run", *overrides), models, "evaluation.decoder=lm",
        f"language_model.output={tmp_path / 'lm'}", f"evaluation.predictions={tmp_path}/p",
        f"evaluation.results={tmp_path}/r",
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr[-2000:]
    assert {path.stem for path in (tmp_path / "r").glob("*.json")} == {
        "comparisons", "Model-IT-finetuned", "Model-IT-finetuned+LM", family, f"{family}+LM",
    }  # fmt: skip
    assert (tmp_path / "report.html").is_file()
    exported = run_in_process(
        "export.py", "--license", "mit", *arguments(tiny_config, tmp_path / "run", *overrides), models,
        f"evaluation.results={tmp_path}/r",
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr[-2000:]
    card = (tmp_path / "run" / "export" / "README.md").read_text(encoding="utf-8")
    assert "`a`" in card and "`è`" in card and "▁" not in card
    (wav, *_) = sorted((tiny_dataset / "wavs").glob("*.wav"))
    for decoder in ([], ["--language-model", str(tmp_path / "p" / "Model-IT-finetuned+LM" / "decoder.json")]):
        written = run_in_process(
            "transcribe.py", str(tmp_path / "run" / "Model-IT-finetuned.nemo"), str(wav), "--format", "jsonl", *decoder
        )
        assert written.returncode == 0, written.stderr[-2000:]
        assert json.loads(written.stdout.splitlines()[0])


def test_accumulated_batches_and_a_number_of_steps(
    bases: Any, tiny_config: Path, tiny_dataset: Path, tmp_path: Path, run_in_process: Script
) -> None:
    """6 batches an epoch, 3 steps of 2: the second epoch reaches 4 steps."""
    import torch

    run = arguments(
        tiny_config, tmp_path / "run", "training.max_epochs=5", "training.accumulate_batches=2", "training.max_steps=4"
    )
    trained = run_in_process("train.py", *run)
    assert trained.returncode == 0, trained.stderr[-2000:]
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=False)
    assert (state["global_step"], state["epoch"]) == (6, 1)
    with (tmp_path / "run" / "metrics.csv").open() as table:
        losses = [(float(row["train_loss"]), float(row["val_loss"])) for row in csv.DictReader(table)]
    assert all(0.8 < train / validation < 1.6 for train, validation in losses), "per utterance, not divided"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["epochs"] == 2

    again = ["train.py", *run, "training.checkpoint_minutes=0", f"training.output={tmp_path / 'again'}"]
    process, last = Forked(*again), tmp_path / "again" / "checkpoints" / "last.ckpt"
    while not (last.is_file() and progress(last)[1] in (2, 3, 4, 5)):
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert progress(last)[1] % 2 == 0, "between two steps"
    resumed = run_in_process(*again)
    assert resumed.returncode == 0 and "Resuming from" in resumed.stdout, resumed.stderr[-2000:]
    one, other = (weights(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("run", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_refusals(bases: Any, tiny_config: Path, tiny_dataset: Path, tmp_path: Path, run_in_process: Script) -> None:
    def refused(*overrides: str, words: tuple[str, ...]) -> None:
        process = run_in_process("train.py", *arguments(tiny_config, tmp_path / "none", *overrides))
        assert_refused(process, *words)

    refused("model.vocabulary=base", words=("model.vocabulary=base cannot spell", "à", "model.vocabulary=subwords"))
    refused("model.vocabulary=subwords", "model.vocabulary_size=10", words=("model.vocabulary_size=10", "letters"))
    refused("model.vocabulary=words", words=("model.vocabulary", "subwords"))
    refused(f"model.base={bases('fastconformer')}", words=("12.5 frames a second", "encoder_frames_per_second"))
    scratch = ("model.base=null", "model.architecture=configs/models/quartznet_small.yaml", "model.vocabulary=base")
    refused(*scratch, words=("there is no model.base",))


def test_the_same_texts_give_the_same_tokenizer_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    from finetuning.training.tokenizer import _stored_tokenizer, train_tokenizer

    texts = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert train_tokenizer(texts, 200) == train_tokenizer(texts, 200)
    kept = _stored_tokenizer(texts, 200, tmp_path)
    assert _stored_tokenizer([], 200, tmp_path) == kept, "it is made once"
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"tokenizer\.model is damaged"):
        _stored_tokenizer(texts, 200, tmp_path)
