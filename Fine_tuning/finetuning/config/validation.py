"""Which values make sense in an experiment: the limits of each key, and what keys demand of each other."""

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any, get_args
from urllib.parse import urlsplit

from finetuning.config.key_types import key_types
from finetuning.config.schema import Config, manifest_folder, resolve_path
from finetuning.errors import UserError


def validate(config: Config) -> None:
    """Raise UserError for values that have the right type and still make no sense."""
    checks = (_beyond_limits, _wrong_registry, _wrong_dataset, _wrong_steps)
    for problem in chain.from_iterable(check(config) for check in checks):
        raise UserError(f"{config.file}: {problem}")


def _beyond_limits(section: Any, prefix: str = "") -> Iterator[str]:
    """Yield what is wrong with single values: infinite numbers, and what the limits of the schema do not allow."""
    for key in fields(section):
        value, name = getattr(section, key.name), prefix + key.name
        entries = {f"{name}[{number}]": entry for number, entry in enumerate(value)} if isinstance(value, list) else {}
        entries |= {f"{name}.{entry}": content for entry, content in value.items()} if isinstance(value, dict) else {}
        limits, optional = key.metadata.get("limits"), type(None) in get_args(key_types(type(section))[key.name])
        for dotted, single in {name: value, **entries}.items():
            if is_dataclass(single):
                yield from _beyond_limits(single, f"{dotted}.")
            elif isinstance(single, float) and not math.isfinite(single):
                yield f"{dotted} must be a finite number"
            elif limits and isinstance(single, int | float | str) and not limits.allow(single):
                stated = "" if isinstance(single, str) else f"={single}"
                yield f"{dotted}{stated} must be {limits}" + (", or null" if optional else "")


def _wrong_registry(config: Config) -> Iterator[str]:
    """Yield what is wrong with the entries of model.registry. The address itself may hold a password."""
    for name, entry in config.model.registry.items():
        try:
            parts = urlsplit(entry.url)
            secret, host = parts.username is not None or parts.password is not None, parts.hostname
            _ = parts.port  # raises ValueError unless it is a number
        except ValueError:
            secret, host = False, None
        if secret or "@" in entry.url.partition("?")[0]:
            problem = "an address with a user name or a password would be stored and shown; leave them out"
            yield f"model.registry.{name}: {problem} (~/.netrc is read)"
        elif not (host and parts.scheme in ("http", "https") and entry.url.isascii() and entry.url.isprintable()):
            yield f"model.registry.{name}: url must be an address that begins with https:// or http://"
        if not name or "/" in name or name.startswith("."):
            yield (
                f"model.registry.{name}: the name becomes the name of a file; write it without / and without a dot at "
                "its beginning"
            )


def _wrong_dataset(config: Config) -> Iterator[str]:
    """Yield what is wrong with the sections of step 1."""
    dataset, split, alphabet = config.dataset, config.dataset.split, config.text.alphabet
    if abs(split.train + split.validation + split.test - 1) > 1e-6:
        yield "dataset.split: train, validation and test must add up to 1"
    if dataset.min_duration_s >= dataset.max_duration_s:
        yield (
            f"dataset.min_duration_s={dataset.min_duration_s} must be below "
            f"dataset.max_duration_s={dataset.max_duration_s}"
        )
    if len({source.name for source in dataset.sources}) < len(dataset.sources):
        yield "dataset.sources: two have the same name"
    if dataset.sources and not any(source.role == "split" for source in dataset.sources):
        yield "dataset.sources: one must have the role split, of which validation and test are taken"
    for key in ("columns", "recordings", "channel"):
        if dataset.sources and getattr(dataset, key):
            yield f"dataset.{key} means nothing beside dataset.sources; write it into each source that needs it"
    if any(not source.source for source in dataset.sources):
        yield "dataset.sources: each must state its source"
    if (dataset.shards or "").isdecimal():
        yield "dataset.shards must name a folder, or be null; the number of tars follows from the data"
    if dataset.shards and manifest_folder(config).resolve() == resolve_path(dataset.output).resolve():
        yield "dataset.shards must be another folder than dataset.output, or null"
    if twice := _duplicates(alphabet):
        yield f"text.alphabet holds {twice}; take one of them out"
    if " " not in alphabet or alphabet != alphabet.lower():
        yield "text.alphabet must hold the space and no capital: texts are in lower case"


def _wrong_steps(config: Config) -> Iterator[str]:
    """Yield what is wrong with the sections of the later steps."""
    training, language_model, sources = config.training, config.language_model, config.language_model.sources
    if training.frozen_epochs > training.max_epochs:
        yield (
            f"training.frozen_epochs={training.frozen_epochs} must be between 0 and "
            f"training.max_epochs={training.max_epochs}"
        )
    if training.noise.min_snr_db > training.noise.max_snr_db:
        yield (
            f"training.noise.min_snr_db={training.noise.min_snr_db} must be at most "
            f"training.noise.max_snr_db={training.noise.max_snr_db}"
        )
    if not training.name.isprintable():
        yield "training.name must be the name of a file, without a folder"
    if len(training.optimizer.betas) != 2:
        yield "training.optimizer.betas must be two numbers"
    scaled = f" × training.encoder_lr_scale={training.encoder_lr_scale}" if training.encoder_lr_scale < 1 else ""
    if training.schedule.min_lr > training.optimizer.lr * min(1, training.encoder_lr_scale):
        yield (
            f"training.schedule.min_lr={training.schedule.min_lr} must be between 0 and "
            f"training.optimizer.lr={training.optimizer.lr}{scaled}"
        )
    if len(language_model.prune) > language_model.order:
        yield f"language_model.prune must have at most language_model.order={language_model.order} counts"
    if abs(sum(source.weight for source in sources) - 1) > 1e-6:
        yield "language_model.sources: the weights must add up to 1"
    if len({source.name for source in sources}) < len(sources):
        yield "language_model.sources: two have the same name"


def _duplicates(alphabet: str) -> str:
    """Return which character an alphabet holds twice, maybe in two Unicode compositions; "" where there is none."""
    spellings: dict[str, list[str]] = {}
    for character in re.findall(r"(?s).[\u0300-\u036f]*", alphabet):  # with its marks
        code_points = " ".join(f"U+{ord(point):04X}" for point in character)
        spellings.setdefault(unicodedata.normalize("NFC", character), []).append(code_points)
    for character, variants in spellings.items():
        if len(variants) > 1:
            return f"{character!r} twice" + (f", as {' and as '.join(variants)}" if len(set(variants)) > 1 else "")
    return ""
