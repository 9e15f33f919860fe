"""What changes of the recipe bring, on the shipped sample (synthetic speech): each from three seeds.

    python benchmarks/recipes.py [VARIANT ...]

Trains and evaluates configs/demo.yaml with the overrides of VARIANTS: the demo's own recipe one run at a time, with all
cores, as a user runs it; the others as many at a time as there are cores, each with one thread. Writes
results/reference/recipes.json. All of it takes two and a half hours on two cores. Rerun it after an interruption: runs
that are finished are only read. The seed is that of the training (decoder, order
of the batches, masks, perturbation); the split, and so the test set, is the same in all runs.

Beside the demo as it is and the same from scratch, all variants are changes of one recipe, LONG, which does not follow
the demo's: theirs is a comparison with each other.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

from clone_to_table import ROOT, cpu_name
from finetuning.data.manifest import SPLITS, manifest_path, read_manifest, write_manifest

SEEDS = (0, 1, 2)
LONG = (  # every key of the recipe that the demo may set otherwise; the demo was like this once
    "training.max_epochs=36",
    "training.frozen_epochs=5",
    "training.batch_size=5",
    "training.batch_duration_s=null",
    "training.speed_perturbation=0.07",
    "training.dropout=null",
    "training.spec_augment=true",
    "training.gradient_clip=20.0",
    "training.optimizer={name: adamw, lr: 3.0e-3, betas: [0.9, 0.98], weight_decay: 1.0e-2}",
    "training.schedule={warmup_ratio: 0.05, min_lr: 3.0e-5}",
)
FROM_SCRATCH = ("model.base=null", "model.architecture=configs/models/quartznet_small.yaml", "training.frozen_epochs=0")
FROZEN_10 = "training.frozen_epochs=10"
CHANGES = {
    "warm": (),  # LONG itself
    "from scratch": FROM_SCRATCH,
    "random": ("training.decoder_init=random",),
    "0 frozen epochs": ("training.frozen_epochs=0",),
    "10 frozen epochs": (FROZEN_10,),
    "always frozen": ("training.frozen_epochs=36",),
    "10 frozen epochs and batch normalisation": (FROZEN_10, "training.batch_norm=frozen"),
    "split by clip": ("dataset.split.by=clip", "dataset.output=datasets/demo_by_clip"),
    "half of the hours": ("dataset.output=datasets/demo_half", "training.max_epochs=72", FROZEN_10),
    "a quarter of the hours": (
        "dataset.output=datasets/demo_quarter",
        "training.max_epochs=144",
        "training.frozen_epochs=20",
    ),
    "batches by duration": ("training.batch_duration_s=17",),
}
DEMO = {"demo": (), "demo from scratch": FROM_SCRATCH}
VARIANTS = {**DEMO, **{variant: (*LONG, *overrides) for variant, overrides in CHANGES.items()}}
SHARES = {"datasets/demo_half": 0.5, "datasets/demo_quarter": 0.25}  # of the training utterances; as many steps in all
VALIDATION_WER = 0.3  # whose first epoch is told
RUNS = ROOT / "runs" / "recipes"
RESULT = ROOT / "results" / "reference" / "recipes.json"
CORES = len(os.sched_getaffinity(0))


def main() -> None:
    """Run what is missing, then write what all runs gave."""
    chosen = typed_variants(__doc__, VARIANTS)
    make_datasets(chosen)
    with ThreadPoolExecutor(CORES) as pool:
        jobs = {(of, seed): pool.submit(one, of, seed, "1") for of in chosen for seed in SEEDS if of not in DEMO}
        runs = {key: job.result() for key, job in jobs.items()}
    runs |= {(of, seed): one(of, seed) for of in chosen for seed in SEEDS if of in DEMO}
    training = read_manifest(manifest_path(ROOT / "datasets" / "demo", "train"), check_audio=False)
    known = json.loads(RESULT.read_text())["variants"] if RESULT.is_file() else {}
    for variant in chosen:
        known[variant] = summary([runs[variant, seed] for seed in SEEDS])
    measured = {
        "machine": f"{CORES} CPU cores ({cpu_name()})",
        "hours": round(sum(u.duration for u in training) / 3600, 3),  # of training, where not a part of them
        "data": "shipped sample, synthetic speech, test speakers unseen in training except with the split by clip",
        "seeds": list(SEEDS),
        "validation_wer": VALIDATION_WER,
        "variants": {variant: known[variant] for variant in VARIANTS if variant in known},
    }
    RESULT.write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=2))


def typed_variants(description: str, variants: Iterable[str]) -> list[str]:
    """Which of the variants the command line names: all where it names none."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"{', '.join(variants)}; all without any")
    chosen = parser.parse_args().variants or list(variants)
    if unknown := set(chosen) - set(variants):
        parser.error(f"no variant is called {', '.join(unknown)}")
    return chosen


def make_datasets(chosen: list[str]) -> None:
    """The demo's dataset, and those that differ from it: split otherwise, or with less to train on."""
    script("dataset_creation")
    for overrides in (VARIANTS[variant] for variant in chosen):
        if any(override.startswith("dataset.split") for override in overrides):
            script("dataset_creation", *overrides)
    script("train_language_model")
    demo = ROOT / "datasets" / "demo"
    for folder, share in SHARES.items():
        (ROOT / folder).mkdir(exist_ok=True)
        for split in SPLITS:
            utterances = read_manifest(manifest_path(demo, split))
            moved = [replace(u, audio_filepath=f"../demo/{u.audio_filepath}") for u in utterances]
            if split == "train":
                moved = random.Random(0).sample(moved, round(share * len(moved)))
            write_manifest(manifest_path(ROOT / folder, split), moved)


def one(variant: str, seed: int, threads: str = str(CORES)) -> dict[str, float | int | None]:
    """Train and evaluate; what came out."""
    name = f"{variant.replace(' ', '_')}-{seed}"
    output = RUNS / name
    about = (f"training.output={output}", f"training.name={name}", f"training.seed={seed}")
    script("train", *about, *VARIANTS[variant], threads=threads)
    dataset = [override for override in VARIANTS[variant] if override.startswith("dataset.")]
    decoder = "lm" if variant in DEMO else "greedy"
    script(
        "evaluate", f"evaluation.models=[{output / name}.nemo]", f"evaluation.predictions={output / 'predictions'}",
        f"evaluation.results={output / 'results'}", f"training.output={output}", *dataset,
        f"evaluation.decoder={decoder}", threads=threads,
    )  # fmt: skip
    with (output / "metrics.csv").open() as table:
        rows = list(csv.DictReader(table))
    wers = [round(float(row["val_wer"]), 3) for row in rows]
    reached = next((epoch for epoch, wer in enumerate(wers, start=1) if wer <= VALIDATION_WER), None)
    found = {
        decoder: output / "results" / f"{name}{suffix}.json" for decoder, suffix in (("greedy", ""), ("lm", "+LM"))
    }
    of = {decoder: json.loads(path.read_text()) for decoder, path in found.items() if path.is_file()}
    return {
        "epochs": len(wers),
        "reached": reached,
        **{key: of["greedy"][key] for key in ("loss", "cer", "wer")},
        **({f"lm_{key}": of["lm"][key] for key in ("cer", "wer")} if "lm" in of else {}),
        "val_wer": wers,
    }


def script(name: str, *overrides: str, threads: str = str(CORES)) -> None:
    """One of the three scripts on the demo's configuration; its output goes to a log, which is shown when it fails."""
    RUNS.mkdir(parents=True, exist_ok=True)
    about = "_".join(override.rpartition("=")[2].rpartition("/")[2] for override in overrides[:2]) or "demo"
    command = [sys.executable, str(ROOT / "Fine_tuning" / f"{name}.py"), "--config", "configs/demo.yaml", *overrides]
    log = RUNS / f"{name}-{about}.log"
    with log.open("w") as out:
        status = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": threads}
        ).returncode
    if status:
        raise SystemExit(f"failed: {' '.join(command)}\n{log.read_text()[-2000:]}")


def summary(runs: list[dict]) -> dict:
    """The runs of a variant, the mean of each figure and its standard deviation over seeds."""
    figures = {key: [run[key] for run in runs] for key in ("loss", "cer", "wer", "lm_cer", "lm_wer") if key in runs[0]}
    return {
        "runs": runs,
        "mean": {key: round(mean(values), 4) for key, values in figures.items()},
        "standard_deviation": {key: round(stdev(values), 4) for key, values in figures.items()},
    }


if __name__ == "__main__":
    main()
