"""The results of an evaluation: results/<experiment>/<model>.json and comparisons.json, written and read."""

import math
import platform
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.config.schema import Config, System, manifest_folder, row_name
from finetuning.decoding.predictions import Prediction
from finetuning.errors import UserError, printable
from finetuning.evaluation.bootstrap import MIN_SPEAKERS, bootstrap_t
from finetuning.evaluation.scoring import Score
from finetuning.files import atomic_open, read_json, write_json

COMPARISONS = "comparisons"  # results/<experiment>/comparisons.json: each pair of models
WITH_LM = "+LM"  # ends the name of the row of a model decoded with the language model
BOOSTED = "+boost"  # ends the name of the row of a model decoded with boosted words, maybe after WITH_LM
EXTERNAL = "external"  # decoder of a row whose predictions another system made
MAX_NAME_BYTES = 200  # a file system allows 255, and .json and the marks of a temporary file are added
MAX_NUMBER = 1e15  # counts, rates and losses beyond it are damage
INTERVAL_KEYS = {"cer_interval", "wer_interval", "speakers", "no_interval"}  # keys of a result: all or none
NVIDIA = re.compile(r"stt_([a-z]+(?:_[a-z]{2})?)_|parakeet")  # of its models' names; the group is their languages
COMMON_VOICE = re.compile(r"cv-corpus-\d[^/]*/([a-z]{2,3})\b")  # of its releases' names; the group is the language
Result = dict[str, Any]  # as results/<experiment>/<model>.json
Comparison = dict[str, Any]  # one of comparisons.json


@dataclass(frozen=True)
class Row:
    """A row of the table and what it was computed from."""

    result: Result
    predictions: list[Prediction]
    score: Score
    by_speaker: np.ndarray  # word errors, words, character errors and characters, (speakers, 4)
    real_time_factor: str  # as printed
    second: tuple[Score, np.ndarray] | None = None  # as second_wer.score_words returns it


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
    taken: dict[str, tuple[str, str]] = {}
    for name, model in _named_models(config):
        stated = model.predictions if isinstance(model, System) else model
        validate_row_name(name, model)
        alike = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        if alike in taken:
            other, its_name = taken[alike]
            where = "" if name == its_name else ", where capitals and the ways to write an accent are not told apart"
            what = "give another name" if isinstance(model, System) else "rename a file"
            raise UserError(f"evaluation.models: {other} and {stated} would both be called {name}{where}; {what}")
        taken[alike] = stated, name
        if name not in config.evaluation.recipes:
            models[name] = model
    if not models:
        raise UserError(f"{config.file} names no model; type evaluation.models=[runs/…/NAME.nemo]")
    return models


def _named_models(config: Config) -> Iterator[tuple[str, str | System]]:
    """Yield the name of each row and its model: the models, then each recipe and its runs, numbered."""
    for model in config.evaluation.models:
        yield row_name(model, config), model
    for recipe, models in config.evaluation.recipes.items():
        if not models:
            raise UserError(f"evaluation.recipes: {printable(recipe)} names no run; list the .nemo files of its runs")
        yield recipe, f"the recipe {recipe}"
        for number, model in enumerate(models, start=1):
            yield run_name(recipe, number), model


def run_name(recipe: str, number: int) -> str:
    """Return the name of the row of a recipe's run; `number`: from 1."""
    return f"{recipe}-{number}"


def lm_row_name(name: str) -> str:
    """Return the name of the row of model `name` decoded with the language model."""
    return f"{name}{WITH_LM}"


def boosted_row_name(name: str, with_lm: bool) -> str:
    """Return the name of the row of model `name` decoded with boosted words, `with_lm`: and the language model."""
    return f"{name}{WITH_LM if with_lm else ''}{BOOSTED}"


def validate_row_name(name: str, model: str | System) -> None:
    """Raise UserError where the results of `model` cannot be saved under `name`."""
    wrong = [
        (name.casefold() == COMPARISONS, "as another result is"),
        (name.casefold().endswith(WITH_LM.casefold()), "as the row of a model with the language model is"),
        (name.casefold().endswith(BOOSTED), "as the row of a model with boosted words is"),
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


def interval_fields(by_speaker: np.ndarray) -> Result:
    """Return the intervals of a result, and why one is None; `by_speaker`: as bootstrap.sum_by_speaker returns it."""
    wer, cer = (
        interval and [max(0.0, round_or_none(bound)) for bound in interval]
        for interval in bootstrap_t(by_speaker[:, 0::2], by_speaker[:, 1::2])
    )
    return {
        "cer_interval": cer,
        "wer_interval": wer,
        "speakers": len(by_speaker),
        "no_interval": "" if cer and wer else _why_no_interval(len(by_speaker)),
    }


def _why_no_interval(speakers: int) -> str:
    if not speakers:
        return "the speakers are not known"
    if speakers < MIN_SPEAKERS:
        return f"{speakers} speaker{'s' * (speakers > 1)}, fewer than {MIN_SPEAKERS}"
    return f"too few of the {speakers:,} speakers differ in it"


def dataset_origin(folder: Path) -> Result:
    """Return the release and the split of the test set as dataset.json states them; None for both where it does not."""
    description = _read_dataset_description(folder)
    try:
        release, split = description["release"], description["config"]["dataset.split"]["by"]
    except (KeyError, TypeError):  # no such file, or not from step 1
        release = split = None
    return {"release": release, "split": split} if isinstance(split, str) else {"release": None, "split": None}


def origin_fields(row: str, config: Config) -> Result:
    """Return `dataset_origin` and whether clips of the test set may be among what the row's model was trained on.

    That is so where the test set is of Common Voice and NVIDIA published the model or, for the configuration's own
    model and the runs of its recipes, its base: on which clips is not stated, and releases share most of theirs.
    """
    origin = dataset_origin(manifest_folder(config))
    runs = (run_name(recipe, i) for recipe, of in config.evaluation.recipes.items() for i in range(1, len(of) + 1))
    is_own = row.removesuffix(BOOSTED).removesuffix(WITH_LM) in {config.training.name, *runs}
    names = [row, config.model.base or ""] if is_own else [row]
    languages = COMMON_VOICE.findall(origin["release"] or "")
    known = any(_knows_common_voice(name, language) for name in names for language in languages)
    return {**origin, "may_know_test_set": known}


def _knows_common_voice(name: str, language: str) -> bool:
    """Return whether a model has a name of those that NVIDIA trained on Common Voice in `language`, among others."""
    named = NVIDIA.match(name.rpartition("/")[2])
    languages = (named[1] or "en") if named else ""
    return language in languages or languages == "multilingual"


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
        texts.append(row["no_interval"])
        bounds = [bound for name in ("wer", "cer") for bound in _bounds(row[f"{name}_interval"])]
        if not all(abs(number) < MAX_NUMBER for number in (*bounds, row["speakers"])):
            return False
    is_number = [number is None or abs(number) < MAX_NUMBER for number in numbers]
    return all(is_number) and all(isinstance(text, str) for text in texts)


def _bounds(interval: Any) -> tuple[float, float] | tuple[()]:
    """Return the two bounds of an interval, none where there is none; raises as JSON of another shape does."""
    if interval is None:
        return ()
    low, high = interval
    return low, high


def _rates_match_counts(row: Result) -> bool:
    """Return whether WER and CER are those of the error counts; raises as JSON of another shape does."""
    for rate, total, prefix in (("wer", "words", ""), ("cer", "characters", "character_")):
        errors = sum(row[f"{prefix}{kind}"] for kind in ("insertions", "deletions", "substitutions"))
        if row[rate] != (round_or_none(errors / row[total]) if row[total] else None):
            return False
    return True
