"""Between steps 2 and 3, where a language model is wanted: texts -> an n-gram model of words.

    python Fine_tuning/train_language_model.py [--config FILE] [section.key=value ...]

Estimates a model from each of language_model.sources, mixes them by their weights and writes language_model.arpa,
lexicon.txt and language_model.json to language_model.output. Of long texts, KenLM's lmplz estimates them on disk, where
it is installed (make lmplz), and language_model.binary is written too. Sentences of validation and test are left out.
`evaluate.py evaluation.decoder=lm` and `transcribe.py --language-model` use it.
"""

import finetuning.startup  # noqa: F401  first: it reports what ends the script during the other imports

# isort: split
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.config import schema as experiment
from finetuning.config.loading import from_command_line
from finetuning.config.schema import Config
from finetuning.data.manifest import SPLITS, find_test_sets, manifest_path, read_manifest
from finetuning.errors import UserError, run_script
from finetuning.files import (
    create_temp_file,
    ensure_writable_dir,
    exclusive_lock,
    remove_stale_temp_files,
    sha256,
    write_json,
)

if TYPE_CHECKING:
    from finetuning.language_model.corpus import SourceStats
    from finetuning.language_model.lexicon_file import Lexicon

REPORTED_BYTES = 1e8  # of memory; the need for less is not printed


def main() -> None:
    """Make the language model of a configuration, unless it is up to date."""
    config = from_command_line(__doc__)
    from finetuning.language_model import kenlm, text_files

    kenlm.require_flashlight()
    folder = ensure_writable_dir(experiment.resolve_path(config.language_model.output))
    with exclusive_lock(folder):
        remove_stale_temp_files(folder)
        text_files.prepare_texts(config)
        inputs = model_inputs(config)
        if kenlm.is_up_to_date(folder, inputs):
            print(f"Already made: {folder / kenlm.ABOUT}")
        else:
            make(config, folder, inputs)


def model_inputs(config: Config) -> dict[str, Any]:
    """Return the settings and the hashes of all files that are read; the same inputs give the same model."""
    from finetuning.language_model import corpus

    settings = config.as_dict()["language_model"]
    del settings["output"]
    data = experiment.manifest_folder(config)
    manifests = [*(manifest_path(data, split) for split in SPLITS), *find_test_sets(data).values()]
    paths = {path.name: path for path in manifests}
    for source in config.language_model.sources:
        if source.file:
            paths[experiment.strip_query(source.file)] = corpus.source_file(source, config)
    if config.language_model.file:
        paths[config.language_model.file] = experiment.resolve_path(config.language_model.file)
    hashes = {name: sha256(path) for name, path in paths.items() if path.is_file()}
    return {**settings, "text": config.as_dict()["text"], "sha256": hashes}


def make(config: Config, folder: Path, inputs: dict[str, Any]) -> None:
    """Estimate the model, or take the given file, and measure its perplexity on the validation texts."""
    from finetuning.language_model import corpus, kenlm, lexicon_file

    given_file = config.language_model.file
    path = experiment.resolve_path(given_file) if given_file else folder / kenlm.ARPA
    stats = [corpus.SourceStats(source.name, source.weight) for source in config.language_model.sources]
    lexicon, about = (use_given if given_file else estimate)(config, path, stats)
    if about.get("binary"):
        path = folder / kenlm.BINARY  # the same model, which loads in seconds
    lexicon_file.write_lexicon(folder / kenlm.LEXICON, lexicon)
    validation = read_manifest(manifest_path(experiment.manifest_folder(config), "validation"), check_audio=False)
    figures = kenlm.perplexity(path, lexicon, [u.text for u in validation])
    hashes = {"arpa": sha256(path), "lexicon": sha256(folder / kenlm.LEXICON)}
    about = {"sources": [asdict(source) for source in stats], "words": len(lexicon), **about}
    write_json(folder / kenlm.ABOUT, {**about, "validation": figures, "sha256": hashes, "inputs": inputs})
    print(
        f"{len(lexicon):,} words; validation perplexity {figures['perplexity']:.1f}, {figures['unknown_rate']:.2%} of "
        "the validation words unknown"
    )
    print(f"Wrote {folder}: {path.name}, {kenlm.LEXICON}, {kenlm.ABOUT}")


def iter_sources(config: Config, stats: "list[SourceStats]") -> Iterator[Iterator[list[str]]]:
    """Yield the sentences of each source; they are counted while they are read, and the counts printed after each."""
    from finetuning.language_model import corpus

    held_out = corpus.held_out_texts(config)
    for source, source_stats in zip(config.language_model.sources, stats, strict=True):
        yield corpus.iter_sentences(source, config, held_out, source_stats)
        print(source_stats)


def use_given(config: Config, path: Path, stats: "list[SourceStats]") -> "tuple[Lexicon, dict[str, Any]]":
    """Return the words of an existing language model, and what language_model.json states about them."""
    from finetuning.language_model import lexicon_file

    source_words = {word for sentences in iter_sources(config, stats) for words in sentences for word in words}
    lexicon, about = lexicon_file.lexicon_of_file(path, config, source_words)
    print(f"{path}: {lexicon_file.describe_lexicon(about)}")
    return lexicon, {"given": about}


def estimate(config: Config, path: Path, stats: "list[SourceStats]") -> "tuple[Lexicon, dict[str, Any]]":
    """Estimate a model from the sources and write it to `path`.

    Returns the words, and what language_model.json states about the model.
    """
    from finetuning.language_model import arpa, corpus, kenlm, kneser_ney, lmplz

    settings, weights = config.language_model, [source.weight for source in config.language_model.sources]
    kneser_ney.pruning_thresholds(settings.order, settings.prune)  # fail before a long text is read
    program = choose_lmplz(config)
    if program:
        counts, words, fallbacks = estimate_on_disk(program, config, path, stats)
    else:
        texts = [list(sentences) for sentences in iter_sources(config, stats)]
        print(f"Estimating a {settings.order}-gram model")
        model = corpus.estimate_mixture(texts, weights, settings.order, settings.prune, settings.min_count)
        arpa.write_arpa(path, model)
        counts, words, fallbacks = [len(level.keys) for level in model.levels], model.words, model.fallbacks
        words = words[len(kneser_ney.SPECIAL) :]
    if fallbacks:
        print(
            f"too little text to estimate the Kneser-Ney discounts of order {', '.join(map(str, fallbacks))}: the "
            f"fixed ones {', '.join(map(str, kneser_ney.FALLBACK[1:]))} are used"
        )
    about = {"ngrams": counts, "discount_fallbacks": list(fallbacks)}
    if program:
        about |= {"estimated_by": Path(program).name, "binary": lmplz.build_binary(path, path.with_name(kenlm.BINARY))}
    return dict(zip(words, words, strict=True)), about


def choose_lmplz(config: Config) -> str | None:
    """Return the path of KenLM's lmplz for long texts, or those that may need more memory than is free, else None.

    Raises UserError when the texts certainly need more and lmplz cannot be used.
    """
    from finetuning.language_model import corpus, lmplz

    sources = config.language_model.sources
    words = sum(corpus.count_words(source, config) for source in sources)
    least, most, free = words * lmplz.LEAST_PER_WORD, words * lmplz.MOST_PER_WORD, lmplz.available_memory_bytes()
    need = (
        f"{words:,} words take about {least / 1e9:.1f} to {most / 1e9:.1f} GB of memory, depending on how often they "
        f"repeat, and {free / 1e9:.1f} GB are free"
    )
    long, program = words > lmplz.MANY_WORDS, lmplz.find_program("lmplz")
    if program and (long or most > free):
        print(f"{need}: {program} estimates the model on disk")
        return program
    if least > free:
        raise UserError(
            f"{need}; shorten the texts of language_model.sources, or type: make lmplz (it builds KenLM's lmplz, which "
            "estimates the same model on disk)"
        )
    if most >= REPORTED_BYTES:
        hint = "; make lmplz builds KenLM's lmplz, which needs far less" if long else ""
        print(f"{need}{': it may not be enough' * (most > free)}{hint}")
    return None


def estimate_on_disk(
    program: str, config: Config, path: Path, stats: "list[SourceStats]"
) -> tuple[list[int], list[str], list[int]]:
    """Estimate a model with lmplz, or one of each source, which are mixed in memory, and write it to `path`.

    Returns the counts of each order, the words, and the orders whose discounts could not be estimated.
    """
    from finetuning.language_model import arpa, corpus, kneser_ney, lmplz

    settings = config.language_model
    vocabulary, absent, fallbacks = None, [()], set()
    several = len(settings.sources) > 1
    if several or settings.min_count > 1:  # the texts are read twice
        vocabulary, absent = corpus.read_vocabulary(config)
    temporary = [create_temp_file(path) for _ in settings.sources] if several else []
    try:
        for of_source, sentences, lacks in zip(temporary or [path], iter_sources(config, stats), absent, strict=True):
            limits = (settings.order, settings.prune, vocabulary, lacks)
            fallbacks.update(lmplz.estimate_with_lmplz(program, of_source, sentences, *limits))
        if several:
            weights = [source.weight for source in settings.sources]
            arpa.write_arpa(path, kneser_ney.mix_models(list(map(arpa.read_arpa, temporary)), weights))
    finally:
        for of_source in temporary:
            of_source.unlink(missing_ok=True)
    counts, words = arpa.read_unigrams(path)
    return counts, words, sorted(fallbacks)


if __name__ == "__main__":
    run_script(main)
