"""A real small model exported by NeMo and run by OpenVINO: the same log-probabilities, made once."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT
from small import ARCHITECTURE, ENGLISH, ITALIAN, lively_model

pytestmark = pytest.mark.nemo

NOISE = [np.random.default_rng(n).normal(0, 0.1, size).astype(np.float32) for n, size in enumerate((900, 16000, 50321))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a model."""
    from finetuning.model import save

    save(lively_model(ITALIAN), tmp_path / "lively.nemo")
    return tmp_path / "lively.nemo"


def restored(path: Path) -> Any:
    from finetuning.inference import ready
    from finetuning.model import restore

    return ready(restore(path))


def kept(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.onnx"))


def test_it_is_exported_once_for_each_model(path: Path) -> None:
    from finetuning.exported import network
    from finetuning.model import save

    model = restored(path)
    assert network(model, path)
    (export,) = kept(path)
    made = export.stat().st_mtime_ns
    assert network(model, path)
    assert [found.stat().st_mtime_ns for found in kept(path)] == [made]
    other = path.with_name("lively.er.nemo")
    save(lively_model(ENGLISH), other)
    assert network(restored(other), other)
    assert len(kept(path)) == 2
    shutil.copy(other, path)  # trained anew
    assert network(restored(path), path)
    assert len(kept(path)) == 2 and export not in kept(path)


def test_it_computes_what_torch_does_and_leaves_the_model_as_it_was(path: Path) -> None:
    from finetuning.exported import network
    from finetuning.inference import frames, log_probabilities

    model = restored(path)
    before = log_probabilities(model, NOISE)
    exported = network(model, path)
    for one, other, after in zip(
        before, frames(model, exported, [NOISE]), log_probabilities(model, NOISE), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(after, one)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert before[2].std() > 0.1, "the test would pass on a model that always says the same"


def test_an_encoder_without_masks_stays_in_torch(path: Path, tmp_path: Path) -> None:
    """It hears the padding that NeMo appends to its features, so what it says is not that of an utterance alone."""
    from finetuning.exported import network
    from finetuning.model import save

    config = yaml.safe_load(ARCHITECTURE.read_text(encoding="utf-8"))
    config["encoder"]["conv_mask"] = False
    (tmp_path / "unmasked.yaml").write_text(yaml.safe_dump(config))
    save(lively_model(ITALIAN, tmp_path / "unmasked.yaml"), path)
    assert network(restored(path), path) is None
    assert not kept(path)


@pytest.mark.parametrize("damage", ["cut short", "another model", "other weights"])
def test_a_damaged_export_is_made_again(path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    from finetuning.exported import network
    from finetuning.model import save

    model = restored(path)
    network(model, path)
    (export,) = kept(path)
    whole = export.read_bytes()
    if damage == "another model":
        other = path.parent / "other" / "other.nemo"
        other.parent.mkdir()
        save(lively_model(ENGLISH), other)
        network(restored(other), other)
        shutil.copy(kept(other)[0], export)
    elif damage == "cut short":
        export.write_bytes(whole[: len(whole) // 2])
    else:
        middle = len(whole) // 2
        export.write_bytes(whole[:middle] + bytes(4000) + whole[middle + 4000 :])
    damaged = export.read_bytes()
    assert network(model, path)
    assert export.read_bytes() != damaged
    assert not capsys.readouterr().err


def test_where_it_cannot_be_written_the_model_runs_in_torch(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from finetuning.exported import network
    from finetuning.inference import frames, log_probabilities

    model = restored(path)
    network(model, path)
    (export,) = kept(path)
    export.unlink()
    (export / "in the way").mkdir(parents=True)
    assert network(model, path) is None
    said = capsys.readouterr().err
    assert said.startswith("lively.nemo runs in torch, which is slower") and str(export) in said
    for one, other in zip(log_probabilities(model, NOISE), frames(model, None, [NOISE]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_signal_is_survived_when_networks_have_come_and_gone(path: Path) -> None:
    """As Ctrl-C after a damaged export was made again. In a process of its own: the failure is a segmentation fault."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT / "Fine_tuning")!r})
from pathlib import Path
from finetuning.exported import network
from finetuning.inference import ready
from finetuning.model import restore
path = Path({str(path)!r})
model = ready(restore(path))
networks = [network(model, path), network(model, path)]
while networks:
    del networks[0]
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.strip()) == (0, "handled"), ended.stderr[-2000:]
