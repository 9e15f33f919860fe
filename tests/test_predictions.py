from pathlib import Path

import pytest
from finetuning import predictions
from finetuning.errors import UserError
from finetuning.predictions import Prediction

ROWS = [Prediction(f"{n}.wav", "è vero", "e vero", None if n == 1 else n + 0.5, 1.0) for n in range(3)]


def test_an_interrupted_run_keeps_what_it_finished(tmp_path: Path) -> None:
    predictions.prepare(tmp_path, {"model": "x"})
    with predictions.appending(tmp_path) as part:
        for number in (2, 0):
            predictions.append(part, number, ROWS[number])
    with (tmp_path / "predictions.jsonl.part").open("ab") as part:
        part.write('{"utterance": 1, "audio_filepath": "1.wav", "text": "è'.encode()[:-1])  # cut within a letter
    predictions.prepare(tmp_path, {"model": "x"})
    assert predictions.read(tmp_path) is None
    assert predictions.read_part(tmp_path) == {2: ROWS[2], 0: ROWS[0]}
    with predictions.appending(tmp_path) as part:
        predictions.append(part, 1, ROWS[1])
    assert predictions.read_part(tmp_path) == dict(enumerate(ROWS))
    predictions.finish(tmp_path, ROWS)
    assert predictions.read(tmp_path) == ROWS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inputs.json", "predictions.jsonl"]


def test_other_inputs_start_over(tmp_path: Path) -> None:
    predictions.prepare(tmp_path, {"model": "x"})
    predictions.finish(tmp_path, ROWS)
    predictions.prepare(tmp_path, {"model": "x"})
    assert predictions.read(tmp_path) == ROWS
    predictions.prepare(tmp_path, {"model": "y"})
    assert predictions.read(tmp_path) is None
    assert predictions.read_part(tmp_path) == {}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    predictions.prepare(tmp_path, {})
    (tmp_path / "predictions.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"predictions.jsonl is damaged .* delete it"):
        predictions.read(tmp_path)
