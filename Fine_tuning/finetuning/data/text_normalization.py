"""From the sentence of a release to the text of an utterance, by the rules of the config."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from finetuning.config.schema import Foreign, Rule, Text
from finetuning.errors import UserError

NUMBER_WORDS = "numbers in words"  # what these two are called among the rules
TRANSLITERATION = "foreign letters"
MAX_CHARACTERS = 2000  # characters of a sentence: two minutes of speech. Rules may take the square of it, or more

# What transcribers note about a sound that is no speech: [noise], {laugh}, <unk>, *laughs*. Between parentheses stands
# prose, too: there it takes one of their words, alone. Brackets without a letter in them are no notes.
NOTES = (
    "inaudible|unintelligible|indistinct|unclear|crosstalk|noise|music|applause|breath|breathing|laugh|laughs|laughing|"
    "laughter|cough|coughs|coughing|sigh|sighs|inudibile|incomprensibile|risata|risate|applausi|ininteligible|risas|"
    "aplausos|inintelligible|rires|applaudissements|unverständlich|gelächter|lachen|lacht|applaus|inaudível|"
    "ininteligível|risos|неразборчиво|смех|аплодисменты|anlaşılmıyor|gülüşmeler|alkış"
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
# which makes an ordinal of them in German. The digit comes first and is looked back from: the search for it is quick.
NUMBER = re.compile(
    r"""[0-9](?<![^\s("«“„'‘’¿¡][0-9])(?<![0-9]\s[0-9])(?<!\W['‘’][0-9])(?<!^['‘’][0-9])(?:(?<!0)[0-9]{1,5})?"""
    r"""(?=[,;:!?)"»”…]*(?:\s|$)|[.…][.…)"»”\s]*$)(?!\s+[0-9%‰°€$£])"""
)
# Letters that Unicode does not take apart into a plain letter and its marks. Not among them are those that some write
# one way and some another (ø is o or oe, ð is d or th): they stay foreign.
UNDIVIDED = str.maketrans({"æ": "ae", "œ": "oe", "ß": "ss", "ł": "l", "đ": "d", "ħ": "h", "ŧ": "t", "ı": "i"})


@dataclass(frozen=True)
class Substitution:
    """A rule, ready to be applied: what the pattern finds becomes `replace`, or what that makes of the match."""

    name: str
    pattern: re.Pattern[str]
    replace: str | Callable[[re.Match[str]], str]

    @classmethod
    def of(cls, rule: Rule) -> Self:
        """Compile a rule of the config; UserError names it when its pattern or replacement is none."""
        if rule.pattern is None and not rule.letters:
            raise UserError(f"text.rules: {rule.name!r} has neither a pattern nor letters")
        try:
            letters = {to_nfc(key): to_nfc(value) for key, value in rule.letters.items()}
            replace = to_nfc(rule.replace)
            pattern = re.compile(to_nfc(rule.pattern or "[" + re.escape("".join(letters)) + "]"))
            pattern.sub(replace, "")  # finds a replacement with a group that is not there
        except (re.error, IndexError, OverflowError, RecursionError) as error:
            raise UserError(f"text.rules: {rule.name!r} is not a regular expression ({error})") from error
        if wrong := [key for key in letters if len(key) != 1 and rule.pattern is None]:
            raise UserError(f"text.rules: {rule.name!r} has {wrong[0]!r} among its letters; give it a pattern, too")
        if letters:
            return cls(rule.name, pattern, lambda match: letters.get(match[0], match[0]))
        if "\\" in replace:  # re would look the replacement up at each call, found something or not
            return cls(rule.name, pattern, lambda match: match.expand(replace))
        return cls(rule.name, pattern, replace)

    def apply(self, text: str) -> str:
        """`text` after this rule; a match that has no entry in a rule's `letters` stays as it is."""
        return self.pattern.sub(self.replace, text)


@dataclass(frozen=True)
class Language:
    """An alphabet and the ordered rules that lead into it; number words are the first, transliteration the last.

    The rules of `before_lower_case` come before all of them and see capitals.
    """

    alphabet: str
    rules: tuple[Substitution, ...]
    before_lower_case: tuple[Substitution, ...] = ()

    @classmethod
    def of(cls, text: Text) -> Self:
        """The language of a config; UserError names a rule that cannot be understood, or `text.numbers`."""
        early = [Substitution.of(rule) for rule in text.before_lower_case]
        rules = [Substitution.of(rule) for rule in text.rules]
        if text.numbers is not None:
            rules.insert(0, number_words(text.numbers))
        if text.foreign is Foreign.transliterate:
            rules.append(transliteration(text.alphabet))
        names = [rule.name for rule in (*early, *rules)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"text.rules: two rules are called {twice[0]!r}; what each one does is counted by its name")
        return cls(text.alphabet, tuple(rules), tuple(early))

    def rule_names(self) -> list[str]:
        """The names of all rules in the order in which they are applied."""
        return [rule.name for rule in (*self.before_lower_case, *self.rules)]

    def normalise(self, sentence: str) -> str:
        """Lower case, NFC, the rules in their order, runs of white space as one space, none at the ends.

        Nothing is left of a sentence that has a `fault`.
        """
        return self.trace(sentence)[0]

    def fault(self, sentence: str) -> tuple[str, str] | None:
        """The reason for which no rule is applied to `sentence`, and what was found; None for an ordinary sentence."""
        if len(sentence) > MAX_CHARACTERS:
            return "sentence_too_long", f"{len(sentence):,} characters, and {MAX_CHARACTERS:,} at most are read"
        tag = OPENING.search(sentence) and TAG.search(sentence)  # the first is quick, and mostly finds nothing
        return ("transcriber_tag", tag[0]) if tag else None

    def trace(self, sentence: str) -> tuple[str, list[str]]:
        """The normalised sentence, and the names of the rules that changed it."""
        names: list[str] = []
        if self.fault(sentence):
            return "", names
        text = sentence
        if self.before_lower_case:
            text = _applied(self.before_lower_case, to_nfc(text), names)
        text = _applied(self.rules, lower(text), names)
        # composed again: a rule may have removed what kept a letter and its mark apart
        return to_nfc(" ".join(text.split())), names

    def foreign(self, text: str) -> str:
        """The characters of `text` that are not in the alphabet, each once, sorted."""
        return "".join(sorted(set(self._outside.findall(text))))

    @cached_property
    def _outside(self) -> re.Pattern[str]:
        return outside(self.alphabet)


def _applied(rules: tuple[Substitution, ...], text: str, names: list[str]) -> str:
    """`text` after the rules in their order; the names of those that changed it are added to `names`."""
    for rule in rules:
        after = rule.apply(text)
        if after != text:
            names.append(rule.name)
            text = after
    return text


def to_nfc(text: str) -> str:
    """`text` with each letter and its marks in one character where Unicode has one (NFC)."""
    return unicodedata.normalize("NFC", text)


def lower(sentence: str) -> str:
    """Lower case and composed, in this order because lower case can decompose."""
    return to_nfc(sentence.lower())


def outside(alphabet: str) -> re.Pattern[str]:
    """Any one character that is not in the alphabet."""
    return re.compile(f"[^{re.escape(alphabet)}]")


def number_words(language: str) -> Substitution:
    """Whole numbers of up to six digits as words: in the basic form, whatever they stand beside.

    Whatever else holds a digit stays as it is. UserError where num2words does not have the language.
    """
    from num2words import CONVERTER_CLASSES, num2words

    if language not in CONVERTER_CLASSES:
        known = ", ".join(sorted(CONVERTER_CLASSES))
        raise UserError(f"text.numbers={language}: there are no number words for it; give null or one of {known}")

    def words(match: re.Match[str]) -> str:
        try:
            return lower(num2words(int(match[0]), lang=language))
        except (NotImplementedError, OverflowError, TypeError):  # a language of num2words that cannot say this one
            return match[0]

    return Substitution(NUMBER_WORDS, NUMBER, words)


def transliteration(alphabet: str) -> Substitution:
    """Each letter outside the alphabet without its marks or by UNDIVIDED, where that leads into the alphabet."""
    inside = set(alphabet)

    def plain(match: re.Match[str]) -> str:
        parts = unicodedata.normalize("NFD", match[0])
        letters = "".join(c for c in parts if not unicodedata.combining(c)).translate(UNDIVIDED)
        after_letter = match.string[: match.start()][-1:].isalpha()  # the marks are its, if there is nothing else
        return letters if set(letters) <= inside and (letters or after_letter) else match[0]

    return Substitution(TRANSLITERATION, re.compile(outside(alphabet).pattern + "[\u0300-\u036f]*"), plain)
