"""Between steps 2 and 3, when a language model is to help: texts -> an n-gram model of words.

    python Fine_tuning/train_language_model.py [--config FILE] [section.key=value ...]

Estimates a model from each of language_model.sources, mixes them by their weights and writes language_model.arpa,
lexicon.txt and language_model.json into language_model.output. Sentences of validation and test are taken out first.
`evaluate.py evaluation.decoder=lm` and `transcribe.py --language-model` use it.
"""

import finetuning.startup  # noqa: F401  first: it says what ends a script while the rest is imported

# isort: split
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.config import schema as experiment
from finetuning.config.loading import from_command_line
from finetuning.config.schema import Config
from finetuning.data.manifest import SPLITS, manifest_path, read_manifest
from finetuning.errors import UserError, run_script
from finetuning.files import ensure_writable_dir, exclusive_lock, remove_stale_temp_files, sha256, write_json

if TYPE_CHECKING:
    from finetuning.language_model.corpus import SourceStats
    from finetuning.language_model.lexicon_file import Lexicon

WORTH_SAYING = 1e8  # bytes of memory


def main() -> None:
    """Make one language model, unless it is there."""
    config = from_command_line(__doc__)
    from finetuning.language_model import kenlm

    kenlm.require_flashlight()
    folder = ensure_writable_dir(experiment.resolve_path(config.language_model.output))
    with exclusive_lock(folder):
        remove_stale_temp_files(folder)
        inputs = made_from(config)
        if kenlm.is_up_to_date(folder, inputs):
            print(f"Already made: {folder / kenlm.ABOUT}")
        else:
            make(config, folder, inputs)


def made_from(config: Config) -> dict[str, Any]:
    """The settings and the hashes of all that is read: the same inputs give the same model."""
    settings = config.as_dict()["language_model"]
    del settings["output"]
    manifests = [manifest_path(experiment.manifest_folder(config), split) for split in SPLITS]
    named = [*(source.file for source in config.language_model.sources), config.language_model.file]
    read = {path.name: path for path in manifests} | {file: experiment.resolve_path(file) for file in named if file}
    hashes = {name: sha256(path) for name, path in read.items() if path.is_file()}
    return {**settings, "text": config.as_dict()["text"], "sha256": hashes}


def make(config: Config, folder: Path, inputs: dict[str, Any]) -> None:
    """Estimate, or take what is given, and say how it takes the validation texts."""
    from finetuning.language_model import corpus, kenlm, lexicon_file

    given_file = config.language_model.file
    path = experiment.resolve_path(given_file) if given_file else folder / kenlm.ARPA
    sources = [corpus.SourceStats(source.name, source.weight) for source in config.language_model.sources]
    lexicon, about = (given if given_file else estimated)(config, path, sources)
    lexicon_file.write_lexicon(folder / kenlm.LEXICON, lexicon)
    validation = read_manifest(manifest_path(experiment.manifest_folder(config), "validation"), check_audio=False)
    found = kenlm.perplexity(path, lexicon, [u.text for u in validation])
    hashes = {"arpa": sha256(path), "lexicon": sha256(folder / kenlm.LEXICON)}
    about = {"sources": [asdict(source) for source in sources], "words": len(lexicon), **about}
    write_json(folder / kenlm.ABOUT, {**about, "validation": found, "sha256": hashes, "inputs": inputs})
    said = "validation perplexity {perplexity:.1f}, {unknown_rate:.2%} of the validation words unknown".format(**found)
    print(f"{len(lexicon):,} words; {said}")
    print(f"Wrote {folder}: {path.name}, {kenlm.LEXICON}, {kenlm.ABOUT}")


def read(config: Config, tallies: "list[SourceStats]") -> Iterator[Iterator[list[str]]]:
    """The sentences of each source, counted while they are read; the counts are printed behind each."""
    from finetuning.language_model import corpus

    forbidden = corpus.held_out_texts(config)
    for source, tally in zip(config.language_model.sources, tallies, strict=True):
        yield corpus.iter_sentences(source, config, forbidden, tally)
        print(tally)


def given(config: Config, path: Path, tallies: "list[SourceStats]") -> "tuple[Lexicon, dict[str, Any]]":
    """The words of a language model that is there, and what language_model.json says of them."""
    from finetuning.language_model import lexicon_file

    seen = {word for sentences in read(config, tallies) for words in sentences for word in words}
    lexicon, about = lexicon_file.lexicon_of_file(path, config, seen)
    print(f"{path}: {lexicon_file.describe_lexicon(about)}")
    return lexicon, {"given": about}


def estimated(config: Config, path: Path, tallies: "list[SourceStats]") -> "tuple[Lexicon, dict[str, Any]]":
    """Estimate from the sources and write `path`; the words, and what language_model.json says of the model."""
    from finetuning.language_model import arpa, corpus, kneser_ney

    settings, weights = config.language_model, [source.weight for source in config.language_model.sources]
    kneser_ney.pruning_thresholds(settings.order, settings.prune)  # before a long text is read in vain
    program = too_large_for_memory(config)
    if program:
        counts, words, fallbacks = estimated_by(program, config, path, tallies)
    else:
        gathered = [list(sentences) for sentences in read(config, tallies)]
        print(f"Estimating a {settings.order}-gram model")
        model = corpus.estimate_mixture(gathered, weights, settings.order, settings.prune, settings.min_count)
        arpa.write_arpa(path, model)
        counts, words, fallbacks = [len(level.keys) for level in model.levels], model.words, model.fallbacks
        words = words[len(kneser_ney.SPECIAL) :]
    by = {"estimated_by": Path(program).name} if program else {}
    return dict(zip(words, words, strict=True)), {"ngrams": counts, "discount_fallbacks": list(fallbacks), **by}


def too_large_for_memory(config: Config) -> str | None:
    """KenLM's lmplz where the texts may need more memory than is free; UserError where they do and it cannot help."""
    from finetuning.language_model import corpus, lmplz

    sources = config.language_model.sources
    words = sum(corpus.count_words(source, config) for source in sources)
    least, most, free = words * lmplz.LEAST_PER_WORD, words * lmplz.MOST_PER_WORD, lmplz.available_memory_bytes()
    said = (
        f"{words:,} words take about {least / 1e9:.1f} to {most / 1e9:.1f} GB of memory, as they repeat themselves, "
        f"and {free / 1e9:.1f} GB are free"
    )
    program = lmplz.find_lmplz() if len(sources) == 1 else None
    if most > free and program:
        print(f"{said}: {program} estimates the model on the disk")
        return program
    if least > free and len(sources) == 1:
        raise UserError(
            f"{said}; shorten {corpus.source_file(sources[0], config)}, or put lmplz, which KenLM's sources "
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
    program: str, config: Config, path: Path, tallies: "list[SourceStats]"
) -> tuple[list[int], list[str], list[int]]:
    """Let lmplz write `path`; counts of each order, the words, and the orders without discounts of their own."""
    from finetuning.language_model import arpa, corpus, kneser_ney, lmplz

    settings, vocabulary = config.language_model, None
    if settings.min_count > 1:  # the text is read twice
        source, uncounted = settings.sources[0], corpus.SourceStats("", 1.0)
        sentences = corpus.iter_sentences(source, config, corpus.held_out_texts(config), uncounted)
        vocabulary = kneser_ney.frequent_words(sentences, settings.min_count)
        if not vocabulary:
            raise UserError(corpus.NO_WORD.format(settings.min_count))
    sources = read(config, tallies)
    fallbacks = lmplz.estimate_with_lmplz(program, path, next(sources), settings.order, settings.prune, vocabulary)
    next(sources, None)
    counts, words = arpa.read_unigrams(path)
    return counts, words, fallbacks


if __name__ == "__main__":
    run_script(main)
