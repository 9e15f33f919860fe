"""What a model wrote for each utterance: kept one by one, so that an interrupted run goes on where it stopped.

In the folder of a model: `predictions.jsonl` (complete, in manifest order), `predictions.jsonl.part` (as far as it got,
in the order of inference, each line with its utterance's number), `inputs.json` (what they were made from),
`letters.json` (what the model writes) and `inference.json` (how long it took, and on what). Where they are to be kept,
`log_probabilities.f32` holds the log-probabilities of all utterances, frame after frame, and `log_probabilities.json`
which frames are whose.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.errors import UserError
from finetuning.files import make_folder, read_json, write_json, written_whole

NAME = "predictions.jsonl"
FRAMES, INDEX = "log_probabilities.f32", "log_probabilities.json"
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
    """Make `folder` ready for predictions made from `inputs`; those made from anything else are removed."""
    make_folder(folder)
    if read_json(folder / "inputs.json") != inputs:
        for stale in (folder / NAME, _part(folder), folder / FRAMES, folder / INDEX):
            stale.unlink(missing_ok=True)
        write_json(folder / "inputs.json", inputs)


def read(folder: Path) -> list[Prediction] | None:
    """The complete predictions in manifest order, or None where there are none yet."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        return [Prediction(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run the same command again") from error


def read_part(folder: Path, columns: int = 0) -> dict[int, tuple[Prediction, Span | None]]:
    """What an interrupted run finished, by number of the utterance, and where its log-probabilities are.

    A line cut short is as good as none, and so is, with `columns`, labels + 1, one without log-probabilities.
    """
    done = {}
    if _part(folder).is_file():
        for line in _part(folder).read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                fields = json.loads(line)
                number, span = fields.pop("utterance"), fields.pop("frames", None)
                if span or not columns:
                    done[number] = Prediction(**fields), span and tuple(span)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
    there = (folder / FRAMES).stat().st_size // (4 * columns) if columns and (folder / FRAMES).is_file() else 0
    if columns and any(sum(span) > there for _, span in done.values()):
        raise UserError(f"{folder / FRAMES} is damaged or gone; delete {folder} and run the same command again")
    return done


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
            self.frames.write(log_probabilities.astype(np.float32).tobytes())
            self.frames.flush()
            place = {"frames": (start, len(log_probabilities))}
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
    """Write predictions.jsonl whole and remove the part file; `spans` of their log-probabilities, in the same order."""
    if spans is not None:
        write_json(folder / INDEX, {"columns": columns, "frames": spans})
    with written_whole(folder / NAME) as lines:
        for prediction in predictions:
            lines.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
    _part(folder).unlink(missing_ok=True)


def has_frames(folder: Path) -> bool:
    """Whether the log-probabilities of finished predictions are kept."""
    return (folder / INDEX).is_file() and (folder / FRAMES).is_file()


def read_frames(folder: Path) -> list[np.ndarray]:
    """Log-probabilities of each utterance, (T, labels + 1), in manifest order, read from the disk when looked at."""
    index = read_json(folder / INDEX)
    try:
        frames = np.memmap(folder / FRAMES, np.float32, "r").reshape(-1, index["columns"])
        found = [frames[start : start + count] for start, count in index["frames"]]
        if any(len(own) != count for own, (_, count) in zip(found, index["frames"], strict=True)):
            raise ValueError("it is shorter than its index says")
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(
            f"{folder / FRAMES} is damaged ({error}); delete {folder} and run the same command again"
        ) from error
    return found


def _part(folder: Path) -> Path:
    return folder / f"{NAME}.part"
