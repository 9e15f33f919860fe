"""NeMo manifests: one line per utterance, each a JSON object."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from finetuning.audio import decoding
from finetuning.data import shard_reader
from finetuning.data.shard_reader import ShardMember
from finetuning.errors import UserError
from finetuning.files import atomic_open, parse_json, read_json

SPLITS = ("train", "validation", "test")
OPTIONAL = {"sentence", "speaker", "gender", "age", "accents", "source"}  # fields that may be empty or missing
SOUND = {  # what a recording was measured to be, and the smallest and largest value
    "bandwidth_hz": (0, 1e6),
    "level_dbfs": (-1e3, 1e3),
    "clipped_share": (0, 1),
    "silent_share": (0, 1),
}
MAX_DURATION_S = 1e6  # of an utterance: eleven days, more than any clip's


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest. The first three fields are what NeMo reads; the others may be empty.

    The last two fields are set when the wav is in a shard; `shard_id` is NeMo's name for its number.
    """

    audio_filepath: str  # relative to the manifest; in a shard: the member's name
    duration: float  # seconds
    text: str  # normalised
    sentence: str = ""  # as in the release
    speaker: str = ""  # client_id
    gender: str = ""
    age: str = ""
    accents: str = ""
    source: str | None = None  # which of several the clip is from
    bandwidth_hz: float | None = None  # of the recording, as the three below: its highest frequency
    level_dbfs: float | None = None
    clipped_share: float | None = None  # of the samples
    silent_share: float | None = None  # of the time
    shard_id: int | None = None  # the number of the tar
    shard_offset: int | None = None  # bytes in the shard before the wav's header

    @property
    def wav_size(self) -> int:
        """Return the size in bytes of the wav, as step 1 writes it."""
        return decoding.wav_size(min(self.duration, decoding.MAX_DURATION_S))

    def wav(self, folder: Path) -> Path | ShardMember:
        """Return where the wav is, given the folder of the manifest."""
        if self.shard_id is None:
            return folder / self.audio_filepath
        return ShardMember(shard_path(folder, self.shard_id), self.audio_filepath, self.shard_offset, self.wav_size)


@cache
def shard_path(folder: Path, shard_id: int) -> Path:
    """Return the path of a shard by its number, named as NeMo names them."""
    return folder / f"audio_{shard_id}.tar"


def manifest_path(folder: Path, split: str) -> Path:
    """Return the path at which step 1 writes the manifest of `split` and the other steps read it."""
    return folder / f"{split}_manifest.json"


def find_test_sets(folder: Path) -> dict[str, Path]:
    """Return the test manifests in `folder` by their set: test, and test_NAME of each source that is one."""
    others = sorted(folder.glob(f"{SPLITS[-1]}_*_manifest.json"))
    return {path.name.removesuffix("_manifest.json"): path for path in (manifest_path(folder, SPLITS[-1]), *others)}


def made_splits(folder: Path) -> set[str]:
    """Return the splits, and the further test sets of dataset.json, whose manifests in `folder` step 1 has made."""
    about = read_json(folder / "dataset.json")
    stated = about.get("splits") if isinstance(about, dict) else None
    return {*SPLITS, *(name for name in stated or () if re.fullmatch(rf"{SPLITS[-1]}_[^/]+", str(name)))}


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write the utterances in their order; the file appears under its name only when it is complete."""
    with atomic_open(path) as lines:
        for utterance in utterances:
            fields = {name: value for name, value in vars(utterance).items() if value is not None}
            lines.write(json.dumps(fields, ensure_ascii=False) + "\n")


def read_manifest(path: Path, check_audio: bool = True) -> list[Utterance]:
    """Return the utterances of a manifest, without fields that are unknown to this project.

    Raises UserError when the manifest is missing or empty, for the first line that is not an utterance and, with
    `check_audio`, for the first wav or shard that is missing.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a sentence may hold U+2028 or U+0085
    except FileNotFoundError as error:
        raise UserError(
            f"no manifest {path}; make it with Fine_tuning/dataset_creation.py and the same --config"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the manifest {path} ({error})") from error
    utterances = [parse_line(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1) if line.strip()]
    if not utterances:
        raise UserError(f"{path} holds no utterance; run step 1 again or correct the split")
    if check_audio:
        wavs = [utterance.wav(path.parent) for utterance in utterances]
        shard_reader.check_shards(wav for wav in wavs if isinstance(wav, ShardMember))
        for number, wav in enumerate(wavs, start=1):
            if isinstance(wav, Path) and not wav.is_file():
                raise UserError(
                    f"{path}, utterance {number}: there is no {wav}; run step 1 again, it makes only what is missing"
                )
    return utterances


def parse_line(line: str, where: str) -> Utterance:
    """Return the utterance of one line; raise UserError, which names its place `where`, when it is not one."""
    try:
        fields = parse_json(line)
        if not isinstance(fields, dict):
            raise TypeError("it is not a JSON object")
        known = {name: fields[name] for name in Utterance.__dataclass_fields__ if fields.get(name) is not None}
        for name in OPTIONAL & known.keys():
            known[name] = _as_text(name, known[name])
        utterance = Utterance(**known)
        if not (isinstance(utterance.audio_filepath, str) and isinstance(utterance.text, str)):
            raise TypeError("audio_filepath and text must be strings")
        if not (_is_number(utterance.duration, int | float) and 0 < utterance.duration <= MAX_DURATION_S):
            raise TypeError("duration must be a number of seconds")
        for name, (least, most) in SOUND.items():
            value = getattr(utterance, name)
            if value is not None and not (_is_number(value, int | float) and least <= value <= most):
                raise TypeError(f"{name} must be a number from {least:g} to {most:g}")
        place = (utterance.shard_id, utterance.shard_offset)
        if place != (None, None) and not all(_is_number(number, int) and 0 <= number < 1 << 62 for number in place):
            raise TypeError("shard_id and shard_offset must both be numbers, as step 1 writes them")
    except (ValueError, TypeError) as error:
        reason = str(error).replace("Utterance.__init__() ", "")
        raise UserError(f"{where} is not an utterance with audio_filepath, duration and text ({reason})") from error
    return utterance


def _as_text(name: str, value: Any) -> str:
    """Return an optional field as text; other tools number their speakers."""
    if isinstance(value, str):
        return value
    if _is_number(value, int):
        return str(value)
    raise TypeError(f"{name} must be a string")


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
