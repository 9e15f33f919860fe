import json
from dataclasses import asdict
from pathlib import Path

from finetuning import results
from finetuning.config import Evaluation, Published
from finetuning.scoring import Errors, Score

HASHES = {"model": "0" * 64, "manifest": "1" * 64}
SCORE = Score(10, 9.99159, 0, Errors(900, 80, 20, 4), Errors(5000, 50, 20, 10))


def row(model: str = "m", score: Score = SCORE, missing: str = "") -> results.Result:
    return results.result(model, score, 0.5, missing, HASHES)


def test_figures_are_fractions_of_the_counts() -> None:
    found = row()
    assert (found["words"], found["insertions"], found["deletions"], found["substitutions"]) == (1000, 4, 20, 80)
    assert (found["wer"], found["characters"], found["cer"]) == (0.104, 5070, 0.015779)  # 80 / 5070
    assert found["loss"] == 9.99159
    assert set(found["versions"]) == {"nemo", "torch", "jiwer", "python"}


def test_the_same_run_gives_the_same_bytes_and_nothing_of_the_machine(tmp_path: Path) -> None:
    first = results.write(tmp_path, row("a")).read_bytes()
    assert results.write(tmp_path, row("a")).read_bytes() == first
    assert json.loads(first) == row("a")
    assert str(tmp_path) not in first.decode()


def test_table_of_our_rows() -> None:
    assert results.table([row("long-name"), row("b")], Evaluation()).splitlines() == [
        "| Model     | Test loss |    CER |    WER |",
        "|-----------|----------:|-------:|-------:|",
        "| long-name |    9.9916 | 0.0158 | 0.1040 |",
        "| b         |    9.9916 | 0.0158 | 0.1040 |",
    ]


def test_footnotes_name_the_letters_and_the_utterances_left_out() -> None:
    partly = Score(**(asdict(SCORE) | {"words": SCORE.words, "characters": SCORE.characters, "loss_left_out": 2}))
    table = results.table([row("en", partly, "àè"), row("it")], Evaluation())
    assert "| en [1] [2] |" in table
    assert "[1] The loss is over the letters this model has; it lacks: à è." in table
    assert "[2] The loss leaves out 2 of 10 utterances" in table
    assert "| it  " in table


def test_no_loss_at_all_is_said() -> None:
    nothing = Score(1, None, 1, Errors(0, 1, 0, 0), Errors(0, 1, 0, 0))
    assert "|      none | 1.0000 | 1.0000 |" in results.table([row("m", nothing)], Evaluation())


def test_published_rows_are_marked_and_compared_by_name() -> None:
    evaluation = Evaluation(published=[Published("m", 9.0, 0.02, 0.1), Published("other", 1, 1, 1)])
    evaluation.published_on, evaluation.note = "some other data", "The note."
    table = results.table([row("m")], evaluation)
    assert "Published figures, on some other data:" in table
    assert "| m (published)     |    9.0000 | 0.0200 | 0.1000 |" in table
    assert "m, ours minus published: loss +0.9916, CER -0.0042, WER +0.0040. Not the same test set: " in table
    assert "other, ours minus" not in table
    assert table.endswith("\n\nThe note.")
