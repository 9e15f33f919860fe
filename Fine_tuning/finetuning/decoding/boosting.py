"""The words and phrases that the beam search is to prefer, as a file lists them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetuning.config.schema import Text
from finetuning.data.text_normalization import Language, lower
from finetuning.errors import UserError, printable
from finetuning.files import sha256_of
from finetuning.model.vocabulary import Vocabulary

DEFAULT_WEIGHT = 3.0  # nats for each word of a phrase without a weight
MAX_WEIGHT = 20.0  # nats of a whole phrase; beyond it, the search would drop whatever holds no phrase


@dataclass(frozen=True)
class Phrase:
    """A phrase as the acoustic model writes it."""

    text: str
    weight: float = DEFAULT_WEIGHT  # nats for each of its words
    replaced: str = field(default="", compare=False)  # letters outside the alphabet that it was listed with

    @property
    def words(self) -> list[str]:
        """Return its words."""
        return self.text.split()


def read_phrases(path: Path, text: Text) -> list[Phrase]:
    """Return the phrases of a file, one a line, maybe with a tab and a weight, after the rules for texts; sorted.

    Raise UserError where the file cannot be read or holds none, and for a line that is no phrase.
    """
    language, weights, replaced = Language.of(text), dict[str, float](), dict[str, str]()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the words to boost in {path} ({error}); write one a line, in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        phrase, _, stated = line.partition("\t")
        spelling, weight, where = language.normalise(phrase), _weight(stated), f"{path}, line {number}"
        if weight is None:
            raise UserError(
                f"{where}: {printable(stated.strip())[:40]!r} is no weight; after the tab, write a number above 0 and "
                f"at most {MAX_WEIGHT:g}, or nothing for {DEFAULT_WEIGHT:g}"
            )
        if not spelling or (outside := language.foreign(spelling)):
            why = f"holds {outside}, outside text.alphabet," if spelling else "is empty"
            raise UserError(f"{where}: {printable(phrase)[:40]!r} {why} after the rules for texts; change or remove it")
        if weights.setdefault(spelling, weight) != weight:
            raise UserError(f"{where}: {spelling!r} has another weight above; remove one of the two lines")
        letters = filter(str.isalpha, language.foreign(lower(phrase)))
        replaced[spelling] = "".join(sorted({*replaced.get(spelling, ""), *letters}))
    if not weights:
        raise UserError(f"{path} holds no word to boost; write one a line")
    return [Phrase(spelling, weight, replaced[spelling]) for spelling, weight in sorted(weights.items())]


def fingerprint(phrases: Sequence[Phrase]) -> str:
    """Return a SHA-256 of phrases and weights."""
    return sha256_of([[phrase.text, phrase.weight] for phrase in phrases])


def _weight(stated: str) -> float | None:
    """Return the weight that a line states, None where it is no weight."""
    try:
        weight = float(stated) if stated.strip() else DEFAULT_WEIGHT
    except ValueError:
        return None
    return weight if 0 < weight <= MAX_WEIGHT else None


def check_phrases(phrases: Sequence[Phrase], vocabulary: Vocabulary) -> None:
    """Raise UserError where a model with this `vocabulary` cannot write one of the phrases, or not as it was listed."""
    if phrases and " " not in vocabulary.characters:
        raise UserError("this model writes no spaces, which boosted words need; leave evaluation.boost or --boost out")
    for phrase in phrases:
        if lacking := "".join(sorted(set(phrase.text) - vocabulary.characters)):
            raise UserError(f"this model cannot write {lacking} of {phrase.text!r}; remove it from the words to boost")
        if written := "".join(sorted(set(phrase.replaced) & vocabulary.characters)):
            raise UserError(
                f"{phrase.text!r} was listed with {written}, which text.alphabet lacks and this model can write; name "
                f"the configuration of the model's language after --config, or list it as {phrase.text!r}"
            )
