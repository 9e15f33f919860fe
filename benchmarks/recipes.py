"""What changes of the recipe bring, each from three seeds: on the shipped sample or on human speech.

    python benchmarks/recipes.py [--corpus sample] [VARIANT ...]
    python benchmarks/recipes.py --corpus mboshi [VARIANT ...]     # after benchmarks/mboshi.py

On the sample (synthetic speech): trains and evaluates configs/demo.yaml with the overrides of VARIANTS, the demo's own
recipe one run at a time, with all cores, as a user runs it; the others as many at a time as there are cores, each with
one thread. All of it takes two and a half hours on two cores. Beside the demo as it is and the same from scratch, all
variants are changes of one recipe, LONG, which does not follow the demo's: theirs is a comparison with each other.

On Mboshi (configs/mboshi.yaml; human speech): `long` is what configs/mboshi.yaml trains, the variants named after it
are changes of that, and all others are changes of one recipe, SHORT, with as many steps. A run takes 10 to 30 minutes
of one core, by processor.

Writes results/reference/recipes.json or recipes_mboshi.json, after every run: rerun it after an interruption, on any
day and machine, and runs that are in the file are not repeated. The seed is that of the training (decoder, order of the
batches, masks, perturbation); the split, and so the test set, is the same in all runs.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

from clone_to_table import ROOT, cpu_name
from finetuning.data.manifest import SPLITS, manifest_path, read_manifest, write_manifest
from finetuning.files import ensure_writable_dir, exclusive_lock, read_json, write_json

SEEDS = (0, 1, 2)
RUNS = ROOT / "runs" / "recipes"
REFERENCE = ROOT / "results" / "reference"
LONG = (  # every key of the recipe that the demo may set otherwise; the demo was like this once
    "training.max_epochs=36",
    "training.frozen_epochs=5",
    "training.batch_size=5",
    "training.batch_duration_s=null",
    "training.speed_perturbation=0.07",
    "training.dropout=null",
    "training.spec_augment={freq_masks: 2, freq_width: 12, time_masks: 2, time_width: 25}",
    "training.gradient_clip=20.0",
    "training.keep_best=0",
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
SHARES = {"datasets/demo_half": 0.5, "datasets/demo_quarter": 0.25}  # of the training utterances; as many steps in all
SHORT = (  # every key that configs/mboshi.yaml may set otherwise
    "training.max_epochs=10",
    "training.frozen_epochs=2",
    "training.batch_duration_s=60",
    "training.speed_perturbation=0.1",
    "training.dropout=0.0",
    "training.spec_augment={rect_masks: 0, freq_masks: 0, time_masks: 0}",
    "training.gradient_clip=20.0",
    "training.optimizer={name: adamw, lr: 6.0e-3, betas: [0.9, 0.98], weight_decay: 1.0e-2}",
    "training.schedule={warmup_ratio: 0.05, min_lr: 3.0e-5}",
    "training.keep_best=5",
)
HALF_RATE = "training.optimizer.lr=3.0e-3"
MASKS = "training.spec_augment={freq_masks: 2, freq_width: 12, time_masks: 2, time_width: 25}"
MBOSHI_LONG = {
    "long": (),
    "long with masks": (MASKS,),
    "long with masks at half the learning rate": (MASKS, HALF_RATE),
}
MBOSHI_CHANGES = {
    "warm": (),  # SHORT itself
    "from scratch": FROM_SCRATCH,
    "random": ("training.decoder_init=random",),
    "0 frozen epochs": ("training.frozen_epochs=0",),
    "always frozen": ("training.frozen_epochs=10",),
    "batches at random": ("training.batch_duration_s=null", "training.batch_size=17"),
    "no speed perturbation": ("training.speed_perturbation=0.0",),
    "masks": (MASKS,),
    "strong masks": ("training.spec_augment={freq_masks: 2, freq_width: 22, time_masks: 10, time_width: 0.05}",),
    "half of the hours": ("dataset.output=datasets/mboshi_half", "training.max_epochs=20", "training.frozen_epochs=4"),
    "a quarter of the hours": (
        "dataset.output=datasets/mboshi_quarter",
        "training.max_epochs=40",
        "training.frozen_epochs=8",
    ),
}
MBOSHI_RATES = {
    "warm at twice the learning rate": ("training.optimizer.lr=1.2e-2",),
    "warm at a quarter of the learning rate": ("training.optimizer.lr=1.5e-3",),
    **{f"{variant} at half the learning rate": (*change, HALF_RATE) for variant, change in MBOSHI_CHANGES.items()},
}
VALIDATION_WER = 0.3  # whose first epoch is told
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Corpus:
    """What is trained on: a configuration, its variants, those of them that also get a language model, and so on."""

    config: str
    variants: dict[str, tuple[str, ...]]
    with_language_model: tuple[str, ...]
    with_all_cores: tuple[str, ...]
    shares: dict[str, float]
    data: str
    result: str

    @property
    def dataset(self) -> str:
        """Return the folder of the whole dataset."""
        return f"datasets/{self.config}"


CORPORA = {
    "sample": Corpus(
        "demo",
        {**DEMO, **{variant: (*LONG, *overrides) for variant, overrides in CHANGES.items()}},
        tuple(DEMO),
        tuple(DEMO),
        SHARES,
        "shipped sample, synthetic speech, test speakers unseen in training except with the split by clip",
        "recipes.json",
    ),
    "mboshi": Corpus(
        "mboshi",
        MBOSHI_LONG | {name: (*SHORT, *change) for name, change in (MBOSHI_CHANGES | MBOSHI_RATES).items()},
        ("long", "warm", "warm at half the learning rate"),
        (),
        {"datasets/mboshi_half": 0.5, "datasets/mboshi_quarter": 0.25},
        "Mboshi corpus, human speech, three speakers, all of them also in training",
        "recipes_mboshi.json",
    ),
}


def main() -> None:
    """Run what is missing, and write what each run gave when it is done."""
    corpus, chosen = parse_arguments()
    result = REFERENCE / corpus.result
    known = read_runs(result)
    missing = [(variant, seed) for seed in SEEDS for variant in chosen if (variant, seed) not in known]
    make_datasets(corpus, {variant for variant, _ in missing})
    training = read_manifest(manifest_path(ROOT / corpus.dataset, "train"), check_audio=False)

    def run(job: tuple[str, int], threads: int) -> None:
        """Train and evaluate one variant with one seed, and add what came out to the file."""
        found = one(corpus, *job, threads=str(threads))
        with exclusive_lock(REFERENCE, wait=True):  # others may run other variants
            runs = {**read_runs(result), job: found}
            of = {
                variant: [runs[variant, seed] for seed in SEEDS if (variant, seed) in runs]
                for variant in corpus.variants
            }
            about = {
                "machine": f"{os.cpu_count()} CPU cores ({', '.join(sorted({run['cpu'] for run in runs.values()}))})",
                "hours": round(sum(u.duration for u in training) / 3600, 3),  # of training, where not a part of them
                "data": corpus.data,
                "seeds": list(SEEDS),
                "validation_wer": VALIDATION_WER,
                "variants": {variant: {"runs": found} for variant, found in of.items() if found},
            }
            write_json(result, about)

    with ThreadPoolExecutor(CORES) as pool:
        jobs = [pool.submit(run, job, 1) for job in missing if job[0] not in corpus.with_all_cores]
        for job in jobs:
            job.result()
    for job in missing:
        if job[0] in corpus.with_all_cores:
            run(job, CORES)
    print(result.read_text())


def read_runs(result: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the runs that the file holds, by variant and seed."""
    variants = (read_json(result) or {"variants": {}})["variants"]
    return {(variant, run["seed"]): run for variant, found in variants.items() for run in found["runs"]}


def parse_arguments() -> tuple[Corpus, list[str]]:
    """Return the corpus and the variants that the command line names: all where it names none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", choices=CORPORA, default="sample", help="what to train on (%(default)s)")
    names = "; ".join(f"{name}: {', '.join(corpus.variants)}" for name, corpus in CORPORA.items())
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"{names}; all without any")
    arguments = parser.parse_args()
    corpus = CORPORA[arguments.corpus]
    return corpus, checked_variants(parser, arguments.variants, corpus.variants)


def checked_variants(parser: argparse.ArgumentParser, typed: list[str], variants: Iterable[str]) -> list[str]:
    """Return the variants that were typed, or all; end with a sentence where one is unknown."""
    if unknown := set(typed) - set(variants):
        parser.error(f"no variant is called {', '.join(unknown)}")
    return typed or list(variants)


def make_datasets(corpus: Corpus, variants: set[str]) -> None:
    """The datasets of the variants: the whole one, and those that are split otherwise or have less to train on."""
    script(corpus, "dataset_creation")
    for overrides in (corpus.variants[variant] for variant in variants):
        if any(override.startswith("dataset.split") for override in overrides):
            script(corpus, "dataset_creation", *overrides)
    script(corpus, "train_language_model")
    whole = ROOT / corpus.dataset
    for folder, share in corpus.shares.items():
        (ROOT / folder).mkdir(exist_ok=True)
        for split in SPLITS:
            utterances = read_manifest(manifest_path(whole, split))
            moved = [replace(u, audio_filepath=f"../{corpus.config}/{u.audio_filepath}") for u in utterances]
            if split == "train":
                moved = random.Random(0).sample(moved, round(share * len(moved)))
            write_manifest(manifest_path(ROOT / folder, split), moved)


def one(corpus: Corpus, variant: str, seed: int, threads: str) -> dict[str, Any]:
    """Train and evaluate; what came out."""
    name, overrides = f"{variant.replace(' ', '_')}-{seed}", corpus.variants[variant]
    output = RUNS / corpus.config / name
    about = (f"training.output={output}", f"training.name={name}", f"training.seed={seed}")
    script(corpus, "train", *about, *overrides, threads=threads)
    dataset = [override for override in overrides if override.startswith("dataset.")]
    decoder = "lm" if variant in corpus.with_language_model else "greedy"
    script(
        corpus, "evaluate", f"evaluation.models=[{output / name}.nemo]", f"evaluation.results={output / 'results'}",
        f"evaluation.predictions={output / 'predictions'}", f"training.output={output}", *dataset,
        f"evaluation.decoder={decoder}", threads=threads,
    )  # fmt: skip
    record = read_json(output / "run.json")
    with (output / "metrics.csv").open() as table:
        rows = list(csv.DictReader(table))
    wers, cers = ([round(float(row[key]), 3) for row in rows] for key in ("val_wer", "val_cer"))
    reached = next((epoch for epoch, wer in enumerate(wers, start=1) if wer <= VALIDATION_WER), None)
    found = {
        decoder: output / "results" / f"{name}{suffix}.json" for decoder, suffix in (("greedy", ""), ("lm", "+LM"))
    }
    of = {decoder: json.loads(path.read_text()) for decoder, path in found.items() if path.is_file()}
    return {
        "seed": seed,
        "cpu": cpu_name(),
        "precision": record["sessions"][-1]["precision"],
        "epochs": len(wers),
        "reached": reached,
        **{key: of["greedy"][key] for key in ("loss", "cer", "wer")},
        **({f"lm_{key}": of["lm"][key] for key in ("cer", "wer")} if "lm" in of else {}),
        "val_wer": wers,
        "val_cer": cers,
        "exported": record["exported"],
        "candidates": record["candidates"],  # on the validation set
    }


def script(corpus: Corpus, name: str, *overrides: str, threads: str = str(CORES)) -> None:
    """One of the scripts on the corpus's configuration; its output goes to a log, which is shown when it fails."""
    folder = ensure_writable_dir(RUNS / corpus.config)
    about = "_".join(override.rpartition("=")[2].rpartition("/")[2] for override in overrides[:2]) or corpus.config
    config = f"configs/{corpus.config}.yaml"
    command = [sys.executable, str(ROOT / "Fine_tuning" / f"{name}.py"), "--config", config, *overrides]
    log = folder / f"{name}-{about}.log"
    with log.open("w") as out:
        status = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": threads}
        ).returncode
    if status:
        raise SystemExit(f"failed: {' '.join(command)}\n{log.read_text()[-2000:]}")


if __name__ == "__main__":
    main()
