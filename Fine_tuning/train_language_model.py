"""Between steps 2 and 3, when a language model is to help: texts -> an n-gram model of words.

    python Fine_tuning/train_language_model.py [--config FILE] [section.key=value ...]

Estimates a model from each of language_model.sources, mixes them by their weights and writes language_model.arpa,
lexicon.txt and language_model.json into language_model.output. Sentences of validation and test are taken out first.
`evaluate.py evaluation.decoder=lm` and `transcribe.py --language-model` use it.
"""

import finetuning.start  # noqa: F401  first: it says what ends a script while the rest is imported

# isort: split
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning import config as experiment
from finetuning.config import Config
from finetuning.config_file import from_command_line
from finetuning.errors import UserError, run
from finetuning.files import alone, clear_left_over, make_folder, sha256, write_json
from finetuning.manifest import SPLITS, manifest_path, read_manifest

if TYPE_CHECKING:
    from finetuning.language_model import Lexicon, Tally

WORTH_SAYING = 1e8  # bytes of memory


def main() -> None:
    """Make one language model, unless it is there."""
    config = from_command_line(__doc__)
    from finetuning import beam_search, language_model

    beam_search.require_flashlight()
    folder = make_folder(experiment.resolve(config.language_model.output))
    with alone(folder):
        clear_left_over(folder)
        inputs = made_from(config)
        if language_model.is_made(folder, inputs):
            print(f"Already made: {folder / language_model.ABOUT}")
        else:
            make(config, folder, inputs)


def made_from(config: Config) -> dict[str, Any]:
    """The settings and the hashes of all that is read: the same inputs give the same model."""
    settings = config.as_dict()["language_model"]
    del settings["output"]
    manifests = [manifest_path(experiment.data_folder(config), split) for split in SPLITS]
    named = [*(source.file for source in config.language_model.sources), config.language_model.file]
    read = {path.name: path for path in manifests} | {file: experiment.resolve(file) for file in named if file}
    hashes = {name: sha256(path) for name, path in read.items() if path.is_file()}
    return {**settings, "text": config.as_dict()["text"], "sha256": hashes}


def make(config: Config, folder: Path, inputs: dict[str, Any]) -> None:
    """Estimate, or take what is given, and say how it takes the validation texts."""
    from finetuning import language_model

    given_file = config.language_model.file
    path = experiment.resolve(given_file) if given_file else folder / language_model.ARPA
    sources = [language_model.Tally(source.name, source.weight) for source in config.language_model.sources]
    lexicon, about = (given if given_file else estimated)(config, path, sources)
    language_model.write_lexicon(folder / language_model.LEXICON, lexicon)
    validation = read_manifest(manifest_path(experiment.data_folder(config), "validation"), check_audio=False)
    found = language_model.perplexity(path, lexicon, [u.text for u in validation])
    hashes = {"arpa": sha256(path), "lexicon": sha256(folder / language_model.LEXICON)}
    about = {"sources": [asdict(source) for source in sources], "words": len(lexicon), **about}
    write_json(folder / language_model.ABOUT, {**about, "validation": found, "sha256": hashes, "inputs": inputs})
    said = "validation perplexity {perplexity:.1f}, {unknown_rate:.2%} of the validation words unknown".format(**found)
    print(f"{len(lexicon):,} words; {said}")
    print(f"Wrote {folder}: {path.name}, {language_model.LEXICON}, {language_model.ABOUT}")


def read(config: Config, tallies: "list[Tally]") -> Iterator[Iterator[list[str]]]:
    """The sentences of each source, counted while they are read; the counts are printed behind each."""
    from finetuning import language_model

    forbidden = language_model.held_out(config)
    for source, tally in zip(config.language_model.sources, tallies, strict=True):
        yield language_model.sentences(source, config, forbidden, tally)
        print(tally)


def given(config: Config, path: Path, tallies: "list[Tally]") -> "tuple[Lexicon, dict[str, Any]]":
    """The words of a language model that is there, and what language_model.json says of them."""
    from finetuning import language_model

    seen = {word for sentences in read(config, tallies) for words in sentences for word in words}
    lexicon, about = language_model.given_lexicon(path, config, seen)
    print(f"{path}: {language_model.told(about)}")
    return lexicon, {"given": about}


def estimated(config: Config, path: Path, tallies: "list[Tally]") -> "tuple[Lexicon, dict[str, Any]]":
    """Estimate from the sources and write `path`; the words, and what language_model.json says of the model."""
    from finetuning import arpa, language_model, ngrams

    settings, weights = config.language_model, [source.weight for source in config.language_model.sources]
    ngrams.thresholds(settings.order, settings.prune)  # before a long text is read in vain
    program = too_large_for_memory(config)
    if program:
        counts, words, fallbacks = estimated_by(program, config, path, tallies)
    else:
        gathered = [list(sentences) for sentences in read(config, tallies)]
        print(f"Estimating a {settings.order}-gram model")
        model = language_model.estimate(gathered, weights, settings.order, settings.prune, settings.min_count)
        arpa.write(path, model)
        counts, words, fallbacks = [len(level.keys) for level in model.levels], model.words, model.fallbacks
        words = words[len(ngrams.SPECIAL) :]
    by = {"estimated_by": Path(program).name} if program else {}
    return dict(zip(words, words, strict=True)), {"ngrams": counts, "discount_fallbacks": list(fallbacks), **by}


def too_large_for_memory(config: Config) -> str | None:
    """KenLM's lmplz where the texts may need more memory than is free; UserError where they do and it cannot help."""
    from finetuning import language_model, lmplz

    sources = config.language_model.sources
    words = sum(language_model.count_words(source, config) for source in sources)
    least, most, free = words * lmplz.LEAST_PER_WORD, words * lmplz.MOST_PER_WORD, lmplz.free_bytes()
    said = (
        f"{words:,} words take about {least / 1e9:.1f} to {most / 1e9:.1f} GB of memory, as they repeat themselves, "
        f"and {free / 1e9:.1f} GB are free"
    )
    program = lmplz.program() if len(sources) == 1 else None
    if most > free and program:
        print(f"{said}: {program} estimates the model on the disk")
        return program
    if least > free and len(sources) == 1:
        raise UserError(
            f"{said}; shorten {language_model.source_file(sources[0], config)}, or put lmplz, which KenLM's sources "
            "build, on the PATH: it estimates the same on the disk"
        )
    if least > free:
        raise UserError(
            f"{said}; shorten the texts of language_model.sources: only a single source can be estimated on the disk, "
            "by KenLM's lmplz; several are mixed in memory"
        )
    if most >= WORTH_SAYING:
        print(f"{said}: it may not be enough" if most > free else said)
    return None


def estimated_by(
    program: str, config: Config, path: Path, tallies: "list[Tally]"
) -> tuple[list[int], list[str], list[int]]:
    """Let lmplz write `path`; counts of each order, the words, and the orders without discounts of their own."""
    from finetuning import arpa, language_model, lmplz, ngrams

    settings, vocabulary = config.language_model, None
    if settings.min_count > 1:  # the text is read twice
        source, uncounted = settings.sources[0], language_model.Tally("", 1.0)
        sentences = language_model.sentences(source, config, language_model.held_out(config), uncounted)
        vocabulary = ngrams.frequent_words(sentences, settings.min_count)
        if not vocabulary:
            raise UserError(language_model.NO_WORD.format(settings.min_count))
    sources = read(config, tallies)
    fallbacks = lmplz.estimate(program, path, next(sources), settings.order, settings.prune, vocabulary)
    next(sources, None)
    counts, words = arpa.unigrams(path)
    return counts, words, fallbacks


if __name__ == "__main__":
    run(main)
