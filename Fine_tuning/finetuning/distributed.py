"""Several processes that share one task, started by torchrun or srun: their ranks, and what they tell each other.

They are no process group of torch's: once there is one, NeMo's encoders wait in it for each other at every batch.
"""

import os
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from finetuning.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroupGloo, Store

ALL_STARTED = timedelta(minutes=10)  # from the start of the first process to that of the last
ANSWERED = timedelta(days=30)  # while one works, the others wait; one that ends is noticed at once
ENDED_S = 10.0  # until the others know that all is done

_group: "ProcessGroupGloo | None" = None  # the connections, where there are several processes


class ProcessLost(UserError):
    """Another process has ended before its share was done."""


@contextmanager
def connect() -> Iterator[int]:
    """Connect the processes that torchrun or srun has started together, and yield the rank of this one.

    The rank is 0 where a process is alone. Each takes the GPU of its number on its machine. When its block ends, rank 0
    tells the others, whose `jobs` end. Raise UserError where the others do not come.
    """
    global _group
    if not _is_one_of_several():
        yield 0
        return
    import torch
    from torch import distributed

    try:
        store, number, count = next(distributed.rendezvous("env://", timeout=ALL_STARTED))
        _group = distributed.ProcessGroupGloo(store, number, count, ANSWERED)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} does not reach the others "
            f"({str(error).splitlines()[0]}); start all of them with one torchrun or srun, or a single one with neither"
        ) from error
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
        torch.cuda.set_device(local % torch.cuda.device_count())
    try:
        yield number
    except ProcessLost:
        raise
    except Exception:
        _end(store)
        raise
    else:
        _end(store)
    finally:
        _group = None


def _end(store: "Store") -> None:
    """Tell the others, in rank 0, that there are no more jobs, and wait until they know: without it they would fail."""
    if rank() > 0:
        store.add("ended", 1)
        return
    with suppress(ProcessLost):  # all is done
        broadcast(None)
    deadline = time.monotonic() + ENDED_S
    while store.add("ended", 0) < size() - 1 and time.monotonic() < deadline:
        time.sleep(0.01)


def jobs() -> Iterator[Any]:
    """Yield, in another process than rank 0, each job that rank 0 broadcasts, until rank 0 ends."""
    while (job := broadcast()) is not None:
        yield job


def _is_one_of_several() -> bool:
    """Return whether this process has others beside it; what srun tells of them is set as torchrun sets it."""
    environment = os.environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return int(environment["WORLD_SIZE"]) > 1
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) == 1:  # set by srun; that of a job is set without it, too
        return False
    from lightning.fabric.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment(auto_requeue=False)
    environment["RANK"], environment["WORLD_SIZE"] = environment["SLURM_PROCID"], environment["SLURM_STEP_NUM_TASKS"]
    environment["MASTER_ADDR"], environment["MASTER_PORT"] = slurm.main_address, str(slurm.main_port)
    return True


def size() -> int:
    """Return the number of processes: 1 where this one is alone."""
    return _group.size() if _group else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return _group.rank() if _group else 0


def broadcast(value: Any = None, source: int = 0) -> Any:
    """Return, in every process, the `value` that the process `source` calls this with."""
    if not _group:
        return value
    import torch

    content = bytearray(pickle.dumps(value) if rank() == source else b"")
    length = torch.tensor([len(content)])
    try:
        _group.broadcast(length, source).wait()
        tensor = (
            torch.frombuffer(content, dtype=torch.uint8) if content else torch.zeros(int(length), dtype=torch.uint8)
        )
        _group.broadcast(tensor, source).wait()
    except RuntimeError as error:  # gloo's, for a connection that was closed
        raise ProcessLost(
            "another process of those that share this task has ended; finished work is kept; rerun the same command to "
            "resume"
        ) from error
    return value if rank() == source else pickle.loads(tensor.numpy().tobytes())


def gather(value: Any) -> list[Any]:
    """Return the `value` of every process, by rank."""
    return [broadcast(value, source) for source in range(size())]
