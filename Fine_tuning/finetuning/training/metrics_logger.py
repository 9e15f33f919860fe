"""The metrics of each epoch: a row of `metrics.csv`, a line on the screen, and values for TensorBoard."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from nemo.collections.asr.models import EncDecCTCModel

from finetuning.decoding.greedy import greedy_decode
from finetuning.metrics.error_rates import character_error_rate, word_errors
from finetuning.metrics.history import append_row, read_metrics, write_metrics
from finetuning.model.ctc_model import get_vocabulary
from finetuning.training.time_left import TimeLeft


class MetricsLogger(pl.Callback):
    """Writes a row of `metrics.csv` and prints a line for each epoch; logs the character error rate."""

    def __init__(self, path: Path, frozen_epochs: int, time_left: TimeLeft) -> None:
        """Take the `path` of the table, whose rows of earlier epochs are kept when a run is resumed."""
        self.path, self.frozen_epochs, self.time_left = path, frozen_epochs, time_left
        self.table = read_metrics(path)
        self.outputs: dict[str, torch.Tensor] = {}  # of the last batch
        self.loss_sum, self.utterances = 0.0, 0

    @property
    def train_loss(self) -> float:
        """The mean training loss of the epoch so far, in nats per utterance."""
        return self.loss_sum / max(1, self.utterances)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the epoch so far."""
        return {"loss_sum": self.loss_sum, "utterances": self.utterances}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums of the epoch in which the run was interrupted."""
        self.loss_sum, self.utterances = state["loss_sum"], state["utterances"]

    def setup(self, trainer: pl.Trainer, model: EncDecCTCModel, stage: str) -> None:
        """Keep the outputs of encoder and decoder for the last batch: NeMo's validation step does not return them."""
        if not self.outputs:
            model.encoder.register_forward_hook(lambda _, __, out: self.outputs.update(lengths=out[1].detach()))
            model.decoder.register_forward_hook(lambda _, __, out: self.outputs.update(log_probs=out.detach()))

    def on_train_epoch_start(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Start the clock that measures how long the processor waits for data."""
        self.data_wait_s, self.epoch_start = 0.0, time.monotonic()
        self.step_end = self.epoch_start

    def on_train_batch_start(self, trainer: pl.Trainer, model: EncDecCTCModel, batch: Any, batch_idx: int) -> None:
        """Start the sums of the epoch with its first batch."""
        if batch_idx == 0:
            self.loss_sum, self.utterances = 0.0, 0
        self.data_wait_s += time.monotonic() - self.step_end

    def on_train_batch_end(
        self, trainer: pl.Trainer, model: EncDecCTCModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the training loss, weighted by utterances."""
        batch_size = len(batch[1])
        self.loss_sum += outputs["loss"].item() * trainer.accumulate_grad_batches * batch_size  # Lightning divides it
        self.utterances += batch_size
        self.step_end = time.monotonic()

    def on_validation_epoch_start(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Forget the last validation; the training part of the epoch ends here."""
        self.data_wait_share = self.data_wait_s / (time.monotonic() - self.epoch_start)
        self.losses: list[tuple[float, int]] = []  # mean of a batch in nats, utterances
        self.texts: list[tuple[str, str]] = []  # reference, hypothesis
        self.frames = self.blanks = 0

    def on_validation_batch_end(
        self, trainer: pl.Trainer, model: EncDecCTCModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decode the batch. References hold only characters of the alphabet: step 1 rejects other sentences."""
        if trainer.val_dataloaders.batch_sampler.repeats(batch_idx):
            return
        _, _, tokens, token_lengths = batch
        vocabulary = get_vocabulary(model)
        self.losses.append((float(outputs["val_loss"]), len(tokens)))
        references = (
            vocabulary.decode(text[:length])
            for text, length in zip(tokens.tolist(), token_lengths.tolist(), strict=True)
        )
        batch_log_probs = self.outputs["log_probs"].float().cpu().numpy()  # (B, T, V + 1)
        lengths = self.outputs["lengths"].tolist()
        for reference, padded, length in zip(references, batch_log_probs, lengths, strict=True):
            log_probs = padded[:length]
            self.texts.append((reference, greedy_decode(log_probs, vocabulary)))
            self.blanks += int((log_probs.argmax(axis=1) == len(vocabulary)).sum())
            self.frames += length

    def on_validation_epoch_end(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Log val_cer, and replace NeMo's val_loss and val_wer by the values that step 3 would compute.

        NeMo's loss is a mean over batches, not over utterances, and its decoder drops spaces before apostrophes.
        """
        losses = [entry for rank in gather_across_ranks(self.losses) for entry in rank]
        self.texts = [text for rank in gather_across_ranks(self.texts) for text in rank]
        references, hypotheses = zip(*self.texts, strict=True)
        words = word_errors(references, hypotheses)
        loss = sum(mean * size for mean, size in losses) / sum(size for _, size in losses)
        for output in model.validation_step_outputs:
            output["val_loss"] = torch.tensor(loss)
            output["val_wer_num"] = torch.tensor(words.rate * words.reference)
            output["val_wer_denom"] = torch.tensor(float(words.reference))
        model.log("val_cer", character_error_rate(references, hypotheses))

    def on_train_epoch_end(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Write the row and print the line of the epoch."""
        sums = gather_across_ranks((self.loss_sum, self.utterances))
        row = {
            "epoch": trainer.current_epoch + 1,
            "phase": "frozen" if trainer.current_epoch < self.frozen_epochs else "unfrozen",
            "train_loss": round(sum(loss for loss, _ in sums) / max(1, sum(count for _, count in sums)), 4),
            **{name: round(float(trainer.callback_metrics[name]), 4) for name in ("val_loss", "val_wer", "val_cer")},
            "learning_rate": float(f"{trainer.optimizers[0].param_groups[0]['lr']:.4g}"),
        }
        if not trainer.is_global_zero:
            return
        self.table = append_row(self.table, row)
        write_metrics(self.path, self.table)
        trainer.progress_bar_callback.print(self._epoch_line(row, self.time_left.text(trainer)))

    def _epoch_line(self, row: dict[str, Any], time_left: str) -> str:
        """Return the metrics of an epoch in words, and one validation utterance as the model transcribes it."""
        reference, hypothesis = self.texts[0]
        return (
            "epoch {epoch:>3} {phase:<8} train loss {train_loss:>8.2f}   val loss {val_loss:>8.2f}   "
            "val WER {val_wer:.3f}   val CER {val_cer:.3f}".format(**row)
            + f"   waited for data {self.data_wait_share:.0%}"
            + (f"   {time_left} left" if time_left else "")
            + f"\n          {reference}\n        > {hypothesis}"
        )


def gather_across_ranks(value: Any) -> list[Any]:
    """Return the `value` of every process that trains, this one included, by rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
