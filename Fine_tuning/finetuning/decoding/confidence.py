"""How sure a word is: the probability of its weakest token, calibrated to how often such words are right.

Platt's scaling (1999): sigmoid(slope · logit(p) + offset), fitted on the validation set. It lies beside the model, with
one fit for each decoder, for a language model makes other errors.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from finetuning.errors import UserError
from finetuning.files import parse_json, sha256

SUFFIX = ".confidence.json"  # in place of the model's .nemo
GREEDY, LM = "greedy", "lm"
CLIP = 1e-6  # probabilities nearer to 0 or 1 are rounding


@dataclass(frozen=True)
class Calibration:
    """What a probability of a model means."""

    slope: float
    offset: float

    def of(self, probability: float) -> float:
        """Return how probable it is that a word is right, of which the model says `probability`."""
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, self.slope * logit(probability) + self.offset))))


def logit(probability: float) -> float:
    """Return ln(p / (1 - p)), finite."""
    clipped = min(max(probability, CLIP), 1 - CLIP)
    return math.log(clipped / (1 - clipped))


def calibration_path(model: Path) -> Path:
    """Return the file of a model's calibration, there or not."""
    return model.with_suffix(SUFFIX)


def read_calibration(model: Path, decoder: Path | None = None) -> Calibration | None:
    """Return the calibration of a model, decoded greedily or as `decoder` (decoder.json) says.

    Return None where there is none of this very model and decoder; raise UserError where the file is damaged.
    """
    path = calibration_path(model)
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
        fit = record.get(LM if decoder else GREEDY) if record["model"] == sha256(model) else None
        if fit is None or (decoder and fit["decoder"] != sha256(decoder)):
            return None
        slope, offset = fit["slope"], fit["offset"]
        if not all(type(value) in (int, float) and math.isfinite(value) for value in (slope, offset)):
            raise TypeError("slope and offset must be numbers")
        return Calibration(slope, offset)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no calibration ({error}); delete it, and evaluate.py evaluation.decoder=lm makes it again"
        ) from error
