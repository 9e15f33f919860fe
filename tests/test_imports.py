"""Arrows point one way: scripts -> packages in the order of LAYERS -> NeMo."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from forked import Forked

SCRIPTS = sorted((ROOT / "Fine_tuning").glob("*.py"))
LIBRARY = ROOT / "Fine_tuning" / "finetuning"
MODULES = sorted(path for path in LIBRARY.rglob("*.py") if path.name != "__init__.py")
HEAVY = {"nemo", "torch", "lightning"}
MAY_IMPORT_HEAVY = {
    "decoding.inference",
    "decoding.manifest_inference",
    "decoding.openvino_runtime",
    "export.onnx_graph",
    "export.sherpa_onnx_folder",
    "model.channels_last",
    "model.ctc_model",
    "training.augmentation",
    "training.checkpoints",
    "training.data_loading",
    "training.encoder_freezing",
    "training.fine_tuning",
    "training.loggers",
    "training.metrics_logger",
    "training.model_selection",
    "training.monitor",
    "training.overfit_check",
    "training.peer_processes",
    "training.progress",
    "training.time_left",
    "transcription.recognizer",
    "transcription.voice_activity",
    "distributed",  # where there are several processes
    "evaluation.model_predictions",  # where a model has to be run
    "model.pretrained",  # to look up a name, not before
}
# from the top; those of one line know nothing of each other
LAYERS = [
    ("training", "export"),
    ("evaluation", "transcription"),
    ("decoding",),
    ("language_model",),
    ("data",),
    ("audio", "metrics", "model"),
    ("config",),
    ("download",),
    ("distributed", "files"),
    ("errors", "processes", "startup"),
]


def imported(tree: ast.AST) -> set[str]:
    """Dotted names of all modules that running `tree` can import; a.b for `from a import b`."""
    names = set()
    for_types_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    """A module of the library, as "data.manifest"; a script by its name."""
    folder = LIBRARY if LIBRARY in path.parents else path.parent
    return ".".join(path.relative_to(folder).with_suffix("").parts)


def ours(path: Path) -> set[str]:
    """Modules of the library that the module at `path` imports."""
    names = {name.removeprefix("finetuning.") for name in imported(parse(path)) if name.startswith("finetuning.")}
    return names & {name_of(module) for module in MODULES}


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=name_of)
def test_only_these_modules_import_nemo_lightning_or_torch(path: Path) -> None:
    heavy = {name.split(".")[0] for name in imported(parse(path))} & HEAVY
    assert not heavy or (path in MODULES and name_of(path) in MAY_IMPORT_HEAVY)


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=name_of)
def test_nothing_imports_a_script(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(parse(path))}
    assert not roots & {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_without_nemo_do_not_import_those_with_it(path: Path) -> None:
    if name_of(path) not in MAY_IMPORT_HEAVY:
        assert not ours(path) & MAY_IMPORT_HEAVY


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_package_imports_only_those_below_it(path: Path) -> None:
    level = {package: number for number, packages in enumerate(LAYERS) for package in packages}
    own = name_of(path).split(".")[0]
    assert {other for other in (name.split(".")[0] for name in ours(path)) if level[other] <= level[own]} <= {own}


def test_no_two_modules_import_each_other() -> None:
    below = {name_of(path): ours(path) for path in MODULES}
    while free := [name for name, others in below.items() if not others & below.keys()]:
        for name in free:
            del below[name]
    assert not below, f"a circle: {below}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_imports_nothing_heavy(script: Path) -> None:
    code = f"""
import runpy, sys
sys.argv = [{str(script)!r}, "--help"]
sys.path.insert(0, {str(script.parent)!r})
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("IMPORTED", *sys.modules)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    text, _, modules = process.stdout.partition("IMPORTED")
    assert "usage: " in text
    assert not {name.split(".")[0] for name in modules.split()} & (
        HEAVY | {"openvino", "pandas", "librosa", "matplotlib"}
    )


@pytest.mark.nemo
def test_openvino_is_imported_only_where_a_cpu_runs_a_model(tmp_path: Path) -> None:
    """Not with the modules: a GPU machine, and scoring, do without it."""
    named = {name_of(path): imported(parse(path)) for path in [*MODULES, *SCRIPTS]}
    assert [name for name, names in named.items() if "openvino" in names] == ["decoding.openvino_runtime"]
    code = f"""
import sys
sys.path.insert(0, {str(LIBRARY.parent)!r})
import finetuning.evaluation.report_page, finetuning.evaluation.scoring, finetuning.decoding.weight_search
assert not {{"torch", "nemo", "openvino"}} & sys.modules.keys()
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-2000:]
    script = tmp_path / "imports.py"
    script.write_text("""
import sys
import finetuning.transcription.recognizer, finetuning.transcription.voice_activity
assert "torch" in sys.modules
assert "openvino" not in sys.modules
""")
    forked = Forked(str(script))
    _, errors = forked.communicate(timeout=300)
    assert forked.returncode == 0, errors[-2000:]


def test_datasets_is_not_a_package() -> None:
    assert not list((ROOT / "datasets").rglob("__init__.py")), "it would shadow the library of that name"


@pytest.mark.slow
def test_openvino_tells_nobody_that_it_is_used(tmp_path: Path) -> None:
    """It sends a message when it is imported, from a process that it forks: unasked, and two forks at once may hang."""
    code = (
        "import finetuning, openvino, sys, threading; from openvino.tools.ovc import telemetry_utils; "
        "print(telemetry_utils.tm.__name__, [thread.name for thread in threading.enumerate()])"
    )
    env = {name: value for name, value in os.environ.items() if name != "CI"}  # where it would send nothing anyway
    env |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "Fine_tuning")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "openvino.tools.ovc.telemetry_stub ['MainThread']\n"
    assert not list(tmp_path.iterdir())  # nor does it give the user a number
