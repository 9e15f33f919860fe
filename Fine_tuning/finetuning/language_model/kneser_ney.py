"""Word n-gram language models: interpolated modified Kneser-Ney, and mixtures of them.

Estimate: Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling", equations 24 to 26,
as KenLM's lmplz has it (Heafield et al. 2013, "Scalable modified Kneser-Ney language model estimation"). The count of
an n-gram is how often it occurs where it has the model's order or begins with <s>, otherwise how many different words
precede it. With D(1), D(2), D(3 and more) for each order,

    p(word | context) = (count - D(count)) / sum of the context's counts + back_off(context) p(word | shorter context)

where back_off(context) is what the discounts, and the n-grams that were pruned, leave over. Below the unigrams lies the
uniform distribution over all words but <s>, so <unk> has a probability, as has a word that does not occur.

Mixture: sum of weight(i) p(i)(word | context) for every n-gram of any model, back-offs such that each context sums to
one (Stolcke 2002, "SRILM", section on mixtures): exact for the n-grams that are stored, not for those backed off to.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetuning.errors import UserError

SPECIAL = ("<unk>", "<s>", "</s>")
UNKNOWN, BEGIN, END = range(3)
FALLBACK = (0.0, 0.5, 1.0, 1.5)  # discounts of counts 0, 1, 2, 3 and more where the text is too small to tell: lmplz's
NEVER = -99.0  # log10 of zero in an ARPA file
NOTHING_LEFT = 1e-9  # probability of all words a context was not seen with; below it, rounding


@dataclass(frozen=True)
class Level:
    """The n-grams of one order, sorted by `keys`; the logarithms are to base 10."""

    keys: np.ndarray  # (n,) int64: the context's row in the level below * number of words + the last word's number
    log_probability: np.ndarray  # (n,)
    back_off: np.ndarray  # (n,) log10; 0 where nothing longer begins like this


@dataclass(frozen=True)
class NgramModel:
    """An n-gram model: an n-gram's first n - 1 words are in the level below, all words are in the first."""

    words: list[str]  # <unk>, <s>, </s>, then sorted; a word's number is its place
    levels: list[Level]  # unigrams first, rows numbered like the words
    fallbacks: tuple[int, ...] = ()  # orders whose discounts could not be estimated

    def grams(self, order: int) -> np.ndarray:
        """Word numbers of all n-grams of that order, (n, order)."""
        keys = self.levels[order - 1].keys
        last = keys[:, None] % len(self.words)
        return last if order == 1 else np.hstack([self.grams(order - 1)[keys // len(self.words)], last])


def frequent_words(sentences: Iterable[Sequence[str]], min_count: int = 1) -> list[str]:
    """Words seen at least so often, sorted: a vocabulary for `estimate`."""
    counts = Counter(word for sentence in sentences for word in sentence)
    return sorted(word for word, count in counts.items() if count >= min_count)


def pruning_thresholds(order: int, prune: Sequence[int]) -> list[int]:
    """`prune` for each order, its last number repeated; UserError where a part of an n-gram that stays would not."""
    found = [*prune, *[prune[-1] if prune else 0] * order][:order]
    if order < 1 or len(prune) > order or found[0] != 0 or found != sorted(found):
        raise UserError(
            f"pruning by {list(prune)} does not suit order {order}; give a threshold for each, 0 first, none falling"
        )
    return found


def estimate_model(
    sentences: Iterable[Sequence[str]],
    order: int,
    prune: Sequence[int] = (),
    vocabulary: Iterable[str] | None = None,
) -> NgramModel:
    """A model of `order` from sentences given as words.

    `prune`: an n-gram that occurs at most so often is left out, by order; the last number goes for all orders above,
    unigrams stay (their number is 0). `vocabulary`: the model's words, also those that do not occur; any other is
    replaced by <unk> before counting, so that <unk> is as probable as such words are. UserError where there is no
    sentence, or thresholds that would leave out a part of an n-gram that stays.
    """
    limits = pruning_thresholds(order, prune)
    words, tokens = _encoded(sentences, vocabulary)
    if not len(tokens):
        raise UserError("there is no sentence to learn a language model from; name a text that has some")
    size, levels, fallbacks = len(words), [], []
    lower, rows = np.array([1 / (size - 1)]), np.array([0])  # of the level below: p, and rows without what was pruned
    for number, (found, threshold) in enumerate(zip(_counted(tokens, size, order), limits, strict=True), start=1):
        discounts = _discounts(found.adjusted)
        if discounts is None:
            fallbacks.append(number)
        contexts = found.keys // size
        kept = (found.raw > threshold) | (number == 1)
        discount = np.array(discounts or FALLBACK)[np.minimum(found.adjusted, 3)]
        given_up = np.where(kept, discount, found.adjusted)
        total = np.bincount(contexts, found.adjusted, len(lower))
        back_off = np.divide(
            np.bincount(contexts, given_up, len(lower)), total, out=np.ones(len(lower)), where=total > 0
        )
        if levels:
            levels[-1] = replace(levels[-1], back_off=_log10(back_off[rows >= 0]))
        lower = (found.adjusted - given_up) / total[contexts] + back_off[contexts] * lower[found.suffixes]
        keys = rows[contexts[kept]] * size + found.keys[kept] % size
        levels.append(Level(keys, _log10(lower[kept]), np.zeros(len(keys))))
        rows = np.where(kept, np.cumsum(kept) - 1, -1)
    levels[0].log_probability[BEGIN] = NEVER
    return NgramModel(words, levels, tuple(fallbacks))


def _log10(values: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(values, 10.0**NEVER))


def _encoded(sentences: Iterable[Sequence[str]], vocabulary: Iterable[str] | None) -> tuple[list[str], np.ndarray]:
    """All words, by number, and the text as numbers with <s> and </s> around each sentence, (T,) int64.

    What is not in `vocabulary` (default: all that occurs), and what is called like a special word, is <unk>.
    """
    seen: dict[str, int] = {}  # in order of appearance, after the special words
    text = array("q")
    for sentence in sentences:
        text.append(BEGIN)
        text.extend([seen.setdefault(word, len(seen) + len(SPECIAL)) for word in sentence])
        text.append(END)
    words = [*SPECIAL, *sorted(set(seen if vocabulary is None else vocabulary) - set(SPECIAL))]
    place = {word: number for number, word in enumerate(words) if number >= len(SPECIAL)}
    numbers = np.array([UNKNOWN, BEGIN, END, *(place.get(word, UNKNOWN) for word in seen)])
    return words, numbers[np.frombuffer(text, dtype=np.int64)] if text else np.array([], dtype=np.int64)


@dataclass(frozen=True)
class _Counts:
    """The n-grams of one order in a text, none pruned."""

    keys: np.ndarray  # (n,) as in Level
    raw: np.ndarray  # (n,) how often each occurs
    adjusted: np.ndarray  # (n,) what Kneser-Ney counts
    suffixes: np.ndarray  # (n,) the row, in the level below, of the n-gram without its first word


def _counted(tokens: np.ndarray, size: int, order: int) -> list[_Counts]:
    """Counts of the orders 1 to `order`; those of <s> itself are 0, since nothing predicts it."""
    raw = np.bincount(tokens, minlength=size)
    raw[BEGIN] = 0
    levels = [_Counts(np.arange(size), raw, raw, np.zeros(size, dtype=np.int64))]
    begins = np.arange(size) == BEGIN
    places = np.arange(len(tokens))  # where an n-gram starts
    rows = tokens  # (T,) of the n-gram that starts there
    for length in range(2, order + 1):
        places = places[tokens[places + length - 2] != END]
        keys, first, inverse, raw = np.unique(
            rows[places] * size + tokens[places + length - 1],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        suffixes = rows[places[first] + 1]
        below = levels[-1]
        preceding = np.bincount(suffixes, minlength=len(below.keys))
        levels[-1] = replace(below, adjusted=np.where(begins, below.raw, preceding))
        levels.append(_Counts(keys, raw, raw, suffixes))
        begins = begins[keys // size]
        rows = np.full(len(tokens), -1)
        rows[places] = inverse
    return levels


def _discounts(adjusted: np.ndarray) -> tuple[float, ...] | None:
    """D of counts 0, 1, 2, 3 and more (equation 26); None where the counts do not allow an estimate."""
    n = np.bincount(np.minimum(adjusted, 5), minlength=6).tolist()
    if not all(n[1:4]):
        return None
    y = n[1] / (n[1] + 2 * n[2])
    discounts = [count - (count + 1) * y * n[count + 1] / n[count] for count in (1, 2, 3)]
    return (0.0, *discounts) if all(0 <= d <= count for count, d in enumerate(discounts, start=1)) else None


def find_ngrams(model: NgramModel, grams: np.ndarray) -> np.ndarray:
    """Rows of n-grams given as word numbers, (n, order), in the level of their order; -1 where it has none.

    A number may be -1, with all to the left of it: there is no such n-gram.
    """
    rows = grams[:, 0]
    for level, last in zip(model.levels[1:], grams.T[1:], strict=False):
        wanted = rows * len(model.words) + last
        rows = np.searchsorted(level.keys, wanted)
        there = rows < len(level.keys)
        there[there] = level.keys[rows[there]] == wanted[there]
        rows = np.where(there, rows, -1)
    return rows


def log_probabilities(model: NgramModel, grams: np.ndarray) -> np.ndarray:
    """log10 p(last word | the words before it), (n,), for word numbers (n, any length); -1: before the sentence."""
    grams = grams[:, -len(model.levels) :]
    total, open_ = np.zeros(len(grams)), np.arange(len(grams))  # open_: not found yet
    for start in range(grams.shape[1]):
        tail = grams[open_, start:]
        rows = find_ngrams(model, tail)
        found = rows >= 0
        total[open_[found]] += model.levels[tail.shape[1] - 1].log_probability[rows[found]]
        open_, tail = open_[~found], tail[~found]
        if tail.shape[1] > 1:
            contexts = find_ngrams(model, tail[:, :-1])
            known = contexts >= 0
            total[open_[known]] += model.levels[tail.shape[1] - 2].back_off[contexts[known]]
    return total


def log_probability(model: NgramModel, context: Sequence[str], word: str) -> float:
    """log10 p(word | context); a sentence's first words have "<s>" as context. Slow: for a look at single numbers."""
    places = {known: number for number, known in enumerate(model.words)}
    gram = [places.get(each, UNKNOWN) for each in (*context, word)]
    return float(log_probabilities(model, np.array([gram]))[0])


def mix_models(models: Sequence[NgramModel], weights: Sequence[float]) -> NgramModel:
    """The mixture of models that have the same words; UserError for other models and for impossible weights."""
    if len(weights) != len(models) or any(not w >= 0 for w in weights) or abs(math.fsum(weights) - 1) > 1e-6:
        raise UserError(f"the weights {list(weights)} of {len(models)} models must each be 0 or more and sum to 1")
    words, size = models[0].words, len(models[0].words)
    if any(model.words != words for model in models):
        raise UserError("models of different words cannot be mixed; estimate each with the words of all as vocabulary")
    mixture = NgramModel(words, [], tuple(sorted({order for model in models for order in model.fallbacks})))
    places = [np.zeros(1, dtype=np.int64) for _ in models]  # of each model's rows in the mixture's level below
    for order in range(1, max(len(model.levels) for model in models) + 1):
        own = [
            at[model.levels[order - 1].keys // size] * size + model.levels[order - 1].keys % size
            if order <= len(model.levels)
            else np.array([], dtype=np.int64)
            for model, at in zip(models, places, strict=True)
        ]
        keys = np.unique(np.concatenate(own))
        places = [np.searchsorted(keys, each) for each in own]
        mixture.levels.append(Level(keys, np.zeros(len(keys)), np.zeros(len(keys))))
        grams = mixture.grams(order)
        mixed = sum(w * 10 ** log_probabilities(m, grams) for m, w in zip(models, weights, strict=True))
        mixture.levels[-1].log_probability[:] = _log10(mixed)
        if order > 1:
            contexts, below = keys // size, mixture.levels[-2]
            shorter = 10 ** log_probabilities(mixture, grams[:, 1:])
            left = 1 - np.bincount(contexts, mixed, len(below.keys))
            left_below = 1 - np.bincount(contexts, shorter, len(below.keys))
            some = left_below > NOTHING_LEFT
            below.back_off[:] = _log10(np.divide(left, left_below, out=np.ones(len(left)), where=some))
    mixture.levels[0].log_probability[BEGIN] = NEVER
    return mixture
