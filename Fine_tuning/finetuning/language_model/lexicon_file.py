"""The words of a language model and how each is spelt in the characters of the acoustic model."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.config.schema import Config
from finetuning.data.text_normalization import Language
from finetuning.errors import UserError, printable
from finetuning.files import atomic_open
from finetuning.language_model import arpa, kenlm_binary, kneser_ney

if TYPE_CHECKING:
    pass
MAX_FOREIGN_SHARE = 0.5  # share of an ARPA file's words that the alphabet cannot spell; above, it is another language's
Lexicon = dict[str, str]  # words of the language model, and their spelling in the letters of the acoustic model


def lexicon_of_file(path: Path, config: Config, seen: Iterable[str]) -> tuple[Lexicon, dict[str, Any]]:
    """The words of a language model that is there already, ARPA or KenLM's binary, spelt by the rules for texts; and
    what became of them, for language_model.json. A binary without its words gets those of the sources, `seen`.

    UserError when it is neither, is damaged, has too high an order, or its words are of another alphabet.
    """
    words = _words_of_file(path, config)
    if words is None:
        return {word: word for word in sorted(seen)}, {"words": None}
    language, lexicon, left_out = Language.of(config.text), {}, defaultdict(list)
    for word in words:
        spelling = language.normalise(word)
        if fault := language.fault(word):
            left_out[fault[0].replace("_", " ")].append(word)
        elif not spelling:
            left_out["without a letter"].append(word)
        elif language.foreign(spelling):
            left_out["outside the alphabet"].append(word)
        elif " " in spelling:
            left_out["several words"].append(word)
        else:
            lexicon[word] = spelling
    if len(lexicon) < MAX_FOREIGN_SHARE * len(words) or not lexicon:
        raise UserError(
            f"{path} is of another alphabet: text.alphabet can spell {len(lexicon):,} of its {len(words):,} words; "
            "make one from texts normalised by this configuration"
        )
    return lexicon, {
        "words": len(words),
        "spelt_otherwise": _sample([word for word, spelling in lexicon.items() if word != spelling]),
        "same_spelling": len(lexicon) - len(set(lexicon.values())),
        "left_out": {why: _sample(found) for why, found in left_out.items()},
    }


def _sample(words: list[str]) -> dict[str, Any]:
    return {"words": len(words), "as": words[:5]}


def _words_of_file(path: Path, config: Config) -> list[str] | None:
    """In the file's order but for an ARPA's, which are sorted; None: KenLM's binary without them."""
    try:
        binary = kenlm_binary.is_kenlm_binary(path)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); language_model.file names an ARPA file") from error
    if binary:
        _, found = kenlm_binary.read_binary(path)
        if found is None:
            return None
        known = (word.decode("utf-8", "replace") for word in found)  # what is no UTF-8 is outside any alphabet
        return sorted({word for word in known if len(word.split()) == 1} - set(kneser_ney.SPECIAL))
    model = arpa.read_arpa(path)
    if len(model.levels) > config.language_model.order:
        raise UserError(
            f"{path} is of order {len(model.levels)}, language_model.order is {config.language_model.order}; type "
            f"language_model.order={len(model.levels)} where the decoder takes it (at most 6), or make a shorter one"
        )
    return model.words[len(kneser_ney.SPECIAL) :]


def describe_lexicon(given: Mapping[str, Any]) -> str:
    """In words what became of the words of a language model that was there already."""
    if given["words"] is None:
        return "the binary was built without its words, so those of the sources are taken, whether it knows them or not"
    left_out = [(f"{{:,}} left out, {why}", some) for why, some in given["left_out"].items()]
    parts = [f"{given['words']:,} words"]
    for said, some in [("{:,} spelt by the rules for texts", given["spelt_otherwise"]), *left_out]:
        if some["words"]:
            parts.append(f"{said.format(some['words'])} (as {printable(some['as'][0][:40])})")
    if given["same_spelling"]:
        parts.append(f"{given['same_spelling']:,} with the spelling of another one, beside which they stay")
    return "; ".join(parts)


def write_lexicon(path: Path, lexicon: Lexicon) -> None:
    """A line a word, as flashlight and NeMo read it."""
    with atomic_open(path) as text:
        text.writelines(f"{word}\t{' '.join(spelling)}\n" for word, spelling in lexicon.items())


def read_lexicon(path: Path) -> Lexicon:
    """The words of a lexicon with their spelling; UserError names a line that is none."""
    try:
        return parse_lexicon(path, path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); make it with train_language_model.py") from error


def parse_lexicon(path: Path, content: bytes) -> Lexicon:
    """Return the words of a lexicon's `content`, which was read from `path`; UserError names a line that is none."""
    lexicon = {}
    try:
        lines = content.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8; delete it and make it again with train_language_model.py") from error
    for number, line in enumerate(lines, start=1):
        word, _, letters = line.partition("\t")
        spelling = letters[::2]
        if not word or word in lexicon or not spelling or " ".join(spelling) != letters:
            raise UserError(
                f"{path}, line {number}: no word of its own, a tab and its letters one by one; make it again with "
                "train_language_model.py"
            )
        lexicon[word] = spelling
    return lexicon
