"""How long a newcomer waits: a fresh clone, `make demo`'s installation and its scripts, each timed once.

    python benchmarks/clone_to_table.py

Clones this checkout's last commit to a temporary folder and writes results/reference/ here: the times, and what the
demo and its comparison from scratch measured there (the rows of the table, their differences, and metrics.csv), with
what its data and its language model hold (dataset.json, language_model.json).
Packages come from the machine's own package index, without pip's cache.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

from finetuning.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("dataset_creation", "train", "train_language_model", "evaluate")


def main() -> None:
    """Clone, install, run, write."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        install = run(["git", "clone", "--quiet", str(ROOT), str(clone)], cwd=ROOT)
        install += run(["make", ".venv/.complete"], cwd=clone)
        python = str(clone / ".venv" / "bin" / "python")
        steps = {
            step: run([python, f"Fine_tuning/{step}.py", "--config", "configs/demo.yaml"], clone) for step in STEPS
        }
        run(["make", "demo-scratch"], cwd=clone)
        found = [*(clone / "results" / "demo_scratch").glob("*.json")]  # the demo's models and the one from scratch
        rows = [path for path in found if path.name != "comparisons.json"]
        rows.sort(key=lambda path: (path.name.startswith("Model"), "scratch" in path.name, path.stem))
        timing = {
            "machine": f"{os.cpu_count()} CPU cores ({cpu_name()}) without a GPU",
            "install_s": round(install),
            "scripts_s": round(sum(steps.values())),
            "steps_s": {f"{step}.py": round(seconds) for step, seconds in steps.items()},
            "models": [path.stem for path in rows],
        }
        reference = ROOT / "results" / "reference"
        reference.mkdir(parents=True, exist_ok=True)
        about = [clone / "datasets/demo/dataset.json", clone / "runs/demo/language_model/language_model.json"]
        for path in [*found, *about, clone / "runs" / "demo" / "metrics.csv"]:
            shutil.copy(path, reference)
        (reference / "timing.json").write_text(json.dumps(timing, indent=2) + "\n")
    print(json.dumps(timing, indent=2))


def run(command: list[str], cwd: Path) -> float:
    """Seconds that `command` took; ends the benchmark when it fails."""
    start = time.perf_counter()
    if subprocess.run(command, cwd=cwd, env={**os.environ, "PIP_NO_CACHE_DIR": "1"}).returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return time.perf_counter() - start


def cpu_name() -> str:
    """As /proc/cpuinfo states it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def write_speeds(stem: str, measured: dict[str, Any]) -> Path:
    """Write results/reference/<stem>.json and return its path; another processor's figures stay, beside the new ones.

    `machine` of `measured` names the processor.
    """
    path = ROOT / "results" / "reference" / f"{stem}.json"
    if (read_json(path) or measured)["machine"] != measured["machine"]:
        path = path.with_name(f"{stem}.{re.sub('[^A-Za-z0-9]+', '_', measured['machine']).strip('_')}.json")
        print(f"{stem}.json is of another processor and stays: these figures go to {path.name}", file=sys.stderr)
    write_json(path, measured)
    return path


if __name__ == "__main__":
    main()
