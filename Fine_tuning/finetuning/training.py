"""Fine-tuning in two phases with Lightning: first the encoder's convolutions are frozen, then everything learns."""

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from nemo.collections.asr.data.audio_to_text import AudioToCharDataset
from nemo.collections.asr.models import EncDecCTCModel
from nemo.collections.asr.parts.preprocessing.perturb import process_augmentations
from omegaconf import open_dict
from soundfile import LibsndfileError
from torch.utils.data import DataLoader

from finetuning import config as experiment
from finetuning.batches import Batches
from finetuning.callbacks import Bar, LastCheckpoints, Metrics, Phases, last_checkpoint
from finetuning.errors import UserError
from finetuning.manifest import manifest_path
from finetuning.model import build, labels, restore, set_alphabet


def starting_point(config: experiment.Config, base: Path | None) -> EncDecCTCModel:
    """The base model with the configuration's alphabet, or a new model of its architecture when there is no base."""
    if base is None:
        return build(experiment.resolve(config.model.architecture), config.text.alphabet, config.training.seed)
    model = restore(base)
    pl.seed_everything(config.training.seed, verbose=False)  # the new decoder's weights
    set_alphabet(model, config.text.alphabet, config.training.decoder_init)
    return model


DDP = "ddp_find_unused_parameters_true"  # what is frozen is unused


class Reader:
    """NeMo's dataset, asked for (epoch, index): an utterance's perturbation depends on these and the seed alone."""

    def __init__(self, dataset: AudioToCharDataset, seed: int) -> None:
        """`seed` of the run."""
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        """Utterances."""
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """As NeMo's; UserError names a wav that cannot be read."""
        epoch, index = key
        random.seed(f"{self.seed} {epoch} {index}")
        try:
            return self.dataset[index]
        except (OSError, LibsndfileError) as error:
            path = self.dataset.manifest_processor.collection[index].audio_file
            raise UserError(f"cannot read {path} ({error}); run step 1 again, it makes only what is missing") from error


def connect_data(model: EncDecCTCModel, config: experiment.Config, trainer: pl.Trainer) -> tuple[Batches, Batches]:
    """Give the model its training and validation utterances. Texts are used as they stand: step 1 has cleaned them."""
    change = config.training.speed_perturbation
    speed = {
        "prob": 1.0, "sr": model.cfg.preprocessor.sample_rate, "resample_type": "scipy", "num_rates": 5,
        "min_speed_rate": 1 - change, "max_speed_rate": 1 + change,
    }  # fmt: skip
    model._train_dl, train = _loader(model, config, trainer, "train", {"speed": speed} if change else None)
    model._validation_dl, validation = _loader(model, config, trainer, "validation", None)
    return train, validation


def _loader(
    model: EncDecCTCModel, config: experiment.Config, trainer: pl.Trainer, split: str, augmentor: dict[str, Any] | None
) -> tuple[DataLoader, Batches]:
    training = config.training
    dataset = AudioToCharDataset(
        manifest_filepath=str(manifest_path(experiment.resolve(config.dataset.output), split)),
        labels=labels(model),
        sample_rate=model.cfg.preprocessor.sample_rate,
        augmentor=process_augmentations(augmentor) if augmentor else None,
        normalize=False,  # an English cleaner
        parser="base",
    )
    durations_s = [utterance.duration for utterance in dataset.manifest_processor.collection]
    batches = Batches(
        durations_s, training.batch_size, training.batch_duration_s, training.seed,
        trainer.global_rank, trainer.world_size, shuffle=split == "train",
    )  # fmt: skip
    loader = DataLoader(
        Reader(dataset, training.seed), batch_sampler=batches, collate_fn=dataset.collate_fn,
        num_workers=training.workers, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    return loader, batches


def connect_optimizer(model: EncDecCTCModel, training: experiment.Training, steps: int) -> None:
    """Give the model NeMo's `optim` section; NeMo builds the optimiser and its schedule when fit() starts."""
    schedule = {"name": "CosineAnnealing", "max_steps": steps, **vars(training.schedule)}
    with open_dict(model.cfg):
        model.cfg.optim = {**vars(training.optimizer), "sched": schedule}
        if training.encoder_lr_scale != 1:
            model.cfg.optim_param_groups = {"encoder": {"lr": training.optimizer.lr * training.encoder_lr_scale}}


def fit(model: EncDecCTCModel, config: experiment.Config, output: Path) -> None:
    """Train until `max_epochs`, going on from the last checkpoint in `output` when there is one.

    Writes checkpoints/, tensorboard/ and metrics.csv below `output`; the model holds the last epoch's weights after.
    """
    training = config.training
    if training.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("training.accelerator=gpu, and torch finds no GPU; type training.accelerator=auto")
    on_gpu = training.accelerator != "cpu" and torch.cuda.is_available()
    together = training.devices * training.num_nodes > 1
    best = ModelCheckpoint(
        dirpath=output / "checkpoints", filename="epoch={epoch:03d}-val_loss={val_loss:.3f}",
        monitor="val_loss", save_top_k=training.keep_best, auto_insert_metric_name=False,
        enable_version_counter=False,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=training.max_epochs,
        accelerator=training.accelerator,
        devices=training.devices,
        num_nodes=training.num_nodes,
        strategy=DDP if training.strategy == "auto" and together else training.strategy,
        precision=("16-mixed" if on_gpu else "32-true") if training.precision == "auto" else training.precision,
        gradient_clip_val=training.gradient_clip,
        use_distributed_sampler=False,  # Batches gives every rank its own
        logger=TensorBoardLogger(output, name="tensorboard", version=""),
        callbacks=[
            Phases(training.frozen_epochs, training.batch_norm, training.seed),
            Metrics(output / "metrics.csv", training.frozen_epochs),
            Bar(leave=False),
            best,
            LastCheckpoints(output / "checkpoints", training.checkpoint_minutes),
        ],
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    model.set_trainer(trainer)
    batches, _ = connect_data(model, config, trainer)
    connect_optimizer(model, training, len(batches) * training.max_epochs)
    checkpoint, state = last_checkpoint(output / "checkpoints")
    if checkpoint:
        if trainer.is_global_zero:
            print(f"Going on from {checkpoint}")
        done = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["completed"]
        batches.epoch, batches.start = state["epoch"] + done // len(batches), done % len(batches)
    try:
        trainer.fit(model, ckpt_path=checkpoint)
    except SystemExit as error:  # how Lightning ends after Ctrl-C
        raise KeyboardInterrupt from error
    except UserError as error:  # of a reading process it comes with that one's traceback before it
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("finetuning.errors.UserError: ")) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(_NO_MEMORY) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise UserError(_NO_MEMORY) from error
        if together and any(word in str(error) for word in ("gloo", "NCCL", "Connection")):
            raise UserError(
                "a process that trains together with this one has ended; the last checkpoint is intact, the same "
                "command goes on from there"
            ) from error
        raise
    finally:
        if torch.distributed.is_initialized():  # NeMo's encoder would ask the other processes at every call
            torch.distributed.destroy_process_group()


_NO_MEMORY = (
    "not enough memory for a batch; the last checkpoint is intact; type a smaller training.batch_size=… or "
    "training.batch_duration_s=…, in a new training.output"
)


def device(accelerator: str) -> str:
    """What training runs on here, in words."""
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
