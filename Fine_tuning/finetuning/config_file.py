"""One experiment = one YAML file, merged with the command line into config.Config; a mistake is refused by name."""

import argparse
import difflib
import unicodedata
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.config import ROOT, Config, Published, Rule, Source, resolve
from finetuning.config_check import check
from finetuning.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def from_command_line(description: str) -> Config:
    """The experiment that `--config FILE section.key=value …` names; `--help` needs none of the heavy imports."""
    arguments = command_line(description).parse_intermixed_args()
    return load(arguments.config, arguments.overrides)


def command_line(description: str) -> argparse.ArgumentParser:
    """Takes `--config FILE section.key=value …`; a script can add options of its own."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every key of the configuration can be given as section.key=value, for example training.max_epochs=20.\n"
        "configs/italian.yaml explains each one. Paths are relative to the project's folder.",
    )
    parser.add_argument("--config", default="configs/italian.yaml", metavar="FILE", help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces a value of the file")
    return parser


def load(file: str, overrides: list[str]) -> Config:
    """Read `file` (and the file it extends), apply the overrides and check the result.

    UserError names an unknown key with the nearest existing one, a value of the wrong type, or a value out of range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = OmegaConf.structured(Config)
    for name, layer in _layers(file, ()):
        tree = _merge(tree, layer, name)
    tree = _merge(tree, _command_line_layer(overrides), "the command line")
    try:
        missing = sorted(OmegaConf.missing_keys(tree))
        if missing:
            raise UserError(f"{file} does not state {', '.join(missing)}; add it there or type {missing[0]}=…")
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:  # ${…}, which OmegaConf takes for a reference to another key
        raise UserError(f"{file}: {error.full_key}: {str(error).splitlines()[0]}; write the value out") from error
    config.file = file
    check(config)
    config.text.alphabet = "".join(dict.fromkeys(unicodedata.normalize("NFC", config.text.alphabet)))
    return config


def _layers(file: str, children: tuple[str, ...]) -> Iterator[tuple[str, "DictConfig"]]:
    """The files from the first ancestor to `file` itself."""
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = Path(file) if Path(file).is_file() else resolve(file)
    try:
        layer = OmegaConf.load(path)
    except FileNotFoundError as error:
        known = ", ".join(sorted(f"configs/{p.name}" for p in (ROOT / "configs").glob("*.yaml")))
        raise UserError(f"there is no configuration {file}; there are: {known}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(layer, DictConfig):
        raise UserError(f"{file} does not hold an experiment (sections dataset, text, model, training, evaluation)")
    parent = layer.pop("extends", None)
    if parent is not None and not isinstance(parent, str):
        raise UserError(f"{file}: extends must be the path of one configuration")
    if parent in (file, *children):
        raise UserError(f"{file} extends itself by way of {parent}; name another configuration in `extends`")
    if parent:
        yield from _layers(parent, (file, *children))
    yield file, layer


def _command_line_layer(overrides: list[str]) -> "DictConfig":
    import yaml
    from omegaconf import OmegaConf

    for override in overrides:
        if "=" not in override:
            raise UserError(f"{override!r} is not of the form section.key=value")
    try:
        return OmegaConf.from_dotlist(overrides)
    except yaml.YAMLError as error:
        raise UserError(
            f"cannot read {' '.join(overrides)!r} as section.key=value ({error.__class__.__name__})"
        ) from error


def _merge(tree: "DictConfig", layer: "DictConfig", where: str) -> "DictConfig":
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

    try:
        return OmegaConf.merge(tree, layer)
    except ConfigKeyError as error:
        key = error.full_key or str(error.key)
        raise UserError(f"{where}: there is no key {key}; did you mean {_nearest(key)}?") from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        key = getattr(error, "full_key", None) or ", ".join(str(key) for key in layer)
        raise UserError(f"{where}: {key}: {str(error).splitlines()[0]}") from error


def _nearest(key: str) -> str:
    """The existing key most like `key`; a key given without its section is looked for in all of them."""
    keys = _keys(Config())
    section, _, name = key.rpartition(".")
    sections = {known.rpartition(".")[0] for known in keys}
    same_name = [known for known in keys if known.rpartition(".")[2] == name]
    if same_name:  # the section is wrong or missing
        keys = same_name
    elif not section or section not in sections:
        names = [known.rpartition(".")[2] for known in keys]
        keys = [keys[names.index(n)] for n in difflib.get_close_matches(name, names, n=1, cutoff=0.7)] or keys
    return difflib.get_close_matches(key, keys, n=1, cutoff=0.0)[0]


def _keys(part: Any, prefix: str = "") -> list[str]:
    """All dotted keys below a dataclass instance, those of its lists' entries included."""
    keys = []
    for name, value in vars(part).items():
        keys.append(prefix + name)
        entry = {"rules": Rule, "published": Published, "sources": Source}.get(name)
        if is_dataclass(value) or entry:
            keys += _keys(entry() if entry else value, f"{prefix}{name}{'[]' if entry else ''}.")
    return keys
