"""Runs scripts one after another, each seeing of Python's own modules only what Windows and macOS both have.

    without_linux.py '[["evaluate.py", "--config", "…"], …]'

The libraries keep what they have: only imports in the project's own code are answered with these modules.
"""

import builtins
import fcntl as _fcntl
import json
import multiprocessing
import os
import runpy
import signal
import sys
import types
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "Fine_tuning"
LACKING = {
    "os": "fork register_at_fork sched_getaffinity O_DIRECTORY O_NOFOLLOW O_CLOEXEC getuid geteuid getpgid killpg "
    "setsid mkfifo pipe2 posix_fadvise posix_fallocate memfd_create pidfd_open uname nice WIFSIGNALED chown",
    "signal": "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGPIPE SIGCHLD SIGALRM alarm pthread_sigmask pthread_kill sigwait",
    "multiprocessing": "",
}
MISSING = ("fcntl", "resource", "pwd", "grp", "termios", "pty", "_posixsubprocess")


def open_file(path: object, flags: int, *more: int) -> int:
    if os.path.isdir(path):  # noqa: PTH112
        raise PermissionError(13, "Permission denied", str(path))
    return os.open(path, flags, *more)


def fsync(descriptor: int) -> None:
    if _fcntl.fcntl(descriptor, _fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(9, "Bad file descriptor")
    os.fsync(descriptor)


def kill(pid: int, number: int) -> None:
    raise AssertionError("on Windows this ends the process, whatever the signal")


def get_context(method: str | None = None) -> object:
    if method not in (None, "spawn"):
        raise ValueError(f"cannot find context for {method!r}")
    return multiprocessing.get_context(method)


def reduced(module: types.ModuleType) -> types.ModuleType:
    """A copy of a module without what it lacks elsewhere."""
    copy = types.ModuleType(module.__name__)
    vars(copy).update(vars(module))
    for name in LACKING[module.__name__].split():
        vars(copy).pop(name, None)
    return copy


COPIES = {module.__name__: reduced(module) for module in (os, signal, multiprocessing)}
vars(COPIES["os"]).update(name="nt", open=open_file, fsync=fsync, kill=kill)
COPIES["multiprocessing"].get_context = get_context
original = builtins.__import__


def limited(name: str, globals: dict | None = None, *more: object, **named: object) -> types.ModuleType:
    file = (globals or {}).get("__file__") or ""
    if Path(file).is_relative_to(SCRIPTS) and ".venv" not in file:
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in COPIES:
            return COPIES[name]
    return original(name, globals, *more, **named)


def main() -> None:
    builtins.__import__ = limited
    sys.path.insert(0, str(SCRIPTS))
    for name, *arguments in json.loads(sys.argv[1]):
        sys.argv[:] = [str(SCRIPTS / name), *arguments]
        print(f"== {name}", flush=True)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise


if __name__ == "__main__":
    main()
