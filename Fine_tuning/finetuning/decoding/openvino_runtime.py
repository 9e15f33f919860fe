"""A model's network as OpenVINO runs it on a CPU: exported once by NeMo, kept, and compared before it is used."""

import functools
import glob
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import openvino
import torch
from nemo.collections.asr.models import EncDecCTCModel

from finetuning.errors import printable
from finetuning.files import atomic_path, ensure_writable_dir, remove_stale_temp_files, sha256

CLOSE = 1e-3  # largest difference of a log-probability from torch's, nats
FRAMES_AXIS = (64, 301)  # of the features on which both are compared: neither is what the export was traced with
TRACED = 256
HASH = 16  # digits of it in the name


def load_network(model: EncDecCTCModel, path: Path) -> openvino.CompiledModel | None:
    """Encoder and decoder for one utterance at a time, of a `model` that is `ready` and was restored from `path`.

    None on a GPU, where torch is as good, and for an encoder without masks, which hears the padding of its features.
    The export, NAME.<hash of the .nemo file>.onnx, lies beside the model or, where that folder is read-only, in the
    user's cache; a damaged one is made again. None too, with a notice, where it cannot be made or does not compute what
    torch does.
    """
    if model.device.type != "cpu" or not model.cfg.encoder.get("conv_mask", True):
        return None
    try:
        name = f"{path.stem}.{sha256(path)[:HASH]}.onnx"
        for kept in (path.with_name(name), export_path() / name):
            if kept.is_file() and (found := _compiled(kept)) and _agrees(found, model):
                return found
        kept = _writable(path.parent) / name
        _export(model, path, kept)
        if (found := _compiled(kept)) and _agrees(found, model):
            return found
        reason = "what NeMo exports of it computes something else"
    except Exception as error:  # of NeMo, torch, ONNX or the disk: torch can always do without
        reason = next(iter(printable(str(error)).strip().splitlines()), "") or type(error).__name__
    print(f"{path.name} runs in torch, which is slower, for its export cannot be used: {reason}", file=sys.stderr)
    return None


def export_path() -> Path:
    """Return this project's folder among the user's caches, there or not."""
    caches = Path(os.environ.get("HOME", "/"), ".cache", os.environ.get("XDG_CACHE_HOME", ""))
    return caches / "finetuning_asr"


def _writable(folder: Path) -> Path:
    """Return `folder`, or the user's cache where it cannot be written to, made when it is not there yet."""
    return folder if os.access(folder, os.W_OK) else ensure_writable_dir(export_path())


def run_network(compiled: openvino.CompiledModel, features: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Log-probabilities, (T, V + 1), of each of `features`, (1, C, T'), in their order.

    As many are computed at a time as there are threads, and the next is fetched meanwhile.
    """
    idle = [compiled.create_infer_request() for _ in range(_streams(compiled) + 1)]
    running: deque[openvino.InferRequest] = deque()
    for one in features:
        if not idle:
            yield _finished(running, idle)
        request = idle.pop()
        request.start_async({0: one})
        running.append(request)
    while running:
        yield _finished(running, idle)


def _finished(running: deque[openvino.InferRequest], idle: list[openvino.InferRequest]) -> np.ndarray:
    """What the request that was started first has computed; it is free for another."""
    request = running.popleft()
    request.wait()
    found = request.get_output_tensor(0).data[0].copy()
    idle.append(request)
    return found


def _streams(compiled: openvino.CompiledModel) -> int:
    return int(compiled.get_property("NUM_STREAMS"))


def _export(model: EncDecCTCModel, path: Path, kept: Path) -> None:
    """NeMo's own export to ONNX, of a copy: it takes the masks off, which an utterance alone does not need."""
    remove_stale_temp_files(kept.parent)
    if kept.parent == path.parent:  # in the cache there may be another model of the same name
        for stale in path.parent.glob(f"{glob.escape(path.stem)}.{'[0-9a-f]' * HASH}.onnx"):
            if stale != kept:
                stale.unlink(missing_ok=True)
    twin = type(model)(cfg=model.cfg)
    twin.load_state_dict(model.state_dict())
    with atomic_path(kept) as temporary:
        twin.export(str(temporary), input_example=twin.encoder.input_example(max_dim=TRACED))


@functools.cache
def _core() -> openvino.Core:
    """The only one of this process. Each sets up a stack for signal handlers and at its end puts back the one before:
    of two that end in the order they began, the second puts back what the first has freed, and a signal is fatal.
    """
    return openvino.Core()


def _compiled(path: Path) -> openvino.CompiledModel | None:
    """Of as many streams as torch has threads; None where the file cannot be read."""
    threads = torch.get_num_threads()
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",  # some processors would use bfloat16
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # two runs would be tied to the same cores
    }
    try:
        return _core().compile_model(path, "CPU", properties)
    except RuntimeError:
        return None


@torch.no_grad()
def _agrees(compiled: openvino.CompiledModel, model: EncDecCTCModel) -> bool:
    """Whether both compute the same of noise."""
    noise = torch.Generator().manual_seed(0)
    given = [torch.randn(1, model.cfg.encoder.feat_in, frames, generator=noise) for frames in FRAMES_AXIS]
    for one, found in zip(given, run_network(compiled, [one.numpy() for one in given]), strict=True):
        encoded, _ = model.encoder(audio_signal=one, length=torch.tensor([one.shape[2]]))
        expected = model.decoder(encoder_output=encoded)[0].numpy()
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=CLOSE):
            return False
    return True
