"""Imported first by each script: until errors.run begins, Ctrl-C or a broken environment ends it with one sentence.

Imports only what Python has imported itself by then (`signal` takes longer than all of this), and is understood by a
Python that is too old for the rest.
"""

# ruff: noqa: PTH100, PTH110, PTH118, PTH119, PTH120
import _signal
import os
import sys

SCRIPTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(SCRIPTS)
MIN_PYTHON = (3, 11)

# Where libgomp's threads wait for each other they spin, also for one that another process has taken the core from: on a
# busy machine two threads made a fifth to a tenth of the steps that they make so. Read when torch is imported; the
# results are the same to the last bit.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def install_handlers() -> None:
    """Tell what ends the script, where this is the script itself: its worker processes import it too."""
    main = getattr(sys.modules["__main__"], "__file__", None) or ""
    if os.path.dirname(os.path.realpath(main)) != SCRIPTS:
        return
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _interrupted)
    sys.excepthook = _excepthook
    if os.name == "nt":
        _exit_with("error: this project runs on Linux; on Windows, type the same in WSL", 2)
    if sys.version_info < MIN_PYTHON:
        found = ".".join(map(str, sys.version_info[:2]))
        _exit_with(
            f"error: this is Python {found} ({sys.executable}), and 3.11 or newer is needed; {environment_remedy()}", 2
        )


def environment_error(error: BaseException) -> str:
    """What to say of a package that is missing or cannot be imported; "" when `error` is nothing of that kind."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if package == "finetuning":
            return f"the module {error.name} of this project is missing; get it anew: git checkout Fine_tuning"
        return f"the package {package} is missing in this Python ({sys.executable}); {environment_remedy()}"
    if isinstance(error, ImportError) or _is_of_a_package(error):
        return f"a package of this Python ({sys.executable}) cannot be imported ({first}); {environment_remedy()}"
    return ""


def _is_of_a_package(error: BaseException) -> bool:
    """Whether something that is not of this project failed while it was imported."""
    imports, traceback = False, error.__traceback__
    while traceback:
        code = traceback.tb_frame.f_code
        imports = (imports or code.co_name == "<module>") and not os.path.abspath(code.co_filename).startswith(SCRIPTS)
        traceback = traceback.tb_next
    return imports


def environment_remedy() -> str:
    """What to type for an environment that holds everything."""
    environment = os.path.join(ROOT, ".venv")
    if os.path.realpath(sys.prefix) == os.path.realpath(environment):
        return f"make the environment anew, in {ROOT}: make -B .venv/.complete"
    if os.path.exists(os.path.join(environment, ".complete")):
        import shlex

        return f"type: {shlex.join([os.path.join(environment, 'bin', 'python'), *sys.argv])}"
    return f"type, in {ROOT}: make .venv/.complete && source .venv/bin/activate"


def _interrupted(number: int, frame: object) -> None:
    _exit_with("interrupted: nothing has begun", 130)


def _excepthook(kind: type, error: BaseException, traceback: object) -> None:
    """Instead of a traceback, where the environment is to blame."""
    sentence = environment_error(error)
    if sentence:
        _exit_with(f"error: {sentence}", 2)
    sys.__excepthook__(kind, error, traceback)


def _exit_with(sentence: str, status: int) -> None:
    """Print it and end at once: nothing has begun that would have to be ended well."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"\n{os.path.basename(sys.argv[0])}: {sentence}\n")):
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):  # nobody reads it
            pass
    os._exit(status)


install_handlers()
