"""The texts from which the language model of an experiment is estimated: normalised, filtered and counted."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from finetuning.config.schema import Config, TextSource, manifest_folder
from finetuning.data.manifest import find_test_sets, manifest_path, read_manifest
from finetuning.data.text_normalization import MAX_CHARACTERS, Language
from finetuning.errors import UserError
from finetuning.language_model import kneser_ney, text_files
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
    near_duplicates: int = 0  # with the same words as one of those in another order, left out too
    rejected: int = 0  # lines outside the alphabet, without a word, too long, or with a transcriber's note

    def __str__(self) -> str:
        """Return one sentence for the screen."""
        return (
            f"{self.name}: {self.sentences:,} sentences, {self.words:,} words; left out {self.held_out:,} sentences "
            f"of validation and test, {self.near_duplicates:,} of the same words in another order and "
            f"{self.rejected:,} lines that are empty, outside the alphabet or longer than {MAX_CHARACTERS:,} characters"
        )


def held_out_texts(config: Config) -> dict[str, set[str]]:
    """Return the texts of validation and all test sets, by their sorted words, of which no model may be estimated."""
    folder, texts = manifest_folder(config), {}
    for path in (manifest_path(folder, "validation"), *find_test_sets(folder).values()):
        for utterance in read_manifest(path, check_audio=False):
            texts.setdefault(_sorted_words(utterance.text), set()).add(utterance.text)
    return texts


def _sorted_words(text: str) -> str:
    return " ".join(sorted(text.split()))


def iter_sentences(
    source: TextSource, config: Config, held_out: Mapping[str, Set[str]], stats: SourceStats
) -> Iterator[list[str]]:
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
        elif same_words := held_out.get(_sorted_words(text)):
            if text in same_words:
                stats.held_out += 1
            else:
                stats.near_duplicates += 1
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
            f"{stats.held_out + stats.near_duplicates:,} of those are in validation or test "
            f"({reason or 'nothing is left'}); name another file"
        )


def source_file(source: TextSource, config: Config) -> Path:
    """Return the file with the texts of a source: its own, what was extracted from it, or the training manifest."""
    return text_files.text_path(source.file, config) if source.file else manifest_path(manifest_folder(config), "train")


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


def read_vocabulary(config: Config) -> tuple[list[str], list[list[str]]]:
    """Return the words of a language model and, for each source, those that it lacks; the texts are not kept.

    Raises UserError when no word occurs often enough.
    """
    held_out, settings = held_out_texts(config), config.language_model
    counts = []
    for source in settings.sources:
        sentences = iter_sentences(source, config, held_out, SourceStats("", 1.0))
        counts.append(Counter(word for words in sentences for word in words))
    total = sum(counts, Counter())
    words = sorted(word for word, count in total.items() if count >= settings.min_count)
    if not words:
        raise UserError(NO_WORD.format(settings.min_count))
    return words, [[word for word in words if word not in of_source] for of_source in counts]


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
