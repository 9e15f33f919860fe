"""Check that a model can overfit a handful of utterances: if not, something is wrong before any real training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from nemo.collections.asr.models import EncDecCTCModel
from tqdm import tqdm

from finetuning.config import schema as experiment
from finetuning.data.manifest import Utterance, manifest_path, read_manifest
from finetuning.decoding.inference import transcribe
from finetuning.errors import UserError
from finetuning.metrics.error_rates import word_error_rate
from finetuning.training.data_loading import build_dataloader
from finetuning.training.encoder_freezing import EncoderFreezing
from finetuning.training.failures import as_user_error
from finetuning.training.fine_tuning import setup_optimizer, trainer_kwargs

MAX_STEPS = 1000
ALONE = {"devices": 1, "num_nodes": 1, "frozen_epochs": 0, "speed_perturbation": 0.0, "accumulate_batches": 1}
CHECK_STEPS = 20  # between two transcriptions


def check_overfit(model: EncDecCTCModel, config: experiment.Config, count: int, max_steps: int = MAX_STEPS) -> int:
    """Train on the first `count` utterances until each transcript equals its text, and return the number of steps.

    There are no masks, no speed perturbation and no frozen phase, and nothing is written. Raise UserError with the
    worst transcript after `max_steps` steps.
    """
    config = replace(config, training=replace(config.training, **ALONE))
    training, manifest = config.training, manifest_path(experiment.manifest_folder(config), "train")
    stop = StopWhenOverfit(read_manifest(manifest)[:count], manifest.parent, max_steps)
    trainer = pl.Trainer(
        max_epochs=-1, max_steps=max_steps, callbacks=[EncoderFreezing(training), stop],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, num_sanity_val_steps=0, **trainer_kwargs(training),
    )  # fmt: skip
    model.set_trainer(trainer)
    model.spec_augmentation = None
    model._train_dl, _ = build_dataloader(model, config, trainer, "train", count=count)
    setup_optimizer(model, training, max_steps)
    with as_user_error(distributed=False):
        trainer.fit(model)
    if stop.wer:
        reference, hypothesis = stop.worst()
        raise UserError(
            f"overfit check failed: after {trainer.global_step} steps on {len(stop.utterances)} utterances the WER is "
            f"{stop.wer:.2f}, where it should be 0; {reference!r} is transcribed as {hypothesis!r}. Listen to these "
            "utterances and read their texts; if they agree, try another training.optimizer.lr"
        )
    return trainer.global_step


class StopWhenOverfit(pl.Callback):
    """Ends the training when every hypothesis equals its reference."""

    def __init__(self, utterances: list[Utterance], folder: Path, max_steps: int) -> None:
        """Take the training's utterances, the `folder` of their manifest, and `max_steps` for the progress bar."""
        self.utterances, self.folder = utterances, folder
        self.references = [utterance.text for utterance in utterances]
        self.bar = tqdm(total=max_steps, desc="overfitting", unit=" steps", disable=None)  # None: on a terminal only

    def on_train_batch_end(self, trainer: pl.Trainer, model: EncDecCTCModel, *_: Any) -> None:
        """Transcribe the utterances now and then."""
        self.bar.update()
        if trainer.global_step % CHECK_STEPS == 0:
            self.hypotheses = transcribe(model, self.utterances, self.folder)
            self.wer = word_error_rate(self.references, self.hypotheses)
            self.bar.set_postfix(WER=f"{self.wer:.2f}")
            trainer.should_stop = self.wer == 0
            model.to(trainer.strategy.root_device).train()  # it was transcribed with on a GPU, if there is one

    def on_train_end(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Leave the bar as it is."""
        self.bar.close()

    def worst(self) -> tuple[str, str]:
        """Return the reference and the hypothesis with the highest error rate."""
        pairs = zip(self.references, self.hypotheses, strict=True)
        return max(pairs, key=lambda pair: word_error_rate([pair[0]], [pair[1]]))
