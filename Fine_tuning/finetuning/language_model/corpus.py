"""The n-gram model of an experiment: which sentences it is estimated from, what lies in its folder, and how good it is.

In the folder: `language_model.arpa`, `lexicon.txt` (a word, a tab, the letters that spell it, one by one) and
`language_model.json`. A word of somebody else's model may be spelt otherwise than it is written there (`Città`, `l’`).
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.config.schema import Config, TextSource, manifest_folder, resolve_path
from finetuning.data.manifest import manifest_path, read_manifest
from finetuning.data.text_normalization import MAX_CHARACTERS, Language
from finetuning.errors import UserError
from finetuning.language_model import kneser_ney
from finetuning.language_model.kneser_ney import NgramModel

if TYPE_CHECKING:
    pass
BLOCK = 1 << 22  # bytes of a text that are looked at together
NO_WORD = "language_model.min_count={} leaves no word of the sources; give a smaller one"


@dataclass
class SourceStats:
    """What became of a source's lines, as language_model.json has it."""

    name: str
    weight: float
    sentences: int = 0
    words: int = 0
    held_out: int = 0  # sentences of validation and test, taken out
    rejected: int = 0  # lines outside the alphabet, without a word, too long, or with a transcriber's note

    def __str__(self) -> str:
        """What is printed of it."""
        return (
            f"{self.name}: {self.sentences:,} sentences, {self.words:,} words; taken out {self.held_out:,} sentences "
            f"of validation and test and {self.rejected:,} lines that are empty, outside the alphabet or longer than "
            f"{MAX_CHARACTERS:,} characters"
        )


def held_out_texts(config: Config) -> set[str]:
    """The texts of validation and test, which no language model may be estimated from."""
    folder = manifest_folder(config)
    manifests = (manifest_path(folder, split) for split in ("validation", "test"))
    return {u.text for manifest in manifests for u in read_manifest(manifest, check_audio=False)}


def iter_sentences(source: TextSource, config: Config, forbidden: set[str], tally: SourceStats) -> Iterator[list[str]]:
    """The words of each sentence of a source that can be used, normalised; counted in `tally` as they come.

    UserError when the source cannot be read or has given none.
    """
    language, path = Language.of(config.text), source_file(source, config)
    lines, foreign = 0, set()
    for lines, line in enumerate(_lines(path) if source.file else _training_texts(path), start=1):  # noqa: B007
        text = language.normalise(line)
        outside = language.foreign(text)
        foreign.update(outside[:10])
        if outside or not text:
            tally.rejected += 1
        elif text in forbidden:
            tally.held_out += 1
        else:
            words = [sys.intern(word) for word in text.split()]  # a word is kept once, however often it occurs
            tally.sentences += 1
            tally.words += len(words)
            yield words
    if not tally.sentences:
        letters = "".join(sorted(foreign))[:10]
        usable = lines - tally.rejected
        reason = (
            f"they hold letters outside text.alphabet, as {letters}" if letters and not usable else "nothing is left"
        )
        raise UserError(
            f"{path} gives the language model no sentence: of {lines:,} lines, {usable:,} can be used and "
            f"{tally.held_out:,} of those stand in validation or test ({reason}); name another file"
        )


def source_file(source: TextSource, config: Config) -> Path:
    """Where the texts of a source lie: in its own file or in the training manifest."""
    return resolve_path(source.file) if source.file else manifest_path(manifest_folder(config), "train")


def count_words(source: TextSource, config: Config) -> int:
    """How many words the text of a source has, as it stands there; UserError when it cannot be read."""
    path = source_file(source, config)
    if not source.file:
        return sum(len(text.split()) for text in _training_texts(path))
    try:
        with path.open("rb") as file:
            words, inside = 0, False  # a word that goes on in the next block
            while block := file.read(BLOCK):
                words += len(block.split()) - (inside and not block[:1].isspace())
                inside = not block[-1:].isspace()
            return words
    except OSError as error:
        raise _unreadable(path, error) from error


def _training_texts(manifest: Path) -> Iterator[str]:
    for utterance in read_manifest(manifest, check_audio=False):
        yield utterance.text


def _lines(path: Path) -> Iterator[str]:
    number = 0  # of lines that were read
    try:
        with path.open(encoding="utf-8-sig") as text:
            for line in text:
                number += 1
                yield line.removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read the text {path} (behind line {number:,}: {error.reason}); it must be UTF-8 with a sentence a "
            "line"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"there is no text {path}; language_model.sources names a file with a sentence a line")
    return UserError(f"cannot read the text {path} ({error}); it must be UTF-8 with a sentence a line")


def estimate_mixture(
    gathered: Sequence[Sequence[Sequence[str]]],
    weights: Sequence[float],
    order: int,
    prune: Sequence[int],
    min_count: int,
) -> NgramModel:
    """A model of each source's sentences over the words of all, and their mixture; UserError when no word is left."""
    words = kneser_ney.frequent_words((sentence for source in gathered for sentence in source), min_count)
    if not words:
        raise UserError(NO_WORD.format(min_count))
    models = [kneser_ney.estimate_model(source, order, prune, words) for source in gathered]
    return models[0] if len(models) == 1 else kneser_ney.mix_models(models, weights)
