"""What training on telephone speech or on silence brings: error rates on test clips that were sent, padded or joined.

    python benchmarks/conditions.py

Needs datasets/demo as `make demo` leaves it, and sox. Sends the sample's test clips (synthetic speech) over a line
at 8 kHz by GSM, one of the codecs of the training, and by Dialogic ADPCM, which is none of them; puts them between
digital silence or between the clip's own background; and joins two by two with a pause of such background. All clips
together make long recordings, with pauses between them, with music, or all in noise, which transcribe.py cuts. Trains
configs/demo.yaml as it is, with `training.telephone`, with `training.silence_s` and in bfloat16, each with three seeds,
as many at a time as there are cores; evaluates all models on all of it. Half an hour on two cores; rerun it after an
interruption. Writes results/reference/conditions.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

import jiwer
import numpy as np
import soundfile

from clone_to_table import ROOT, cpu_name
from finetuning.data.manifest import SPLITS, Utterance, manifest_path, read_manifest, write_manifest
from finetuning.errors import UserError, run_script
from finetuning.files import ensure_writable_dir, read_json, write_json

SEEDS = (0, 1, 2)
RATE = 16000  # Hz
CODECS = {"GSM": ("gsm", "gsm-full-rate"), "ADPCM": ("vox", "oki-adpcm")}  # suffix and encoding, by sox's names
SILENCE_S, PAUSE_S = 0.25, 1.0  # at each end; between two clips
LONG_PAUSES_S = (1.0, 4.0)  # between the clips of a long recording
NOISE_DB = 20.0  # below the speech
TRAININGS = {
    "demo": (),
    "telephone": ("training.telephone=0.5",),
    "silence": ("training.silence_s=0.5",),
    "bf16": ("training.precision=bf16-mixed",),
}
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
RESULT = ROOT / "results" / "reference" / "conditions.json"


def main() -> None:
    """Train, evaluate, and write the error rates of each model on each test set."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not shutil.which("sox"):
        raise UserError("sox is needed; type: apt-get install sox")
    if not manifest_path(ROOT / "datasets" / "demo", "test").is_file():
        raise UserError("there is no datasets/demo; type: make demo")
    runs = {(name, seed): f"runs/conditions/{name}-{seed}" for name in TRAININGS for seed in SEEDS}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        trainings = [
            pool.submit(
                script, "train", f"training.output={output}", f"training.name={name}-{seed}", f"training.seed={seed}",
                "training.precision=32-true", *TRAININGS[name],
            )
            for (name, seed), output in runs.items()
        ]  # fmt: skip
        for training in trainings:
            training.result()
    models = ",".join(f"{output}/{Path(output).name}.nemo" for output in runs.values())
    found = {name: {} for name in TRAININGS}
    for condition, folder in make_datasets().items():
        output = f"runs/conditions/{folder.name}"
        script(
            "evaluate", f"dataset.output={folder}", f"evaluation.models=[{models}]",
            f"evaluation.predictions={output}", f"evaluation.results={output}/results", "evaluation.decoder=greedy",
        )  # fmt: skip
        for name in TRAININGS:
            results = [read_json(ROOT / output / "results" / f"{name}-{seed}.json") for seed in SEEDS]
            found[name][condition] = {"runs": [{rate: result[rate] for rate in ("cer", "wer")} for result in results]}
    text, recordings = make_long_recordings()
    for name in TRAININGS:
        long = [transcribe(f"{runs[name, seed]}/{name}-{seed}.nemo", recordings) for seed in SEEDS]
        for recording in recordings:
            wers = [jiwer.wer(text, transcripts[recording]) for transcripts in long]
            found[name][recording.stem] = {"runs": [{"wer": round(wer, 6)} for wer in wers]}
    about = {"machine": cpu_name(), "data": "shipped sample, synthetic speech", "seeds": list(SEEDS)}
    about |= {
        "silence_s": SILENCE_S,
        "pause_s": PAUSE_S,
        "long_pauses_s": LONG_PAUSES_S,
        "noise_db": NOISE_DB,
        "long_s": round(soundfile.info(recordings[0]).duration),
        "trainings": TRAININGS,
        "rates": found,
    }
    write_json(RESULT, about)
    print(json.dumps(found, indent=2))


def make_datasets() -> dict[str, Path]:
    """Write the demo's dataset with each change of its test clips; return the folders by the name of the condition."""
    whole = ROOT / "datasets" / "demo"
    utterances = read_manifest(manifest_path(whole, "test"))
    clips = [soundfile.read(whole / utterance.audio_filepath, dtype="int16")[0] for utterance in utterances]
    margin, pause = (round(seconds * RATE) for seconds in (SILENCE_S, PAUSE_S))
    changes = {
        codec: [(utterance, send(clip, codec)) for utterance, clip in zip(utterances, clips, strict=True)]
        for codec in CODECS
    }
    changes["zeros"] = [(u, np.pad(clip, margin)) for u, clip in zip(utterances, clips, strict=True)]
    changes["background"] = [
        (u, np.concatenate([background(clip, margin), clip, background(clip, margin)]))
        for u, clip in zip(utterances, clips, strict=True)
    ]
    changes["joined"] = [
        (replace(first, text=f"{first.text} {second.text}"), np.concatenate([a, background(a, pause), b]))
        for first, second, a, b in zip(utterances[::2], utterances[1::2], clips[::2], clips[1::2], strict=True)
    ]
    folders = {name: write_dataset(f"demo_{name}", changed) for name, changed in changes.items()}
    return {"as they are": whole, **folders}


def make_long_recordings() -> tuple[str, list[Path]]:
    """Write all test clips as one recording with pauses, with music in them, and in noise; return text and paths."""
    whole, folder = ROOT / "datasets" / "demo", ensure_writable_dir(ROOT / "runs" / "conditions" / "long")
    utterances, dice = read_manifest(manifest_path(whole, "test")), np.random.default_rng(0)
    with_pauses, with_music = [], []
    for utterance in utterances:
        clip, _ = soundfile.read(whole / utterance.audio_filepath)
        count = round(dice.uniform(*LONG_PAUSES_S) * RATE)
        with_pauses += [clip, background(clip, count)]
        with_music += [clip, music(dice, count, clip.std())]
    pauses = np.concatenate(with_pauses)
    speech = np.concatenate(with_pauses[::2]).std()
    noise = dice.normal(size=len(pauses)) * speech * 10 ** (-NOISE_DB / 20)
    sounds = {"pauses": pauses, "music": np.concatenate(with_music), "noise": pauses + noise}
    for name, samples in sounds.items():
        soundfile.write(folder / f"{name}.wav", samples.clip(-1, 1), RATE)
    return " ".join(utterance.text for utterance in utterances), [folder / f"{name}.wav" for name in sounds]


def music(dice: np.random.Generator, count: int, level: float) -> np.ndarray:
    """Return `count` samples of plucked chords of three notes, two a second, as loud as `level`."""
    time_s, sound = np.arange(count) / RATE, np.zeros(count)
    for start in range(0, count, RATE // 2):
        for semitones in dice.choice(24, size=3, replace=False):
            tone_hz, since = 220 * 2 ** (semitones / 12), time_s[: count - start]
            chord = sum(np.sin(2 * np.pi * tone_hz * overtone * since) / overtone for overtone in range(1, 6))
            sound[start:] += chord * np.exp(-3 * since)
    return sound * level / max(sound.std(), 1e-9)


def transcribe(model: str, recordings: list[Path]) -> dict[Path, str]:
    """Return what transcribe.py makes of each recording."""
    command = [sys.executable, str(ROOT / "Fine_tuning" / "transcribe.py"), model, *map(str, recordings)]
    printed = subprocess.run([*command, "--format", "jsonl"], env=ONE_THREAD, stdout=subprocess.PIPE, check=True).stdout
    segments = [json.loads(line) for line in printed.splitlines()]
    return {
        path: " ".join(each["pred_text"] for each in segments if each["audio_filepath"] == str(path))
        for path in recordings
    }


def write_dataset(name: str, test: list[tuple[Utterance, np.ndarray]]) -> Path:
    """Write a dataset with the demo's training and validation set and these test clips; return its folder."""
    folder = ensure_writable_dir(ROOT / "datasets" / name)
    (folder / "wavs").mkdir(exist_ok=True)
    for split in SPLITS[:-1]:
        utterances = read_manifest(manifest_path(ROOT / "datasets" / "demo", split))
        moved = [replace(u, audio_filepath=f"../demo/{u.audio_filepath}") for u in utterances]
        write_manifest(manifest_path(folder, split), moved)
    for utterance, samples in test:
        soundfile.write(folder / utterance.audio_filepath, samples, RATE)
    write_manifest(manifest_path(folder, "test"), [replace(u, duration=len(samples) / RATE) for u, samples in test])
    return folder


def send(clip: np.ndarray, codec: str) -> np.ndarray:
    """Return the 16-bit samples as they come out of a telephone line with this codec."""
    suffix, encoding = CODECS[codec]
    raw = ["-t", "raw", "-r", str(RATE), "-b", "16", "-e", "signed-integer", "-c", "1", "-"]
    call = ["-t", suffix, "-r", "8000", "-c", "1"]
    sent = sox([*raw, *call, "-e", encoding, "-"], clip.tobytes())
    received = sox([*call, "-", *raw, "rate", str(RATE), "pad", "0", "1", "trim", "0", f"{len(clip)}s"], sent)
    return np.frombuffer(received, np.int16)


def sox(arguments: list[str], data: bytes) -> bytes:
    """Return what sox makes of `data`."""
    return subprocess.run(["sox", "-D", "-V1", *arguments], input=data, stdout=subprocess.PIPE, check=True).stdout


def background(clip: np.ndarray, count: int) -> np.ndarray:
    """Return `count` samples of the quietest tenth of a second of a clip that is not digital silence, to and fro."""
    frames = clip[: len(clip) // (RATE // 10) * (RATE // 10)].reshape(-1, RATE // 10)
    power = np.square(frames.astype(float)).mean(axis=1)
    quietest = frames[np.where(power > 0, power, np.inf).argmin()]
    return np.pad(quietest, (0, count), mode="symmetric")[:count]


def script(name: str, *overrides: str) -> None:
    """One of the scripts on the demo's configuration with one thread; ends the benchmark when it fails."""
    command = [sys.executable, str(ROOT / "Fine_tuning" / f"{name}.py"), "--config", "configs/demo.yaml", *overrides]
    if subprocess.run(command, env=ONE_THREAD).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    run_script(main)
