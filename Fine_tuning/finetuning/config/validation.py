"""Which types and values make sense in an experiment."""

import difflib
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from finetuning.config.schema import Config, RegistryEntry, manifest_folder, resolve_path
from finetuning.errors import UserError

ACCELERATORS = ("auto", "gpu", "cpu")
PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed")
OPTIMIZERS = ("novograd", "adamw")
DECODERS = ("greedy", "lm")
MAX_ORDER = 6  # of an n-gram that flashlight's KenLM can read; it reads no model of single words either
MAX_NUMBER = 2**63 - 1  # whole number
MAX_SEED = 2**32 - 1  # that numpy takes
MAX_PROCESSES = 1024
EXPECTED = {
    int: ("a whole number", "5"),
    float: ("a number", "0.5"),
    bool: ("true or false", "true"),
    str: ("text", ""),
}


def validate_types(value: Any, kind: Any, key: str, where: str) -> None:
    """UserError where `value`, plain as YAML gives it, is not of the type `kind` of the key; says what it should be."""
    if get_origin(kind) is UnionType:
        if value is None:
            return
        kind = get_args(kind)[0]
    if is_dataclass(kind):
        _check_section(value, kind, key, where)
    elif get_origin(kind) is list:
        if not isinstance(value, list):
            entry = "…" if value is None or isinstance(value, dict) else _shortened(value).strip("'")
            raise UserError(f"{where}: {key}: {_shortened(value)} is not a list, as in {key}=[{entry}]")
        for number, entry in enumerate(value):
            validate_types(entry, get_args(kind)[0], f"{key}[{number}]", where)
    elif get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: {key}: {_shortened(value)} is not a mapping, as in {key}={_example(kind)}")
        for name, entry in value.items():
            validate_types(name, str, f"{key}, as a name", where)
            validate_types(entry, get_args(kind)[1], f"{key}.{name}", where)
    else:
        _check_scalar(value, kind, key, where)


def _example(kind: Any) -> str:
    entry = get_args(kind)[1]
    if is_dataclass(entry):
        return "{name: {url: https://…}}"
    return "{name: [word, word]}" if get_origin(entry) is list else "{this: that}"


def _check_section(value: Any, kind: Any, key: str, where: str) -> None:
    if not isinstance(value, dict):
        first = next(iter(get_type_hints(kind)))
        what = (
            f"{key} is empty; write its keys below it" if value is None else f"{key}: {_shortened(value)} is no section"
        )
        raise UserError(f"{where}: {what}, as in {key}: {{{first}: …}}")
    kinds = _kinds(kind)
    for name, entry in value.items():
        dotted = f"{key}.{name}" if key else str(name)
        if name not in kinds:
            raise UserError(f"{where}: there is no key {shown_value(dotted)}; did you mean {_nearest(dotted)}?")
        validate_types(entry, kinds[name], dotted, where)


def _check_scalar(value: Any, kind: Any, key: str, where: str) -> None:
    if isinstance(kind, type) and issubclass(kind, Enum):
        if not isinstance(value, str) or value not in kind.__members__:
            raise UserError(f"{where}: {key}: {_shortened(value)} is not one of {', '.join(kind.__members__)}")
        return
    wanted, example = EXPECTED[kind]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_NUMBER:
        raise UserError(f"{where}: {key}: a number of {len(str(value))} digits is too large; {wanted} is expected")
    fits = {
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool),
        bool: isinstance(value, bool),
        str: isinstance(value, str),
    }
    if not fits[kind] and kind is str:
        truth = " (yes, no, on, off, true and false stand for true and false)" if isinstance(value, bool) else ""
        how = "state one" if value is None else f"write it in quotes{truth}"
        raise UserError(f"{where}: {key}: {_shortened(value)} is not a text; {how}")
    if not fits[kind]:
        quoted = ", without quotes" if isinstance(value, str) and re.fullmatch(r"-?[\d.]+|true|false", value) else ""
        such = f"such as {example}" if "[" in key else f"as in {key}={example}"
        raise UserError(f"{where}: {key}: {_shortened(value)} is not {wanted}, {such}{quoted}")
    if isinstance(value, str):
        _check_text(value, key, where)


def _check_text(value: str, key: str, where: str) -> None:
    if "${" in value:
        raise UserError(
            f"{where}: {key}: {_shortened(value)} holds ${{, which stands for nothing here; write the value out "
            "(in a regular expression: [$][{])"
        )
    if value == "???":
        raise UserError(f"{where}: {key}: ??? stands for a value that is still to be written; write it")
    if wrong := [c for c in value if "\ud800" <= c <= "\udfff" or c == "\0"]:
        raise UserError(f"{where}: {key}: U+{ord(wrong[0]):04X} is not a character; leave it out")


@cache
def _kinds(section: Any) -> dict[str, Any]:
    """The keys of a dataclass and their types."""
    names = {field.name for field in fields(section)}
    return {name: kind for name, kind in get_type_hints(section).items() if name in names}


def type_name(key: str) -> Any:
    """The type of a dotted key of the tree; None where there is no such key."""
    kind: Any = Config
    for name in key.split("."):
        kinds = _kinds(kind) if is_dataclass(kind) else {}
        kind = get_args(kind)[1] if get_origin(kind) is dict else kinds.get(name)
    return kind


def _nearest(key: str) -> str:
    """The existing key most like `key`; a key given without its section is looked for in all of them."""
    keys = list(_keys(Config))
    key = re.sub(r"^(model\.registry)\.[^.]+", r"\1.NAME", re.sub(r"\[\d+\]", "[]", key))
    section, _, name = key.rpartition(".")
    sections = {known.rpartition(".")[0] for known in keys}
    same_name = [known for known in keys if known.rpartition(".")[2] == name]
    if same_name:  # the section is wrong or missing
        keys = same_name
    elif not section or section not in sections:
        names = [known.rpartition(".")[2] for known in keys]
        keys = [keys[names.index(n)] for n in difflib.get_close_matches(name, names, n=1, cutoff=0.7)] or keys
    return difflib.get_close_matches(key, keys, n=1, cutoff=0.0)[0]


def _keys(section: Any, prefix: str = "") -> Iterator[str]:
    """All dotted keys below a dataclass, those of its lists' and mappings' entries included."""
    for name, kind in _kinds(section).items():
        yield prefix + name
        entry = get_args(kind)[-1] if get_origin(kind) in (list, dict) else kind
        if is_dataclass(entry):
            yield from _keys(entry, f"{prefix}{name}{ {list: '[]', dict: '.NAME'}.get(get_origin(kind), '') }.")


def _shortened(value: Any) -> str:
    """A value in a message: short, in one line, without the password or the token of an address."""
    if value is None:
        return "null (nothing)"
    if isinstance(value, bool):
        return str(value).lower()
    return shown_value(repr(value))


def shown_value(text: str) -> str:
    """Foreign text in a message, without the password or the token of an address."""
    text = re.sub(r"//[^\s'\"]*@", "//…@", text)
    text = re.sub(r"(://[^?#\s'\"]*)[?#][^\s'\"]*", r"\1", text)
    return text if len(text) <= 120 else f"{text[:100]} …"


def _number_rules(part: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of the tree with its dotted key."""
    for name, value in part.items() if isinstance(part, dict) else enumerate(part):
        if isinstance(value, dict | list):
            yield from _number_rules(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}", value


def _wrong_download(name: str, download: RegistryEntry) -> str:
    """What is wrong with an entry of model.registry; "" where nothing is. The address itself may hold a password."""
    try:
        parts = urlsplit(download.url)
        secret, host = parts.username is not None or parts.password is not None, parts.hostname
        _ = parts.port  # refuses what is no number
    except ValueError:
        secret, host = False, None
    if secret or "@" in download.url.partition("?")[0]:
        return "an address with a user name or a password would be stored and shown; leave them out (~/.netrc is read)"
    if not (host and parts.scheme in ("http", "https") and download.url.isascii() and download.url.isprintable()):
        return "url must be an address that begins with https:// or http://"
    if not name or "/" in name or name.startswith("."):
        return "the name becomes the name of a file; write it without / and without a dot at its beginning"
    if download.size_bytes is not None and download.size_bytes < 1:
        return "size_bytes must be above 0, or null"
    if not re.fullmatch(r"([0-9a-f]{64})?", download.sha256 or ""):
        return "sha256 must be 64 hexadecimal digits in lower case, or null"
    return ""


def _duplicates(alphabet: str) -> str:
    """Which letter stands twice in an alphabet, maybe in two Unicode compositions; "" where none does."""
    spellings: dict[str, list[str]] = {}
    for letter in re.findall(r"(?s).[\u0300-\u036f]*", alphabet):  # with its marks
        points = " ".join(f"U+{ord(character):04X}" for character in letter)
        spellings.setdefault(unicodedata.normalize("NFC", letter), []).append(points)
    for letter, found in spellings.items():
        if len(found) > 1:
            return f"{letter!r} twice" + (f", as {' and as '.join(found)}" if len(set(found)) > 1 else "")
    return ""


def validate(config: Config) -> None:
    """UserError for values that have the right type and still make no sense."""
    dataset, split, training = config.dataset, config.dataset.split, config.training
    language_model, evaluation = config.language_model, config.evaluation
    optimizer, alphabet, shares = training.optimizer, config.text.alphabet, (split.train, split.validation, split.test)
    registry = {name: _wrong_download(name, download) for name, download in config.model.registry.items()}
    infinite = [key for key, number in _number_rules(config.as_dict()) if not math.isfinite(number)]
    wrong = [
        (infinite, f"{', '.join(infinite)} must be a finite number"),
        *((told, f"model.registry.{name}: {told}") for name, told in registry.items()),
        (
            not 0 <= training.seed <= MAX_SEED,
            f"training.seed must be a whole number from 0 to {MAX_SEED}",
        ),
        (
            max(dataset.workers, training.workers) > MAX_PROCESSES,
            f"dataset.workers and training.workers must be at most {MAX_PROCESSES}",
        ),
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
            bool(dataset.shards) and manifest_folder(config).resolve() == resolve_path(dataset.output).resolve(),
            "dataset.shards must be another folder than dataset.output, or null",
        ),
        (
            (dataset.shards or "").isdecimal(),
            "dataset.shards must name a folder, or be null; how many tars there are follows from the data",
        ),
        (min(dataset.workers, training.workers) < 0, "dataset.workers and training.workers must be 0 or more"),
        (bool(twice := _duplicates(alphabet)), f"text.alphabet holds {twice}; take one of them out"),
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
            min(training.checkpoint_minutes, training.encoder_lr_scale) < 0,
            "training.checkpoint_minutes and training.encoder_lr_scale must be 0 or more",
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
            not training.name.isprintable() or not re.fullmatch(r"[^/.][^/]{,199}", training.name),
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
            not 2 <= language_model.order <= MAX_ORDER,
            f"language_model.order must be between 2 and {MAX_ORDER}, which the decoder takes",
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
