"""How torch's threads wait for each other."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT


@pytest.mark.parametrize(("given", "expected"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")])
def test_threads_that_wait_leave_the_core_to_others(given: dict[str, str], expected: str):
    usual = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", "import finetuning.startup, torch"], capture_output=True, text=True, check=True,
        env={**usual, **given, "OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(ROOT / "Fine_tuning")},
    )  # fmt: skip
    assert ("GOMP_SPINCOUNT = '0'" in done.stderr) == (expected == "PASSIVE")  # its name is PASSIVE where none is set
