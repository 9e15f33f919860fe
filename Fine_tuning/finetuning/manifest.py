"""NeMo manifests: one JSON object a line, one line an utterance."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetuning.errors import UserError
from finetuning.files import written_whole

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest. The first three fields are what NeMo reads; the others may be empty."""

    audio_filepath: str  # relative to the manifest
    duration: float  # seconds
    text: str  # normalised
    sentence: str = ""  # as it stands in the release
    speaker: str = ""  # client_id
    gender: str = ""
    age: str = ""
    accents: str = ""


def manifest_path(folder: Path, split: str) -> Path:
    """Where step 1 writes the manifest of `split` and the other steps find it."""
    return folder / f"{split}_manifest.json"


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write the utterances in the order given; the file appears under its name only when it is whole."""
    with written_whole(path) as lines:
        for utterance in utterances:
            lines.write(json.dumps(vars(utterance), ensure_ascii=False) + "\n")


def read_manifest(path: Path, check_audio: bool = True) -> list[Utterance]:
    """The utterances of a manifest, fields unknown to this project left out.

    UserError names the first line that is not an utterance, the first wav that is missing (`check_audio`), or says that
    the manifest is missing or empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a sentence may hold U+2028 or U+0085
    except FileNotFoundError as error:
        raise UserError(
            f"no manifest {path}; make it with Fine_tuning/dataset_creation.py and the same --config"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the manifest {path} ({error})") from error
    utterances = [_utterance(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not utterances:
        raise UserError(f"{path} holds no utterance; run step 1 again or correct the split")
    if check_audio:
        for number, utterance in enumerate(utterances, start=1):
            if not (path.parent / utterance.audio_filepath).is_file():
                raise UserError(
                    f"{path}, utterance {number}: there is no {path.parent / utterance.audio_filepath}; "
                    "run step 1 again, it makes only what is missing"
                )
    return utterances


def _utterance(path: Path, number: int, line: str) -> Utterance:
    try:
        fields = json.loads(line)
        known = {name: fields[name] for name in Utterance.__dataclass_fields__ if name in fields}
        utterance = Utterance(**known)
        if not (isinstance(utterance.audio_filepath, str) and isinstance(utterance.text, str)):
            raise TypeError("audio_filepath and text must be strings")
        if not (isinstance(utterance.duration, int | float) and 0 < utterance.duration < math.inf):
            raise TypeError("duration must be a number of seconds")
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}, line {number} is not an utterance with audio_filepath, duration and text ({error})"
        ) from error
    return utterance
