"""Read the tables of a Common Voice release: the rows of validated.tsv, the durations and the release's own splits."""

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from finetuning.data.common_voice import MAX_TABLE_BYTES, Release, iter_clip_files
from finetuning.data.listing import Clip, Listing, Recording, RejectedRow
from finetuning.data.manifest import SPLITS
from finetuning.errors import UserError, printable

RELEASE_SPLITS = dict(zip(SPLITS, ("train.tsv", "dev.tsv", "test.tsv"), strict=True))


def list_release(release: Release, with_splits: bool) -> Listing:
    """Return what a release lists; `with_splits`: with its own splits, which it must then have."""
    splits = read_release_splits(release) if with_splits else None
    rows, rejected, speakers_named = read_rows(release)
    durations_s = read_durations(release)
    notes = []
    if release.matched_names:
        path, name = min(release.matched_names.items())
        example = f"{printable(path)!r} is taken for {printable(name)!r}"
        notes.append(f"the tables name {len(release.matched_names):,} clips otherwise than clips/ does: {example}")
    if durations_s is None:
        notes.append("the release has no clip_durations.tsv: truncated clips cannot be told from short ones")
    return Listing(
        release.name, "validated.tsv", release.identity, rows, rejected, speakers_named, release.stamps, durations_s,
        splits, partial(_iter_recordings, release), notes,
    )  # fmt: skip


def _iter_recordings(release: Release, clips: Iterable[Clip]) -> Iterator[Recording]:
    """Yield each of the clips with its file, in the order in which they are stored."""
    of_path = {clip.path: clip for clip in clips}
    for path, content in iter_clip_files(release, set(of_path)):
        yield content, [of_path[path]]


def read_rows(release: Release) -> tuple[list[Clip], list[RejectedRow], bool]:
    """Return the rows of validated.tsv, sorted, its malformed rows, and whether it names the speakers.

    A row's path is the name of its clip (`Release.clip_name`). Sorting makes the result independent of the order of the
    lines. Raises UserError when the table is not UTF-8 or has no column `path` or `sentence`.
    """
    table = release.tables / "validated.tsv"
    columns, lines = _read_table(table, "path", "sentence")
    indices = [columns.get(name) for name in ("path", "sentence", "client_id", "gender", "age")]
    indices.append(columns.get("accents", columns.get("accent")))  # the column's name before release 8
    clips, rejected, interned = [], [], {}
    for number, fields in lines:
        if len(fields) != len(columns):
            detail = f"line {number} of validated.tsv has {len(fields)} fields instead of {len(columns)}"
            path = fields[indices[0]] if indices[0] < len(fields) else ""
            rejected.append(RejectedRow(path, "malformed_row", detail))
            continue
        values = ["" if i is None else fields[i] for i in indices]
        values[0] = release.clip_name(values[0])
        values[2:] = [interned.setdefault(value, value) for value in values[2:]]  # saves memory: they repeat
        clips.append(Clip(*values))
    return sorted(clips), rejected, "client_id" in columns


def read_durations(release: Release) -> dict[str, float] | None:
    """Return the duration in seconds of each clip by clip_durations.tsv; None when the release has no such table."""
    table = release.tables / "clip_durations.tsv"
    if not table.is_file():
        return None
    columns, lines = _read_table(table, "clip", "duration[ms]")
    clip, duration = columns["clip"], columns["duration[ms]"]
    durations_s = {}
    for _, fields in lines:
        with suppress(ValueError, IndexError):  # a row without a duration
            seconds = float(fields[duration]) / 1000
            if 0 <= seconds < math.inf:
                durations_s[release.clip_name(fields[clip])] = seconds
    return durations_s


def read_release_splits(release: Release) -> dict[str, list[str]]:
    """Return, for each clip, the splits whose table (train.tsv, dev.tsv, test.tsv) names it.

    Raises UserError when the release lacks one of the tables.
    """
    splits: dict[str, list[str]] = {}
    for split, name in RELEASE_SPLITS.items():
        if not (release.tables / name).is_file():
            raise UserError(f"the release has no {name}; give dataset.split.by=speaker or dataset.split.by=clip")
        columns, lines = _read_table(release.tables / name, "path")
        paths = {release.clip_name(fields[columns["path"]]) for _, fields in lines if len(fields) == len(columns)}
        for path in paths:
            splits.setdefault(path, []).append(split)
    return splits


def _read_table(path: Path, *required: str) -> tuple[dict[str, int], list[tuple[int, list[str]]]]:
    """Return the index of each column by name, and (line number, fields) of every line that is not blank.

    The tables are written unquoted: quotes and backslashes have no special meaning, only tab and line feed separate.
    """
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise UserError(
            f"{path} has more than {MAX_TABLE_BYTES:,} bytes, too many to be read into memory; make it smaller"
        )
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        lines = data.decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line} is not UTF-8; convert the table or get it again") from error
    header = lines[0].split("\t")
    columns = {name: i for i, name in enumerate(header)}
    missing = [name for name in required if name not in columns]
    if len(columns) != len(header):
        raise UserError(f"{path} names a column twice; it has: {', '.join(header)}")
    for separator, plural in {",": "commas", ";": "semicolons", "|": "bars"}.items() if missing else ():
        if {name.strip(' "') for name in lines[0].split(separator)} >= set(required):
            raise UserError(f"{path} separates its columns by {plural}; write it with tabs between them, and no quotes")
    if missing:
        raise UserError(f"{path} has no column {' and no column '.join(missing)}; it has: {', '.join(header)}")
    return columns, [(i, line.split("\t")) for i, line in enumerate(lines[1:], start=2) if line]
