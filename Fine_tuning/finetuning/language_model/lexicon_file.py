"""The words of a language model and the spelling of each in the characters of the acoustic model."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetuning.config.schema import Config
from finetuning.data.text_normalization import Language
from finetuning.errors import UserError, printable
from finetuning.files import atomic_open
from finetuning.language_model import arpa, kenlm_binary, kneser_ney

MIN_SPELLABLE_SHARE = 0.5  # of a model's words; if the alphabet can spell fewer, the model is of another language
Lexicon = dict[str, str]  # words of the language model, and their spelling in characters of the acoustic model


def lexicon_of_file(path: Path, config: Config, source_words: Iterable[str]) -> tuple[Lexicon, dict[str, Any]]:
    """Return the words of an existing model, ARPA or KenLM binary, with their spelling by the rules for texts.

    The second value is what became of them, for language_model.json. A binary without words gets `source_words`. Raises
    UserError when the file is neither, is damaged, has too high an order, or its words are of another alphabet.
    """
    words = _words_of_file(path, config)
    if words is None:
        return {word: word for word in sorted(source_words)}, {"words": None}
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
    if len(lexicon) < MIN_SPELLABLE_SHARE * len(words) or not lexicon:
        raise UserError(
            f"{path} is of another alphabet: text.alphabet can spell {len(lexicon):,} of its {len(words):,} words; "
            "make one from texts normalised by this configuration"
        )
    return lexicon, {
        "words": len(words),
        "spelt_otherwise": _sample([word for word, spelling in lexicon.items() if word != spelling]),
        "same_spelling": len(lexicon) - len(set(lexicon.values())),
        "left_out": {reason: _sample(words) for reason, words in left_out.items()},
    }


def _sample(words: list[str]) -> dict[str, Any]:
    return {"words": len(words), "as": words[:5]}


def _words_of_file(path: Path, config: Config) -> list[str] | None:
    """Return the words of a model, sorted; None for a KenLM binary without them."""
    try:
        binary = kenlm_binary.is_kenlm_binary(path)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); language_model.file names an ARPA file") from error
    if binary:
        _, encoded = kenlm_binary.read_binary(path)
        if encoded is None:
            return None
        words = (word.decode("utf-8", "replace") for word in encoded)  # the replacement is outside any alphabet
        return sorted({word for word in words if len(word.split()) == 1} - set(kneser_ney.SPECIAL))
    model = arpa.read_arpa(path)
    if len(model.levels) > config.language_model.order:
        raise UserError(
            f"{path} is of order {len(model.levels)}, language_model.order is {config.language_model.order}; give "
            f"language_model.order={len(model.levels)} (the decoder takes at most 6), or make a model of lower order"
        )
    return model.words[len(kneser_ney.SPECIAL) :]


def describe_lexicon(about: Mapping[str, Any]) -> str:
    """Return a sentence for the screen on what became of the words of an existing language model."""
    if about["words"] is None:
        return "the binary was built without its words, so those of the sources are used, whether it knows them or not"
    left_out = [(f"{{:,}} left out, {reason}", sample) for reason, sample in about["left_out"].items()]
    parts = [f"{about['words']:,} words"]
    for template, sample in [("{:,} spelt by the rules for texts", about["spelt_otherwise"]), *left_out]:
        if sample["words"]:
            parts.append(f"{template.format(sample['words'])} (such as {printable(sample['as'][0][:40])})")
    if about["same_spelling"]:
        parts.append(f"{about['same_spelling']:,} that share their spelling with another word")
    return "; ".join(parts)


def write_lexicon(path: Path, lexicon: Lexicon) -> None:
    """Write a line for each word, in the form that flashlight and NeMo read."""
    with atomic_open(path) as text:
        text.writelines(f"{word}\t{' '.join(spelling)}\n" for word, spelling in lexicon.items())


def read_lexicon(path: Path) -> Lexicon:
    """Return the words of a lexicon file with their spelling; raise UserError for a line that is not an entry."""
    try:
        return parse_lexicon(path, path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); make it with train_language_model.py") from error


def parse_lexicon(path: Path, content: bytes) -> Lexicon:
    """Return the words in `content`, which was read from `path`; raise UserError for a line that is not an entry."""
    lexicon = {}
    try:
        lines = content.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8; delete it and make it again with train_language_model.py") from error
    for number, line in enumerate(lines, start=1):
        word, _, characters = line.partition("\t")
        spelling = characters[::2]
        if not word or word in lexicon or not spelling or " ".join(spelling) != characters:
            raise UserError(
                f"{path}, line {number}: this is not a new word, a tab and its characters separated by spaces; make it "
                "again with train_language_model.py"
            )
        lexicon[word] = spelling
    return lexicon
