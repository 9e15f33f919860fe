import ast
import re
import sys

import yaml
from conftest import ROOT


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
    modules = {"nemo": "nemo-toolkit", "yaml": "pyyaml", "hydra": "hydra-core", "imageio_ffmpeg": "imageio-ffmpeg"}
    modules |= {"dotenv": "python-dotenv", "flashlight": "flashlight-text", "huggingface_hub": "huggingface-hub"}
    sources = [*(ROOT / "Fine_tuning").rglob("*.py"), *(ROOT / "tests").glob("*.py")]
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
