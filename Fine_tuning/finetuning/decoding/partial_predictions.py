"""The predictions of a run that has not ended, kept one by one, so that a rerun resumes where it stopped.

`predictions.jsonl.part` has a line for each utterance in the order of inference, with its number in the manifest and,
where log-probabilities are saved, their place in `log_probabilities.f32` and their CRC-32. Of several processes that
share a run, each but the first has both files in a folder of its own, `share-<rank>`.
"""

import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from finetuning.data.manifest import Utterance
from finetuning.decoding.predictions import (
    LOG_PROBS,
    Prediction,
    Span,
    map_log_probs,
    parse_prediction,
    partial_path,
    utterance_log_probs,
)
from finetuning.files import parse_json


def read_partial(
    folder: Path, utterances: Sequence[Utterance | Prediction], vocab_size: int = 0
) -> dict[int, tuple[Prediction, Span | None]]:
    """Return what an interrupted run finished: prediction and place of the log-probabilities by utterance number.

    Left out are incomplete lines, lines of other utterances than `utterances` and, with `vocab_size` (vocabulary and
    blank), those whose log-probabilities are not as they were written.
    """
    done: dict[int, tuple[Prediction, Span | None]] = {}
    if not partial_path(folder).is_file():
        return done
    log_probs = map_log_probs(folder, vocab_size) if vocab_size else None
    for line in partial_path(folder).read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            fields = parse_json(line)
            number, span, crc = fields.pop("utterance"), fields.pop("frames", None), fields.pop("crc", None)
            prediction = parse_prediction(fields)
            if number < 0 or utterance_key(prediction) != utterance_key(utterances[number]):
                continue
            if vocab_size and zlib.crc32(utterance_log_probs(log_probs, span)) != crc:
                continue
            done[number] = prediction, span and tuple(span)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            continue
    return done


def share_folder(folder: Path, rank: int) -> Path:
    """Return where the process `rank` of those that share a run keeps its predictions."""
    return folder / f"share-{rank}" if rank else folder


def merge_shares(
    folder: Path, utterances: Sequence[Utterance | Prediction], vocab_size: int = 0
) -> dict[int, tuple[Prediction, Span | None]]:
    """Return what `read_partial` does, after the shares of other processes have been appended to it and removed."""
    done = read_partial(folder, utterances, vocab_size)
    for share in sorted(folder.glob("share-*")):
        log_probs = map_log_probs(share, vocab_size) if vocab_size else np.zeros((0, 0))
        with open_partial(folder, vocab_size) as partial:
            for number, (prediction, span) in read_partial(share, utterances, vocab_size).items():
                if number not in done:
                    rows = utterance_log_probs(log_probs, span or (0, 0))
                    done[number] = prediction, partial.append(number, prediction, rows)
        shutil.rmtree(share)
    return done


def utterance_key(row: Prediction | Utterance) -> tuple[str, str, float]:
    """Return what a prediction and its utterance have in common: path, reference text, duration in seconds."""
    return row.audio_filepath, row.text, row.duration


class PartialPredictions:
    """The open file of the predictions so far and, where log-probabilities are saved, that of theirs."""

    def __init__(self, lines: TextIO, log_probs_file: BinaryIO | None) -> None:
        """Write predictions to `lines`, one a line, and their log-probabilities to `log_probs_file`."""
        self.lines, self.log_probs_file = lines, log_probs_file

    def append(self, number: int, prediction: Prediction, log_probs: np.ndarray) -> Span | None:
        """Save an utterance's log-probabilities, shape (T, vocabulary + 1), then its prediction; return their place."""
        place = {}
        if self.log_probs_file:
            start = self.log_probs_file.tell() // (4 * log_probs.shape[1])
            content = log_probs.astype(np.float32).tobytes()
            self.log_probs_file.write(content)
            self.log_probs_file.flush()
            place = {"frames": (start, len(log_probs)), "crc": zlib.crc32(content)}
        self.lines.write(json.dumps({"utterance": number, **place, **asdict(prediction)}, ensure_ascii=False) + "\n")
        self.lines.flush()
        return place.get("frames")


@contextmanager
def open_partial(folder: Path, vocab_size: int | None = None) -> Iterator[PartialPredictions]:
    """Open the predictions of a run that has not ended, after any incomplete line or frame of a killed run.

    With `vocab_size` (vocabulary and blank) log-probabilities are saved too.
    """
    with partial_path(folder).open("a+b") as partial:
        if partial.tell() and (partial.seek(-1, 2), partial.read(1))[1] != b"\n":
            partial.write(b"\n")
    with ExitStack() as files:
        log_probs_file = None
        if vocab_size:
            log_probs_file = files.enter_context((folder / LOG_PROBS).open("ab"))
            log_probs_file.truncate(log_probs_file.tell() // (4 * vocab_size) * 4 * vocab_size)
            log_probs_file.seek(0, 2)
        lines = files.enter_context(partial_path(folder).open("a", encoding="utf-8", newline="\n"))
        yield PartialPredictions(lines, log_probs_file)
