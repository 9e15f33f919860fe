import gzip
from pathlib import Path

import pytest
from finetuning import common_voice
from finetuning.common_voice import Clip
from finetuning.errors import UserError
from releases import COLUMNS, SAMPLE, digest, good_rows, sample_files, small_release, table, write_archive, write_folder

STATED_S = {
    "common_voice_it_40000000.mp3": 3.7,
    "common_voice_it_40000001.mp3": 2.6,
    "common_voice_it_40000002.mp3": 3.225,
}


def rows_of(tmp_path: Path, data: bytes) -> tuple[list[Clip], list[common_voice.Rejected], bool]:
    folder = write_folder(tmp_path / "release", {"validated.tsv": data})
    return common_voice.read_rows(common_voice.open_release(folder, tmp_path / "cache"))


@pytest.fixture(scope="module")
def small() -> dict[str, bytes]:
    return small_release(3)


def clip_bytes(release: common_voice.Release, wanted: set[str]) -> dict[str, bytes]:
    read = {}
    for name, clip in common_voice.clip_files(release, wanted):
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
        rows = rows or common_voice.read_rows(release)
        assert common_voice.read_rows(release) == rows
        assert common_voice.read_durations(release) == STATED_S
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
    assert common_voice.read_durations(release) is None
    with pytest.raises(UserError, match=r"no train\.tsv"):
        common_voice.read_release_splits(release)


def test_a_clip_may_stand_in_two_splits_of_the_release(tmp_path: Path, small: dict[str, bytes]) -> None:
    a, b = good_rows(2)
    tables = {"train.tsv": table([a]), "dev.tsv": table([b]), "test.tsv": table([a])}
    release = common_voice.open_release(write_folder(tmp_path, small | tables), tmp_path / "cache")
    assert common_voice.read_release_splits(release) == {a["path"]: ["train", "test"], b["path"]: ["validation"]}


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
    assert len(common_voice.read_rows(common_voice.open_release(archive, cache))[0]) == 4


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
        (garbled_header, "behind the last member"),
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
