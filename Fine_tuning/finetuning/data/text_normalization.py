"""Normalise the sentence of a release to the text of an utterance, by the rules of the configuration."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from finetuning.config.schema import Foreign, Rule, Text
from finetuning.errors import UserError

NUMBER_WORDS = "numbers in words"  # the names of these two built-in rules
TRANSLITERATION = "foreign letters"
MAX_CHARACTERS = 2000  # of a sentence, two minutes of speech; a rule's time may grow with its square or faster

# Transcribers' notes about sounds that are not speech: [noise], {laugh}, <unk>, *laughs*. Parentheses also enclose
# prose: there only one of these words, alone, is a note. Brackets without a letter in them are not notes.
NOTES = (
    "inaudible|unintelligible|indistinct|unclear|crosstalk|noise|music|applause|breath|breathing|laugh|laughs|laughing|"
    "laughter|cough|coughs|coughing|sigh|sighs|inudibile|incomprensibile|risata|risate|applausi|ininteligible|risas|"
    "aplausos|inintelligible|rires|applaudissements|unverständlich|gelächter|lachen|lacht|applaus|inaudível|"
    "ininteligível|risos|неразборчиво|смех|аплодисменты|anlaşılmıyor|gülüşmeler|alkış|"
    "inintel·ligible|rialles|aplaudiments|niezrozumiałe|śmiech|oklaski|нерозбірливо|сміх|оплески|annealladwy|chwerthin|"
    "cymeradwyaeth"
)
LETTER = r"[^\W\d_]"
OPENING = re.compile(r"[\[{<*(]")
TAG = re.compile(
    rf"\[(?:(?!{LETTER})[^][])*{LETTER}[^][]*\]|\{{(?:(?!{LETTER})[^}}{{])*{LETTER}[^}}{{]*\}}|"
    rf"(?<!<)<[/|]?{LETTER}[^<>]*>(?!>)|(?<![\w*])\*(?={LETTER})[^*]*(?<=\w)\*(?![\w*])|"
    rf"\(\s*(?:{NOTES})\s*\)",
    re.IGNORECASE,
)

# Digits that stand alone: not in 3.5, 1-2, 10 000, 007, '60, 5' or 50 %, and not before a full stop inside a sentence,
# which marks an ordinal in German. The pattern begins with the digit and looks back from it, which makes it fast.
NUMBER = re.compile(
    r"""[0-9](?<![^\s("«“„'‘’¿¡][0-9])(?<![0-9]\s[0-9])(?<!\W['‘’][0-9])(?<!^['‘’][0-9])(?:(?<!0)[0-9]{1,5})?"""
    r"""(?=[,;:!?)"»”…]*(?:\s|$)|[.…][.…)"»”\s]*$)(?!\s+[0-9%‰°€$£])"""
)
# Letters that Unicode does not decompose into a plain letter and its marks. Those with several common transliterations
# (ø is o or oe, ð is d or th) are not among them: they stay foreign.
UNDIVIDED = str.maketrans({"æ": "ae", "œ": "oe", "ß": "ss", "ł": "l", "đ": "d", "ħ": "h", "ŧ": "t", "ı": "i"})


@dataclass(frozen=True)
class Substitution:
    """A compiled rule: each match of the pattern becomes `replace`, or what it returns for the match."""

    name: str
    pattern: re.Pattern[str]
    replace: str | Callable[[re.Match[str]], str]

    @classmethod
    def of(cls, rule: Rule) -> Self:
        """Compile a rule of the configuration; raise UserError when its pattern or replacement is not valid."""
        if rule.pattern is None and not rule.letters:
            raise UserError(f"text.rules: {rule.name!r} has neither a pattern nor letters")
        try:
            mapping = {to_nfc(key): to_nfc(value) for key, value in rule.letters.items()}
            replace = to_nfc(rule.replace)
            pattern = re.compile(to_nfc(rule.pattern or "[" + re.escape("".join(mapping)) + "]"))
            pattern.sub(replace, "")  # raises for a group that does not exist
        except (re.error, IndexError, OverflowError, RecursionError) as error:
            raise UserError(f"text.rules: {rule.name!r} is not a regular expression ({error})") from error
        if wrong := [key for key in mapping if len(key) != 1 and rule.pattern is None]:
            raise UserError(f"text.rules: {rule.name!r} has {wrong[0]!r} among its letters; give it a pattern, too")
        if mapping:
            return cls(rule.name, pattern, lambda match: mapping.get(match[0], match[0]))
        if "\\" in replace:  # re would parse the replacement at each call, even without a match
            return cls(rule.name, pattern, lambda match: match.expand(replace))
        return cls(rule.name, pattern, replace)

    def apply(self, text: str) -> str:
        """Return `text` after this rule; a match without an entry in the rule's `letters` stays as it is."""
        return self.pattern.sub(self.replace, text)


@dataclass(frozen=True)
class Language:
    """An alphabet and the ordered rules that lead to it; number words come first, transliteration last.

    The rules of `before_lower_case` are applied before all of them, to the text with its capitals; those of a source
    before anything looks at its sentences.
    """

    alphabet: str
    rules: tuple[Substitution, ...]
    before_lower_case: tuple[Substitution, ...] = ()
    of_source: tuple[Substitution, ...] = ()

    @classmethod
    def of(cls, text: Text, of_source: Iterable[Rule] = ()) -> Self:
        """Return the language of a configuration; raise UserError for an invalid rule or `text.numbers`."""
        first = [Substitution.of(rule) for rule in of_source]
        early = [Substitution.of(rule) for rule in text.before_lower_case]
        rules = [Substitution.of(rule) for rule in text.rules]
        if text.numbers is not None:
            rules.insert(0, number_words(text.numbers))
        if text.foreign is Foreign.transliterate:
            rules.append(transliteration(text.alphabet))
        names = [rule.name for rule in (*first, *early, *rules)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"text.rules: two rules are called {twice[0]!r}; each needs a name of its own")
        return cls(text.alphabet, tuple(rules), tuple(early), tuple(first))

    def rule_names(self) -> list[str]:
        """Return the names of all rules in the order of application."""
        return [rule.name for rule in (*self.of_source, *self.before_lower_case, *self.rules)]

    def normalise(self, sentence: str) -> str:
        """Return the sentence in lower case and NFC after all rules, with single spaces and none at the ends.

        A sentence that has a `fault` becomes empty.
        """
        return self.trace(sentence)[0]

    def fault(self, sentence: str) -> tuple[str, str] | None:
        """Return why `sentence` cannot be used as it is, and the evidence; None for an ordinary sentence."""
        if len(sentence) > MAX_CHARACTERS:
            return "sentence_too_long", f"{len(sentence):,} characters, and {MAX_CHARACTERS:,} at most are read"
        sentence = _apply_rules(self.of_source, to_nfc(sentence), [])
        tag = OPENING.search(sentence) and TAG.search(sentence)  # the first is fast and rarely matches
        return ("transcriber_tag", tag[0]) if tag else None

    def trace(self, sentence: str) -> tuple[str, list[str]]:
        """Return the normalised sentence and the names of the rules that changed it."""
        return ("", []) if self.fault(sentence) else self.apply_rules(sentence)

    def apply_rules(self, sentence: str) -> tuple[str, list[str]]:
        """Return what `trace` does, also of a sentence with a transcriber's tag."""
        names: list[str] = []
        text = _apply_rules(self.of_source, to_nfc(sentence), names)
        if self.before_lower_case:
            text = _apply_rules(self.before_lower_case, to_nfc(text), names)
        text = _apply_rules(self.rules, lower(text), names)
        # composed again: a rule may have removed a character between a letter and its mark
        return to_nfc(" ".join(text.split())), names

    def foreign(self, text: str) -> str:
        """Return the characters of `text` that are not in the alphabet, each once, sorted."""
        return "".join(sorted(set(self._outside.findall(text))))

    @cached_property
    def _outside(self) -> re.Pattern[str]:
        return outside(self.alphabet)


def _apply_rules(rules: tuple[Substitution, ...], text: str, names: list[str]) -> str:
    """Return `text` after the rules in their order; append the names of those that changed it to `names`."""
    for rule in rules:
        after = rule.apply(text)
        if after != text:
            names.append(rule.name)
            text = after
    return text


def to_nfc(text: str) -> str:
    """Return `text` with each letter and its marks composed into one character where Unicode has one (NFC)."""
    return unicodedata.normalize("NFC", text)


def lower(sentence: str) -> str:
    """Return `sentence` in lower case and composed, in this order because lower case can decompose."""
    return to_nfc(sentence.lower())


def outside(alphabet: str) -> re.Pattern[str]:
    """Return a pattern for any character that is not in the alphabet."""
    return re.compile(f"[^{re.escape(alphabet)}]")


def number_words(language: str) -> Substitution:
    """Return the rule that writes whole numbers of up to six digits as words, in the base form whatever the context.

    Other expressions with digits stay as they are. Raises UserError when num2words does not have the language.
    """
    from num2words import CONVERTER_CLASSES, num2words

    if language not in CONVERTER_CLASSES:
        known = ", ".join(sorted(CONVERTER_CLASSES))
        raise UserError(f"text.numbers={language}: there are no number words for it; give null or one of {known}")

    def words(match: re.Match[str]) -> str:
        try:
            return lower(num2words(int(match[0]), lang=language))
        except (NotImplementedError, OverflowError, TypeError):  # num2words lacks this number in the language
            return match[0]

    return Substitution(NUMBER_WORDS, NUMBER, words)


def transliteration(alphabet: str) -> Substitution:
    """Return the rule that replaces letters outside the alphabet by their base letters, where those are in it.

    The base letters are those of the Unicode decomposition, or of UNDIVIDED.
    """
    inside = set(alphabet)

    def plain(match: re.Match[str]) -> str:
        parts = unicodedata.normalize("NFD", match[0])
        base = "".join(c for c in parts if not unicodedata.combining(c)).translate(UNDIVIDED)
        after_letter = match.string[: match.start()][-1:].isalpha()  # marks alone belong to the letter before them
        return base if set(base) <= inside and (base or after_letter) else match[0]

    return Substitution(TRANSLITERATION, re.compile(outside(alphabet).pattern + "[\u0300-\u036f]*"), plain)
