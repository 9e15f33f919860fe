"""A real small model exported by NeMo and run by OpenVINO: the same log-probabilities, made once."""

import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Iterator
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
    from finetuning.model.ctc_model import save_model

    save_model(lively_model(ITALIAN), tmp_path / "lively.nemo")
    return tmp_path / "lively.nemo"


def restored(path: Path) -> Any:
    from finetuning.decoding.inference import prepare_for_inference
    from finetuning.model.ctc_model import restore_model

    return prepare_for_inference(restore_model(path))


def kept(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.onnx"))


def test_it_is_exported_once_for_each_model(path: Path) -> None:
    from finetuning.decoding.openvino_runtime import load_network
    from finetuning.model.ctc_model import save_model

    model = restored(path)
    assert load_network(model, path)
    (export,) = kept(path)
    made = export.stat().st_mtime_ns
    assert load_network(model, path)
    assert [found.stat().st_mtime_ns for found in kept(path)] == [made]
    other = path.with_name("lively.er.nemo")
    save_model(lively_model(ENGLISH), other)
    assert load_network(restored(other), other)
    assert len(kept(path)) == 2
    shutil.copy(other, path)  # trained anew
    assert load_network(restored(path), path)
    assert len(kept(path)) == 2 and export not in kept(path)


def test_it_computes_what_torch_does_and_leaves_the_model_as_it_was(path: Path) -> None:
    from finetuning.decoding.inference import compute_log_probs, iter_log_probs
    from finetuning.decoding.openvino_runtime import load_network

    model = restored(path)
    before = compute_log_probs(model, NOISE)
    exported = load_network(model, path)
    for one, other, after in zip(
        before, iter_log_probs(model, exported, [NOISE]), compute_log_probs(model, NOISE), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(after, one)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert before[2].std() > 0.1, "the test would pass on a model that always says the same"


def test_an_encoder_without_masks_stays_in_torch(path: Path, tmp_path: Path) -> None:
    """It hears the padding that NeMo appends to its features, so what it says is not that of an utterance alone."""
    from finetuning.decoding.openvino_runtime import load_network
    from finetuning.model.ctc_model import save_model

    config = yaml.safe_load(ARCHITECTURE.read_text(encoding="utf-8"))
    config["encoder"]["conv_mask"] = False
    (tmp_path / "unmasked.yaml").write_text(yaml.safe_dump(config))
    save_model(lively_model(ITALIAN, tmp_path / "unmasked.yaml"), path)
    assert load_network(restored(path), path) is None
    assert not kept(path)


@pytest.mark.parametrize("damage", ["cut short", "another model", "other weights"])
def test_a_damaged_export_is_made_again(path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    from finetuning.decoding.openvino_runtime import load_network
    from finetuning.model.ctc_model import save_model

    model = restored(path)
    load_network(model, path)
    (export,) = kept(path)
    whole = export.read_bytes()
    if damage == "another model":
        other = path.parent / "other" / "other.nemo"
        other.parent.mkdir()
        save_model(lively_model(ENGLISH), other)
        load_network(restored(other), other)
        shutil.copy(kept(other)[0], export)
    elif damage == "cut short":
        export.write_bytes(whole[: len(whole) // 2])
    else:
        middle = len(whole) // 2
        export.write_bytes(whole[:middle] + bytes(4000) + whole[middle + 4000 :])
    damaged = export.read_bytes()
    assert load_network(model, path)
    assert export.read_bytes() != damaged
    assert not capsys.readouterr().err


def test_where_it_cannot_be_written_the_model_runs_in_torch(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from finetuning.decoding.inference import compute_log_probs, iter_log_probs
    from finetuning.decoding.openvino_runtime import load_network

    model = restored(path)
    load_network(model, path)
    (export,) = kept(path)
    export.unlink()
    (export / "in the way").mkdir(parents=True)
    assert load_network(model, path) is None
    said = capsys.readouterr().err
    assert said.startswith("lively.nemo runs in torch, which is slower") and str(export) in said
    for one, other in zip(compute_log_probs(model, NOISE), iter_log_probs(model, None, [NOISE]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def read_only(path: Path) -> Iterator[Path]:
    """The model once more, in a folder that is mounted read-only."""
    folder = path.parent / "read-only"
    folder.mkdir()
    if subprocess.run(["mount", "--bind", "-o", "ro", path.parent, folder], capture_output=True).returncode:
        pytest.skip("only root may mount a folder read-only")
    yield folder / path.name
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("how", ["XDG_CACHE_HOME", "HOME"])
def test_of_a_read_only_folder_the_export_is_kept_in_the_cache(
    read_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    from finetuning.decoding.openvino_runtime import load_network

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(how, str(tmp_path / "mine"))
    model = restored(read_only)
    assert load_network(model, read_only)
    (export,) = (tmp_path / "mine").rglob("*.onnx")
    made = export.stat().st_mtime_ns
    assert load_network(model, read_only)
    assert export.stat().st_mtime_ns == made
    assert not kept(read_only) and not capsys.readouterr().err


def test_without_any_folder_to_keep_it_in_the_model_runs_in_torch(
    read_only: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from finetuning.decoding.openvino_runtime import load_network

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(read_only.parent))
    assert load_network(restored(read_only), read_only) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "runs in torch" in said and "Read-only file system" in said


def test_on_a_full_disk_the_model_runs_in_torch_and_nothing_is_left(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from finetuning.decoding.openvino_runtime import load_network

    disk = tmp_path / "disk"
    disk.mkdir()
    size = path.stat().st_size * 5 // 4
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may make a disk")
    try:
        full = Path(shutil.copy(path, disk))
        assert load_network(restored(full), full) is None
        assert list(disk.iterdir()) == [full]
    finally:
        subprocess.run(["umount", disk], check=True)
    assert capsys.readouterr().err.startswith("lively.nemo runs in torch, which is slower")


def test_two_that_export_at_once_leave_one_whole_file(path: Path) -> None:
    from finetuning.decoding.openvino_runtime import HASH_DIGITS, _export, load_network
    from finetuning.files import sha256

    model = restored(path)
    export = path.with_name(f"{path.stem}.{sha256(path)[:HASH_DIGITS]}.onnx")
    forked = multiprocessing.get_context("fork")  # torch computes in one thread here
    both = [forked.Process(target=_export, args=(model, path, export)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert [found.name for found in path.parent.iterdir() if found != path] == [export.name]
    made = export.stat().st_mtime_ns
    assert load_network(model, path) and export.stat().st_mtime_ns == made


@pytest.mark.slow
def test_a_signal_is_survived_when_networks_have_come_and_gone(path: Path) -> None:
    """As Ctrl-C after a damaged export was made again. In a process of its own: the failure is a segmentation fault."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT / "Fine_tuning")!r})
import finetuning.startup  # as in the scripts: torch's threads sleep while they wait, on a busy machine they would spin
from pathlib import Path
from finetuning.decoding.inference import prepare_for_inference
from finetuning.decoding.openvino_runtime import load_network
from finetuning.model.ctc_model import restore_model
path = Path({str(path)!r})
model = prepare_for_inference(restore_model(path))
networks = [load_network(model, path), load_network(model, path)]
while networks:
    del networks[0]
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180)
    assert (ended.returncode, ended.stdout.strip()) == (0, "handled"), ended.stderr[-2000:]
