"""Fine-tuning in two phases with Lightning: first the encoder's convolutions are frozen, then everything learns."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import OmegaConf, open_dict
from torch import nn

from finetuning import config as experiment
from finetuning.decoding import greedy
from finetuning.errors import UserError
from finetuning.manifest import manifest_path
from finetuning.metrics import read_metrics, with_row, write_metrics
from finetuning.model import build, labels, restore, set_alphabet
from finetuning.scoring import character_error_rate, word_errors


def set_phase(model: EncDecCTCModel, epoch: int, frozen_epochs: int) -> str:
    """Freeze or unfreeze the encoder as `epoch` (counted from 0) asks for; returns "frozen" or "unfrozen".

    Frozen: the convolutions neither learn nor drop out; the batch normalisation adapts its statistics and its scale
    and shift, as in the published experiment. The state depends on the epoch alone, so a run resumed anywhere is in the
    right one.
    """
    frozen = epoch < frozen_epochs
    model.train()
    model.encoder.train(not frozen)
    model.encoder.requires_grad_(not frozen)
    for module in model.encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.train()
            module.requires_grad_(True)
    return "frozen" if frozen else "unfrozen"


class Phases(pl.Callback):
    """Sets the phase and the random state at the start of every epoch, both as functions of the epoch."""

    def __init__(self, frozen_epochs: int, seed: int) -> None:
        """`frozen_epochs` in epochs from the first; `seed` of the run."""
        self.frozen_epochs, self.seed = frozen_epochs, seed

    def on_train_epoch_start(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """For the order and the perturbation of the utterances."""
        pl.seed_everything(self.seed + trainer.current_epoch, verbose=False)
        set_phase(model, trainer.current_epoch, self.frozen_epochs)

    def on_train_batch_start(self, trainer: pl.Trainer, model: EncDecCTCModel, batch: Any, batch_idx: int) -> None:
        """For dropout and SpecAugment, whatever starting the reading processes has drawn from the random state."""
        if batch_idx == 0:
            pl.seed_everything(self.seed + trainer.current_epoch, verbose=False)


class Metrics(pl.Callback):
    """Writes a row of `metrics.csv` and a line on the screen for each epoch; logs the character error rate."""

    def __init__(self, path: Path, frozen_epochs: int) -> None:
        """`path` of the table; rows of earlier epochs that stand there are kept when a run is resumed."""
        self.path, self.frozen_epochs = path, frozen_epochs
        self.table = read_metrics(path)
        self.captured: dict[str, torch.Tensor] = {}

    def setup(self, trainer: pl.Trainer, model: EncDecCTCModel, stage: str) -> None:
        """Keep what the encoder and the decoder gave for the last batch: NeMo's validation step does not return it."""
        if not self.captured:
            model.encoder.register_forward_hook(lambda _, __, out: self.captured.update(lengths=out[1].detach()))
            model.decoder.register_forward_hook(lambda _, __, out: self.captured.update(log_probs=out.detach()))

    def on_train_epoch_start(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Start the sums of the epoch."""
        self.loss_sum, self.utterances = 0.0, 0

    def on_train_batch_end(self, trainer: pl.Trainer, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add up the training loss, weighted by utterances."""
        size = len(batch[1])
        self.loss_sum += outputs["loss"].item() * size
        self.utterances += size

    def on_validation_epoch_start(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Forget the validation before."""
        self.sizes: list[int] = []
        self.references: list[str] = []
        self.hypotheses: list[str] = []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, model: EncDecCTCModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decode what the hooks kept. References hold no letter outside the alphabet: step 1 rejects such sentences."""
        _, _, tokens, token_lengths = batch
        letters = labels(model)
        self.sizes.append(len(tokens))
        for text, length in zip(tokens.tolist(), token_lengths.tolist(), strict=True):
            self.references.append("".join(letters[token] for token in text[:length]))
        log_probs = self.captured["log_probs"].float().cpu().numpy()  # (B, T, V)
        for frames, length in zip(log_probs, self.captured["lengths"].tolist(), strict=True):
            self.hypotheses.append(greedy(frames[:length], letters))

    def on_validation_epoch_end(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Log val_cer, and put what step 3 would find in the place of NeMo's val_loss and val_wer.

        NeMo's loss is a mean over batches, not over utterances, and its decoder drops spaces before apostrophes.
        """
        mean_size = sum(self.sizes) / len(self.sizes)
        for output, size in zip(model.validation_step_outputs, self.sizes, strict=True):
            output["val_loss"] = output["val_loss"] * (size / mean_size)
            output["val_wer_num"], output["val_wer_denom"] = torch.tensor(0.0), torch.tensor(0.0)
        words = word_errors(self.references, self.hypotheses)
        output["val_wer_num"] = torch.tensor(words.rate * words.reference)
        output["val_wer_denom"] = torch.tensor(float(words.reference))
        model.log("val_cer", character_error_rate(self.references, self.hypotheses))

    def on_train_epoch_end(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Write the row and say the line."""
        train_loss = self.loss_sum / max(1, self.utterances)
        if not math.isfinite(train_loss):
            raise UserError(
                f"the training loss is {train_loss} in epoch {trainer.current_epoch + 1}; the checkpoint of the epoch "
                "before is intact; lower training.optimizer.lr or set training.gradient_clip, in a new training.output"
            )
        row = {
            "epoch": trainer.current_epoch + 1,
            "phase": "frozen" if trainer.current_epoch < self.frozen_epochs else "unfrozen",
            "train_loss": round(train_loss, 4),
            **{name: round(float(trainer.callback_metrics[name]), 4) for name in ("val_loss", "val_wer", "val_cer")},
            "learning_rate": float(f"{trainer.optimizers[0].param_groups[0]['lr']:.4g}"),
        }
        self.table = with_row(self.table, row)
        write_metrics(self.path, self.table)
        trainer.progress_bar_callback.print(
            "epoch {epoch:>3} {phase:<8} train loss {train_loss:>8.2f}   val loss {val_loss:>8.2f}   "
            "val WER {val_wer:.3f}   val CER {val_cer:.3f}".format(**row)
        )


class Bar(TQDMProgressBar):
    """Lightning's bar without the running number of the logger's version, and gone when an epoch ends."""

    def get_metrics(self, trainer: pl.Trainer, model: pl.LightningModule) -> dict[str, Any]:
        """What stands behind the bar: the loss of the last batch."""
        metrics = super().get_metrics(trainer, model)
        return {"loss": f"{float(trainer.callback_metrics['train_loss']):.1f}"} if "train_loss" in metrics else {}


def starting_point(config: experiment.Config, base: Path | None) -> EncDecCTCModel:
    """The base model with the configuration's alphabet, or a new model of its architecture when there is no base."""
    if base is None:
        return build(experiment.resolve(config.model.architecture), config.text.alphabet, config.training.seed)
    model = restore(base)
    pl.seed_everything(config.training.seed, verbose=False)  # the new decoder's weights
    set_alphabet(model, config.text.alphabet)
    return model


def connect_data(model: EncDecCTCModel, config: experiment.Config) -> None:
    """Give the model its training and validation manifests. Texts are used as they stand: step 1 has cleaned them."""
    folder, training = experiment.resolve(config.dataset.output), config.training
    common = {
        "sample_rate": model.cfg.preprocessor.sample_rate,
        "labels": labels(model),
        "batch_size": training.batch_size,
        "num_workers": training.workers,
        "pin_memory": torch.cuda.is_available(),
        "normalize_transcripts": False,  # an English cleaner
        "parser": "base",
    }
    change = training.speed_perturbation
    speed = {
        "prob": 1.0, "sr": common["sample_rate"], "resample_type": "scipy", "num_rates": 5,
        "min_speed_rate": 1 - change, "max_speed_rate": 1 + change,
    }  # fmt: skip
    train = {**common, "manifest_filepath": str(manifest_path(folder, "train")), "shuffle": True}
    if change:
        train["augmentor"] = {"speed": speed}
    validation = {**common, "manifest_filepath": str(manifest_path(folder, "validation")), "shuffle": False}
    model.setup_training_data(OmegaConf.create(train))
    model.setup_validation_data(OmegaConf.create(validation))


def connect_optimizer(model: EncDecCTCModel, training: experiment.Training) -> None:
    """Give the model NeMo's `optim` section; NeMo builds the optimiser and its schedule when fit() starts."""
    with open_dict(model.cfg):
        model.cfg.optim = {**vars(training.optimizer), "sched": {"name": "CosineAnnealing", **vars(training.schedule)}}


def fit(model: EncDecCTCModel, config: experiment.Config, output: Path) -> None:
    """Train until `max_epochs`, going on from the last checkpoint in `output` when there is one.

    Writes checkpoints/, tensorboard/ and metrics.csv below `output`; the model holds the last epoch's weights after.
    """
    training = config.training
    if training.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("training.accelerator=gpu, and torch finds no GPU; type training.accelerator=auto")
    on_gpu = training.accelerator != "cpu" and torch.cuda.is_available()
    checkpoints = ModelCheckpoint(
        dirpath=output / "checkpoints", filename="epoch={epoch:03d}-val_loss={val_loss:.3f}",
        monitor="val_loss", save_top_k=training.keep_best, save_last=True, auto_insert_metric_name=False,
        enable_version_counter=False,  # one last.ckpt, also when the folder has been moved
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=training.max_epochs,
        accelerator=training.accelerator,
        devices=1,
        precision=("16-mixed" if on_gpu else "32-true") if training.precision == "auto" else training.precision,
        gradient_clip_val=training.gradient_clip,
        logger=TensorBoardLogger(output, name="tensorboard", version=""),
        callbacks=[
            Phases(training.frozen_epochs, training.seed),
            Metrics(output / "metrics.csv", training.frozen_epochs),
            Bar(leave=False),
            checkpoints,
        ],
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    model.set_trainer(trainer)
    connect_data(model, config)
    connect_optimizer(model, training)
    last = output / "checkpoints" / "last.ckpt"
    if last.is_file():
        print(f"Going on from {last}")
    # Lightning starts the first epoch's reading processes before it calls any hook of the epoch
    pl.seed_everything(training.seed + _epochs_done(last), verbose=False)
    try:
        trainer.fit(model, ckpt_path=last if last.is_file() else None)
    except SystemExit as error:  # how Lightning ends after Ctrl-C
        raise KeyboardInterrupt from error


def _epochs_done(checkpoint: Path) -> int:
    """Finished epochs of a checkpoint; 0 where there is none."""
    if not checkpoint.is_file():
        return 0
    return torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)["epoch"] + 1


def device(accelerator: str) -> str:
    """What training runs on here, in words."""
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
