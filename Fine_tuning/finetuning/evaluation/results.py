"""What is kept of an evaluation, and the table it is shown as."""

import math
import platform
import unicodedata
from collections.abc import Sequence
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.config.schema import Config, Evaluation, PublishedRow
from finetuning.errors import UserError, printable
from finetuning.evaluation.bootstrap import RESAMPLES, ResamplingUnits, percentile_interval
from finetuning.evaluation.scoring import Score
from finetuning.files import read_json, write_json

COLUMNS = ("Model", "Test loss", "CER", "WER")
COMPARISONS = "comparisons"  # results/<experiment>/comparisons.json: each pair of models
WITH_LM = "+LM"  # ends the name of a model's row by the language model
MAX_NAME_BYTES = 200  # bytes of a name; a file's may have 255, with .json and what it is called by before it is whole
FEW_UNITS = 10  # speakers or utterances; fewer make an interval approximate
MAX_NUMBER = 1e15  # no count, rate or loss of a result is
INTERVAL_KEYS = {"cer_interval", "wer_interval", "resampled", "resampled_units"}  # keys of a result: all or none
Result = dict[str, Any]  # as results/<experiment>/<model>.json
Comparison = dict[str, Any]  # one of comparisons.json


def package_versions() -> dict[str, str]:
    """Of what takes part in an evaluation; read without importing any of it."""
    packages = {name: name for name in ("torch", "openvino", "jiwer", "numpy")} | {"nemo": "nemo_toolkit"}
    return {name: version(package) for name, package in packages.items()} | {"python": platform.python_version()}


def row_names(config: Config) -> dict[str, str]:
    """What the rows of the table are called: the registry's name or the file's name, and the model each stands for.

    UserError where what is kept of one would overwrite what is kept of another, on any file system, or where no file
    can be called so.
    """
    named: dict[str, str] = {}
    taken: dict[str, str] = {}
    for model in config.evaluation.models:
        name = model if model in config.model.registry else Path(model).name.removesuffix(".nemo")
        validate_row_name(name, model)
        alike = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        if alike in taken:
            where = "" if name in named else ", where capitals and the ways to write an accent are not told apart"
            raise UserError(
                f"evaluation.models: {taken[alike]} and {model} would both be called {name}{where}; rename a file"
            )
        named[name] = taken[alike] = model
    if not named:
        raise UserError(f"{config.file} names no model; type evaluation.models=[runs/…/NAME.nemo]")
    return named


def validate_row_name(name: str, model: str) -> None:
    """UserError where the results of a `model` cannot be kept under its `name`."""
    wrong = [
        (name.casefold() == COMPARISONS, "as another result is"),
        (name.casefold().endswith(WITH_LM.casefold()), "as the row of a model with the language model is"),
        (not name or name.startswith(".") or "/" in name, "as no file of results can be"),
        (not name.isprintable(), "with a character that cannot be shown"),
        (len(name.encode(errors="replace")) > MAX_NAME_BYTES, f"with more than {MAX_NAME_BYTES} bytes"),
    ]
    for is_wrong, how in wrong:
        if is_wrong:
            raise UserError(
                f"evaluation.models: {printable(model)} would be called {printable(name)!r}, {how}; rename the file"
            )


def make_result(model: str, score: Score, hours: float, letters_missing: str, sha256: dict[str, str]) -> Result:
    """One row of the table with everything needed to defend it; the same run gives the same result.

    `letters_missing`: of the alphabet, not written by the model, and so left out of its loss. `sha256`: of model and
    manifest. Insertions, deletions and substitutions are of words. The loss is kept to 4 decimals: those behind them
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


def interval_fields(samples: np.ndarray, units: ResamplingUnits) -> Result:
    """The part of a result that says how sure it is; `samples`: WER and CER of each resample, (RESAMPLES, 2)."""
    wer, cer = (list(map(round_or_none, percentile_interval(column))) for column in samples.T)
    return {"cer_interval": cer, "wer_interval": wer, "resampled": units.kind, "resampled_units": units.count}


def dataset_origin(folder: Path) -> Result:
    """The part of a result that says what the test set was drawn from, as step 1 left it; None where it did not."""
    about = _about(folder)
    try:
        release, split = about["release"], about["config"]["dataset.split"]["by"]
    except (KeyError, TypeError):  # no such file, or not from step 1
        release = split = None
    return {"release": release, "split": split} if isinstance(split, str) else {"release": None, "split": None}


def release_name(folder: Path) -> str:
    """What the release is called of which step 1 has made the dataset in `folder`; empty where it is not known."""
    return _about(folder).get("release", "")


def _about(folder: Path) -> dict[str, Any]:
    """Content of dataset.json; empty where there is none that names a release."""
    try:
        about = read_json(folder / "dataset.json")
    except ValueError:
        return {}
    return about if isinstance(about, dict) and isinstance(about.get("release"), str) else {}


def compare_models(rows: Sequence[Result], samples: Sequence[np.ndarray]) -> list[Comparison]:
    """Each pair of models by the same decoder, and of decoders of the same model: the difference of their rates, `one`
    minus `other`, and its interval (paired bootstrap).
    """
    found = []
    for (one, of_one), (other, of_other) in combinations(zip(rows, samples, strict=True), 2):
        if one["decoder"]["name"] != other["decoder"]["name"] and one["sha256"]["model"] != other["sha256"]["model"]:
            continue
        wer, cer = (list(map(round_or_none, percentile_interval(column))) for column in (of_one - of_other).T)
        found.append(
            {
                "one": one["model"],
                "other": other["model"],
                "wer_difference": round_or_none(one["wer"] - other["wer"]),
                "wer_interval": wer,
                "cer_difference": round_or_none(one["cer"] - other["cer"]),
                "cer_interval": cer,
            }
        )
    return found


def round_or_none(value: float | None, digits: int = 6) -> float | None:
    """To so many decimals; None for NaN."""
    return None if value is None or math.isnan(value) else round(value, digits)


def write_result(folder: Path, row: Result) -> Path:
    """Write `<folder>/<model>.json` and give its path."""
    path = folder / f"{row['model']}.json"
    write_json(path, row)
    return path


def read_result(path: Path) -> Result | None:
    """A row that `write` has written, None where there is none; UserError where it is damaged, which its rates show:
    they are those of its counts.
    """
    counts = ("words", "insertions", "deletions", "substitutions", "characters", "utterances", "loss_left_out")
    try:
        row = read_json(path)
        if row is None and not path.exists():
            return None
        texts = (row["model"], row["letters_missing"], row["decoder"]["name"], *row["sha256"].values())
        numbers = [row["hours"], *(row[name] for name in counts), *(row[name] for name in ("loss", "cer", "wer"))]
        right = all(isinstance(text, str) for text in texts)
        if sure := INTERVAL_KEYS & row.keys():
            right &= sure == INTERVAL_KEYS and isinstance(row["resampled"], str)
            (low, high), (lowest, highest) = row["wer_interval"], row["cer_interval"]
            right &= all(abs(number) < MAX_NUMBER for number in (low, high, lowest, highest, row["resampled_units"]))
        right &= all(number is None or abs(number) < MAX_NUMBER for number in numbers)
        for rate, of, kind in (("wer", "words", ""), ("cer", "characters", "character_")):
            errors = sum(row[f"{kind}{error}"] for error in ("insertions", "deletions", "substitutions"))
            right &= row[rate] == (round_or_none(errors / row[of]) if row[of] else None)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        right = False
    if not right:
        raise UserError(f"{path} is not what evaluate.py writes; delete it and evaluate again")
    return row


def format_table(rows: Sequence[Result], evaluation: Evaluation, compared: Sequence[Comparison] = ()) -> str:
    """Our rows with their footnotes and what is compared; the published rows, marked as such; our row minus the
    published one; the note.
    """
    cells, footnotes = [], []
    for row in rows:
        marks = ""
        for footnote in _footnotes(row):
            footnotes.append(f"[{len(footnotes) + 1}] {footnote}")
            marks += f" [{len(footnotes)}]"
        cells.append((row["model"] + marks, _figure(row["loss"]), _rate(row, "cer"), _rate(row, "wer")))
    parts = [
        markdown_table(COLUMNS, cells),
        "\n".join(footnotes),
        _interval_note(rows),
        "\n".join(map(_difference_line, compared)),
    ]
    if evaluation.published:
        on = evaluation.published_on or "data not stated"
        parts += [f"Published figures, on {on}, drawn and normalised by their authors:", format_published(evaluation)]
        pairs = [(row, p) for row in rows for p in evaluation.published if p.model == row["model"]]
        parts.append("\n".join(_published_difference(row, p) for row, p in pairs))
    return "\n\n".join(part for part in (*parts, evaluation.note) if part)


def format_decoder_table(rows: Sequence[Result]) -> str:
    """What the language model brings: WER and word errors of each model by both decoders."""
    cells = [
        (row["model"], _rate(row, "wer"), *(f"{row[kind]:,}" for kind in ("insertions", "deletions", "substitutions")))
        for row in rows
    ]
    return markdown_table(("Model", "WER", "Insertions", "Deletions", "Substitutions"), cells)


def format_published(evaluation: Evaluation) -> str:
    """The published rows alone, each marked as such."""
    cells = [(f"{p.model} (published)", *map(_figure, (p.loss, p.cer, p.wer))) for p in evaluation.published]
    return markdown_table(COLUMNS, cells)


def _footnotes(row: Result) -> list[str]:
    footnotes = []
    nemo = row.get("nemo_wer")
    differs = nemo is not None and _figure(nemo) != _figure(row["wer"])
    nemo = f" NeMo's own test would say WER {nemo:.4f}" if differs else ""
    if row["letters_missing"]:
        letters = " ".join(row["letters_missing"])
        nemo = nemo and f"{nemo}: it drops these letters from the references."
        footnotes.append(
            f"The vocabulary lacks: {letters}. The loss is over the letters it has, CER and WER over all.{nemo}"
        )
    elif nemo:
        footnotes.append(f"{nemo.strip()}: it drops the space before an apostrophe from the hypotheses.")
    if row["loss_left_out"]:
        footnotes.append(
            f"The loss leaves out {row['loss_left_out']} of {row['utterances']} utterances: more letters than frames. "
            "CER and WER are over all."
        )
    return footnotes


def _interval_note(rows: Sequence[Result]) -> str:
    """What stands in brackets; empty where no row has an interval."""
    drawn = sorted({(row["resampled"], row["resampled_units"]) for row in rows if "resampled" in row})
    if not drawn:
        return ""
    units = " or ".join(f"{count:,} {kind}" for kind, count in drawn)
    few = any(count < FEW_UNITS for _, count in drawn)
    return (
        f"In brackets: 95 % interval, bootstrap with {RESAMPLES:,} resamples of {units}."
        + (" With so few, it is approximate and likely too narrow." if few else "")
        + (" No two speakers are named: it may be too narrow." if "utterances" in dict(drawn) else "")
    )


def _difference_line(pair: Comparison) -> str:
    low, high = pair["wer_interval"]
    says = "a real difference" if low > 0 or high < 0 else "may be chance, 0 lies within"
    return f"{pair['one']} minus {pair['other']}: WER {pair['wer_difference']:+.4f} [{low:+.3f}, {high:+.3f}], {says}."


def _published_difference(row: Result, published: PublishedRow) -> str:
    differences = ", ".join(
        f"{name} {row[key] - getattr(published, key):+.4f}"
        for key, name in (("loss", "loss"), ("cer", "CER"), ("wer", "WER"))
        if row[key] is not None
    )
    split = f"split by {row['split']}" if row.get("split") else "its split not known"
    return (
        f"{row['model']}, ours minus published: {differences}. Not the same test set: ours is of "
        f"{row.get('release') or 'a release not known'}, {split}, {row['utterances']:,} utterances, "
        f"{row['hours']:.2f} h, normalised by this configuration."
    )


def format_real_time_factor(name: str, measured: dict[str, Any] | None) -> str:
    """The real-time factor of what `predictions.spent` gives: processing time / duration of the audio.

    Processing: reading wavs, features, network, greedy decoding and loss; not loading the model.
    """
    if not measured or not measured["audio_seconds"]:
        return f"{name} not measured"
    threads = f", {measured['by']}, {measured['threads']} thread(s)" if measured["device"] == "cpu" else ""
    return f"{name} {measured['seconds'] / measured['audio_seconds']:.2g} ({measured['device']}{threads})"


def _rate(row: Result, name: str) -> str:
    """A rate and, where there is one, its interval."""
    if f"{name}_interval" not in row:
        return _figure(row[name])
    low, high = row[f"{name}_interval"]
    return f"{_figure(row[name])} [{low:.3f}, {high:.3f}]"


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is a table on a screen too; all columns but the first are aligned to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    rule = "|".join([f"|{'-' * (widths[0] + 2)}", *(f"{'-' * (width + 1)}:" for width in widths[1:])]) + "|"
    lines = []
    for name, *figures in (header, *rows):
        cells = [name.ljust(widths[0]), *(f.rjust(width) for f, width in zip(figures, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([lines[0], rule, *lines[1:]])
