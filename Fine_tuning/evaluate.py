"""Step 3: models and the test manifest -> predictions, loss, CER, WER and the table of results.

    python Fine_tuning/evaluate.py [--config FILE] [section.key=value …]

Each model of evaluation.models runs over the test manifest once. Interrupted and started again, it goes on; what is
finished is not run again.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning import config as experiment
from finetuning import predictions
from finetuning.config_file import from_command_line
from finetuning.errors import UserError, run
from finetuning.files import make_folder, read_json, sha256, write_json
from finetuning.manifest import Utterance, manifest_path, read_manifest
from finetuning.predictions import Prediction

if TYPE_CHECKING:
    import numpy as np
    from finetuning.results import Result
    from finetuning.slices import Groups
    from nemo.collections.asr.models import EncDecCTCModel


def main() -> None:
    """Evaluate what there is, print the tables, and end with an error when a model could not be evaluated."""
    config = from_command_line("Step 3: models and the test manifest -> loss, CER, WER and the table.")
    from finetuning import page, results, slices

    models = display_names(config)
    manifest = manifest_path(experiment.data_folder(config), "test")
    utterances = read_references(manifest)
    groups = slices.groups(utterances, read_training(manifest.parent))
    folder = make_folder(experiment.resolve(config.evaluation.results))
    hours = sum(utterance.duration for utterance in utterances) / 3600
    print(f"{config.name}: {len(utterances):,} test utterances, {hours:.2f} h, {len(models)} model(s)")

    data = {"manifest": sha256(manifest)}
    rows, samples, speeds, missing = [], [], [], []
    for name, source in models.items():
        work = experiment.resolve(config.evaluation.predictions) / name
        try:
            path = find(source, config)
            hashes = {"model": sha256(path), **data}
            inputs = {"sha256": hashes, "alphabet": config.text.alphabet, "versions": results.versions()}
            found = stored(work, inputs, utterances)
            model = restore(path) if found is None else None
        except UserError as error:
            print(f"\n{name} is not evaluated: {error}", file=sys.stderr)
            missing.append(name)
            continue
        if found is None:
            predictions.prepare(work, inputs)
            found = infer(name, model, path, utterances, manifest.parent, work, config.evaluation.batch_size)
        else:
            print(f"{name}: model and manifest are as before, predictions are reused from {work}")
        row, resampled = scored(name, found, utterances, groups, hashes, config)
        results.write(folder, row)
        rows.append(row)
        samples.append(resampled)
        speeds.append(results.speed(name, read_json(work / "inference.json")))

    if rows:
        compared = results.comparisons(rows, samples)
        write_json(folder / f"{results.COMPARISONS}.json", compared)
        print(f"\n{results.table(rows, config.evaluation, compared)}\n\n{slices.table(rows)}")
        print(f"\nReal-time factor, processing time / duration of the audio: {', '.join(speeds)}.")
        print(f"\nresults in {folder}, one file a model")
        print(f"where they fail, utterance by utterance: {page.write(config, models, rows, utterances)}")
    if missing:
        raise UserError(f"not evaluated, for the reasons above: {', '.join(missing)}")


def display_names(config: experiment.Config) -> dict[str, str]:
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


def find(source: str, config: experiment.Config) -> Path:
    """The model's file; UserError with the command that makes or fetches it."""
    from finetuning import registry

    made_by_step_2 = experiment.resolve(config.training.output) / f"{config.training.name}.nemo"
    if experiment.resolve(source) == made_by_step_2 and not made_by_step_2.is_file():
        raise UserError(f"there is no {source} yet; make it with: python Fine_tuning/train.py --config {config.file}")
    return registry.find(source, config.model)


def stored(work: Path, inputs: dict[str, Any], utterances: list[Utterance]) -> list[Prediction] | None:
    """The predictions made of the same inputs, in manifest order; None where there are none yet."""
    if read_json(work / "inputs.json") != inputs or not (work / "letters.json").is_file():
        return None
    found = predictions.read(work)
    if found is not None and [p.audio_filepath for p in found] != [u.audio_filepath for u in utterances]:
        raise UserError(f"{work / predictions.NAME} is damaged; delete it and run the same command again")
    return found


def scored(
    name: str,
    found: list[Prediction],
    utterances: list[Utterance],
    groups: "Groups",
    hashes: dict[str, str],
    config: experiment.Config,
) -> tuple["Result", "np.ndarray"]:
    """The model's row with all that stands behind it, and its WER and CER over resamples, to compare it by."""
    from finetuning import results, scoring, slices
    from tqdm import tqdm

    letters = read_json(experiment.resolve(config.evaluation.predictions) / name / "letters.json")
    needed = set(config.text.alphabet).union(*(utterance.text for utterance in utterances))
    units, hours = scoring.units(utterances), sum(utterance.duration for utterance in utterances) / 3600
    score = scoring.score(tqdm(found, desc="scoring", unit=" utterances", delay=2, leave=False))
    resampled = scoring.resampled(score, units)
    row = {
        **results.result(name, score, hours, "".join(sorted(needed - set(letters))), hashes),
        **results.intervals(resampled, units),
        "nemo_wer": results.rounded(scoring.nemo_word_error_rate(found, score, letters)),
        **results.origin(experiment.data_folder(config)),
        "slices": slices.scored(groups, score),
    }
    return row, resampled


def restore(path: Path) -> "EncDecCTCModel":
    """The model of `path`."""
    print(f"loading {path.name} (NeMo takes a while)")
    from finetuning import model as models

    return models.restore(path)


def infer(
    name: str,
    model: "EncDecCTCModel",
    path: Path,
    utterances: list[Utterance],
    audio: Path,
    work: Path,
    batch_size: int,
) -> list[Prediction]:
    """One pass over the utterances, or what is left of it, with a progress bar in seconds of audio.

    inference.json tells how long it took: seconds, seconds of audio, device and threads. A pass that goes on after an
    interruption adds its part; a part that was killed is in neither of the two sums.
    """
    from finetuning.exported import network
    from finetuning.inference import machine, predict, ready
    from finetuning.model import labels
    from tqdm import tqdm

    write_json(work / "letters.json", labels(model))
    done = predictions.read_part(work)
    if done:
        print(f"{name}: goes on after {len(done):,} of {len(utterances):,} utterances")
    else:
        (work / "inference.json").unlink(missing_ok=True)
    before = read_json(work / "inference.json") or {}
    seconds, audio_seconds = before.get("seconds", 0.0), before.get("audio_seconds", 0.0)
    compiled = network(ready(model), path)
    bar = tqdm(desc=name, total=round(sum(u.duration for u in utterances)), unit="s", unit_scale=True)
    with predictions.appending(work) as part, bar:
        bar.update(sum(prediction.duration for prediction in done.values()))
        try:
            start = time.perf_counter()
            for number, prediction in predict(model, compiled, utterances, audio, batch_size, done):
                seconds += time.perf_counter() - start
                audio_seconds += prediction.duration
                if number not in done:
                    predictions.append(part, number, prediction)
                    done[number] = prediction
                    bar.update(prediction.duration)
                start = time.perf_counter()
        finally:
            spent = {"seconds": round(seconds, 3), "audio_seconds": round(audio_seconds, 3)}
            write_json(work / "inference.json", spent | machine(model, compiled))
    found = [done[number] for number in range(len(utterances))]
    predictions.finish(work, found)
    return found


if __name__ == "__main__":
    run(main)
