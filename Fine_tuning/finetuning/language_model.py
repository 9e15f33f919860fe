"""The n-gram model of an experiment: which sentences it is estimated from, what lies in its folder, and how good it is.

In the folder: `language_model.arpa`, `lexicon.txt` (a word, a tab, its letters one by one) and `language_model.json`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning import arpa, ngrams
from finetuning.config import Config, Source, data_folder, resolve
from finetuning.errors import UserError
from finetuning.files import read_json, sha256, written_whole
from finetuning.manifest import manifest_path, read_manifest
from finetuning.ngrams import Model
from finetuning.text import Language

ARPA, LEXICON, ABOUT = "language_model.arpa", "lexicon.txt", "language_model.json"
BINARY = b"mmap lm http://kheafield.com/code format version"  # how KenLM's own files begin
MOST_FOREIGN = 0.5  # share of an ARPA file's words that the alphabet cannot spell; above, it is another language's


@dataclass(frozen=True)
class Gathered:
    """The sentences of a source, normalised."""

    name: str
    weight: float
    sentences: list[list[str]]  # words
    held_out: int  # sentences of validation and test, taken out
    rejected: int  # sentences outside the alphabet, and lines without a word

    def counts(self) -> dict[str, Any]:
        """What language_model.json says of it."""
        words = sum(map(len, self.sentences))
        sentences = {"sentences": len(self.sentences), "words": words}
        return {
            "name": self.name,
            "weight": self.weight,
            **sentences,
            "held_out": self.held_out,
            "rejected": self.rejected,
        }


def held_out(config: Config) -> set[str]:
    """The texts of validation and test, which no language model may be estimated from."""
    folder = data_folder(config)
    manifests = (manifest_path(folder, split) for split in ("validation", "test"))
    return {u.text for manifest in manifests for u in read_manifest(manifest, check_audio=False)}


def gather(source: Source, config: Config, forbidden: set[str]) -> Gathered:
    """Read and normalise a source; UserError when it cannot be read or nothing is left of it."""
    language = Language.of(config.text)
    path = resolve(source.file) if source.file else manifest_path(data_folder(config), "train")
    lines = _lines(path) if source.file else [u.text for u in read_manifest(path, check_audio=False)]
    texts = [language.normalise(line) for line in lines]
    usable = [text for text in texts if text and not language.foreign(text)]
    sentences = [text.split() for text in usable if text not in forbidden]
    if not sentences:
        letters = language.foreign("".join(texts))[:10]
        reason = (
            f"they hold letters outside text.alphabet, as {letters}" if letters and not usable else "nothing is left"
        )
        raise UserError(
            f"{path} gives the language model no sentence: of {len(lines):,} lines, {len(usable):,} can be used and "
            f"{len(usable) - len(sentences):,} of those stand in validation or test ({reason}); name another file"
        )
    held = len(usable) - len(sentences)
    return Gathered(source.name, source.weight, sentences, held, len(texts) - len(usable))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except FileNotFoundError as error:
        raise UserError(
            f"there is no text {path}; language_model.sources names a file with a sentence a line"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the text {path} ({error}); it must be UTF-8 with a sentence a line") from error


def estimate(gathered: Sequence[Gathered], order: int, prune: Sequence[int], min_count: int) -> Model:
    """A model of each source over the words of all of them, and their mixture; UserError when no word is left."""
    words = ngrams.frequent_words((s for source in gathered for s in source.sentences), min_count)
    if not words:
        raise UserError(f"language_model.min_count={min_count} leaves no word of the sources; give a smaller one")
    models = [ngrams.estimate(source.sentences, order, prune, words) for source in gathered]
    return models[0] if len(models) == 1 else ngrams.mix(models, [source.weight for source in gathered])


def given_words(path: Path, config: Config, gathered: Iterable[Gathered]) -> list[str]:
    """The words of a language model that is there already: an ARPA file's own; of KenLM's binary form, which does not
    list them, those of the sources.

    UserError when it is neither, is damaged, has too high an order, or its words are of another alphabet.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(BINARY)) == BINARY:
                return ngrams.frequent_words(s for source in gathered for s in source.sentences)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); language_model.file names an ARPA file") from error
    model = arpa.read(path)
    if len(model.levels) > config.language_model.order:
        raise UserError(
            f"{path} is of order {len(model.levels)}, language_model.order is {config.language_model.order}; type "
            f"language_model.order={len(model.levels)} where the decoder takes it (at most 6), or make a shorter one"
        )
    words = model.words[len(ngrams.SPECIAL) :]
    spelt = [word for word in words if set(word) <= set(config.text.alphabet) - {" "}]
    if len(spelt) < MOST_FOREIGN * len(words):
        raise UserError(
            f"{path} is of another alphabet: text.alphabet can spell {len(spelt):,} of its {len(words):,} words; make "
            "one from texts normalised by this configuration"
        )
    return spelt


def write_lexicon(path: Path, words: Iterable[str]) -> None:
    """A line a word, as flashlight and NeMo read it."""
    with written_whole(path) as text:
        text.writelines(f"{word}\t{' '.join(word)}\n" for word in words)


def read_lexicon(path: Path) -> list[str]:
    """The words of a lexicon."""
    with path.open(encoding="utf-8") as lines:
        return [line.partition("\t")[0] for line in lines]


def find(output: str, config_file: str) -> tuple[Path, list[str], dict[str, str]]:
    """The language model in the folder `output`, its words, the hashes of both; UserError when it is not made yet."""
    folder = resolve(output)
    command = f"python Fine_tuning/train_language_model.py --config {config_file}"
    about = read_json(folder / ABOUT)
    if about is None:
        raise UserError(f"there is no language model in {folder} yet; make it with: {command}")
    path, lexicon = resolve(about["inputs"]["file"]) if about["inputs"]["file"] else folder / ARPA, folder / LEXICON
    hashes = {name: sha256(file) if file.is_file() else "" for name, file in (("arpa", path), ("lexicon", lexicon))}
    if hashes != about["sha256"]:
        raise UserError(f"{path} and {lexicon} are not what {ABOUT} beside them says; delete that and type: {command}")
    return path, read_lexicon(lexicon), hashes


def perplexity(path: Path, words: Sequence[str], texts: Iterable[str]) -> dict[str, Any]:
    """How a model takes texts, as KenLM reads it: 10 ** -mean log10 p over words and sentence ends.

    Without the words it does not know; the rate of these; and with them, as <unk>.
    """
    from finetuning.beam_search import UNKNOWN, load

    lm, dictionary = load(path, words)
    known, total, all_total, unknown, count, ends = set(words), 0.0, 0.0, 0, 0, 0
    for text in texts:
        state = lm.start(False)
        for word in text.split():
            state, score = lm.score(state, dictionary.get_index(word if word in known else UNKNOWN))
            all_total += score
            total += score if word in known else 0.0
            unknown += word not in known
            count += 1
        _, score = lm.finish(state)
        total, all_total, ends = total + score, all_total + score, ends + 1
    figures = {
        "perplexity": 10 ** (-total / (count - unknown + ends)),
        "perplexity_with_unknown": 10 ** (-all_total / (count + ends)),
        "unknown_rate": unknown / count if count else math.nan,
    }
    return {"words": count, "unknown": unknown, **{name: round(value, 4) for name, value in figures.items()}}
