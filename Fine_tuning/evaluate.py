"""Step 3: models and the test manifest -> predictions, loss, CER, WER and the table of results.

    python Fine_tuning/evaluate.py [--config FILE] [section.key=value …]

Each model of evaluation.models runs over the test manifest once. Interrupted and started again, it goes on; what is
finished is not run again.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning import config as experiment
from finetuning import predictions
from finetuning.config_file import from_command_line
from finetuning.errors import UserError, run
from finetuning.files import make_folder, read_json, sha256, write_json
from finetuning.manifest import Utterance, manifest_path, read_manifest
from finetuning.predictions import Prediction

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecCTCModel


def main() -> None:
    """Evaluate what there is, print the table, and end with an error when a model could not be evaluated."""
    config = from_command_line("Step 3: models and the test manifest -> loss, CER, WER and the table.")
    from finetuning import results, scoring

    models = display_names(config)
    manifest = manifest_path(experiment.resolve(config.dataset.output), "test")
    utterances = read_references(manifest)
    folder = make_folder(experiment.resolve(config.evaluation.results))
    hours = sum(utterance.duration for utterance in utterances) / 3600
    print(f"{config.name}: {len(utterances):,} test utterances, {hours:.2f} h, {len(models)} model(s)")

    data = {"manifest": sha256(manifest)}
    rows, missing = [], []
    for name, source in models.items():
        work = experiment.resolve(config.evaluation.predictions) / name
        try:
            path = find(source, config)
            hashes = {"model": sha256(path), **data}
            inputs = {"sha256": hashes, "alphabet": config.text.alphabet, "versions": results.versions()}
            found = predictions.read(work) if read_json(work / "inputs.json") == inputs else None
            model = restore(path) if found is None else None
        except UserError as error:
            print(f"\n{name} is not evaluated: {error}", file=sys.stderr)
            missing.append(name)
            continue
        if found is None:
            predictions.prepare(work, inputs)
            found = infer(name, model, utterances, manifest.parent, work, config.evaluation.batch_size)
        else:
            print(f"{name}: model and manifest are as before, predictions are reused from {work}")
        letters = set(config.text.alphabet).union(*(utterance.text for utterance in utterances))
        letters_missing = "".join(sorted(letters - set(read_json(work / "letters.json"))))
        rows.append(results.result(name, scoring.score(found), hours, letters_missing, hashes))
        results.write(folder, rows[-1])

    if rows:
        print(f"\n{results.table(rows, config.evaluation)}\n\nresults in {folder}, one file a model")
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


def find(source: str, config: experiment.Config) -> Path:
    """The model's file; UserError with the command that makes or fetches it."""
    from finetuning import registry

    made_by_step_2 = experiment.resolve(config.training.output) / f"{config.training.name}.nemo"
    if experiment.resolve(source) == made_by_step_2 and not made_by_step_2.is_file():
        raise UserError(f"there is no {source} yet; make it with: python Fine_tuning/train.py --config {config.file}")
    return registry.find(source, config.model)


def restore(path: Path) -> "EncDecCTCModel":
    """The model of `path`."""
    print(f"loading {path.name} (NeMo takes a while)")
    from finetuning import model as models

    return models.restore(path)


def infer(
    name: str, model: "EncDecCTCModel", utterances: list[Utterance], audio: Path, work: Path, batch_size: int
) -> list[Prediction]:
    """One pass over the utterances, or what is left of it, with a progress bar in seconds of audio."""
    from finetuning.inference import predict
    from finetuning.model import labels
    from tqdm import tqdm

    write_json(work / "letters.json", labels(model))
    done = predictions.read_part(work)
    if done:
        print(f"{name}: goes on after {len(done):,} of {len(utterances):,} utterances")
    bar = tqdm(desc=name, total=round(sum(u.duration for u in utterances)), unit="s", unit_scale=True)
    with predictions.appending(work) as part, bar:
        bar.update(sum(prediction.duration for prediction in done.values()))
        for batch in predict(model, utterances, audio, batch_size, done):
            new = {number: prediction for number, prediction in batch if number not in done}
            predictions.append(part, new)
            done |= new
            bar.update(sum(prediction.duration for prediction in new.values()))
    found = [done[number] for number in range(len(utterances))]
    predictions.finish(work, found)
    return found


if __name__ == "__main__":
    run(main)
