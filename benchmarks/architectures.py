"""Other architectures on the shipped sample (synthetic speech): three seeds each, from English bases of their own.

    python benchmarks/architectures.py [VARIANT ...]

Trains a small Citrinet and a small FastConformer on the English sample (configs/demo_english.yaml, sub-words), then
each variant on the Italian one with the demo's number of epochs, one thread a run and as many runs at a time as there
are cores. Writes results/reference/architectures.json, in about an hour and a half on two cores. Rerun it after an
interruption: runs that are finished are only read. The demo's own QuartzNet is in recipes.json.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

from clone_to_table import ROOT, cpu_name
from recipes import CORES, SEEDS, checked_variants

RUNS = ROOT / "runs" / "architectures"
RESULT = ROOT / "results" / "reference" / "architectures.json"
PIECES = 128  # of words, at most, in either language
MASKS = "training.spec_augment={freq_masks: 2, freq_width: 15, time_masks: 2, time_width: 0.05}"  # of the English bases
RATES = {"citrinet": "3.0e-3", "fastconformer": "1.5e-3"}  # learning rates, in both languages
VARIANTS = {
    "citrinet": ("citrinet", ()),
    "citrinet random": ("citrinet", ("training.decoder_init=random",)),
    "fastconformer": ("fastconformer", ()),
    "fastconformer random": ("fastconformer", ("training.decoder_init=random",)),
    "fastconformer layer norm": ("fastconformer", ()),
}
# train.py with the layer normalisation of a frozen encoder trained as its batch normalisation is
LAYER_NORM = """
import runpy, sys
from types import SimpleNamespace
sys.path.insert(0, {scripts!r})
import finetuning
from torch import nn
from finetuning.training import encoder_freezing
encoder_freezing.nn = SimpleNamespace(BatchNorm1d=(nn.BatchNorm1d, nn.LayerNorm))
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    """Run what is missing, then write what all runs gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"{', '.join(VARIANTS)}; all without any")
    chosen = checked_variants(parser, parser.parse_args().variants, VARIANTS)
    RUNS.mkdir(parents=True, exist_ok=True)
    for language in ("", "_english"):
        script("dataset_creation", f"dataset{language}", f"configs/demo{language}.yaml")
    with ThreadPoolExecutor(CORES) as pool:
        bases = dict(zip(RATES, pool.map(english, RATES), strict=True))
        jobs = {(variant, seed): pool.submit(italian, variant, seed) for variant in chosen for seed in SEEDS}
        runs = {key: job.result() for key, job in jobs.items()}
    known = json.loads(RESULT.read_text())["variants"] if RESULT.is_file() else {}
    known |= {variant: {"runs": [runs[variant, seed] for seed in SEEDS]} for variant in chosen}
    measured = {
        "machine": f"{CORES} CPU cores ({cpu_name()})",
        "data": "shipped sample, synthetic speech, test speakers unseen in training",
        "seeds": list(SEEDS),
        "bases": bases,
        "variants": {variant: known[variant] for variant in VARIANTS if variant in known},
    }
    RESULT.write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=2))


def english(network: str) -> dict[str, float]:
    """Train the English base of an architecture; its validation error rate."""
    output = base(network).parent
    script(
        "train", output.name, "configs/demo_english.yaml", f"model.architecture=configs/models/{network}_small.yaml",
        MASKS,
        f"training.output={output}", f"training.name={base(network).stem}", *of(network),
    )  # fmt: skip
    record = json.loads((output / "run.json").read_text())
    return {key: round(record[key], 4) for key in ("val_loss", "val_wer") if key in record}


def italian(variant: str, seed: int) -> dict[str, float]:
    """Train and evaluate; what came out on the test set, greedily."""
    network, overrides = VARIANTS[variant]
    name = f"{variant.replace(' ', '_')}-{seed}"
    output = RUNS / name
    script(
        "train", name, "configs/demo.yaml", f"model.base={base(network)}", f"training.output={output}",
        f"training.name={name}", f"training.seed={seed}", *of(network), *overrides, layer_norm="layer norm" in variant,
    )  # fmt: skip
    script(
        "evaluate", name, "configs/demo.yaml", f"evaluation.models=[{output / name}.nemo]",
        f"evaluation.predictions={output / 'predictions'}", f"evaluation.results={output / 'results'}",
        f"training.output={output}", "evaluation.decoder=greedy",
    )  # fmt: skip
    result = json.loads((output / "results" / f"{name}.json").read_text())
    return {key: result[key] for key in ("loss", "cer", "wer")}


def base(network: str) -> Path:
    """The file of the English base."""
    return RUNS / f"{network}_en" / f"{network}_small_en.nemo"


def of(network: str) -> tuple[str, ...]:
    """What is set for an architecture in both languages."""
    subwords = ("model.vocabulary=subwords", f"model.vocabulary_size={PIECES}")
    return (*subwords, f"training.optimizer.lr={RATES[network]}")


def script(name: str, about: str, config: str, *overrides: str, layer_norm: bool = False) -> None:
    """One of the three scripts in one thread; its output goes to a log, which is shown when it fails."""
    command = [str(ROOT / "Fine_tuning" / f"{name}.py"), "--config", config, *overrides]
    if layer_norm:
        command = ["-c", LAYER_NORM.format(scripts=str(ROOT / "Fine_tuning")), *command]
    log = RUNS / f"{about}-{name}.log"
    with log.open("w") as out:
        status = subprocess.run(
            [sys.executable, *command], stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        ).returncode
    if status:
        raise SystemExit(f"failed: {' '.join(command)}\n{log.read_text()[-2000:]}")


if __name__ == "__main__":
    main()
