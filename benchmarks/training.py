"""A training step of QuartzNet15x5 timed: stock NeMo, our convolutions, our batches, and 16-bit mixed precision.

    python benchmarks/training.py

Writes results/reference/training.json in about a quarter of an hour. The utterances are noise of the lengths of Common
Voice clips (log-normal, mean 5.4 s, between 1 and 16 s): what they say does not change how long a step takes. A step is
features, encoder, decoder, CTC loss, gradients and NovoGrad; each way takes its turn in every round. Mixed precision in
bfloat16 is timed where the processor multiplies such matrices in hardware (AMX).
"""

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

import numpy as np
import torch
from nemo.collections.asr.models import EncDecCTCModel
from nemo.core.optim.novograd import Novograd

from clone_to_table import cpu_name, write_speeds
from finetuning.model import channels_last
from finetuning.training.batch_sampler import EpochBatchSampler, padding_share
from networks import quartznet_15x5

RATE = 16000  # Hz
LETTERS_PER_S = 13  # of the texts, about as in Italian
PUBLISHED_BATCH, BATCH = 32, 16  # utterances; the smaller one is timed, for the sake of time and memory
MEAN_S = 5.4
CORES = len(os.sched_getaffinity(0))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of all ways in turn; the median is what counts")
    measured = measure(parser.parse_args().rounds)
    write_speeds("training", measured)
    print(json.dumps(measured, indent=2))


def measure(rounds: int) -> dict:
    """What the JSON holds."""
    lengths = durations(100_000)
    shares = {
        "random": padding_share(lengths, iter(EpochBatchSampler(lengths, PUBLISHED_BATCH, None, 0))),
        "by_duration": padding_share(
            lengths, iter(EpochBatchSampler(lengths, PUBLISHED_BATCH, PUBLISHED_BATCH * MEAN_S, 0))
        ),
    }
    stock = quartznet_15x5()
    ours = quartznet_15x5()
    channels_last.use_channels_last(ours)
    by_count, by_duration = (EpochBatchSampler(lengths, BATCH, seconds, 0) for seconds in (None, BATCH * MEAN_S))
    ways = {"stock": (stock, by_count, False), "convolutions": (ours, by_count, False)}
    ways |= {"and batches": (ours, by_duration, False)}
    if has_amx():
        ways["and bf16"] = (ours, by_duration, True)
    plans = {way: iter(batches) for way, (_, batches, _) in ways.items()}
    optimisers = {way: novograd(model) for way, (model, _, _) in ways.items()}
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    difference = compare(stock, ours, [lengths[index] for _, index in next(iter(by_count))][:4])
    for i in range(-1, rounds):  # the first one warms up
        for way, (model, _, bf16) in ways.items():
            spoken, took = step(model, optimisers[way], plans[way], lengths, bf16)
            if i >= 0:
                speeds[way].append(spoken / took)
        print(f"round {i}:", {way: round(found[-1], 2) for way, found in speeds.items() if found}, file=sys.stderr)
    ratios = {way: np.array(found) / np.array(speeds["stock"]) for way, found in speeds.items()}
    return {
        "machine": f"{CORES} CPU cores ({cpu_name()})",
        "versions": {name: version(name) for name in ("nemo_toolkit", "torch")} | {"python": sys.version.split()[0]},
        "data": f"noise of the lengths of Common Voice clips, {MEAN_S} s on average",
        "model": f"QuartzNet15x5, {sum(p.numel() for p in stock.parameters()) / 1e6:.1f} M parameters",
        "rounds": rounds,
        "batch": BATCH,
        "audio_s_per_s": {way: figures(found) for way, found in speeds.items()},
        "stock_to": {way: figures(found) for way, found in ratios.items()},
        "padding": {way: round(share, 4) for way, share in shares.items()},  # of the published batches of 32
        "difference": difference,
    }


def has_amx() -> bool:
    """Tell whether the processor multiplies matrices of bfloat16 in hardware."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def durations(count: int) -> list[float]:
    """Seconds, spread like Common Voice's."""
    rng = random.Random(0)
    return [min(16.0, max(1.0, rng.lognormvariate(math.log(5.1), 0.35))) for _ in range(count)]


def novograd(model: EncDecCTCModel) -> torch.optim.Optimizer:
    """As published."""
    return Novograd(model.parameters(), lr=5e-4, betas=(0.95, 0.5), weight_decay=1e-3)


def step(
    model: EncDecCTCModel,
    optimiser: torch.optim.Optimizer,
    plan: Iterator[list[tuple[int, int]]],
    lengths: list[float],
    bf16: bool,
) -> tuple[float, float]:
    """One training step, in mixed precision or not: seconds of audio without padding, and seconds it took."""
    seconds = [lengths[index] for _, index in next(plan)]
    batch = noise(seconds)
    started = time.perf_counter()
    optimiser.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):  # as Lightning's bf16-mixed
        value = loss(model, batch)
    value.backward()
    optimiser.step()
    return sum(seconds), time.perf_counter() - started


def noise(seconds: list[float]) -> dict[str, torch.Tensor]:
    """Signals (B, T), texts (B, U) and the lengths of both (B,)."""
    samples = torch.tensor([round(s * RATE) for s in seconds])
    letters = torch.tensor([max(1, round(s * LETTERS_PER_S)) for s in seconds])
    signal = torch.randn(len(seconds), int(samples.max())) / 10
    signal[torch.arange(signal.shape[1]) >= samples[:, None]] = 0.0
    text = torch.randint(0, 28, (len(seconds), int(letters.max())))
    return {"signal": signal, "samples": samples, "text": text, "letters": letters}


def loss(model: EncDecCTCModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """As EncDecCTCModel.training_step, without its logging."""
    log_probs, frames, _ = model(input_signal=batch["signal"], input_signal_length=batch["samples"])
    return model.loss(log_probs=log_probs, targets=batch["text"], input_lengths=frames, target_lengths=batch["letters"])


def compare(stock: EncDecCTCModel, ours: EncDecCTCModel, seconds: list[float]) -> dict[str, float]:
    """On one batch, relative, in double precision: of the loss, and of all gradients together by their norm.

    In single precision an untrained network of this depth tells nothing: there, a change of the features by 1e-7
    changes the gradients of stock NeMo by 10 %.
    """
    batch, losses, gradients = noise(seconds), [], []
    with torch.no_grad():
        features, lengths = stock.preprocessor(input_signal=batch["signal"], length=batch["samples"])
    for model in (stock, ours):
        model.double().zero_grad()
        encoded, frames = model.encoder(audio_signal=features.double(), length=lengths)
        found = model.loss(
            log_probs=model.decoder(encoder_output=encoded), targets=batch["text"],
            input_lengths=frames, target_lengths=batch["letters"],
        )  # fmt: skip
        found.backward()
        losses.append(found.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        model.float()
    of_gradients = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    return {"loss": abs(losses[0] - losses[1]) / losses[0], "gradients": of_gradients}


def figures(values: list[float]) -> dict[str, float]:
    """Of the rounds."""
    return {name: round(float(of(values)), 3) for name, of in (("median", np.median), ("min", np.min), ("max", np.max))}


if __name__ == "__main__":
    main()
