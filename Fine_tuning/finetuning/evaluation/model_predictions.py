"""The predictions of a model by each decoder: those that are saved of the same inputs, else made and saved."""

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.config import schema as experiment
from finetuning.config.schema import Config
from finetuning.data.manifest import manifest_path
from finetuning.decoding import prediction_cache, predictions
from finetuning.decoding.predictions import ModelOutput
from finetuning.errors import UserError
from finetuning.evaluation.evaluated_data import Data, read_data
from finetuning.files import code_fingerprint, sha256, write_json

if TYPE_CHECKING:
    import numpy as np
    from nemo.collections.asr.models import EncDecCTCModel

    from finetuning.decoding.beam_search import Settings


@dataclass(frozen=True)
class Model:
    """A model to evaluate."""

    name: str  # of its row in the table
    path: Path
    sha256: str


@lru_cache(maxsize=1)
def restore(model: Model) -> "EncDecCTCModel":
    """Return the restored model; raise UserError where its file was replaced after its hash was taken."""
    print(f"loading {model.path.name} (NeMo takes a while)")
    from finetuning.model import ctc_model

    restored = ctc_model.restore_model(model.path)
    if sha256(model.path) != model.sha256:
        raise UserError(f"{model.path} was replaced while it was read; rerun the same command")
    return restored


def input_hashes(model: Model, data: Data) -> dict[str, str]:
    """Return the hashes of all that greedy predictions depend on, but for the wavs."""
    return {"model": model.sha256, "manifest": data.sha256, "code": code_fingerprint("decoding.manifest_inference")}


def output_folder(row: str, data: Data, config: Config) -> Path:
    """Return the folder of a row's predictions of `data`."""
    return experiment.resolve_path(config.evaluation.predictions) / row / data.part


def predict(model: Model, data: Data, config: Config) -> ModelOutput:
    """Return the greedy predictions: the saved ones, or those of one pass of the model over the utterances."""
    from finetuning.evaluation import results

    work, name = output_folder(model.name, data, config), f"{model.name}, {data.part}" if data.part else model.name
    inputs = {
        "sha256": input_hashes(model, data),
        "alphabet": config.text.alphabet,
        "versions": results.package_versions(),
        "audio": data.audio,
    }
    save_log_probs = config.evaluation.decoder == "lm" or bool(config.evaluation.boost)
    cached, reason = prediction_cache.load_cached(work, inputs, data.utterances, save_log_probs)
    if cached:
        print(f"{name}: model and manifest are as before, predictions are reused from {work}")
        return cached
    if reason:
        print(f"{name}: predictions are made again ({reason})")
    restored = restore(model)
    prediction_cache.prepare_folder(work, inputs)
    from finetuning.decoding.manifest_inference import run_inference

    batch_size = config.evaluation.batch_size
    output = run_inference(name, restored, model.path, data.utterances, data.folder, work, batch_size, save_log_probs)
    if prediction_cache.audio_state(data.utterances, data.folder) != data.audio:
        prediction_cache.discard_predictions(work)
        raise UserError(f"wavs of {data.manifest} were changed while they were read; rerun the same command")
    return output


def predict_with_lm(
    model: Model, test: Data, greedy: ModelOutput, config: Config
) -> tuple[ModelOutput, dict[str, str], "Settings"]:
    """Return the predictions by beam search with the language model, the hashes of their inputs, and the settings.

    The search is over the log-probabilities that `predict` has saved. Its weights are tuned on the validation set once
    for this model and this language model, and saved in decoder.json.
    """
    from finetuning.decoding import beam_search, weight_search
    from finetuning.evaluation import calibration, results
    from finetuning.language_model import kenlm

    *_, lm_hashes = kenlm.find_language_model(config.language_model.output, config.file)
    name = results.lm_row_name(model.name)
    work, tuned = output_folder(name, test, config), output_folder(name, replace(test, part=""), config)
    validation = read_data(manifest_path(test.folder, "validation"), "validation")
    sample = replace(validation, utterances=weight_search.sample_utterances(validation.utterances))
    hashes = {**lm_hashes, "model": model.sha256, "manifest": test.sha256, "validation": validation.sha256}
    hashes["code"] = code_fingerprint("decoding.manifest_inference", "decoding.weight_search")
    tuning = {name: digest for name, digest in hashes.items() if name != "manifest"}
    audio = {"test": test.audio, "validation": sample.audio}
    inputs = {"sha256": hashes, "versions": {"flashlight-text": version("flashlight-text")}, "audio": audio}
    cached, reason = prediction_cache.load_cached(work, inputs, test.utterances)
    settings = weight_search.read_current_settings(tuned / predictions.DECODER, tuning, sample.audio)
    output = cached if settings else None
    if output:
        print(f"{name}: model, language model and manifests are as before, predictions are reused from {work}")
        if test.part or not calibration.is_needed(model.path, work / predictions.DECODER, sample.utterances):
            return output, hashes, settings
    elif reason:
        print(f"{name}: predictions are made again ({reason})")
    if not output:
        prediction_cache.prepare_folder(work, inputs)
        write_json(work / predictions.VOCABULARY, greedy.vocabulary.as_json())
    search = beam_search.load_beam_search(config.language_model.output, config.file, greedy.vocabulary, lm_hashes)
    if not settings or not test.part:
        validated = predict(model, sample, config).predictions, read_log_probs(model, sample, config)
    if not settings:
        texts = [prediction.text for prediction in validated[0]]
        settings, trials = weight_search.search_weights(search, validated[1], texts, tuned.name)
        record = weight_search.decoder_record(config, settings, trials, validated[0], tuning, sample.audio)
        write_json(tuned / predictions.DECODER, record)
    log_probs = read_log_probs(model, test, config)
    output = output or weight_search.decode_utterances(search, settings, log_probs, greedy.predictions, work)
    if not test.part:
        files, tested = (model.path, work / predictions.DECODER), (greedy.predictions, log_probs)
        print(calibration.calibrate(*files, (search, settings), validated, tested, config.text))
    return output, hashes, settings


def predict_boosted(
    name: str, model: Model, test: Data, greedy: ModelOutput, config: Config, settings: "Settings | None"
) -> tuple[ModelOutput, dict[str, str], "Settings"]:
    """Return the predictions by beam search that prefers the words of evaluation.boost, as `predict_with_lm` does.

    `settings`: those that are tuned for the search with the language model; None where there is none.
    """
    from finetuning.decoding import beam_search, boosting, weight_search
    from finetuning.language_model import kenlm

    with_lm = config.evaluation.decoder == "lm"
    if with_lm and not settings:
        raise UserError("the search with the language model has no weights, for the reason above")
    phrases = boosting.read_phrases(experiment.resolve_path(config.evaluation.boost), config.text)
    of_lm = {"output": config.language_model.output, "config_file": config.file}
    lm_hashes = kenlm.find_language_model(**of_lm)[2] if with_lm else {}
    settings = settings or beam_search.WITHOUT_LM
    hashes = {**lm_hashes, "model": model.sha256, "manifest": test.sha256, "boost": boosting.fingerprint(phrases)}
    hashes["code"] = code_fingerprint("decoding.manifest_inference", "decoding.weight_search")
    versions = {"flashlight-text": version("flashlight-text")}
    inputs = {"sha256": hashes, "settings": asdict(settings), "versions": versions, "audio": test.audio}
    work = output_folder(name, test, config)
    cached, reason = prediction_cache.load_cached(work, inputs, test.utterances)
    if cached:
        print(f"{name}: models, boosted words and manifest are as before, predictions are reused from {work}")
        return cached, hashes, settings
    if reason:
        print(f"{name}: predictions are made again ({reason})")
    prediction_cache.prepare_folder(work, inputs)
    write_json(work / predictions.VOCABULARY, greedy.vocabulary.as_json())
    if with_lm:
        search = beam_search.load_beam_search(**of_lm, vocabulary=greedy.vocabulary, hashes=lm_hashes, phrases=phrases)
    else:
        search = beam_search.BeamSearch(None, {}, greedy.vocabulary, phrases)
    log_probs = read_log_probs(model, test, config)
    return weight_search.decode_utterances(search, settings, log_probs, greedy.predictions, work), hashes, settings


def read_log_probs(model: Model, data: Data, config: Config) -> "list[np.ndarray]":
    """Return the log-probabilities that `predict` has saved; where they are damaged, the model is run again."""
    work = output_folder(model.name, data, config)
    try:
        return predictions.read_log_probs(work)
    except UserError as error:
        print(f"{str(error).partition(';')[0]}; it is made again")
        prediction_cache.discard_predictions(work)
        predict(model, data, config)
        return predictions.read_log_probs(work)
