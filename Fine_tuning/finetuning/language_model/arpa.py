"""N-gram models as ARPA files, the text format that KenLM, SRILM and flashlight read.

A line `\\data\\`, one like `ngram 2=120` for each order; then for each order a line `\\2-grams:` and one for each
n-gram, log10 probability, words, log10 back-off; then `\\end\\`.
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
SPACES = re.compile(r"[ \t\r\n]+")  # not what else Unicode has: a word may hold it


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
    """A model from an ARPA file of whatever maker: any blanks and any order of lines; a back-off that is missing is 0.

    Without <unk>, that gets no probability. UserError names file and line where it is no ARPA file, incomplete, or does
    not hold what its header says.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as text:
            return _read(_Lines(path, text))
    except FileNotFoundError as error:
        raise UserError(f"there is no language model {path}; make it or name another one") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no ARPA file ({error}); name one that is UTF-8 text, not compressed") from error


class _Lines:
    """The lines of a file that are not empty, and where they stand."""

    def __init__(self, path: Path, text: Iterator[str]) -> None:
        self.path, self.number = path, 0
        self._text = text

    def next(self, what: str) -> str:
        """The next line; UserError when the file ends before `what`."""
        for line in self._text:
            self.number += 1
            if line.strip():
                return line.strip()
        self.number += 1
        raise self.error(f"the file ends before {what}")

    def error(self, problem: str, line: int | None = None) -> UserError:
        """One sentence about the line read last, or another one."""
        where = f"{self.path}, line {line or self.number}"
        return UserError(f"{where}: {printable(problem)}; make the ARPA file anew or name another one")


def read_unigrams(path: Path) -> tuple[list[int], list[str]]:
    """The counts of each order and the words, but the special ones, of an ARPA file of which no more is read."""
    with path.open(encoding="utf-8", newline="\n") as text:
        lines = _Lines(path, text)
        counts, _ = _header(lines)
        names = [SPACES.split(lines.next(f"the last of {counts[0]} 1-grams"))[1] for _ in range(counts[0])]
    return counts, sorted(set(names) - set(SPECIAL))


def _header(lines: _Lines) -> tuple[list[int], str]:
    """The counts of each order, and the line behind them."""
    line = lines.next("\\data\\")
    while line != "\\data\\":  # whatever its maker had to say
        if lines.number > 100:
            raise lines.error("no \\data\\ in the first 100 lines, so it is no ARPA file")
        line = lines.next("\\data\\, so it is no ARPA file")
    counts = []
    while found := COUNT.match(line := lines.next("\\1-grams:")):
        if int(found[1]) != len(counts) + 1:
            raise lines.error(f"the count of order {len(counts) + 1} is missing")
        counts.append(int(found[2]))
    if not counts:
        raise lines.error("no count of unigrams")
    return counts, line


def _read(lines: _Lines) -> NgramModel:
    counts, line = _header(lines)
    model = NgramModel([], [])
    for order, count in enumerate(counts, start=1):
        if line != f"\\{order}-grams:":
            raise lines.error(f"\\{order}-grams: should stand here, as the header's counts have it, not {line[:60]!r}")
        model = _with_level(model, order, count, lines)
        line = lines.next("\\end\\")
    if line != "\\end\\":
        raise lines.error(f"\\end\\ should stand here, as the header's counts have it, not {line[:60]!r}")
    return model


def _with_level(model: NgramModel, order: int, count: int, lines: _Lines) -> NgramModel:
    """`model` and its next level, of `count` n-grams."""
    names: list[str] = []  # of the words of the unigrams
    numbers = {word: number for number, word in enumerate(model.words)}
    grams, probabilities, back_offs, where = array("q"), array("d"), array("d"), array("q")
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
        where.append(lines.number)
    if order == 1:
        return NgramModel(*_unigrams(names, probabilities, back_offs, lines))
    at = np.array(grams, dtype=np.int64).reshape(-1, order)
    contexts = find_ngrams(model, at[:, :-1])
    if (contexts < 0).any():
        raise lines.error("its first words are no n-gram of their own", where[int(np.argmin(contexts))])
    keys = contexts * len(model.words) + at[:, -1]
    rows = np.argsort(keys, kind="stable")
    again = np.flatnonzero(np.diff(keys[rows]) == 0)
    if len(again):
        raise lines.error(f"this {order}-gram stands here for the second time", where[int(rows[again[0] + 1])])
    level = Level(keys[rows], np.array(probabilities)[rows], np.array(back_offs)[rows])
    return NgramModel(model.words, [*model.levels, level])


def _unigrams(names: list[str], probabilities: array, back_offs: array, lines: _Lines) -> tuple[list[str], list[Level]]:
    values = dict(zip(names, zip(probabilities, back_offs, strict=True), strict=True))
    if len(values) < len(names) or not {"<s>", "</s>"} <= set(values):
        raise lines.error("the unigrams up to here lack <s> or </s>, or have a word twice")
    values.setdefault("<unk>", (NEVER, 0.0))
    words = [*SPECIAL, *sorted(set(values) - set(SPECIAL))]
    of_words = np.array([values[word] for word in words])
    of_words[words.index("<s>"), 0] = NEVER  # some say 0: it is there without being predicted
    return words, [Level(np.arange(len(words)), *of_words.T.copy())]
