"""The two phases of fine-tuning: the encoder frozen, then everything trained."""

import random
from typing import Any

import lightning.pytorch as pl
import torch
from nemo.collections.asr.models import EncDecCTCModel
from torch import nn

from finetuning.config.schema import Training
from finetuning.errors import UserError


def set_phase(model: EncDecCTCModel, epoch: int, frozen_epochs: int, batch_norm: str = "train") -> str:
    """Freeze or unfreeze the encoder for `epoch` (counted from 0), and return "frozen" or "unfrozen".

    In the frozen phase the convolutions neither learn nor apply dropout. With `batch_norm="train"` the batch
    normalisation adapts its statistics and its scale and shift, as in the published experiment; with "frozen" it stays
    as it is. The phase is a function of the epoch alone, so a resumed run is always in the right one.
    """
    frozen = epoch < frozen_epochs
    model.train()
    model.encoder.train(not frozen)
    model.encoder.requires_grad_(not frozen)
    for module in model.encoder.modules():
        if isinstance(module, nn.BatchNorm1d) and (batch_norm == "train" or not frozen):
            module.train()
            module.requires_grad_(True)
    return "frozen" if frozen else "unfrozen"


class EncoderFreezing(pl.Callback):
    """Sets the phase at the start of every epoch and the random state at the start of every step, by their numbers."""

    def __init__(self, training: Training) -> None:
        """Take the number of frozen epochs, what is frozen, and the seed of the run."""
        self.training = training

    def on_train_epoch_start(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Set the phase, and the order of the utterances but for the session's first epoch, which fit() has set."""
        trainer.train_dataloader.batch_sampler.epoch = trainer.current_epoch
        set_phase(model, trainer.current_epoch, self.training.frozen_epochs, self.training.batch_norm)

    def on_train_batch_start(self, trainer: pl.Trainer, model: EncDecCTCModel, batch: Any, batch_idx: int) -> None:
        """Seed dither, dropout and SpecAugment, so that a run resumed within an epoch draws the same numbers."""
        step = f"{self.training.seed} {trainer.global_step} {trainer.global_rank}"
        if self.training.accumulate_batches > 1:
            step += f" {batch_idx}"
        seed = random.Random(step).getrandbits(32)
        pl.seed_everything(seed, verbose=False)
        for module in model.modules():
            if isinstance(getattr(module, "_rng", None), random.Random):  # NeMo's SpecAugment has one of its own
                module._rng.seed(seed)

    def on_before_backward(self, trainer: pl.Trainer, model: EncDecCTCModel, loss: torch.Tensor) -> None:
        """Raise UserError before a loss that is not finite reaches the weights."""
        if not torch.isfinite(loss):
            raise UserError(
                f"the training loss is {loss.item()} in epoch {trainer.current_epoch + 1}, step "
                f"{trainer.global_step + 1}; the last checkpoint is intact; lower training.optimizer.lr or set "
                "training.gradient_clip, in a new training.output"
            )
