"""Networks over the same wavs: step 3's inference, NeMo's transcribe() and, for QuartzNet15x5, as this project began.

    python benchmarks/evaluation.py

Writes results/reference/evaluation.json in about a quarter of an hour. The wavs are the shipped sample's English speech
(synthetic), several utterances joined to the lengths of Common Voice clips (log-normal, mean 5.4 s, 1 to 16 s). The
network has its weights drawn at random, and batch statistics of that speech: what it writes means nothing, how long it
takes is the same. Loading the model is left out; so is the export, made once a model, whose time is given.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

import lightning.pytorch as pl
import numpy as np
import soundfile
import torch
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import OmegaConf

from clone_to_table import ROOT, cpu_name, write_speeds
from finetuning.data.manifest import Utterance, manifest_path, read_manifest, write_manifest
from finetuning.decoding import openvino_runtime
from finetuning.decoding.inference import iter_log_probs, predict, prepare_for_inference, read_wavs
from finetuning.model import ctc_model
from networks import NETWORKS, quartznet_15x5
from training import CORES, RATE, durations, figures

RESULT = ROOT / "results" / "reference" / "evaluation.json"
OTHERS = ("Citrinet-512", "FastConformer-large")
BATCH = 32  # utterances, as published; NeMo's own default for transcribe() is 4


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of all ways in turn; the median is what counts")
    parser.add_argument("--utterances", type=int, default=32)
    parser.add_argument("--others", action="store_true", help=f"measure {' and '.join(OTHERS)} again, nothing else")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.others:
            measured = json.loads(RESULT.read_text()) | {"others": {}}
            if cpu_name() not in measured["machine"]:
                parser.error(f"{RESULT.name} is of another processor; leave --others out to measure all of it here")
            utterances = wavs(Path(folder), arguments.utterances)
        else:
            measured, utterances = measure(Path(folder), arguments.utterances, arguments.rounds)
        for name in OTHERS:
            measured["others"][name] = beside_transcribe(name, Path(folder), utterances, arguments.rounds)
    write_speeds("evaluation", measured)
    print(json.dumps(measured, indent=2))


def measure(folder: Path, count: int, rounds: int) -> tuple[dict, list[Utterance]]:
    """What the JSON holds of QuartzNet15x5, and the test set."""
    utterances = wavs(folder, count)
    stock = quartznet_15x5().eval()
    settle(stock, folder, utterances)
    path = folder / "quartznet.nemo"
    ctc_model.save_model(stock, path)
    ours = prepare_for_inference(ctc_model.restore_model(path))
    started = time.perf_counter()
    network = openvino_runtime.load_network(ours, path)
    export_s = time.perf_counter() - started
    started = time.perf_counter()
    network = openvino_runtime.load_network(ours, path)
    load_s = time.perf_counter() - started
    ways: dict[str, Callable[[], object]] = {
        "this": lambda: dict(predict(ours, network, utterances, folder, BATCH)),
        "transcribe": lambda: transcribe(stock, folder, utterances, BATCH),
        "transcribe 4": lambda: transcribe(stock, folder, utterances, 4),
        "original": lambda: tested_twice(stock, folder),
    }
    seconds = sum(u.duration for u in utterances)
    speeds = in_turn(ways, seconds, rounds)
    return {
        "machine": f"{CORES} CPU cores ({cpu_name()})",
        "versions": {name: version(name) for name in ("nemo_toolkit", "torch", "openvino")},
        "data": f"{count} utterances of synthetic speech, {seconds / count:.1f} s on average",
        "model": f"QuartzNet15x5, {sum(p.numel() for p in stock.parameters()) / 1e6:.1f} M parameters, random weights",
        "rounds": rounds,
        "batch": BATCH,
        "export_s": round(export_s, 1),
        "load_s": round(load_s, 1),
        "audio_s_per_s": {way: figures(found) for way, found in speeds.items()},
        "this_to": {way: figures(np.array(speeds["this"]) / np.array(found)) for way, found in speeds.items()},
        "difference": compare(stock, ours, network, folder, utterances),
        "others": {},
    }, utterances


def beside_transcribe(name: str, folder: Path, utterances: list[Utterance], rounds: int) -> dict:
    """Another network of published shape by step 3's inference and by NeMo's transcribe(), in turn."""
    stock = NETWORKS[name]().eval()
    settle(stock, folder, utterances)
    path = folder / f"{name}.nemo"
    ctc_model.save_model(stock, path)
    ours = prepare_for_inference(ctc_model.restore_model(path))
    network = openvino_runtime.load_network(ours, path)
    ways: dict[str, Callable[[], object]] = {
        "this": lambda: dict(predict(ours, network, utterances, folder, BATCH)),
        "transcribe": lambda: transcribe(stock, folder, utterances, BATCH),
        "transcribe 4": lambda: transcribe(stock, folder, utterances, 4),
    }
    speeds = in_turn(ways, sum(u.duration for u in utterances), rounds, name)
    return {
        "machine": f"{CORES} CPU cores ({cpu_name()})",
        "utterances": len(utterances),
        "parameters": sum(p.numel() for p in stock.parameters()),
        "by": "openvino" if network else "torch",
        "audio_s_per_s": {way: figures(found) for way, found in speeds.items()},
        "this_to": {way: figures(np.array(speeds["this"]) / np.array(found)) for way, found in speeds.items()},
        "difference": compare(stock, ours, network, folder, utterances),
    }


def in_turn(
    ways: dict[str, Callable[[], object]], seconds: float, rounds: int, name: str = ""
) -> dict[str, list[float]]:
    """Seconds of audio a second of each way in each round; `seconds`: of audio."""
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for i in range(-1, rounds):  # the first one warms up
        for way, run in ways.items():
            started = time.perf_counter()
            run()
            if i >= 0:
                speeds[way].append(seconds / (time.perf_counter() - started))
        print(f"{name} round {i}:", {way: round(of[-1], 2) for way, of in speeds.items() if of}, file=sys.stderr)
    return speeds


def wavs(folder: Path, count: int) -> list[Utterance]:
    """The test set, written to `folder`: speech of the sample joined and cut to the lengths of clips."""
    data = ROOT / "datasets" / "demo_english"
    if not manifest_path(data, "train").is_file():
        command = "python Fine_tuning/dataset_creation.py --config configs/demo_english.yaml"
        sys.exit(f"there is no speech to measure with; type: {command}")
    spoken = read_manifest(manifest_path(data, "train"))
    speech = np.concatenate([soundfile.read(u.wav(data), dtype="float32")[0] for u in spoken])
    texts, found, start = " ".join(u.text for u in spoken), [], 0
    for number, duration in enumerate(durations(count)):
        length = round(duration * RATE)
        if start + length > len(speech):
            start = 0
        soundfile.write(folder / f"{number}.wav", speech[start : start + length], RATE)
        start += length
        text = texts[number * 40 : number * 40 + round(duration * 10)].strip()
        found.append(Utterance(f"{number}.wav", length / RATE, text))
    write_manifest(manifest_path(folder, "test"), found)
    return found


def settle(model: EncDecCTCModel, folder: Path, utterances: Sequence[Utterance]) -> None:
    """Give random weights the batch statistics of speech, so that the outputs vary."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            given = read_wavs([u.wav(folder) for u in utterances[:4]], RATE)
            lengths = torch.tensor([len(wav) for wav in given])
            signal = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(wav) for wav in given], batch_first=True)
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm1d):
                    module.momentum = 0.9
            model(input_signal=signal, input_signal_length=lengths)
        model.decoder.decoder_layers[0].weight.mul_(8)  # so that some letter is clearly the best
    model.eval()


def transcribe(model: EncDecCTCModel, folder: Path, utterances: Sequence[Utterance], batch_size: int) -> list[str]:
    """By NeMo, files in the manifest's order."""
    paths = [str(folder / u.audio_filepath) for u in utterances]
    return [found.text for found in model.transcribe(paths, batch_size=batch_size, verbose=False)]


def tested_twice(model: EncDecCTCModel, folder: Path) -> None:
    """Lightning's test of the model, once for WER and once for CER."""
    model.setup_test_data(
        OmegaConf.create(
            {
                "manifest_filepath": str(manifest_path(folder, "test")), "sample_rate": RATE, "batch_size": BATCH,
                "labels": list(ctc_model.get_vocabulary(model)), "shuffle": False,
                "num_workers": 0, "normalize_transcripts": False,
            }
        )
    )  # fmt: skip
    for use_cer in (False, True):
        model.wer.use_cer = use_cer
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        trainer.test(model, verbose=False)


def compare(
    stock: EncDecCTCModel, ours: EncDecCTCModel, network: object, folder: Path, utterances: Sequence[Utterance]
) -> dict[str, float | int]:
    """Between stock NeMo, an utterance at a time, and step 3: log-probabilities and transcripts."""
    prepare_for_inference(ours)
    stock.eval()
    stock.preprocessor.featurizer.dither = 0.0
    paths = [u.wav(folder) for u in utterances]
    largest = 0.0
    with torch.no_grad():
        for path, own in zip(paths, iter_log_probs(ours, network, [read_wavs(paths, RATE)]), strict=True):
            (wav,) = read_wavs([path], RATE)
            found, _, _ = stock(input_signal=torch.from_numpy(wav)[None], input_signal_length=torch.tensor([len(wav)]))
            largest = max(largest, float(np.abs(found[0].numpy()[: len(own)] - own).max()))
    theirs = transcribe(stock, folder, utterances, BATCH)
    said = dict(predict(ours, network, utterances, folder, BATCH))
    same = sum(said[n].pred_text.replace(" '", "'") == text for n, text in enumerate(theirs))
    distinct = len(set(theirs))
    return {"log_probabilities": largest, "transcripts": len(theirs), "distinct": distinct, "identical": same}


if __name__ == "__main__":
    main()
