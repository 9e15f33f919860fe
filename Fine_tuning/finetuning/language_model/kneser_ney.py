"""Word n-gram language models: interpolated modified Kneser-Ney, and mixtures of them.

Estimate: Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling", equations 24 to 26,
as in KenLM's lmplz (Heafield et al. 2013, "Scalable modified Kneser-Ney language model estimation"). The count of an
n-gram is how often it occurs if it has the model's order or begins with <s>, otherwise how many different words precede
it. With D(1), D(2), D(3 and more) for each order,

    p(word | context) = (count - D(count)) / sum of the context's counts + back_off(context) p(word | shorter context)

where back_off(context) is the probability freed by the discounts and by pruned n-grams. Below the unigrams is the
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
FALLBACK = (
    0.0,
    0.5,
    1.0,
    1.5,
)  # discounts of counts 0, 1, 2, 3 and more where the text is too small for an estimate, as in lmplz
NEVER = -99.0  # log10 of zero in an ARPA file
NOTHING_LEFT = 1e-9  # probability of all words unseen in a context; less is rounding error


@dataclass(frozen=True)
class Level:
    """The n-grams of one order, sorted by `keys`; logarithms are to base 10."""

    keys: np.ndarray  # (n,) int64: the context's row in the level below * number of words + the last word's number
    log_probability: np.ndarray  # (n,)
    back_off: np.ndarray  # (n,) log10; 0 where no longer n-gram begins with this one


@dataclass(frozen=True)
class NgramModel:
    """An n-gram model: the first n - 1 words of each n-gram are in the level below, all words in the first level."""

    words: list[str]  # <unk>, <s>, </s>, then sorted; a word's number is its index
    levels: list[Level]  # unigrams first, with rows numbered like the words
    fallbacks: tuple[int, ...] = ()  # orders whose discounts could not be estimated

    def grams(self, order: int) -> np.ndarray:
        """Return the word numbers of all n-grams of that order, (n, order)."""
        keys = self.levels[order - 1].keys
        last = keys[:, None] % len(self.words)
        return last if order == 1 else np.hstack([self.grams(order - 1)[keys // len(self.words)], last])


def frequent_words(sentences: Iterable[Sequence[str]], min_count: int = 1) -> list[str]:
    """Return the words that occur at least `min_count` times, sorted: a vocabulary for `estimate_model`."""
    counts = Counter(word for sentence in sentences for word in sentence)
    return sorted(word for word, count in counts.items() if count >= min_count)


def pruning_thresholds(order: int, prune: Sequence[int]) -> list[int]:
    """Return `prune` for each order, its last number repeated.

    Raises UserError for thresholds that would prune a part of an n-gram that stays.
    """
    thresholds = [*prune, *[prune[-1] if prune else 0] * order][:order]
    if order < 1 or len(prune) > order or thresholds[0] != 0 or thresholds != sorted(thresholds):
        raise UserError(
            f"pruning by {list(prune)} does not suit order {order}; give a threshold for each order, starting with 0 "
            "and not decreasing"
        )
    return thresholds


def estimate_model(
    sentences: Iterable[Sequence[str]],
    order: int,
    prune: Sequence[int] = (),
    vocabulary: Iterable[str] | None = None,
) -> NgramModel:
    """Estimate a model of `order` from sentences given as words.

    `prune`: for each order, n-grams that occur at most so often are pruned; the last number holds for all higher
    orders, unigrams stay (their number is 0). `vocabulary`: the model's words, also those that do not occur; any other
    is replaced by <unk> before counting, so that <unk> is as probable as such words are. Raises UserError when there is
    no sentence, and for thresholds that would prune a part of an n-gram that stays.
    """
    limits = pruning_thresholds(order, prune)
    words, tokens = _encode(sentences, vocabulary)
    if not len(tokens):
        raise UserError("there is no sentence to learn a language model from; name a text that has some")
    size, levels, fallbacks = len(words), [], []
    lower, rows = np.array([1 / (size - 1)]), np.array([0])  # of the level below: p, and the rows after pruning
    for number, (counts, threshold) in enumerate(zip(_count_ngrams(tokens, size, order), limits, strict=True), start=1):
        discounts = _discounts(counts.adjusted)
        if discounts is None:
            fallbacks.append(number)
        contexts = counts.keys // size
        stays = (counts.raw > threshold) | (number == 1)
        discount = np.array(discounts or FALLBACK)[np.minimum(counts.adjusted, 3)]
        freed = np.where(stays, discount, counts.adjusted)
        total = np.bincount(contexts, counts.adjusted, len(lower))
        back_off = np.divide(np.bincount(contexts, freed, len(lower)), total, out=np.ones(len(lower)), where=total > 0)
        if levels:
            levels[-1] = replace(levels[-1], back_off=_log10(back_off[rows >= 0]))
        lower = (counts.adjusted - freed) / total[contexts] + back_off[contexts] * lower[counts.suffixes]
        keys = rows[contexts[stays]] * size + counts.keys[stays] % size
        levels.append(Level(keys, _log10(lower[stays]), np.zeros(len(keys))))
        rows = np.where(stays, np.cumsum(stays) - 1, -1)
    levels[0].log_probability[BEGIN] = NEVER
    return NgramModel(words, levels, tuple(fallbacks))


def _log10(values: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(values, 10.0**NEVER))


def _encode(sentences: Iterable[Sequence[str]], vocabulary: Iterable[str] | None) -> tuple[list[str], np.ndarray]:
    """Return all words, and the text as their numbers with <s> and </s> around each sentence, (T,) int64.

    A word that is not in `vocabulary` (default: all words that occur), or is spelt like a special word, is <unk>.
    """
    text_words: dict[str, int] = {}  # in order of appearance, numbered after the special words
    text = array("q")
    for sentence in sentences:
        text.append(BEGIN)
        text.extend([text_words.setdefault(word, len(text_words) + len(SPECIAL)) for word in sentence])
        text.append(END)
    words = [*SPECIAL, *sorted(set(text_words if vocabulary is None else vocabulary) - set(SPECIAL))]
    number_of = {word: number for number, word in enumerate(words) if number >= len(SPECIAL)}
    numbers = np.array([UNKNOWN, BEGIN, END, *(number_of.get(word, UNKNOWN) for word in text_words)])
    return words, numbers[np.frombuffer(text, dtype=np.int64)] if text else np.array([], dtype=np.int64)


@dataclass(frozen=True)
class _Counts:
    """The counts of the n-grams of one order in a text, none pruned."""

    keys: np.ndarray  # (n,) as in Level
    raw: np.ndarray  # (n,) how often each occurs
    adjusted: np.ndarray  # (n,) Kneser-Ney's count
    suffixes: np.ndarray  # (n,) the row, in the level below, of the n-gram without its first word


def _count_ngrams(tokens: np.ndarray, size: int, order: int) -> list[_Counts]:
    """Return the counts of the orders 1 to `order`; those of <s> itself are 0, since it is never predicted."""
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
    """Return D of counts 0, 1, 2, 3 and more (equation 26); None when the counts do not allow an estimate."""
    n = np.bincount(np.minimum(adjusted, 5), minlength=6).tolist()
    if not all(n[1:4]):
        return None
    y = n[1] / (n[1] + 2 * n[2])
    discounts = [count - (count + 1) * y * n[count + 1] / n[count] for count in (1, 2, 3)]
    return (0.0, *discounts) if all(0 <= d <= count for count, d in enumerate(discounts, start=1)) else None


def find_ngrams(model: NgramModel, grams: np.ndarray) -> np.ndarray:
    """Return the rows, in the level of their order, of n-grams given as word numbers (n, order); -1 for unknown ones.

    A number may be -1, together with all to the left of it: there is no such n-gram.
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
    """Return log10 p(last word | the words before it), (n,), for word numbers (n, any length).

    The number -1 stands before the beginning of a sentence.
    """
    grams = grams[:, -len(model.levels) :]
    total, remaining = np.zeros(len(grams)), np.arange(len(grams))  # remaining: not matched yet
    for start in range(grams.shape[1]):
        tail = grams[remaining, start:]
        rows = find_ngrams(model, tail)
        matched = rows >= 0
        total[remaining[matched]] += model.levels[tail.shape[1] - 1].log_probability[rows[matched]]
        remaining, tail = remaining[~matched], tail[~matched]
        if tail.shape[1] > 1:
            contexts = find_ngrams(model, tail[:, :-1])
            known = contexts >= 0
            total[remaining[known]] += model.levels[tail.shape[1] - 2].back_off[contexts[known]]
    return total


def log_probability(model: NgramModel, context: Sequence[str], word: str) -> float:
    """Return log10 p(word | context), where a sentence begins with "<s>"; slow, for single numbers."""
    number_of = {known: number for number, known in enumerate(model.words)}
    gram = [number_of.get(each, UNKNOWN) for each in (*context, word)]
    return float(log_probabilities(model, np.array([gram]))[0])


def mix_models(models: Sequence[NgramModel], weights: Sequence[float]) -> NgramModel:
    """Return the mixture of models with the same words; raise UserError for other models or impossible weights."""
    if len(weights) != len(models) or any(not w >= 0 for w in weights) or abs(math.fsum(weights) - 1) > 1e-6:
        raise UserError(f"the weights {list(weights)} of {len(models)} models must each be 0 or more and sum to 1")
    words, size = models[0].words, len(models[0].words)
    if any(model.words != words for model in models):
        raise UserError("models of different words cannot be mixed; estimate each with the words of all as vocabulary")
    mixture = NgramModel(words, [], tuple(sorted({order for model in models for order in model.fallbacks})))
    rows = [np.zeros(1, dtype=np.int64) for _ in models]  # of each model's level below, in the mixture's
    for order in range(1, max(len(model.levels) for model in models) + 1):
        model_keys = [
            below[model.levels[order - 1].keys // size] * size + model.levels[order - 1].keys % size
            if order <= len(model.levels)
            else np.array([], dtype=np.int64)
            for model, below in zip(models, rows, strict=True)
        ]
        keys = np.unique(np.concatenate(model_keys))
        rows = [np.searchsorted(keys, each) for each in model_keys]
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
