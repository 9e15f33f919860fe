"""Step 3: models and the test manifest -> predictions, loss, CER, WER and the table of results.

    python Fine_tuning/evaluate.py [--config FILE] [section.key=value …]

Each model of evaluation.models runs over the test manifest once. Interrupted and started again, it goes on; what is
finished is not run again.
"""

import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning import config as experiment
from finetuning import predictions
from finetuning.config import Config
from finetuning.config_file import from_command_line
from finetuning.errors import UserError, run
from finetuning.files import make_folder, read_json, sha256, sha256_of, write_json
from finetuning.manifest import Utterance, manifest_path, read_manifest
from finetuning.predictions import Prediction
from tqdm import tqdm

if TYPE_CHECKING:
    import numpy as np
    from finetuning.results import Result
    from finetuning.slices import Groups
    from nemo.collections.asr.models import EncDecCTCModel


def main() -> None:
    """Evaluate what there is, print the tables, and end with an error when a model could not be evaluated."""
    config = from_command_line("Step 3: models and the test manifest -> loss, CER, WER and the table.")
    from finetuning import language_model, page, results, slices

    models = display_names(config)
    manifest = manifest_path(experiment.data_folder(config), "test")
    utterances = read_references(manifest)
    groups = slices.groups(utterances, read_training(manifest.parent), config.evaluation.topics)
    folder = make_folder(experiment.resolve(config.evaluation.results))
    hours = sum(utterance.duration for utterance in utterances) / 3600
    print(f"{config.name}: {len(utterances):,} test utterances, {hours:.2f} h, {len(models)} model(s)")
    if config.evaluation.decoder == "lm":
        language_model.find(config.language_model.output, config.file)  # before any model is run for nothing

    rows, samples, speeds, missing = [], [], [], []

    def take(name: str, found: list[Prediction]) -> None:
        work = experiment.resolve(config.evaluation.predictions) / name
        row, resampled = scored(name, found, utterances, groups, work, config)
        results.write(folder, row)
        rows.append(row)
        samples.append(resampled)
        speeds.append(results.speed(name, read_json(work / "inference.json")))

    for name, source in display_names(config).items():
        row_name = name
        try:
            path = find(source, config)
            greedy = evaluated(name, path, manifest, utterances, config)
            take(name, greedy)
            if config.evaluation.decoder == "lm":
                row_name = beside(name)
                models[row_name] = source
                take(row_name, with_language_model(name, path, manifest, utterances, greedy, config))
        except UserError as error:
            print(f"\n{row_name} is not evaluated: {error}", file=sys.stderr)
            missing.append(row_name)

    if rows:
        compared = results.comparisons(rows, samples)
        write_json(folder / f"{results.COMPARISONS}.json", compared)
        print(f"\n{results.table(rows, config.evaluation, compared)}\n\n{slices.table(rows)}")
        if config.evaluation.decoder == "lm":
            print(f"\n{results.decoders(rows)}")
        print(f"\nReal-time factor, processing time / duration of the audio: {', '.join(speeds)}.")
        print(f"\nresults in {folder}, one file a model")
        print(f"where they fail, utterance by utterance: {page.write(config, models, rows, utterances)}")
    if missing:
        raise UserError(f"not evaluated, for the reasons above: {', '.join(missing)}")


def display_names(config: Config) -> dict[str, str]:
    """What the rows of the table are called: the registry's name or the file's name, and the model each stands for."""
    named: dict[str, str] = {}
    for model in config.evaluation.models:
        name = model if model in config.model.registry else Path(model).name.removesuffix(".nemo")
        if name in named:
            raise UserError(f"evaluation.models: {named[name]} and {model} would both be called {name}; rename a file")
        named[name] = model
    if "comparisons" in named:
        raise UserError(f"evaluation.models: {named['comparisons']} would be called as another result; rename the file")
    if not named:
        raise UserError(f"{config.file} names no model; type evaluation.models=[runs/…/NAME.nemo]")
    return named


def read_references(manifest: Path) -> list[Utterance]:
    """The utterances of the test manifest, each with a text to score against."""
    utterances = read_manifest(manifest)
    for number, utterance in enumerate(utterances, start=1):
        if not utterance.text.strip():
            raise UserError(f"{manifest}, utterance {number} has an empty text to score against; run step 1 again")
    return utterances


def read_training(folder: Path) -> list[Utterance] | None:
    """The utterances of the training manifest in `folder`; None where there is none."""
    manifest = manifest_path(folder, "train")
    return read_manifest(manifest, check_audio=False) if manifest.is_file() else None


def find(source: str, config: Config) -> Path:
    """The model's file; UserError with the command that makes or fetches it."""
    from finetuning import registry

    made_by_step_2 = experiment.resolve(config.training.output) / f"{config.training.name}.nemo"
    if experiment.resolve(source) == made_by_step_2 and not made_by_step_2.is_file():
        raise UserError(f"there is no {source} yet; make it with: python Fine_tuning/train.py --config {config.file}")
    return registry.find(source, config.model)


def beside(name: str) -> str:
    """What the row of a model is called that was decoded with the language model."""
    return f"{name}+LM"


def evaluated(
    name: str, path: Path, manifest: Path, utterances: list[Utterance], config: Config, part: str = ""
) -> list[Prediction]:
    """The predictions by the best path: those that are stored, or one pass of the model over the utterances.

    `part`: a folder beside the model's predictions for another manifest than the test set's.
    """
    from finetuning import results

    work = experiment.resolve(config.evaluation.predictions) / name / part
    hashes = {"model": sha256(path), "manifest": sha256(manifest), "code": code()}
    inputs = {"sha256": hashes, "alphabet": config.text.alphabet, "versions": results.versions()}
    keeps = config.evaluation.decoder == "lm"
    found = stored(work, inputs, utterances, keeps)
    if found is not None:
        print(f"{name}: model and manifest are as before, predictions are reused from {work}")
        return found
    model = restore(path)
    predictions.prepare(work, inputs)
    from finetuning.inference import infer

    said = f"{name}, {part}" if part else name
    return infer(said, model, path, utterances, manifest.parent, work, config.evaluation.batch_size, keeps)


def code(*more: str) -> str:
    """SHA-256 of our files that predictions follow from, and `more` of them: those of other code are not reused."""
    folder = Path(predictions.__file__).parent
    files = (folder / f"{name}.py" for name in ("audio", "decoding", "exported", "inference", "model", *more))
    return sha256_of({file.name: sha256(file) for file in files})


def stored(
    work: Path, inputs: dict[str, Any], utterances: list[Utterance], with_frames: bool = False
) -> list[Prediction] | None:
    """The predictions made of the same inputs, in manifest order; None where there are none, or no log-probabilities
    where these are needed.
    """
    if read_json(work / "inputs.json") != inputs or not (work / "letters.json").is_file():
        return None
    if with_frames and not predictions.has_frames(work):
        return None
    found = predictions.read(work)
    if found is not None and [p.audio_filepath for p in found] != [u.audio_filepath for u in utterances]:
        raise UserError(f"{work / predictions.NAME} is damaged; delete it and run the same command again")
    return found


def with_language_model(
    name: str, path: Path, manifest: Path, utterances: list[Utterance], greedy: list[Prediction], config: Config
) -> list[Prediction]:
    """The predictions by beam search with the language model, over the log-probabilities that `evaluated` has kept.

    Its weights are tuned on the validation set once, for this model and this language model, and kept in decoder.json.
    """
    from finetuning import language_model, tuning

    *_, hashes = language_model.find(config.language_model.output, config.file)
    folder = experiment.resolve(config.evaluation.predictions)
    work = folder / beside(name)
    validation = manifest_path(manifest.parent, "validation")
    hashes |= {"model": sha256(path), "manifest": sha256(manifest), "validation": sha256(validation)}
    hashes |= {"code": code("beam_search", "tuning")}
    inputs = {"sha256": hashes, "versions": {"flashlight-text": version("flashlight-text")}}
    found = stored(work, inputs, utterances)
    if found is not None and (work / tuning.DECODER).is_file():
        print(f"{beside(name)}: model, language model and manifests are as before, predictions are reused from {work}")
        return found
    predictions.prepare(work, inputs)
    letters = read_json(folder / name / "letters.json")
    write_json(work / "letters.json", letters)
    search = language_model.beam_search(config.language_model.output, config.file, letters, hashes)
    if not tuning.is_of(work / tuning.DECODER, hashes):
        tuned_on = tuning.drawn(read_references(validation))
        heard = evaluated(name, path, validation, tuned_on, config, "validation")
        frames = predictions.read_frames(folder / name / "validation")
        settings, trials = tuning.tune(search, frames, heard, beside(name))
        write_json(work / tuning.DECODER, tuning.record(config, settings, trials, heard, hashes))
    settings, *_ = tuning.read(work / tuning.DECODER)
    return tuning.decode(search, settings, predictions.read_frames(folder / name), greedy, work)


def scored(
    name: str,
    found: list[Prediction],
    utterances: list[Utterance],
    groups: "Groups",
    work: Path,
    config: Config,
) -> tuple["Result", "np.ndarray"]:
    """The model's row with all that stands behind it, and its WER and CER over resamples, to compare it by."""
    from finetuning import results, scoring, slices, tuning

    letters, inputs = read_json(work / "letters.json"), read_json(work / "inputs.json")
    decoder = read_json(work / tuning.DECODER)
    needed = set(config.text.alphabet).union(*(utterance.text for utterance in utterances))
    units, hours = scoring.units(utterances), sum(utterance.duration for utterance in utterances) / 3600
    score = scoring.score(tqdm(found, desc="scoring", unit=" utterances", delay=2, leave=False))
    resampled = scoring.resampled(score, units)
    nemo = None if decoder else results.rounded(scoring.nemo_word_error_rate(found, score, letters))
    row = {
        **results.result(name, score, hours, "".join(sorted(needed - set(letters))), inputs["sha256"]),
        **results.intervals(resampled, units),
        "nemo_wer": nemo,
        **results.origin(experiment.data_folder(config)),
        "slices": slices.scored(groups, score),
    }
    if decoder:
        row["decoder"] = {"name": "lm", **decoder["settings"]}
    return row, resampled


@lru_cache(maxsize=1)
def restore(path: Path) -> "EncDecCTCModel":
    """The model of `path`."""
    print(f"loading {path.name} (NeMo takes a while)")
    from finetuning import model as models

    return models.restore(path)


if __name__ == "__main__":
    run(main)
