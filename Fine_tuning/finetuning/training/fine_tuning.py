"""Fine-tuning in two phases with Lightning: first the encoder's convolutions are frozen, then everything learns."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from nemo.collections.asr.models import EncDecCTCModel
from nemo.collections.asr.modules import SpectrogramAugmentation
from omegaconf import open_dict

from finetuning.audio.decoding import SAMPLE_RATE
from finetuning.config import schema as experiment
from finetuning.config.schema import VocabularyKind
from finetuning.errors import Terminated, UserError, printable
from finetuning.model.ctc_model import (
    build_model,
    change_vocabulary,
    frame_duration_s,
    get_vocabulary,
    restore_model,
    sample_rate,
)  # fmt: skip
from finetuning.processes import processor_name
from finetuning.training.checkpoints import (
    FROM_THE_START,
    AtomicCheckpointIO,
    BestCheckpoints,
    LastCheckpoints,
    ResumePoint,
)
from finetuning.training.data_loading import setup_data
from finetuning.training.encoder_freezing import EncoderFreezing
from finetuning.training.failures import as_user_error
from finetuning.training.loggers import TensorBoardFiles, TrackingService, start_tracking
from finetuning.training.metrics_logger import MetricsLogger
from finetuning.training.monitor import TrainingMonitor
from finetuning.training.peer_processes import PeerProcessMonitor, launched_processes
from finetuning.training.progress import progress_display
from finetuning.training.time_left import TimeLeft
from finetuning.training.tokenizer import training_vocabulary

DDP = "ddp_find_unused_parameters_true"  # frozen parameters are unused


def load_starting_model(config: experiment.Config, base: Path | None, output: Path | None = None) -> EncDecCTCModel:
    """Return the base model with the configuration's vocabulary, or a new one of its architecture without a base.

    A new tokenizer is kept in the folder `output`, if there is one. Raise UserError for a model that could be trained,
    but that step 3 would then refuse.
    """
    if base is None:
        architecture = experiment.resolve_path(config.model.architecture)
        model = build_model(architecture, training_vocabulary(config, None, output), config.training.seed)
        check_compatible(model, architecture, config)
        return model
    model = restore_model(base)
    check_compatible(model, base, config)
    vocabulary = training_vocabulary(config, get_vocabulary(model), output)
    pl.seed_everything(config.training.seed, verbose=False)  # the new decoder's weights
    return change_vocabulary(model, vocabulary, config.training.decoder_init)


def check_compatible(model: EncDecCTCModel, path: Path, config: experiment.Config) -> None:
    """Raise UserError where the model of `path` does not fit the wavs of step 1: their sample rate, their lengths."""
    rate, frames, required = sample_rate(model), 1 / frame_duration_s(model), config.dataset.encoder_frames_per_second
    if rate != SAMPLE_RATE:
        raise UserError(
            f"{path} takes audio of {rate:,} Hz, and step 1 writes wavs of {SAMPLE_RATE:,} Hz: step 3 could not run "
            "a model trained from it; name another model.base or model.architecture"
        )
    if config.model.vocabulary is VocabularyKind.characters and frames < required * (1 - 1e-6):
        raise UserError(
            f"{path} gives {frames:g} frames a second, and step 1 has kept utterances that need {required:g}; type "
            f"dataset.encoder_frames_per_second={frames:g} for steps 1 and 2, or name another base"
        )


def set_regularization(model: EncDecCTCModel, training: experiment.Training) -> None:
    """Set dropout and SpecAugment as configured; the configuration that is exported with the model stays."""
    for module in model.modules() if training.dropout is not None else ():
        if isinstance(module, torch.nn.Dropout):
            module.p = training.dropout
    masks = training.spec_augment
    width = masks.time_width if masks.time_width < 1 else int(masks.time_width)  # NeMo tells a share by its type
    is_on = masks.freq_masks or masks.time_masks or masks.rect_masks
    model.spec_augmentation = SpectrogramAugmentation(**vars(masks) | {"time_width": width}) if is_on else None


def setup_optimizer(model: EncDecCTCModel, training: experiment.Training, steps: int) -> None:
    """Give the model NeMo's `optim` section, from which NeMo builds optimiser and schedule when fit() starts."""
    schedule = {"name": "CosineAnnealing", "max_steps": steps, **vars(training.schedule)}
    with open_dict(model.cfg):
        model.cfg.optim = {**vars(training.optimizer), "name": training.optimizer.name.value, "sched": schedule}
        if training.encoder_lr_scale != 1:
            model.cfg.optim_param_groups = {"encoder": {"lr": training.optimizer.lr * training.encoder_lr_scale}}


def trainer_kwargs(training: experiment.Training) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer that say where and how exactly it computes."""
    if training.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("training.accelerator=gpu, and torch finds no GPU; type training.accelerator=auto")
    return {
        "accelerator": training.accelerator.value,
        "devices": training.devices,
        "num_nodes": training.num_nodes,
        "strategy": DDP if is_distributed(training) else "auto",
        "precision": precision(training),
        "gradient_clip_val": training.gradient_clip,
        "accumulate_grad_batches": training.accumulate_batches,
        "deterministic": "warn" if training.deterministic else None,  # not an error: CTC's gradients on a GPU are not
        "use_distributed_sampler": False,  # EpochBatchSampler gives every rank its own batches
    }


def build_trainer(
    training: experiment.Training, output: Path, callbacks: list[pl.Callback], tracking: TrackingService | None = None
) -> pl.Trainer:
    """Return Lightning's Trainer; raise UserError where the machine or the SLURM job does not fit the configuration."""
    kwargs = trainer_kwargs(training)
    try:
        return pl.Trainer(
            max_epochs=training.max_epochs,
            **kwargs,
            logger=[TensorBoardFiles(output), *([tracking] if tracking else [])],
            plugins=[AtomicCheckpointIO()],
            callbacks=callbacks,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            log_every_n_steps=10,
        )
    except (MisconfigurationException, ImportError, RuntimeError, ValueError) as error:
        reason = textwrap.shorten(printable(str(error)), 250, placeholder=" …")
        raise UserError(
            "Lightning cannot train with these training.accelerator, devices, num_nodes and precision here "
            f"({reason}); change them or how the job is started"
        ) from error


def fit(
    model: EncDecCTCModel, config: experiment.Config, output: Path, start: ResumePoint = FROM_THE_START
) -> list[str]:
    """Train until `max_epochs`, from the beginning or from where a run was interrupted; return the warnings.

    Writes checkpoints/, tensorboard/ and metrics.csv below `output`; the model then holds the last epoch's weights.
    Raise UserError for what a user can fix, Terminated after SIGTERM.
    """
    training = config.training
    last = LastCheckpoints(output / "checkpoints", training.checkpoint_minutes)
    time_left = TimeLeft(training.frozen_epochs, training.batch_norm)
    metrics = MetricsLogger(output / "metrics.csv", training.frozen_epochs, time_left)
    monitor = TrainingMonitor(metrics, training.schedule.warmup_ratio)
    callbacks = [
        EncoderFreezing(training),
        PeerProcessMonitor(),
        time_left,
        metrics,
        monitor,
        progress_display(metrics, time_left),
        BestCheckpoints(output / "checkpoints", training.keep_best),
        last,
    ]
    trainer = build_trainer(training, output, callbacks, start_tracking(config, output))
    set_regularization(model, training)
    model.set_trainer(trainer)
    batches, _ = setup_data(model, config, trainer)
    if not len(batches):
        raise UserError(
            "there are fewer batches than processes that train; lower training.batch_size or "
            "training.batch_duration_s, or train with fewer processes"
        )
    steps = -(-len(batches) // training.accumulate_batches)  # of an epoch
    trainer.fit_loop.max_epochs = epochs = planned_epochs(training, steps)
    if epochs <= training.frozen_epochs < training.max_epochs and trainer.is_global_zero:
        print(
            f"warning: training.max_steps={training.max_steps} ends the training with epoch {epochs}, and the encoder "
            f"stays frozen until after epoch {training.frozen_epochs}: set training.frozen_epochs lower to train it too"
        )
    setup_optimizer(model, training, steps * trainer.max_epochs)
    batches.epoch, batches.start = start.epochs, start.batches
    with _other_processes_ended(trainer, last), as_user_error(is_distributed(training)):
        trainer.fit(model, ckpt_path=start.path)
    return list(monitor.warnings.values())


def planned_epochs(training: experiment.Training, steps: int) -> int:
    """Return the number of epochs of so many `steps` each, until max_epochs or the one that reaches max_steps."""
    return min(training.max_epochs, -(-training.max_steps // steps)) if training.max_steps else training.max_epochs


@contextmanager
def _other_processes_ended(trainer: pl.Trainer, last: LastCheckpoints) -> Iterator[None]:
    """End the processes that train together with this one where it fails, and leave their group in any case."""
    try:
        yield
    except UserError as error:
        if last.terminating:  # the processes that read audio may end sooner
            raise Terminated from error
        for process in launched_processes(trainer):  # it may wait for this one for ever
            process.kill()
        raise
    finally:
        if torch.distributed.is_initialized():  # NeMo's encoder would ask the other processes at every call
            torch.distributed.destroy_process_group()


def is_distributed(training: experiment.Training) -> bool:
    """Tell whether several processes train together."""
    return training.devices * training.num_nodes > 1


def precision(training: experiment.Training) -> str:
    """Return the numerical precision of the training, as Lightning calls it."""
    if training.precision != "auto":
        return training.precision.value
    if uses_gpu(training.accelerator):
        return "16-mixed"
    return "bf16-mixed" if torch.cpu.get_capabilities().get("amx_bf16") else "32-true"  # slower without such units


def uses_gpu(accelerator: str) -> bool:
    """Tell whether training runs on a GPU here."""
    return accelerator != "cpu" and torch.cuda.is_available()


def device_name(accelerator: str) -> str:
    """Return the name of what training runs on here; another CPU or number of threads acts like another seed."""
    if uses_gpu(accelerator):
        return torch.cuda.get_device_name()
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def session_info(training: experiment.Training, start: ResumePoint) -> dict[str, Any]:
    """Return where a session starts and what it runs on, for the run's record."""
    return {
        "epochs_done": start.epochs,
        "steps_done": start.steps,
        "device": device_name(training.accelerator),
        "threads": torch.get_num_threads(),
        "devices": training.devices,
        "num_nodes": training.num_nodes,
        "precision": precision(training),
        "workers": training.workers,
    }
