"""What a user sees when something is wrong: one sentence and exit status 2, never a traceback."""

import errno
import io
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO


class UserError(ValueError):
    """A mistake outside the program; the message says what is wrong, where, and what to type next."""


class Terminated(KeyboardInterrupt):
    """Raised at SIGTERM, which a scheduler sends before it takes the machine away; handled like Ctrl-C."""


OUT_OF_MEMORY = (  # how torch words it in a RuntimeError, hydra a MemoryError, and Python what C code did not report
    r"MemoryError|bad.alloc|(can't|[Cc]annot) allocate memory|DefaultCPUAllocator|out of memory|"
    r"could not (create|execute) a primitive|error return without exception set"
)
# Control characters and changes of writing direction: they move the cursor or make a text read differently
TERMINAL_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LINE_BREAKS = re.compile("[\t\n\u2028\u2029\ud800-\udfff]")
CURSOR_MOVES = re.compile("(?:\r|\n|\x1b\\[A)*")  # what progress bars need, at the start of what they write
RESUMES = "finished work is kept; rerun the same command to resume"
MIN_FREE_BYTES = 1 << 20  # bytes
SIGNAL_ERRORS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` is how Python or torch reports a lack of memory."""
    return isinstance(error, MemoryError) or bool(re.search(OUT_OF_MEMORY, str(error)))


def describe_failure(error: Exception) -> str:
    """Return the reason in one sentence, whatever was raised."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return "not enough memory: finished work is kept; free some and rerun the same command"
    if isinstance(error, OSError) and error.filename:
        return f"cannot read or write {error.filename} ({error.strerror}); fix this and rerun"
    message = next(iter(str(error).strip().splitlines()), "")
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}, line {place.lineno}"
    return f"{type(error).__name__}: {message} ({where}); fix this or leave the model out"


def is_interruption(error: BaseException | None) -> bool:
    """Return whether a library has turned Ctrl-C or SIGTERM into `error`."""
    while error:
        if isinstance(error, KeyboardInterrupt) or re.search(r"\b(KeyboardInterrupt|Terminated): ", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def run_script(script: Callable[[], None]) -> None:
    """Call `script`; report what a user can fix as one sentence on stderr, with exit status 2.

    The status is 130 after Ctrl-C and 143 after SIGTERM. Control characters are filtered from all that is printed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for a terminal that cannot show a character
    try:
        with _filtered_streams(), _interruptible():
            script()
            sys.stdout.flush()
    except UserError as error:
        sys.exit(report_error(f"error: {error}", 2))
    except BrokenPipeError:
        sys.exit(report_error(f"error: the output was closed by its reader; {RESUMES}", 2))
    except OSError as error:
        if error.errno is None:
            raise
        sys.exit(report_error(f"error: {_os_error_message(error)} and rerun the same command", 2))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(
            report_error("error: not enough memory: finished work is kept; free some and rerun the same command", 2)
        )
    except KeyboardInterrupt as end:
        for number in SIGNAL_ERRORS:  # an impatient second Ctrl-C
            signal.signal(number, signal.SIG_IGN)
        reason, status = ("ended by SIGTERM", 143) if isinstance(end, Terminated) else ("interrupted", 130)
        sys.exit(report_error(f"{reason}: {RESUMES}", status))


def _os_error_message(error: OSError) -> str:
    """Return what the system refuses and what to do about it."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    if name is not None:
        return f"cannot read or write {name} ({error.strerror}); fix this"
    if error.errno == errno.ENOSPC:
        temporary = tempfile.gettempdir()
        if shutil.disk_usage(temporary).free < MIN_FREE_BYTES:
            return f"the disk of {temporary} is full; make room, or set TMPDIR to another folder,"
        return "the disk of the output is full; make room"
    return f"system error: {error.strerror}; fix this"


class _FilteredStream:
    """A text stream that replaces control characters by spaces, whoever prints them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text` without control characters."""
        start = CURSOR_MOVES.match(text).end()
        self._stream.write(text[:start] + TERMINAL_CONTROL.sub(" ", text[start:]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines without control characters."""
        for line in lines:
            self.write(line)


@contextmanager
def _filtered_streams() -> Iterator[None]:
    original = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_FilteredStream, original)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = original


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt or Terminated at a signal, even where a library turns them into another exception."""
    received: list[KeyboardInterrupt] = []

    def end(number: int, frame: FrameType | None) -> None:
        received.append(SIGNAL_ERRORS[number](number))
        raise received[-1]

    for number in SIGNAL_ERRORS:
        if signal.getsignal(number) != signal.SIG_IGN:  # which nohup and a shell's background set
            signal.signal(number, end)
    before, sys.unraisablehook = sys.unraisablehook, _resend_signal
    try:
        yield
    except Exception as error:  # an interrupted import can raise anything
        if received:
            raise received[-1] from error
        raise
    finally:
        sys.unraisablehook = before


def _resend_signal(unraisable: "sys.UnraisableHookArgs") -> None:
    """Resend, after a moment, a signal that arrived in a destructor, where nothing can be raised."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        return sys.__unraisablehook__(unraisable)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), *unraisable.exc_value.args))
    timer.daemon = True
    return timer.start()


def printable(text: str) -> str:
    """Return `text` in one line, without control characters."""
    return LINE_BREAKS.sub(" ", TERMINAL_CONTROL.sub(" ", text))


def report_error(sentence: str, status: int) -> int:
    """Print the sentence on stderr, after all that was printed before it, and return `status`."""
    try:
        sys.stdout.flush()
    except OSError:  # closed: Python would flush again at exit, fail, and change the status
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"\n{Path(sys.argv[0]).name}: {printable(sentence)}", file=sys.stderr)
    return status
