"""Imported first by each script: Ctrl-C or a broken environment ends it with one sentence during the other imports.

It imports only modules that Python itself has imported by then (`signal` takes longer than all of this), and its syntax
is understood by a Python that is too old for the rest.
"""

# ruff: noqa: PTH100, PTH110, PTH118, PTH119, PTH120
import _signal
import os
import sys

SCRIPTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(SCRIPTS)
MIN_PYTHON = (3, 11)
ON_WINDOWS = ("transcribe.py", "evaluate.py", "export.py")  # the others lock, fork and limit memory as Linux does


def install_handlers() -> None:
    """Install the handlers in the script itself; its worker processes import this module, too."""
    main = getattr(sys.modules["__main__"], "__file__", None) or ""
    if os.path.dirname(os.path.realpath(main)) != SCRIPTS:
        return
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _interrupted)
    sys.excepthook = _excepthook
    if os.name == "nt" and os.path.basename(main) not in ON_WINDOWS:
        _exit_with("error: on Windows only {}, {} and {} run; type the same in WSL".format(*ON_WINDOWS), 2)
    if sys.version_info < MIN_PYTHON:
        found = ".".join(map(str, sys.version_info[:2]))
        _exit_with(
            f"error: this is Python {found} ({sys.executable}), and 3.11 or newer is needed; {environment_remedy()}", 2
        )


def environment_error(error: BaseException) -> str:
    """Return what to say of a package that is missing or cannot be imported; "" for any other `error`."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if package == "finetuning":
            return f"the module {error.name} of this project is missing; restore it: git checkout Fine_tuning"
        return f"the package {package} is missing in this Python ({sys.executable}); {environment_remedy()}"
    if isinstance(error, ImportError) or _arose_in_package_import(error):
        return f"a package of this Python ({sys.executable}) cannot be imported ({first}); {environment_remedy()}"
    return ""


def _arose_in_package_import(error: BaseException) -> bool:
    """Return whether the error arose while a module outside this project was imported."""
    imports, traceback = False, error.__traceback__
    while traceback:
        code = traceback.tb_frame.f_code
        imports = (imports or code.co_name == "<module>") and not os.path.abspath(code.co_filename).startswith(SCRIPTS)
        traceback = traceback.tb_next
    return imports


def environment_remedy() -> str:
    """Return what to type to get a complete environment."""
    environment = os.path.join(ROOT, ".venv")
    if os.path.realpath(sys.prefix) == os.path.realpath(environment):
        return f"rebuild the environment, in {ROOT}: make -B .venv/.complete"
    if os.path.exists(os.path.join(environment, ".complete")):
        import shlex

        return f"type: {shlex.join([os.path.join(environment, 'bin', 'python'), *sys.argv])}"
    return f"type, in {ROOT}: make install && source .venv/bin/activate"


def _interrupted(number: int, frame: object) -> None:
    _exit_with("interrupted before it started", 130)


def _excepthook(kind: type, error: BaseException, traceback: object) -> None:
    """Print one sentence instead of a traceback where the environment is to blame."""
    sentence = environment_error(error)
    if sentence:
        _exit_with(f"error: {sentence}", 2)
    sys.__excepthook__(kind, error, traceback)


def _exit_with(sentence: str, status: int) -> None:
    """Print the sentence and end the process at once: nothing has been started that needs to be cleaned up."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"\n{os.path.basename(sys.argv[0])}: {sentence}\n")):
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):  # closed by its reader
            pass
    os._exit(status)


install_handlers()
