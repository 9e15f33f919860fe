import json
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from conftest import shipped
from finetuning import files
from finetuning.config.schema import Evaluation, PublishedRow
from finetuning.errors import UserError
from finetuning.evaluation import results, results_table
from finetuning.evaluation.scoring import Score
from mutations import mutated

HASHES = {"model": "0" * 64, "manifest": "1" * 64}
# ten utterances of 100 words and 507 characters
SCORE = Score(9.99159, 0, np.array([[90, 8, 2, 0]] * 6 + [[90, 8, 2, 1]] * 4), np.array([[500, 5, 2, 1]] * 10))
BY_SPEAKER = np.array([[12, 100, 8, 507], [8, 100, 9, 507], [15, 100, 6, 507], [9, 100, 8, 507], [11, 100, 9, 507]] * 2)


def row(model: str = "m", score: Score = SCORE, missing: str = "") -> results.Result:
    return results.make_result(model, score, 0.5, missing, HASHES)


def sure(model: str, low: float = 0.09, high: float = 0.12, **more: object) -> results.Result:
    intervals = {"cer_interval": [0.015, 0.017], "wer_interval": [low, high], "speakers": 1234, "no_interval": ""}
    return row(model) | intervals | more


def test_figures_are_fractions_of_the_counts() -> None:
    found = row()
    assert (found["words"], found["insertions"], found["deletions"], found["substitutions"]) == (1000, 4, 20, 80)
    assert (found["wer"], found["characters"], found["cer"]) == (0.104, 5070, 0.015779)  # 80 / 5070
    assert (found["loss"], found["utterances"]) == (9.9916, 10)
    assert set(found["versions"]) == {"nemo", "torch", "openvino", "jiwer", "numpy", "python"}


def test_the_same_run_gives_the_same_bytes_and_nothing_of_the_machine(tmp_path: Path) -> None:
    def whole() -> results.Result:
        return row("a") | results.interval_fields(BY_SPEAKER)

    first = results.write_result(tmp_path, whole()).read_bytes()
    assert results.write_result(tmp_path, whole()).read_bytes() == first
    assert json.loads(first) == whole()
    assert str(tmp_path) not in first.decode()


def test_an_interval_is_within_what_rates_can_be_or_says_why_there_is_none() -> None:
    found = results.interval_fields(BY_SPEAKER)
    low, high = found["wer_interval"]
    assert 0.09 < low < 0.11 < high < 0.14  # 110 of 1000 words
    assert (found["speakers"], found["no_interval"]) == (10, "")
    rare = np.array([[0, 42], [0, 4], [1, 49], [12, 44], [1, 12], [0, 37]])[:, [0, 1, 0, 1]]
    assert results.interval_fields(rare)["wer_interval"][0] == 0, "not below"
    for sums, why in (
        (BY_SPEAKER[:0], "the speakers are not known"),
        (BY_SPEAKER[:1], "1 speaker, fewer than 6"),
        (BY_SPEAKER[:5], "5 speakers, fewer than 6"),
        (BY_SPEAKER[[0] * 9], "too few of the 9 speakers differ in it"),
    ):
        none = {"cer_interval": None, "wer_interval": None, "speakers": len(sums), "no_interval": why}
        assert results.interval_fields(sums) == none


def test_table_of_our_rows() -> None:
    assert results_table.format_table([row("long-name"), row("b")], Evaluation()).splitlines() == [
        "| Model     | Test loss |    CER |    WER |",
        "|-----------|----------:|-------:|-------:|",
        "| long-name |    9.9916 | 0.0158 | 0.1040 |",
        "| b         |    9.9916 | 0.0158 | 0.1040 |",
    ]


def test_intervals_stand_beside_the_rates_where_there_are_some() -> None:
    known = sure("a" * 40)
    lines = results_table.format_table([known, row("older")], Evaluation()).splitlines()
    assert lines[2].endswith("|    9.9916 | 0.0158 [0.015, 0.017] | 0.1040 [0.090, 0.120] |")
    assert lines[3].endswith("|    9.9916 |                0.0158 |                0.1040 |")
    assert max(map(len, lines[:4])) <= 120
    assert lines[5] == "In brackets: 95 % interval, bootstrap-t over 1,234 speakers."


def test_why_there_is_no_interval_is_a_footnote() -> None:
    few = row("m") | results.interval_fields(BY_SPEAKER[:2])
    table = results_table.format_table([few, few], Evaluation())
    assert table.count("| m [1] |    9.9916 | 0.0158 | 0.1040 |") == 2
    assert table.endswith("\n\n[1] No interval of CER and WER: 2 speakers, fewer than 6.")
    only_wer = sure("m", cer_interval=None, no_interval="too few of the 9 speakers differ in it", speakers=9)
    table = results_table.format_table([only_wer], Evaluation())
    assert "0.1040 [0.090, 0.120] |" in table
    assert "[1] No interval of CER: too few of the 9 speakers differ in it.\n" in table


@pytest.mark.parametrize(
    ("row", "base", "release", "known"),
    [
        ("stt_it_quartznet15x5", None, "cv-corpus-24.0-2025-12-05/it", True),
        ("stt_it_quartznet15x5+LM", None, "cv-corpus-24.0-2025-12-05/it", True),
        ("stt_multilingual_fastconformer_hybrid_large_pc", None, "cv-corpus-24.0-2025-12-05/it", True),
        ("stt_en_quartznet15x5", None, "cv-corpus-24.0-2025-12-05/it", False),
        ("parakeet-ctc-0.6b", None, "cv-corpus-24.0-2025-12-05/en", True),
        ("parakeet-ctc-0.6b", None, "cv-corpus-24.0-2025-12-05/it", False),
        ("stt_kk_ru_fastconformer_hybrid_large", None, "cv-corpus-24.0-2025-12-05/ru", True),
        ("stt_it_quartznet15x5", None, "cv-corpus-sample-1.0-2026-11-22/it", False),
        ("stt_it_quartznet15x5", None, "my recordings", False),
        ("Model-IT-finetuned", "stt_en_quartznet15x5", "cv-corpus-24.0-2025-12-05/it", False),
        ("Model-IT-finetuned", "models/stt_it_quartznet15x5.nemo", "cv-corpus-24.0-2025-12-05/it", True),
        ("Model-IT-finetuned+LM", "nvidia/stt_it_conformer_ctc_large", "cv-corpus-24.0-2025-12-05/it", True),
        ("warm-2+LM", "stt_it_quartznet15x5", "cv-corpus-24.0-2025-12-05/it", True),
        ("warm-3", "stt_it_quartznet15x5", "cv-corpus-24.0-2025-12-05/it", False),
        ("another", "stt_it_quartznet15x5", "cv-corpus-24.0-2025-12-05/it", False),
    ],
)
def test_a_model_that_may_know_the_test_set_is_marked(
    tmp_path: Path, row: str, base: str | None, release: str, known: bool
) -> None:
    config = deepcopy(shipped("italian"))
    config.dataset.output, config.model.base = str(tmp_path), base
    config.evaluation.recipes = {"warm": ["0.nemo", "1.nemo"]}
    about = {"release": release, "config": {"dataset.split": {"by": "clip"}}}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    fields = {"release": release, "split": "clip", "may_know_test_set": known}
    assert results.origin_fields(row, config) == fields
    table = results_table.format_table([sure(row) | fields], Evaluation())
    assert (f"| {row} [1] |" in table and "maybe on clips of this test set" in table) == known


def test_footnotes_name_the_letters_and_the_utterances_left_out() -> None:
    table = results_table.format_table([row("en", replace(SCORE, loss_left_out=2), "àè"), row("it")], Evaluation())
    assert "| en [1] [2] |" in table
    assert "[1] The vocabulary lacks: à è. The loss leaves them out of the references, CER and WER do not.\n" in table
    assert "[2] The loss leaves out 2 of 10 utterances" in table
    assert "| it  " in table


def test_what_holds_for_two_rows_is_one_footnote() -> None:
    left_out = replace(SCORE, loss_left_out=2)
    table = results_table.format_table(
        [row("en", left_out, "à"), row("de", SCORE, "à"), row("it", left_out)], Evaluation()
    )
    assert "| en [1] [2] |" in table
    assert "| de [1] " in table
    assert "| it [2] " in table
    assert table.count("The vocabulary lacks: à.") == 1


def test_what_nemo_would_say_is_told_where_it_is_something_else() -> None:
    en, it, same = row("en", missing="à") | {"nemo_wer": 0.09}, row("it") | {"nemo_wer": 0.1041}, row("same")
    table = results_table.format_table([en, it, same | {"nemo_wer": 0.10401}], Evaluation())
    assert "[2] NeMo's own test would say WER 0.0900: it leaves them out too." in table
    assert "[3] NeMo's own test would say WER 0.1041: it drops the space before an apostrophe" in table
    assert "| same   " in table


def test_no_loss_at_all_is_said() -> None:
    nothing = Score(None, 1, np.array([[0, 1, 0, 0]]), np.array([[0, 1, 0, 0]]))
    assert "|      none | 1.0000 | 1.0000 |" in results_table.format_table([row("m", nothing)], Evaluation())


def test_published_rows_are_marked_and_compared_by_name() -> None:
    evaluation = Evaluation(published=[PublishedRow("m", 9.0, 0.02, 0.1), PublishedRow("other", 1, 1, 1)])
    evaluation.published_on, evaluation.note = "some other data", "The note."
    table = results_table.format_table([row("m") | {"release": "cv-24/it", "split": "clip"}], evaluation)
    assert "Published figures, on some other data, drawn and normalised by their authors:" in table
    assert "| m (published)     |    9.0000 | 0.0200 | 0.1000 |" in table
    assert "m, ours minus published: loss +0.9916, CER -0.0042, WER +0.0040. Not the same test set: " in table
    assert "ours is of cv-24/it, split by clip, 10 utterances, 0.50 h, normalised by this configuration." in table
    assert "ours is of a release not known, its split not known, 10 utt" in results_table.format_table(
        [row("m")], evaluation
    )
    assert "other, ours minus" not in table
    assert table.endswith("\n\nThe note.")


def test_the_origin_is_that_of_step_1(tmp_path: Path) -> None:
    assert results.dataset_origin(tmp_path) == {"release": None, "split": None}
    about = {"release": "cv-24/it", "config": {"dataset.split": {"by": "clip"}}}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    assert results.dataset_origin(tmp_path) == {"release": "cv-24/it", "split": "clip"}
    (tmp_path / "dataset.json").write_text('{"release": "cv-24/it", "config": []}')
    assert results.dataset_origin(tmp_path) == {"release": None, "split": None}


def test_the_real_time_factor() -> None:
    measured = {"seconds": 3.0, "audio_seconds": 120.0, "device": "cpu", "by": "openvino", "threads": 2}
    assert results_table.format_real_time_factor("m", measured) == "m 0.025 (cpu, openvino, 2 thread(s))"
    assert results_table.format_real_time_factor("m", measured | {"device": "cuda"}) == "m 0.025 (cuda)"
    assert (
        results_table.format_real_time_factor("m", None)
        == results_table.format_real_time_factor("m", measured | {"audio_seconds": 0.0})
        == "m not measured"
    )


def named(*models: str, **registry: str) -> dict[str, str]:
    config = deepcopy(shipped("demo"))
    config.evaluation.models, config.model.registry = list(models), registry
    return results.row_names(config)


def test_rows_are_called_as_the_registry_or_the_files_call_them() -> None:
    assert named("runs/a.nemo", "b", "c.tar", b="http://x/other.nemo") == {
        "a": "runs/a.nemo",
        "b": "b",
        "c.tar": "c.tar",
    }


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (["a.nemo", "b/a.nemo"], "a.nemo and b/a.nemo would both be called a; rename a file"),
        (["a.nemo", "a+LM.nemo"], "'a+LM', as the row of a model with the language model is; rename"),
        (["a+lm.nemo"], "as the row of a model with the language model is"),
        (["a.nemo", "A.nemo"], "would both be called A, where capitals"),
        (["perché.nemo", "perche\u0301.nemo"], "would both be called"),
        (["ﬁne.nemo", "FINE.nemo"], "would both be called FINE, where"),
        (["straße.nemo", "STRASSE.nemo"], "would both be called"),
        (["comparisons.nemo"], "called 'comparisons', as another result is"),
        (["Comparisons.nemo"], "as another result is"),
        ([".hidden.nemo"], "as no file of results can be"),
        ([".nemo"], "as no file of results can be"),
        ([""], "as no file of results can be"),
        (["/"], "as no file of results can be"),
        ([".."], "as no file of results can be"),
        (["a\n.nemo"], "with a character that cannot be shown"),
        (["a\x1b[2J.nemo"], "with a character that cannot be shown"),
        (["a\u202e.nemo"], "with a character that cannot be shown"),
        (["\udcff.nemo"], "with a character that cannot be shown"),
        (["è" * 101 + ".nemo"], "with more than 200 bytes"),
        ([], "names no model"),
    ],
    ids=ascii,
)
def test_names_that_would_hide_another_result_or_that_no_file_can_have(models: list[str], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        named(*models)
    assert "\n" not in str(refused.value) and "\x1b" not in str(refused.value)


def test_a_name_of_the_registry_is_held_to_the_same() -> None:
    with pytest.raises(UserError, match="'nvidia/it', as no file of results can be"):
        named("nvidia/it", **{"nvidia/it": "http://x/it.nemo"})
    assert named("è" * 100 + ".nemo")


def test_a_result_is_there_and_back_or_refused_in_one_sentence(tmp_path: Path) -> None:
    assert results.read_result(tmp_path / "m.json") is None
    path = results.write_result(tmp_path, row() | results.interval_fields(BY_SPEAKER))
    assert results.read_result(path) == json.loads(path.read_text())
    whole = path.read_bytes()

    @given(mutated(whole))
    @settings(max_examples=150, deadline=None)
    def read(changed: bytes) -> None:
        path.write_bytes(changed)
        (tmp_path / "dataset.json").write_bytes(changed)
        assert results.dataset_origin(tmp_path).keys() == {"release", "split"}
        assert isinstance(results.release_name(tmp_path), str)
        try:
            results_table.format_table([results.read_result(path)], Evaluation())
        except UserError as error:
            assert str(error) == f"{path} is not what evaluate.py writes; delete it and evaluate again"

    read()


def test_an_interval_is_there_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    whole = row() | results.interval_fields(BY_SPEAKER)
    for name in results.INTERVAL_KEYS:
        with pytest.raises(UserError, match=r"m.json is not what evaluate.py writes"):
            results.read_result(
                results.write_result(tmp_path, {key: value for key, value in whole.items() if key != name})
            )
    for changed in (
        {"wer_interval": [0.1]},
        {"speakers": "5"},
        {"no_interval": 5},
        {"cer_interval": 0.1},
        {"loss": 10**400},
    ):
        with pytest.raises(UserError, match=r"m.json is not what evaluate.py writes"):
            results.read_result(results.write_result(tmp_path, whole | changed))


def test_a_rate_that_is_not_that_of_its_counts_is_no_result(tmp_path: Path) -> None:
    for changed in ({"wer": 0.1}, {"cer": 0.1}, {"insertions": 5}, {"words": 1001}, {"cer": None}):
        with pytest.raises(UserError, match=r"m.json is not what evaluate.py writes"):
            results.read_result(results.write_result(tmp_path, row() | changed))
    nothing = Score(None, 1, np.array([[0, 0, 0, 0]]), np.array([[0, 0, 0, 0]]))
    assert results.read_result(results.write_result(tmp_path, row("m", nothing)))["wer"] is None


def test_folders_are_held_by_one_run_and_two_names_of_one_folder_are_one(tmp_path: Path) -> None:
    (one := tmp_path / "one").mkdir()
    (tmp_path / "link").symlink_to(one)
    refused = pytest.raises(UserError, match=r"another run is writing to .*one")
    with files.exclusive_locks(one, tmp_path / "link", one), refused, files.exclusive_locks(tmp_path, one):
        pass
    with files.exclusive_locks(tmp_path, one):
        pass
