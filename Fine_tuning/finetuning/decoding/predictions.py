"""What a model wrote for each utterance of a manifest: the files of a finished run, one folder a model.

`predictions.jsonl` (in manifest order), `inputs.json` (what they were made from and, once they are complete, size and
SHA-256 of each file), `vocabulary.json` (the texts of the model's outputs, in their order) and
`inference.json` (how long it took, and on what). Where log-probabilities are saved, `log_probabilities.f32` holds those
of all utterances, frame after frame, and `log_probabilities.json` which frames are whose.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.errors import UserError
from finetuning.files import atomic_open, atomic_path, parse_json, read_json, sha256, write_json
from finetuning.model.vocabulary import Vocabulary

PREDICTIONS, INPUTS, VOCABULARY, TIMING = "predictions.jsonl", "inputs.json", "vocabulary.json", "inference.json"
LOG_PROBS, LOG_PROBS_INDEX = "log_probabilities.f32", "log_probabilities.json"
DECODER = "decoder.json"  # the settings of the beam search, where there was one
WRITTEN = "written"  # in inputs.json: bytes and SHA-256 of each file, once all are complete
MAX_NUMBER = 1e12  # seconds and nats beyond it are damage
Span = tuple[int, int]  # first frame of an utterance in LOG_PROBS and number of frames


@dataclass(frozen=True)
class Prediction:
    """One line of predictions.jsonl; NeMo's field names."""

    audio_filepath: str  # as in the manifest
    text: str  # the reference: the manifest's own text
    pred_text: str
    loss: float | None  # nats; CTC negative log-likelihood of the reference; None: not finite
    duration: float  # seconds


@dataclass(frozen=True)
class ModelOutput:
    """What a model wrote for a whole manifest, in manifest order."""

    predictions: list[Prediction]
    vocabulary: Vocabulary | None  # None: not known, of another system
    timing: dict[str, Any] | None  # as in inference.json; None: not known


def read_predictions(folder: Path) -> list[Prediction] | None:
    """Return the complete predictions in manifest order, None where there are none yet.

    Raise UserError for a damaged file.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        return None
    try:
        return [parse_prediction(parse_json(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run evaluate.py again") from error


def parse_prediction(fields: Any) -> Prediction:
    """Return the prediction with the fields of a line; raise TypeError or ValueError where they do not fit."""
    prediction = Prediction(**fields)
    if not all(isinstance(text, str) for text in (prediction.audio_filepath, prediction.text, prediction.pred_text)):
        raise TypeError("audio_filepath, text and pred_text must be strings")
    if not _is_number(prediction.duration) or not (prediction.loss is None or _is_number(prediction.loss)):
        raise TypeError("duration and loss must be numbers")
    return prediction


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def read_vocabulary(folder: Path) -> Vocabulary:
    """Return what the model writes, from vocabulary.json; raise UserError where it is damaged or missing."""
    try:
        return Vocabulary.from_json(_json_or_none(folder / VOCABULARY))
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / VOCABULARY} is damaged; delete it and run the same command again") from error


def read_timing(folder: Path) -> dict[str, Any] | None:
    """Return inference.json: seconds, audio_seconds, device, by, threads; None where it is damaged or missing."""
    timing = _json_or_none(folder / TIMING)
    try:
        seconds, audio_seconds = timing["seconds"], timing["audio_seconds"]
        is_valid = all(isinstance(timing[key], str) for key in ("device", "by")) and _is_number(timing["threads"])
        is_valid &= min(seconds, audio_seconds) >= 0 and _is_number(seconds) and _is_number(audio_seconds)
        return timing if is_valid else None
    except (TypeError, KeyError):
        return None


def finish_predictions(
    folder: Path, predictions: Iterable[Prediction], spans: list[Span] | None = None, vocab_size: int = 0
) -> None:
    """Write predictions.jsonl, then size and SHA-256 of all files into inputs.json, and remove the partial file.

    `spans`: the places of the log-probabilities, in the order of `predictions`; `vocab_size`: their columns, vocabulary
    and blank.
    """
    if spans is not None:
        write_json(folder / LOG_PROBS_INDEX, {"columns": vocab_size, "frames": spans})
    with atomic_open(folder / PREDICTIONS) as lines:
        for prediction in predictions:
            lines.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
    files = [folder / name for name in (PREDICTIONS, VOCABULARY, DECODER, LOG_PROBS_INDEX, LOG_PROBS)]
    written = {file.name: [file.stat().st_size, sha256(file)] for file in files if file.is_file()}
    write_json(folder / INPUTS, {**read_inputs(folder), WRITTEN: written})
    partial_path(folder).unlink(missing_ok=True)


def sort_log_probs(
    folder: Path, finished: dict[int, tuple[Prediction, Span]], order: Sequence[int], vocab_size: int
) -> dict[int, tuple[Prediction, Span]]:
    """Return predictions and places of log-probabilities after these were written in this `order` of utterances.

    It is that of one process that is never interrupted: others leave them in another order, or frames of nobody.
    """
    starts = np.cumsum([0, *(finished[number][1][1] for number in order)]).tolist()
    places = {number: (start, finished[number][1][1]) for number, start in zip(order, starts, strict=False)}
    log_probs = map_log_probs(folder, vocab_size)  # (frames of all, V + 1)
    if len(log_probs) > starts[-1] or any(finished[number][1] != place for number, place in places.items()):
        with atomic_path(folder / LOG_PROBS) as temporary, temporary.open("wb") as file:
            for number in order:
                file.write(utterance_log_probs(log_probs, finished[number][1]).tobytes())
    return {number: (finished[number][0], place) for number, place in places.items()}


def read_log_probs(folder: Path) -> list[np.ndarray]:
    """Return the log-probabilities of each utterance, shape (T, vocabulary + 1), in manifest order.

    They are mapped: what is not looked at is not read. Raise UserError where they are not those that were written.
    """
    try:
        if not all(
            is_as_written(folder / name, read_inputs(folder)[WRITTEN], whole=True)
            for name in (LOG_PROBS_INDEX, LOG_PROBS)
        ):
            raise ValueError("it is not what was written there")
        index = read_json(folder / LOG_PROBS_INDEX)
        log_probs = map_log_probs(folder, index["columns"])
        return [utterance_log_probs(log_probs, span) for span in index["frames"]]
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(
            f"{folder / LOG_PROBS} is damaged ({error}); delete {folder} and run the same command again"
        ) from error


def map_log_probs(folder: Path, vocab_size: int) -> np.ndarray:
    """Return the mapped file of log-probabilities, shape (T, vocab_size), without an incomplete frame at its end."""
    frames = (folder / LOG_PROBS).stat().st_size // (4 * vocab_size) if (folder / LOG_PROBS).is_file() else 0
    shape = (frames, vocab_size)
    return np.memmap(folder / LOG_PROBS, np.float32, "r", shape=shape) if frames else np.zeros(shape, np.float32)


def utterance_log_probs(log_probs: np.ndarray, span: Any) -> np.ndarray:
    """Return the rows of one utterance, shape (T, vocab_size); raise ValueError where they are beyond the end."""
    start, count = span
    if not (isinstance(start, int) and isinstance(count, int) and 0 <= start <= start + count <= len(log_probs)):
        raise ValueError("it is shorter than its index says")
    return log_probs[start : start + count]


def read_inputs(folder: Path) -> dict[str, Any]:
    """Return inputs.json; an empty dictionary where it is damaged or missing: then no other file is trusted."""
    inputs = _json_or_none(folder / INPUTS)
    return inputs if isinstance(inputs, dict) else {}


def _json_or_none(path: Path) -> Any:
    """Return the content of a JSON file, None where it is damaged or missing."""
    try:
        return read_json(path)
    except ValueError:
        return None


def is_as_written(path: Path, written: Any, whole: bool = False) -> bool:
    """Return whether `path` has the size and SHA-256 that `written` records.

    Of the log-probabilities, which may be gigabytes, the SHA-256 is compared only when `whole`.
    """
    try:
        size, digest = written[path.name]
        if path.stat().st_size != size:
            return False
        return (path.name == LOG_PROBS and not whole) or sha256(path) == digest
    except (OSError, KeyError, TypeError, ValueError):
        return False


def partial_path(folder: Path) -> Path:
    """Return the file of the predictions of a run that has not ended."""
    return folder / f"{PREDICTIONS}.part"
