"""What a user sees when something is wrong: one sentence and exit status 2, never a traceback."""

import sys
from collections.abc import Callable
from pathlib import Path


class UserError(ValueError):
    """A mistake outside the program: says what is wrong, where, and what to type next."""


def run(script: Callable[[], None]) -> None:
    """Call `script` and turn what a user can mend into one sentence on stderr and exit status 2 (130 for Ctrl-C)."""
    try:
        script()
    except UserError as error:
        sys.exit(_say(f"error: {error}", 2))
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(_say(f"error: cannot read or write {error.filename} ({error.strerror}); mend that, type it again", 2))
    except KeyboardInterrupt:
        sys.exit(_say("interrupted: what is finished is kept, the same command goes on from there", 130))


def _say(sentence: str, status: int) -> int:
    print(f"\n{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    return status
