import gzip
import io
import json
import os
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from finetuning.data import common_voice, release_tables
from finetuning.data.listing import Clip, RejectedRow
from finetuning.errors import UserError
from releases import COLUMNS, SAMPLE, digest, good_rows, sample_files, small_release, table, write_archive, write_folder

STATED_S = {
    "common_voice_it_40000000.mp3": 3.7,
    "common_voice_it_40000001.mp3": 2.6,
    "common_voice_it_40000002.mp3": 3.225,
}


def rows_of(tmp_path: Path, data: bytes) -> tuple[list[Clip], list[RejectedRow], bool]:
    folder = write_folder(tmp_path / "release", {"validated.tsv": data})
    return release_tables.read_rows(common_voice.open_release(folder, tmp_path / "cache"))


@pytest.fixture(scope="module")
def small() -> dict[str, bytes]:
    return small_release(3)


def clip_bytes(release: common_voice.Release, wanted: set[str]) -> dict[str, bytes]:
    read = {}
    for name, clip in common_voice.iter_clip_files(release, wanted):
        assert name not in read
        read[name] = clip.read_bytes() if isinstance(clip, Path) else clip
    return read


def test_archive_and_every_folder_layout_hold_the_same(tmp_path: Path, small: dict[str, bytes]) -> None:
    language = write_folder(tmp_path / "cv-corpus-9.0" / "it", small)
    archive = write_archive(tmp_path / "a.tar.gz", small)
    dotted = write_archive(tmp_path / "b.tar.gz", small, prefix="./cv-corpus-9.0/it/")
    flat = write_archive(tmp_path / "c.tar.gz", small, prefix="")
    wanted = {row["path"] for row in good_rows(2)}
    rows = None
    for i, source in enumerate((language, language.parent, archive, dotted, flat)):
        release = common_voice.open_release(source, tmp_path / f"cache {i}")
        assert release.name == ("c" if source == flat else "cv-corpus-9.0/it")
        assert set(release.stamps) == {row["path"] for row in good_rows(3)}
        assert clip_bytes(release, wanted) == {path: sample_files()[path] for path in wanted}
        rows = rows or release_tables.read_rows(release)
        assert release_tables.read_rows(release) == rows
        assert release_tables.read_durations(release) == STATED_S
    assert digest(language) == digest(write_folder(tmp_path / "again", small))


def test_columns_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    columns = ["sentence", "age", "path", "gender", "accent", "client_id"]
    row = {"sentence": "Ciao", "age": "twenties", "path": "a.mp3", "gender": "f", "accent": "Roma", "client_id": "me"}
    rows, rejected, named = rows_of(tmp_path, b"\xef\xbb\xbf" + table([row], columns))
    assert rows == [Clip("a.mp3", "Ciao", "me", "f", "twenties", "Roma")]
    assert not rejected and named


def test_any_character_of_a_sentence_survives(tmp_path: Path) -> None:
    sentences = ['"lone', "'", "back\\slash\\", '""', "a\u2028b\x85c", "n\\tn", "NA", "null", "1.0", " x ", "#"]
    data = table([{"path": f"{i:02}.mp3", "sentence": s} for i, s in enumerate(sentences)], ["path", "sentence"])
    rows, rejected, named = rows_of(tmp_path, data)
    assert [clip.sentence for clip in rows] == sentences
    assert not rejected and not named


def test_windows_line_ends_and_blank_lines_are_no_content(tmp_path: Path) -> None:
    rows, rejected, _ = rows_of(tmp_path, b"path\tsentence\r\na.mp3\tCiao\r\n\r\nb.mp3\tSi\r\n\n")
    assert rows == [Clip("a.mp3", "Ciao"), Clip("b.mp3", "Si")] and not rejected


def test_rows_come_in_one_order_whatever_the_order_of_lines(tmp_path: Path) -> None:
    rows = good_rows(12)
    assert rows_of(tmp_path / "1", table(rows)) == rows_of(tmp_path / "2", table(rows[::-1]))


def test_a_line_with_too_few_or_too_many_fields_is_rejected_alone(tmp_path: Path) -> None:
    data = b"path\tsentence\tage\na.mp3\tCiao\nb.mp3\tBuona\tsera\tsignora\nc.mp3\tBene\t\n"
    rows, rejected, _ = rows_of(tmp_path, data)
    assert rows == [Clip("c.mp3", "Bene")]
    assert [(r.path, r.reason) for r in rejected] == [("a.mp3", "malformed_row"), ("b.mp3", "malformed_row")]
    assert "line 3" in rejected[1].detail and "4 fields instead of 3" in rejected[1].detail


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 3 is not UTF-8"):
        rows_of(tmp_path, "path\tsentence\na.mp3\tè\nb.mp3\tPerch".encode() + b"\xe9\n")


@pytest.mark.parametrize("missing", ["path", "sentence"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, missing: str) -> None:
    columns = [c for c in COLUMNS if c != missing]
    with pytest.raises(UserError, match=f"no column {missing}; it has: client_id, .*segment"):
        rows_of(tmp_path, table(good_rows(1), columns))


def test_a_release_without_durations_or_splits_says_so(tmp_path: Path, small: dict[str, bytes]) -> None:
    files = {name: data for name, data in small.items() if name != "clip_durations.tsv"}
    release = common_voice.open_release(write_archive(tmp_path / "a.tar.gz", files), tmp_path / "cache")
    assert release_tables.read_durations(release) is None
    with pytest.raises(UserError, match=r"no train\.tsv"):
        release_tables.read_release_splits(release)


def test_a_clip_may_stand_in_two_splits_of_the_release(tmp_path: Path, small: dict[str, bytes]) -> None:
    a, b = good_rows(2)
    tables = {"train.tsv": table([a]), "dev.tsv": table([b]), "test.tsv": table([a])}
    release = common_voice.open_release(write_folder(tmp_path, small | tables), tmp_path / "cache")
    assert release_tables.read_release_splits(release) == {a["path"]: ["train", "test"], b["path"]: ["validation"]}


def test_the_archive_is_read_once_and_again_when_it_is_another(tmp_path: Path, small: dict[str, bytes]) -> None:
    archive, cache = write_archive(tmp_path / "a.tar.gz", small), tmp_path / "cache"
    first = common_voice.open_release(archive, cache)
    made = (cache / "release.json").stat().st_mtime_ns
    assert common_voice.open_release(archive, cache) == first
    assert (cache / "release.json").stat().st_mtime_ns == made
    (cache / "validated.tsv").unlink()
    assert common_voice.open_release(archive, cache) == first
    write_archive(archive, small_release(4))
    assert len(common_voice.open_release(archive, cache).stamps) == 4
    assert len(release_tables.read_rows(common_voice.open_release(archive, cache))[0]) == 4


def several(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "a.tar.gz", {f"{x}/validated.tsv": b"path\tsentence\n" for x in ("it", "en")})


def truncated(tmp_path: Path, share: float) -> Path:
    data = SAMPLE.read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(data[: int(len(data) * share)])
    return tmp_path / "a.tar.gz"


def flipped(tmp_path: Path) -> Path:
    data = bytearray(SAMPLE.read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.tar.gz").write_bytes(data)
    return tmp_path / "a.tar.gz"


def text_file(tmp_path: Path, packed: bool) -> Path:
    data = b"<html>login</html>" * 100
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data) if packed else data)
    return tmp_path / "a.tar.gz"


def cut_inside(tmp_path: Path) -> Path:
    """A whole gzip file around half a tar."""
    half = gzip.decompress(SAMPLE.read_bytes())[:1_000_000]
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(half, 1))
    return tmp_path / "a.tar.gz"


def garbled_header(tmp_path: Path) -> Path:
    """A whole gzip file around a tar whose last clip has no header any more: tarfile alone takes that for the end."""
    data = bytearray(gzip.decompress(write_archive(tmp_path / "a.tar.gz", small_release(3)).read_bytes()))
    header = data.index(b"cv-corpus-9.0/it/clips/common_voice_it_40000002.mp3")
    data[header : header + 512] = b"\xff" * 512
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data))
    return tmp_path / "a.tar.gz"


def without_trailer(tmp_path: Path) -> Path:
    """The last bytes of the download are missing, after the last member."""
    archive = write_archive(tmp_path / "a.tar.gz", small_release(12))
    archive.write_bytes(archive.read_bytes()[:-8])
    return archive


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nothing", "there is no release"),
        (lambda folder: text_file(folder, packed=False), "is not a .tar.gz"),
        (lambda folder: text_file(folder, packed=True), "damaged or not a .tar.gz"),
        (lambda folder: truncated(folder, 0.99), "truncated"),
        (lambda folder: truncated(folder, 0.3), "truncated"),
        (lambda folder: truncated(folder, 0), "damaged|truncated|not a .tar.gz"),
        (flipped, "damaged"),
        (cut_inside, "damaged|truncated"),
        (garbled_header, "after the last member"),
        (without_trailer, "truncated"),
        (lambda folder: folder, "holds no validated.tsv"),
        (lambda folder: write_archive(folder / "a.tar.gz", {"x.tsv": b""}), "holds no validated.tsv"),
        (several, "several releases .*en/validated.tsv, .*it/validated.tsv|several releases .*it.*en"),
        (lambda folder: write_archive(folder / "a.tar.gz", {"x": b""}, prefix="../"), r"'\.\./x' points outside"),
        (lambda folder: write_archive(folder / "a.tar.gz", {"x": b""}, prefix="it/../../"), "points outside"),
        (lambda folder: write_archive(folder / "a.tar.gz", {"x": b""}, prefix="/tmp/"), "'/tmp/x' points outside"),
        (
            lambda folder: write_archive(folder / "a.tar.gz", {"x": b"/etc"}, links=True),
            "'cv-corpus-9.0/it/x' is a link",
        ),
    ],
)
def test_what_is_no_release_is_refused_and_nothing_is_written(tmp_path: Path, make, words: str) -> None:
    (tmp_path / "source").mkdir()
    source = make(tmp_path / "source")
    before = digest(tmp_path)
    with pytest.raises(UserError, match=words):
        common_voice.open_release(source, tmp_path / "output" / "release")
    assert digest(tmp_path) == before and not (tmp_path / "output").exists()


def test_a_folder_without_clips_is_no_release(tmp_path: Path) -> None:
    (tmp_path / "validated.tsv").write_bytes(table(good_rows(1)))
    with pytest.raises(UserError, match=r"no folder .*clips"):
        common_voice.open_release(tmp_path, tmp_path / "cache")


CLIPS = ("a.mp3", "B.mp3", "same.mp3", "same.wav", "perché.wav", "dotted.name.mp3", "odd.mp3", "ODD.mp3")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a.mp3", "a.mp3"),
        ("a", "a.mp3"),  # as in the first releases
        ("a.wav", "a.mp3"),
        ("A.MP3", "a.mp3"),
        ("b", "B.mp3"),
        ("clips/a.mp3", "a.mp3"),
        ("clips\\a.mp3", "a.mp3"),
        ("/home/me/cv/it/clips/a.mp3", "a.mp3"),
        ("C:\\cv\\a.wav", "a.mp3"),
        (unicodedata.normalize("NFD", "perché.mp3"), "perché.wav"),
        ("dotted.name", "dotted.name.mp3"),
        ("same.wav", "same.wav"),
        ("odd.mp3", "odd.mp3"),
        ("clips/gone.mp3", "gone.mp3"),
        *(
            (path, path)
            for path in ("same", "Odd", "dotted", "a.mp4a", "a.1", "../gone.mp3", "clips/", "", ".mp3", "x/y")
        ),
    ],
)
def test_a_clip_is_found_by_what_a_table_calls_it_unless_several_may_be_meant(
    tmp_path: Path, path: str, name: str
) -> None:
    clips = {f"clips/{clip}": b"" for clip in CLIPS}
    durations = f"clip\tduration[ms]\n{path}\t1000\n".encode()
    files = clips | {"validated.tsv": f"path\tsentence\n{path}\tCiao\n".encode(), "clip_durations.tsv": durations}
    files |= dict.fromkeys(release_tables.RELEASE_SPLITS.values(), files["validated.tsv"])
    for source in (write_folder(tmp_path / "it", files), write_archive(tmp_path / "it.tar.gz", files)):
        release = common_voice.open_release(source, tmp_path / "cache")
        assert [clip.path for clip in release_tables.read_rows(release)[0]] == [name]
        assert list(release_tables.read_durations(release)) == [name]
        assert list(release_tables.read_release_splits(release)) == [name]
        assert release.matched_names == ({path: name} if name in CLIPS and name != path else {})


@pytest.mark.parametrize(("sign", "called"), [(",", "commas"), (";", "semicolons"), ("|", "bars")])
def test_a_table_without_tabs_is_told_to_have_them(tmp_path: Path, sign: str, called: str) -> None:
    data = table(good_rows(2)).replace(b"\t", sign.encode())
    for header in (data, b'"' + data.replace(sign.encode(), f'"{sign}"'.encode())):
        with pytest.raises(UserError, match=f"separates its columns by {called}; write it with tabs"):
            rows_of(tmp_path, header)


def headers(path: Path, type: bytes, count: int, data: bytes) -> Path:
    """An archive with `count` headers of a type before its first member."""
    header = tarfile.TarInfo("x")
    header.type, header.size = type, len(data)
    block = header.tobuf(tarfile.USTAR_FORMAT) + data.ljust(-(-len(data) // 512) * 512, b"\0")
    path.write_bytes(gzip.compress(block * count + tarfile.TarInfo("a").tobuf() + bytes(1024)))
    return path


@pytest.mark.parametrize("type", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_an_archive_of_headers_without_end_is_refused(tmp_path: Path, type: bytes) -> None:
    with pytest.raises(UserError, match=r"thousands of headers|holds no validated\.tsv"):  # tarfile takes global ones
        common_voice.open_release(headers(tmp_path / "a.tar.gz", type, 5000, b"9 a=bcde\n"), tmp_path / "cache")
    with pytest.raises(UserError, match="a header of 2,097,152 bytes"):
        common_voice.open_release(headers(tmp_path / "a.tar.gz", type, 1, bytes(1 << 21)), tmp_path / "cache")


def test_a_table_that_does_not_fit_into_memory_is_refused_unread(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("it/validated.tsv")
    huge.size = 3_000_000_000  # as the header says: nothing follows
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(huge.tobuf(tarfile.GNU_FORMAT)))
    with pytest.raises(UserError, match="its tables have more than 2,000,000,000 bytes"):
        common_voice.open_release(tmp_path / "a.tar.gz", tmp_path / "cache")
    folder = write_folder(tmp_path / "it", {"validated.tsv": b"path\tsentence\n"})
    os.truncate(folder / "validated.tsv", huge.size)
    with pytest.raises(UserError, match=r"validated.tsv has more than 2,000,000,000 bytes"):
        release_tables.read_rows(common_voice.open_release(folder, tmp_path / "cache"))


def test_names_that_are_not_utf8_do_no_harm(tmp_path: Path, small: dict[str, bytes]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/cv-corpus-\xff"))
    odd = small | {"clips/" + os.fsdecode(b"\xe9.mp3"): b"x"}
    write_folder(folder / "it", odd)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in odd.items():
            member = tarfile.TarInfo(os.fsdecode(b"cv-corpus-\xff/it/") + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    for source in (folder, tmp_path / "a.tar.gz"):
        release = common_voice.open_release(source, tmp_path / "cache")
        assert release.name == "cv-corpus-?/it"
        rows, _, _ = release_tables.read_rows(release)
        assert len(rows) == 3 and {row.path for row in rows} <= release.stamps.keys()
        assert len(clip_bytes(release, {row.path for row in rows})) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"tables": ["validated.tsv"]},  # as an earlier version wrote it
        {"tables": {}},
        {"tables": {"../validated.tsv": ""}},
        {"tables": {"validated.tsv": "another"}},
        {"stamps": {"a.mp3": 5}},
        {"stamps": []},
        *({key: value} for key in ("identity", "sha256", "name", "clips") for value in (None, 5, [])),
        None,
    ],
)
def test_what_was_kept_of_an_archive_and_is_not_what_it_was_is_made_again(
    tmp_path: Path, small: dict[str, bytes], change: dict[str, Any] | None
) -> None:
    archive, cache = write_archive(tmp_path / "a.tar.gz", small), tmp_path / "cache"
    first = common_voice.open_release(archive, cache)
    before = digest(cache)
    kept = json.loads((cache / "release.json").read_text())
    (cache / "release.json").write_text(json.dumps([kept] if change is None else kept | change))
    assert common_voice.open_release(archive, cache) == first
    assert digest(cache) == before


def test_a_table_that_was_changed_after_it_was_copied_is_copied_again(
    tmp_path: Path, small: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    archive, cache = write_archive(tmp_path / "a.tar.gz", small), tmp_path / "cache"
    common_voice.open_release(archive, cache)
    before = (cache / "validated.tsv").read_bytes()
    (cache / "validated.tsv").write_bytes(before.replace(b"mp3", b"mpx"))
    common_voice.open_release(archive, cache)
    assert (cache / "validated.tsv").read_bytes() == before
    assert "validated.tsv has changed since it was copied" in capsys.readouterr().out
