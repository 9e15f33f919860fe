"""Whether a model can learn a handful of utterances by heart: if not, something is wrong before any real training."""

from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from nemo.collections.asr.models import EncDecCTCModel
from tqdm import tqdm

from finetuning.config import schema as experiment
from finetuning.data.manifest import manifest_path, read_manifest
from finetuning.decoding.inference import transcribe
from finetuning.errors import UserError
from finetuning.metrics.error_rates import word_error_rate
from finetuning.training.data_loading import build_dataloader
from finetuning.training.encoder_freezing import EncoderFreezing
from finetuning.training.failures import as_user_error
from finetuning.training.fine_tuning import setup_optimizer, trainer_kwargs

STEPS = 1000  # at most
CHECK_EVERY = 20  # steps between two looks at the transcripts


def check_overfit(model: EncDecCTCModel, config: experiment.Config, steps: int = STEPS) -> int:
    """Train on the first `training.overfit` utterances until the model writes each as its text says; gives the steps.

    Without masks, perturbation and a frozen phase; nothing is written. UserError after `steps` steps, with the worst.
    """
    training = replace(config.training, devices=1, num_nodes=1, strategy="auto", speed_perturbation=0.0)
    until = StopWhenOverfit(replace(config, training=training), steps)
    trainer = pl.Trainer(
        max_epochs=-1, max_steps=steps, callbacks=[EncoderFreezing(0, training.batch_norm, training.seed), until],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, num_sanity_val_steps=0, **trainer_kwargs(training),
    )  # fmt: skip
    model.set_trainer(trainer)
    model.spec_augmentation = None
    model._train_dl, _ = build_dataloader(model, replace(config, training=training), trainer, "train")
    setup_optimizer(model, training, steps)
    with as_user_error(together=False):
        trainer.fit(model)
    if until.wer:
        reference, hypothesis = until.worst()
        raise UserError(
            f"self-test failed: after {trainer.global_step} steps on {len(until.references)} utterances the WER is "
            f"{until.wer:.2f}, where it should be 0; {reference!r} is written as {hypothesis!r}. Listen to these "
            "utterances and read their texts; if they agree, try another training.optimizer.lr"
        )
    return trainer.global_step


class StopWhenOverfit(pl.Callback):
    """Ends the training when every hypothesis is its reference."""

    def __init__(self, config: experiment.Config, steps: int) -> None:
        """Of the same utterances as the training reads; `steps` for the progress bar."""
        manifest = manifest_path(experiment.manifest_folder(config), "train")
        self.folder, self.utterances = manifest.parent, read_manifest(manifest)[: config.training.overfit]
        self.references = [utterance.text for utterance in self.utterances]
        self.bar = tqdm(total=steps, desc="learning by heart", unit=" steps")

    def on_train_batch_end(self, trainer: pl.Trainer, model: EncDecCTCModel, *_: Any) -> None:
        """Look at the transcripts."""
        self.bar.update()
        if trainer.global_step % CHECK_EVERY == 0:
            self.hypotheses = transcribe(model, self.utterances, self.folder)
            self.wer = word_error_rate(self.references, self.hypotheses)
            self.bar.set_postfix(WER=f"{self.wer:.2f}")
            trainer.should_stop = self.wer == 0
            model.train()

    def on_train_end(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Leave the bar as it is."""
        self.bar.close()

    def worst(self) -> tuple[str, str]:
        """Reference and hypothesis with most errors."""
        pairs = zip(self.references, self.hypotheses, strict=True)
        return max(pairs, key=lambda pair: word_error_rate([pair[0]], [pair[1]]))
