"""From the sentence of a release to the text of an utterance, by the rules of the config."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from finetuning.config import Foreign, Rule, Text
from finetuning.errors import UserError

NUMBER_WORDS = "numbers in words"  # what these two are called among the rules
TRANSLITERATION = "foreign letters"

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
            pattern = re.compile(rule.pattern or "[" + re.escape("".join(rule.letters)) + "]")
            pattern.sub(rule.replace, "")  # finds a replacement with a group that is not there
        except (re.error, IndexError) as error:
            raise UserError(f"text.rules: {rule.name!r} is not a regular expression ({error})") from error
        if wrong := [key for key in rule.letters if len(key) != 1]:
            raise UserError(f"text.rules: {rule.name!r} has {wrong[0]!r} among its letters; give it a pattern instead")
        if rule.letters:
            return cls(rule.name, pattern, lambda match: rule.letters.get(match[0], match[0]))
        if "\\" in rule.replace:  # re would look the replacement up at each call, found something or not
            return cls(rule.name, pattern, lambda match: match.expand(rule.replace))
        return cls(rule.name, pattern, rule.replace)

    def apply(self, text: str) -> str:
        """`text` after this rule; a match that has no entry in a rule's `letters` stays as it is."""
        return self.pattern.sub(self.replace, text)


@dataclass(frozen=True)
class Language:
    """An alphabet and the ordered rules that lead into it; number words are the first, transliteration the last."""

    alphabet: str
    rules: tuple[Substitution, ...]

    @classmethod
    def of(cls, text: Text) -> Self:
        """The language of a config; UserError names a rule that cannot be understood, or `text.numbers`."""
        rules = [Substitution.of(rule) for rule in text.rules]
        if text.numbers is not None:
            rules.insert(0, number_words(text.numbers))
        if text.foreign is Foreign.transliterate:
            rules.append(transliteration(text.alphabet))
        names = [rule.name for rule in rules]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"text.rules: two rules are called {twice[0]!r}; what each one does is counted by its name")
        return cls(text.alphabet, tuple(rules))

    def normalise(self, sentence: str) -> str:
        """Lower case, NFC, the rules in their order, runs of white space as one space, none at the ends."""
        return self.trace(sentence)[0]

    def trace(self, sentence: str) -> tuple[str, list[str]]:
        """The normalised sentence, and the names of the rules that changed it."""
        text, names = lower(sentence), []
        for rule in self.rules:
            after = rule.apply(text)
            if after != text:
                names.append(rule.name)
                text = after
        # composed again: a rule may have removed what kept a letter and its mark apart
        return unicodedata.normalize("NFC", " ".join(text.split())), names

    def foreign(self, text: str) -> str:
        """The characters of `text` that are not in the alphabet, each once, sorted."""
        return "".join(sorted(set(self._outside.findall(text))))

    @cached_property
    def _outside(self) -> re.Pattern[str]:
        return outside(self.alphabet)


def lower(sentence: str) -> str:
    """Lower case and composed (NFC), in this order because lower case can decompose."""
    return unicodedata.normalize("NFC", sentence.lower())


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
