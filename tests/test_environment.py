import ast
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, Script, assert_refused

SCRIPTS = sorted(path.name for path in (ROOT / "Fine_tuning").glob("*.py"))


def pins(file: str) -> dict[str, str]:
    """Package name, in lower case with dashes and without extras -> version and, behind " ; ", for which Pythons."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    found = {}
    for line in filter(None, lines):
        name, version = line.split("==", 1)
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
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["-r requirements.lock"]}]


def interpreter(folder: Path, name: str, version: tuple[int, ...], lacks: str = "") -> None:
    """A Python that answers as one of that version would, without the module that it `lacks`."""
    change = f'import sys; sys.version_info = {version}; sys.modules["{lacks}"] = None; exec(sys.argv[1])'
    (folder / name).write_text(f"""#!/bin/sh\nexec {sys.executable} -c '{change}' "$2"\n""")
    (folder / name).chmod(0o755)


def program(folder: Path, name: str, status: int) -> None:
    (folder / name).write_text(f"#!/bin/sh\nexit {status}\n")
    (folder / name).chmod(0o755)


def would_make(target: str, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What make would do on a machine with nothing but the programs in `path`, in a folder of its own."""
    folder = path.with_name("project")
    folder.mkdir(exist_ok=True)
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    others = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "PYTHON")}
    command = [shutil.which("make"), "--dry-run", target, *arguments]
    return subprocess.run(command, cwd=folder, env={**others, "PATH": str(path)}, capture_output=True, text=True)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """An empty folder for a PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ls").symlink_to(shutil.which("ls"))
    return tmp_path / "bin"


def test_make_takes_the_first_python_that_fits(programs: Path) -> None:
    assert_refused(
        would_make(".venv/.complete", programs), "3.11, 3.12 or 3.13", "apt install python3-venv", "uv", "conda"
    )
    for name, version, lacks, taken in (
        ("python3.14", (3, 14, 0), "", ""),
        ("python3.13", (3, 13, 0), "", "python3.13"),
        ("python3.11", (3, 11, 2), "ensurepip", "python3.13"),  # Debian's, without python3.11-venv
        ("python3.11", (3, 11, 2), "", "python3.11"),
        ("python3.12", (3, 12, 1), "venv", "python3.11"),
        ("python3.12", (3, 12, 1), "", "python3.12"),
    ):
        interpreter(programs, name, version, lacks)
        made = would_make(".venv/.complete", programs)
        assert taken in made.stdout
        assert (f"\n{taken} -m venv .venv\n" in made.stdout) if taken else made.returncode == 2
    program(programs, "python3.12", 127)  # pyenv's, which stands for none
    assert "\npython3.11 -m venv .venv\n" in would_make(".venv/.complete", programs).stdout


def test_make_takes_the_python_it_is_told_to(programs: Path) -> None:
    interpreter(programs, "python3.12", (3, 12, 1))
    interpreter(programs, "mine", (3, 13, 0))
    assert "\nmine -m venv .venv\n" in would_make(".venv/.complete", programs, "PYTHON=mine").stdout
    for version in ((3, 10, 13), (3, 14, 0)):
        interpreter(programs, "mine", version)
        refused = would_make(".venv/.complete", programs, "PYTHON=mine")
        assert_refused(refused, "none of mine is a Python 3.11, 3.12 or 3.13")
        assert len(refused.stderr.strip().splitlines()) == 1
        assert not refused.stdout


def test_make_takes_uv_where_there_is_one(programs: Path) -> None:
    program(programs, "uv", 0)
    uv = programs / "uv"
    made = would_make(".venv/.complete", programs).stdout
    assert f'"{uv}" venv --seed --python ">=3.11.4,<3.13" .venv\n' in made
    assert f'"{uv}" pip install --python .venv -r requirements.lock' in made
    assert '--python "python3.13" .venv' in would_make(".venv/.complete", programs, "PYTHON=python3.13").stdout
    interpreter(programs, "python3.12", (3, 12, 1))
    made = would_make(".venv/.complete", programs, "UV=").stdout
    assert "python3.12 -m venv .venv\n" in made
    assert ".venv/bin/pip install -r requirements.lock" in made


@pytest.mark.parametrize("has_flashlight", [True, False])
def test_the_demo_goes_without_a_language_model_where_its_package_is_missing(
    programs: Path, has_flashlight: bool
) -> None:
    interpreter(programs, "python3.13", (3, 13, 0))
    packages = programs.with_name("project") / ".venv" / "lib" / "python3.13" / "site-packages"
    (packages / ("flashlight" if has_flashlight else "numpy")).mkdir(parents=True)
    (programs.with_name("project") / ".venv" / ".complete").touch()
    made = would_make("demo", programs, "--assume-old=requirements.lock").stdout
    assert ("train_language_model.py" in made, "evaluation.decoder=greedy" in made) == (
        has_flashlight,
        not has_flashlight,
    )


MISSING = "import sys\nsys.modules[{!r}] = None\n"


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("evaluate.py", ["--config", "configs/demo.yaml"]),
        ("train_language_model.py", ["--config", "configs/demo.yaml"]),
        ("transcribe.py", ["models/demo/quartznet_small_en.nemo", "datasets/sample", "--language-model", "a.json"]),
    ],
)
def test_without_flashlight_a_language_model_is_refused_at_once(
    run_script: Script, tmp_path: Path, script: str, arguments: list[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(MISSING.format("flashlight"))
    started = run_script(script, *arguments, cwd=ROOT, env={"PYTHONPATH": str(tmp_path)})
    assert_refused(started, "flashlight-text", "PYTHON=python3.12", "evaluation.decoder=greedy")
    assert not started.stdout
    assert len(started.stderr.strip().splitlines()) == 1


def test_without_the_client_the_archive_is_to_be_downloaded_by_hand(run_script: Script, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(MISSING.format("datacollective"))
    overrides = [f"dataset.source={tmp_path}/a.tar.gz", "dataset.archive.name=a.tar.gz", f"dataset.output={tmp_path}/d"]
    started = run_script("dataset_creation.py", *overrides, env={"PYTHONPATH": str(tmp_path), "MDC_API_KEY": "no"})
    assert_refused(started, "datacollective", "3.11.4", "by hand", f"{tmp_path}/a.tar.gz", "PYTHON=python3.12")
    assert len(started.stderr.strip().splitlines()) == 1


def test_every_imported_package_is_pinned():
    modules = {"nemo": "nemo-toolkit", "yaml": "pyyaml", "imageio_ffmpeg": "imageio-ffmpeg"}
    modules |= {"axe_core_python": "axe-core-python", "dotenv": "python-dotenv"}
    modules |= {"flashlight": "flashlight-text", "huggingface_hub": "huggingface-hub"}
    modules |= {"sherpa_onnx": "sherpa-onnx", "silero_vad": "silero-vad", "whisper_normalizer": "whisper-normalizer"}
    sources = [
        path for folder in ("Fine_tuning", "benchmarks", "report", "tests") for path in (ROOT / folder).rglob("*.py")
    ]
    imported = set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {name.partition(".")[0] for name in names}
    ours = {"finetuning"} | {source.stem for source in sources}
    packages = {modules.get(name, name) for name in imported - ours - sys.stdlib_module_names}
    pinned = pins("requirements.txt")
    assert packages <= pinned.keys()
    unused = pinned.keys() - packages - {"ruff", "pytest-xdist", "tensorboard"}  # tools; lightning imports the last
    unused -= {name for name, version in pinned.items() if version.endswith('python_version >= "3.13"')}  # by others
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
@pytest.mark.slow
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
