"""A Common Voice release, packed or unpacked, as rows of validated.tsv and the bytes of their clips. Never changed."""

import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from finetuning.config.schema import Archive
from finetuning.data.manifest import SPLITS
from finetuning.data.tar_stream import iter_members
from finetuning.errors import UserError
from finetuning.files import atomic_path, ensure_writable_dir, read_json, sha256, write_json

TABLES = ("validated.tsv", "train.tsv", "dev.tsv", "test.tsv", "clip_durations.tsv")
RELEASE_SPLITS = dict(zip(SPLITS, ("train.tsv", "dev.tsv", "test.tsv"), strict=True))
OTHER_ARCHIVE = "delete it and get it again, or correct dataset.archive if it is the one you mean"
MAX_TABLE_BYTES = (
    2_000_000_000  # bytes of all tables together, which are read into memory; those of English have one half
)
MAX_CLIP_BYTES = 200_000_000  # bytes of a clip that are read; ten minutes of sound, more than is ever used, have less
AUDIO = re.compile(r"(.+)\.(?:mp3|wav|flac|ogg|oga|opus|m4a|aac|mp4|webm|wma)", re.IGNORECASE)
LAYOUT = "a release holds validated.tsv and clips/ together in one folder, packed as .tar.gz or not"


@dataclass(frozen=True, slots=True, order=True)
class Clip:
    """One row of validated.tsv."""

    path: str  # file name in clips/
    sentence: str  # as it stands in the release
    speaker: str = ""  # client_id
    gender: str = ""
    age: str = ""
    accents: str = ""

    @property
    def wav(self) -> str:
        """File name of the converted clip."""
        return (self.path.rpartition(".")[0] or self.path) + ".wav"


@dataclass(frozen=True, slots=True, order=True)
class RejectedRow:
    """A row that did not become an utterance."""

    path: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Release:
    """Where the tables and the clips are."""

    name: str  # of its folder, with the language's: cv-corpus-24.0-2025-12-05/it
    source: Path  # the archive, or the folder that holds clips/
    tables: Path  # folder with copies of TABLES, as far as the release has them
    identity: dict[str, Any]  # differs when the source is another one
    stamps: dict[str, str] = field(repr=False)  # file name in clips/: size and time, differ when the clip is another
    clips: str = ""  # the folder of the clips in an archive
    taken_for: dict[str, str] = field(default_factory=dict, repr=False, compare=False)  # what `clip_name` has matched

    @property
    def packed(self) -> bool:
        """Whether the source is an archive."""
        return self.source.is_file()

    def clip_name(self, path: str) -> str:
        """The file in clips/ that a table means by `path`.

        It may lack the suffix or have another, name folders before it, and differ in case or in Unicode composition. It
        stays what it is where there is no such file, or several.
        """
        if path in self.stamps:
            return path
        folder, _, name = path.replace("\\", "/").rpartition("/")
        audio = AUDIO.fullmatch(name)
        looks = [name, *([audio[1]] if audio else [])] if name else []
        found = [name] if name in self.stamps else next((f for f in map(self._looking_like, looks) if f), [])
        if len(found) == 1:
            self.taken_for[path] = found[0]
            return found[0]
        return name if folder.rpartition("/")[2] == "clips" and name else path

    def _looking_like(self, name: str) -> list[str]:
        return self._by_look.get(_look(name), [])

    @cached_property
    def _by_look(self) -> dict[str, list[str]]:
        """Files in clips/ by what they look like with and without their suffix."""
        files: dict[str, list[str]] = {}
        for name in self.stamps:
            for look in {_look(name), _look(name.rpartition(".")[0] or name)}:
                files.setdefault(look, []).append(name)
        return files


def _look(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def open_release(source: Path, cache: Path, published: Archive | None = None) -> Release:
    """Find the tables and clips of `source`; an archive is checked whole and its tables are copied to `cache`.

    UserError: nothing there, not a release, a damaged archive, an archive with a member that is no plain file inside
    it, or one that bears the name of the `published` one and is another; then nothing is written.
    """
    if source.is_dir():
        return _open_folder(source)
    if not source.is_file():
        raise UserError(f"there is no release {source}; give dataset.source=… ({LAYOUT})")
    identity = {"name": source.name, "size": source.stat().st_size, "mtime_ns": source.stat().st_mtime_ns}
    wanted = published if published and source.name == published.name else Archive()
    if wanted.size_bytes and identity["size"] != wanted.size_bytes:
        raise UserError(
            f"{source} has {identity['size']:,} bytes and should have {wanted.size_bytes:,}; {OTHER_ARCHIVE}"
        )
    known = _remembered(cache, identity)
    if known is None:
        try:
            known = _unpack_tables(source, cache, identity, wanted.sha256)
        except UserError:
            if wanted.sha256:  # a damaged file is another one, too
                _check_archive(source, sha256(source), wanted.sha256)
            raise
    _check_archive(source, known["sha256"], wanted.sha256)
    name, about = _encodable(known["name"]), {"sha256": known["sha256"]}
    return Release(name, source, cache, about, known["stamps"], known["clips"])


def _remembered(cache: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier run has read of the archive; None where that is another one, or what it has left is changed."""
    kinds = {"identity": dict, "sha256": str, "name": str, "tables": dict, "clips": str, "stamps": dict}
    try:
        known = read_json(cache / "release.json")
    except (ValueError, RecursionError):
        known = {}
    if not isinstance(known, dict) or not all(isinstance(known.get(key), kind) for key, kind in kinds.items()):
        return None
    if known["identity"] != identity or not all(isinstance(s, str) and s.isascii() for s in known["stamps"].values()):
        return None
    for table, digest in known["tables"].items():
        if table not in TABLES or not (cache / table).is_file():
            return None
        if sha256(cache / table) != digest:
            print(f"{cache / table} has changed since it was copied from the archive; it is copied again")
            return None
    return known if "validated.tsv" in known["tables"] else None


def _encodable(name: str) -> str:
    """The name of a folder, which need not be UTF-8, for a file that is."""
    return name.encode("utf-8", "replace").decode()


def _check_archive(source: Path, found: str, wanted: str) -> None:
    if wanted and found != wanted:
        raise UserError(f"{source} has the SHA-256 {found} and should have {wanted}; {OTHER_ARCHIVE}")


def _open_folder(source: Path) -> Release:
    found = [source / "validated.tsv"]
    if not found[0].is_file():
        found = sorted([*source.glob("*/validated.tsv"), *source.glob("*/*/validated.tsv")])
    folder = Path(_the_one([str(path) for path in found], source))
    clips = folder / "clips"
    if not clips.is_dir():
        raise UserError(f"there is no folder {clips}; {LAYOUT}")
    with os.scandir(clips) as entries:
        files = {entry.name: entry.stat() for entry in entries if entry.is_file()}
    stamps = {name: f"{stat.st_size} {stat.st_mtime_ns}" for name, stat in files.items()}
    release, language = ("", *folder.resolve().parts)[-2:]
    name = _encodable(f"{release}/{language}" if release.startswith("cv-corpus") else language)
    return Release(name, folder, folder, {"name": name}, stamps)


def _the_one(found: list[str], source: Path) -> str:
    """The folder of the one validated.tsv."""
    if not found:
        raise UserError(f"{source} holds no validated.tsv; {LAYOUT}")
    if len(found) > 1:
        raise UserError(
            f"{source} holds several releases ({', '.join(found)}); give dataset.source= the folder of the one you mean"
        )
    return found[0].rpartition("/")[0]


def _unpack_tables(source: Path, cache: Path, identity: dict[str, Any], wanted: str) -> dict[str, Any]:
    """Stream the archive once: check every member and the checksum, then copy tables and clips' stamps to `cache`."""
    tables: dict[str, bytes] = {}  # by full name
    stamps: dict[str, dict[str, str]] = {}  # by folder, then by file name
    digest, size = hashlib.sha256(), 0
    with iter_members(source, "checking the archive", digest) as members:
        for tar, member in members:
            name = PurePosixPath(member.name)
            if member.isreg() and name.name in TABLES:
                size += member.size
                if size > MAX_TABLE_BYTES:
                    raise UserError(
                        f"{source}: its tables have more than {MAX_TABLE_BYTES:,} bytes; do not use this file"
                    )
                tables[str(name)] = tar.extractfile(member).read()
            elif member.isreg() and name.parent.name == "clips" and name.name.isprintable():
                stamps.setdefault(str(name.parent), {}).setdefault(name.name, f"{member.size} {member.mtime}")
    _check_archive(source, digest.hexdigest(), wanted)
    folder = _the_one(["/" + name for name in tables if PurePosixPath(name).name == "validated.tsv"], source)[1:]
    prefix = PurePosixPath(folder)
    ensure_writable_dir(cache)
    (cache / "release.json").unlink(missing_ok=True)  # it vouches for the tables, so it goes first and comes last
    for table in TABLES:
        (cache / table).unlink(missing_ok=True)
        if str(prefix / table) in tables:
            with atomic_path(cache / table) as temporary:
                temporary.write_bytes(tables[str(prefix / table)])
    known = {
        "identity": identity,
        "sha256": digest.hexdigest(),
        "name": _encodable(folder or source.name.removesuffix(".tar.gz")),
        "tables": {table: sha256(cache / table) for table in TABLES if str(prefix / table) in tables},
        "clips": _encodable(str(prefix / "clips")),
        "stamps": stamps.get(str(prefix / "clips"), {}),
    }
    write_json(cache / "release.json", known)
    return known


def iter_clip_files(release: Release, wanted: set[str]) -> Iterator[tuple[str, bytes | Path]]:
    """The wanted clips, each once, as bytes (archive, streamed) or as a path (folder), in the order they lie there."""
    if not release.packed:
        yield from ((name, release.source / "clips" / name) for name in release.stamps if name in wanted)
        return
    left = set(wanted)
    with iter_members(release.source) as members:
        for tar, member in members:
            name = PurePosixPath(member.name)
            if name.name in left and member.isreg() and _encodable(str(name.parent)) == release.clips:
                left.remove(name.name)
                yield name.name, tar.extractfile(member).read(MAX_CLIP_BYTES)
                if not left:
                    return


def read_rows(release: Release) -> tuple[list[Clip], list[RejectedRow], bool]:
    """Rows of validated.tsv in the order of their fields, rows that are none, and whether the speakers are named.

    A row's path is the name of its clip, as far as that can be told (`Release.clip_name`). The order does not depend on
    the order of the lines, nor does anything made of it. UserError: not UTF-8, or no column `path` or `sentence`.
    """
    table = release.tables / "validated.tsv"
    columns, lines = _read_table(table, "path", "sentence")
    where = [columns.get(name) for name in ("path", "sentence", "client_id", "gender", "age")]
    where.append(columns.get("accents", columns.get("accent")))  # the column's name before release 8
    clips, rejected, same = [], [], {}
    for number, fields in lines:
        if len(fields) != len(columns):
            detail = f"line {number} of validated.tsv has {len(fields)} fields instead of {len(columns)}"
            path = fields[where[0]] if where[0] < len(fields) else ""
            rejected.append(RejectedRow(path, "malformed_row", detail))
            continue
        values = ["" if i is None else fields[i] for i in where]
        values[0] = release.clip_name(values[0])
        values[2:] = [same.setdefault(value, value) for value in values[2:]]  # one copy of what repeats: memory
        clips.append(Clip(*values))
    return sorted(clips), rejected, "client_id" in columns


def read_durations(release: Release) -> dict[str, float] | None:
    """Seconds by clip as clip_durations.tsv states them; None where the release has no such table."""
    table = release.tables / "clip_durations.tsv"
    if not table.is_file():
        return None
    columns, lines = _read_table(table, "clip", "duration[ms]")
    clip, duration = columns["clip"], columns["duration[ms]"]
    stated = {}
    for _, fields in lines:
        with suppress(ValueError, IndexError):  # a row that states nothing
            seconds = float(fields[duration]) / 1000
            if 0 <= seconds < math.inf:
                stated[release.clip_name(fields[clip])] = seconds
    return stated


def read_release_splits(release: Release) -> dict[str, list[str]]:
    """Clip: the splits whose table names it (train.tsv, dev.tsv, test.tsv); UserError where one is missing."""
    splits: dict[str, list[str]] = {}
    for split, name in RELEASE_SPLITS.items():
        if not (release.tables / name).is_file():
            raise UserError(f"the release has no {name}; give dataset.split.by=speaker or dataset.split.by=clip")
        columns, lines = _read_table(release.tables / name, "path")
        paths = {release.clip_name(fields[columns["path"]]) for _, fields in lines if len(fields) == len(columns)}
        for path in paths:
            splits.setdefault(path, []).append(split)
    return splits


def _read_table(path: Path, *needed: str) -> tuple[dict[str, int], list[tuple[int, list[str]]]]:
    """Columns by name, and (line number, fields) of every line that is not blank.

    The tables are written unquoted: a quote or a backslash is a letter like any other, only tab and line feed separate.
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
    missing = [name for name in needed if name not in columns]
    if len(columns) != len(header):
        raise UserError(f"{path} names a column twice; it has: {', '.join(header)}")
    for sign, called in {",": "commas", ";": "semicolons", "|": "bars"}.items() if missing else ():
        if {name.strip(' "') for name in lines[0].split(sign)} >= set(needed):
            raise UserError(f"{path} separates its columns by {called}; write it with tabs between them, and no quotes")
    if missing:
        raise UserError(f"{path} has no column {' and no column '.join(missing)}; it has: {', '.join(header)}")
    return columns, [(i, line.split("\t")) for i, line in enumerate(lines[1:], start=2) if line]
