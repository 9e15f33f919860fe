"""Fine-tuning in two phases with Lightning: first the encoder's convolutions are frozen, then everything learns."""

import random
import signal
import textwrap
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import soundfile
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from nemo.collections.asr.data.audio_to_text import AudioToCharDataset
from nemo.collections.asr.models import EncDecCTCModel
from nemo.collections.asr.parts.preprocessing.features import WaveformFeaturizer
from nemo.collections.asr.parts.preprocessing.perturb import process_augmentations
from omegaconf import open_dict
from soundfile import LibsndfileError
from torch.utils.data import DataLoader

from finetuning import config as experiment
from finetuning.audio import RATE, refuse_cut_off
from finetuning.batches import Batches
from finetuning.callbacks import Metrics, Others, Phases
from finetuning.checkpoints import BEGINNING, BestCheckpoints, LastCheckpoints, Start, WholeFiles
from finetuning.errors import Terminated, UserError, printable
from finetuning.faults import in_one_sentence
from finetuning.manifest import manifest_path, read_line
from finetuning.model import build, frame_duration_s, labels, restore, sample_rate, set_alphabet
from finetuning.selection import frames_needed
from finetuning.shards import Member, opened
from finetuning.watch import Bar, Watch


def starting_point(config: experiment.Config, base: Path | None) -> EncDecCTCModel:
    """Return the base model with the configuration's alphabet, or a new one of its architecture when there is no base.

    UserError for a model that would learn, and that step 3 would then refuse.
    """
    if base is None:
        architecture = experiment.resolve(config.model.architecture)
        model = build(architecture, config.text.alphabet, config.training.seed)
        refuse_unfit(model, architecture, config)
        return model
    model = restore(base)
    refuse_unfit(model, base, config)
    pl.seed_everything(config.training.seed, verbose=False)  # the new decoder's weights
    set_alphabet(model, config.text.alphabet, config.training.decoder_init)
    return model


def refuse_unfit(model: EncDecCTCModel, path: Path, config: experiment.Config) -> None:
    """UserError where the model of `path` does not fit the wavs of step 1: their sample rate, their shortest length."""
    rate, frames, wanted = sample_rate(model), 1 / frame_duration_s(model), config.dataset.encoder_frames_per_second
    if rate != RATE:
        raise UserError(
            f"{path} takes sound of {rate:,} Hz, and step 1 makes wavs of {RATE:,} Hz: step 3 could not run what is "
            "trained from it; name another model.base or model.architecture"
        )
    if frames < wanted * (1 - 1e-6):
        raise UserError(
            f"{path} gives {frames:g} frames a second, and step 1 has kept utterances that need {wanted:g}; type "
            f"dataset.encoder_frames_per_second={frames:g} for steps 1 and 2, or name another base"
        )


DDP = "ddp_find_unused_parameters_true"  # what is frozen is unused


class Featurizer(WaveformFeaturizer):
    """NeMo's, of a wav wherever it lies."""

    def process(self, file_path: str | Member, *args: Any, **how: Any) -> torch.Tensor:
        """Samples, (time,)."""
        return super().process(opened(file_path), *args, **how)


def _item(line: str, manifest: str) -> dict[str, Any]:
    """A line of a manifest for NeMo, which would look for each wav, the one in a shard too, as a file of its own."""
    utterance = read_line(line, manifest)
    wav = utterance.wav(Path(manifest).parent)
    unused = dict.fromkeys(("offset", "speaker", "orig_sr", "token_labels", "lang"))
    place = str(wav) if isinstance(wav, Path) else wav
    return {"audio_file": place, "duration": utterance.duration, "text": utterance.text, **unused}


class Reader:
    """NeMo's dataset, asked for (epoch, index): an utterance's perturbation depends on these and the seed alone."""

    def __init__(self, dataset: AudioToCharDataset, seed: int) -> None:
        """`seed` of the run."""
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        """Utterances."""
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """As NeMo's; UserError names a wav that cannot be read, or is shorter than its manifest says."""
        epoch, index = key
        random.seed(f"{self.seed} {epoch} {index}")
        utterance = self.dataset.manifest_processor.collection[index]
        try:
            if not isinstance(utterance.audio_file, Member):  # that one looks itself
                found = soundfile.info(utterance.audio_file)
                refuse_cut_off(found.duration, utterance.duration)
                if (found.samplerate, found.channels) != (RATE, 1):  # NeMo would take it, step 3 would not
                    raise OSError(f"it has {found.samplerate} Hz and {found.channels} channel(s), not {RATE} Hz and 1")
            return self.dataset[index]
        except (OSError, LibsndfileError) as error:
            raise UserError(
                f"cannot read {utterance.audio_file} ({error}); run step 1 again, it makes only what is missing"
            ) from error


class Loader(DataLoader):
    """Leaves Ctrl-C to the process that trains, which ends those that read."""

    def __iter__(self) -> Any:
        """As torch's; a process started meanwhile never gets Ctrl-C."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def connect_data(model: EncDecCTCModel, config: experiment.Config, trainer: pl.Trainer) -> tuple[Batches, Batches]:
    """Give the model its training and validation utterances. Texts are used as they stand: step 1 has cleaned them."""
    change = config.training.speed_perturbation
    speed = {
        "prob": 1.0, "sr": model.cfg.preprocessor.sample_rate, "resample_type": "scipy", "num_rates": 5,
        "min_speed_rate": 1 - change, "max_speed_rate": 1 + change,
    }  # fmt: skip
    model._train_dl, train = loader(model, config, trainer, "train", {"speed": speed} if change else None)
    model._validation_dl, validation = loader(model, config, trainer, "validation")
    return train, validation


def loader(
    model: EncDecCTCModel,
    config: experiment.Config,
    trainer: pl.Trainer,
    split: str,
    augmentor: dict[str, Any] | None = None,
) -> tuple[DataLoader, Batches]:
    """The utterances of a manifest in batches for this rank, but not those that are too short for CTC."""
    training = config.training
    dataset = AudioToCharDataset(
        manifest_filepath=str(manifest_path(experiment.data_folder(config), split)),
        manifest_parse_func=_item,
        labels=labels(model),
        sample_rate=model.cfg.preprocessor.sample_rate,
        normalize=False,  # an English cleaner
        parser="base",
    )
    dataset.featurizer = Featurizer(
        model.cfg.preprocessor.sample_rate, augmentor=process_augmentations(augmentor) if augmentor else None
    )
    utterances = dataset.manifest_processor.collection
    utterances.data = utterances.data[: training.overfit or None]
    change = training.speed_perturbation if split == "train" else 0.0
    utterances.data = _long_enough(utterances.data, model, change, split, trainer.is_global_zero)
    durations_s = [utterance.duration for utterance in utterances]
    batches = Batches(
        durations_s, training.batch_size, training.batch_duration_s, training.seed,
        trainer.global_rank, trainer.world_size, shuffle=split == "train",
    )  # fmt: skip
    data = Loader(
        Reader(dataset, training.seed), batch_sampler=batches, collate_fn=dataset.collate_fn,
        num_workers=training.workers, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    return data, batches


def _long_enough(utterances: list[Any], model: EncDecCTCModel, change: float, split: str, speaks: bool) -> list[Any]:
    """Those to whose letters CTC can give a probability: the others have no loss, and the text teaches nothing."""
    frame_s = frame_duration_s(model)
    kept = [u for u in utterances if frames_needed(u.text_tokens) <= u.duration / (1 + change) / frame_s + 1e-6]
    if not kept:
        raise UserError(f"every utterance of the {split} manifest is too short for its text; run step 1 again")
    if speaks and len(kept) < len(utterances):
        print(
            f"{split}: {len(utterances) - len(kept):,} of {len(utterances):,} utterances are left out, too short for "
            "their texts: CTC needs a frame for each letter and one more between equal letters"
        )
    return kept


def connect_optimizer(model: EncDecCTCModel, training: experiment.Training, steps: int) -> None:
    """Give the model NeMo's `optim` section; NeMo builds the optimiser and its schedule when fit() starts."""
    schedule = {"name": "CosineAnnealing", "max_steps": steps, **vars(training.schedule)}
    with open_dict(model.cfg):
        model.cfg.optim = {**vars(training.optimizer), "sched": schedule}
        if training.encoder_lr_scale != 1:
            model.cfg.optim_param_groups = {"encoder": {"lr": training.optimizer.lr * training.encoder_lr_scale}}


def hardware(training: experiment.Training) -> dict[str, Any]:
    """What Lightning's Trainer is told about where and how exactly it computes."""
    if training.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("training.accelerator=gpu, and torch finds no GPU; type training.accelerator=auto")
    together = training.devices * training.num_nodes > 1
    return {
        "accelerator": training.accelerator,
        "devices": training.devices,
        "num_nodes": training.num_nodes,
        "strategy": DDP if training.strategy == "auto" and together else training.strategy,
        "precision": precision(training),
        "gradient_clip_val": training.gradient_clip,
        "deterministic": "warn" if training.deterministic else None,  # not an error: CTC's gradients on a GPU are not
        "use_distributed_sampler": False,  # Batches gives every rank its own
    }


def trainer_of(training: experiment.Training, output: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Lightning's Trainer; UserError where the machine, or the job of SLURM, is not as the configuration says."""
    where = hardware(training)
    try:
        return pl.Trainer(
            max_epochs=training.max_epochs,
            **where,
            logger=TensorBoardLogger(output, name="tensorboard", version=""),
            plugins=[WholeFiles()],
            callbacks=callbacks,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            log_every_n_steps=10,
        )
    except (MisconfigurationException, ImportError, RuntimeError, ValueError) as error:
        reason = textwrap.shorten(printable(str(error)), 250, placeholder=" …")
        raise UserError(
            "Lightning cannot train with these training.accelerator, devices, num_nodes, strategy and precision here "
            f"({reason}); change them or how the job is started"
        ) from error


def fit(model: EncDecCTCModel, config: experiment.Config, output: Path, start: Start = BEGINNING) -> list[str]:
    """Train until `max_epochs`, from the beginning or from where a run was cut off; gives the warnings.

    Writes checkpoints/, tensorboard/ and metrics.csv below `output`; the model holds the last epoch's weights after.
    UserError for what a user can mend, Terminated after SIGTERM.
    """
    training = config.training
    together = training.devices * training.num_nodes > 1
    metrics = Metrics(output / "metrics.csv", training.frozen_epochs)
    watch = Watch(metrics, training.schedule.warmup_ratio)
    last = LastCheckpoints(output / "checkpoints", training.checkpoint_minutes)
    callbacks = [
        Phases(training.frozen_epochs, training.batch_norm, training.seed),
        Others(),
        metrics,
        watch,
        Bar(watch),
        BestCheckpoints(output / "checkpoints", training.keep_best),
        last,
    ]
    trainer = trainer_of(training, output, callbacks)
    model.set_trainer(trainer)
    batches, _ = connect_data(model, config, trainer)
    connect_optimizer(model, training, len(batches) * training.max_epochs)
    batches.epoch, batches.start = start.epochs, start.batches
    try:
        with in_one_sentence(together):
            trainer.fit(model, ckpt_path=start.path)
    except UserError as error:
        if last.ending:  # the processes that read get SIGTERM too, and end sooner
            raise Terminated from error
        for process in getattr(trainer.strategy.launcher, "procs", ()):  # it may wait for this one for ever
            process.kill()
        raise
    finally:
        if torch.distributed.is_initialized():  # NeMo's encoder would ask the other processes at every call
            torch.distributed.destroy_process_group()
    return list(watch.said.values())


def precision(training: experiment.Training) -> str:
    """What training computes in, as Lightning calls it."""
    if training.precision != "auto":
        return training.precision
    return "16-mixed" if on_gpu(training.accelerator) else "32-true"


def on_gpu(accelerator: str) -> bool:
    """Whether training runs on a GPU here."""
    return accelerator != "cpu" and torch.cuda.is_available()


def device(accelerator: str) -> str:
    """What training runs on here, in words."""
    return torch.cuda.get_device_name() if on_gpu(accelerator) else f"CPU, {torch.get_num_threads()} threads"


def circumstances(training: experiment.Training, start: Start) -> dict[str, Any]:
    """Where a run goes on, and on what: for its record."""
    return {
        "epochs_done": start.epochs,
        "steps_done": start.steps,
        "device": device(training.accelerator),
        "threads": torch.get_num_threads(),
        "devices": training.devices,
        "num_nodes": training.num_nodes,
        "precision": precision(training),
        "workers": training.workers,
    }
