"""The processes that train together with this one, on the same machine."""

import os
import subprocess
import threading
import time

import lightning.pytorch as pl

from finetuning.errors import report_error
from finetuning.training.failures import CHECKPOINT_INTACT, PEER_ENDED


class PeerProcessMonitor(pl.Callback):
    """Watches the processes that Lightning has started beside this one, in the place of Lightning's own observer.

    That one (lightning.fabric.strategies.launchers.subprocess_script._ChildProcessObserver, 2.4) looks every five
    seconds and, when a process has failed, kills all of them without a message: at times also the first, which is about
    to say why. It has no switch, but ends when the list it was given is empty.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Empty the observer's list and watch the processes here."""
        launcher = trainer.strategy.launcher
        if observed := launched_processes(trainer):
            launcher.procs = list(observed)  # to which Lightning passes signals on
            observed.clear()
            threading.Thread(target=monitor_peers, args=(launcher.procs,), daemon=True).start()


def launched_processes(trainer: pl.Trainer) -> list[subprocess.Popen]:
    """Return the processes that this one has started; an attribute that Lightning does not document."""
    return getattr(trainer.strategy.launcher, "procs", [])


def monitor_peers(processes: list[subprocess.Popen], grace_s: float = 60) -> None:
    """Wait for the processes that train together with this one.

    When one fails, this one normally finds the connection broken and reports it. If it has not after `grace_s`, because
    it waits for an answer on a GPU, all are ended and it is reported here.
    """
    while not any(process.poll() for process in processes):
        if all(process.returncode == 0 for process in processes):
            return
        time.sleep(1)
    time.sleep(grace_s)
    for process in processes:
        process.kill()
    os._exit(report_error(f"error: {PEER_ENDED.format(intact=CHECKPOINT_INTACT)}", 2))
