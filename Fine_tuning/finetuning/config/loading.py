"""Loads one experiment: a YAML file, those it extends and the command line, merged into a checked Config."""

import argparse
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from finetuning.config.key_types import shown_value, type_of_key, validate_types
from finetuning.config.schema import ROOT, Config, System, resolve_path
from finetuning.config.validation import validate
from finetuning.errors import UserError

MAX_YAML_BYTES = 200_000  # bytes; PyYAML takes seconds for more
MAX_YAML_DEPTH = 20  # levels of lists and mappings
MAX_NUMBER_LENGTH = 300  # characters
MAX_EXTENDS = 10  # files, each of which extends the next
COMMAND_LINE = "the command line"


def from_command_line(description: str) -> Config:
    """Return the experiment that `--config FILE section.key=value …` names; `--help` needs no heavy imports."""
    arguments = config_parser(description).parse_intermixed_args()
    return load_config(arguments.config, arguments.overrides)


def config_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of `--config FILE section.key=value …`; a script can add options of its own."""
    parser = ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every key of the configuration can be given as section.key=value, for example training.max_epochs=20.\n"
        "configs/italian.yaml explains each one. Paths are relative to the project's folder.",
    )
    parser.add_argument(
        "--config", default="configs/italian.yaml", metavar="FILE", action=_Once, help="default: %(default)s"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces a value of the file")
    return parser


class ArgumentParser(argparse.ArgumentParser):
    """Raises UserError with one sentence about what is wrong with the command line."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing argparse's usage."""
        if typed := re.search(r"unrecognized arguments: (?:.* )?-+([\w.]+=.*)", message):
            raise UserError(f"keys of the configuration are typed without dashes: {typed[1]}")
        if option := re.fullmatch(r"unrecognized arguments: (.*)", message):
            raise UserError(f"there is no option {option[1]}; --help lists the options")
        if option := re.fullmatch(r"argument (\S+): expected (?:one|at least one) argument", message):
            raise UserError(f"{option[1]} needs a value; --help shows which")
        raise UserError(f"{message.removeprefix('argument ')}; --help shows what is accepted")


class _Once(argparse.Action):
    """An option that may be given once."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: str | None = None
    ) -> None:
        if getattr(namespace, self.dest) is not self.default:
            parser.error(f"{option} is given twice, as {getattr(namespace, self.dest)} and as {value}; keep one")
        setattr(namespace, self.dest, value)


def load_config(file: str, overrides: list[str]) -> Config:
    """Read `file` (and the file it extends), apply the overrides and check the result.

    Raise UserError for an unknown key, with the nearest existing one, and for a value of the wrong type or range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    stated: dict[str, Any] = {}
    for where, layer in [*_layers(file, ()), *_command_line_layers(overrides)]:
        validate_types(layer, Config, "", where)
        stated = _merged(stated, {"name": Path(where).stem, **layer}) if where == file else _merged(stated, layer)
    if "models" in stated.get("evaluation", {}):
        models = stated["evaluation"]["models"]
        models[:] = [OmegaConf.structured(System(**each)) if isinstance(each, dict) else each for each in models]
    try:
        tree = OmegaConf.merge(OmegaConf.structured(Config), stated)
        missing = sorted(OmegaConf.missing_keys(tree))
        config = None if missing else OmegaConf.to_object(tree)
    except (OmegaConfBaseException, TypeError, ValueError) as error:  # what the checks above let through
        problem = str(error).splitlines()[0]
        problem = problem.replace("Recursive interpolation detected", "refers to itself; write it out")
        raise UserError(f"{file}: {getattr(error, 'full_key', '')}: {problem}") from error
    if missing:
        typed = "" if "[" in missing[0] else f" or type {missing[0]}=…"
        raise UserError(f"{file} does not state {', '.join(missing)}; add it there{typed}")
    config.file = file
    validate(config)
    config.text.alphabet = "".join(dict.fromkeys(unicodedata.normalize("NFC", config.text.alphabet)))
    return config


def _merged(tree: Any, layer: Any) -> Any:
    """Return `layer` with what only `tree` states, mapping by mapping; OmegaConf's typed merge takes far longer."""
    if not (isinstance(tree, dict) and isinstance(layer, dict)):
        return layer
    return tree | {key: _merged(tree.get(key), value) for key, value in layer.items()}


def _layers(file: str, children: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of the files from the first ancestor to `file` itself."""
    layer = read_yaml(_text(file, f"{children[-1]}: extends: " if children else ""), file)
    if not isinstance(layer, dict):
        raise UserError(f"{file} does not hold an experiment (sections dataset, text, model, training, evaluation)")
    parent = layer.pop("extends", None)
    if parent is not None and not isinstance(parent, str):
        raise UserError(f"{file}: extends must be the path of one configuration")
    if parent and any(_is_same(parent, child) for child in (file, *children)):
        raise UserError(f"{file} extends itself by way of {parent}; name another configuration in `extends`")
    if len(children) == MAX_EXTENDS:
        raise UserError(f"{children[0]} extends more than {MAX_EXTENDS} configurations, each the next; write fewer")
    if parent:
        yield from _layers(parent, (*children, file))
    yield file, layer


def _path(file: str) -> Path:
    return Path(file) if Path(file).is_file() else resolve_path(file)


def _is_same(file: str, other: str) -> bool:
    try:
        return _path(file).samefile(_path(other))
    except (OSError, ValueError):  # reported when it is read
        return False


def _text(file: str, context: str) -> str:
    """Return the text of a configuration; raise UserError, which begins with `context`, where it cannot be read."""
    try:
        with _path(file).open("rb") as content:
            text = content.read(MAX_YAML_BYTES + 1).decode("utf-8")
    except FileNotFoundError as error:
        known = ", ".join(sorted(f"configs/{p.name}" for p in (ROOT / "configs").glob("*.yaml")))
        raise UserError(f"{context}there is no configuration {file}; available: {known}") from error
    except IsADirectoryError as error:
        raise UserError(f"{context}{file or 'the configuration'} is a folder; name a .yaml file in it") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{context}{file} cannot be read as YAML: it is not UTF-8 at byte {error.start:,}; save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{context}cannot read {file} ({getattr(error, 'strerror', None) or error})") from error
    return text


def read_yaml(text: str, where: str) -> Any:
    """Return the content of a YAML document as plain dicts, lists and scalars; `where` names it in messages.

    Raise UserError for invalid YAML, for a duplicate key and, before anything is built, for what is costly to build:
    long text, deep nesting, anchors, tags and very long numbers.
    """
    import yaml

    if len(text.encode("utf-8", "surrogatepass")) > MAX_YAML_BYTES:
        raise UserError(f"{where} is longer than {MAX_YAML_BYTES:,} bytes, which no configuration is")
    try:
        _check_yaml_cost(text, where)
        return _load_yaml(text)
    except UserError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number that Python does not take
        raise UserError(f"{where} cannot be read as YAML: {_yaml_problem(error, text)}") from error


def _load_yaml(text: str) -> Any:
    """Return the content of a document as OmegaConf reads it, parsed by libyaml where PyYAML has it."""
    import yaml
    from omegaconf._utils import get_yaml_loader  # 1e-4 is a number, 2026-01-01 no date, duplicate keys raise

    loader = get_yaml_loader()
    resolvers = {"yaml_implicit_resolvers": loader.yaml_implicit_resolvers}
    node = yaml.compose(text, Loader=type("Parser", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), resolvers))
    return None if node is None else loader("").construct_document(node)


def _check_yaml_cost(text: str, where: str) -> None:
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        is_node, at = isinstance(event, yaml.NodeEvent), f"{where}, line {event.start_mark.line + 1}"
        if is_node and event.anchor:
            raise UserError(f"{at}: anchors (&{event.anchor}, *{event.anchor}) are not taken; write the value out")
        if is_node and event.tag:  # none has refused an alias by now
            raise UserError(f"{at}: tags ({event.tag}) are not taken; leave the one before the value out")
        if depth > MAX_YAML_DEPTH:
            raise UserError(f"{at}: lists and mappings in each other, more than {MAX_YAML_DEPTH} deep")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            _check_number(event.value, at)


def _check_number(value: str, at: str) -> None:
    """Raise UserError for numbers that YAML reads in an unexpected base: 010 is 8 and 1:30 is 90."""
    if len(value) > MAX_NUMBER_LENGTH and re.fullmatch(r"[-+.\d_:xXoOa-fA-F]+", value):
        raise UserError(f"{at}: a number of {len(value):,} digits; write it in quotes if it is a text")
    if re.fullmatch(r"[-+]?(0[\d_]+|\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?)", value):
        raise UserError(
            f"{at}: {value} would be read as a number to the base of {60 if ':' in value else 8}; write it without the "
            "zeros before it and without colons, or in quotes if it is a text"
        )


def _yaml_problem(error: Exception, text: str) -> str:
    """Return where the YAML is wrong and what may be the reason, in one sentence."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        if hasattr(error, "position"):  # yaml.reader's
            return f"it holds a character that is not allowed at position {error.position:,}; delete it"
        return f"a value is not what it looks like ({error}); write it in quotes"
    lines, problem = text.splitlines() or [""], " ".join((error.problem or error.context or "").split())
    number = min(mark.line, len(lines) - 1)  # the end of the text is on a line of its own
    line, content = f"line {number + 1}", lines[number]
    if "duplicate key" in problem:
        return f"{line}: the key {problem.removeprefix('found duplicate key ')} is there twice; keep one"
    if "\t" in content[: mark.column + 1]:
        return f"{line} holds a tab; YAML is indented with spaces"
    if "start any token" in problem:
        return f"{line}: a value cannot begin with {content[mark.column : mark.column + 1]}; write it in quotes"
    if "unhashable" in problem:
        return f"{line}: a list or a mapping stands where a key belongs; write `key: value`"
    if "document" in problem:
        return f"{line}: a second document begins; keep one, without a line of ---"
    return (
        f"{line}, column {mark.column + 1} ({problem}); look there, and in the line before, for the indentation, for a "
        "colon without a space after it, and for quotes and brackets that are not closed"
    )


def _command_line_layers(overrides: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a layer for each argument, in their order."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if re.search(r"[\ud800-\udfff]", override):
            raise UserError(f"the argument {override!r} is not UTF-8; retype it or name another path")
        if not equals or not key:
            raise UserError(_without_value(override, overrides))
        if key in ("config", "extends"):
            raise UserError(f"a configuration is named with dashes: --config {value}")
        if "[" in key:
            whole = key.partition("[")[0]
            raise UserError(
                f"{COMMAND_LINE}: {key}: a list is replaced as a whole; type {whole}=[…] with all its entries"
            )
        layer: Any = _value(key, value)
        for name in reversed(key.split(".")):
            layer = {name: layer}
        yield COMMAND_LINE, layer


def _without_value(override: str, overrides: list[str]) -> str:
    """Return the message for an argument that states no value."""
    is_none = f"{shown_value(repr(override))} is not of the form section.key=value"
    if override.endswith((".yaml", ".yml")) or Path(override[:200]).is_file():
        return f"{is_none}; a configuration is named with --config {override}"
    if colon := re.fullmatch(r"([\w.]+): *(.+)", override):
        return f"{is_none}; type {colon[1]}={colon[2]}"
    if type_of_key(override):
        rest = overrides[overrides.index(override) + 1 :]
        value = rest[0].lstrip("=") if rest and (rest[0].startswith("=") or "=" not in rest[0]) else ""
        return f"{is_none}; type {override}={value or '…'}, without spaces"
    return f"{is_none}, such as training.max_epochs=20"


def _value(key: str, value: str) -> Any:
    """Parse a typed value: a text without quotes is taken literally, anything else is YAML."""
    typed = value.strip()
    if type_of_key(key) in (str, str | None) and typed not in ("", "~", "null") and typed[0] not in "'\"[{":
        return typed
    return read_yaml(value, f"{COMMAND_LINE}: the value of {key}")
