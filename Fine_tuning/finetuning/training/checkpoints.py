"""Checkpoints: each written whole, read only when nothing in it is damaged; the newest two, and the best."""

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


# beside tensors and plain values: how a configuration was kept before; of it only the class is still named, for NeMo
OF_CONFIGURATIONS = (
    DictConfig, ListConfig, AnyNode, Metadata, ContainerMetadata, defaultdict,
    Any, dict, list, str, int, float, bool,
)  # fmt: skip


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint, its tensors on the CPU; ValueError where it would have anything run."""
    try:
        with torch.serialization.safe_globals(list(OF_CONFIGURATIONS)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError("it holds more than tensors and plain values, and this version does not read those") from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """How Lightning reads and writes checkpoints; of the processes that train together the first one writes."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Replace `path` at once, a last.ckpt becoming previous.ckpt; UserError for a full disk and broken weights."""
        path = Path(path)
        for name, weights in checkpoint["state_dict"].items():
            if not torch.isfinite(weights).all():
                raise UserError(
                    f"the weights {name} are no numbers any more in epoch {checkpoint['epoch'] + 1} and were not "
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
        """Read `path` as `load` does."""
        return read_checkpoint(path)


def _write(checkpoint: dict[str, Any], file: Any) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # torch's own words for what the file told it
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


class LastCheckpoints(Checkpoint):
    """The state to go on from, at the end of every epoch, every so often and at SIGTERM, and the one before it."""

    def __init__(self, folder: Path, minutes: float) -> None:
        """`folder` for last.ckpt and previous.ckpt; `minutes` between two of them within an epoch."""
        self.path, self.seconds = folder / LAST, 60 * minutes
        self.ending = False

    def on_train_start(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Start the clock; from here on SIGTERM waits for the end of a step. Lightning puts its handler back after."""
        self.saved_at = time.monotonic()
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "ending", True))

    def on_train_batch_start(self, trainer: pl.Trainer, model: EncDecCTCModel, batch: Any, batch_idx: int) -> None:
        """Save between two steps: Lightning has counted the one before as completed only here."""
        due = time.monotonic() - self.saved_at > self.seconds
        due, ending = trainer.strategy.broadcast((due, self.ending))
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        if (due or ending) and batch_idx:
            self._save(trainer)
        if ending:
            raise Terminated

    def on_train_epoch_end(self, trainer: pl.Trainer, model: EncDecCTCModel) -> None:
        """Save after the metrics of the epoch are written."""
        self._save(trainer)
        if trainer.strategy.broadcast(self.ending):
            raise Terminated

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved_at = time.monotonic()


class BestCheckpoints(ModelCheckpoint):
    """As many as are to be kept of those with the lowest validation loss."""

    def __init__(self, folder: Path, keep: int) -> None:
        """`keep` 0 for none, -1 for all."""
        super().__init__(
            dirpath=folder, filename="epoch={epoch:03d}-val_loss={val_loss:.3f}", monitor="val_loss", save_top_k=keep,
            auto_insert_metric_name=False, enable_version_counter=False,
        )  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with those of the state, wherever the folder lies now and whatever was to be kept before."""
        best = {Path(path).name: score for path, score in state_dict["best_k_models"].items()}
        scores = {str(Path(self.dirpath, name)): score for name, score in best.items() if name.startswith("epoch=")}
        kept = sorted(scores, key=scores.__getitem__)[: self.save_top_k if self.save_top_k >= 0 else None]
        self.best_k_models = {path: scores[path] for path in kept}
        if kept:
            self.best_model_path, self.kth_best_model_path = kept[0], kept[-1]
            self.best_model_score, self.kth_value = scores[kept[0]], scores[kept[-1]]


@dataclass(frozen=True)
class ResumePoint:
    """Where a run begins or goes on."""

    path: Path | None = None  # of the checkpoint; None: at the beginning
    epochs: int = 0  # that are done
    batches: int = 0  # of the next epoch that are done
    steps: int = 0  # of the optimiser that are done


FROM_THE_START = ResumePoint()


def find_resume_point(folder: Path, model: EncDecCTCModel, writes: bool = True) -> ResumePoint:
    """Go on from the newest checkpoint of `model` that is not damaged, or begin where there is none.

    A damaged last.ckpt is set aside, by the one process that `writes`. UserError when there are some and all are
    damaged.
    """
    found = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    faults: list[str] = []
    for path in found:
        try:
            start = _read(path, model)
        except Exception as error:  # torch, zipfile and pickle each have their own
            if isinstance(error, PermissionError) or is_out_of_memory(error):
                raise
            faults.append(f"{path.name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        if faults and writes:
            found[0].replace(folder / DAMAGED)
            print(f"{folder} holds a damaged checkpoint ({faults[0]}), now {DAMAGED}: the one before is taken")
        return start
    if faults:
        raise UserError(
            f"no checkpoint to go on from in {folder} can be read ({'; '.join(faults)}); copy an epoch=….ckpt there to "
            f"{LAST} and type the same command again, or delete that folder to start over"
        )
    return FROM_THE_START


def _read(path: Path, model: EncDecCTCModel) -> ResumePoint:
    """What `path` says of its run; any exception when it is damaged, or is not a checkpoint of this model."""
    with path.open("rb") as file:
        check_zip(file)
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
