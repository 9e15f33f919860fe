"""The table of results and its footnotes, as Markdown that is readable on a screen too."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetuning.config.schema import Evaluation, PublishedRow
from finetuning.evaluation.results import EXTERNAL, Comparison, Result
from finetuning.evaluation.significance import verdict

COLUMNS = ("Model", "Test loss", "CER", "WER")
MOST_OUTSIDE = 20  # characters in a footnote
SECOND_WER = {
    "orthographic": "words as they stand in the sentences, with capitals and punctuation.",
    "whisper": "sentences and texts after Whisper's normaliser of all languages but English.",
    "whisper_english": "sentences and texts after Whisper's normaliser of English.",
}
KNOWS_TEST_SET = (
    "Published by NVIDIA, or fine-tuned from such a model: trained on Common Voice, maybe on clips of this test set; "
    "its error rates may be too low."
)


def format_table(rows: Sequence[Result], evaluation: Evaluation, comparisons: Sequence[Comparison] = ()) -> str:
    """Return the table of `rows` with footnotes, intervals and comparisons.

    It is followed by the published rows, marked as such, by our row minus the published one, and by the note.
    """
    seconds = dict.fromkeys(row["second_wer_kind"] for row in rows if "second_wer" in row)
    cells, footnotes = [], list(dict.fromkeys(footnote for row in rows for footnote in _footnotes(row)))
    for row in rows:
        marks = "".join(f" [{footnotes.index(footnote) + 1}]" for footnote in _footnotes(row))
        rates = (_rate(row, name) for name in ("cer", "wer", *["second_wer"] * bool(seconds)))
        cells.append((row["model"] + marks, _figure(row["loss"]), *rates))
    parts = [
        markdown_table((*COLUMNS, *(f"WER, {kind}" for kind in seconds)), cells),
        "\n".join(f"WER, {kind}: {SECOND_WER[kind]}" for kind in seconds),
        "\n".join(f"[{number}] {footnote}" for number, footnote in enumerate(footnotes, start=1)),
        _interval_note(rows),
        "\n".join(map(_difference_line, comparisons)),
        comparison_note(comparisons),
    ]
    if evaluation.published:
        on = evaluation.published_on or "data not stated"
        parts += [f"Published figures, on {on}, drawn and normalised by their authors:", format_published(evaluation)]
        pairs = [(row, p) for row in rows for p in evaluation.published if p.model == row["model"]]
        parts.append("\n".join(_published_difference(row, p) for row, p in pairs))
    return "\n\n".join(part for part in (*parts, evaluation.note) if part)


def format_test_sets(tables: Mapping[str, Sequence[Result]]) -> str:
    """Return CER and WER of each model or recipe on each test set, without intervals; `tables`: the rows by set."""
    names = dict.fromkeys(row["model"] for rows in tables.values() for row in rows)
    of = {test_set: {row["model"]: row for row in rows} for test_set, rows in tables.items()}
    header = ["Model", *(f"{test_set}, {rate.upper()}" for test_set in tables for rate in ("cer", "wer"))]
    cells = [
        [name, *(_mean(rows[name], rate) if name in rows else "" for rows in of.values() for rate in ("cer", "wer"))]
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
    """Return what a reader of the row must know before comparing it with others."""
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
        footnotes.append(
            "Scored after the text rules of the configuration: the model writes what they replace, such as capitals."
        )
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
    if row.get("may_know_test_set"):
        footnotes.append(KNOWS_TEST_SET)
    if row.get("no_interval"):
        missing = " and ".join(name.upper() for name in ("cer", "wer") if row[f"{name}_interval"] is None)
        footnotes.append(f"No interval of {missing}: {row['no_interval']}.")
    return footnotes


def _interval_note(rows: Sequence[Result]) -> str:
    """Return what stands in brackets and behind ±; empty where no row has either."""
    speakers = {row["speakers"] for row in rows if row.get("wer_interval") or row.get("cer_interval")}
    counts = " or ".join(f"{count:,}" for count in sorted(speakers))
    brackets = f"In brackets: 95 % interval, bootstrap-t over {counts} speakers." if speakers else ""
    runs = ", ".join(f"{row['model']} of {row['runs']}" for row in rows if "runs" in row)
    means = f"Means of several runs: {runs}; ±: how far a new run may lie from it (95 %, Student's t)." if runs else ""
    return " ".join(filter(None, (brackets, means)))


def _difference_line(pair: Comparison) -> str:
    """Return the difference of two models' WER with its interval, and what the tests say."""
    interval = "" if pair["wer_interval"] is None else " [{:+.3f}, {:+.3f}]".format(*pair["wer_interval"])
    return f"{pair['one']} minus {pair['other']}: WER {pair['wer_difference']:+.4f}{interval}, {verdict(pair)}."


def comparison_note(comparisons: Sequence[Comparison]) -> str:
    """Return what each p is, and what none of them says; empty without comparisons."""
    if not comparisons:
        return ""
    pairs = comparisons[0]["pairs"]
    holm = f" Both are corrected for {pairs} pairs (Holm)." if pairs > 1 else ""
    return (
        "p: sign-flip test over speakers; MAPSSWE: NIST's test, which takes parts of utterances for independent."
        f"{holm} One run is one run: neither says how another training would differ."
    )


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
    """Return a rate and, where they are known, how far a new run may lie from it and its interval."""
    interval = row.get(f"{name}_interval")
    return _mean(row, name) + ("" if interval is None else " [{:.3f}, {:.3f}]".format(*interval))


def _mean(row: Result, name: str) -> str:
    """Return a rate and, of several runs, how far a new one may lie from it."""
    distance = row.get(f"{name}_new_run")
    return _figure(row[name]) + ("" if distance is None else f" ± {distance:.3f}")


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
