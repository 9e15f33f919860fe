"""Files written whole or not at all, and what is read back."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from finetuning.errors import UserError
from finetuning.files import (
    atomic_path,
    ensure_writable_dir,
    parse_json,
    read_json,
    remove_stale_temp_files,
    write_json,
)

LEFT_OVER = ".finetuning-{pid}-0123456789abcdef-{name}"


def ended_process() -> int:
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


def test_only_temporary_files_of_processes_that_have_ended_are_removed(tmp_path: Path) -> None:
    pid = ended_process()
    of_ended = tmp_path / LEFT_OVER.format(pid=pid, name="last.ckpt")
    kept = [
        LEFT_OVER.format(pid=os.getpid(), name="last.ckpt"),
        f".{pid}-01-05-notes.txt",
        f".{pid}-last.ckpt",
        ".finetuning",
        f".finetuning-{pid}-notes.txt",
        LEFT_OVER.format(pid="9" * 30, name="a"),
    ]
    for path in (of_ended, *(tmp_path / name for name in kept)):
        path.write_text("mine")
    a_folder = tmp_path / LEFT_OVER.format(pid=pid, name="folder")
    a_folder.mkdir()
    remove_stale_temp_files(tmp_path)
    assert not of_ended.exists() and a_folder.is_dir()
    assert [name for name in kept if (tmp_path / name).is_file()] == kept


def test_no_link_that_lay_there_before_is_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in (f".{os.getpid()}-result.json", f".{os.getpid()}-writable", ".finetuning-result.json"):
        (tmp_path / name).symlink_to(victim)
    ensure_writable_dir(tmp_path)
    write_json(tmp_path / "result.json", {})
    assert victim.read_text() == "untouched"
    assert len(list(tmp_path.glob(".*"))) == 3, "the links stay"


def test_a_file_has_the_rights_that_the_user_gives_to_new_ones(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "result.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "result.json").stat().st_mode) == 0o640


def test_a_name_may_be_as_long_as_the_file_system_has_it(tmp_path: Path) -> None:
    path = tmp_path / ("è" * 125 + ".json")
    write_json(path, [1])
    assert read_json(path) == [1] and len(list(tmp_path.iterdir())) == 1


def test_a_link_to_what_may_only_be_read_is_put_in_place(tmp_path: Path) -> None:
    """Not by root, who may write everything."""
    (tmp_path / "model").write_bytes(b"weights")
    (tmp_path / "model").chmod(0o444)
    tmp_path.chmod(0o777)
    program = f"""
import os, sys
from pathlib import Path
from finetuning.files import atomic_path
if os.geteuid() == 0:
    os.chdir({str(tmp_path)!r})
    os.setuid(65534)
with atomic_path(Path("link")) as temporary:
    temporary.unlink()
    os.symlink("model", temporary)
"""
    started = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "Fine_tuning")},
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    assert (tmp_path / "link").read_bytes() == b"weights"


def test_what_cannot_be_read_is_not_called_unwritable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "copy") as temporary:
        temporary.write_bytes((tmp_path / "source").read_bytes())
    with pytest.raises(UserError, match=r"cannot write .*/none/copy"), atomic_path(tmp_path / "none" / "copy"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    ["{", "[" * 100_000, "1" * 5_000, '"\\ud800"', '{"\\uDC00": 1}', "nul", "", '"\n"'],
    ids=["cut short", "nested", "5,000 digits", "surrogate", "surrogate in a key", "no word", "empty", "line break"],
)
def test_what_is_no_json_is_a_value_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    with pytest.raises(ValueError):
        parse_json(text.encode())
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(UserError, match="is not JSON"):
        read_json(tmp_path / "own.json")


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert parse_json(json.dumps("😀")) == "😀"
    assert parse_json(json.dumps("😀").encode()) == "😀"
