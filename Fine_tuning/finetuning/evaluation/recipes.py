"""Several runs of one recipe as one row of the table: their mean, and how far a new run may lie from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np

from finetuning.config.schema import SecondWer
from finetuning.evaluation import second_wer
from finetuning.evaluation.results import BOOSTED, WITH_LM, Row, interval_fields, make_result, round_or_none, run_name
from finetuning.evaluation.scoring import Score


def pool_recipes(rows: Sequence[Row], recipes: Mapping[str, Sequence[str]]) -> list[Row]:
    """Return `rows` with those of the runs of each recipe replaced by one for each decoder, behind the others."""
    runs = {
        f"{recipe}{decoder}": [f"{run_name(recipe, number)}{decoder}" for number in range(1, len(models) + 1)]
        for recipe, models in recipes.items()
        for decoder in ("", WITH_LM, BOOSTED, f"{WITH_LM}{BOOSTED}")
    }
    of = {row.result["model"]: row for row in rows}
    pooled = {name: [of[run] for run in its_runs if run in of] for name, its_runs in runs.items()}
    members = {run for its_runs in runs.values() for run in its_runs}
    single = [row for row in rows if row.result["model"] not in members]
    return single + [pool_runs(name, its_rows) for name, its_rows in pooled.items() if its_rows]


def pool_runs(name: str, rows: Sequence[Row]) -> Row:
    """Return the row of several runs: the counts are over all of them, so that the rates are the runs' means.

    `wer_new_run`, `cer_new_run`: how far a single new run may lie from the mean; the intervals are over speakers.
    """
    first, losses = rows[0], [row.score.loss for row in rows]
    counts = (np.concatenate([getattr(row.score, f"{kind}_counts") for row in rows]) for kind in ("word", "character"))
    score = Score(fmean(losses) if None not in losses else None, first.score.loss_left_out, *counts)
    by_speaker = sum(row.by_speaker for row in rows)
    hashes = {**first.result["sha256"], "model": " ".join(row.result["sha256"]["model"] for row in rows)}
    second, rates = None, ["wer", "cer"]
    if first.second:
        second, rates = second_wer.pool([row.second for row in rows]), [*rates, "second_wer"]
    result = {
        **first.result,
        **make_result(name, score, first.result["hours"], first.result["letters_missing"], hashes),
        **interval_fields(by_speaker),
        **(second_wer.second_fields(SecondWer(first.result["second_wer_kind"]), second) if second else {}),
        "decoder": {"name": first.result["decoder"]["name"]},  # each run has weights of its own
        "utterances": first.result["utterances"],
        "runs": len(rows),
        **{f"{rate}_new_run": new_run_distance([row.result[rate] for row in rows]) for rate in rates},
    }
    its_own = {"nemo_wer", "slices"}  # of the first run
    result = {key: value for key, value in result.items() if key not in its_own}
    return replace(first, result=result, predictions=[], score=score, by_speaker=by_speaker, second=second)


def new_run_distance(values: Sequence[float]) -> float | None:
    """Return half of Student's 95 % prediction interval: how far a new run may lie from the mean; None of one run."""
    from scipy.stats import t

    if len(values) == 1:
        return None
    return round_or_none(t.ppf(0.975, len(values) - 1) * stdev(values) * math.sqrt(1 + 1 / len(values)))
