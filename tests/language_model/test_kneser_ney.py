"""Modified Kneser-Ney: by hand, against the definitions spelt out in dictionaries, and what must hold of any model."""

import itertools
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT
from finetuning.errors import UserError
from finetuning.language_model import arpa
from finetuning.language_model.kneser_ney import (
    BEGIN,
    FALLBACK,
    NgramModel,
    estimate_model,
    frequent_words,
    log_probabilities,
    log_probability,
    mix_models,
)

# lmplz*: text from the Italian grammar of the sample release; KenLM's lmplz, built from the sdist of kenlm-ex 0.2.1
# (its flags, which that release leaves uninitialised, set to false; -h renamed),
# -o 4 --discount_fallback 0.5 1 1.5: full, with --prune 0 0 1: pruned, first 8 lines with -o 3: fallback
FIXTURES = ROOT / "tests" / "fixtures"
SENTENCES = [line.split() for line in (FIXTURES / "lmplz.txt").read_text(encoding="utf-8").splitlines()]
WORDS = ["a", "b", "c", "d", "e"]

sentences = st.lists(st.lists(st.sampled_from(WORDS), max_size=6), min_size=1, max_size=12)
orders = st.integers(1, 4)
prunes = st.sampled_from([(), (0, 0, 1), (0, 1), (0, 1, 1, 2)])


def by_definition(text: list[list[str]], order: int, prune: tuple[int, ...]) -> dict[tuple[str, ...], Fraction]:
    """p(last | first words) of every n-gram that is kept, and under (*context, None) the back-off of every context."""
    thresholds = [*prune, *[prune[-1] if prune else 0] * order][:order]
    occurs: Counter[tuple[str, ...]] = Counter()
    for words in text:
        padded = ["<s>", *words, "</s>"]
        occurs.update(
            tuple(padded[i : i + n])
            for n in range(1, order + 1)
            for i in range(len(padded) - n + 1)
            if (n, i) != (1, 0)
        )
    before = defaultdict(set)
    for gram in occurs:
        before[gram[1:]].add(gram[0])
    counts = {
        gram: count if len(gram) == order or gram[0] == "<s>" else len(before[gram]) for gram, count in occurs.items()
    }
    vocabulary = {"<unk>", "</s>", *itertools.chain(*text)}
    counts |= {(word,): 0 for word in vocabulary if (word,) not in counts}
    result: dict[tuple[str, ...], Fraction] = {}

    def p(gram: tuple[str, ...]) -> Fraction:
        return (
            Fraction(1, len(vocabulary)) if not gram else result.get(gram) or result[(*gram[:-1], None)] * p(gram[1:])
        )

    for n in range(1, order + 1):
        level = {gram: count for gram, count in counts.items() if len(gram) == n}
        seen = Counter(level.values())
        discounts = [Fraction(d) for d in FALLBACK]
        if seen[1] and seen[2] and seen[3]:
            y = Fraction(seen[1], seen[1] + 2 * seen[2])
            estimated = [k - (k + 1) * y * Fraction(seen[k + 1], seen[k]) for k in (1, 2, 3)]
            if all(0 <= d <= k for k, d in enumerate(estimated, start=1)):
                discounts = [Fraction(0), *estimated]
        total: Counter[tuple[str, ...]] = Counter()
        left: dict[tuple[str, ...], Fraction] = defaultdict(Fraction)
        kept = {gram for gram in level if n == 1 or occurs[gram] > thresholds[n - 1]}
        for gram, count in level.items():
            total[gram[:-1]] += count
            left[gram[:-1]] += discounts[min(count, 3)] if gram in kept else count
        for context in total:
            result[(*context, None)] = left[context] / total[context]
        for gram in kept:
            share = (level[gram] - discounts[min(level[gram], 3)]) / total[gram[:-1]]
            result[gram] = share + result[(*gram[:-1], None)] * p(gram[1:])
    return result


def named(model: NgramModel) -> dict[tuple[str, ...], tuple[float, float]]:
    """Probability and back-off of every n-gram, by its words."""
    return {
        tuple(model.words[word] for word in gram): (10**p, 10**back_off)
        for order, level in enumerate(model.levels, start=1)
        for gram, p, back_off in zip(
            model.grams(order).tolist(), level.log_probability.tolist(), level.back_off.tolist(), strict=True
        )
    }


def assert_sums_to_one(model: NgramModel) -> None:
    """After any context up to the model's order less one, stored or not, also of words it never saw together."""
    predicted = [number for number in range(len(model.words)) if number != BEGIN]
    for length in range(len(model.levels)):
        contexts = list(itertools.product(range(len(model.words)), repeat=length))
        contexts = contexts[:: max(1, len(contexts) // 60)] + (model.grams(length).tolist() if length else [])
        grams = np.array([[*context, word] for context in contexts for word in predicted])
        sums = (10 ** log_probabilities(model, grams)).reshape(len(contexts), -1).sum(axis=1)
        assert sums == pytest.approx(1, abs=1e-8)


def test_bigrams_by_hand() -> None:
    # "a b" and "a": too few counts to estimate discounts, so 0.5, 1, 1.5.
    # Preceded by so many different words: a 1 (<s>), b 1 (a), </s> 2 (a, b); sum 4. Discounts leave (0.5 + 0.5 + 1) / 4
    # to the uniform distribution over <unk>, </s>, a, b: 1/2 * 1/4 = 1/8 for each.
    model = estimate_model([["a", "b"], ["a"]], 2)
    found = named(model)
    assert model.fallbacks == (1, 2)
    assert model.words == ["<unk>", "<s>", "</s>", "a", "b"]
    assert found[("<unk>",)][0] == pytest.approx(1 / 8)
    assert found[("a",)][0] == pytest.approx(0.5 / 4 + 1 / 8)
    assert found[("</s>",)][0] == pytest.approx(1 / 4 + 1 / 8)
    # After <s>: a twice, so (2 - 1) / 2 + 1/2 * 1/4. After a: b and </s> once each: 0.5 / 2 + 1/2 * 1/4 or 3/8.
    assert found[("<s>", "a")][0] == pytest.approx(5 / 8)
    assert found[("a", "b")][0] == pytest.approx(3 / 8)
    assert found[("a", "</s>")][0] == pytest.approx(7 / 16)
    assert found[("b", "</s>")][0] == pytest.approx(0.5 + 0.5 * 3 / 8)
    assert found[("a",)][1] == found[("<s>",)][1] == pytest.approx(1 / 2)
    assert 10 ** log_probability(model, ["<s>"], "b") == pytest.approx(1 / 2 * 1 / 4)
    assert 10 ** log_probability(model, ["x", "b"], "never seen") == pytest.approx(1 / 2 * 1 / 8)


def assert_defined(text: list[list[str]], order: int, prune: tuple[int, ...]) -> None:
    found, expected = named(estimate_model(text, order, prune[:order])), by_definition(text, order, prune[:order])
    assert {gram for gram in found if gram != ("<s>",)} == {gram for gram in expected if gram[-1] is not None}
    for gram, (p, back_off) in found.items():
        if gram != ("<s>",):
            assert p == pytest.approx(float(expected[gram]), rel=1e-9)
        assert back_off == pytest.approx(float(expected.get((*gram, None), 1)), rel=1e-9) or len(gram) == order


@settings(max_examples=60, deadline=None)
@given(sentences, orders, prunes)
def test_small_texts_as_defined(text: list[list[str]], order: int, prune: tuple[int, ...]) -> None:
    assert_defined(text, order, prune)


@pytest.mark.parametrize("prune", [(), (0, 0, 1)])
def test_a_real_text_as_defined(prune: tuple[int, ...]) -> None:
    assert_defined(SENTENCES, 4, prune)


@pytest.mark.parametrize(
    ("name", "lines", "order", "prune", "fallbacks"),
    [
        ("full", 60, 4, (), ()),
        ("pruned", 60, 4, (0, 0, 1), ()),
        ("fallback", 8, 3, (), (2, 3)),
    ],
)
def test_as_lmplz_has_it(name: str, lines: int, order: int, prune: tuple[int, ...], fallbacks: tuple[int, ...]) -> None:
    model, theirs = estimate_model(SENTENCES[:lines], order, prune), arpa.read_arpa(FIXTURES / f"lmplz_{name}.arpa")
    assert model.fallbacks == fallbacks
    assert model.words == theirs.words
    for level, same in zip(model.levels, theirs.levels, strict=True):
        assert (level.keys == same.keys).all()
        assert level.log_probability == pytest.approx(same.log_probability, abs=1e-6)
        assert level.back_off == pytest.approx(same.back_off, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(sentences, orders, prunes, st.sampled_from([None, ["a", "b"], [*WORDS, "other"]]))
def test_every_context_sums_to_one(
    text: list[list[str]], order: int, prune: tuple[int, ...], vocabulary: list[str] | None
) -> None:
    assert_sums_to_one(estimate_model(text, order, prune[:order], vocabulary))


@settings(max_examples=40, deadline=None)
@given(sentences, sentences, orders, orders, prunes, st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_a_mixture_is_the_weighted_sum(
    first: list[list[str]], second: list[list[str]], order: int, other: int, prune: tuple[int, ...], weight: float
) -> None:
    models = [estimate_model(first, order, prune[:order], WORDS), estimate_model(second, other, (), WORDS)]
    mixture = mix_models(models, [weight, 1 - weight])
    stored = [model.grams(n + 1).tolist() for model in models for n in range(len(model.levels))]
    assert {tuple(gram) for grams in stored for gram in grams} == {
        tuple(gram) for n in range(len(mixture.levels)) for gram in mixture.grams(n + 1).tolist()
    }
    for n in range(len(mixture.levels)):
        grams = mixture.grams(n + 1)
        grams = grams[grams[:, -1] != BEGIN]
        one, two = (10 ** log_probabilities(model, grams) for model in models)
        assert 10 ** log_probabilities(mixture, grams) == pytest.approx(weight * one + (1 - weight) * two, rel=1e-9)
    assert_sums_to_one(mixture)


def test_impossible_mixtures_are_refused() -> None:
    model = estimate_model(SENTENCES, 2)
    for weights in ([0.5, 0.4], [1.5, -0.5], [1.0], [float("nan"), 1.0]):
        with pytest.raises(UserError, match="sum to 1"):
            mix_models([model, model], weights)
    with pytest.raises(UserError, match="vocabulary"):
        mix_models([model, estimate_model([["altro"]], 2)], [0.5, 0.5])


def test_rare_words_are_what_unknown_words_are_like() -> None:
    common = frequent_words(SENTENCES, 2)
    rare = next(word for word in frequent_words(SENTENCES) if word not in common)
    model = estimate_model(SENTENCES, 3, vocabulary=common)
    replaced = [[word if word in common else "<unk>" for word in words] for words in SENTENCES]
    assert model.words[3:] == common
    assert named(model) == named(estimate_model(replaced, 3))
    assert log_probability(model, ["per"], "never") == log_probability(model, ["per"], rare)
    assert log_probability(model, [], "never") > log_probability(estimate_model(SENTENCES, 3), [], "never")


def test_no_text_and_senseless_thresholds_are_refused() -> None:
    with pytest.raises(UserError, match="no sentence"):
        estimate_model([], 2)
    for prune in ((1,), (0, 2, 1), (0, 0, 0, 1)):
        with pytest.raises(UserError, match="threshold"):
            estimate_model(SENTENCES, 3, prune)


def test_arpa_there_and_back(tmp_path: Path) -> None:
    models = [estimate_model(SENTENCES, 4, (0, 0, 1)), estimate_model([["a"]], 4)]
    for model in models:
        arpa.write_arpa(tmp_path / "a.arpa", model)
        again = arpa.read_arpa(tmp_path / "a.arpa")
        assert again.words == model.words
        for level, same in zip(model.levels, again.levels, strict=True):
            assert (level.keys == same.keys).all()
            assert same.log_probability == pytest.approx(level.log_probability, abs=1e-7)
            assert same.back_off == pytest.approx(level.back_off, abs=1e-7)
        arpa.write_arpa(tmp_path / "b.arpa", again)
        assert (tmp_path / "a.arpa").read_bytes() == (tmp_path / "b.arpa").read_bytes()


def test_kenlm_reads_the_same_numbers(tmp_path: Path) -> None:
    models = [estimate_model(SENTENCES[::2], 4, (0, 0, 1), frequent_words(SENTENCES)), estimate_model(SENTENCES, 3)]
    for number, model in enumerate([*models, mix_models(models, [0.25, 0.75])]):
        arpa.write_arpa(tmp_path / f"{number}.arpa", model)
        theirs = KenLM(str(tmp_path / f"{number}.arpa"), Dictionary(model.words))
        for words in SENTENCES[:20]:
            state = theirs.start(False)
            for i, word in enumerate(words):
                state, score = theirs.score(state, model.words.index(word))
                assert score == pytest.approx(log_probability(model, ["<s>", *words[:i]], word), abs=1e-5)
            _, score = theirs.finish(state)
            assert score == pytest.approx(log_probability(model, ["<s>", *words], "</s>"), abs=1e-5)


FOREIGN = """
made by somebody else

\\data\\
ngram 1 = 4
ngram 2=2

\\1-grams:
-0.5 b
-99\t<s>\t-0.25
-0.3 </s>
-0.6  a  -0.1

\\2-grams:
-0.2 <s> b
-0.1 a\t</s>

\\end\\
"""


def test_arpa_of_another_maker(tmp_path: Path) -> None:
    (tmp_path / "a.arpa").write_text(FOREIGN)
    model = arpa.read_arpa(tmp_path / "a.arpa")
    assert model.words == ["<unk>", "<s>", "</s>", "a", "b"]
    assert log_probability(model, ["<s>"], "b") == pytest.approx(-0.2)
    assert log_probability(model, ["<s>"], "a") == pytest.approx(-0.25 - 0.6)
    assert log_probability(model, ["b"], "</s>") == pytest.approx(-0.3)
    assert log_probability(model, ["a"], "</s>") == pytest.approx(-0.1)
    assert log_probability(model, [], "x") == -99


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("\\end\\\n", "", "line 18: the file ends before"),
        ("-0.1 a\t</s>\n\n\\end\\\n", "", "line 16: the file ends before"),
        ("\\data\\", "", "not an ARPA file"),
        ("ngram 2=2", "ngram 2=3", "line 18: .*not one of the 3 2-grams"),
        ("ngram 2=2", "ngram 2=1", "line 16: .*header"),
        ("ngram 1 = 4\n", "", "line 5: the count of order 1"),
        ("-0.1 a\t</s>", "-0.1 a\tc", "line 16: the word 'c'"),
        ("-0.1 a\t</s>", "-0.2 <s> b", "line 16: .*second time"),
        ("-0.1 a\t</s>", "0.1 a </s>", "line 16: .*not one of"),
        ("-0.3 </s>", "-0.3 c", "line 12: .*lack"),
    ],
)
def test_a_broken_arpa_is_refused_in_one_sentence(tmp_path: Path, before: str, after: str, problem: str) -> None:
    (tmp_path / "a.arpa").write_text(FOREIGN.replace(before, after))
    with pytest.raises(UserError, match=rf"a\.arpa.*{problem}.*(anew|another)") as refused:
        arpa.read_arpa(tmp_path / "a.arpa")
    assert "\n" not in str(refused.value)


def test_no_arpa_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no language model"):
        arpa.read_arpa(tmp_path / "a.arpa")
    (tmp_path / "a.arpa").write_bytes(b"\x1f\x8b\x08\xff")
    with pytest.raises(UserError, match="not an ARPA file"):
        arpa.read_arpa(tmp_path / "a.arpa")
