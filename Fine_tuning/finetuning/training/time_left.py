"""How long a training run will still take, estimated from the pace of this session."""

import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from nemo.collections.asr.models import EncDecCTCModel

WARMUP_STEPS = 10  # of a session, slow while audio readers start and kernels are chosen for each new length
MIN_STEPS = 10  # measured before an estimate is given
# Duration of a step with the encoder trained over one with it frozen, by training.batch_norm: measured with the demo on
# a CPU, waiting for audio included; by the passes that are computed it would be 1.5 and 3
UNFROZEN_RATIO = {"train": 1.3, "frozen": 2.4}


@dataclass
class Pace:
    """Durations measured in this session, and what they say about the rest of the run."""

    unfrozen_ratio: float
    seconds: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})  # by whether frozen
    steps: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    epoch_ends_s: list[float] = field(default_factory=list)  # validation and checkpoints of each epoch

    def add_step(self, duration_s: float, frozen: bool) -> None:
        """Count a training step, data loading and checkpoints within the epoch included."""
        self.seconds[frozen] += duration_s
        self.steps[frozen] += 1

    def step_s(self, frozen: bool) -> float:
        """Return the mean duration of a step; where none is measured, what those of the other phase suggest."""
        if self.steps[frozen]:
            return self.seconds[frozen] / self.steps[frozen]
        other = self.seconds[not frozen] / self.steps[not frozen]
        return other / self.unfrozen_ratio if frozen else other * self.unfrozen_ratio

    def seconds_left(
        self, frozen_steps: int, unfrozen_steps: int, epoch_ends: int, validation_batches: int
    ) -> float | None:
        """Return the time that so many steps and ends of epochs will take; None before MIN_STEPS are measured.

        Until a validation has been measured, a batch of it counts as half a frozen step: the forward pass alone.
        """
        if sum(self.steps.values()) < MIN_STEPS:
            return None
        ends_s = self.epoch_ends_s or [validation_batches * self.step_s(True) / 2]
        steps_s = frozen_steps * self.step_s(True) + unfrozen_steps * self.step_s(False)
        return steps_s + epoch_ends * sum(ends_s) / len(ends_s)


class TimeLeft(pl.Callback):
    """Measures the pace of a training run; stands before the callbacks that print the estimate."""

    def __init__(self, frozen_epochs: int, batch_norm: str) -> None:
        """Take `training.frozen_epochs` and `training.batch_norm`."""
        self.frozen_epochs = frozen_epochs
        self.pace = Pace(UNFROZEN_RATIO[batch_norm])
        self.session_steps = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Complete the end of the epoch before: callbacks that save checkpoints run after this one's."""
        now = time.monotonic()
        if self.pace.epoch_ends_s:
            self.pace.epoch_ends_s[-1] = now - self.step_end
        self.step_end = now

    def on_train_batch_end(self, trainer: pl.Trainer, model: EncDecCTCModel, *_: Any) -> None:
        """Count a step, unless it is one of the first of the session."""
        now = time.monotonic()
        self.session_steps += 1
        if self.session_steps > WARMUP_STEPS:
            self.pace.add_step(now - self.step_end, trainer.current_epoch < self.frozen_epochs)
        self.step_end = now

    def on_train_epoch_end(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Count the validation."""
        self.pace.epoch_ends_s.append(time.monotonic() - self.step_end)

    def seconds(self, trainer: pl.Trainer) -> float | None:
        """Return the estimated time until the end of the last epoch; None while it is unknown."""
        done, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        batches = trainer.accumulate_grad_batches  # of a step
        epoch_steps = -(-trainer.num_training_batches // batches)
        frozen = max(0, self.frozen_epochs * epoch_steps - done)
        epoch_ends, unfrozen = trainer.max_epochs - done // epoch_steps, total - done - frozen
        return self.pace.seconds_left(frozen * batches, unfrozen * batches, epoch_ends, sum(trainer.num_val_batches))

    def text(self, trainer: pl.Trainer) -> str:
        """Return the time left as hours:minutes:seconds; empty while it is unknown and after the last step."""
        seconds = self.seconds(trainer)
        is_last = trainer.global_step >= trainer.estimated_stepping_batches
        return "" if seconds is None or is_last else str(timedelta(seconds=round(seconds)))
