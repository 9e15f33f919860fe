import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from conftest import ROOT
from finetuning import files
from finetuning.data.manifest import Utterance
from finetuning.decoding import partial_predictions, prediction_cache, predictions
from finetuning.decoding.predictions import (
    DECODER,
    INPUTS,
    LOG_PROBS,
    LOG_PROBS_INDEX,
    PREDICTIONS,
    TIMING,
    VOCABULARY,
    Prediction,
)
from finetuning.errors import UserError
from finetuning.evaluation import results_table
from finetuning.files import write_json
from mutations import mutated

ROWS = [Prediction(f"{n}.wav", "è vero", "e vero", None if n == 1 else n + 0.5, 1.0) for n in range(3)]
OWN = [np.random.default_rng(n).normal(size=(count, 4)).astype(np.float32) for n, count in enumerate((3, 1, 2))]
PART = f"{PREDICTIONS}.part"


def append(folder: Path, *numbers: int, vocab_size: int = 4) -> None:
    """What a run does that is stopped after these utterances."""
    with partial_predictions.open_partial(folder, vocab_size) as part:
        for number in numbers:
            part.append(number, ROWS[number], OWN[number])


def finish(folder: Path) -> None:
    """The end of a run that has all utterances."""
    done = partial_predictions.read_partial(folder, ROWS, 4)
    found, spans = zip(*(done[number] for number in range(3)), strict=True)
    predictions.finish_predictions(folder, found, spans, 4)


@pytest.mark.parametrize("own", [(), (0,), (1, 2)], ids=str)
@pytest.mark.parametrize("shares", [{1: (0, 1, 2)}, {1: (2,), 2: (1, 0)}, {3: (1, 0, 2), 1: (0,)}], ids=str)
def test_shares_of_several_processes_become_what_one_writes(
    tmp_path: Path, own: tuple[int, ...], shares: dict[int, tuple[int, ...]]
) -> None:
    order, alone, together = [1, 2, 0], tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        prediction_cache.prepare_folder(folder, {"model": "x"})
    append(alone, *order)
    append(together, *own)
    for rank, numbers in shares.items():
        share = partial_predictions.share_folder(together, rank)
        share.mkdir()
        append(share, *numbers)
    with (together / LOG_PROBS).open("ab") as log_probs:
        log_probs.write(OWN[2].tobytes())  # of a process that was killed before it wrote the line
    for folder in (alone, together):
        done = partial_predictions.merge_shares(folder, ROWS, 4)
        done = predictions.sort_log_probs(folder, done, order, 4)
        rows, spans = zip(*(done[number] for number in range(3)), strict=True)
        predictions.finish_predictions(folder, rows, spans, 4)
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (alone, together)]
    assert files[0] == files[1] and len(files[0]) == 4
    for expected, log_probs in zip(OWN, predictions.read_log_probs(together), strict=True):
        np.testing.assert_array_equal(log_probs, expected)


def test_an_interrupted_run_keeps_what_it_finished(tmp_path: Path) -> None:
    prediction_cache.prepare_folder(tmp_path, {"model": "x"})
    append(tmp_path, 2, 0, vocab_size=0)
    with (tmp_path / PART).open("ab") as part:
        part.write('{"utterance": 1, "audio_filepath": "1.wav", "text": "è'.encode()[:-1])  # cut within a letter
    prediction_cache.prepare_folder(tmp_path, {"model": "x"})
    assert predictions.read_predictions(tmp_path) is None
    assert partial_predictions.read_partial(tmp_path, ROWS) == {2: (ROWS[2], None), 0: (ROWS[0], None)}
    append(tmp_path, 1, vocab_size=0)
    assert partial_predictions.read_partial(tmp_path, ROWS) == {number: (row, None) for number, row in enumerate(ROWS)}
    predictions.finish_predictions(tmp_path, ROWS)
    assert predictions.read_predictions(tmp_path) == ROWS
    assert not (tmp_path / LOG_PROBS).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inputs.json", PREDICTIONS]


def test_log_probabilities_come_back_in_manifest_order(tmp_path: Path) -> None:
    append(tmp_path, 2, 0, 1)
    assert partial_predictions.read_partial(tmp_path, ROWS) == {
        2: (ROWS[2], (0, 2)),
        0: (ROWS[0], (2, 3)),
        1: (ROWS[1], (5, 1)),
    }
    finish(tmp_path)
    assert predictions.read_predictions(tmp_path) == ROWS
    for found, own in zip(predictions.read_log_probs(tmp_path), OWN, strict=True):
        np.testing.assert_array_equal(found, own)


@pytest.mark.parametrize("bytes_more", [1, 16, 19, 33])  # of 16 a frame
@pytest.mark.parametrize("text_more", [b"", b'{"utterance": 0, "frames": [2, 3], "audio_filepath": "0.w'])
def test_what_was_cut_short_is_made_anew_and_nothing_is_displaced(
    tmp_path: Path, bytes_more: int, text_more: bytes
) -> None:
    append(tmp_path, 2)
    for name, more in ((LOG_PROBS, OWN[0].tobytes()[:bytes_more]), (PART, text_more)):
        with (tmp_path / name).open("ab") as file:
            file.write(more)
    assert partial_predictions.read_partial(tmp_path, ROWS, 4) == {2: (ROWS[2], (0, 2))}
    append(tmp_path, 0)
    append(tmp_path, 1)
    assert (tmp_path / LOG_PROBS).stat().st_size == 16 * (2 + bytes_more // 16 + 3 + 1)
    finish(tmp_path)
    assert predictions.read_predictions(tmp_path) == ROWS
    for found, own in zip(predictions.read_log_probs(tmp_path), OWN, strict=True):
        np.testing.assert_array_equal(found, own)


def test_a_prediction_without_log_probabilities_is_not_done_where_they_are_needed(tmp_path: Path) -> None:
    append(tmp_path, 0, vocab_size=0)
    append(tmp_path, 1)
    append(tmp_path, 1, vocab_size=0)  # a later run that did not need them
    assert partial_predictions.read_partial(tmp_path, ROWS, 4) == {1: (ROWS[1], (0, 1))}
    assert set(partial_predictions.read_partial(tmp_path, ROWS)) == {0, 1}


@pytest.mark.parametrize("left", ["cut off", "zeros", "gone"], ids=str)
def test_log_probabilities_that_a_part_has_lost_are_made_again(tmp_path: Path, left: str) -> None:
    """As a disk may leave them without power: those of the second utterance are not what was written."""
    append(tmp_path, 2, 0)
    path, whole = tmp_path / LOG_PROBS, (tmp_path / LOG_PROBS).read_bytes()
    path.write_bytes({"cut off": whole[:60], "zeros": whole[:32] + bytes(len(whole) - 32), "gone": b""}[left])
    if left == "gone":
        path.unlink()
    kept = partial_predictions.read_partial(tmp_path, ROWS, 4)
    assert kept == ({} if left == "gone" else {2: (ROWS[2], (0, 2))})
    append(tmp_path, *({0, 1, 2} - kept.keys()))
    finish(tmp_path)
    for found, own in zip(predictions.read_log_probs(tmp_path), OWN, strict=True):
        np.testing.assert_array_equal(found, own)


@pytest.mark.parametrize("left", [0, 7, 16 * 5, 16 * 6 - 1])
def test_damaged_log_probabilities_are_one_sentence(tmp_path: Path, left: int) -> None:
    append(tmp_path, 2, 0, 1)
    finish(tmp_path)
    (tmp_path / LOG_PROBS).write_bytes((tmp_path / LOG_PROBS).read_bytes()[:left])
    with pytest.raises(UserError, match=rf"{LOG_PROBS} is damaged \(.*\); delete {tmp_path} and run") as refused:
        predictions.read_log_probs(tmp_path)
    assert "\n" not in str(refused.value)


def test_other_inputs_start_over(tmp_path: Path) -> None:
    prediction_cache.prepare_folder(tmp_path, {"model": "x"})
    append(tmp_path, 0, 1, 2)
    finish(tmp_path)
    prediction_cache.prepare_folder(tmp_path, {"model": "y"})
    assert predictions.read_predictions(tmp_path) is None
    assert partial_predictions.read_partial(tmp_path, ROWS) == {}
    assert [path.name for path in tmp_path.iterdir()] == [INPUTS]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    prediction_cache.prepare_folder(tmp_path, {})
    (tmp_path / PREDICTIONS).write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"predictions.jsonl is damaged .* delete it"):
        predictions.read_predictions(tmp_path)


MADE_FROM = {"sha256": {"model": "x", "code": "1"}, "audio": "a"}


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """A folder of finished predictions with all files that there can be."""
    prediction_cache.prepare_folder(tmp_path, MADE_FROM)
    write_json(tmp_path / VOCABULARY, ["a", "è", " "])
    write_json(tmp_path / DECODER, {"settings": {}})
    append(tmp_path, 2, 0, 1)
    write_json(tmp_path / TIMING, {"seconds": 1.5, "audio_seconds": 3.0, "device": "cpu", "by": "torch", "threads": 1})
    finish(tmp_path)
    assert taken(tmp_path) == (ROWS, "")
    return tmp_path


def taken(folder: Path, with_log_probs: bool = True, **changed: Any) -> tuple[list[Prediction] | None, str]:
    output, reason = prediction_cache.load_cached(folder, MADE_FROM | changed, ROWS, with_log_probs)
    return output and output.predictions, reason


@pytest.mark.parametrize("name", [PREDICTIONS, VOCABULARY, DECODER, LOG_PROBS_INDEX])
def test_a_file_that_was_changed_is_not_used(complete: Path, name: str) -> None:
    """Not one of the same size either; inference.json alone bears no figure of the results."""
    whole = (complete / name).read_bytes()
    for changed in (whole[::-1], whole[:-1], b""):
        (complete / name).write_bytes(changed)
        assert taken(complete) == (None, f"{name} is not what was written there")
    (complete / name).unlink()
    assert taken(complete) == (None, f"{name} is not what was written there")
    (complete / TIMING).write_bytes(b"")
    (complete / name).write_bytes(whole)
    assert taken(complete) == (ROWS, "")


def test_log_probabilities_are_compared_where_they_are_needed(complete: Path) -> None:
    path, whole = complete / LOG_PROBS, (complete / LOG_PROBS).read_bytes()
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(UserError, match=f"{LOG_PROBS} is damaged .* delete"):
        predictions.read_log_probs(complete)
    path.write_bytes(whole[:-1])
    assert taken(complete) == (None, f"{LOG_PROBS} is not what was written there")
    path.unlink()
    assert taken(complete, with_log_probs=False) == (ROWS, ""), "deleted to save room"


def test_the_reason_why_predictions_are_made_again_is_told(complete: Path) -> None:
    changed = {"sha256": {"model": "y", "code": "1"}, "audio": "b"}
    assert taken(complete, **changed) == (None, "different now: audio, sha256.model")
    others = [replace(row, text="vero") for row in ROWS]
    assert prediction_cache.load_cached(complete, MADE_FROM, others) == (None, f"{PREDICTIONS} is of other utterances")
    assert prediction_cache.load_cached(complete / "none", MADE_FROM, ROWS) == (None, "")
    prediction_cache.prepare_folder(complete, MADE_FROM)
    assert taken(complete) == (None, ""), "complete ones that are no use are not gone on with"
    assert partial_predictions.read_partial(complete, ROWS) == {}


def test_what_a_part_says_of_another_utterance_is_not_taken(tmp_path: Path) -> None:
    append(tmp_path, 2, 0)
    others = [replace(ROWS[0], text="falso"), ROWS[1], ROWS[2]]
    assert partial_predictions.read_partial(tmp_path, others) == {2: (ROWS[2], (0, 2))}
    assert set(partial_predictions.read_partial(tmp_path, ROWS[:1])) == {0}


def test_a_wav_that_is_touched_changes_the_state_of_the_audio(tmp_path: Path) -> None:
    utterances = [Utterance(f"{n}.wav", 1.0, "sì") for n in range(3)]
    for utterance in utterances:
        (tmp_path / utterance.audio_filepath).write_bytes(b"RIFF")
    before = prediction_cache.audio_state(utterances, tmp_path)
    assert prediction_cache.audio_state(utterances[::-1], tmp_path) == before
    (moved := tmp_path / "moved").mkdir()
    for utterance in utterances:
        (tmp_path / utterance.audio_filepath).rename(moved / utterance.audio_filepath)
    assert prediction_cache.audio_state(utterances, moved) == before, "wherever it lies"
    (moved / "1.wav").write_bytes(b"RIF")
    cut = prediction_cache.audio_state(utterances, moved)
    os.utime(moved / "2.wav", (0, 0))
    assert len({before, cut, prediction_cache.audio_state(utterances, moved)}) == 3
    packed = [replace(u, shard_id=0, shard_offset=1024 * n) for n, u in enumerate(utterances)]
    (moved / "audio_0.tar").write_bytes(b"tar")
    whole = prediction_cache.audio_state(packed, moved)
    (moved / "audio_0.tar").write_bytes(b"ta")
    assert prediction_cache.audio_state(packed, moved) != whole


def test_the_code_that_predictions_follow_from_is_all_that_is_imported() -> None:
    """By what Python itself loads with it."""
    import subprocess
    import sys

    ours = "print(*(n[11:] for n in sys.modules if n.startswith('finetuning.')))"
    path = str(ROOT / "Fine_tuning")
    script = f"import sys; sys.path.insert(0, {path!r}); import finetuning.decoding.weight_search; {ours}"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    folder = ROOT / "Fine_tuning" / "finetuning"
    loaded = {name for name in loaded if folder.joinpath(*name.split(".")).with_suffix(".py").is_file()}
    seen, ahead = set(), ["decoding.weight_search"]
    while ahead:
        name = ahead.pop()
        path = folder.joinpath(*name.split(".")).with_suffix(".py")
        if name not in seen and path.is_file():
            seen.add(name)
            ahead += files._imported_modules(path.read_bytes())
    assert {"decoding.weight_search", "decoding.beam_search", "decoding.greedy", "files"} <= loaded <= seen
    assert (
        files.code_fingerprint("decoding.weight_search")
        != files.code_fingerprint("decoding.beam_search")
        == files.code_fingerprint("decoding.beam_search")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [PREDICTIONS, f"{PREDICTIONS}.part", VOCABULARY, LOG_PROBS_INDEX, INPUTS, TIMING])
def test_whatever_a_file_holds_it_is_one_sentence_or_made_again(complete: Path, name: str) -> None:
    write_json(complete / TIMING, {"seconds": 1.5, "audio_seconds": 3.0, "device": "cpu", "by": "torch", "threads": 1})
    frames = (complete / LOG_PROBS).read_bytes()
    append(complete, 2, 0, 1)
    (complete / LOG_PROBS).write_bytes(frames)
    path, whole = complete / name, (complete / name).read_bytes()

    @given(mutated(whole))
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    def read_all(changed: bytes) -> None:
        path.write_bytes(changed)
        for reader in (predictions.read_predictions, predictions.read_vocabulary, predictions.read_log_probs):
            try:
                reader(complete)
            except UserError as error:
                assert "delete" in str(error)
        measured = predictions.read_timing(complete)
        assert results_table.format_real_time_factor("m", measured).startswith("m ")
        found, why = taken(complete)
        assert found == ROWS if found else why or name == INPUTS
        assert partial_predictions.read_partial(complete, ROWS, 4).keys() <= {0, 1, 2}
        for prediction, _ in partial_predictions.read_partial(complete, ROWS, 4).values():
            json.dumps(vars(prediction), allow_nan=False).encode()

    read_all()
