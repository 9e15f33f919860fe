"""What happens beside the training itself: the phase of an epoch, its random state, its metrics."""

import threading
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
from finetuning.training.failures import monitor_peers


class PeerProcessMonitor(pl.Callback):
    """Looks after the processes that Lightning has started beside this one.

    Lightning's own observer, every five seconds, kills all of them without a word when one has failed: at times also
    the first while it says why.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the observer's place."""
        launcher = trainer.strategy.launcher
        if processes := getattr(launcher, "procs", None):
            launcher.procs = list(processes)  # to which Lightning passes signals on
            processes.clear()  # the observer's, which ends
            threading.Thread(target=monitor_peers, args=(launcher.procs,), daemon=True).start()


class MetricsLogger(pl.Callback):
    """Writes a row of `metrics.csv` and a line on the screen for each epoch; logs the character error rate."""

    def __init__(self, path: Path, frozen_epochs: int) -> None:
        """`path` of the table; rows of earlier epochs that stand there are kept when a run is resumed."""
        self.path, self.frozen_epochs = path, frozen_epochs
        self.table = read_metrics(path)
        self.captured: dict[str, torch.Tensor] = {}
        self.loss_sum, self.utterances = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """What an epoch has gathered so far."""
        return {"loss_sum": self.loss_sum, "utterances": self.utterances}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of the epoch in which the run was cut off."""
        self.loss_sum, self.utterances = state["loss_sum"], state["utterances"]

    def setup(self, trainer: pl.Trainer, model: EncDecCTCModel, stage: str) -> None:
        """Keep what the encoder and the decoder gave for the last batch: NeMo's validation step does not return it."""
        if not self.captured:
            model.encoder.register_forward_hook(lambda _, __, out: self.captured.update(lengths=out[1].detach()))
            model.decoder.register_forward_hook(lambda _, __, out: self.captured.update(log_probs=out.detach()))

    def on_train_batch_start(self, trainer: pl.Trainer, model: Any, batch: Any, batch_idx: int) -> None:
        """Start the sums of the epoch."""
        if batch_idx == 0:
            self.loss_sum, self.utterances = 0.0, 0
        self.waited_s += time.monotonic() - self.idle_since

    def on_train_epoch_start(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Start the clock that tells how long the processor waits for data."""
        self.waited_s, self.epoch_since = 0.0, time.monotonic()
        self.idle_since = self.epoch_since

    def on_train_batch_end(self, trainer: pl.Trainer, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add up the training loss, weighted by utterances."""
        size = len(batch[1])
        self.loss_sum += outputs["loss"].item() * size
        self.utterances += size
        self.idle_since = time.monotonic()

    def on_validation_epoch_start(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Forget the validation before; the training of the epoch ends here."""
        self.waiting = self.waited_s / (time.monotonic() - self.epoch_since)
        self.losses: list[tuple[float, int]] = []  # mean of a batch in nats, utterances
        self.texts: list[tuple[str, str]] = []  # reference, hypothesis
        self.frames = self.blanks = 0

    def on_validation_batch_end(
        self, trainer: pl.Trainer, model: EncDecCTCModel, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decode what the hooks kept. References hold no letter outside the alphabet: step 1 rejects such sentences."""
        if trainer.val_dataloaders.batch_sampler.repeats(batch_idx):
            return
        _, _, tokens, token_lengths = batch
        letters = get_vocabulary(model)
        self.losses.append((float(outputs["val_loss"]), len(tokens)))
        references = (
            "".join(letters[token] for token in text[:length])
            for text, length in zip(tokens.tolist(), token_lengths.tolist(), strict=True)
        )
        log_probs = self.captured["log_probs"].float().cpu().numpy()  # (B, T, V)
        for reference, frames, length in zip(references, log_probs, self.captured["lengths"].tolist(), strict=True):
            self.texts.append((reference, greedy_decode(frames[:length], letters)))
            self.blanks += int((frames[:length].argmax(axis=1) == len(letters)).sum())
            self.frames += length

    def on_validation_epoch_end(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Log val_cer, and put what step 3 would find in the place of NeMo's val_loss and val_wer.

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
        """Write the row and say the line."""
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
        reference, hypothesis = self.texts[0]
        trainer.progress_bar_callback.print(
            "epoch {epoch:>3} {phase:<8} train loss {train_loss:>8.2f}   val loss {val_loss:>8.2f}   "
            "val WER {val_wer:.3f}   val CER {val_cer:.3f}".format(**row)
            + f"   waited for data {self.waiting:.0%}"
            f"\n          {reference}\n        > {hypothesis}"
        )


def gather_across_ranks(value: Any) -> list[Any]:
    """`value` of every process that trains, this one's among them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
