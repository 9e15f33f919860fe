"""From the sentence of a release to the text of an utterance, by the rules of the config."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Self

from finetuning.config import Rule, Text
from finetuning.errors import UserError


@dataclass(frozen=True)
class Substitution:
    """A rule of the config, ready to be applied: what the pattern finds becomes its letter's entry, or `replace`."""

    name: str
    pattern: re.Pattern[str]
    replace: str
    letters: dict[str, str]

    @classmethod
    def of(cls, rule: Rule) -> Self:
        """Compile a rule; UserError names it when its pattern or replacement is none."""
        if rule.pattern is None and not rule.letters:
            raise UserError(f"text.rules: {rule.name!r} has neither a pattern nor letters")
        try:
            pattern = re.compile(rule.pattern or "[" + re.escape("".join(rule.letters)) + "]")
            re.sub(f"(?:{pattern.pattern})|", rule.replace, "")  # finds a replacement with a group that is not there
        except (re.error, IndexError) as error:
            raise UserError(f"text.rules: {rule.name!r} is not a regular expression ({error})") from error
        if wrong := [key for key in rule.letters if len(key) != 1]:
            raise UserError(f"text.rules: {rule.name!r} has {wrong[0]!r} among its letters; give it a pattern instead")
        return cls(rule.name, pattern, rule.replace, rule.letters)

    def apply(self, text: str) -> str:
        """`text` after this rule; a match that has no entry in `letters` stays as it is."""
        if self.letters:
            return self.pattern.sub(lambda match: self.letters.get(match[0], match[0]), text)
        return self.pattern.sub(self.replace, text)


@dataclass(frozen=True)
class Language:
    """An alphabet and the ordered rules that lead into it."""

    alphabet: str
    rules: tuple[Substitution, ...]

    @classmethod
    def of(cls, text: Text) -> Self:
        """The language of a config; UserError names a rule that cannot be understood."""
        return cls(text.alphabet, tuple(Substitution.of(rule) for rule in text.rules))

    def normalise(self, sentence: str) -> str:
        """NFC, lower case, the rules in their order, runs of white space as one space, none at the ends."""
        text = lower(sentence)
        for rule in self.rules:
            text = rule.apply(text)
        return " ".join(text.split())

    def foreign(self, text: str) -> str:
        """The characters of `text` that are not in the alphabet, each once, sorted."""
        return "".join(sorted(set(text) - set(self.alphabet)))


def lower(sentence: str) -> str:
    """Lower case and composed (NFC), in this order because lower case can decompose."""
    return unicodedata.normalize("NFC", sentence.lower())
