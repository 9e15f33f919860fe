"""The texts from which the language model of an experiment is estimated: normalised, filtered and counted."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetuning.config.schema import Config, TextSource, manifest_folder, resolve_path
from finetuning.data.manifest import manifest_path, read_manifest
from finetuning.data.text_normalization import MAX_CHARACTERS, Language
from finetuning.errors import UserError
from finetuning.language_model import kneser_ney
from finetuning.language_model.kneser_ney import NgramModel

BLOCK = 1 << 22  # bytes of a text that are read at a time
NO_WORD = "language_model.min_count={} leaves no word of the sources; give a smaller one"


@dataclass
class SourceStats:
    """What became of a source's lines, as language_model.json records it."""

    name: str
    weight: float
    sentences: int = 0
    words: int = 0
    held_out: int = 0  # sentences of validation and test, left out
    rejected: int = 0  # lines outside the alphabet, without a word, too long, or with a transcriber's note

    def __str__(self) -> str:
        """Return one sentence for the screen."""
        return (
            f"{self.name}: {self.sentences:,} sentences, {self.words:,} words; left out {self.held_out:,} sentences "
            f"of validation and test and {self.rejected:,} lines that are empty, outside the alphabet or longer than "
            f"{MAX_CHARACTERS:,} characters"
        )


def held_out_texts(config: Config) -> set[str]:
    """Return the texts of validation and test, from which no language model may be estimated."""
    folder = manifest_folder(config)
    manifests = (manifest_path(folder, split) for split in ("validation", "test"))
    return {u.text for manifest in manifests for u in read_manifest(manifest, check_audio=False)}


def iter_sentences(source: TextSource, config: Config, held_out: set[str], stats: SourceStats) -> Iterator[list[str]]:
    """Yield the words of each usable sentence of a source, normalised; count them in `stats`.

    Raises UserError when the source cannot be read or has no usable sentence.
    """
    language, path = Language.of(config.text), source_file(source, config)
    lines, foreign = 0, set()
    for lines, line in enumerate(_lines(path) if source.file else _training_texts(path), start=1):  # noqa: B007
        text = language.normalise(line)
        outside = language.foreign(text)
        foreign.update(outside[:10])
        if outside or not text:
            stats.rejected += 1
        elif text in held_out:
            stats.held_out += 1
        else:
            words = [sys.intern(word) for word in text.split()]  # a word takes memory once, however often it occurs
            stats.sentences += 1
            stats.words += len(words)
            yield words
    if not stats.sentences:
        characters = "".join(sorted(foreign))[:10]
        usable = lines - stats.rejected
        reason = (
            f"they hold characters outside text.alphabet, such as {characters}" if characters and not usable else ""
        )
        raise UserError(
            f"{path} gives the language model no sentence: of {lines:,} lines, {usable:,} can be used and "
            f"{stats.held_out:,} of those are in validation or test ({reason or 'nothing is left'}); name another file"
        )


def source_file(source: TextSource, config: Config) -> Path:
    """Return the file with the texts of a source: its own file or the training manifest."""
    return resolve_path(source.file) if source.file else manifest_path(manifest_folder(config), "train")


def count_words(source: TextSource, config: Config) -> int:
    """Return how many words the text of a source has before normalisation; raise UserError when it cannot be read."""
    path = source_file(source, config)
    if not source.file:
        return sum(len(text.split()) for text in _training_texts(path))
    try:
        with path.open("rb") as file:
            words, inside = 0, False  # inside: the block ended within a word
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
    number = 0  # lines read so far
    try:
        with path.open(encoding="utf-8-sig") as text:
            for line in text:
                number += 1
                yield line.removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read the text {path} (after line {number:,}: {error.reason}); it must be UTF-8 with one sentence "
            "per line"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"there is no text {path}; language_model.sources names a file with one sentence per line")
    return UserError(f"cannot read the text {path} ({error}); it must be UTF-8 with one sentence per line")


def estimate_mixture(
    texts: Sequence[Sequence[Sequence[str]]],
    weights: Sequence[float],
    order: int,
    prune: Sequence[int],
    min_count: int,
) -> NgramModel:
    """Estimate a model of each source's sentences over the words of all, and return their mixture.

    Raises UserError when no word occurs `min_count` times.
    """
    words = kneser_ney.frequent_words((sentence for source in texts for sentence in source), min_count)
    if not words:
        raise UserError(NO_WORD.format(min_count))
    models = [kneser_ney.estimate_model(source, order, prune, words) for source in texts]
    return models[0] if len(models) == 1 else kneser_ney.mix_models(models, weights)
