import math
from copy import deepcopy
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest

from conftest import shipped
from finetuning.config.schema import Evaluation
from finetuning.errors import UserError
from finetuning.evaluation import recipes, results, results_table, significance
from finetuning.evaluation.scoring import Score

RECIPE = {"warm": ["runs/0/a.nemo", "runs/1/a.nemo"]}


def row(name: str, errors: list[int], decoder: str = "greedy", loss: float | None = 2.0) -> results.Row:
    """A row of speakers who say a hundred words each, of one character."""
    counts = np.array([[100 - wrong, wrong, 0, 0] for wrong in errors])
    score = Score(loss, 0, counts, counts, position_errors=np.zeros(0, dtype=np.int32))
    result = results.make_result(name, score, 0.5, "", {"model": name.removesuffix("+LM"), "manifest": "m"})
    more = {"decoder": {"name": decoder}, "nemo_wer": 0.1, "slices": {}, "release": "r"}
    fields = results.interval_fields(score.utterance_errors)
    return results.Row(result | fields | more, [], score, score.utterance_errors, "")


ONE, OTHER = row("warm-1", [5, 9, 2, 7, 4, 3, 8]), row("warm-2", [7, 9, 4, 9, 6, 5, 8], loss=4.0)


def test_runs_of_a_recipe_are_one_row_of_their_mean(tmp_path: Path) -> None:
    base = row("base", [50, 60, 55, 70, 40, 45, 52])
    pooled = recipes.pool_recipes([base, ONE, OTHER], RECIPE)
    assert [each.result["model"] for each in pooled] == ["base", "warm"]
    mean = pooled[1].result
    assert (mean["wer"], mean["loss"], mean["runs"], mean["utterances"], mean["hours"]) == (0.061429, 3.0, 2, 7, 0.5)
    assert (mean["substitutions"], mean["words"]) == (86, 1400), "of both runs"
    assert mean["wer_new_run"] == pytest.approx(12.7062 * stdev([38 / 700, 48 / 700]) * math.sqrt(1.5), abs=1e-4)
    low, high = mean["wer_interval"]
    assert low < mean["wer"] < high and mean["speakers"] == 7
    assert "nemo_wer" not in mean and "slices" not in mean and mean["release"] == "r"
    assert results.read_result(results.write_result(tmp_path, mean)) == mean

    (compared,) = significance.compare_models(pooled)
    assert compared["wer_difference"] == pytest.approx(372 / 700 - 86 / 1400, abs=1e-6)
    low, high = compared["wer_interval"]
    assert low < compared["wer_difference"] < high
    (turned,) = significance.compare_models(pooled[::-1])
    assert turned["wer_interval"] == pytest.approx([-high, -low], abs=0.02)
    assert (compared["p"], compared["mapsswe_p"]) == (0.01562, None)  # 2 of 128
    table = results_table.format_table([each.result for each in pooled], Evaluation(), [compared])
    assert f"| 0.0614 ± {mean['wer_new_run']:.3f} [" in table
    assert "Means of several runs: warm of 2; ±: how far a new run may lie from it (95 %, Student's t)." in table


def test_each_decoder_has_its_own_and_a_run_that_failed_is_not_counted() -> None:
    with_lm = row("warm-1+LM", [1, 2, 1, 0, 2, 1, 3], decoder="lm")
    pooled = recipes.pool_recipes([ONE, with_lm, OTHER], RECIPE)
    assert [(each.result["model"], each.result["runs"]) for each in pooled] == [("warm", 2), ("warm+LM", 1)]
    assert pooled[1].result["wer_new_run"] is None
    assert recipes.pool_recipes([with_lm], {}) == [with_lm]
    assert recipes.pool_runs("m", [ONE, row("warm-2", [1], loss=None)]).result["loss"] is None


def test_a_single_run_has_no_spread() -> None:
    assert recipes.new_run_distance([0.2]) is None
    assert recipes.new_run_distance([0.1, 0.3]) == pytest.approx(12.7062 * math.sqrt(0.02) * math.sqrt(1.5), abs=1e-4)


def test_runs_are_numbered_by_their_recipe_since_files_of_runs_are_often_called_alike() -> None:
    config = deepcopy(shipped("demo"))
    config.evaluation.models, config.evaluation.recipes = ["b.nemo"], RECIPE
    assert results.row_names(config) == {"b": "b.nemo", "warm-1": "runs/0/a.nemo", "warm-2": "runs/1/a.nemo"}
    for recipe, models, words in (
        ("comparisons", RECIPE["warm"], "'comparisons', as another result is"),
        ("a/b", RECIPE["warm"], "as no file of results can be"),
        ("b", ["c.nemo"], "would both be called b"),
        ("warm", [], "names no run"),
    ):
        config.evaluation.recipes = {recipe: models}
        with pytest.raises(UserError, match=words):
            results.row_names(config)
