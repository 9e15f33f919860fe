"""What a user sees when something is wrong, and that nothing foreign steers the terminal."""

import errno
import os
import pty
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import ROOT

STEERING = "a\x1b]0;owned\x07b\x1b[2Jc\x9bd\u202ee\rf\x08g\x00"


def run_code(body: str, **how: object) -> subprocess.CompletedProcess[str]:
    """A script of ours whose main is `body`."""
    code = f"import sys\nsys.path.insert(0, {str(ROOT / 'Fine_tuning')!r})\nsys.argv = ['step.py']\n"
    code += "from finetuning.errors import UserError, run_script, printable\nfrom pathlib import Path\n"
    code += "def main():\n" + "".join(f"    {line}\n" for line in body.splitlines()) + "run_script(main)\n"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **how)


@pytest.mark.parametrize(
    "body",
    [
        f"print('text', {STEERING!r})",
        f"print('text', {STEERING!r}, file=sys.stderr)",
        f"raise UserError({STEERING!r})",
        f"open(Path('/none', {STEERING.rstrip(chr(0))!r}))",
        f"from tqdm import tqdm\ntqdm.write('text ' + {STEERING!r}, file=sys.stdout)",
        f"sys.stdout.writelines(['text ', {STEERING!r}])",
    ],
    ids=["printed", "on stderr", "in an error", "in a path", "beside a bar", "lines"],
)
def test_nothing_foreign_steers_the_terminal(body: str) -> None:
    ended = run_code(body)
    shown = ended.stdout + ended.stderr
    assert "Traceback" not in shown and "owned" in shown
    assert not set(shown.strip("\r\n")) & set("\x00\x07\x08\r\x1b\x9b\u202e"), repr(shown)


def test_texts_of_other_scripts_stay_as_they_are() -> None:
    text = "نیم\u200cفاصله \u200fعربي\u200e हिन्दी\u200d citta\u0300 \U0001f469\u200d\U0001f52c"
    ended = run_code(f"print({text!r})\nraise UserError({text!r})", env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert ended.stdout == text + "\n" and text in ended.stderr


def test_a_progress_bar_still_moves_on_a_terminal() -> None:
    main, other = pty.openpty()
    termios.tcsetwinsize(other, (24, 80))
    code = (
        f"import sys\nsys.path.insert(0, {str(ROOT / 'Fine_tuning')!r})\nfrom finetuning.errors import run_script\n"
        "from tqdm import tqdm\n"
        "def main():\n"
        "    for _ in tqdm(range(2), desc='outer'):\n"
        "        for _ in tqdm(range(2), desc='inner', leave=False):\n"
        "            pass\n"
        "run_script(main)\n"
    )
    subprocess.run([sys.executable, "-c", code], stdout=other, stderr=other, stdin=other, timeout=60, check=True)
    os.close(other)
    shown = b""
    with suppress(OSError):  # its end
        while more := os.read(main, 1 << 16):
            shown += more
    os.close(main)
    shown = shown.decode()
    assert "\r" in shown and "\x1b[A" in shown and "2/2" in shown


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (f"OSError({errno.EIO}, 'Input/output error')", "Input/output error"),
        (f"OSError({errno.ENOSPC}, 'No space left on device')", "the disk of the output is full"),
        (f"PermissionError({errno.EACCES}, 'Permission denied', '/root/x')", "/root/x (Permission denied)"),
        (f"PermissionError({errno.EACCES}, 'Permission denied', b'/root/x')", "/root/x (Permission denied)"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(raised: str, words: str) -> None:
    ended = run_code(f"raise {raised}")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert words in ended.stderr


def test_a_full_disk_for_temporary_files_is_named(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        ended = run_code("import tempfile\ntempfile.TemporaryFile().write(bytes(10**6))", env={"TMPDIR": str(tmp_path)})
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert f"the disk of {tmp_path} is full" in ended.stderr


def test_a_fault_of_the_program_stays_a_traceback() -> None:
    ended = run_code("raise OSError('no number')")
    assert ended.returncode == 1 and "Traceback" in ended.stderr
