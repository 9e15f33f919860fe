"""Which weights are exported: a real model, transcribing what it wrote itself before its weights were disturbed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conftest import ROOT
from finetuning.data.manifest import read_manifest

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecCTCModel

pytestmark = pytest.mark.nemo
NOISE = 0.6  # of the decoder's weights: enough that no transcript stays


class Run:
    """A model at the end of three epochs, and the checkpoints of two of them."""

    def __init__(self, model: "EncDecCTCModel", folder: Path, wavs: Path) -> None:
        import lightning.pytorch as pl
        import torch

        from finetuning.decoding.inference import transcribe
        from finetuning.training.checkpoints import BestCheckpoints

        self.model, self.folder, self.wavs = model, folder, wavs
        utterances = read_manifest(wavs / "train_manifest.json")[:6]
        texts = transcribe(model, utterances, wavs)
        self.utterances = [replace(u, text=text) for u, text in zip(utterances, texts, strict=True)]
        self.good = {name: weight.clone() for name, weight in model.state_dict().items()}
        shape = self.good["decoder.decoder_layers.0.weight"].shape
        self.noise = NOISE * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.best = BestCheckpoints(folder, 2)
        trainer = pl.Trainer(
            max_epochs=3, callbacks=[self.best], logger=False, accelerator="cpu", enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        model.set_trainer(trainer)

    def disturbed(self, times: float) -> dict:
        name = "decoder.decoder_layers.0.weight"
        return self.good | {name: self.good[name] + times * self.noise}

    def keep(self, epoch: int, times: float) -> Path:
        """Keep a checkpoint, the best first."""
        import torch

        path = self.folder / f"epoch={epoch - 1:03d}.ckpt"
        torch.save({"epoch": epoch - 1, "state_dict": self.disturbed(times)}, path)
        self.best.best_k_models[str(path)] = torch.tensor(float(len(self.best.best_k_models)))
        return path

    def select(self) -> dict:
        from finetuning.training.model_selection import select_weights

        return select_weights(self.model, self.utterances, self.wavs)

    def differs_from(self, weights: dict) -> float:
        state = self.model.state_dict()
        return max(float((state[name] - weights[name]).abs().max()) for name in state)


@pytest.fixture
def run(tiny_dataset: Path, tmp_path: Path) -> Run:
    from finetuning.model.ctc_model import restore_model

    return Run(restore_model(ROOT / "models/demo/quartznet_small_en.nemo"), tmp_path, tiny_dataset)


def test_the_last_epoch_where_nothing_is_better(run: Run) -> None:
    run.keep(1, 1.0), run.keep(2, 1.0)
    selection = run.select()
    assert selection["exported"] == "last" and run.differs_from(run.good) == 0
    assert selection["candidates"]["last"] == {"epochs": [3], "val_wer": 0.0, "val_cer": 0.0}
    assert selection["candidates"]["best"]["epochs"] == [1] and selection["candidates"]["best"]["val_wer"] > 0.5
    assert selection["candidates"]["average"]["epochs"] == [1, 2]


def test_the_best_epoch_where_the_last_is_worse(run: Run) -> None:
    run.keep(2, 0.0), run.keep(1, 2.0)
    run.model.load_state_dict(run.disturbed(1.0))
    selection = run.select()
    assert selection["exported"] == "best" and run.differs_from(run.good) == 0
    assert selection["candidates"]["last"]["val_wer"] > 0.5 and selection["candidates"]["best"]["val_wer"] == 0


def test_the_average_where_it_is_better_than_each(run: Run) -> None:
    run.keep(2, 1.0), run.keep(1, -1.0)
    run.model.load_state_dict(run.disturbed(-1.0))
    selection = run.select()
    assert selection["exported"] == "average" and run.differs_from(run.good) < 1e-6
    rates = {name: candidate["val_wer"] for name, candidate in selection["candidates"].items()}
    assert rates["average"] == 0 and min(rates["last"], rates["best"]) > 0.5


def test_what_cannot_be_read_is_said_and_no_candidate(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = run.keep(1, 0.0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # of a weight: torch reads it as another number
    path.write_bytes(content)
    run.keep(2, 1.0)
    selection = run.select()
    assert capsys.readouterr().out.count("epoch=000.ckpt is missing or damaged") == 1
    assert selection["exported"] == "last" and list(selection["candidates"]) == ["last", "best"]


def test_a_run_records_what_it_chose_from_and_exports_that(tiny_run: Path) -> None:
    import torch

    from finetuning.model.ctc_model import restore_model

    record = json.loads((tiny_run / "run.json").read_text())
    assert {name: of["epochs"] for name, of in record["candidates"].items()}["average"] == [1, 2, 3]  # keep_best: -1
    epochs = record["candidates"][record["exported"]]["epochs"]
    paths = [next((tiny_run / "checkpoints").glob(f"epoch={epoch - 1:03d}-*.ckpt")) for epoch in epochs]
    states = [torch.load(path, weights_only=False)["state_dict"] for path in paths]
    exported = restore_model(tiny_run / "Model-IT-finetuned.nemo").state_dict()
    for name, weight in exported.items():
        mean = sum(state[name].double() for state in states) / len(states)
        assert torch.allclose(weight.double(), mean, atol=1e-6) or not weight.is_floating_point()


def test_writing_hardly_anything_is_not_better_than_many_wrong_words() -> None:
    from finetuning.training.model_selection import rank

    silent, talkative = {"val_wer": 1.0, "val_cer": 0.98}, {"val_wer": 1.03, "val_cer": 0.71}
    first, last = {"val_wer": 0.9875, "val_cer": 0.819}, {"val_wer": 1.0082, "val_cer": 0.6355}  # of epochs of one run
    assert rank(talkative) < rank(silent) and rank(last) < rank(first) and rank(last) < rank(talkative)
    assert rank({"val_wer": 0.89, "val_cer": 0.99}) < rank(last)
    assert rank({"val_wer": 0.5, "val_cer": 0.2}) < rank({"val_wer": 0.51, "val_cer": 0.1})
