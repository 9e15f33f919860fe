"""Progress of a training run on the screen: a bar on a terminal, a line now and then in a log."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from nemo.collections.asr.models import EncDecCTCModel

from finetuning.training.metrics_logger import MetricsLogger
from finetuning.training.time_left import TimeLeft

LINE_INTERVAL_S = 60.0  # at least so long between two lines within an epoch


def progress_display(metrics: MetricsLogger, time_left: TimeLeft) -> ProgressBar:
    """Return the display that suits stdout."""
    display = TrainingProgressBar if sys.stdout.isatty() else TrainingProgressLines
    return display(metrics, time_left)


class TrainingProgressBar(TQDMProgressBar):
    """A bar for each epoch, with loss, learning rate and time left; it vanishes when the training ends."""

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"  # fits into 80 columns

    def __init__(self, metrics: MetricsLogger, time_left: TimeLeft) -> None:
        """Take the callbacks of the same run that know the loss and the time left."""
        super().__init__()
        self.metrics, self.time_left = metrics, time_left

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count epochs from 1, as metrics.csv does."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}")

    def get_metrics(self, trainer: pl.Trainer, model: EncDecCTCModel) -> dict[str, Any]:
        """Return what stands behind the bar: NeMo does not log its training loss to Lightning's bar."""
        if not self.metrics.utterances:
            return {}
        left = self.time_left.text(trainer)
        return {
            "loss": f"{self.metrics.train_loss:.2f}",
            "lr": f"{learning_rate(trainer):.1e}",
            **({"left": left} if left else {}),
        }


class TrainingProgressLines(ProgressBar):
    """Whole lines for a log file: those of the epochs and, in between, at most one in LINE_INTERVAL_S."""

    def __init__(self, metrics: MetricsLogger, time_left: TimeLeft) -> None:
        """Take the callbacks of the same run that know the loss and the time left."""
        super().__init__()
        self.metrics, self.time_left = metrics, time_left
        self.is_enabled, self.printed_at = True, time.monotonic()

    def disable(self) -> None:
        """Print nothing: Lightning asks for it in all processes but the main one."""
        self.is_enabled = False

    def enable(self) -> None:
        """Print again."""
        self.is_enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line that can be read in the log at once."""
        if self.is_enabled:
            print(*args, **kwargs, flush=True)
            self.printed_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, model: EncDecCTCModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line when the last one is old enough."""
        if time.monotonic() - self.printed_at < LINE_INTERVAL_S:
            return
        left = self.time_left.text(trainer)
        self.print(
            f"epoch {trainer.current_epoch + 1:>3} step {batch_idx + 1:,} of {trainer.num_training_batches:,}: "
            f"loss {self.metrics.train_loss:.2f}, learning rate {learning_rate(trainer):.1e}"
            + (f", {left} left" if left else "")
        )


def learning_rate(trainer: pl.Trainer) -> float:
    """Return the learning rate of the next step, the decoder's where the encoder has its own."""
    return trainer.optimizers[0].param_groups[0]["lr"]
