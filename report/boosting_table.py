"""What a list of words brings to the beam search, as a table of docs/language_model.md."""

from typing import Any


def boosting(of: dict[str, Any]) -> str:
    """Return what is written of the listed words with each weight; `of` as in results/reference/boosting.json."""
    header = ["Weight", *(f"{kind}{data}" for kind in ("", "+LM, ") for data in of["data"])]
    lines = [f"| {' | '.join(header)} |", f"|---{'|---' * len(of['data']) * 2}|"]
    columns = [rows[kind] for kind in ("without", "with") for rows in of["data"].values()]
    for cells in zip(*columns, strict=True):
        weight = cells[0]["weight"]
        name = "no list" if weight is None else f"{weight:g}" + " (default)" * (weight == of["default_weight"])
        lines.append(f"| {' | '.join([name, *map(_cell, cells)])} |")
    about = (
        f"Words written where they are said, of {columns[0][0]['said']}, + false alarms, WER; the list: "
        f"{', '.join(of['words'])}. The model of a run of the demo, validation and test set, synthetic speech, on "
        f"{of['machine']}; the language model, of general text, knows none of these words."
    )
    return "\n".join([*lines, "", about])


def _cell(row: dict[str, Any]) -> str:
    return f"{row['right']} + {row['false_alarms']}, {row['wer']:.3f}"
