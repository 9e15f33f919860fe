"""The benchmark that is meant for a machine that is rarely at hand has to run when one is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

pytestmark = [pytest.mark.nemo, pytest.mark.slow]


def test_what_is_measured_on_a_gpu_runs_without_one_on_a_smaller_scale(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "training", "inference", "--small"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and "--output" in refused.stderr
    done = subprocess.run([*command, "--output", str(tmp_path / "gpu.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads((tmp_path / "gpu.json").read_text())
    assert all(row["audio_h_per_h"] > 0 for row in measured["training"]) and len(measured["training"]) == 8
    assert all(speed > 0 for way in measured["inference"].values() for speed in way.values())
