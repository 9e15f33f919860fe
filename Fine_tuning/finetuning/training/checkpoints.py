"""Checkpoints, written atomically and checked before they are read: the last two, and the best."""

import pickle
import signal
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import AnyNode, DictConfig, ListConfig, OmegaConf
from omegaconf.base import ContainerMetadata, Metadata

from finetuning.errors import Terminated, UserError, is_out_of_memory
from finetuning.files import atomic_path, ensure_writable_dir
from finetuning.model.nemo_file import check_zip

LAST, PREVIOUS, DAMAGED = "last.ckpt", "previous.ckpt", "damaged.ckpt"
PARTS = {"state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops", "global_step"}
# Earlier versions stored the model's configuration as an object of OmegaConf, and NeMo's class is still named in a
# checkpoint: the types this needs, beside tensors and plain values
CONFIGURATION_TYPES = (
    DictConfig, ListConfig, AnyNode, Metadata, ContainerMetadata, defaultdict,
    Any, dict, list, str, int, float, bool,
)  # fmt: skip


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint, its tensors on the CPU; raise ValueError where it would run any code.

    Raise what zipfile does where a checksum is wrong: torch reads on.
    """
    with Path(path).open("rb") as file:
        check_zip(file)
    try:
        with torch.serialization.safe_globals(list(CONFIGURATION_TYPES)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError("it holds more than tensors and plain values, which this version does not read") from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Reads and writes checkpoints for Lightning, which writes in the main process only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `path` atomically; a last.ckpt that is there becomes previous.ckpt.

        Raise UserError for weights that are not finite, OSError where the disk is full.
        """
        path = Path(path)
        for name, weights in checkpoint["state_dict"].items():
            if not torch.isfinite(weights).all():
                raise UserError(
                    f"the weights {name} are not finite any more in epoch {checkpoint['epoch'] + 1} and were not "
                    "saved; the last checkpoint is intact; lower training.optimizer.lr or set training.gradient_clip, "
                    "in a new training.output"
                )
        if isinstance(settings := checkpoint.get("hyper_parameters"), DictConfig):
            checkpoint["hyper_parameters"] = OmegaConf.to_container(settings)
        ensure_writable_dir(path.parent)
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file:
                _write(checkpoint, file)
            if path.name == LAST and path.is_file():
                path.replace(path.with_name(PREVIOUS))

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Read `path` without running any code in it."""
        return read_checkpoint(path)


def _write(checkpoint: dict[str, Any], file: Any) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # torch raises it from the OSError of the file
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


class LastCheckpoints(Checkpoint):
    """Saves the state to resume from at the end of every epoch, at intervals within it and at SIGTERM."""

    def __init__(self, folder: Path, minutes: float) -> None:
        """Take the `folder` of last.ckpt and previous.ckpt, and the interval within an epoch in `minutes`."""
        self.path, self.interval_s = folder / LAST, 60 * minutes
        self.terminating = False

    def on_train_start(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Start the clock and let SIGTERM take effect between two steps; Lightning restores its handler at the end."""
        self.saved_at = time.monotonic()
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "terminating", True))

    def on_train_batch_start(self, trainer: pl.Trainer, model: EncDecCTCModel, batch: Any, batch_idx: int) -> None:
        """Save between two steps: only here has Lightning counted the step before as completed."""
        is_due = time.monotonic() - self.saved_at > self.interval_s
        is_due, terminating = trainer.strategy.broadcast((is_due, self.terminating))
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        if batch_idx % trainer.accumulate_grad_batches:  # the gradients so far would be lost
            return
        if (is_due or terminating) and batch_idx:
            self._save(trainer)
        if terminating:
            raise Terminated

    def on_train_epoch_end(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Save after the metrics of the epoch have been written."""
        self._save(trainer)
        if trainer.strategy.broadcast(self.terminating):
            raise Terminated

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved_at = time.monotonic()


class BestCheckpoints(ModelCheckpoint):
    """Keeps the checkpoints with the lowest validation WER."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Take the number of checkpoints to keep: 0 for none, -1 for all."""
        super().__init__(
            dirpath=folder, filename="epoch={epoch:03d}-val_wer={val_wer:.4f}", monitor="val_wer", save_top_k=keep,
            auto_insert_metric_name=False, enable_version_counter=False,
        )  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume with the files of an earlier session, wherever the folder is now and however many it kept."""
        if state_dict.get("monitor") != self.monitor:  # of an earlier version, which kept those of the lowest loss
            return
        best = {Path(path).name: score for path, score in state_dict["best_k_models"].items()}
        scores = {str(Path(self.dirpath, name)): score for name, score in best.items() if name.startswith("epoch=")}
        paths = sorted(scores, key=scores.__getitem__)[: self.save_top_k if self.save_top_k >= 0 else None]
        self.best_k_models = {path: scores[path] for path in paths}
        if paths:
            self.best_model_path, self.kth_best_model_path = paths[0], paths[-1]
            self.best_model_score, self.kth_value = scores[paths[0]], scores[paths[-1]]


@dataclass(frozen=True)
class ResumePoint:
    """Where a session of a run starts."""

    path: Path | None = None  # of the checkpoint; None: from the beginning
    epochs: int = 0  # completed
    batches: int = 0  # completed in the next epoch
    steps: int = 0  # completed, of the optimiser


FROM_THE_START = ResumePoint()


def find_resume_point(folder: Path, model: EncDecCTCModel, is_main_process: bool = True) -> ResumePoint:
    """Return the newest checkpoint of `model` that is not damaged, or FROM_THE_START where there is none.

    The main process sets a damaged last.ckpt aside. Raise UserError when there are checkpoints and all are damaged.
    """
    paths = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    faults: list[str] = []
    for path in paths:
        try:
            start = _read(path, model)
        except Exception as error:  # torch, zipfile and pickle each have their own
            if isinstance(error, PermissionError) or is_out_of_memory(error):
                raise
            faults.append(f"{path.name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        if faults and is_main_process:
            paths[0].replace(folder / DAMAGED)
            print(f"{folder} holds a damaged checkpoint ({faults[0]}), now {DAMAGED}: using the one before it")
        return start
    if faults:
        raise UserError(
            f"no checkpoint to resume from in {folder} can be read ({'; '.join(faults)}); copy an epoch=….ckpt there "
            f"to {LAST} and rerun the same command, or delete that folder to start over"
        )
    return FROM_THE_START


def _read(path: Path, model: EncDecCTCModel) -> ResumePoint:
    """Return the resume point of a checkpoint; raise any exception when it is damaged or not of this model."""
    state = read_checkpoint(path, mmap=True)
    if not isinstance(state, dict) or PARTS - state.keys():
        raise ValueError("it is not a checkpoint of a training run")
    shapes, expected = ({name: w.shape for name, w in s.items()} for s in (state["state_dict"], model.state_dict()))
    if shapes != expected:
        raise ValueError("it is of another model")
    loop = state["loops"]["fit_loop"]
    epochs = loop["epoch_progress"]["current"]["processed"]
    batches = loop["epoch_loop.batch_progress"]["current"]["completed"] if state["epoch"] == epochs else 0
    return ResumePoint(path, epochs, batches, state["global_step"])
