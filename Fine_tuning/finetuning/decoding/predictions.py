"""What a model wrote for each utterance: kept one by one, so that an interrupted run goes on where it stopped.

In the folder of a model: `predictions.jsonl` (complete, in manifest order), `predictions.jsonl.part` (as far as it got,
in the order of inference, each line with its utterance's number), `inputs.json` (what they were made from and, once
they are complete, size and SHA-256 of each file), `letters.json` (what the model writes) and `inference.json` (how long
it took, and on what). Where they are to be kept, `log_probabilities.f32` holds the log-probabilities of all utterances,
frame after frame, and `log_probabilities.json` which frames are whose.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.data.manifest import Utterance, shard_path
from finetuning.errors import UserError
from finetuning.files import (
    atomic_open,
    changed_keys,
    ensure_writable_dir,
    parse_json,
    read_json,
    remove_stale_temp_files,
    sha256,
    sha256_of,
    write_json,
)

PREDICTIONS, INPUTS, VOCABULARY, TIMING = "predictions.jsonl", "inputs.json", "letters.json", "inference.json"
LOG_PROBS, LOG_PROBS_INDEX = "log_probabilities.f32", "log_probabilities.json"
DECODER = "decoder.json"  # of the beam search, where there was one
WRITTEN = "written"  # in inputs.json: bytes and SHA-256 of each file, once all are complete
MAX_NUMBER = 1e12  # larger seconds and nats are none
Span = tuple[int, int]  # first frame of an utterance in FRAMES and how many there are


@dataclass(frozen=True)
class Prediction:
    """One line of predictions.jsonl; NeMo's field names."""

    audio_filepath: str  # as in the manifest
    text: str  # the reference: the manifest's own text
    pred_text: str
    loss: float | None  # nats; CTC negative log-likelihood of the reference; None: not finite
    duration: float  # seconds


def prepare_folder(folder: Path, inputs: dict[str, Any]) -> None:
    """Make `folder` ready for predictions made from `inputs`: those that an interrupted run has begun from the same
    stay, all others are removed.
    """
    remove_stale_temp_files(ensure_writable_dir(folder))
    if _read_inputs(folder) != inputs:
        discard_predictions(folder)
        write_json(folder / INPUTS, inputs)


def discard_predictions(folder: Path) -> None:
    """Remove the predictions in `folder`, complete or begun, and their log-probabilities."""
    for name in (INPUTS, PREDICTIONS, _partial_path(folder).name, LOG_PROBS, LOG_PROBS_INDEX):
        (folder / name).unlink(missing_ok=True)


def load_cached(
    folder: Path, inputs: dict[str, Any], utterances: Sequence[Utterance], with_frames: bool = False
) -> tuple[list[Prediction] | None, str]:
    """The complete predictions of `utterances` made from `inputs`, or None and why those that are there are no use.

    The reason is empty where none are complete. `with_frames`: their log-probabilities are needed too. All files are
    compared with what was written, of the log-probabilities only the size: `read_frames` compares the rest.
    """
    before = _read_inputs(folder)
    written = before.pop(WRITTEN, None)
    if changed := sorted(changed_keys(before, inputs)):
        return None, f"different now: {', '.join(changed)}" if before else ""
    if written is None:
        return None, ""
    if not isinstance(written, dict):
        return None, f"{INPUTS} is damaged"
    if with_frames and LOG_PROBS not in written:
        return None, "their log-probabilities were not kept"
    needed = (
        {PREDICTIONS, VOCABULARY}
        | (written.keys() & {DECODER})
        | ({LOG_PROBS, LOG_PROBS_INDEX} if with_frames else set())
    )
    for name in sorted(needed):
        if not _is_as_written(folder / name, written):
            return None, f"{name} is not what was written there"
    found = read_predictions(folder)
    if found is None or list(map(_utterance, found)) != list(map(_utterance, utterances)):
        return None, f"{PREDICTIONS} is of other utterances"
    return found, ""


def _utterance(one: Prediction | Utterance) -> tuple[str, str, float]:
    return one.audio_filepath, one.text, one.duration


def _read_inputs(folder: Path) -> dict[str, Any]:
    """Content of inputs.json; empty where there is none that can be understood: then nothing is known of the rest."""
    found = _json(folder / INPUTS)
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> Any:
    """Content of a JSON file; None where there is none that can be understood."""
    try:
        return read_json(path)
    except ValueError:
        return None


def _is_as_written(path: Path, written: Any, whole: bool = False) -> bool:
    """Whether `path` has the size, and unless it is large or `whole` is asked for the SHA-256, that were written."""
    try:
        size, digest = written[path.name]
        if path.stat().st_size != size:
            return False
        return (path.name == LOG_PROBS and not whole) or sha256(path) == digest
    except (OSError, KeyError, TypeError, ValueError):
        return False


def audio_state(utterances: Iterable[Utterance], folder: Path) -> str:
    """A SHA-256 of name, size and time of change of all wavs, or of the shards that they lie in.

    `folder` is that of their manifest. Nothing is read: a test set may have tens of thousands.
    """
    names = {u.audio_filepath if u.shard_id is None else shard_path(folder, u.shard_id).name for u in utterances}
    states = [(name, (folder / name).stat()) for name in names]
    return sha256_of(sorted([name, state.st_size, state.st_mtime_ns] for name, state in states))


def read_predictions(folder: Path) -> list[Prediction] | None:
    """The complete predictions in manifest order, or None where there are none yet; UserError for a damaged file."""
    path = folder / PREDICTIONS
    if not path.is_file():
        return None
    try:
        return [_prediction(parse_json(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run evaluate.py again") from error


def _prediction(fields: Any) -> Prediction:
    """Of a line's fields; TypeError or ValueError where they are of another kind."""
    found = Prediction(**fields)
    if not all(isinstance(text, str) for text in (found.audio_filepath, found.text, found.pred_text)):
        raise TypeError("audio_filepath, text and pred_text must be strings")
    if not _is_number(found.duration) or not (found.loss is None or _is_number(found.loss)):
        raise TypeError("duration and loss must be numbers")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def read_vocabulary(folder: Path) -> list[str]:
    """What the model writes, of letters.json; UserError where that says no such thing."""
    found = _json(folder / VOCABULARY)
    if not isinstance(found, list) or not all(isinstance(letter, str) for letter in found):
        raise UserError(f"{folder / VOCABULARY} is damaged; delete it and run the same command again")
    return found


def read_partial(
    folder: Path, utterances: Sequence[Utterance | Prediction], columns: int = 0
) -> dict[int, tuple[Prediction, Span | None]]:
    """What an interrupted run finished of `utterances`, by their numbers, and where its log-probabilities are.

    A line cut short is as good as none, and so is one of another utterance and, with `columns`, labels + 1, one whose
    log-probabilities are not there as they were written.
    """
    done = {}
    if not _partial_path(folder).is_file():
        return done
    frames = _map_log_probs(folder, columns) if columns else None
    for line in _partial_path(folder).read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            fields = parse_json(line)
            number, span, crc = fields.pop("utterance"), fields.pop("frames", None), fields.pop("crc", None)
            prediction = _prediction(fields)
            if number < 0 or _utterance(prediction) != _utterance(utterances[number]):
                continue
            if columns and zlib.crc32(_utterance_log_probs(frames, span)) != crc:
                continue
            done[number] = prediction, span and tuple(span)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            continue
    return done


def _map_log_probs(folder: Path, columns: int) -> np.ndarray:
    """The file of log-probabilities, (T, columns), read when looked at; what is cut short at its end is left out."""
    whole = (folder / LOG_PROBS).stat().st_size // (4 * columns) if (folder / LOG_PROBS).is_file() else 0
    shape = (whole, columns)
    return np.memmap(folder / LOG_PROBS, np.float32, "r", shape=shape) if whole else np.zeros(shape, np.float32)


def _utterance_log_probs(frames: np.ndarray, span: Any) -> np.ndarray:
    """Log-probabilities of an utterance, (T, columns); ValueError where they are not there."""
    start, count = span
    if not (isinstance(start, int) and isinstance(count, int) and 0 <= start <= start + count <= len(frames)):
        raise ValueError("it is shorter than its index says")
    return frames[start : start + count]


class PartialPredictions:
    """The predictions so far, open to be added to."""

    def __init__(self, text: Any, frames: Any | None) -> None:
        """The part file and, where log-probabilities are kept, theirs."""
        self.text, self.frames = text, frames

    def append(self, number: int, prediction: Prediction, log_probabilities: np.ndarray) -> Span | None:
        """Keep the prediction of an utterance, by its number; first its log-probabilities, (T, labels + 1)."""
        place = {}
        if self.frames:
            start = self.frames.tell() // (4 * log_probabilities.shape[1])
            own = log_probabilities.astype(np.float32).tobytes()
            self.frames.write(own)
            self.frames.flush()
            place = {"frames": (start, len(log_probabilities)), "crc": zlib.crc32(own)}
        self.text.write(json.dumps({"utterance": number, **place, **asdict(prediction)}, ensure_ascii=False) + "\n")
        self.text.flush()
        return place.get("frames")


@contextmanager
def open_partial(folder: Path, columns: int | None = None) -> Iterator[PartialPredictions]:
    """The open part; what a killed run cut short in it is ended first.

    With `columns`, labels + 1, log-probabilities are kept too.
    """
    with _partial_path(folder).open("a+b") as part:
        if part.tell() and (part.seek(-1, 2), part.read(1))[1] != b"\n":
            part.write(b"\n")
    with ExitStack() as files:
        frames = None
        if columns:
            frames = files.enter_context((folder / LOG_PROBS).open("ab"))
            frames.truncate(frames.tell() // (4 * columns) * 4 * columns)
            frames.seek(0, 2)
        yield PartialPredictions(
            files.enter_context(_partial_path(folder).open("a", encoding="utf-8", newline="\n")), frames
        )


def finish_predictions(
    folder: Path, predictions: Iterable[Prediction], spans: list[Span] | None = None, columns: int = 0
) -> None:
    """Write predictions.jsonl whole, then what all files are, and remove the part file.

    `spans` of their log-probabilities, in the same order.
    """
    if spans is not None:
        write_json(folder / LOG_PROBS_INDEX, {"columns": columns, "frames": spans})
    with atomic_open(folder / PREDICTIONS) as lines:
        for prediction in predictions:
            lines.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
    files = [folder / name for name in (PREDICTIONS, VOCABULARY, DECODER, LOG_PROBS_INDEX, LOG_PROBS)]
    written = {file.name: [file.stat().st_size, sha256(file)] for file in files if file.is_file()}
    write_json(folder / INPUTS, {**_read_inputs(folder), WRITTEN: written})
    _partial_path(folder).unlink(missing_ok=True)


def read_log_probs(folder: Path) -> list[np.ndarray]:
    """Log-probabilities of each utterance, (T, labels + 1), in manifest order, read from the disk when looked at.

    UserError where they are not those that were written.
    """
    try:
        if not all(
            _is_as_written(folder / name, _read_inputs(folder)[WRITTEN], whole=True)
            for name in (LOG_PROBS_INDEX, LOG_PROBS)
        ):
            raise ValueError("it is not what was written there")
        index = read_json(folder / LOG_PROBS_INDEX)
        frames = _map_log_probs(folder, index["columns"])
        return [_utterance_log_probs(frames, span) for span in index["frames"]]
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(
            f"{folder / LOG_PROBS} is damaged ({error}); delete {folder} and run the same command again"
        ) from error


def read_timing(folder: Path) -> dict[str, Any] | None:
    """Content of inference.json: seconds, audio_seconds, device, by, threads; None where it says no such thing."""
    found = _json(folder / TIMING)
    try:
        seconds, audio = found["seconds"], found["audio_seconds"]
        known = all(isinstance(found[key], str) for key in ("device", "by")) and _is_number(found["threads"])
        return found if known and min(seconds, audio) >= 0 and _is_number(seconds) and _is_number(audio) else None
    except (TypeError, KeyError):
        return None


def _partial_path(folder: Path) -> Path:
    return folder / f"{PREDICTIONS}.part"
