"""A model's network run by OpenVINO on a CPU: exported once by NeMo, and compared with torch before it is used."""

import functools
import glob
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from nemo.collections.asr.models import EncDecCTCModel

from finetuning.errors import UserError, printable
from finetuning.files import atomic_path, ensure_writable_dir, remove_stale_temp_files, sha256

if TYPE_CHECKING:
    import openvino  # imported at run time only where a CPU runs a model

TOLERANCE = 1e-3  # largest difference of a log-probability from torch's, nats
TRACED_FRAMES = 256  # of the features the export is traced with
COMPARED_FRAMES = (64, 3001)  # of the features on which both are compared: other numbers than TRACED_FRAMES
MAX_FRAMES = 12_000  # of the features of one utterance, 2 minutes
HASH_DIGITS = 16  # of the model's SHA-256 in the export's name


def load_network(model: EncDecCTCModel, path: Path) -> "openvino.CompiledModel | None":
    """Return encoder and decoder, one utterance at a time, of a `model` prepared for inference, restored from `path`.

    Return None on a GPU, where torch is as fast, and for an encoder without masks, whose output depends on the padding
    of its features. The export, NAME.<hash of the .nemo file>.onnx, lies beside the model or, where that folder is
    read-only, in the user's cache; a damaged one is made again. Return None too, with a notice, where it cannot be made
    or does not compute what torch does.
    """
    if model.device.type != "cpu" or not model.cfg.encoder.get("conv_mask", True):
        return None
    try:
        name = f"{path.stem}.{sha256(path)[:HASH_DIGITS]}.onnx"
        for export in (path.with_name(name), export_path() / name):
            if export.is_file() and (network := _compile(export)) and _agrees(network, model):
                return network
        export = _writable_folder(path.parent) / name
        _export(model, path, export)
        if (network := _compile(export)) and _agrees(network, model):
            return network
        reason = "what NeMo exports of it computes something else"
    except Exception as error:  # of NeMo, torch, ONNX or the disk: torch runs any model
        reason = next(iter(printable(str(error)).strip().splitlines()), "") or type(error).__name__
    print(f"{path.name} runs in torch, which is slower, for its export cannot be used: {reason}", file=sys.stderr)
    return None


def export_path() -> Path:
    """Return this project's folder among the user's caches, there or not."""
    home = os.environ.get("HOME") or os.environ.get("USERPROFILE", "/")  # the latter on Windows
    caches = Path(home, ".cache", os.environ.get("XDG_CACHE_HOME", ""))
    return caches / "finetuning_asr"


def _writable_folder(folder: Path) -> Path:
    """Return `folder`, or the user's cache where it cannot be written to, made when it is not there yet."""
    return folder if os.access(folder, os.W_OK) else ensure_writable_dir(export_path())


def run_network(network: "openvino.CompiledModel", features: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the log-probabilities, (T, V + 1), of each of `features`, (1, C, T'), in their order.

    As many are computed at a time as there are threads, and the next is fetched meanwhile.
    """
    idle = [network.create_infer_request() for _ in range(int(network.get_property("NUM_STREAMS")) + 1)]
    running: deque[openvino.InferRequest] = deque()
    for utterance in features:
        if not idle:
            yield _wait_for_first(running, idle)
        request, inputs = idle.pop(), {0: utterance}
        if len(network.inputs) > 1:  # of encoders that still use it: squeeze and excitation, attention
            if utterance.shape[2] > MAX_FRAMES:
                raise UserError("an utterance lasts more than 2 minutes; cut it, or use transcribe.py, which does")
            inputs[1] = np.array([utterance.shape[2]], dtype=np.int64)
        request.start_async(inputs)
        running.append(request)
    while running:
        yield _wait_for_first(running, idle)


def _wait_for_first(running: "deque[openvino.InferRequest]", idle: "list[openvino.InferRequest]") -> np.ndarray:
    """Return the output, (T, V + 1), of the request that was started first, which becomes idle."""
    request = running.popleft()
    request.wait()
    log_probs = request.get_output_tensor(0).data[0].copy()
    idle.append(request)
    return log_probs


def _export(model: EncDecCTCModel, path: Path, export: Path) -> None:
    """Write NeMo's own export to ONNX, of a copy: it removes the masks, which a single utterance does not need."""
    remove_stale_temp_files(export.parent)
    if export.parent == path.parent:  # in the cache there may be another model of the same name
        for stale in path.parent.glob(f"{glob.escape(path.stem)}.{'[0-9a-f]' * HASH_DIGITS}.onnx"):
            if stale != export:
                stale.unlink(missing_ok=True)
    copy = copy_for_export(model)
    with atomic_path(export) as temporary:
        copy.export(str(temporary), input_example=copy.encoder.input_example(max_dim=TRACED_FRAMES))


def copy_for_export(model: EncDecCTCModel) -> EncDecCTCModel:
    """Return a copy that takes utterances of up to 2 minutes, of which an export may remove what training needs."""
    copy = type(model)(cfg=model.cfg)
    copy.load_state_dict(model.state_dict())
    if hasattr(copy.encoder, "update_max_sequence_length"):  # masks of the export stay as long as they are now
        copy.encoder.update_max_sequence_length(MAX_FRAMES, device="cpu")
    return copy


@functools.cache
def _core() -> "openvino.Core":
    """Return the only Core of this process.

    Each sets up a stack for signal handlers and at its end restores the one before: of two that end in the order they
    began, the second restores what the first has freed, and a signal is fatal.
    """
    import openvino

    return openvino.Core()


def compile_network(path: Path) -> "openvino.CompiledModel":
    """Return the network of an ONNX file with as many streams as torch has threads; raise RuntimeError for no such."""
    threads = torch.get_num_threads()
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",  # some processors would use bfloat16
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # two runs would be tied to the same cores
    }
    return _core().compile_model(path, "CPU", properties)


def _compile(path: Path) -> "openvino.CompiledModel | None":
    """Return the network of an export, None where the file cannot be read."""
    try:
        return compile_network(path)
    except RuntimeError:
        return None


@torch.no_grad()
def _agrees(network: "openvino.CompiledModel", model: EncDecCTCModel) -> bool:
    """Return whether network and model compute the same from noise."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(1, model.cfg.encoder.feat_in, frames, generator=generator) for frames in COMPARED_FRAMES]
    for features, log_probs in zip(noise, run_network(network, [each.numpy() for each in noise]), strict=True):
        encoded, _ = model.encoder(audio_signal=features, length=torch.tensor([features.shape[2]]))
        expected = model.decoder(encoder_output=encoded)[0].numpy()
        if log_probs.shape != expected.shape or not np.allclose(log_probs, expected, rtol=0, atol=TOLERANCE):
            return False
    return True
