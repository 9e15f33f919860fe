from pathlib import Path

import numpy as np
import pytest
from finetuning import predictions
from finetuning.errors import UserError
from finetuning.predictions import FRAMES, NAME, Prediction

ROWS = [Prediction(f"{n}.wav", "è vero", "e vero", None if n == 1 else n + 0.5, 1.0) for n in range(3)]
OWN = [np.random.default_rng(n).normal(size=(count, 4)).astype(np.float32) for n, count in enumerate((3, 1, 2))]
PART = f"{NAME}.part"


def append(folder: Path, *numbers: int, columns: int = 4) -> None:
    """What a run does that is stopped after these utterances."""
    with predictions.appending(folder, columns) as part:
        for number in numbers:
            part.append(number, ROWS[number], OWN[number])


def finish(folder: Path) -> None:
    """The end of a run that has all utterances."""
    done = predictions.read_part(folder, 4)
    found, spans = zip(*(done[number] for number in range(3)), strict=True)
    predictions.finish(folder, found, spans, 4)


def test_an_interrupted_run_keeps_what_it_finished(tmp_path: Path) -> None:
    predictions.prepare(tmp_path, {"model": "x"})
    append(tmp_path, 2, 0, columns=0)
    with (tmp_path / PART).open("ab") as part:
        part.write('{"utterance": 1, "audio_filepath": "1.wav", "text": "è'.encode()[:-1])  # cut within a letter
    predictions.prepare(tmp_path, {"model": "x"})
    assert predictions.read(tmp_path) is None
    assert predictions.read_part(tmp_path) == {2: (ROWS[2], None), 0: (ROWS[0], None)}
    append(tmp_path, 1, columns=0)
    assert predictions.read_part(tmp_path) == {number: (row, None) for number, row in enumerate(ROWS)}
    predictions.finish(tmp_path, ROWS)
    assert predictions.read(tmp_path) == ROWS
    assert not predictions.has_frames(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inputs.json", NAME]


def test_log_probabilities_come_back_in_manifest_order(tmp_path: Path) -> None:
    append(tmp_path, 2, 0, 1)
    assert predictions.read_part(tmp_path) == {2: (ROWS[2], (0, 2)), 0: (ROWS[0], (2, 3)), 1: (ROWS[1], (5, 1))}
    finish(tmp_path)
    assert predictions.has_frames(tmp_path) and predictions.read(tmp_path) == ROWS
    for found, own in zip(predictions.read_frames(tmp_path), OWN, strict=True):
        np.testing.assert_array_equal(found, own)


@pytest.mark.parametrize("bytes_more", [1, 16, 19, 33])  # of 16 a frame
@pytest.mark.parametrize("text_more", [b"", b'{"utterance": 0, "frames": [2, 3], "audio_filepath": "0.w'])
def test_what_was_cut_short_is_made_anew_and_nothing_is_displaced(
    tmp_path: Path, bytes_more: int, text_more: bytes
) -> None:
    append(tmp_path, 2)
    for name, more in ((FRAMES, OWN[0].tobytes()[:bytes_more]), (PART, text_more)):
        with (tmp_path / name).open("ab") as file:
            file.write(more)
    assert predictions.read_part(tmp_path, 4) == {2: (ROWS[2], (0, 2))}
    append(tmp_path, 0)
    append(tmp_path, 1)
    assert (tmp_path / FRAMES).stat().st_size == 16 * (2 + bytes_more // 16 + 3 + 1)
    finish(tmp_path)
    assert predictions.read(tmp_path) == ROWS
    for found, own in zip(predictions.read_frames(tmp_path), OWN, strict=True):
        np.testing.assert_array_equal(found, own)


def test_a_prediction_without_log_probabilities_is_not_done_where_they_are_needed(tmp_path: Path) -> None:
    append(tmp_path, 0, columns=0)
    append(tmp_path, 1)
    append(tmp_path, 1, columns=0)  # a later run that did not need them
    assert predictions.read_part(tmp_path, 4) == {1: (ROWS[1], (0, 1))}
    assert set(predictions.read_part(tmp_path)) == {0, 1}


def test_log_probabilities_that_a_part_has_lost_are_not_taken_for_others(tmp_path: Path) -> None:
    append(tmp_path, 2, 0)
    (tmp_path / FRAMES).write_bytes((tmp_path / FRAMES).read_bytes()[:60])  # as a disk may leave it without power
    with pytest.raises(UserError, match=f"{FRAMES} is damaged or gone; delete {tmp_path} and run") as refused:
        predictions.read_part(tmp_path, 4)
    assert "\n" not in str(refused.value)
    (tmp_path / FRAMES).unlink()
    with pytest.raises(UserError, match="damaged or gone"):
        predictions.read_part(tmp_path, 4)


@pytest.mark.parametrize("left", [0, 7, 16 * 5, 16 * 6 - 1])
def test_damaged_log_probabilities_are_one_sentence(tmp_path: Path, left: int) -> None:
    append(tmp_path, 2, 0, 1)
    finish(tmp_path)
    (tmp_path / FRAMES).write_bytes((tmp_path / FRAMES).read_bytes()[:left])
    with pytest.raises(UserError, match=rf"{FRAMES} is damaged \(.*\); delete {tmp_path} and run") as refused:
        predictions.read_frames(tmp_path)
    assert "\n" not in str(refused.value)


def test_other_inputs_start_over(tmp_path: Path) -> None:
    predictions.prepare(tmp_path, {"model": "x"})
    append(tmp_path, 0, 1, 2)
    finish(tmp_path)
    predictions.prepare(tmp_path, {"model": "x"})
    assert predictions.read(tmp_path) == ROWS and predictions.has_frames(tmp_path)
    predictions.prepare(tmp_path, {"model": "y"})
    assert predictions.read(tmp_path) is None
    assert predictions.read_part(tmp_path) == {}
    assert not predictions.has_frames(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    predictions.prepare(tmp_path, {})
    (tmp_path / NAME).write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"predictions.jsonl is damaged .* delete it"):
        predictions.read(tmp_path)
