"""What a GPU does with this pipeline: training, loading, inference, and two epochs with a resume after kill -9.

    python benchmarks/gpu.py [PART ...] [--small] [--output FILE]

Writes all parts, or those named, into results/reference/gpu.json, in at most eight minutes on a machine with one NVIDIA
GPU, without a network. With --small it does the same with smaller networks and less of everything, also on a CPU, and
writes only where --output says. Audio is noise of the lengths of Common Voice clips (log-normal, mean 5.4 s) or, for
loading and for the two epochs, the shipped sample, which is synthetic speech; networks have random weights.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

import lightning.pytorch as pl
import numpy as np
import soundfile
import torch
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import OmegaConf, open_dict

from clone_to_table import ROOT, cpu_name
from finetuning.data.manifest import Utterance, manifest_path, write_manifest
from finetuning.decoding.inference import predict, prepare_for_inference
from finetuning.files import write_json
from finetuning.model import ctc_model
from finetuning.training.batch_sampler import EpochBatchSampler
from networks import ALPHABET, NETWORKS
from training import MEAN_S, RATE, durations, loss, noise

RESULT = ROOT / "results" / "reference" / "gpu.json"
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
PRECISIONS = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16} if CUDA else {"32-true": torch.float32}
BATCHES = (32, 64, 128, 256, 512)  # utterances; until the memory ends
WORKERS = (0, 1, 2, 4, 8)
FIT_WORKERS = 4 if CUDA else 0
TIMED_S = 3.0  # of each way to train


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[bool], Any]] = {
        "training": training_steps, "fit": whole_epochs, "loading": loading, "inference": inference,
        "two_epochs": two_epochs,
    }  # fmt: skip
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; all without any")
    parser.add_argument("--small", action="store_true", help="for a test, also on a CPU")
    parser.add_argument("--output", type=Path, help=f"instead of {RESULT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if not arguments.small and not CUDA:
        parser.error("torch finds no GPU here; type --small for a test on the CPU")
    if arguments.small and not arguments.output:
        parser.error("--small measures nothing worth keeping; say with --output where it is written")
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    torch.manual_seed(0)  # of the networks' weights
    result = arguments.output or RESULT
    measured: dict[str, Any] = json.loads(result.read_text()) if result.is_file() else {}
    measured |= {
        "machine": f"{torch.cuda.get_device_name() if CUDA else 'no GPU'}; {os.cpu_count()} CPU cores ({cpu_name()})",
        "versions": {name: version(name) for name in ("nemo_toolkit", "torch", "lightning")},
        "mean_s": MEAN_S,
        "small": arguments.small,
    }
    for name in arguments.parts or parts:
        started = time.perf_counter()
        measured[name] = parts[name](arguments.small)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
        write_json(result, measured)  # what is measured is kept, whatever comes next
    print(json.dumps(measured, indent=2))


def training_steps(small: bool) -> list[dict[str, Any]]:
    """Hours of audio an hour and the memory of training steps, for larger and larger batches until the memory ends."""
    found = []
    names = ("QuartzNet15x5", "FastConformer-large")
    lengths, batches = durations(2_000 if small else 100_000), (2,) if small else BATCHES
    for name in names:
        for precision in PRECISIONS:
            model = NETWORKS[name](16 if small else 1).to(DEVICE)
            optimiser = torch.optim.AdamW(model.parameters(), 1e-4)
            for by in ("random", "by duration"):
                for size in batches:
                    sampler = EpochBatchSampler(lengths, size, size * MEAN_S if by != "random" else None, 0)
                    try:
                        row = timed_steps(model, optimiser, sampler, lengths, precision, 0.2 if small else TIMED_S)
                    except torch.OutOfMemoryError:
                        optimiser.zero_grad(set_to_none=True)
                        torch.cuda.empty_cache()
                        found.append(about(name, precision, by, size) | {"out_of_memory": True})
                        break
                    found.append(about(name, precision, by, size) | row)
                    print(found[-1], file=sys.stderr)
            del model, optimiser
            if CUDA:
                torch.cuda.empty_cache()
    return found


def about(name: str, precision: str, batches: str, size: int) -> dict[str, Any]:
    """What was measured."""
    return {"network": name, "precision": precision, "batches": batches, "batch_size": size}


def timed_steps(
    model: EncDecCTCModel, optimiser: torch.optim.Optimizer, sampler: EpochBatchSampler, lengths: list[float],
    precision: str, seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Steps for so many seconds after two that warm up."""
    scaler = torch.amp.GradScaler(DEVICE, enabled=CUDA and precision == "16-mixed")
    plan, spoken, steps, start = iter(sampler), 0.0, 0, 0.0
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    for number, batch in enumerate(plan):
        durations_s = [lengths[index] for _, index in batch]
        given = {name: value.to(DEVICE) for name, value in noise(durations_s).items()}
        synchronize()
        if number == 2:
            start = time.perf_counter()
        started = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, dtype=PRECISIONS[precision]) if CUDA else nullcontext():
            value = loss(model, given)
        scaler.scale(value).backward()
        scaler.step(optimiser)
        scaler.update()
        synchronize()
        if number >= 2:
            spoken, steps = spoken + sum(durations_s), steps + time.perf_counter() - started
            if time.perf_counter() - start > seconds:
                break
    memory = torch.cuda.max_memory_allocated() / 1e9 if CUDA else None
    return {"audio_h_per_h": round(spoken / steps), "memory_gb": memory and round(memory, 1)}


def synchronize() -> None:
    """Wait for the GPU."""
    if CUDA:
        torch.cuda.synchronize()


def whole_epochs(small: bool) -> dict[str, float]:
    """Hours of audio an hour in a second epoch: NeMo's data loading with Trainer.fit(), and step 2's own.

    Step 2's epoch ends with a validation of four utterances and a checkpoint, NeMo's with neither.
    """
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        utterances = list(noise_files(folder, 5 if small else 600))
        for split, rows in (("train", utterances), ("validation", utterances[:4])):
            write_manifest(manifest_path(folder, split), rows)
        for way, run in (("NeMo", nemo_fit), ("this", our_fit)):
            seconds = []
            for epochs in (1, 2):
                model, started = NETWORKS["QuartzNet15x5"](16 if small else 1), time.perf_counter()
                run(model, folder, epochs)
                seconds.append(time.perf_counter() - started)
            found[way] = round(sum(u.duration for u in utterances) / (seconds[1] - seconds[0]), 1)
    return found


def nemo_fit(model: EncDecCTCModel, folder: Path, epochs: int) -> None:
    """As NeMo's scripts train: random batches of 32."""
    data = {"manifest_filepath": str(manifest_path(folder, "train")), "sample_rate": RATE, "labels": list(ALPHABET)}
    data |= {"batch_size": 32, "shuffle": True, "num_workers": FIT_WORKERS, "normalize_transcripts": False}
    model.setup_training_data(OmegaConf.create(data))
    with open_dict(model.cfg):
        model.cfg.optim = {"name": "adamw", "lr": 1e-4}
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="gpu" if CUDA else "cpu", devices=1,
        precision="16-mixed" if CUDA else "32-true", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    model.set_trainer(trainer)
    trainer.fit(model)


def our_fit(model: EncDecCTCModel, folder: Path, epochs: int) -> None:
    """As step 2 trains: batches by duration, as long together as 32 utterances."""
    from finetuning.config.loading import load_config
    from finetuning.training import fine_tuning

    overrides = [f"dataset.output={folder}", f"training.max_epochs={epochs}", "training.frozen_epochs=0"]
    overrides += [f"training.accelerator={'gpu' if CUDA else 'cpu'}", f"training.workers={FIT_WORKERS}"]
    overrides += ["training.speed_perturbation=0", f"training.batch_duration_s={32 * MEAN_S}", "training.keep_best=0"]
    fine_tuning.fit(model, load_config("configs/demo.yaml", overrides), folder / f"run of {epochs}")


def loading(small: bool) -> dict[str, float]:
    """Hours of audio an hour that so many processes read of the sample, speed perturbation included."""
    from finetuning.config.loading import load_config
    from finetuning.training import data_loading, fine_tuning

    script("dataset_creation")
    found = {}
    for workers in WORKERS[:2] if small else WORKERS:
        overrides = [f"training.workers={workers}", "training.accelerator=cpu"]
        config = load_config("configs/demo.yaml", overrides)
        model = fine_tuning.load_starting_model(config, ROOT / config.model.base)
        with tempfile.TemporaryDirectory() as folder:
            trainer = fine_tuning.build_trainer(config.training, Path(folder), [])
            loader, sampler = data_loading.build_dataloader(model, config, trainer, "train", augment=True)
            seconds = sum(u.duration for u in loader.dataset.dataset.manifest_processor.collection)
            for epoch in range(2):  # the first starts the processes
                sampler.epoch, started = epoch, time.perf_counter()
                for _ in loader:
                    pass
            found[str(workers)] = round(seconds / (time.perf_counter() - started))
    return found


def inference(small: bool) -> dict[str, Any]:
    """Seconds of audio a second by step 3's inference and by NeMo's transcribe()."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        utterances = list(noise_files(Path(folder), 3 if small else 512))
        seconds, files = sum(u.duration for u in utterances), [str(Path(folder, u.audio_filepath)) for u in utterances]
        for name in ("QuartzNet15x5", "FastConformer-large"):
            stock = NETWORKS[name](16 if small else 1).eval().to(DEVICE)
            path = Path(folder) / f"{name}.nemo"
            ctc_model.save_model(stock, path)
            ours = prepare_for_inference(ctc_model.restore_model(path))
            for size in (2,) if small else (16, 64):
                ways: dict[str, Callable[[], Any]] = {
                    "this": lambda size=size, ours=ours: dict(predict(ours, None, utterances, Path(folder), size)),
                    "transcribe": lambda size=size, stock=stock: stock.transcribe(
                        files, batch_size=size, verbose=False
                    ),
                }
                speeds: dict[str, list[float]] = {way: [] for way in ways}
                for number in range(2 if small else 4):
                    for way, run in ways.items():
                        synchronize()
                        started = time.perf_counter()
                        run()
                        synchronize()
                        if number:
                            speeds[way].append(seconds / (time.perf_counter() - started))
                medians = {way: round(float(np.median(values)), 1) for way, values in speeds.items()}
                found[f"{name}, batches of {size}"] = medians
                print(name, size, medians, file=sys.stderr)
            del stock, ours
    return found


def noise_files(folder: Path, count: int) -> Iterator[Utterance]:
    """Utterances of noise, written to `folder`."""
    rng = np.random.default_rng(0)
    for number, duration in enumerate(durations(count)):
        samples = round(duration * RATE)
        soundfile.write(folder / f"{number}.wav", rng.normal(0, 0.1, samples).astype(np.float32), RATE)
        yield Utterance(f"{number}.wav", samples / RATE, "a")


def script(name: str, *overrides: str, wait: bool = True) -> subprocess.Popen[str]:
    """One of the three scripts on the demo's configuration, finished unless `wait` is false."""
    command = [sys.executable, str(ROOT / "Fine_tuning" / f"{name}.py"), "--config", "configs/demo.yaml", *overrides]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if wait:
        output, _ = process.communicate()
        if process.returncode:
            sys.exit(f"failed: {' '.join(command)}\n{output[-3000:]}")
    return process


def two_epochs(small: bool) -> dict[str, Any]:
    """A frozen and an unfrozen epoch of the demo, killed after the first and resumed, then step 3 on its model."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        overrides = (
            "training.max_epochs=2", "training.frozen_epochs=1", f"training.output={output}", "training.keep_best=0",
            f"training.accelerator={'gpu' if CUDA else 'cpu'}", f"training.batch_duration_s={100 if small else 14}",
        )  # fmt: skip
        started = time.perf_counter()
        process = script("train", *overrides, wait=False)
        while not (output / "checkpoints" / "last.ckpt").is_file() and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        killed_s, started = time.perf_counter() - started, time.perf_counter()
        script("train", *overrides)
        resumed_s = time.perf_counter() - started
        record = json.loads((output / "run.json").read_text())
        evaluated = Path(folder) / "results"
        script(
            "evaluate", f"evaluation.models=[{output}/Model-IT-finetuned.nemo]", f"evaluation.results={evaluated}",
            f"evaluation.predictions={folder}/predictions", "evaluation.decoder=greedy",
        )  # fmt: skip
        result = json.loads((evaluated / "Model-IT-finetuned.json").read_text())
        shutil.rmtree(output)
    sessions = [{key: of[key] for key in ("epochs_done", "device", "precision")} for of in record["sessions"]]
    return {
        "until_killed_s": round(killed_s, 1),
        "resumed_s": round(resumed_s, 1),
        "sessions": sessions,
        "val_loss": record["val_loss"],
        "test": {key: result[key] for key in ("loss", "cer", "wer")},
    }


if __name__ == "__main__":
    main()
