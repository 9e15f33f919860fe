"""Read and write n-gram models as ARPA files, the text format of KenLM, SRILM and flashlight.

The format: a line `\\data\\` and one like `ngram 2=120` for each order; then, for each order, a line `\\2-grams:` and
one for each n-gram with log10 probability, words and log10 back-off; at the end `\\end\\`.
"""

import re
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from finetuning.errors import UserError, printable
from finetuning.files import atomic_open
from finetuning.language_model.kneser_ney import NEVER, SPECIAL, Level, NgramModel, find_ngrams

COUNT = re.compile(r"ngram\s+([0-9]{1,9})\s*=\s*([0-9]{1,15})$")
SPACES = re.compile(r"[ \t\r\n]+")  # without Unicode's other spaces, which a word may contain


def write_arpa(path: Path, model: NgramModel) -> None:
    """Write a model with 7 decimals; the same model gives the same bytes. The highest order has no back-offs."""
    size = len(model.words)
    with atomic_open(path) as text:
        text.write("\\data\\\n")
        text.writelines(f"ngram {order}={len(level.keys)}\n" for order, level in enumerate(model.levels, start=1))
        names = model.words
        for order, level in enumerate(model.levels, start=1):
            if order > 1:
                contexts, last = (level.keys // size).tolist(), (level.keys % size).tolist()
                names = [f"{names[c]} {model.words[w]}" for c, w in zip(contexts, last, strict=True)]
            back_offs = level.back_off.tolist() if order < len(model.levels) else [None] * len(names)
            text.write(f"\n\\{order}-grams:\n")
            for p, name, back_off in zip(level.log_probability.tolist(), names, back_offs, strict=True):
                text.write(f"{p:.7f}\t{name}\n" if back_off is None else f"{p:.7f}\t{name}\t{back_off:.7f}\n")
        text.write("\n\\end\\\n")


def read_arpa(path: Path) -> NgramModel:
    """Return the model of an ARPA file by any tool: with any white space, order of lines, and without back-offs of 0.

    If the file has no <unk>, that gets no probability. Raises UserError, with file and line, when it is not an ARPA
    file, is incomplete, or does not match its header. All of it is checked, since KenLM accepts an n-gram twice.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as text:
            return _read(_Lines(path, text))
    except FileNotFoundError as error:
        raise UserError(f"there is no language model {path}; make it or name another one") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not an ARPA file ({error}); name one that is UTF-8 text, not compressed") from error


class _Lines:
    """The lines of a file that are not empty, and their numbers."""

    def __init__(self, path: Path, text: Iterator[str]) -> None:
        self.path, self.number = path, 0
        self._text = text

    def next(self, what: str) -> str:
        """Return the next line; raise UserError when the file ends before `what`."""
        for line in self._text:
            self.number += 1
            if line.strip():
                return line.strip()
        self.number += 1
        raise self.error(f"the file ends before {what}")

    def error(self, problem: str, line: int | None = None) -> UserError:
        """Return the error for a problem in the last line read, or in another one."""
        where = f"{self.path}, line {line or self.number}"
        return UserError(f"{where}: {printable(problem)}; make the ARPA file again or name another one")


def read_unigrams(path: Path) -> tuple[list[int], list[str]]:
    """Return the counts of each order and the words, without the special ones, of an ARPA file; read no further."""
    with path.open(encoding="utf-8", newline="\n") as text:
        lines = _Lines(path, text)
        counts, _ = _header(lines)
        names = [SPACES.split(lines.next(f"the last of {counts[0]} 1-grams"))[1] for _ in range(counts[0])]
    return counts, sorted(set(names) - set(SPECIAL))


def _header(lines: _Lines) -> tuple[list[int], str]:
    """Return the counts of each order, and the line after them."""
    line = lines.next("\\data\\")
    while line != "\\data\\":  # comments
        if lines.number > 100:
            raise lines.error("no \\data\\ in the first 100 lines, so it is not an ARPA file")
        line = lines.next("\\data\\, so it is not an ARPA file")
    counts = []
    while match := COUNT.match(line := lines.next("\\1-grams:")):
        if int(match[1]) != len(counts) + 1:
            raise lines.error(f"the count of order {len(counts) + 1} is missing")
        counts.append(int(match[2]))
    if not counts:
        raise lines.error("no count of unigrams")
    return counts, line


def _read(lines: _Lines) -> NgramModel:
    counts, line = _header(lines)
    model = NgramModel([], [])
    for order, count in enumerate(counts, start=1):
        if line != f"\\{order}-grams:":
            raise lines.error(f"by the header's counts, \\{order}-grams: should follow here, not {line[:60]!r}")
        model = _add_level(model, order, count, lines)
        line = lines.next("\\end\\")
    if line != "\\end\\":
        raise lines.error(f"by the header's counts, \\end\\ should follow here, not {line[:60]!r}")
    return model


def _add_level(model: NgramModel, order: int, count: int, lines: _Lines) -> NgramModel:
    """Return `model` with its next level, of `count` n-grams."""
    names: list[str] = []  # the words of the unigrams
    numbers = {word: number for number, word in enumerate(model.words)}
    grams, probabilities, back_offs, line_numbers = array("q"), array("d"), array("d"), array("q")
    for _ in range(count):
        line = lines.next(f"the last of {count} {order}-grams")
        fields = SPACES.split(line)
        try:
            if not order + 1 <= len(fields) <= order + 2:
                raise ValueError
            p, back_off = float(fields[0]), float(fields[order + 1]) if len(fields) > order + 1 else 0.0
            if not p <= 0 or not -np.inf < back_off < np.inf:
                raise ValueError
        except ValueError as error:
            raise lines.error(f"{line[:60]!r} is not one of the {count} {order}-grams of the header") from error
        if order == 1:
            names.append(fields[1])
        else:
            try:
                grams.extend([numbers[word] for word in fields[1 : order + 1]])
            except KeyError as error:
                raise lines.error(f"the word {error.args[0]!r} is not among the unigrams") from error
        probabilities.append(max(p, NEVER))
        back_offs.append(max(back_off, NEVER))
        line_numbers.append(lines.number)
    if order == 1:
        return NgramModel(*_unigrams(names, probabilities, back_offs, lines))
    at = np.array(grams, dtype=np.int64).reshape(-1, order)
    contexts = find_ngrams(model, at[:, :-1])
    if (contexts < 0).any():
        raise lines.error("its first words are not an n-gram of their own", line_numbers[int(np.argmin(contexts))])
    keys = contexts * len(model.words) + at[:, -1]
    rows = np.argsort(keys, kind="stable")
    repeated = np.flatnonzero(np.diff(keys[rows]) == 0)
    if len(repeated):
        raise lines.error(f"this {order}-gram is listed a second time", line_numbers[int(rows[repeated[0] + 1])])
    level = Level(keys[rows], np.array(probabilities)[rows], np.array(back_offs)[rows])
    return NgramModel(model.words, [*model.levels, level])


def _unigrams(names: list[str], probabilities: array, back_offs: array, lines: _Lines) -> tuple[list[str], list[Level]]:
    values = dict(zip(names, zip(probabilities, back_offs, strict=True), strict=True))
    if len(values) < len(names) or not {"<s>", "</s>"} <= set(values):
        raise lines.error("the unigrams up to here lack <s> or </s>, or have a word twice")
    values.setdefault("<unk>", (NEVER, 0.0))
    words = [*SPECIAL, *sorted(set(values) - set(SPECIAL))]
    table = np.array([values[word] for word in words])  # (words, 2): log10 probability and back-off
    table[words.index("<s>"), 0] = NEVER  # some tools write 0: <s> is never predicted
    return words, [Level(np.arange(len(words)), *table.T.copy())]
