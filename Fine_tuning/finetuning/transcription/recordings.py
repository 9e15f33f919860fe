"""Which recordings to transcribe: files, those below folders, those of NeMo manifests; and the segments of each."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.audio.stream import looks_like_audio
from finetuning.data.manifest import MAX_DURATION_S
from finetuning.data.recording_table import read_json_lines
from finetuning.errors import UserError, printable
from finetuning.transcription.segmentation import Segment, crop_blocks, iter_segments, read_blocks

if TYPE_CHECKING:
    from finetuning.transcription.segmentation import Listener

MANIFESTS = (".json", ".jsonl")
NO_SUFFIX = {"raw", "mat4", "mat5", "sd2"}  # libsndfile's formats that do not say what they hold, or are no sound
BY_FFMPEG = (
    "aac ac3 aif aifc amr ape asf avi flv m2ts m4a m4b m4v mka mkv mov mp2 mp4 mpeg mpg oga ogv opus qta snd sph spx "
    "vob weba webm wma wmv wv 3ga 3gp"
)


@dataclass(frozen=True)
class Recording:
    """A file with sound, or a part of it, and the name of its transcript, without suffix, in the folder of them."""

    audio: Path
    name: str
    stated: str = ""  # how a manifest names the file
    offset_s: float = 0.0
    duration_s: float | None = None  # of a part; None: to the end

    @property
    def shown(self) -> Path:
        """Return how its transcript names the file."""
        return Path(self.stated) if self.stated else self.audio


def find_recordings(given: Iterable[str]) -> tuple[list[Recording], list[Path]]:
    """Each file that is given, those that a NeMo manifest names and, sorted, those below a folder that hold sound.

    The second value are the other files below a folder. Those of a folder are recognised by content, and by the
    suffixes of sound: one of these that holds none is refused later on. Hidden ones are neither. A folder without any
    stands for itself, as one that cannot be read does. A recording that is given twice is there once.
    """
    by_path: dict[Any, Recording] = {}
    left_out: list[Path] = []
    for path in map(Path, given):
        if path.suffix.lower() in MANIFESTS and path.is_file():
            for recording in read_manifest(path):
                key = (recording.audio.absolute(), recording.offset_s, recording.duration_s)
                by_path.setdefault(key, recording)
            continue
        inside, others = _inside(path)
        left_out += others
        for audio in inside or [path]:
            name = str(audio.relative_to(path).with_suffix("")) if inside else audio.stem
            by_path.setdefault((audio.absolute(), 0.0, None), Recording(audio, name))
    return list(by_path.values()), left_out


def read_manifest(path: Path) -> list[Recording]:
    """Return the recordings of a NeMo manifest: whole files or, where a line states an offset, parts of them.

    Paths are relative to the manifest. Raise UserError for a line that names no recording.
    """
    recordings = []
    for number, fields in read_json_lines(path)[1]:
        audio, offset, duration = (fields.get(name) for name in ("audio_filepath", "offset", "duration"))
        is_part = offset is not None
        where = f"{path}, line {number}"
        if not isinstance(audio, str) or Path(audio).name in ("", "..") or "\0" in audio:
            raise UserError(f"{where} names no recording; a line of a NeMo manifest has the field audio_filepath")
        if fields.get("shard_id") is not None:
            raise UserError(
                f"{where}: {printable(audio)} lies in a tar; give the manifest in the folder dataset.output"
            )
        if is_part and not (_is_seconds(offset) and _is_seconds(duration) and duration):
            raise UserError(f"{where}: offset and duration must both be numbers of seconds; fix or remove the line")
        start, length = (float(offset), float(duration)) if is_part else (0.0, None)
        below = [part for part in Path(audio).parts if part not in (Path(audio).anchor, "..")]
        name = str(Path(*below).with_suffix(""))
        if is_part:
            name += "_" + "-".join(f"{s:.3f}".rstrip("0").rstrip(".") for s in (start, start + length))
        recordings.append(Recording(path.parent / audio, name, audio, start, length))
    if not recordings:
        raise UserError(f"{path} names no recording; a NeMo manifest has a line of JSON for each")
    return recordings


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_DURATION_S


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """The visible files below `folder` with sound, and those without; none where it is no folder, or unreadable."""
    import soundfile

    suffixes = {name.lower() for name in soundfile.available_formats()}.union(BY_FFMPEG.split()) - NO_SUFFIX
    audio: list[Path] = []
    left_out: list[Path] = []

    def keep(error: OSError) -> None:
        audio.append(Path(error.filename))

    seen: set[tuple[int, int]] = set()

    def is_new(path: Path) -> bool:  # a link may lead back to a folder above
        try:
            state = path.stat()
        except OSError:
            return True
        known = (state.st_dev, state.st_ino) in seen
        seen.add((state.st_dev, state.st_ino))
        return not known

    is_new(folder)
    for parent, folders, files in os.walk(folder, onerror=keep, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not name.startswith(".") and is_new(Path(parent, name))]
        for path in (Path(parent, name) for name in files if not name.startswith(".")):
            known = path.suffix[1:].lower() in suffixes
            (audio if known or looks_like_audio(path) else left_out).append(path)
    return sorted(path for path in audio if path != folder), sorted(left_out)


def parts_of(
    recordings: Iterable[Recording],
    rate: int,
    speakers: Sequence[str],
    make_listener: Callable[[int], "Listener"],
    notify: Callable[[str], None],
) -> Iterator[tuple[Recording, Segment | UserError | None]]:
    """The segments of each recording and then, for its end, None or what is wrong with it.

    Of two `speakers` each has a channel, and the file is read twice: a side that is silent for long needs no memory.
    `make_listener`: as voice_activity's; `notify`: of what else the user should know.
    """
    for recording in recordings:
        failure, notes = None, set()
        for number, speaker in enumerate(speakers):
            channel = number if speaker else None
            blocks = read_blocks(recording.audio, rate, notes, channel)
            if recording.duration_s is not None:
                blocks = crop_blocks(blocks, recording.audio, rate, recording.offset_s, recording.duration_s)
            first = round(recording.offset_s * rate)
            try:
                for segment in iter_segments(blocks, rate, make_listener(rate), is_conversation=bool(speaker)):
                    yield recording, replace(segment, start=first + segment.start, speaker=speaker)
            except UserError as error:
                failure = error
        for note in sorted(notes):
            notify(f"{recording.audio} {note}")
        yield recording, failure
