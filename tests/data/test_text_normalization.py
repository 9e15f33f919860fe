import time
import unicodedata
from pathlib import Path

import pytest

from conftest import shipped
from finetuning.config.loading import load_config
from finetuning.config.schema import ROOT, Rule, Text
from finetuning.data.text_normalization import MAX_CHARACTERS, Language, Substitution, to_nfc
from finetuning.errors import UserError

CATALAN = Text(  # a rule takes a letter of the alphabet from between two others
    alphabet=" abcdefghijklmnopqrstuvwxyz'·àçèéíïòóúü",
    rules=[
        Rule(name="l·l", pattern="(?<=l)·(?=l)", cases={"Col·legi paral·lel": "collegi parallel"}),
        Rule(name="unseen", pattern="[\u00ad·]", cases={"pe\u00adnínsula": "península"}),
    ],
    rejected_cases=["8"],
)
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def italian() -> Language:
    return Language.of(shipped("italian").text)


def text_of(file: str) -> Text:
    return shipped(Path(file).stem).text if file else CATALAN


@pytest.mark.parametrize("file", [*CONFIGS, ""])
def test_cases_beside_each_rule_hold(file: str) -> None:
    text = text_of(file)
    language = Language.of(text)
    for rule in (*text.before_lower_case, *text.rules):
        assert rule.cases, f"{rule.name} has no case"
        for sentence, expected in rule.cases.items():
            normalised, names = language.trace(sentence)
            assert normalised == expected, rule.name
            assert not language.foreign(expected), rule.name
            assert rule.name in names, f"{rule.name} does nothing to {sentence!r}"


@pytest.mark.parametrize("file", [*CONFIGS, ""])
def test_rejected_cases_are_rejected(file: str) -> None:
    text = text_of(file)
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
        ("L'«altro» – disse", "l'altro disse"),
        ("C’è  l’insegnante?!", "c'è l'insegnante"),
    ],
)
def test_italian_sentences(italian: Language, sentence: str, text: str) -> None:
    assert italian.normalise(sentence) == text
    assert italian.foreign(text) == ""
    assert italian.normalise(text) == text


@pytest.mark.parametrize(
    ("sentence", "text"),
    [
        ("E' stata una bella giornata.", "è stata una bella giornata"),
        ("E’ vero: c’e’ tempo, com’e’ possibile?", "è vero c'è tempo com'è possibile"),
        ("L'universita' e' di la' dal fiume, cioe' piu' in giu'.", "l'università è di là dal fiume cioè più in giù"),
        ("Perche` no, poiche´ affinche' tu sappia", "perché no poiché affinché tu sappia"),
        ("Ventitre' anni, ma non tre' o te'", "ventitré anni ma non tre' o te'"),
        ("Si', gia' lunedi' sara' cosi': puo' andar li'!", "sì già lunedì sarà così può andar lì"),
        ("«E' finita», disse Nicolo' e mori' (e' un caffe').", "è finita disse nicolò e morì è un caffè"),
        ("Gesu', Mose', Noe' e Giosue'", "gesù mosè noè e giosuè"),
        ("Un po' di pane, a mo' di esempio; be', no.", "un po' di pane a mo' di esempio be' no"),
        (
            "Di' il vero, fa' presto, va' via, sta' zitto, da' retta.",
            "di' il vero fa' presto va' via sta' zitto da' retta",
        ),
        ("Ca' Foscari, fra' Cristoforo, de' Medici, que' tempi", "ca' foscari fra' cristoforo de' medici que' tempi"),
        ("To', ve' che monti: a' piedi, ne' campi, vo' là", "to' ve' che monti a' piedi ne' campi vo' là"),
        ("L'altra metà dell'anno, quest'ultima, un'ora", "l'altra metà dell'anno quest'ultima un'ora"),
        (
            "L' altro, un' ora, dell' acqua, D'Annunzio e O' Connor",
            "l' altro un' ora dell' acqua d'annunzio e o' connor",
        ),
        ("Disse 'no' a tutti e se ne ando'", "disse no a tutti e se ne andò"),
        ("'Andiamo a casa', disse", "'andiamo a casa' disse"),
        ("Il film 'La vita e' bella' piace a tutti", "il film 'la vita e' bella' piace a tutti"),
        ("‘E’ vero’, disse; ‘la città’", "è vero disse la città"),
        ("''E' vero''", "è vero"),
        ("'E' vero', disse", "'e' vero' disse"),
        ("La 'ndrangheta e' forte, 'sta citta' no", "la 'ndrangheta è forte 'sta città no"),
        ("Lei', lui o noi', mai'", "lei' lui o noi' mai'"),
        ("Papà, perché è così? Un po’ più là.", "papà perché è così un po' più là"),
    ],
)
def test_an_apostrophe_for_an_accent_becomes_one_and_others_stay(italian: Language, sentence: str, text: str) -> None:
    assert italian.normalise(sentence) == text
    assert italian.normalise(text) == text


@pytest.mark.parametrize(
    ("sentence", "text"),
    [
        ("ISPARTA’NIN IŞIĞI", "ıspartanın ışığı"),
        ("İstanbul'da İKİ kişi", "istanbulda iki kişi"),
        (unicodedata.normalize("NFD", "İyi günler, ÇOĞUNLUK!"), "iyi günler çoğunluk"),
        ("i\u0307stanbul", "istanbul"),  # as lower case by the rules of other languages leaves it
        ("Ilık ile ilik, kâğıt", "ılık ile ilik kağıt"),
    ],
)
def test_turkish_lower_case(sentence: str, text: str) -> None:
    turkish = Language.of(shipped("turkish").text)
    assert turkish.normalise(sentence) == text and not turkish.foreign(text)


def test_rules_before_lower_case_see_capitals_and_are_counted() -> None:
    early = [
        Rule(name="stressed capitals", letters={"Ì": "i\u0307\u0300"}),
        Rule(name="states", pattern="USA", replace="u s a"),
    ]
    language = Language.of(Text(alphabet=" aisu", before_lower_case=early))
    assert language.trace("USA usa I\u0300") == ("u s a usa i\u0307\u0300", ["stressed capitals", "states"])
    assert language.rule_names() == ["stressed capitals", "states"]
    with pytest.raises(UserError, match="two rules are called 'states'"):
        Language.of(Text(alphabet=" a", before_lower_case=early, rules=early[1:]))


@pytest.mark.parametrize(
    ("sentence", "tag"),
    [
        ("Buongiorno [noise] a tutti", "[noise]"),
        ("{laugh} ciao", "{laugh}"),
        ("un <unk> strano", "<unk>"),
        ("<s> ciao </s>", "<s>"),
        ("e poi (inaudible) disse", "(inaudible)"),
        ("( Risate ) grazie", "( Risate )"),
        ("Gràcies (inintel·ligible)", "(inintel·ligible)"),
        ("Dziękuję (śmiech)", "(śmiech)"),
        ("Дякую (Сміх)", "(Сміх)"),
        ("Diolch (chwerthin)", "(chwerthin)"),
        (unicodedata.normalize("NFD", "Guten Tag (Gelächter)"), "(Gelächter)"),
        ("*laughs* ciao", "*laughs*"),
        ("[rumore di fondo] ciao", "[rumore di fondo]"),
        ("ciao [...] a {} tutti <3 e 2 > 1", None),
        ("(forse) domani (un applauso per te)", None),
        ("* uno * due, tre* e 2*3*4", None),
        ("<<Ciao>> disse [", None),
        ("«Risate» [sic", None),
    ],
)
def test_a_note_of_the_transcriber_is_no_speech(italian: Language, sentence: str, tag: str | None) -> None:
    assert italian.fault(sentence) == (("transcriber_tag", tag) if tag else None)
    assert (italian.normalise(sentence) == "") == (tag is not None)


@pytest.mark.parametrize("sign", ["‘", "'", "a'", "[", "(", "<", "*a", "‘a", "[1", "‘a’ "])
def test_no_sentence_is_so_long_that_a_rule_takes_seconds(italian: Language, sign: str) -> None:
    long = sign * (60_000 // len(sign))
    started = time.monotonic()
    assert italian.fault(long) == (
        "sentence_too_long",
        f"{len(long):,} characters, and {MAX_CHARACTERS:,} at most are read",
    )
    assert italian.normalise(long) == ""
    italian.normalise(long[:MAX_CHARACTERS])
    assert time.monotonic() - started < 1
    assert italian.fault("a" * MAX_CHARACTERS) is None


def test_rules_may_be_written_in_any_composition() -> None:
    decomposed = unicodedata.normalize("NFD", "è")
    rules = [
        Rule(name="a", pattern=f"x{decomposed}", replace=decomposed),
        Rule(name="b", letters={unicodedata.normalize("NFD", "é"): decomposed}),
    ]
    language = Language.of(Text(alphabet=" aè", rules=rules))
    assert language.trace("xè é") == (to_nfc(decomposed) + " è", ["a", "b"])


@pytest.mark.parametrize("form", ["NFD", "NFC"])
def test_an_alphabet_may_be_written_in_any_composition(form: str) -> None:
    alphabet = " abcdeàéèç'"
    config = load_config("configs/italian.yaml", [f'text.alphabet="{unicodedata.normalize(form, alphabet)}"'])
    assert config.text.alphabet == alphabet
    marked = unicodedata.normalize(form, " ẹ́ọ́")  # Unicode has no one character for these: their mark is one of its own
    assert load_config("configs/italian.yaml", [f'text.alphabet="{marked}"']).text.alphabet == " ẹ\u0301ọ"


@pytest.mark.parametrize(
    ("alphabet", "words"),
    [
        (" aéb" + unicodedata.normalize("NFD", "é"), r"holds 'é' twice, as U\+00E9 and as U\+0065 U\+0301"),
        (" abca", r"holds 'a' twice"),
        ("abc", "must hold the space"),
        (" abC", "no capital"),
    ],
)
def test_a_character_that_is_twice_in_an_alphabet_is_named(alphabet: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config("configs/italian.yaml", [f'text.alphabet="{alphabet}"'])


def test_foreign_characters_are_named_once_and_sorted(italian: Language) -> None:
    assert italian.foreign("ø8 è ø@") == "8@ø"


def test_a_pattern_may_begin_with_flags() -> None:
    assert Substitution.of(Rule(name="x", pattern="(?i)A", replace="o")).apply("abA") == "obo"


def test_letters_of_a_pattern_without_an_entry_stay() -> None:
    rule = Substitution.of(Rule(name="x", pattern="[ab]", letters={"a": "o"}))
    assert rule.apply("abc") == "obc"


def test_letters_beside_a_pattern_may_be_longer() -> None:
    rule = Substitution.of(Rule(name="x", pattern="[ab]'|b", letters={"a'": "à"}))
    assert rule.apply("a'b'ba") == "àb'ba"


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
