"""Calibrations of confidence: how they are fitted, checked, and read again."""

import json
from pathlib import Path

import numpy as np
import pytest

from finetuning.data.manifest import Utterance
from finetuning.decoding.confidence import Calibration, calibration_path, read_calibration
from finetuning.errors import UserError
from finetuning.evaluation.calibration import is_needed
from finetuning.files import sha256

FIT = {"slope": 0.5, "offset": 1.0}


def write(folder: Path, **changes: object) -> tuple[Path, Path]:
    """A model and a decoder.json, and the calibrations of both."""
    model, decoder = folder / "a.nemo", folder / "decoder.json"
    model.write_bytes(b"model")
    decoder.write_text("{}")
    record = {"model": sha256(model), "greedy": FIT, "lm": {**FIT, "slope": 2.0, "decoder": sha256(decoder)}}
    calibration_path(model).write_text(json.dumps(record | changes))
    return model, decoder


def test_a_calibration_is_of_one_model_and_one_decoder(tmp_path: Path) -> None:
    model, decoder = write(tmp_path)
    assert read_calibration(model) == Calibration(0.5, 1.0)
    assert read_calibration(model, decoder) == Calibration(2.0, 1.0)
    decoder.write_text("{ }")
    assert read_calibration(model, decoder) is None, "tuned anew since"
    model.write_bytes(b"trained again")
    assert read_calibration(model) is None
    calibration_path(model).unlink()
    assert read_calibration(model) is None


def test_a_calibration_is_made_again_where_it_is_missing_or_damaged_and_can_be(tmp_path: Path) -> None:
    model, decoder = write(tmp_path)
    validation = [Utterance(f"{number}.wav", 1.0, "una o due parole") for number in range(13)]
    assert not is_needed(model, decoder, validation)
    decoder.write_text("{ }")
    assert is_needed(model, decoder, validation) and not is_needed(model, decoder, validation[:-1])
    for damage in ({"greedy": []}, {"lm": None}):
        assert is_needed(*write(tmp_path, **damage), validation)
    calibration_path(model).unlink()
    assert is_needed(model, decoder, validation)


@pytest.mark.parametrize(
    "greedy", [[], {"slope": "1", "offset": 0}, {"slope": 1}, {"slope": float("nan"), "offset": 0}]
)
def test_a_damaged_calibration_is_one_sentence(tmp_path: Path, greedy: object) -> None:
    model, _ = write(tmp_path, greedy=greedy)
    with pytest.raises(UserError, match=r"a\.confidence\.json is no calibration .*; delete it"):
        read_calibration(model)


def test_probabilities_of_0_and_1_stay_probabilities() -> None:
    assert Calibration(1.0, 0.0).of(0.25) == pytest.approx(0.25)
    for probability in (0.0, 1.0):
        assert 0 <= Calibration(1e6, 0.0).of(probability) <= 1
    assert np.isclose(Calibration(1.0, 0.0).of(1.0), 1, atol=1e-5)
