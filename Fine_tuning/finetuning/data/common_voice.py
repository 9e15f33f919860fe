"""A Common Voice release, packed or unpacked: where its tables are, and the bytes of its clips. It is only read."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from finetuning.config.schema import Archive
from finetuning.data.tar_stream import iter_members
from finetuning.errors import UserError
from finetuning.files import atomic_path, ensure_writable_dir, read_json, sha256, write_json

TABLES = ("validated.tsv", "train.tsv", "dev.tsv", "test.tsv", "clip_durations.tsv")
OTHER_ARCHIVE = "delete it and download it again, or correct dataset.archive if it is the one you mean"
MAX_TABLE_BYTES = 2_000_000_000  # of all tables together, which are read into memory; the English ones have half
MAX_CLIP_BYTES = 200_000_000  # read of a clip; ten minutes of audio, more than is ever used, take less
AUDIO = re.compile(r"(.+)\.(?:mp3|wav|flac|ogg|oga|opus|m4a|aac|mp4|webm|wma)", re.IGNORECASE)
LAYOUT = "a release holds validated.tsv and clips/ together in one folder, packed as .tar.gz or not"


@dataclass(frozen=True)
class Release:
    """A release that is open: where its tables and clips are."""

    name: str  # of its folder and its language: cv-corpus-24.0-2025-12-05/it
    source: Path  # the archive, or the folder that holds clips/
    tables: Path  # folder with copies of TABLES, as far as the release has them
    identity: dict[str, Any]  # differs when the source does
    stamps: dict[str, str] = field(repr=False)  # file name in clips/: size and time, which differ when the clip does
    clips: str = ""  # folder of the clips in an archive
    matched_names: dict[str, str] = field(default_factory=dict, repr=False, compare=False)  # by `clip_name`

    @property
    def packed(self) -> bool:
        """Return whether the source is an archive."""
        return self.source.is_file()

    def clip_name(self, path: str) -> str:
        """Return the file in clips/ that a table means by `path`.

        `path` may lack the suffix or have another one, begin with folders, and differ in case or in Unicode
        composition. It is returned unchanged where no file, or more than one, matches.
        """
        if path in self.stamps:
            return path
        folder, _, name = path.replace("\\", "/").rpartition("/")
        audio = AUDIO.fullmatch(name)
        variants = [name, *([audio[1]] if audio else [])] if name else []
        matches = [name] if name in self.stamps else next((m for m in map(self._similar_names, variants) if m), [])
        if len(matches) == 1:
            self.matched_names[path] = matches[0]
            return matches[0]
        return name if folder.rpartition("/")[2] == "clips" and name else path

    def _similar_names(self, name: str) -> list[str]:
        return self._names_by_key.get(_match_key(name), [])

    @cached_property
    def _names_by_key(self) -> dict[str, list[str]]:
        """Files in clips/ by their match key, with and without their suffix."""
        names: dict[str, list[str]] = {}
        for name in self.stamps:
            for key in {_match_key(name), _match_key(name.rpartition(".")[0] or name)}:
                names.setdefault(key, []).append(name)
        return names


def _match_key(name: str) -> str:
    """Return what names that differ only in case or in Unicode composition have in common."""
    return unicodedata.normalize("NFC", name).casefold()


def open_release(source: Path, cache: Path, published: Archive | None = None) -> Release:
    """Open the release at `source`; an archive is checked completely and its tables are copied to `cache`.

    Raises UserError, before anything is written, when there is nothing, no release, a damaged archive, an archive with
    a member that is not a plain file inside it, or one with the name of the `published` archive and other content.
    """
    if source.is_dir():
        return _open_folder(source)
    if not source.is_file():
        raise UserError(f"there is no release {source}; give dataset.source=… ({LAYOUT})")
    identity = {"name": source.name, "size": source.stat().st_size, "mtime_ns": source.stat().st_mtime_ns}
    expected = published if published and source.name == published.name else Archive()
    if expected.size_bytes and identity["size"] != expected.size_bytes:
        raise UserError(
            f"{source} has {identity['size']:,} bytes and should have {expected.size_bytes:,}; {OTHER_ARCHIVE}"
        )
    index = _cached_index(cache, identity)
    if index is None:
        try:
            index = _unpack_tables(source, cache, identity, expected.sha256)
        except UserError:
            if expected.sha256:  # where it is damaged, say that it is not the published one
                _check_archive(source, sha256(source), expected.sha256)
            raise
    _check_archive(source, index["sha256"], expected.sha256)
    name, about = _encodable(index["name"]), {"sha256": index["sha256"]}
    return Release(name, source, cache, about, index["stamps"], index["clips"])


def _cached_index(cache: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return what an earlier run read from the archive; None when the archive or the copies have changed since."""
    kinds = {"identity": dict, "sha256": str, "name": str, "tables": dict, "clips": str, "stamps": dict}
    try:
        index = read_json(cache / "release.json")
    except (ValueError, RecursionError):
        index = {}
    if not isinstance(index, dict) or not all(isinstance(index.get(key), kind) for key, kind in kinds.items()):
        return None
    if index["identity"] != identity or not all(isinstance(s, str) and s.isascii() for s in index["stamps"].values()):
        return None
    for table, digest in index["tables"].items():
        if table not in TABLES or not (cache / table).is_file():
            return None
        if sha256(cache / table) != digest:
            print(f"{cache / table} has changed since it was copied from the archive; it is copied again")
            return None
    return index if "validated.tsv" in index["tables"] else None


def _encodable(name: str) -> str:
    """Return the name of a folder, which need not be UTF-8, in a form that a UTF-8 file can hold."""
    return name.encode("utf-8", "replace").decode()


def _check_archive(source: Path, digest: str, expected: str) -> None:
    if expected and digest != expected:
        raise UserError(f"{source} has the SHA-256 {digest} and should have {expected}; {OTHER_ARCHIVE}")


def _open_folder(source: Path) -> Release:
    tables = [source / "validated.tsv"]
    if not tables[0].is_file():
        tables = sorted([*source.glob("*/validated.tsv"), *source.glob("*/*/validated.tsv")])
    folder = Path(_release_folder([str(path) for path in tables], source))
    clips = folder / "clips"
    if not clips.is_dir():
        raise UserError(f"there is no folder {clips}; {LAYOUT}")
    with os.scandir(clips) as entries:
        files = {entry.name: entry.stat() for entry in entries if entry.is_file()}
    stamps = {name: f"{stat.st_size} {stat.st_mtime_ns}" for name, stat in files.items()}
    release, language = ("", *folder.resolve().parts)[-2:]
    name = _encodable(f"{release}/{language}" if release.startswith("cv-corpus") else language)
    return Release(name, folder, folder, {"name": name}, stamps)


def _release_folder(tables: list[str], source: Path) -> str:
    """Return the folder of the only validated.tsv; raise UserError when there is none or more than one."""
    if not tables:
        raise UserError(f"{source} holds no validated.tsv; {LAYOUT}")
    if len(tables) > 1:
        raise UserError(
            f"{source} holds several releases ({', '.join(tables)}); set dataset.source to the folder of the one you "
            "mean"
        )
    return tables[0].rpartition("/")[0]


def _unpack_tables(source: Path, cache: Path, identity: dict[str, Any], expected: str) -> dict[str, Any]:
    """Stream the archive once: check every member and the checksum, then copy tables and clips' stamps to `cache`.

    Returns the index that is also written to release.json.
    """
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
    _check_archive(source, digest.hexdigest(), expected)
    folder = _release_folder(["/" + name for name in tables if PurePosixPath(name).name == "validated.tsv"], source)[1:]
    prefix = PurePosixPath(folder)
    ensure_writable_dir(cache)
    (cache / "release.json").unlink(missing_ok=True)  # it vouches for the tables: removed first, written last
    for table in TABLES:
        (cache / table).unlink(missing_ok=True)
        if str(prefix / table) in tables:
            with atomic_path(cache / table) as temporary:
                temporary.write_bytes(tables[str(prefix / table)])
    index = {
        "identity": identity,
        "sha256": digest.hexdigest(),
        "name": _encodable(folder or source.name.removesuffix(".tar.gz")),
        "tables": {table: sha256(cache / table) for table in TABLES if str(prefix / table) in tables},
        "clips": _encodable(str(prefix / "clips")),
        "stamps": stamps.get(str(prefix / "clips"), {}),
    }
    write_json(cache / "release.json", index)
    return index


def iter_clip_files(release: Release, wanted: set[str]) -> Iterator[tuple[str, bytes | Path]]:
    """Yield the wanted clips, each once and in stored order, as bytes (archive, streamed) or as a path (folder)."""
    if not release.packed:
        yield from ((name, release.source / "clips" / name) for name in release.stamps if name in wanted)
        return
    remaining = set(wanted)
    with iter_members(release.source) as members:
        for tar, member in members:
            name = PurePosixPath(member.name)
            if name.name in remaining and member.isreg() and _encodable(str(name.parent)) == release.clips:
                remaining.remove(name.name)
                yield name.name, tar.extractfile(member).read(MAX_CLIP_BYTES)
                if not remaining:
                    return
