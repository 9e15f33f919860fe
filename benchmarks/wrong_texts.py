"""How many wrong texts a ranking by loss finds: some of the sample's training texts are exchanged with each other.

    python benchmarks/wrong_texts.py

Needs datasets/demo as `make demo` leaves it. Trains and evaluates configs/demo.yaml on the exchanged texts, in about
six minutes, and writes results/reference/wrong_texts.json: how many of the exchanged texts are among the worst tenth
of the training utterances, ranked by the loss of the whole text and by the loss per character.
"""

import argparse
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

from clone_to_table import ROOT, cpu_name
from finetuning.data.manifest import SPLITS, manifest_path, read_manifest, write_manifest
from finetuning.decoding.predictions import read_predictions
from finetuning.files import ensure_writable_dir, write_json

SHARE, WORST, SEED = 0.05, 0.1, 0  # of the texts that are exchanged; of the ranking that is looked at
DATASET, RUN = "datasets/demo_wrong_texts", "runs/wrong_texts"
RESULT = ROOT / "results" / "reference" / "wrong_texts.json"


def main() -> None:
    """Exchange texts, train on them, rank them, and write how many of them are ranked high."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    wrong = exchange_texts()
    model = f"{RUN}/Model-IT-finetuned.nemo"
    about = (f"dataset.output={DATASET}", f"training.output={RUN}")
    script("train", *about)
    script(
        "evaluate", *about, f"evaluation.models=[{model}]", f"evaluation.predictions={RUN}/predictions",
        f"evaluation.results={RUN}/results", "evaluation.decoder=greedy", "evaluation.split=train",
    )  # fmt: skip
    predictions = read_predictions(ROOT / RUN / "predictions" / "Model-IT-finetuned" / "all_of_train")
    found = {}
    for name, doubt in (("loss", lambda p: p.loss), ("loss per character", lambda p: p.loss / len(p.text))):
        worst = sorted(predictions, key=doubt, reverse=True)[: round(WORST * len(predictions))]
        found[name] = len(wrong & {prediction.audio_filepath for prediction in worst})
    result = {
        "machine": cpu_name(),
        "data": "shipped sample, synthetic speech",
        "utterances": len(predictions),
        "exchanged": len(wrong),
        "worst": round(WORST * len(predictions)),
        "found": found,
    }
    write_json(RESULT, result)
    print(RESULT.read_text())


def exchange_texts() -> set[str]:
    """Write the demo's dataset with some training texts moved one on among themselves; return their wavs."""
    whole, folder = ROOT / "datasets" / "demo", ensure_writable_dir(ROOT / DATASET)
    for split in SPLITS:
        utterances = [
            replace(u, audio_filepath=f"../demo/{u.audio_filepath}") for u in read_manifest(manifest_path(whole, split))
        ]
        if split == SPLITS[0]:
            chosen = sorted(random.Random(SEED).sample(range(len(utterances)), round(SHARE * len(utterances))))
            texts = [utterances[number].text for number in chosen]
            for number, text in zip(chosen, texts[1:] + texts[:1], strict=True):
                utterances[number] = replace(utterances[number], text=text)
            wrong = {utterances[number].audio_filepath for number in chosen}
        write_manifest(manifest_path(folder, split), utterances)
    return wrong


def script(name: str, *overrides: str) -> None:
    """One of the scripts on the demo's configuration; ends the benchmark when it fails."""
    command = [sys.executable, str(ROOT / "Fine_tuning" / f"{name}.py"), "--config", "configs/demo.yaml", *overrides]
    if subprocess.run(command).returncode:
        sys.exit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    main()
