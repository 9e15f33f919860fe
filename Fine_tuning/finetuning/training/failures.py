"""What goes wrong while a model trains, told in one sentence with its remedy."""

import errno
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from finetuning.errors import OUT_OF_MEMORY, UserError, report_error

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
KNOWN = {  # what torch says, and what a user is told
    r"killed by signal: Bus error|shared memory|unable to mmap|</torch_": (
        "not enough shared memory (/dev/shm) for the processes that read audio; {intact}; type training.workers=0, or "
        "give the container more of it (docker run --shm-size=8g)"
    ),
    r"DataLoader worker .*killed by signal": (
        "a process that reads audio was ended from outside, as the system does where memory runs short; {intact}; type "
        "fewer training.workers=…"
    ),
    r"DataLoader worker .*exited unexpectedly": (  # torch noticed before it was told by which signal
        "a process that reads audio was ended from outside, as the system does where memory or shared memory "
        "(/dev/shm) runs short; {intact}; type fewer training.workers=…"
    ),
    r"CUDA out of memory|CUDA error: out of memory": (
        "not enough memory on the GPU for a batch; {intact}; type a smaller training.batch_size=… or "
        "training.batch_duration_s=…, in a new training.output"
    ),
    OUT_OF_MEMORY: (
        "not enough memory for a batch; {intact}; type a smaller training.batch_size=… or "
        "training.batch_duration_s=…, in a new training.output"
    ),
}
PEER_ENDED = "a process that trains together with this one has ended; {intact}; the same command goes on from there"
KNOWN_TOGETHER = {
    r"configured in SLURM": (
        "the job of SLURM has another number of processes or machines than the configuration; make its "
        "--ntasks-per-node equal to training.devices and its --nodes to training.num_nodes, and start with srun"
    ),
    r"gloo|NCCL|Connection": PEER_ENDED,
}
CHECKPOINT_INTACT = "the last checkpoint is intact"


@contextmanager
def as_user_error(together: bool) -> Iterator[None]:
    """Turn what torch, Lightning and the system raise into UserError or KeyboardInterrupt.

    `together` with other processes. A fault of the program stays what it is.
    """
    loud = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = map(_quieter, loud)
    try:
        yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise
    except UserError as error:  # of a reading process it comes with that one's traceback before it
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("finetuning.errors.UserError: ")) from error
    except Exception as error:
        if sentence := _sentence(error, together):
            raise UserError(sentence) from error
        raise
    finally:
        threading.excepthook, sys.unraisablehook = loud


def monitor_peers(processes: list[subprocess.Popen], grace_s: float = 60) -> None:
    """Wait for the processes that train together with this one.

    When one fails, this one finds the connection broken and says so. Where it has not within `grace_s`, waiting for an
    answer on a GPU, all are ended and it is said here.
    """
    while not any(process.poll() for process in processes):
        if all(process.returncode == 0 for process in processes):
            return
        time.sleep(1)
    time.sleep(grace_s)
    for process in processes:
        process.kill()
    os._exit(report_error(f"error: {PEER_ENDED.format(intact=CHECKPOINT_INTACT)}", 2))


def _sentence(error: BaseException, together: bool) -> str | None:
    """What a user is told about `error`; None when it is none of the known ones."""
    if any(isinstance(cause, OSError) and cause.errno in FULL_DISK for cause in _causes(error)):
        return f"the disk of the run is full; {CHECKPOINT_INTACT}; make room, type the same command again"
    said = _said(error)
    known = {**KNOWN, **KNOWN_TOGETHER} if together else KNOWN
    return next(
        (told.format(intact=CHECKPOINT_INTACT) for words, told in known.items() if re.search(words, said)), None
    )


def _said(error: BaseException) -> str:
    return "\n".join(f"{type(cause).__name__}: {cause}" for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, and what it was raised over."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _quieter(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """`hook` without what TensorBoard's thread raises here once more, and torch while it ends a reader that is dead."""

    def tell(raised: Any) -> None:
        if not isinstance(raised.exc_value, OSError | RuntimeError):
            hook(raised)

    return tell
