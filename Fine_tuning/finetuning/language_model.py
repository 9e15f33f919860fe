"""The n-gram model of an experiment: which sentences it is estimated from, what lies in its folder, and how good it is.

In the folder: `language_model.arpa`, `lexicon.txt` (a word, a tab, the letters that spell it, one by one) and
`language_model.json`. A word of somebody else's model may be spelt otherwise than it is written there (`Città`, `l’`).
"""

import hashlib
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning import arpa, kenlm_binary, ngrams
from finetuning.config import Config, Source, data_folder, resolve
from finetuning.errors import UserError, printable
from finetuning.files import read_json, sha256, written_whole
from finetuning.manifest import manifest_path, read_manifest
from finetuning.ngrams import Model
from finetuning.text import Language

if TYPE_CHECKING:
    from finetuning.beam_search import BeamSearch

ARPA, LEXICON, ABOUT = "language_model.arpa", "lexicon.txt", "language_model.json"
MOST_FOREIGN = 0.5  # share of an ARPA file's words that the alphabet cannot spell; above, it is another language's
BLOCK = 1 << 22  # bytes of a text that are looked at together
LONGEST_LINE = 10_000  # characters; a longer one is a text without line ends
NO_WORD = "language_model.min_count={} leaves no word of the sources; give a smaller one"
Lexicon = dict[str, str]  # words of the language model, and their spelling in the letters of the acoustic model


@dataclass
class Tally:
    """What became of a source's lines, as language_model.json has it."""

    name: str
    weight: float
    sentences: int = 0
    words: int = 0
    held_out: int = 0  # sentences of validation and test, taken out
    rejected: int = 0  # lines outside the alphabet, without a word, or too long

    def __str__(self) -> str:
        """What is printed of it."""
        return (
            f"{self.name}: {self.sentences:,} sentences, {self.words:,} words; taken out {self.held_out:,} sentences "
            f"of validation and test and {self.rejected:,} lines that are empty, outside the alphabet or longer than "
            f"{LONGEST_LINE:,} characters"
        )


def held_out(config: Config) -> set[str]:
    """The texts of validation and test, which no language model may be estimated from."""
    folder = data_folder(config)
    manifests = (manifest_path(folder, split) for split in ("validation", "test"))
    return {u.text for manifest in manifests for u in read_manifest(manifest, check_audio=False)}


def sentences(source: Source, config: Config, forbidden: set[str], tally: Tally) -> Iterator[list[str]]:
    """The words of each sentence of a source that can be used, normalised; counted in `tally` as they come.

    UserError when the source cannot be read or has given none.
    """
    language, path = Language.of(config.text), source_file(source, config)
    lines, foreign = 0, set()
    for lines, line in enumerate(_lines(path) if source.file else _training(path), start=1):  # noqa: B007
        text = "" if len(line) > LONGEST_LINE else language.normalise(line)
        outside = language.foreign(text)
        foreign.update(outside[:10])
        if outside or not text:
            tally.rejected += 1
        elif text in forbidden:
            tally.held_out += 1
        else:
            words = [sys.intern(word) for word in text.split()]  # a word is kept once, however often it occurs
            tally.sentences += 1
            tally.words += len(words)
            yield words
    if not tally.sentences:
        letters = "".join(sorted(foreign))[:10]
        usable = lines - tally.rejected
        reason = (
            f"they hold letters outside text.alphabet, as {letters}" if letters and not usable else "nothing is left"
        )
        raise UserError(
            f"{path} gives the language model no sentence: of {lines:,} lines, {usable:,} can be used and "
            f"{tally.held_out:,} of those stand in validation or test ({reason}); name another file"
        )


def source_file(source: Source, config: Config) -> Path:
    """Where the texts of a source lie: in its own file or in the training manifest."""
    return resolve(source.file) if source.file else manifest_path(data_folder(config), "train")


def count_words(source: Source, config: Config) -> int:
    """About how many words the text of a source has; UserError when it cannot be read."""
    path = source_file(source, config)
    if not source.file:
        return sum(len(text.split()) for text in _training(path))
    try:
        with path.open("rb") as file:
            return sum(len(block.split()) for block in iter(lambda: file.read(BLOCK), b""))
    except OSError as error:
        raise _unreadable(path, error) from error


def _training(manifest: Path) -> Iterator[str]:
    for utterance in read_manifest(manifest, check_audio=False):
        yield utterance.text


def _lines(path: Path) -> Iterator[str]:
    number = 0  # of lines that were read
    try:
        with path.open(encoding="utf-8-sig") as text:
            for line in text:
                number += 1
                yield line.removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read the text {path} (behind line {number:,}: {error.reason}); it must be UTF-8 with a sentence a "
            "line"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"there is no text {path}; language_model.sources names a file with a sentence a line")
    return UserError(f"cannot read the text {path} ({error}); it must be UTF-8 with a sentence a line")


def estimate(
    gathered: Sequence[Sequence[Sequence[str]]],
    weights: Sequence[float],
    order: int,
    prune: Sequence[int],
    min_count: int,
) -> Model:
    """A model of each source's sentences over the words of all, and their mixture; UserError when no word is left."""
    words = ngrams.frequent_words((sentence for source in gathered for sentence in source), min_count)
    if not words:
        raise UserError(NO_WORD.format(min_count))
    models = [ngrams.estimate(source, order, prune, words) for source in gathered]
    return models[0] if len(models) == 1 else ngrams.mix(models, weights)


def given_lexicon(path: Path, config: Config, seen: Iterable[str]) -> tuple[Lexicon, dict[str, Any]]:
    """The words of a language model that is there already, ARPA or KenLM's binary, spelt by the rules for texts; and
    what became of them, for language_model.json. A binary without its words gets those of the sources, `seen`.

    UserError when it is neither, is damaged, has too high an order, or its words are of another alphabet.
    """
    words = _given_words(path, config)
    if words is None:
        return {word: word for word in sorted(seen)}, {"words": None}
    language, lexicon, left_out = Language.of(config.text), {}, defaultdict(list)
    for word in words:
        spelling = language.normalise(word) if word and len(word) <= LONGEST_LINE else ""
        if not spelling:
            left_out["without a letter"].append(word)
        elif language.foreign(spelling):
            left_out["outside the alphabet"].append(word)
        elif " " in spelling:
            left_out["several words"].append(word)
        else:
            lexicon[word] = spelling
    if len(lexicon) < MOST_FOREIGN * len(words) or not lexicon:
        raise UserError(
            f"{path} is of another alphabet: text.alphabet can spell {len(lexicon):,} of its {len(words):,} words; "
            "make one from texts normalised by this configuration"
        )
    return lexicon, {
        "words": len(words),
        "spelt_otherwise": _some([word for word, spelling in lexicon.items() if word != spelling]),
        "same_spelling": len(lexicon) - len(set(lexicon.values())),
        "left_out": {why: _some(found) for why, found in left_out.items()},
    }


def _some(words: list[str]) -> dict[str, Any]:
    return {"words": len(words), "as": words[:5]}


def _given_words(path: Path, config: Config) -> list[str] | None:
    """In the file's order but for an ARPA's, which are sorted; None: KenLM's binary without them."""
    try:
        binary = kenlm_binary.is_binary(path)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); language_model.file names an ARPA file") from error
    if binary:
        _, found = kenlm_binary.read(path)
        if found is None:
            return None
        known = (word.decode("utf-8", "replace") for word in found)  # what is no UTF-8 is outside any alphabet
        return sorted({word for word in known if len(word.split()) == 1} - set(ngrams.SPECIAL))
    model = arpa.read(path)
    if len(model.levels) > config.language_model.order:
        raise UserError(
            f"{path} is of order {len(model.levels)}, language_model.order is {config.language_model.order}; type "
            f"language_model.order={len(model.levels)} where the decoder takes it (at most 6), or make a shorter one"
        )
    return model.words[len(ngrams.SPECIAL) :]


def told(given: Mapping[str, Any]) -> str:
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
    with written_whole(path) as text:
        text.writelines(f"{word}\t{' '.join(spelling)}\n" for word, spelling in lexicon.items())


def read_lexicon(path: Path) -> Lexicon:
    """The words of a lexicon with their spelling; UserError names a line that is none."""
    try:
        return _lexicon(path, path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); make it with train_language_model.py") from error


def _lexicon(path: Path, content: bytes) -> Lexicon:
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


def find(output: str, config_file: str) -> tuple[Path, Lexicon, dict[str, str]]:
    """The language model in the folder `output`, its words, the hashes of both; UserError when it is not made yet."""
    folder = resolve(output)
    command = f"python Fine_tuning/train_language_model.py --config {config_file}"
    about = read_json(folder / ABOUT)
    if about is None:
        raise UserError(f"there is no language model in {folder} yet; make it with: {command}")
    try:
        path, recorded = folder / ARPA, dict(about["sha256"])
        if about["inputs"]["file"]:
            path = resolve(about["inputs"]["file"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / ABOUT} describes no language model; delete it and type: {command}") from error
    lexicon, content = folder / LEXICON, _content(folder / LEXICON)
    hashes = {
        "arpa": sha256(path) if path.is_file() else "",
        "lexicon": hashlib.sha256(content).hexdigest() if content else "",
    }
    if hashes != recorded:
        raise UserError(
            f"{path} and {lexicon} are not what {ABOUT} beside them says; wait for the run that is making them, or "
            f"type: {command}"
        )
    return path, _lexicon(lexicon, content), hashes


def _content(path: Path) -> bytes:
    """Of a file, empty where there is none: read once, so that what is hashed is what is used."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def is_made(folder: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether the language model in a folder was made from these inputs and is still as it was made."""
    about = read_json(folder / ABOUT)
    if not isinstance(about, dict) or about.get("inputs") != inputs:
        return False
    try:
        find(str(folder), "")
    except UserError:
        return False
    return True


def beam_search(output: str, config_file: str, letters: Sequence[str], hashes: Mapping[str, str]) -> "BeamSearch":
    """The beam search with the language model of these hashes, for a model with these letters.

    UserError when there is another one, also when it was replaced while it was read.
    """
    from finetuning.beam_search import BeamSearch

    path, lexicon, _ = find(output, config_file)
    search = BeamSearch(path, lexicon, letters)
    *_, found = find(output, config_file)
    if found.items() - hashes.items():
        raise UserError(f"the language model in {resolve(output)} was made anew meanwhile; type the same command again")
    return search


def perplexity(path: Path, lexicon: Lexicon, texts: Iterable[str]) -> dict[str, Any]:
    """How a model takes texts, as KenLM reads it: 10 ** -mean log10 p over words and sentence ends.

    Without the words it does not know; the rate of these; and with them, as <unk>. Of words of one spelling, the one
    that the model finds more probable there counts. UserError when the figures of a file are no numbers.
    """
    from finetuning.beam_search import UNKNOWN, load

    lm, dictionary = load(path, lexicon)
    known, nothing = defaultdict(list), [dictionary.get_index(UNKNOWN)]
    for word, spelling in lexicon.items():
        known[spelling].append(dictionary.get_index(word))
    total, all_total, unknown, count, ends = 0.0, 0.0, 0, 0, 0
    for text in texts:
        state = lm.start(False)
        for word in text.split():
            scored = [lm.score(state, number) for number in known.get(word, nothing)]
            state, score = max(scored, key=lambda found: found[1])
            all_total += score
            total += score if word in known else 0.0
            unknown += word not in known
            count += 1
        _, score = lm.finish(state)
        total, all_total, ends = total + score, all_total + score, ends + 1
    if not math.isfinite(all_total):
        raise UserError(f"{path} gives probabilities that are none; make it again or name another one")
    figures = {
        "perplexity": _power(-total / (count - unknown + ends)),
        "perplexity_with_unknown": _power(-all_total / (count + ends)),
        "unknown_rate": unknown / count if count else math.nan,
    }
    return {"words": count, "unknown": unknown, **{name: round(value, 4) for name, value in figures.items()}}


def _power(exponent: float) -> float:
    """10 to that power, infinite where it is no float any more."""
    return 10**exponent if exponent < 300 else math.inf
