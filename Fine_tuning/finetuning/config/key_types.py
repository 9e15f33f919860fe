"""The types of the keys: whether the values of a YAML have them, and the message where one has not."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from finetuning.config.schema import Config
from finetuning.errors import UserError

MAX_NUMBER = 2**63 - 1  # of a whole number
REFERENCE, MAX_REFERENCES = r"\$\{(name|training\.(output|name))\}", 3  # in one text
EXPECTED = {
    int: ("a whole number", "5"),
    float: ("a number", "0.5"),
    bool: ("true or false", "true"),
    str: ("text", ""),
}


def validate_types(value: Any, kind: Any, key: str, where: str) -> None:
    """Raise UserError where `value`, plain as YAML gives it, is not of the type `kind`; the message says what is."""
    kind = _plain(kind)
    if get_origin(kind) is UnionType:
        if value is None and type(None) in get_args(kind):
            return
        sections = [each for each in get_args(kind) if is_dataclass(each)]
        kind = sections[0] if sections and isinstance(value, dict) else get_args(kind)[0]
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
    kinds = key_types(kind)
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
    expected, example = EXPECTED[kind]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_NUMBER:
        raise UserError(f"{where}: {key}: a number of {len(str(value))} digits is too large; {expected} is expected")
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
        raise UserError(f"{where}: {key}: {_shortened(value)} is not {expected}, {such}{quoted}")
    if isinstance(value, str):
        _check_text(value, key, where)


def _check_text(value: str, key: str, where: str) -> None:
    if "${" in re.sub(REFERENCE, "", value, count=MAX_REFERENCES):
        raise UserError(
            f"{where}: {key}: {_shortened(value)} holds ${{, which stands for nothing here but in ${{name}}, "
            "${training.output} and ${training.name}; write the value out (in a regular expression: [$][{])"
        )
    if value == "???":
        raise UserError(f"{where}: {key}: ??? stands for a value that is still to be written; write it")
    if wrong := [c for c in value if "\ud800" <= c <= "\udfff" or c == "\0"]:
        raise UserError(f"{where}: {key}: U+{ord(wrong[0]):04X} is not a character; leave it out")


def _plain(kind: Any) -> Any:
    """Return the type that an annotation states beside the one that OmegaConf is told; other types as they are."""
    return kind.__metadata__[0] if get_origin(kind) is Annotated else kind


@cache
def key_types(section: Any) -> dict[str, Any]:
    """Return the keys of a dataclass and their types."""
    names = {field.name for field in fields(section)}
    return {name: kind for name, kind in get_type_hints(section, include_extras=True).items() if name in names}


def type_of_key(key: str) -> Any:
    """Return the type of a dotted key of the tree; None where there is no such key."""
    kind: Any = Config
    for name in key.split("."):
        kinds = key_types(kind) if is_dataclass(kind) else {}
        kind = get_args(kind)[1] if get_origin(kind) is dict else kinds.get(name)
    return kind


def _nearest(key: str) -> str:
    """Return the existing key most like `key`; one given without its section is looked for in all of them."""
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
    """Yield all dotted keys below a dataclass, those of its lists' and mappings' entries included."""
    for name, kind in key_types(section).items():
        yield prefix + name
        entry = get_args(kind)[-1] if get_origin(kind) in (list, dict) else kind
        entry = next((each for each in get_args(_plain(entry)) if is_dataclass(each)), entry)
        if is_dataclass(entry):
            yield from _keys(entry, f"{prefix}{name}{ {list: '[]', dict: '.NAME'}.get(get_origin(kind), '') }.")


def _shortened(value: Any) -> str:
    """Return a value for a message: short, in one line, without the password or the token of an address."""
    if value is None:
        return "null (nothing)"
    if isinstance(value, bool):
        return str(value).lower()
    return shown_value(repr(value))


def shown_value(text: str) -> str:
    """Return foreign text for a message: short, without the password or the token of an address."""
    text = re.sub(r"//[^\s'\"]*@", "//…@", text)
    text = re.sub(r"(://[^?#\s'\"]*)[?#][^\s'\"]*", r"\1", text)
    return text if len(text) <= 120 else f"{text[:100]} …"
