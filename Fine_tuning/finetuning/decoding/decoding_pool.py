"""The beam search over many utterances, in a process for each CPU."""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import repeat

import numpy as np

from finetuning.decoding.beam_search import BeamSearch, Settings
from finetuning.errors import UserError
from finetuning.processes import available_cpus, follow_parent, sigint_blocked

CHUNK = 4  # utterances sent to a worker at a time
Decode = Callable[[Settings, Iterable[int]], Iterator[str]]

_inherited: tuple[BeamSearch, Sequence[np.ndarray]]  # of a worker


def processes() -> int:
    """Return the number of processes that decode: one where the language model would have to be loaded in each."""
    return available_cpus() if hasattr(os, "fork") and sys.platform == "linux" else 1


@contextmanager
def decoding_pool(search: BeamSearch, log_probs: Sequence[np.ndarray]) -> Iterator[Decode]:
    """Yield a function: settings and numbers of utterances -> their texts, in this order.

    The workers are forks, which share the language model and the `log_probs`, each (T, vocabulary + 1). Raise UserError
    where one of them is killed.
    """
    if processes() == 1:
        yield lambda settings, numbers: (search.text(log_probs[number], settings) for number in numbers)
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes(), context, initializer=_inherit, initargs=(search, log_probs))

    def decode(settings: Settings, numbers: Iterable[int]) -> Iterator[str]:
        with sigint_blocked(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads: a worker runs none of their libraries
            return pool.map(_decode, repeat(settings), numbers, chunksize=CHUNK)

    try:
        yield decode
    except BrokenProcessPool as error:
        raise UserError(
            "a process of the beam search was ended, for lack of memory perhaps; rerun the same command"
        ) from error
    except BaseException:
        for worker in list((pool._processes or {}).values()):
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _inherit(search: BeamSearch, log_probs: Sequence[np.ndarray]) -> None:
    global _inherited
    follow_parent()
    _inherited = search, log_probs


def _decode(settings: Settings, number: int) -> str:
    search, log_probs = _inherited
    return search.text(log_probs[number], settings)
