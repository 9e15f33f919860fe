"""Between steps 2 and 3, when a language model is to help: texts -> an n-gram model of words.

    python Fine_tuning/train_language_model.py [--config FILE] [section.key=value ...]

Estimates a model from each of language_model.sources, mixes them by their weights and writes language_model.arpa,
lexicon.txt and language_model.json into language_model.output. Sentences of validation and test are taken out first.
`evaluate.py evaluation.decoder=lm` and `transcribe.py --language-model` use it.
"""

import finetuning.start  # noqa: F401  first: it says what ends a script while the rest is imported

# isort: split
from pathlib import Path
from typing import Any

from finetuning import config as experiment
from finetuning.config import Config
from finetuning.config_file import from_command_line
from finetuning.errors import run
from finetuning.files import alone, clear_left_over, make_folder, read_json, sha256, write_json
from finetuning.manifest import SPLITS, manifest_path, read_manifest


def main() -> None:
    """Make one language model, unless it is there."""
    config = from_command_line(__doc__)
    from finetuning import language_model

    folder = make_folder(experiment.resolve(config.language_model.output))
    with alone(folder):
        clear_left_over(folder)
        inputs = made_from(config)
        if (read_json(folder / language_model.ABOUT) or {}).get("inputs") == inputs:
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
    from finetuning import arpa, language_model, ngrams

    settings = config.language_model
    forbidden = language_model.held_out(config)
    gathered = []
    for source in settings.sources:
        gathered.append(language_model.gather(source, config, forbidden))
        print(
            "{name}: {sentences:,} sentences, {words:,} words; taken out {held_out:,} sentences of validation and test "
            "and {rejected:,} lines that are empty or outside the alphabet".format(**gathered[-1].counts())
        )
    path, about = folder / language_model.ARPA, {}
    if settings.file:
        path = experiment.resolve(settings.file)
        words = language_model.given_words(path, config, gathered)
    else:
        print(f"Estimating a {settings.order}-gram model")
        model = language_model.estimate(gathered, settings.order, settings.prune, settings.min_count)
        arpa.write(path, model)
        words = model.words[len(ngrams.SPECIAL) :]
        about = {"ngrams": [len(level.keys) for level in model.levels], "discount_fallbacks": list(model.fallbacks)}
    language_model.write_lexicon(folder / language_model.LEXICON, words)
    validation = read_manifest(manifest_path(experiment.data_folder(config), "validation"), check_audio=False)
    found = language_model.perplexity(path, words, [u.text for u in validation])
    hashes = {"arpa": sha256(path), "lexicon": sha256(folder / language_model.LEXICON)}
    sources = [source.counts() for source in gathered]
    about = {"sources": sources, "words": len(words), **about, "validation": found, "sha256": hashes, "inputs": inputs}
    write_json(folder / language_model.ABOUT, about)
    said = "validation perplexity {perplexity:.1f}, {unknown_rate:.2%} of the validation words unknown".format(**found)
    print(f"{len(words):,} words; {said}")
    print(f"Wrote {folder}: {path.name}, {language_model.LEXICON}, {language_model.ABOUT}")


if __name__ == "__main__":
    run(main)
