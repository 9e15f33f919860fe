"""Warnings while a model trains, as soon as its metrics ask for them."""

from typing import Any

import lightning.pytorch as pl
from nemo.collections.asr.models import EncDecCTCModel

from finetuning.training import diagnostics
from finetuning.training.metrics_logger import MetricsLogger

WINDOW_STEPS = 20  # over which a training loss is averaged


class TrainingMonitor(pl.Callback):
    """Prints each warning once, when it first applies, and keeps it for the run's record."""

    def __init__(self, metrics: MetricsLogger, warmup_ratio: float) -> None:
        """Take the `metrics` of the same run, before this one among the callbacks, and `warmup_ratio` of all steps."""
        self.metrics, self.warmup_ratio = metrics, warmup_ratio
        self.warnings: dict[str, str] = {}  # sentence by kind
        self.losses: list[float] = []  # nats per character, one for each window
        self.loss_sum, self.characters = 0.0, 0
        self.window_end = 0  # step

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run has to know."""
        return {
            "warnings": self.warnings,
            "losses": self.losses,
            "loss_sum": self.loss_sum,
            "characters": self.characters,
            "window_end": self.window_end,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of the interrupted run."""
        vars(self).update(state)

    def on_train_batch_end(
        self, trainer: pl.Trainer, model: EncDecCTCModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the training loss after each window of steps."""
        _, _, tokens, lengths = batch
        self.loss_sum += outputs["loss"].item() * trainer.accumulate_grad_batches * len(tokens)  # Lightning divides it
        self.characters += int(lengths.sum())
        if trainer.global_step % WINDOW_STEPS or trainer.global_step == self.window_end:  # one step, several batches
            return
        self.window_end = trainer.global_step
        self.losses.append(self.loss_sum / max(1, self.characters))
        self.loss_sum, self.characters = 0.0, 0
        learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        self._warn(trainer, "diverging", diagnostics.diverging(self.losses, learning_rate))

    def on_train_epoch_end(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Check the curves after each epoch, once the learning rate has warmed up."""
        table, metrics = self.metrics.table, self.metrics
        if not trainer.is_global_zero:
            return
        train, validation = table["train_loss"].tolist(), table["val_loss"].tolist()
        if trainer.global_step > self.warmup_ratio * trainer.estimated_stepping_batches:
            self._warn(trainer, "only blanks", diagnostics.mostly_blanks(metrics.blanks / max(1, metrics.frames)))
            self._warn(trainer, "flat", diagnostics.flat(train, table["val_wer"].iloc[-1]))
            self._warn(trainer, "rising", diagnostics.rising(train, validation))

    def _warn(self, trainer: pl.Trainer, kind: str, sentence: str | None) -> None:
        if not sentence or kind in self.warnings:
            return
        self.warnings[kind] = f"epoch {trainer.current_epoch + 1}: {sentence}"
        if trainer.is_global_zero:
            trainer.progress_bar_callback.print(f"warning, {self.warnings[kind]}")
