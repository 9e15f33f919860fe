"""What a model wrote for each utterance: kept one by one, so that an interrupted run goes on where it stopped.

In the folder of a model: `predictions.jsonl` (complete, in manifest order), `predictions.jsonl.part` (as far as it got,
in the order of inference, each line with its utterance's number), `inputs.json` (what they were made from),
`letters.json` (what the model writes) and `inference.json` (how long it took, and on what).
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from finetuning.errors import UserError
from finetuning.files import make_folder, read_json, write_json, written_whole

NAME = "predictions.jsonl"


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
        for stale in (folder / NAME, _part(folder)):
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


def read_part(folder: Path) -> dict[int, Prediction]:
    """What an interrupted run finished, by number of the utterance; a line cut short is as good as none."""
    done = {}
    if _part(folder).is_file():
        for line in _part(folder).read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                fields = json.loads(line)
                number = fields.pop("utterance")
                done[number] = Prediction(**fields)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
    return done


@contextmanager
def appending(folder: Path) -> Iterator[TextIO]:
    """The open part file, for `append`; a line that a killed run cut short is ended first."""
    with _part(folder).open("a+b") as part:
        if part.tell() and (part.seek(-1, 2), part.read(1))[1] != b"\n":
            part.write(b"\n")
    with _part(folder).open("a", encoding="utf-8", newline="\n") as text:
        yield text


def append(part: TextIO, number: int, prediction: Prediction) -> None:
    """Keep the prediction of an utterance, by its number."""
    part.write(json.dumps({"utterance": number, **asdict(prediction)}, ensure_ascii=False) + "\n")
    part.flush()


def finish(folder: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions.jsonl whole and remove the part file."""
    with written_whole(folder / NAME) as lines:
        for prediction in predictions:
            lines.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
    _part(folder).unlink(missing_ok=True)


def _part(folder: Path) -> Path:
    return folder / f"{NAME}.part"
