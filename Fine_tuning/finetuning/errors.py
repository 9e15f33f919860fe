"""What a user sees when something is wrong: one sentence and exit status 2, never a traceback."""

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path


class UserError(ValueError):
    """A mistake outside the program: says what is wrong, where, and what to type next."""


def run(script: Callable[[], None]) -> None:
    """Call `script` and turn what a user can mend into one sentence on stderr and exit status 2 (130 for Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter
    try:
        script()
        sys.stdout.flush()
    except UserError as error:
        sys.exit(_say(f"error: {error}", 2))
    except BrokenPipeError:
        sys.exit(_say("error: nobody reads the output any more; what is finished is kept, type it again", 2))
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        if error.filename is None:
            sys.exit(_say("error: the disk to which the output goes is full; make room, type it again", 2))
        sys.exit(_say(f"error: cannot read or write {error.filename} ({error.strerror}); mend that, type it again", 2))
    except KeyboardInterrupt:
        sys.exit(_say("interrupted: what is finished is kept, the same command goes on from there", 130))


def printable(text: str) -> str:
    """`text` in one line, without what could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _say(sentence: str, status: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:  # nowhere to go: Python would try again at its end, and end with a status of its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"\n{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    return status
