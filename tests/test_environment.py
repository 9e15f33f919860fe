import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, Script, assert_refused

SCRIPTS = sorted(path.name for path in (ROOT / "Fine_tuning").glob("*.py"))


def pins(file: str) -> dict[str, str]:
    """Package name, in lower case with dashes and without extras -> version."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    found = {}
    for line in filter(None, lines):
        name, version = line.split("==")
        found[re.sub(r"\[.*\]", "", name).lower().replace("_", "-")] = version
    return found


def test_the_lock_holds_every_pin():
    locked = pins("requirements.lock")
    assert pins("requirements.txt").items() <= locked.items()
    assert len(locked) > 100


def test_pins_find_the_ordinary_build_everywhere():
    assert not [
        version
        for file in ("requirements.txt", "requirements.lock")
        for version in pins(file).values()
        if "+" in version
    ]


def test_conda_installs_the_same_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "nemo"
    assert "python=3.11" in environment["dependencies"]
    assert {"pip": ["-r requirements.txt"]} in environment["dependencies"]
    assert [line for line in environment["dependencies"] if isinstance(line, str)] == ["python=3.11", "pip"]


def test_every_imported_package_is_pinned():
    modules = {"nemo": "nemo-toolkit", "yaml": "pyyaml", "imageio_ffmpeg": "imageio-ffmpeg"}
    modules |= {"dotenv": "python-dotenv", "flashlight": "flashlight-text", "huggingface_hub": "huggingface-hub"}
    sources = [path for folder in ("Fine_tuning", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")]
    imported = set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {name.partition(".")[0] for name in names}
    ours = {"finetuning"} | {source.stem for source in sources}
    packages = {modules.get(name, name) for name in imported - ours - sys.stdlib_module_names}
    assert packages <= pins("requirements.txt").keys()
    unused = pins("requirements.txt").keys() - packages - {"ruff", "tensorboard"}  # tools; lightning imports the latter
    assert not unused, f"pinned and never imported: {unused}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_without_its_environment_says_what_to_type(script: str) -> None:
    arguments = ["a.nemo", str(ROOT)] if script == "transcribe.py" else []
    started = subprocess.run(
        [sys.executable, "-S", str(ROOT / "Fine_tuning" / script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert_refused(started, f"{script}: error: the package ", "is missing in this Python", ".venv")
    assert len(started.stderr.strip().splitlines()) == 1


BROKEN = {
    "an import that fails": ("import nothing_of_that_name", "package nothing_of_that_name is missing"),
    "a library that is missing": (
        "raise OSError('libx.so.1: cannot open shared object file')",
        "cannot be imported (libx.so.1: cannot open",
    ),
    "another version": ("import os\nos.nothing", "cannot be imported (module 'os' has no attribute"),
    "many lines": ("raise ImportError('\\n\\nIMPORTANT:\\n read this')", "cannot be imported (IMPORTANT:)"),
}


@pytest.mark.parametrize(("module", "words"), BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize(("script", "package"), [("evaluate.py", "tqdm"), ("train.py", "omegaconf")])
def test_a_broken_package_is_one_sentence(
    run_script: Script, tmp_path: Path, script: str, package: str, module: str, words: str
) -> None:
    (tmp_path / f"{package}.py").write_text(module)
    started = run_script(script, env={"PYTHONPATH": str(tmp_path)})
    assert_refused(started, f"{script}: error: ", words, sys.executable)
    assert len(started.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_while_a_script_is_imported(tmp_path: Path, ignored: bool) -> None:
    """`ignored`, as nohup has it: then it is not taken."""
    (tmp_path / "tqdm.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(2)\nraise SystemExit(7)")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "Fine_tuning" / "evaluate.py"), "--help"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL),
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (
        (7, "") if ignored else (130, "\nevaluate.py: interrupted before it started\n")
    )
