import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run_script() -> Script:
    """Run one of the three scripts as a user does: run_script("train.py", "--config", …, "training.max_epochs=2")."""

    def run(name: str, *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: int = 600):
        return subprocess.run(
            [sys.executable, str(ROOT / "Fine_tuning" / name), *arguments],
            cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def sample_archive() -> Path:
    """The shipped Italian release: 440 good clips and 6 rows with a defect."""
    return ROOT / "datasets" / "sample" / "cv-corpus-sample-it.tar.gz"


def assert_refused(process: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit status 2 and one sentence that holds all the words; no traceback."""
    assert process.returncode == 2, process.stderr[-2000:]
    assert "Traceback" not in process.stderr, process.stderr[-2000:]
    for word in words:
        assert word in process.stderr, f"{word!r} is not in {process.stderr[-2000:]!r}"
