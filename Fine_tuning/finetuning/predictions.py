"""What a model wrote for each utterance: kept one by one, so that an interrupted run goes on where it stopped.

In the folder of a model: `predictions.jsonl` (complete, in manifest order), `predictions.jsonl.part` (as far as it got,
in the order of inference, each line with its utterance's number), `inputs.json` (what they were made from and, once
they are complete, size and SHA-256 of each file), `letters.json` (what the model writes) and `inference.json` (how long
it took, and on what). Where they are to be kept, `log_probabilities.f32` holds the log-probabilities of all utterances,
frame after frame, and `log_probabilities.json` which frames are whose.
"""

import ast
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.errors import UserError
from finetuning.files import (
    clear_left_over,
    make_folder,
    parse_json,
    read_json,
    sha256,
    sha256_of,
    write_json,
    written_whole,
)
from finetuning.manifest import Utterance
from finetuning.shards import Member

NAME, INPUTS, LETTERS, SPENT = "predictions.jsonl", "inputs.json", "letters.json", "inference.json"
FRAMES, INDEX = "log_probabilities.f32", "log_probabilities.json"
DECODER = "decoder.json"  # of the beam search, where there was one
WRITTEN = "written"  # in inputs.json: bytes and SHA-256 of each file, once all are complete
MOST = 1e12  # larger seconds and nats are none
Span = tuple[int, int]  # first frame of an utterance in FRAMES and how many there are


@dataclass(frozen=True)
class Prediction:
    """One line of predictions.jsonl; NeMo's field names."""

    audio_filepath: str  # as in the manifest
    text: str  # the reference: the manifest's own text
    pred_text: str
    loss: float | None  # nats; CTC negative log-likelihood of the reference; None: not finite
    duration: float  # seconds


def prepare(folder: Path, inputs: dict[str, Any]) -> None:
    """Make `folder` ready for predictions made from `inputs`: those that an interrupted run has begun from the same
    stay, all others are removed.
    """
    clear_left_over(make_folder(folder))
    if _stated(folder) != inputs:
        discard(folder)
        write_json(folder / INPUTS, inputs)


def discard(folder: Path) -> None:
    """Remove the predictions in `folder`, complete or begun, and their log-probabilities."""
    for name in (INPUTS, NAME, _part(folder).name, FRAMES, INDEX):
        (folder / name).unlink(missing_ok=True)


def finished(
    folder: Path, inputs: dict[str, Any], utterances: Sequence[Utterance], with_frames: bool = False
) -> tuple[list[Prediction] | None, str]:
    """The complete predictions of `utterances` made from `inputs`, or None and why those that are there are no use.

    The reason is empty where none are complete. `with_frames`: their log-probabilities are needed too. All files are
    compared with what was written, of the log-probabilities only the size: `read_frames` compares the rest.
    """
    before = _stated(folder)
    written = before.pop(WRITTEN, None)
    if changed := sorted(differing(before, inputs)):
        return None, f"different now: {', '.join(changed)}" if before else ""
    if written is None:
        return None, ""
    if not isinstance(written, dict):
        return None, f"{INPUTS} is damaged"
    if with_frames and FRAMES not in written:
        return None, "their log-probabilities were not kept"
    needed = {NAME, LETTERS} | (written.keys() & {DECODER}) | ({FRAMES, INDEX} if with_frames else set())
    for name in sorted(needed):
        if not _is_as_written(folder / name, written):
            return None, f"{name} is not what was written there"
    found = read(folder)
    if found is None or list(map(_utterance, found)) != list(map(_utterance, utterances)):
        return None, f"{NAME} is of other utterances"
    return found, ""


def _utterance(one: Prediction | Utterance) -> tuple[str, str, float]:
    return one.audio_filepath, one.text, one.duration


def differing(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values are not the same in both."""
    changed = []
    for key in now.keys() | before.keys():
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += differing(old, new, f"{prefix}{key}.")
        elif old != new:
            changed.append(prefix + key)
    return changed


def _stated(folder: Path) -> dict[str, Any]:
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
        return (path.name == FRAMES and not whole) or sha256(path) == digest
    except (OSError, KeyError, TypeError, ValueError):
        return False


def state_of_audio(utterances: Iterable[Utterance], folder: Path) -> str:
    """A SHA-256 of name, size and time of change of all wavs, or of the shards that they lie in.

    `folder` is that of their manifest. Nothing is read: a test set may have tens of thousands.
    """
    wavs = [utterance.wav(folder) for utterance in utterances]
    files = {wav.shard if isinstance(wav, Member) else wav for wav in wavs}
    states = [(os.path.relpath(file, folder), file.stat()) for file in files]
    return sha256_of(sorted([name, state.st_size, state.st_mtime_ns] for name, state in states))


def code(*modules: str) -> str:
    """SHA-256 of these modules of ours and of all that they import: predictions of other code are not reused."""
    folder = Path(__file__).parent
    files: dict[str, str] = {}
    ahead = list(modules)
    while ahead:
        name = ahead.pop()
        if name not in files:
            path = folder / f"{name}.py"
            files[name] = sha256(path)
            ahead += [name for name in _imported(path.read_bytes()) if (folder / f"{name}.py").is_file()]
    return sha256_of(files)


def _imported(source: bytes) -> set[str]:
    """Modules of ours that a module imports, wherever in it it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("finetuning.") for alias in node.names if "finetuning." in alias.name}
        elif isinstance(node, ast.ImportFrom) and node.module == "finetuning":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("finetuning."):
            found.add(node.module.removeprefix("finetuning."))
    return found


def read(folder: Path) -> list[Prediction] | None:
    """The complete predictions in manifest order, or None where there are none yet; UserError for a damaged file."""
    path = folder / NAME
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
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST


def read_letters(folder: Path) -> list[str]:
    """What the model writes, of letters.json; UserError where that says no such thing."""
    found = _json(folder / LETTERS)
    if not isinstance(found, list) or not all(isinstance(letter, str) for letter in found):
        raise UserError(f"{folder / LETTERS} is damaged; delete it and run the same command again")
    return found


def read_part(
    folder: Path, utterances: Sequence[Utterance | Prediction], columns: int = 0
) -> dict[int, tuple[Prediction, Span | None]]:
    """What an interrupted run finished of `utterances`, by their numbers, and where its log-probabilities are.

    A line cut short is as good as none, and so is one of another utterance and, with `columns`, labels + 1, one whose
    log-probabilities are not there as they were written.
    """
    done = {}
    if not _part(folder).is_file():
        return done
    frames = _frames(folder, columns) if columns else None
    for line in _part(folder).read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            fields = parse_json(line)
            number, span, crc = fields.pop("utterance"), fields.pop("frames", None), fields.pop("crc", None)
            prediction = _prediction(fields)
            if number < 0 or _utterance(prediction) != _utterance(utterances[number]):
                continue
            if columns and zlib.crc32(_own(frames, span)) != crc:
                continue
            done[number] = prediction, span and tuple(span)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            continue
    return done


def _frames(folder: Path, columns: int) -> np.ndarray:
    """The file of log-probabilities, (T, columns), read when looked at; what is cut short at its end is left out."""
    whole = (folder / FRAMES).stat().st_size // (4 * columns) if (folder / FRAMES).is_file() else 0
    shape = (whole, columns)
    return np.memmap(folder / FRAMES, np.float32, "r", shape=shape) if whole else np.zeros(shape, np.float32)


def _own(frames: np.ndarray, span: Any) -> np.ndarray:
    """Log-probabilities of an utterance, (T, columns); ValueError where they are not there."""
    start, count = span
    if not (isinstance(start, int) and isinstance(count, int) and 0 <= start <= start + count <= len(frames)):
        raise ValueError("it is shorter than its index says")
    return frames[start : start + count]


class Part:
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
def appending(folder: Path, columns: int | None = None) -> Iterator[Part]:
    """The open part; what a killed run cut short in it is ended first.

    With `columns`, labels + 1, log-probabilities are kept too.
    """
    with _part(folder).open("a+b") as part:
        if part.tell() and (part.seek(-1, 2), part.read(1))[1] != b"\n":
            part.write(b"\n")
    with ExitStack() as files:
        frames = None
        if columns:
            frames = files.enter_context((folder / FRAMES).open("ab"))
            frames.truncate(frames.tell() // (4 * columns) * 4 * columns)
            frames.seek(0, 2)
        yield Part(files.enter_context(_part(folder).open("a", encoding="utf-8", newline="\n")), frames)


def finish(folder: Path, predictions: Iterable[Prediction], spans: list[Span] | None = None, columns: int = 0) -> None:
    """Write predictions.jsonl whole, then what all files are, and remove the part file.

    `spans` of their log-probabilities, in the same order.
    """
    if spans is not None:
        write_json(folder / INDEX, {"columns": columns, "frames": spans})
    with written_whole(folder / NAME) as lines:
        for prediction in predictions:
            lines.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
    files = [folder / name for name in (NAME, LETTERS, DECODER, INDEX, FRAMES)]
    written = {file.name: [file.stat().st_size, sha256(file)] for file in files if file.is_file()}
    write_json(folder / INPUTS, {**_stated(folder), WRITTEN: written})
    _part(folder).unlink(missing_ok=True)


def read_frames(folder: Path) -> list[np.ndarray]:
    """Log-probabilities of each utterance, (T, labels + 1), in manifest order, read from the disk when looked at.

    UserError where they are not those that were written.
    """
    try:
        if not all(_is_as_written(folder / name, _stated(folder)[WRITTEN], whole=True) for name in (INDEX, FRAMES)):
            raise ValueError("it is not what was written there")
        index = read_json(folder / INDEX)
        frames = _frames(folder, index["columns"])
        return [_own(frames, span) for span in index["frames"]]
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(
            f"{folder / FRAMES} is damaged ({error}); delete {folder} and run the same command again"
        ) from error


def spent(folder: Path) -> dict[str, Any] | None:
    """Content of inference.json: seconds, audio_seconds, device, by, threads; None where it says no such thing."""
    found = _json(folder / SPENT)
    try:
        seconds, audio = found["seconds"], found["audio_seconds"]
        known = all(isinstance(found[key], str) for key in ("device", "by")) and _is_number(found["threads"])
        return found if known and min(seconds, audio) >= 0 and _is_number(seconds) and _is_number(audio) else None
    except (TypeError, KeyError):
        return None


def _part(folder: Path) -> Path:
    return folder / f"{NAME}.part"
