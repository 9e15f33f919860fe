"""The files with which sherpa-onnx runs a model: made, tried on the whole test set, and only then put in place."""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import sherpa_onnx
import soundfile
import torch
from nemo.collections.asr.models import EncDecCTCModel
from tqdm import tqdm

from finetuning.config.schema import Text
from finetuning.data.manifest import Utterance, read_manifest
from finetuning.decoding.greedy import greedy_decode
from finetuning.decoding.inference import iter_log_probs, prepare_for_inference, read_wav
from finetuning.decoding.openvino_runtime import load_network
from finetuning.decoding.predictions import ModelOutput, Prediction
from finetuning.errors import UserError
from finetuning.evaluation.results import Result
from finetuning.evaluation.scoring import apply_text_rules, needs_text_rules
from finetuning.export import onnx_graph
from finetuning.export.onnx_files import RECORD
from finetuning.files import sha256, write_json
from finetuning.metrics.error_rates import word_error_rate
from finetuning.model.ctc_model import get_vocabulary, restore_model
from finetuning.processes import processor_name

MODELS = {"model.onnx": 0.002, "model.int8.onnx": 0.01}  # with the largest difference of their WER from evaluate.py's
TIMED_S, TIMED_ROUNDS = 60, 3  # seconds of the test set's audio that the speed is measured on, and how often
Recognise = Callable[[np.ndarray], Any]


def export_for_sherpa_onnx(model_path: Path, row: Result, text: Text, test: Path, folder: Path) -> dict[str, Any]:
    """Write the files of `onnx_files` into `folder`, which is locked, and return what its RECORD holds.

    `row`: the model's greedy result on the manifest `test`. Raise UserError, and leave the folder as it was, where
    sherpa-onnx cannot run the model or recognises other words than evaluate.py.
    """
    work = folder / ".onnx"
    shutil.rmtree(work, ignore_errors=True)  # of a killed run
    work.mkdir()
    try:
        model, utterances = restore_model(model_path), read_manifest(test)
        onnx_graph.check_supported(model, model_path)
        print("Writing the ONNX graphs")
        onnx_graph.write_tokens(get_vocabulary(model), work / "tokens.txt")
        onnx_graph.write_graph(model, work / "model.onnx")
        onnx_graph.write_int8_graph(work / "model.onnx", work / "model.int8.onnx")
        samples = read_wav(utterances[0].wav(test.parent), onnx_graph.SAMPLE_RATE)
        soundfile.write(work / "test.wav", samples, onnx_graph.SAMPLE_RATE)
        rates = {name: check_parity(work / name, model, row, text, utterances, test.parent) for name in MODELS}
        record = {
            "made_from": {name: row["sha256"][name] for name in ("model", "manifest")},
            "sha256": {file.name: sha256(file) for file in sorted(work.iterdir())},
            "bytes": {name: (work / name).stat().st_size for name in MODELS},
            "wer": {"evaluate.py": row["wer"], **rates},
            "seconds_of_audio_a_second": measure_speed(model, model_path, work, utterances, test.parent),
            "processor": processor_name(),
            "sherpa_onnx": sherpa_onnx.__version__,
            "test_wav": utterances[0].text,
        }
        for name in record["sha256"]:
            (work / name).replace(folder / name)
        write_json(folder / RECORD, record)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return record


def load_recogniser(model: Path) -> Recognise:
    """Return a function from the samples of a recording to sherpa-onnx's result, computed with one thread."""
    recogniser = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(
        model=str(model), tokens=str(model.with_name("tokens.txt")), num_threads=1
    )

    def recognise(samples: np.ndarray) -> Any:
        stream = recogniser.create_stream()
        stream.accept_waveform(onnx_graph.SAMPLE_RATE, samples)
        recogniser.decode_stream(stream)
        return stream.result

    return recognise


def check_parity(
    graph: Path, model: EncDecCTCModel, row: Result, text: Text, utterances: list[Utterance], folder: Path
) -> float:
    """Return the WER of sherpa-onnx on the test set; raise UserError where it is not evaluate.py's, in `row`."""
    recognise, vocabulary = load_recogniser(graph), get_vocabulary(model)

    def predict(u: Utterance) -> Prediction:
        samples = read_wav(u.wav(folder), onnx_graph.SAMPLE_RATE, u.duration)
        return Prediction(u.audio_filepath, u.text, recognise(samples).text, None, u.duration)

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        bar = tqdm(threads.map(predict, utterances), total=len(utterances), desc=f"sherpa-onnx, {graph.name}")
        output = ModelOutput(list(bar), vocabulary, None)
    if needs_text_rules(vocabulary, text):
        output = apply_text_rules(output, text)
    rate = round(word_error_rate([u.text for u in utterances], [p.pred_text for p in output.predictions]), 6)
    if abs(rate - row["wer"]) > MODELS[graph.name]:
        raise UserError(
            f"sherpa-onnx recognises other words than evaluate.py: on the test set, the WER of {graph.name} is "
            f"{rate:.4f} instead of {row['wer']:.4f}, further than {MODELS[graph.name]:.3f}; no ONNX file was written: "
            "export without --onnx"
        )
    return rate


def measure_speed(
    model: EncDecCTCModel, path: Path, work: Path, utterances: list[Utterance], folder: Path
) -> dict[str, float]:
    """Return seconds of audio per second, with one thread, of each graph and, on a CPU, of evaluate.py.

    All run each recording in turn, and the fastest of several rounds counts.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recognisers = {name: load_recogniser(work / name) for name in MODELS}
        if (model := prepare_for_inference(model)).device.type == "cpu":
            network, vocabulary = load_network(model, path), get_vocabulary(model)
            name = "evaluate.py, by OpenVINO" if network else "evaluate.py, by torch"
            recognisers[name] = lambda wav: greedy_decode(next(iter_log_probs(model, network, [[wav]])), vocabulary)
        seconds = dict.fromkeys(recognisers, 0.0)
        audio_s = 0.0
        for utterance in utterances:
            samples = read_wav(utterance.wav(folder), onnx_graph.SAMPLE_RATE)
            for name, recognise in recognisers.items():
                seconds[name] += min(_time(recognise, samples) for _ in range(TIMED_ROUNDS))
            audio_s += len(samples) / onnx_graph.SAMPLE_RATE
            if audio_s > TIMED_S:
                break
    finally:
        torch.set_num_threads(threads)
    return {name: round(audio_s / taken, 1) for name, taken in seconds.items()}


def _time(recognise: Recognise, samples: np.ndarray) -> float:
    start = time.perf_counter()
    recognise(samples)
    return time.perf_counter() - start
