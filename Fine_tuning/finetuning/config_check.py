"""Which values make sense in an experiment."""

import math
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from finetuning.config import Config, data_folder, resolve
from finetuning.errors import UserError

ACCELERATORS = ("auto", "gpu", "cpu")
PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed")
OPTIMIZERS = ("novograd", "adamw")
DECODERS = ("greedy", "lm")
MOST_WORDS = 6  # of an n-gram that flashlight's KenLM can read; it reads no model of single words either


def _numbers(part: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of the tree with its dotted key."""
    for name, value in part.items() if isinstance(part, dict) else enumerate(part):
        if isinstance(value, dict | list):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}", value


def _twice(alphabet: str) -> str:
    """Which letter stands twice in an alphabet, maybe in two Unicode compositions; "" where none does."""
    spellings: dict[str, list[str]] = {}
    for letter in re.findall(r"(?s).[\u0300-\u036f]*", alphabet):  # with its marks
        points = " ".join(f"U+{ord(character):04X}" for character in letter)
        spellings.setdefault(unicodedata.normalize("NFC", letter), []).append(points)
    for letter, found in spellings.items():
        if len(found) > 1:
            return f"{letter!r} twice" + (f", as {' and as '.join(found)}" if len(set(found)) > 1 else "")
    return ""


def check(config: Config) -> None:
    """UserError for values that have the right type and still make no sense."""
    dataset, split, training = config.dataset, config.dataset.split, config.training
    language_model, evaluation = config.language_model, config.evaluation
    optimizer, alphabet, shares = training.optimizer, config.text.alphabet, (split.train, split.validation, split.test)
    infinite = [key for key, number in _numbers(config.as_dict()) if not math.isfinite(number)]
    wrong = [
        (infinite, f"{', '.join(infinite)} must be a finite number"),
        (
            min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6,
            "dataset.split: train, validation and test must be above 0 and add up to 1",
        ),
        (
            not 0 <= dataset.min_duration_s < dataset.max_duration_s,
            "dataset.min_duration_s must be at least 0 and below dataset.max_duration_s",
        ),
        (
            not re.fullmatch(r"[\w.-]*", dataset.download or ""),
            "dataset.download must be an id of the Mozilla Data Collective, or null",
        ),
        (
            not re.fullmatch(r"([0-9a-f]{64})?", dataset.archive.sha256) or dataset.archive.size_bytes < 0,
            "dataset.archive: sha256 must be 64 hexadecimal digits in lower case, and size_bytes at least 0",
        ),
        (not 0 < dataset.max_missing_share <= 1, "dataset.max_missing_share must be above 0 and at most 1"),
        (dataset.encoder_frames_per_second <= 0, "dataset.encoder_frames_per_second must be above 0"),
        (
            dataset.trim_silence_db is not None and dataset.trim_silence_db <= 0,
            "dataset.trim_silence_db must be above 0, or null",
        ),
        (
            bool(dataset.shards) and data_folder(config).resolve() == resolve(dataset.output).resolve(),
            "dataset.shards must be another folder than dataset.output, or null",
        ),
        (
            (dataset.shards or "").isdecimal(),
            "dataset.shards must name a folder, or be null; how many tars there are follows from the data",
        ),
        (min(dataset.workers, training.workers) < 0, "dataset.workers and training.workers must be 0 or more"),
        (bool(twice := _twice(alphabet)), f"text.alphabet holds {twice}; take one of them out"),
        (
            " " not in alphabet or alphabet != alphabet.lower(),
            "text.alphabet must hold the space and no capital: texts are in lower case",
        ),
        (
            min(training.max_epochs, training.batch_size, evaluation.batch_size) < 1,
            "training.max_epochs, training.batch_size and evaluation.batch_size must be at least 1",
        ),
        (
            not 0 <= training.frozen_epochs <= training.max_epochs,
            f"training.frozen_epochs={training.frozen_epochs} must be between 0 and "
            f"training.max_epochs={training.max_epochs}",
        ),
        (training.keep_best < -1, "training.keep_best must be 0 or more, or -1 for all"),
        (
            training.gradient_clip is not None and training.gradient_clip <= 0,
            "training.gradient_clip must be above 0, or null",
        ),
        (not 0 <= training.speed_perturbation < 0.5, "training.speed_perturbation must be at least 0 and below 0.5"),
        (
            training.decoder_init not in ("random", "warm"),
            "training.decoder_init must be one of random, warm",
        ),
        (training.batch_norm not in ("train", "frozen"), "training.batch_norm must be one of train, frozen"),
        (
            training.batch_duration_s is not None and training.batch_duration_s <= 0,
            "training.batch_duration_s must be above 0, or null",
        ),
        (
            min(training.checkpoint_minutes, training.encoder_lr_scale, training.overfit) < 0,
            "training.checkpoint_minutes, training.encoder_lr_scale and training.overfit must be 0 or more",
        ),
        (training.accelerator not in ACCELERATORS, f"training.accelerator must be one of {', '.join(ACCELERATORS)}"),
        (training.precision not in PRECISIONS, f"training.precision must be one of {', '.join(PRECISIONS)}"),
        (optimizer.name not in OPTIMIZERS, f"training.optimizer.name must be one of {', '.join(OPTIMIZERS)}"),
        (
            len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas),
            "training.optimizer.betas must be two numbers from 0 to below 1",
        ),
        (optimizer.weight_decay < 0, "training.optimizer.weight_decay must be at least 0"),
        (
            not 0 <= training.schedule.min_lr <= optimizer.lr or optimizer.lr == 0,
            f"training.schedule.min_lr={training.schedule.min_lr} must be between 0 and "
            f"training.optimizer.lr={optimizer.lr}, which must be above 0",
        ),
        (not 0 <= training.schedule.warmup_ratio < 1, "training.schedule.warmup_ratio must be at least 0 and below 1"),
        (
            min(training.devices, training.num_nodes) < 1,
            "training.devices and training.num_nodes must be at least 1",
        ),
        (
            not training.name or "/" in training.name or training.name.startswith("."),
            "training.name must be the name of a file, without a folder",
        ),
        (
            not all(
                (dataset.output, training.output, language_model.output, evaluation.predictions, evaluation.results)
            ),
            "dataset.output, training.output, language_model.output, evaluation.predictions and evaluation.results "
            "must not be empty",
        ),
        (evaluation.decoder not in DECODERS, f"evaluation.decoder must be one of {', '.join(DECODERS)}"),
        (
            not 2 <= language_model.order <= MOST_WORDS,
            f"language_model.order must be between 2 and {MOST_WORDS}, which the decoder takes",
        ),
        (
            min([language_model.min_count, *language_model.prune, 1]) < 0
            or language_model.min_count < 1
            or len(language_model.prune) > language_model.order,
            "language_model.min_count must be at least 1, and prune a list of at most `order` counts of 0 or more",
        ),
        (
            not language_model.sources
            or min(source.weight for source in language_model.sources) <= 0
            or abs(sum(source.weight for source in language_model.sources) - 1) > 1e-6,
            "language_model.sources: the weights must be above 0 and add up to 1",
        ),
        (
            len({source.name for source in language_model.sources}) < len(language_model.sources),
            "language_model.sources: two have the same name",
        ),
    ]
    for is_wrong, sentence in wrong:
        if is_wrong:
            raise UserError(f"{config.file}: {sentence}")
