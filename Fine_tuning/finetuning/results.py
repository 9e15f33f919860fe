"""What is kept of an evaluation, and the table it is shown as."""

import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetuning.config import Evaluation, Published
from finetuning.files import write_json
from finetuning.scoring import Score

COLUMNS = ("Model", "Test loss", "CER", "WER")
Result = dict[str, Any]  # as results/<experiment>/<model>.json


def versions() -> dict[str, str]:
    """Of what takes part in an evaluation; read without importing any of it."""
    packages = {"nemo": "nemo_toolkit", "torch": "torch", "jiwer": "jiwer"}
    return {name: version(package) for name, package in packages.items()} | {"python": platform.python_version()}


def result(model: str, score: Score, hours: float, letters_missing: str, sha256: dict[str, str]) -> Result:
    """One row of the table with everything needed to defend it; the same run gives the same result.

    `letters_missing`: of the alphabet, not written by the model, and so left out of its loss. `sha256`: of model and
    manifest. Insertions, deletions and substitutions are of words.
    """
    words, characters = score.words, score.characters
    return {
        "model": model,
        "loss": _rounded(score.loss),
        "cer": _rounded(characters.rate),
        "wer": _rounded(words.rate),
        "words": words.reference,
        "insertions": words.insertions,
        "deletions": words.deletions,
        "substitutions": words.substitutions,
        "characters": characters.reference,
        "character_insertions": characters.insertions,
        "character_deletions": characters.deletions,
        "character_substitutions": characters.substitutions,
        "utterances": score.utterances,
        "hours": _rounded(hours),
        "loss_left_out": score.loss_left_out,
        "letters_missing": letters_missing,
        "decoder": {"name": "greedy"},
        "sha256": sha256,
        "versions": versions(),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 6)


def write(folder: Path, row: Result) -> Path:
    """Write `<folder>/<model>.json` and give its path."""
    path = folder / f"{row['model']}.json"
    write_json(path, row)
    return path


def table(rows: Sequence[Result], evaluation: Evaluation) -> str:
    """Our rows with their footnotes; the published rows, marked as such; our row minus the published one; the note."""
    cells, footnotes = [], []
    for row in rows:
        marks = ""
        for footnote in _footnotes(row):
            footnotes.append(f"[{len(footnotes) + 1}] {footnote}")
            marks += f" [{len(footnotes)}]"
        cells.append((row["model"] + marks, *map(_figure, (row["loss"], row["cer"], row["wer"]))))
    parts = [_markdown(cells), "\n".join(footnotes)]
    if evaluation.published:
        parts += [f"Published figures, on {evaluation.published_on or 'data not stated'}:", published_table(evaluation)]
        pairs = [(row, p) for row in rows for p in evaluation.published if p.model == row["model"]]
        parts.append("\n".join(_comparison(row, p) for row, p in pairs))
    return "\n\n".join(part for part in (*parts, evaluation.note) if part)


def published_table(evaluation: Evaluation) -> str:
    """The published rows alone, each marked as such."""
    return _markdown([(f"{p.model} (published)", *map(_figure, (p.loss, p.cer, p.wer))) for p in evaluation.published])


def _footnotes(row: Result) -> list[str]:
    footnotes = []
    if row["letters_missing"]:
        letters = " ".join(row["letters_missing"])
        footnotes.append(f"The loss is over the letters this model has; it lacks: {letters}. CER and WER are over all.")
    if row["loss_left_out"]:
        footnotes.append(
            f"The loss leaves out {row['loss_left_out']} of {row['utterances']} utterances: more letters than frames. "
            "CER and WER are over all."
        )
    return footnotes


def _comparison(row: Result, published: Published) -> str:
    differences = ", ".join(
        f"{name} {row[key] - getattr(published, key):+.4f}"
        for key, name in (("loss", "loss"), ("cer", "CER"), ("wer", "WER"))
        if row[key] is not None
    )
    return (
        f"{row['model']}, ours minus published: {differences}. Not the same test set: ours has "
        f"{row['utterances']:,} utterances, {row['hours']:.2f} h."
    )


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table that is a table on a screen too."""
    widths = [max(len(row[column]) for row in (COLUMNS, *rows)) for column in range(len(COLUMNS))]
    rule = "|".join([f"|{'-' * (widths[0] + 2)}", *(f"{'-' * (width + 1)}:" for width in widths[1:])]) + "|"
    lines = []
    for name, *figures in (COLUMNS, *rows):
        cells = [name.ljust(widths[0]), *(f.rjust(width) for f, width in zip(figures, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([lines[0], rule, *lines[1:]])
