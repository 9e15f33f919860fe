"""What recipes reach on human speech, as Markdown, from results/reference/recipes_mboshi.json."""

import statistics
from collections.abc import Collection
from typing import Any

from wording import HUMAN, spread


def recipes(of: dict[str, Any], variants: Collection[str] = HUMAN) -> str:
    """Return the error rates of these recipes, with each run's, as a table."""
    lines = ["| Recipe | Epochs | Test CER | Test WER | Each run's CER |", "|---|---:|---:|---:|---|"]
    for variant in [each for each in HUMAN if each in variants and each in of["variants"]]:
        found, runs = of["variants"][variant], of["variants"][variant]["runs"]
        for name, epochs, prefix in ((HUMAN[variant], runs[0]["epochs"], ""), ("… with the language model", "", "lm_")):
            if f"{prefix}cer" in runs[0]:
                each = ", ".join(f"{run[f'{prefix}cer']:.3f}" for run in runs)
                rates = " | ".join(spread(found, f"{prefix}{key}") for key in ("cer", "wer"))
                lines.append(f"| {name} | {epochs} | {rates} | {each} |")
    runs = [run for found in of["variants"].values() for run in found["runs"]]
    precisions = " or ".join(sorted({run["precision"] for run in runs}))
    about = f"{of['data']}; {of['hours']:.1f} h of training; {of['machine']}, one thread a run, {precisions}."
    if any(len(found["runs"]) > 1 for found in of["variants"].values()):
        about += " Of several seeds: their mean, and how far a single new run may lie from it (95 %, Student's t)."
    return "\n".join([*lines, "", about])


def choices(of: dict[str, Any]) -> str:
    """Return which weights validated best (the last, those of the best epoch, an average), and by how much."""
    runs = [run for found in of["variants"].values() for run in found["runs"]]
    others = [run for run in runs if run["exported"] != "last"]
    gains = [run["candidates"]["last"]["val_wer"] - run["candidates"][run["exported"]]["val_wer"] for run in others]
    told = f"Of {len(runs)} runs the last weights validated best in {len(runs) - len(others)}"
    for name, meant in (("best", "those of another epoch"), ("average", "an average of the best")):
        told += f", {meant} in {sum(run['exported'] == name for run in others)}"
    if gains:
        told += f". Where it was not the last, validation WER was lower by {statistics.median(gains):.3f} (median)"
    return f"{told}."
