"""An eye on a training run: warnings in words as soon as its figures ask for them, and the time it will take."""

import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from nemo.collections.asr.models import EncDecCTCModel

from finetuning.training import diagnostics
from finetuning.training.callbacks import MetricsLogger

WINDOW_STEPS = 20  # steps over which a loss is averaged, and after which the time that is left can be told


class TrainingMonitor(pl.Callback):
    """Says each warning once, when it first applies, and keeps what it said."""

    def __init__(self, metrics: MetricsLogger, warmup_ratio: float) -> None:
        """`metrics` of the same run, before this one among the callbacks; `warmup_ratio` of all steps."""
        self.metrics, self.warmup_ratio = metrics, warmup_ratio
        self.said: dict[str, str] = {}
        self.losses: list[float] = []  # nats a letter, one for each stretch of steps
        self.loss_sum, self.letters = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on has to know."""
        return {"said": self.said, "losses": self.losses, "loss_sum": self.loss_sum, "letters": self.letters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of the run that was cut off."""
        vars(self).update(state)

    def on_train_start(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Start the clock."""
        self.started, self.first = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, model: EncDecCTCModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss after each stretch of steps."""
        _, _, tokens, lengths = batch
        self.loss_sum += outputs["loss"].item() * len(tokens)
        self.letters += int(lengths.sum())
        if trainer.global_step % WINDOW_STEPS:
            return
        self.losses.append(self.loss_sum / max(1, self.letters))
        self.loss_sum, self.letters = 0.0, 0
        self._warn(
            trainer, "diverging", diagnostics.diverging(self.losses, trainer.optimizers[0].param_groups[0]["lr"])
        )
        if WINDOW_STEPS <= trainer.global_step - self.first < 2 * WINDOW_STEPS:
            self._say(trainer, f"about {self.left(trainer)} left, validation not counted")

    def on_train_epoch_end(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Look at the curves after each epoch."""
        table, metrics = self.metrics.table, self.metrics
        if not trainer.is_global_zero:
            return
        train, validation = table["train_loss"].tolist(), table["val_loss"].tolist()
        if trainer.global_step > self.warmup_ratio * trainer.estimated_stepping_batches:
            self._warn(trainer, "only blanks", diagnostics.mostly_blanks(metrics.blanks / max(1, metrics.frames)))
            self._warn(trainer, "flat", diagnostics.flat(train, table["val_wer"].iloc[-1]))
            self._warn(trainer, "rising", diagnostics.rising(train, validation))

    def left(self, trainer: pl.Trainer) -> str:
        """Hours, minutes and seconds until the last step, at the pace of this session so far; empty at its start."""
        done = trainer.global_step - self.first
        if done < WINDOW_STEPS:
            return ""
        seconds = (time.monotonic() - self.started) / done * (trainer.estimated_stepping_batches - trainer.global_step)
        return str(timedelta(seconds=round(seconds)))

    def _warn(self, trainer: pl.Trainer, name: str, sentence: str | None) -> None:
        if sentence and name not in self.said:
            self.said[name] = f"epoch {trainer.current_epoch + 1}: {sentence}"
            self._say(trainer, f"warning, {self.said[name]}")

    def _say(self, trainer: pl.Trainer, sentence: str) -> None:
        if trainer.is_global_zero:
            trainer.progress_bar_callback.print(sentence)


class TrainingProgressBar(TQDMProgressBar):
    """Lightning's bar, gone when an epoch ends, without the running number of the logger's version."""

    def __init__(self, watch: TrainingMonitor) -> None:
        """`watch` of the same run."""
        super().__init__(leave=False)
        self.watch = watch

    def get_metrics(self, trainer: pl.Trainer, model: pl.LightningModule) -> dict[str, Any]:
        """What stands behind the bar: loss and learning rate of the last batch, and the time left until the end."""
        metrics = super().get_metrics(trainer, model)
        if "train_loss" not in metrics:
            return {}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        shown = {"loss": f"{float(trainer.callback_metrics['train_loss']):.1f}", "lr": f"{rate:.1e}"}
        left = self.watch.left(trainer)
        return {**shown, "left": left} if left else shown
