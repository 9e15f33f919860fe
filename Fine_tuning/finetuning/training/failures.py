"""Failures while a model trains: what torch, Lightning and the system raise, as one sentence with its remedy."""

import errno
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from finetuning.errors import OUT_OF_MEMORY, UserError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMEDIES = {  # what torch says, and what the user reads
    r"shared memory|unable to mmap|</torch_": (
        "not enough shared memory (/dev/shm) for the processes that read audio; {intact}; type training.workers=0, or "
        "give the container more of it (docker run --shm-size=8g)"
    ),
    r"DataLoader worker .*exited unexpectedly": (
        "a process that reads audio was killed from outside, as the system does where memory or shared memory "
        "(/dev/shm) runs short; {intact}; type fewer training.workers=…, or training.workers=0"
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
PEER_ENDED = "a process that trains together with this one has ended; {intact}; rerun the same command to resume"
DISTRIBUTED_REMEDIES = {
    r"configured in SLURM": (
        "the SLURM job has another number of processes or machines than the configuration; make its "
        "--ntasks-per-node equal to training.devices and its --nodes to training.num_nodes, and start with srun"
    ),
    r"gloo|NCCL|Connection": PEER_ENDED,
}
CHECKPOINT_INTACT = "the last checkpoint is intact"


@contextmanager
def as_user_error(distributed: bool) -> Iterator[None]:
    """Turn what torch, Lightning and the system raise into UserError or KeyboardInterrupt.

    `distributed`: several processes train together. A fault of the program stays what it is.
    """
    try:
        with _quiet_hooks():
            yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise
    except UserError as error:  # from a worker process it arrives with that process's traceback before it
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("finetuning.errors.UserError: ")) from error
    except Exception as error:
        if sentence := _remedy(error, distributed):
            raise UserError(sentence) from error
        raise


@contextmanager
def _quiet_hooks() -> Iterator[None]:
    """Drop reports of errors that also reach the main thread, where they become one sentence.

    TensorBoard's writer thread ends with the OSError of a full disk and raises it once more at the next write; torch's
    loader raises RuntimeError in a destructor while it shuts down a dead worker; and in a worker, which inherits
    these hooks, the thread of multiprocessing that hands tensors over reports a connection that the end of the training
    has closed (resource_sharer._serve, which calls sys.excepthook itself).
    """
    hooks = threading.excepthook, sys.unraisablehook, sys.excepthook
    threading.excepthook, sys.unraisablehook = map(_without_known_errors, hooks[:2])
    sys.excepthook = _of_main_thread(hooks[2])
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook, sys.excepthook = hooks


def _without_known_errors(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    def report(failure: Any) -> None:
        if not isinstance(failure.exc_value, OSError | RuntimeError):
            hook(failure)

    return report


def _of_main_thread(hook: Callable[..., object]) -> Callable[..., None]:
    def report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if threading.current_thread() is threading.main_thread() or not isinstance(error, OSError | EOFError):
            hook(kind, error, trace)

    return report


def _remedy(error: BaseException, distributed: bool) -> str | None:
    """Return what the user reads about `error`; None when it is none of the known failures."""
    if any(isinstance(cause, OSError) and cause.errno in FULL_DISK for cause in _causes(error)):
        return f"the disk of the run is full; {CHECKPOINT_INTACT}; make room and rerun the same command to resume"
    text = "\n".join(f"{type(cause).__name__}: {cause}" for cause in _causes(error))
    remedies = {**REMEDIES, **DISTRIBUTED_REMEDIES} if distributed else REMEDIES
    return next(
        (remedy.format(intact=CHECKPOINT_INTACT) for words, remedy in remedies.items() if re.search(words, text)), None
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield `error` and the errors it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
