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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO


class UserError(ValueError):
    """A mistake outside the program: says what is wrong, where, and what to type next."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends before it takes the machine away, ends what Ctrl-C ends."""


OUT_OF_MEMORY = (  # what torch says of it in a RuntimeError, and hydra of a MemoryError
    r"MemoryError|bad.alloc|(can't|[Cc]annot) allocate memory|DefaultCPUAllocator|out of memory|"
    r"could not (create|execute) a primitive"
)
# What steers a terminal, or lets a text read otherwise than it stands: control characters, the reversal of directions
TERMINAL_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LINE_BREAKS = re.compile("[\t\n\u2028\u2029\ud800-\udfff]")
CURSOR_MOVES = re.compile("(?:\r|\n|\x1b\\[A)*")  # what progress bars need, at the start of what they write
MIN_FREE_BYTES = 1 << 20  # bytes
SIGNAL_ERRORS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch says by `error` that memory ran short."""
    return isinstance(error, MemoryError) or bool(re.search(OUT_OF_MEMORY, str(error)))


def run_script(script: Callable[[], None]) -> None:
    """Call `script` and turn what a user can mend into one sentence on stderr and exit status 2.

    The status is 130 after Ctrl-C and 143 after SIGTERM. Nothing that is printed meanwhile steers the terminal.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter
    try:
        with _filtered_streams(), _interruptible():
            script()
            sys.stdout.flush()
    except UserError as error:
        sys.exit(report_error(f"error: {error}", 2))
    except BrokenPipeError:
        sys.exit(report_error("error: nobody reads the output any more; what is finished is kept, type it again", 2))
    except OSError as error:
        if error.errno is None:
            raise
        sys.exit(report_error(f"error: {_os_error_message(error)}, type it again", 2))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(report_error("error: not enough memory; what is finished is kept: make some free, type it again", 2))
    except KeyboardInterrupt as end:
        for number in SIGNAL_ERRORS:  # the impatient second one
            signal.signal(number, signal.SIG_IGN)
        said, status = ("ended by SIGTERM", 143) if isinstance(end, Terminated) else ("interrupted", 130)
        sys.exit(report_error(f"{said}: what is finished is kept, the same command goes on from there", status))


def _os_error_message(error: OSError) -> str:
    """What the system refuses, and what to do."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    if name is not None:
        return f"cannot read or write {name} ({error.strerror}); mend that"
    if error.errno == errno.ENOSPC:
        temporary = tempfile.gettempdir()
        if shutil.disk_usage(temporary).free < MIN_FREE_BYTES:
            return f"the disk of {temporary} is full; make room, or set TMPDIR to another folder"
        return "the disk to which the output goes is full; make room"
    return f"the system says: {error.strerror}; mend that"


class _FilteredStream:
    """A text stream through which nothing steers the terminal, wherever it comes from."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream's own."""
        start = CURSOR_MOVES.match(text).end()
        self._stream.write(text[:start] + TERMINAL_CONTROL.sub(" ", text[start:]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """As the stream's own."""
        for line in lines:
            self.write(line)


@contextmanager
def _filtered_streams() -> Iterator[None]:
    own = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_FilteredStream, own)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = own


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt or Terminated where a signal comes, also when a library makes something else of them."""
    received: list[KeyboardInterrupt] = []

    def end(number: int, frame: FrameType | None) -> None:
        received.append(SIGNAL_ERRORS[number](number))
        raise received[-1]

    for number in SIGNAL_ERRORS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and a shell's background have it
            signal.signal(number, end)
    before, sys.unraisablehook = sys.unraisablehook, _resend_signal
    try:
        yield
    except Exception as error:  # an import that is interrupted can end in any
        if received:
            raise received[-1] from error
        raise
    finally:
        sys.unraisablehook = before


def _resend_signal(swallowed: "sys.UnraisableHookArgs") -> None:
    """Send a signal again, in a moment, that came while an object was destroyed: nothing can be raised there."""
    if not isinstance(swallowed.exc_value, KeyboardInterrupt):
        return sys.__unraisablehook__(swallowed)
    again = threading.Timer(0.1, os.kill, (os.getpid(), *swallowed.exc_value.args))
    again.daemon = True
    return again.start()


def printable(text: str) -> str:
    """`text` in one line, without what could steer a terminal."""
    return LINE_BREAKS.sub(" ", TERMINAL_CONTROL.sub(" ", text))


def report_error(sentence: str, status: int) -> int:
    """Print the sentence on stderr, after all that was printed before it; gives `status` back."""
    try:
        sys.stdout.flush()
    except OSError:  # nowhere to go: Python would try again at its end, and end with a status of its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"\n{Path(sys.argv[0]).name}: {printable(sentence)}", file=sys.stderr)
    return status
