"""What a model takes for what: words and characters of reference and hypothesis side by side, and the frequent pairs.

Alignments are jiwer's, those of which the results count the errors: as few errors as possible. Where several alignments
have as few, which of them is shown is jiwer's choice.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import zip_longest

import jiwer

Pair = tuple[str, str]  # of the reference and of the hypothesis; "" where nothing stands opposite


@dataclass(frozen=True)
class Confusion:
    """A pair that differs: substituted, deleted (no hypothesis) or inserted (no reference)."""

    reference: str
    hypothesis: str
    count: int
    of: int  # how often the references hold the word or character; 0: inserted


@dataclass(frozen=True)
class ErrorCounts:
    """Of one utterance."""

    word_errors: int
    words: int  # in the reference
    character_errors: int
    characters: int  # in the reference, spaces within included

    @property
    def wer(self) -> float:
        """As a fraction."""
        return self.word_errors / self.words

    @property
    def cer(self) -> float:
        """As a fraction."""
        return self.character_errors / self.characters


@dataclass
class AlignmentStats:
    """All pairs of a model, those that agree included, and the counts of each utterance in the order given."""

    words: Counter[Pair] = field(default_factory=Counter)
    characters: Counter[Pair] = field(default_factory=Counter)
    utterances: list[ErrorCounts] = field(default_factory=list)


def collect_alignments(texts: Iterable[Pair]) -> AlignmentStats:
    """Align each reference, which holds a word at least, with its hypothesis."""
    found = AlignmentStats()
    for reference, hypothesis in texts:
        words, characters = aligned_words(reference, hypothesis), aligned_characters(reference, hypothesis)
        found.words.update(words)
        found.characters.update(characters)
        found.utterances.append(ErrorCounts(*_errors(words), *_errors(characters)))
    return found


def aligned_words(reference: str, hypothesis: str) -> list[Pair]:
    """What spaces separate, pair by pair."""
    return _pairs(jiwer.process_words(reference, hypothesis))


def aligned_characters(reference: str, hypothesis: str) -> list[Pair]:
    """Characters pair by pair, spaces within the text included."""
    return _pairs(jiwer.process_characters(reference, hypothesis))


def _pairs(found: jiwer.WordOutput | jiwer.CharacterOutput) -> list[Pair]:
    pairs: list[Pair] = []
    for chunk in found.alignments[0]:
        reference = found.references[0][chunk.ref_start_idx : chunk.ref_end_idx]
        hypothesis = found.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
        pairs += zip_longest(reference, hypothesis, fillvalue="")
    return pairs


def _errors(pairs: list[Pair]) -> tuple[int, int]:
    """Number of errors, and of words or characters in the reference."""
    return sum(one != other for one, other in pairs), sum(bool(one) for one, _ in pairs)


def most_frequent(pairs: Counter[Pair]) -> list[Confusion]:
    """The pairs that differ, the most frequent first."""
    of: Counter[str] = Counter()
    for (reference, _), count in pairs.items():
        of[reference] += count
    of[""] = 0
    differ = [Confusion(*pair, count, of[pair[0]]) for pair, count in pairs.items() if pair[0] != pair[1]]
    return sorted(differ, key=lambda c: (-c.count, c.reference, c.hypothesis))


def accent_confusions(confusions: Iterable[Confusion]) -> list[Confusion]:
    """Those of one letter with and without an accent, or with another one: è-e, è-é."""
    return [c for c in confusions if c.reference and _base(c.reference) == _base(c.hypothesis)]


def confusion_examples(
    wanted: Iterable[Confusion], texts: dict[int, Pair], align: Callable[[str, str], list[Pair]]
) -> dict[Confusion, int]:
    """The first key of `texts` (reference and hypothesis) in whose alignment each confusion occurs, if any does."""
    missing = {(c.reference, c.hypothesis): c for c in wanted}
    found = {}
    for number, (reference, hypothesis) in texts.items():
        if not missing:
            break
        for pair in align(reference, hypothesis):
            if pair in missing:
                found[missing.pop(pair)] = number
    return found


def char_diff(reference: str, hypothesis: str) -> str | tuple[list[str], list[str]]:
    """Two aligned words in pieces that agree and differ by turns, the first agrees; of equal words the word itself."""
    if reference == hypothesis:
        return reference
    sides = ([""], [""])
    for pair in aligned_characters(reference, hypothesis) if reference and hypothesis else [(reference, hypothesis)]:
        last_agrees = len(sides[0]) % 2 == 1
        for side, character in zip(sides, pair, strict=True):
            if (pair[0] == pair[1]) != last_agrees:
                side.append("")
            side[-1] += character
    return sides


def _base(character: str) -> str:
    """`character` without its accents."""
    return "".join(c for c in unicodedata.normalize("NFD", character) if not unicodedata.combining(c))
