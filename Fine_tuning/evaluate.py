"""Step 3: models and the test manifest -> predictions, loss, CER, WER and the table of results.

    python Fine_tuning/evaluate.py [--config FILE] [section.key=value …]

Each model of evaluation.models runs over the test manifest once. Interrupted and started again, it goes on; what is
finished is not run again.
"""

import finetuning.startup  # noqa: F401  first: it says what ends a script while the rest is imported

# isort: split
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from finetuning.config import schema as experiment
from finetuning.config.loading import from_command_line
from finetuning.config.schema import Config
from finetuning.data.manifest import Utterance, manifest_path, read_manifest
from finetuning.decoding import predictions
from finetuning.decoding.predictions import Prediction
from finetuning.errors import UserError, is_out_of_memory, printable, run_script
from finetuning.files import code_fingerprint, ensure_writable_dir, exclusive_locks, read_json, sha256, write_json

if TYPE_CHECKING:
    import numpy as np
    from nemo.collections.asr.models import EncDecCTCModel

    from finetuning.evaluation.results import Result
    from finetuning.evaluation.slices import Groups


@dataclass(frozen=True)
class Model:
    """What a row of the table is of."""

    name: str  # in the table
    path: Path
    sha256: str

    @property
    def beside(self) -> str:
        """What the row is called of the same model decoded with the language model."""
        from finetuning.evaluation.results import WITH_LM

        return f"{self.name}{WITH_LM}"


@dataclass(frozen=True)
class Data:
    """A manifest as it was read."""

    manifest: Path
    sha256: str
    utterances: list[Utterance]

    @property
    def folder(self) -> Path:
        """To which the wavs' paths are relative."""
        return self.manifest.parent

    @cached_property
    def audio(self) -> str:
        """The state of the wavs before they are read: another one after a wav has changed."""
        return predictions.audio_state(self.utterances, self.folder)


@dataclass(frozen=True)
class Row:
    """A row of the table and what it is shown with."""

    result: "Result"
    resampled: "np.ndarray"  # WER and CER of each resample, (RESAMPLES, 2)
    speed: str


def main() -> None:
    """Evaluate what there is, print the tables, and end with an error when a model could not be evaluated."""
    config = from_command_line("Step 3: models and the test manifest -> loss, CER, WER and the table.")
    from finetuning.evaluation import results, slices
    from finetuning.language_model import kenlm

    if config.evaluation.decoder == "lm":
        kenlm.require_flashlight()
    named = results.row_names(config)
    test = read_data(manifest_path(experiment.manifest_folder(config), "test"))
    groups = slices.make_groups(test.utterances, read_training(test.folder), config.evaluation.topics)
    hours = sum(utterance.duration for utterance in test.utterances) / 3600
    print(f"{config.name}: {len(test.utterances):,} test utterances, {hours:.2f} h, {len(named)} model(s)")
    if config.evaluation.decoder == "lm":
        kenlm.find_language_model(config.language_model.output, config.file)  # before any model is run for nothing

    missing: list[str] = []
    rows: list[Row] = []
    paths: dict[str, Path] = {}
    for name, source in named.items():  # a download holds the models' folder, which may be one of those below
        with not_in_vain(name, missing):
            paths[name] = find(source, config)
    folders = map(experiment.resolve_path, (config.evaluation.predictions, config.evaluation.results))
    with exclusive_locks(*map(ensure_writable_dir, folders)):
        for name, path in paths.items():
            restore.cache_clear()  # two models need not fit into memory
            with not_in_vain(name, missing):
                model = Model(name, path, sha256(path))
                greedy = evaluated(model, test, config)
                rows.append(row(model.name, greedy, test, groups, config))
                if config.evaluation.decoder == "lm":
                    named[model.beside] = named[name]
                    with not_in_vain(model.beside, missing):
                        found, settings = with_language_model(model, test, greedy, config)
                        rows.append(row(model.beside, found, test, groups, config, settings))
        if rows:
            conclude(rows, named, test, config)
    if missing:
        raise UserError(f"not evaluated, for the reasons above: {', '.join(name for name in named if name in missing)}")


def conclude(rows: list[Row], named: dict[str, str], test: Data, config: Config) -> None:
    """Print the tables and write what is of all `rows` together; `named`: the model behind each of them."""
    from finetuning.evaluation import report_page, results, slices

    folder, found = experiment.resolve_path(config.evaluation.results), [row.result for row in rows]
    compared = results.compare_models(found, [row.resampled for row in rows])
    write_json(folder / f"{results.COMPARISONS}.json", compared)
    print(f"\n{results.format_table(found, config.evaluation, compared)}\n\n{slices.format_slices(found)}")
    if config.evaluation.decoder == "lm":
        print(f"\n{results.format_decoder_table(found)}")
    print(f"\nReal-time factor, processing time / duration of the audio: {', '.join(row.speed for row in rows)}.")
    print(f"\nresults in {folder}, one file a model")
    print(f"where they fail, utterance by utterance: {report_page.write_report(config, named, found, test.utterances)}")


@contextmanager
def not_in_vain(name: str, missing: list[str]) -> Iterator[None]:
    """Whatever goes wrong with one row is said, and its `name` goes among the `missing`: the others have theirs."""
    try:
        yield
    except BrokenPipeError:  # nobody reads the table
        raise
    except Exception as error:
        if _is_interruption(error):
            raise
        print(f"\n{printable(f'{name} is not evaluated: {reason(error)}')}", file=sys.stderr)
        missing.append(name)


def reason(error: Exception) -> str:
    """Why, in one sentence, whatever was raised."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return "not enough memory; what is finished is kept: make some free, type it again"
    if isinstance(error, OSError) and error.filename:
        return f"cannot read or write {error.filename} ({error.strerror}); mend that, type it again"
    said = next(iter(str(error).strip().splitlines()), "")
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {said} ({Path(place.filename).name}, line {place.lineno}); mend it or leave it out"


def _is_interruption(error: BaseException | None) -> bool:
    """Whether a library has made `error` of Ctrl-C or SIGTERM."""
    while error:
        if isinstance(error, KeyboardInterrupt) or re.search(r"\b(KeyboardInterrupt|Terminated): ", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def read_data(manifest: Path) -> Data:
    """The manifest's utterances, each with a text to score against, and its hash."""
    before = sha256(manifest) if manifest.is_file() else ""
    utterances = read_references(manifest)
    if sha256(manifest) != before:
        raise UserError(f"{manifest} was replaced while it was read; type the same command again")
    return Data(manifest, before, utterances)


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
    from finetuning.model import pretrained

    made_by_step_2 = experiment.resolve_path(config.training.output) / f"{config.training.name}.nemo"
    if experiment.resolve_path(source) == made_by_step_2 and not made_by_step_2.is_file():
        raise UserError(f"there is no {source} yet; make it with: python Fine_tuning/train.py --config {config.file}")
    return pretrained.locate_model(source, config.model)


def evaluated(model: Model, data: Data, config: Config, part: str = "") -> list[Prediction]:
    """The predictions by the best path: those that are stored, or one pass of the model over the utterances.

    `part`: a folder beside the model's predictions for another manifest than the test set's.
    """
    from finetuning.evaluation import results

    work = experiment.resolve_path(config.evaluation.predictions) / model.name / part
    hashes = {"model": model.sha256, "manifest": data.sha256, "code": code_fingerprint("decoding.inference")}
    inputs = {
        "sha256": hashes,
        "alphabet": config.text.alphabet,
        "versions": results.package_versions(),
        "audio": data.audio,
    }
    keeps, said = config.evaluation.decoder == "lm", f"{model.name}, {part}" if part else model.name
    found, why = predictions.load_cached(work, inputs, data.utterances, keeps)
    if found is not None:
        print(f"{said}: model and manifest are as before, predictions are reused from {work}")
        return found
    if why:
        print(f"{said}: predictions are made again ({why})")
    restored = restore(model)
    predictions.prepare_folder(work, inputs)
    from finetuning.decoding.inference import run_inference

    batch_size = config.evaluation.batch_size
    found = run_inference(said, restored, model.path, data.utterances, data.folder, work, batch_size, keeps)
    if predictions.audio_state(data.utterances, data.folder) != data.audio:
        predictions.discard_predictions(work)
        raise UserError(f"wavs of {data.manifest} were changed while they were read; type the same command again")
    return found


def with_language_model(
    model: Model, test: Data, greedy: list[Prediction], config: Config
) -> tuple[list[Prediction], dict[str, Any]]:
    """The predictions by beam search with the language model, over the log-probabilities that `evaluated` has kept, and
    its settings.

    Its weights are tuned on the validation set once, for this model and this language model, and kept in decoder.json.
    """
    from finetuning.decoding import beam_search, weight_search
    from finetuning.language_model import kenlm

    *_, hashes = kenlm.find_language_model(config.language_model.output, config.file)
    folder = experiment.resolve_path(config.evaluation.predictions)
    work = folder / model.beside
    validation = read_data(manifest_path(test.folder, "validation"))
    tuned_on = replace(validation, utterances=weight_search.sample_utterances(validation.utterances))
    made_from = {**hashes, "model": model.sha256, "manifest": test.sha256, "validation": validation.sha256}
    made_from["code"] = code_fingerprint("decoding.inference", "decoding.weight_search")
    audio = {"test": test.audio, "validation": tuned_on.audio}
    inputs = {"sha256": made_from, "versions": {"flashlight-text": version("flashlight-text")}, "audio": audio}
    found, why = predictions.load_cached(work, inputs, test.utterances)
    if found is not None and weight_search.is_decoder_current(
        work / weight_search.DECODER, made_from, audio["validation"]
    ):
        print(f"{work.name}: model, language model and manifests are as before, predictions are reused from {work}")
        return found, asdict(weight_search.read_decoder(work / weight_search.DECODER)[0])
    if why:
        print(f"{work.name}: predictions are made again ({why})")
    predictions.prepare_folder(work, inputs)
    letters = predictions.read_vocabulary(folder / model.name)
    write_json(work / predictions.VOCABULARY, letters)
    search = beam_search.load_beam_search(config.language_model.output, config.file, letters, hashes)
    if not weight_search.is_decoder_current(work / weight_search.DECODER, made_from, audio["validation"]):
        heard = evaluated(model, tuned_on, config, "validation")
        settings, trials = weight_search.search_weights(
            search, frames_of(model, tuned_on, config, "validation"), heard, work.name
        )
        record = weight_search.decoder_record(config, settings, trials, heard, made_from, audio["validation"])
        write_json(work / weight_search.DECODER, record)
    settings, *_ = weight_search.read_decoder(work / weight_search.DECODER)
    return weight_search.decode_utterances(search, settings, frames_of(model, test, config), greedy, work), asdict(
        settings
    )


def frames_of(model: Model, data: Data, config: Config, part: str = "") -> "list[np.ndarray]":
    """The log-probabilities that `evaluated` has kept; damaged ones are made again."""
    work = experiment.resolve_path(config.evaluation.predictions) / model.name / part
    try:
        return predictions.read_log_probs(work)
    except UserError as error:
        print(f"{str(error).partition(';')[0]}; it is made again")
        predictions.discard_predictions(work)
        evaluated(model, data, config, part)
        return predictions.read_log_probs(work)


def row(
    name: str,
    found: list[Prediction],
    test: Data,
    groups: "Groups",
    config: Config,
    settings: dict[str, Any] | None = None,
) -> Row:
    """The row called `name` with all that stands behind it; `settings` of the beam search that found the texts."""
    from finetuning.evaluation import bootstrap, results, scoring, slices

    work = experiment.resolve_path(config.evaluation.predictions) / name
    letters, inputs = predictions.read_vocabulary(work), read_json(work / predictions.INPUTS)
    needed = set(config.text.alphabet).union(*(utterance.text for utterance in test.utterances))
    units, hours = (
        bootstrap.resampling_units(test.utterances),
        sum(utterance.duration for utterance in test.utterances) / 3600,
    )
    score = scoring.score_predictions(tqdm(found, desc="scoring", unit=" utterances", delay=2, leave=False))
    resampled = bootstrap.resample(score, units)
    nemo = None if settings else results.round_or_none(scoring.nemo_word_error_rate(found, score, letters))
    result = {
        **results.make_result(name, score, hours, "".join(sorted(needed - set(letters))), inputs["sha256"]),
        **results.interval_fields(resampled, units),
        "nemo_wer": nemo,
        **results.dataset_origin(experiment.manifest_folder(config)),
        "slices": slices.score_slices(groups, score),
    }
    if settings:
        result["decoder"] = {"name": "lm", **settings}
    results.write_result(experiment.resolve_path(config.evaluation.results), result)
    return Row(result, resampled, results.format_real_time_factor(name, predictions.read_timing(work)))


@lru_cache(maxsize=1)
def restore(model: Model) -> "EncDecCTCModel":
    """The model of its file; UserError where that was replaced after its hash was taken."""
    print(f"loading {model.path.name} (NeMo takes a while)")
    from finetuning.model import ctc_model

    restored = ctc_model.restore_model(model.path)
    if sha256(model.path) != model.sha256:
        raise UserError(f"{model.path} was replaced while it was read; type the same command again")
    return restored


if __name__ == "__main__":
    run_script(main)
