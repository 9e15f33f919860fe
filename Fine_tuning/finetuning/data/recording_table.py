"""Recordings of one's own: a table (CSV, TSV or JSON lines, as NeMo's manifests) that names files and their texts."""

import csv
import hashlib
import io
import math
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetuning.data.common_voice import MAX_TABLE_BYTES
from finetuning.data.listing import Clip, Cut, Listing, Recording, RejectedRow
from finetuning.data.manifest import SPLITS
from finetuning.errors import UserError
from finetuning.files import parse_json

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
COLUMNS = {  # what is read of a row: the names of the column that are understood unless dataset.columns states another
    "path": ("path", "audio_filepath"),
    "text": ("sentence", "text"),
    "speaker": ("speaker", "client_id"),
    "gender": ("gender",),
    "age": ("age",),
    "accents": ("accents",),
    "start": ("start", "offset"),
    "end": ("end",),
    "duration": ("duration",),
    "channel": ("channel",),
    "split": ("split",),
}
SPLIT_NAMES = {name: name for name in SPLITS} | {"valid": "validation", "val": "validation", "dev": "validation"}
CHANNELS = ("0", "1", "mix")
MAX_WAV_NAME = 150  # bytes of a wav's name that repeats the names of folders

Row = Mapping[str, Any]


def is_table(source: Path) -> bool:
    """Return whether a path is that of a table, by its suffix; that of a release is named by its folder."""
    return source.suffix.lower() in SUFFIXES and source.name != "validated.tsv" and not source.is_dir()


def read_table(
    source: Path,
    columns: dict[str, str],
    channel: str | None,
    with_splits: bool,
    recordings: Path | None = None,
) -> Listing:
    """Return what the table at `source` lists.

    `columns` names those of its columns that are called otherwise than in COLUMNS, `channel` is that of rows that state
    none, `recordings` the folder that its paths are relative to, if not its own. Raises UserError when the table cannot
    be read or lacks a column that is needed.
    """
    header, lines = read_json_lines(source) if "json" in source.suffix.lower() else read_csv(source)
    names = _column_names(source, header, columns)
    if with_splits and "split" not in names:
        raise UserError(f"{source} has no column split; give dataset.split.by=speaker or dataset.split.by=clip")
    rows, rejected, stamps, durations_s, splits = [], [], dict[str, str](), dict[str, float](), dict[str, list[str]]()
    file_stamps: dict[Path, str] = {}
    for number, fields in lines:
        try:
            values = _values(fields, names)
            clip, duration_s = _clip(values, recordings or source.parent, channel)
        except ValueError as error:
            path = str(fields.get(names["path"][0], ""))
            rejected.append(RejectedRow(path, *error.args[:1], f"line {number} of {source.name}: {error.args[1]}"))
            continue
        rows.append(clip)
        if file_stamp := _file_stamp(clip.cut.recording, file_stamps):
            stamps[clip.path] = " ".join([file_stamp, clip.cut.channel or "-", *_times(clip.cut)])
        if duration_s is not None:
            durations_s[clip.path] = duration_s
        if split := SPLIT_NAMES.get(values["split"].lower()):
            of_clip = splits.setdefault(clip.path, [])
            of_clip += [split] if split not in of_clip else []
    rows = sorted(_with_own_wavs(rows))
    return Listing(
        source.name, source.name, {"name": source.name}, rows, rejected, "speaker" in names, stamps,
        durations_s, splits if with_splits else None, _iter_recordings,
    )  # fmt: skip


def _with_own_wavs(rows: list[Clip]) -> list[Clip]:
    """Return the rows, with a hash in the names of wavs that different recordings (a.wav and a.flac) would share."""
    of_wav: dict[str, set[Path]] = {}
    for clip in rows:
        of_wav.setdefault(clip.cut.wav, set()).add(clip.cut.recording)

    def own(clip: Clip) -> Clip:
        return replace(clip, cut=replace(clip.cut, wav=f"{_short_hash(clip.path.partition('#')[0])}_{clip.cut.wav}"))

    return [own(clip) if len(of_wav[clip.cut.wav]) > 1 else clip for clip in rows]


def _short_hash(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:16]


def check_recordings_outside(listing: Listing, output: Path) -> None:
    """Raise UserError when step 1 would write over recordings that the table names."""
    wavs = (output / "wavs").resolve()
    for clip in listing.rows:
        if clip.cut and clip.cut.recording.resolve().is_relative_to(wavs):
            raise UserError(
                f"{clip.cut.recording} lies where step 1 writes its wavs, and recordings are never changed; give "
                "another dataset.output=…"
            )


def _iter_recordings(clips: Iterable[Clip]) -> Iterator[Recording]:
    of_file: dict[Path, list[Clip]] = {}
    for clip in clips:
        of_file.setdefault(clip.cut.recording, []).append(clip)
    yield from of_file.items()


def read_text(source: Path) -> str:
    """Return the text of a table; raise UserError where it is too large, unreadable or not UTF-8."""
    try:
        if source.stat().st_size > MAX_TABLE_BYTES:
            raise UserError(
                f"{source} has more than {MAX_TABLE_BYTES:,} bytes, too many to be read into memory; make it smaller"
            )
        data = source.read_bytes().removeprefix(b"\xef\xbb\xbf")
        return data.decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot read {source} ({error.strerror}); name another file") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source}, line {line} is not UTF-8; save the table as UTF-8") from error


def read_csv(source: Path) -> tuple[list[str], list[tuple[int, Row]]]:
    """Return the names of the columns, and number and fields of each line; no fields where their number is wrong.

    A .tsv is separated by tabs and quotes mean nothing in it, as in Common Voice's; in a .csv, commas, semicolons or
    tabs, whichever its header has most of, separate, and quotes may enclose a field.
    """
    text = read_text(source)
    if source.suffix.lower() == ".tsv":
        options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    else:
        options = {"delimiter": max(",;\t", key=text.partition("\n")[0].count), "strict": True}
    reader = csv.reader(io.StringIO(text, newline=""), **options)
    try:
        header = [name.strip() for name in next(reader, [])]
        lines = [(reader.line_num, fields) for fields in reader if fields]
    except csv.Error as error:
        raise UserError(f"{source}, line {reader.line_num} cannot be read ({error}); look for an open quote") from error
    if len(set(header)) != len(header):
        raise UserError(f"{source} names a column twice; it has: {', '.join(header)}")
    return header, [(n, dict(zip(header, f, strict=True)) if len(f) == len(header) else {}) for n, f in lines]


def read_json_lines(source: Path) -> tuple[list[str], list[tuple[int, Row]]]:
    """Return the names that occur, and number and fields of each line; none where it is not a JSON object."""
    lines: list[tuple[int, Row]] = []
    for number, line in enumerate(read_text(source).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = parse_json(line)
        except ValueError as error:
            if not lines:
                raise UserError(
                    f"{source}, line {number} is not JSON ({error}); write one JSON object per line"
                ) from error
            fields = {}
        lines.append((number, fields if isinstance(fields, dict) else {}))
    return list(dict.fromkeys(name for _, fields in lines for name in fields)), lines


def _column_names(source: Path, header: list[str], columns: dict[str, str]) -> dict[str, list[str]]:
    """Return what the table calls each column that it has, in the order in which they are looked into.

    Raises UserError when path or text is missing.
    """
    if unknown := sorted(columns.keys() - COLUMNS.keys()):
        raise UserError(f"dataset.columns.{unknown[0]} means nothing; a row has: {', '.join(COLUMNS)}")
    names = {}
    for name, usual in COLUMNS.items():
        stated = columns.get(name)
        if stated is not None and stated not in header:
            raise UserError(f"{source} has no column {stated!r} (dataset.columns.{name}); it has: {', '.join(header)}")
        found = [stated] if stated is not None else [each for each in usual if each in header]
        if found:
            names[name] = found
    for name in ("path", "text"):
        if name not in names:
            raise UserError(
                f"{source} has no column {' or '.join(COLUMNS[name])}; it has: {', '.join(header) or 'nothing'}; say "
                f"which of them is meant: 'dataset.columns={{{name}: …}}'"
            )
    return names


def _values(fields: Row, names: dict[str, list[str]]) -> dict[str, str]:
    """Return what a row says by the keys of COLUMNS, "" where it says nothing."""
    if not fields:
        raise ValueError("malformed_row", "it has not the fields of the header")
    values = {name: _first_text(fields, names.get(name, [])) for name in COLUMNS}
    return values | {name: value.strip() for name, value in values.items() if name != "text"}


def _first_text(fields: Row, names: Iterable[str]) -> str:
    """Return the first of these fields that is not empty; JSON's numbers as text."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise ValueError("malformed_row", f"{name} is neither a text nor a number")
        if value not in (None, "") and value == value:  # pandas writes NaN for nothing
            return str(value)
    return ""


def _clip(values: dict[str, str], folder: Path, channel: str | None) -> tuple[Clip, float | None]:
    """Return the row as a clip and the duration that it states; ValueError has the reason and the detail."""
    if not values["path"] or "\0" in values["path"]:
        raise ValueError("malformed_row", "it names no recording")
    start_s, end_s, duration_s = (_seconds(name, values[name]) for name in ("start", "end", "duration"))
    if start_s is not None and end_s is None and duration_s is not None:
        end_s = start_s + duration_s
    if end_s is not None:
        start_s = start_s or 0.0
        if end_s <= start_s:
            raise ValueError("no_segment", f"it begins at {start_s:g} s and ends at {end_s:g} s")
        duration_s = end_s - start_s
    if values["channel"] in ("0.0", "1.0"):  # as pandas writes it where some rows state none
        values["channel"] = values["channel"][0]
    channel = values["channel"] or channel or ""
    if channel not in ("", *CHANNELS):
        raise ValueError("no_such_channel", f"channel {channel} is not one of {', '.join(CHANNELS)}")
    cut = Cut(folder / values["path"], "", start_s or 0.0, end_s, channel)
    times = f"t={','.join(_times(cut))}" if start_s is not None else ""
    track = f"track={values['channel']}" if values["channel"] else ""
    fragment = "&".join(part for part in (times, track) if part)  # as in Media Fragments URI 1.0
    path = values["path"] + (f"#{fragment}" if fragment else "")
    cut = Cut(cut.recording, _wav_name(values["path"], times, track), cut.start_s, end_s, channel)
    about = (values[name] for name in ("text", "speaker", "gender", "age", "accents"))
    return Clip(path, *about, cut=cut), duration_s


def _seconds(name: str, value: str) -> float | None:
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < 1e6:
        raise ValueError("no_segment", f"{name} is {value!r}, no number of seconds")
    return seconds


def _times(cut: Cut) -> list[str]:
    return [f"{seconds:.3f}" for seconds in (cut.start_s, cut.end_s) if seconds is not None]


def _wav_name(path: str, times: str, track: str) -> str:
    """Return the file name of a part's wav: the path without its folders' separators, and which part it is."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    name = "_".join(parts).lstrip(".") or "recording"
    stem = name.rpartition(".")[0] or name
    if len(stem.encode()) > MAX_WAV_NAME:
        stem = f"{_short_hash(path)}_{stem.encode()[-100:].decode(errors='ignore')}"
    part = [each.partition("=")[2].replace(",", "-") for each in (times, track) if each]
    return "_".join([stem, *part]) + ".wav"


def _file_stamp(recording: Path, known: dict[Path, str]) -> str:
    """Return size and time of a recording, "" where there is no such file."""
    if recording not in known:
        try:
            state = recording.stat()
            known[recording] = f"{state.st_size} {state.st_mtime_ns}" if stat.S_ISREG(state.st_mode) else ""
        except (OSError, ValueError):
            known[recording] = ""
    return known[recording]
