"""The table of results and its footnotes, as Markdown that is readable on a screen too."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetuning.config.schema import Evaluation, PublishedRow
from finetuning.evaluation.bootstrap import RESAMPLES
from finetuning.evaluation.results import EXTERNAL, Comparison, Result

COLUMNS = ("Model", "Test loss", "CER", "WER")
MOST_OUTSIDE = 20  # characters in a footnote
FEW_UNITS = 10  # speakers or utterances; fewer make an interval approximate


def format_table(rows: Sequence[Result], evaluation: Evaluation, comparisons: Sequence[Comparison] = ()) -> str:
    """Return the table of `rows` with footnotes, intervals and comparisons.

    It is followed by the published rows, marked as such, by our row minus the published one, and by the note.
    """
    cells, footnotes = [], list(dict.fromkeys(footnote for row in rows for footnote in _footnotes(row)))
    for row in rows:
        marks = "".join(f" [{footnotes.index(footnote) + 1}]" for footnote in _footnotes(row))
        cells.append((row["model"] + marks, _figure(row["loss"]), _rate(row, "cer"), _rate(row, "wer")))
    parts = [
        markdown_table(COLUMNS, cells),
        "\n".join(f"[{number}] {footnote}" for number, footnote in enumerate(footnotes, start=1)),
        _interval_note(rows),
        "\n".join(map(_difference_line, comparisons)),
    ]
    if evaluation.published:
        on = evaluation.published_on or "data not stated"
        parts += [f"Published figures, on {on}, drawn and normalised by their authors:", format_published(evaluation)]
        pairs = [(row, p) for row in rows for p in evaluation.published if p.model == row["model"]]
        parts.append("\n".join(_published_difference(row, p) for row, p in pairs))
    return "\n\n".join(part for part in (*parts, evaluation.note) if part)


def format_test_sets(tables: Mapping[str, Sequence[Result]]) -> str:
    """Return CER and WER of each model on each test set, a pair of columns a set; `tables`: the rows by set."""
    names = dict.fromkeys(row["model"] for rows in tables.values() for row in rows)
    of = {test_set: {row["model"]: row for row in rows} for test_set, rows in tables.items()}
    header = ["Model", *(f"{test_set}, {rate.upper()}" for test_set in tables for rate in ("cer", "wer"))]
    cells = [
        [name, *(_figure(rows[name][rate]) if name in rows else "" for rows in of.values() for rate in ("cer", "wer"))]
        for name in names
    ]
    return markdown_table(header, cells)


def format_decoder_table(rows: Sequence[Result]) -> str:
    """Return the table of what the language model brings: WER and word errors of each model by both decoders."""
    cells = [
        (row["model"], _rate(row, "wer"), *(f"{row[kind]:,}" for kind in ("insertions", "deletions", "substitutions")))
        for row in rows
    ]
    return markdown_table(("Model", "WER", "Insertions", "Deletions", "Substitutions"), cells)


def format_published(evaluation: Evaluation) -> str:
    """Return the table of the published rows alone, each marked as such."""
    cells = [(f"{p.model} (published)", *map(_figure, (p.loss, p.cer, p.wer))) for p in evaluation.published]
    return markdown_table(COLUMNS, cells)


def _footnotes(row: Result) -> list[str]:
    """Return what a reader of the row must know: characters and utterances left out of the loss, and NeMo's own WER."""
    footnotes = []
    nemo = row.get("nemo_wer")
    differs = nemo is not None and _figure(nemo) != _figure(row["wer"])
    if row["letters_missing"]:
        letters = " ".join(row["letters_missing"])
        footnotes.append(
            f"The vocabulary lacks: {letters}. The loss leaves them out of the references, CER and WER do not."
        )
    if differs:
        why = (
            "leaves them out too" if row["letters_missing"] else "drops the space before an apostrophe from hypotheses"
        )
        footnotes.append(f"NeMo's own test would say WER {nemo:.4f}: it {why}.")
    if row["decoder"]["name"] == EXTERNAL:
        footnotes.append("Written by another system: no loss; scored after the text rules of the configuration.")
    elif row.get("text_rules"):
        footnotes.append("Scored after the text rules of the configuration: the model writes capitals or punctuation.")
    if outside := row.get("characters_outside"):
        footnotes.append(
            f"Beyond the alphabet, in {row['texts_outside']:,} of {row['utterances']:,} texts after these rules, and "
            f"counted as errors: {' '.join(outside[:MOST_OUTSIDE])}{' …' * (len(outside) > MOST_OUTSIDE)}"
        )
    if row["loss_left_out"]:
        footnotes.append(
            f"The loss leaves out {row['loss_left_out']} of {row['utterances']} utterances: more tokens than frames. "
            "CER and WER are over all."
        )
    return footnotes


def _interval_note(rows: Sequence[Result]) -> str:
    """Return the sentence on what stands in brackets; empty where no row has an interval."""
    resampled = sorted({(row["resampled"], row["resampled_units"]) for row in rows if "resampled" in row})
    if not resampled:
        return ""
    units = " or ".join(f"{count:,} {kind}" for kind, count in resampled)
    few = any(count < FEW_UNITS for _, count in resampled)
    return (
        f"In brackets: 95 % interval, bootstrap with {RESAMPLES:,} resamples of {units}."
        + (" With so few, it is approximate and likely too narrow." if few else "")
        + (" No two speakers are named: it may be too narrow." if "utterances" in dict(resampled) else "")
    )


def _difference_line(pair: Comparison) -> str:
    """Return the difference of two models' WER with its interval, and whether 0 lies in it."""
    low, high = pair["wer_interval"]
    verdict = "significant" if low > 0 or high < 0 else "may be chance, 0 lies within"
    difference = f"WER {pair['wer_difference']:+.4f} [{low:+.3f}, {high:+.3f}]"
    return f"{pair['one']} minus {pair['other']}: {difference}, {verdict}."


def _published_difference(row: Result, published: PublishedRow) -> str:
    """Return our row minus the published one, and what our test set is."""
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


def format_real_time_factor(name: str, timing: dict[str, Any] | None) -> str:
    """Return the real-time factor, processing time / duration of the audio, of what inference.json holds.

    Processing is reading wavs, features, network, greedy decoding and loss; loading the model is not in it.
    """
    if not timing or not timing["audio_seconds"]:
        return f"{name} not measured"
    threads = f", {timing['by']}, {timing['threads']} thread(s)" if timing["device"] == "cpu" else ""
    processes = f", {timing['processes']} processes" if "processes" in timing else ""
    return f"{name} {timing['seconds'] / timing['audio_seconds']:.2g} ({timing['device']}{threads}{processes})"


def _rate(row: Result, name: str) -> str:
    """Return a rate and, where there is one, its interval."""
    if f"{name}_interval" not in row:
        return _figure(row[name])
    low, high = row[f"{name}_interval"]
    return f"{_figure(row[name])} [{low:.3f}, {high:.3f}]"


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns line up on a screen; all but the first are aligned to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    rule = "|".join([f"|{'-' * (widths[0] + 2)}", *(f"{'-' * (width + 1)}:" for width in widths[1:])]) + "|"
    lines = []
    for name, *figures in (header, *rows):
        cells = [name.ljust(widths[0]), *(f.rjust(width) for f, width in zip(figures, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([lines[0], rule, *lines[1:]])
