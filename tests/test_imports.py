"""Arrows point one way: scripts -> nouns -> NeMo."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = sorted((ROOT / "Fine_tuning").glob("*.py"))
NOUNS = sorted((ROOT / "Fine_tuning" / "finetuning").glob("*.py"))
HEAVY = {"nemo", "torch", "lightning"}
MAY_IMPORT_HEAVY = {"model", "training", "callbacks", "checkpoints", "watch", "self_test", "inference", "exported"}


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


@pytest.mark.parametrize("path", [*NOUNS, *SCRIPTS], ids=lambda path: path.stem)
def test_only_these_nouns_import_nemo_lightning_or_torch(path: Path) -> None:
    heavy = {name.split(".")[0] for name in imported(parse(path))} & HEAVY
    assert not heavy or (path in NOUNS and path.stem in MAY_IMPORT_HEAVY)


@pytest.mark.parametrize("path", [*NOUNS, *SCRIPTS], ids=lambda path: path.stem)
def test_nothing_imports_a_script(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(parse(path))}
    assert not roots & {script.stem for script in SCRIPTS}


@pytest.mark.parametrize("path", NOUNS, ids=lambda path: path.stem)
def test_nouns_without_nemo_do_not_import_those_with_it(path: Path) -> None:
    if path.stem not in MAY_IMPORT_HEAVY:
        assert not imported(parse(path)) & {f"finetuning.{name}" for name in MAY_IMPORT_HEAVY}


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
    assert not {name.split(".")[0] for name in modules.split()} & (HEAVY | {"pandas", "librosa", "matplotlib"})


def test_datasets_is_not_a_package() -> None:
    assert not list((ROOT / "datasets").rglob("__init__.py")), "it would shadow the library of that name"
