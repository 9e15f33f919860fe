"""How long a newcomer waits: a fresh clone, `make demo`'s installation and its three scripts, each timed once.

    python benchmarks/clone_to_table.py

Clones this checkout's last commit to a temporary folder; writes results/demo/timing.json here, and takes over what
`make demo` measured there into results/demo/ (the rows of the table and metrics.csv).
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("dataset_creation", "train", "evaluate")


def main() -> None:
    """Clone, install, run, write."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        run(["git", "clone", "--quiet", str(ROOT), str(clone)], cwd=ROOT)
        install = run(["make", ".venv/.complete"], cwd=clone)
        python = clone / ".venv" / "bin" / "python"
        steps = {
            step: run([str(python), f"Fine_tuning/{step}.py", "--config", "configs/demo.yaml"], cwd=clone)
            for step in STEPS
        }
        timing = {
            "machine": f"{os.cpu_count()} CPU cores without a GPU ({cpu_name()})",
            "install_s": round(install),
            "scripts_s": round(sum(steps.values())),
            "steps_s": {f"{step}.py": round(seconds) for step, seconds in steps.items()},
        }
        results = ROOT / "results" / "demo"
        results.mkdir(parents=True, exist_ok=True)
        for path in [*(clone / "results" / "demo").glob("*.json"), clone / "runs" / "demo" / "metrics.csv"]:
            shutil.copy(path, results)
        (results / "timing.json").write_text(json.dumps(timing, indent=2) + "\n")
    print(json.dumps(timing, indent=2))


def run(command: list[str], cwd: Path) -> float:
    """Seconds that `command` took; ends the benchmark when it fails."""
    start = time.perf_counter()
    if subprocess.run(command, cwd=cwd).returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return time.perf_counter() - start


def cpu_name() -> str:
    """As /proc/cpuinfo states it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
