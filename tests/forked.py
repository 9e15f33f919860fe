"""Scripts in processes that have NeMo loaded already: forks of a process that has done nothing but load it.

It takes ten seconds of a core, which is most of what many tests would take. Nothing has been run with it before the
fork, so a script finds what it would find after its own import.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "Fine_tuning"
LOADED = ("finetuning", "nemo.collections.asr.models", "lightning.pytorch", "pandas", "forked")


class Forked:
    """A script that runs, with the part of subprocess.Popen that the tests use."""

    context = multiprocessing.get_context("forkserver")

    def __init__(
        self,
        name: str,
        *arguments: str,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        group: bool = False,
    ) -> None:
        """Start script `name`; `env`: beside that of this process; `group`: with a process group of its own."""
        self.args = [str(SCRIPTS / name), *arguments]
        self.files = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]  # noqa: SIM115  of a file's lifetime
        paths = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in self.files]
        about = (self.args, str(cwd or Path.cwd()), {**os.environ, **(env or {})}, paths, group)
        self.context.set_forkserver_preload(list(LOADED))
        self.process = self.context.Process(target=_run, args=about)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the process that is forked
            self.process.start()
        self.pid = self.process.pid
        while group and os.getpgid(self.pid) != self.pid:
            time.sleep(0.001)

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait, and return what was printed on stdout and on stderr."""
        self.wait(timeout)
        for file in self.files:
            file.seek(0)
        return tuple(file.read().decode() for file in self.files)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(arguments: Sequence[str], cwd: str, environment: dict[str, str], outputs: Sequence[str], group: bool) -> None:
    """Be the script: with its arguments, folder, environment and streams."""
    if group:
        os.setsid()
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    import torch

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    multiprocessing.set_start_method("fork", force=True)  # Linux's own, as in a process that was not forked from here
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[:] = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")
