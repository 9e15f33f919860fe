"""The paper: the PDF that typst sets from paper/paper.typ, numbers and pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetuning.errors import UserError

SOURCES = ("paper.typ", "references.bib")


def typeset(numbers: dict[str, Any], pictures: Mapping[str, bytes], folder: Path) -> bytes:
    """The PDF of the sources in `folder`; `pictures`: SVG by name. UserError says what typst does not understand.

    The same input gives the same bytes: the fonts are those typst brings along, and no time is written.
    """
    import typst

    files = {name: (folder / name).read_bytes() for name in SOURCES}
    files |= {f"figures/{name}.svg": picture for name, picture in pictures.items()}
    files["numbers.json"] = as_json(numbers)
    files["main"] = files.pop("paper.typ")
    try:
        return typst.compile(files, ignore_system_fonts=True)
    except typst.TypstError as error:
        raise UserError(f"typst cannot set {folder / 'paper.typ'} ({error}); fix it there") from error


def as_json(content: dict[str, Any]) -> bytes:
    """Indented, as the other JSON files of the project."""
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
