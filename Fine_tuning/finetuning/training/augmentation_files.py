"""The recordings of noise and of rooms that training clips are changed with: which parts of which files."""

import hashlib
import json
import os
from dataclasses import dataclass

from finetuning.config.schema import Training, resolve_path
from finetuning.errors import UserError

PIECE_S = 20.0  # of a recording of noise, read at a time: longer than any training clip
MAX_ROOM_S = 20.0  # of an impulse response
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True)
class Piece:
    """A part of a recording; its fields are those of a line of NeMo's manifests."""

    audio_filepath: str
    offset: float  # s
    duration: float  # s
    text: str = ""


def list_noise(folder: str) -> list[Piece]:
    """Return the recordings of noise below a folder in pieces of at most PIECE_S, in the order of their names.

    What is left of a recording after its last piece is left out where it is shorter than half of one.
    """
    return [
        Piece(whole.audio_filepath, start * PIECE_S, min(PIECE_S, whole.duration - start * PIECE_S))
        for whole in _list_recordings(folder, "training.noise.folder")
        for start in range(max(1, round(whole.duration / PIECE_S)))
    ]


def list_rooms(folder: str) -> list[Piece]:
    """Return the impulse responses below a folder; raise UserError for one that is longer than MAX_ROOM_S."""
    rooms = _list_recordings(folder, "training.room.folder")
    if longer := [room for room in rooms if room.duration > MAX_ROOM_S]:
        raise UserError(
            f"training.room.folder: {longer[0].audio_filepath} lasts {longer[0].duration:.0f} s, which no impulse "
            "response does; remove it, or name a folder that holds impulse responses only"
        )
    return rooms


def files_digest(training: Training) -> str:
    """Return a SHA-256 of the names and durations of all these recordings, "" where the training uses none."""
    folders = {training.noise.folder: list_noise, training.room.folder: list_rooms}
    pieces = [
        (os.path.relpath(piece.audio_filepath, resolve_path(folder)), piece.offset, piece.duration)
        for folder, pieces_of in folders.items()
        if folder
        for piece in pieces_of(folder)
    ]
    return hashlib.sha256(json.dumps(pieces).encode()).hexdigest() if pieces else ""


def _list_recordings(folder: str, key: str) -> list[Piece]:
    """Return all recordings below a folder; raise UserError where there are none and for one that does not fit."""
    import soundfile

    root = resolve_path(folder)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise UserError(
            f"{key}: there are no recordings ({', '.join(SUFFIXES)}) in {root}; name a folder that has some"
        )
    recordings = []
    for path in paths:
        try:
            info = soundfile.info(path)
        except (OSError, soundfile.SoundFileError) as error:
            raise UserError(f"{key}: cannot read {path} ({error}); remove it") from error
        if info.channels != 1 or not info.frames:
            reason = f"has {info.channels} channels" if info.frames else "is empty"
            raise UserError(f"{key}: {path} {reason}, and recordings of one channel are needed; convert or remove it")
        recordings.append(Piece(str(path), 0.0, info.duration))
    return recordings
