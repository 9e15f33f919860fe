import unicodedata

import pytest
from finetuning.config import ROOT, Rule, Text
from finetuning.config_file import load
from finetuning.errors import UserError
from finetuning.text import Language, Substitution, lower

CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def italian() -> Language:
    return Language.of(load("configs/italian.yaml", []).text)


@pytest.mark.parametrize("file", CONFIGS)
def test_cases_beside_each_rule_hold(file: str) -> None:
    text = load(file, []).text
    language = Language.of(text)
    for i, rule in enumerate(text.rules):
        assert rule.cases, f"{rule.name} has no case"
        for sentence, expected in rule.cases.items():
            assert language.normalise(sentence) == expected, rule.name
            assert not language.foreign(expected), rule.name
            before = lower(sentence)
            for earlier in language.rules[:i]:
                before = earlier.apply(before)
            assert language.rules[i].apply(before) != before, f"{rule.name} does nothing to {sentence!r}"


@pytest.mark.parametrize("file", CONFIGS)
def test_rejected_cases_are_rejected(file: str) -> None:
    text = load(file, []).text
    language = Language.of(text)
    for sentence in text.rejected_cases:
        normalised = language.normalise(sentence)
        assert not normalised or language.foreign(normalised), sentence


@pytest.mark.parametrize(
    ("sentence", "text"),
    [
        (unicodedata.normalize("NFD", "Perché più città È"), "perché più città è"),
        ("  due   spazi\u00a0fissi\te tab ", "due spazi fissi e tab"),
        ("Un po' di 'ndrangheta, po'", "un po' di 'ndrangheta po'"),
        ("L'«altro» – disse", "l' altro disse"),
        ("C’è  l’insegnante?!", "c'è l'insegnante"),
    ],
)
def test_italian_sentences(italian: Language, sentence: str, text: str) -> None:
    assert italian.normalise(sentence) == text
    assert italian.foreign(text) == ""
    assert italian.normalise(text) == text


def test_foreign_characters_are_named_once_and_sorted(italian: Language) -> None:
    assert italian.foreign("ø8 è ø@") == "8@ø"


def test_a_pattern_may_begin_with_flags() -> None:
    assert Substitution.of(Rule(name="x", pattern="(?i)A", replace="o")).apply("abA") == "obo"


def test_letters_of_a_pattern_without_an_entry_stay() -> None:
    rule = Substitution.of(Rule(name="x", pattern="[ab]", letters={"a": "o"}))
    assert rule.apply("abc") == "obc"


def test_letters_alone_may_hold_signs_of_regular_expressions() -> None:
    rule = Substitution.of(Rule(name="x", letters={"]": "a", "^": "b", "-": "c", "\\": "d"}))
    assert rule.apply("]^-\\e") == "abcde"


@pytest.mark.parametrize(
    "rule",
    [
        Rule(name="broken", pattern="(a"),
        Rule(name="broken", pattern="a", replace="\\2"),
        Rule(name="broken"),
        Rule(name="broken", letters={"ab": "c"}),
    ],
)
def test_a_rule_that_is_none_is_named(rule: Rule) -> None:
    with pytest.raises(UserError, match="broken"):
        Language.of(Text(alphabet=" a", rules=[rule]))
