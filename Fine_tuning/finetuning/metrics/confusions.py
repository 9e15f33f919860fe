"""Words and characters of reference and hypothesis side by side, and which are most often confused.

Alignments are jiwer's, the same whose errors the results count: one with as few errors as possible; where several have
as few, which of them it is is jiwer's choice.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import zip_longest

import jiwer

Pair = tuple[str, str]  # from the reference and from the hypothesis; "" for an insertion or a deletion


@dataclass(frozen=True)
class Confusion:
    """A pair that differs: substituted, deleted (no hypothesis) or inserted (no reference)."""

    reference: str
    hypothesis: str
    count: int
    of: int  # occurrences of the word or character in the references; 0: inserted


def aligned_words(reference: str, hypothesis: str) -> list[Pair]:
    """Return the pairs of words, which are what spaces separate."""
    return aligned_pairs(jiwer.process_words(reference, hypothesis))


def aligned_characters(reference: str, hypothesis: str) -> list[Pair]:
    """Return the pairs of characters, spaces within the text included."""
    return aligned_pairs(jiwer.process_characters(reference, hypothesis))


def aligned_pairs(alignment: jiwer.WordOutput | jiwer.CharacterOutput) -> list[Pair]:
    """Return the pairs of the first utterance that jiwer aligned."""
    pairs: list[Pair] = []
    for chunk in alignment.alignments[0]:
        reference = alignment.references[0][chunk.ref_start_idx : chunk.ref_end_idx]
        hypothesis = alignment.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
        pairs += zip_longest(reference, hypothesis, fillvalue="")
    return pairs


def most_frequent(pairs: Counter[Pair]) -> list[Confusion]:
    """Return the pairs that differ, the most frequent first."""
    of: Counter[str] = Counter()
    for (reference, _), count in pairs.items():
        of[reference] += count
    of[""] = 0
    differ = [Confusion(*pair, count, of[pair[0]]) for pair, count in pairs.items() if pair[0] != pair[1]]
    return sorted(differ, key=lambda c: (-c.count, c.reference, c.hypothesis))


def accent_confusions(confusions: Iterable[Confusion]) -> list[Confusion]:
    """Return the confusions of one letter with and without an accent, or with another one: è-e, è-é."""
    return [c for c in confusions if c.reference and _base(c.reference) == _base(c.hypothesis)]


def confusion_examples(
    confusions: Iterable[Confusion], texts: dict[int, Pair], align: Callable[[str, str], list[Pair]]
) -> dict[Confusion, int]:
    """Return, for each confusion, the first key of `texts` (reference, hypothesis) in whose alignment it occurs.

    A confusion that occurs in none is left out.
    """
    missing = {(c.reference, c.hypothesis): c for c in confusions}
    examples = {}
    for number, (reference, hypothesis) in texts.items():
        if not missing:
            break
        for pair in align(reference, hypothesis):
            if pair in missing:
                examples[missing.pop(pair)] = number
    return examples


def char_diff(reference: str, hypothesis: str) -> str | tuple[list[str], list[str]]:
    """Return two aligned words in pieces that agree and differ in turn, starting with one that agrees.

    Of two equal words the word itself is returned.
    """
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
    """Return `character` without its accents."""
    return "".join(c for c in unicodedata.normalize("NFD", character) if not unicodedata.combining(c))
