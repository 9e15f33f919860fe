"""The results of an evaluation: results/<experiment>/<model>.json and comparisons.json, written and read."""

import math
import platform
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.config.schema import Config, System, row_name
from finetuning.decoding.predictions import Prediction
from finetuning.errors import UserError, printable
from finetuning.evaluation.bootstrap import ResamplingUnits, percentile_interval
from finetuning.evaluation.scoring import Score
from finetuning.files import atomic_open, read_json, write_json

COMPARISONS = "comparisons"  # results/<experiment>/comparisons.json: each pair of models
WITH_LM = "+LM"  # ends the name of the row of a model decoded with the language model
EXTERNAL = "external"  # decoder of a row whose predictions another system made
MAX_NAME_BYTES = 200  # a file system allows 255, and .json and the marks of a temporary file are added
MAX_NUMBER = 1e15  # counts, rates and losses beyond it are damage
INTERVAL_KEYS = {"cer_interval", "wer_interval", "resampled", "resampled_units"}  # keys of a result: all or none
Result = dict[str, Any]  # as results/<experiment>/<model>.json
Comparison = dict[str, Any]  # one of comparisons.json


@dataclass(frozen=True)
class Row:
    """A row of the table and what it was computed from."""

    result: Result
    predictions: list[Prediction]
    score: Score
    resampled: np.ndarray  # WER and CER of each resample, (RESAMPLES, 2)
    real_time_factor: str  # as printed


def package_versions() -> dict[str, str]:
    """Return the versions of the packages an evaluation depends on, without importing them."""
    packages = {name: name for name in ("torch", "openvino", "jiwer", "numpy")} | {"nemo": "nemo_toolkit"}
    return {name: version(package) for name, package in packages.items()} | {"python": platform.python_version()}


def row_names(config: Config) -> dict[str, str | System]:
    """Return the model, or the other system, of each row of the table by the row's name.

    Raise UserError where the files of one row would overwrite those of another, on any file system, or where a name
    cannot be that of a file.
    """
    models: dict[str, str | System] = {}
    taken: dict[str, str | System] = {}
    for model in config.evaluation.models:
        name = row_name(model, config)
        validate_row_name(name, model)
        alike = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        if alike in taken:
            where = "" if name in models else ", where capitals and the ways to write an accent are not told apart"
            one, other = (m.predictions if isinstance(m, System) else m for m in (taken[alike], model))
            what = "give another name" if isinstance(model, System) else "rename a file"
            raise UserError(f"evaluation.models: {one} and {other} would both be called {name}{where}; {what}")
        models[name] = taken[alike] = model
    if not models:
        raise UserError(f"{config.file} names no model; type evaluation.models=[runs/…/NAME.nemo]")
    return models


def lm_row_name(name: str) -> str:
    """Return the name of the row of model `name` decoded with the language model."""
    return f"{name}{WITH_LM}"


def validate_row_name(name: str, model: str | System) -> None:
    """Raise UserError where the results of `model` cannot be saved under `name`."""
    wrong = [
        (name.casefold() == COMPARISONS, "as another result is"),
        (name.casefold().endswith(WITH_LM.casefold()), "as the row of a model with the language model is"),
        (not name or name.startswith(".") or "/" in name, "as no file of results can be"),
        (not name.isprintable(), "with a character that cannot be shown"),
        (len(name.encode(errors="replace")) > MAX_NAME_BYTES, f"with more than {MAX_NAME_BYTES} bytes"),
    ]
    is_system = isinstance(model, System)
    source, what = (model.predictions, "give another name") if is_system else (model, "rename the file")
    for is_wrong, how in wrong:
        if is_wrong:
            raise UserError(
                f"evaluation.models: {printable(source)} would be called {printable(name)!r}, {how}; {what}"
            )


def make_result(model: str, score: Score, hours: float, letters_missing: str, sha256: dict[str, str]) -> Result:
    """Return one row of the table with everything needed to defend it; the same run gives the same result.

    `letters_missing`: characters of the alphabet that the model cannot write, which its loss leaves out. `sha256`: of
    model and manifest. Insertions, deletions and substitutions are of words. The loss has 4 decimals: further ones
    depend on the batch size.
    """
    words, characters = score.words, score.characters
    return {
        "model": model,
        "loss": round_or_none(score.loss, 4),
        "cer": round_or_none(characters.rate),
        "wer": round_or_none(words.rate),
        "words": words.reference,
        "insertions": words.insertions,
        "deletions": words.deletions,
        "substitutions": words.substitutions,
        "characters": characters.reference,
        "character_insertions": characters.insertions,
        "character_deletions": characters.deletions,
        "character_substitutions": characters.substitutions,
        "utterances": len(score.word_counts),
        "hours": round_or_none(hours),
        "loss_left_out": score.loss_left_out,
        "letters_missing": letters_missing,
        "decoder": {"name": "greedy"},
        "sha256": sha256,
        "versions": package_versions(),
    }


def interval_fields(resampled: np.ndarray, units: ResamplingUnits) -> Result:
    """Return the intervals of a result; `resampled`: WER and CER of each resample, (RESAMPLES, 2)."""
    wer, cer = (list(map(round_or_none, percentile_interval(rates))) for rates in resampled.T)
    return {"cer_interval": cer, "wer_interval": wer, "resampled": units.kind, "resampled_units": units.count}


def dataset_origin(folder: Path) -> Result:
    """Return the release and the split of the test set as dataset.json states them; None for both where it does not."""
    description = _read_dataset_description(folder)
    try:
        release, split = description["release"], description["config"]["dataset.split"]["by"]
    except (KeyError, TypeError):  # no such file, or not from step 1
        release = split = None
    return {"release": release, "split": split} if isinstance(split, str) else {"release": None, "split": None}


def release_name(folder: Path) -> str:
    """Return the name of the release the dataset in `folder` was made from; empty where it is not known."""
    return _read_dataset_description(folder).get("release", "")


def _read_dataset_description(folder: Path) -> dict[str, Any]:
    """Return dataset.json; an empty dictionary where it is missing, damaged or names no release."""
    try:
        description = read_json(folder / "dataset.json")
    except ValueError:
        return {}
    return description if isinstance(description, dict) and isinstance(description.get("release"), str) else {}


def compare_models(rows: Sequence[Result], resampled: Sequence[np.ndarray]) -> list[Comparison]:
    """Return the difference of the rates, `one` minus `other`, and its interval (paired bootstrap) for each pair.

    Pairs are those that `are_comparable`. `resampled`: WER and CER of each
    resample of each row, (RESAMPLES, 2).
    """
    comparisons = []
    for (one, one_resampled), (other, other_resampled) in combinations(zip(rows, resampled, strict=True), 2):
        if not are_comparable(one, other):
            continue
        differences = one_resampled - other_resampled
        wer, cer = (list(map(round_or_none, percentile_interval(difference))) for difference in differences.T)
        comparisons.append(
            {
                "one": one["model"],
                "other": other["model"],
                "wer_difference": round_or_none(one["wer"] - other["wer"]),
                "wer_interval": wer,
                "cer_difference": round_or_none(one["cer"] - other["cer"]),
                "cer_interval": cer,
            }
        )
    return comparisons


def are_comparable(one: Result, other: Result) -> bool:
    """Return whether two rows are compared: of one decoder, of one model, or one of another system."""
    decoders = {one["decoder"]["name"], other["decoder"]["name"]}
    return len(decoders) == 1 or EXTERNAL in decoders or one["sha256"]["model"] == other["sha256"]["model"]


def round_or_none(value: float | None, digits: int = 6) -> float | None:
    """Return `value` rounded to `digits` decimals; None for None and NaN."""
    return None if value is None or math.isnan(value) else round(value, digits)


def write_result(folder: Path, row: Result) -> Path:
    """Write `<folder>/<model>.json` and return its path."""
    path = folder / f"{row['model']}.json"
    write_json(path, row)
    return path


def write_ranking(folder: Path, row: Row) -> Path:
    """Write `<folder>/<model>.by_loss.tsv` and return its path: the utterances whose text is hardest to believe first.

    Ranked by the loss per character; a line holds the wav, that loss, the text and what the model writes instead.
    """

    def doubt(prediction: Prediction) -> float:
        return math.inf if prediction.loss is None else prediction.loss / len(prediction.text)

    path = folder / f"{row.result['model']}.by_loss.tsv"
    with atomic_open(path) as lines:
        for prediction in sorted(row.predictions, key=lambda p: (-doubt(p), p.audio_filepath)):
            fields = (prediction.audio_filepath, f"{doubt(prediction):.3f}", prediction.text, prediction.pred_text)
            lines.write("\t".join(fields) + "\n")
    return path


def read_result(path: Path) -> Result | None:
    """Return the result that `write_result` wrote, None where there is none.

    Raise UserError where it is damaged: where its rates, for example, are not those of its counts.
    """
    try:
        row = read_json(path)
        if row is None and not path.exists():
            return None
        is_valid = _has_valid_fields(row) and _rates_match_counts(row)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        is_valid = False
    if not is_valid:
        raise UserError(f"{path} is not what evaluate.py writes; delete it and evaluate again")
    return row


def _has_valid_fields(row: Any) -> bool:
    """Return whether texts, numbers and intervals are what they should be; raises as JSON of another shape does."""
    counts = ("words", "insertions", "deletions", "substitutions", "characters", "utterances", "loss_left_out")
    texts = [row["model"], row["letters_missing"], row["decoder"]["name"], *row["sha256"].values()]
    numbers = [row["hours"], *(row[name] for name in (*counts, "loss", "cer", "wer"))]
    if present := INTERVAL_KEYS & row.keys():
        if present != INTERVAL_KEYS:
            return False
        (wer_low, wer_high), (cer_low, cer_high) = row["wer_interval"], row["cer_interval"]
        texts.append(row["resampled"])
        intervals = (wer_low, wer_high, cer_low, cer_high, row["resampled_units"])
        if not all(abs(number) < MAX_NUMBER for number in intervals):
            return False
    is_number = [number is None or abs(number) < MAX_NUMBER for number in numbers]
    return all(is_number) and all(isinstance(text, str) for text in texts)


def _rates_match_counts(row: Result) -> bool:
    """Return whether WER and CER are those of the error counts; raises as JSON of another shape does."""
    for rate, total, prefix in (("wer", "words", ""), ("cer", "characters", "character_")):
        errors = sum(row[f"{prefix}{kind}"] for kind in ("insertions", "deletions", "substitutions"))
        if row[rate] != (round_or_none(errors / row[total]) if row[total] else None):
            return False
    return True
