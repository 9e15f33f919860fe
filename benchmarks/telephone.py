"""What training on some telephone speech brings: the demo's model without and with `training.telephone`, on calls.

    python benchmarks/telephone.py

Needs runs/demo as `make demo` leaves it, and sox. Sends the sample's test clips (synthetic speech) over a telephone, at
8 kHz by GSM, one of the codecs of the training, and by Dialogic ADPCM, which is none of them; trains configs/demo.yaml
once more, with half of the training clips sent over one; evaluates both models on all three. Six minutes on two cores.
Writes results/reference/telephone.json.
"""

import argparse
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

from clone_to_table import ROOT, cpu_name
from finetuning.data.manifest import SPLITS, manifest_path, read_manifest, write_manifest
from finetuning.errors import UserError, run_script
from finetuning.files import ensure_writable_dir, read_json, write_json

SHARE = 0.5  # of the training clips
CODECS = {"GSM": ("gsm", "gsm-full-rate"), "ADPCM": ("vox", "oki-adpcm")}  # suffix and encoding, by sox's names
MODELS = {"without": "runs/demo/Model-IT-finetuned.nemo", "with": "runs/telephone/Model-IT-telephone.nemo"}
RESULT = ROOT / "results" / "reference" / "telephone.json"


def main() -> None:
    """Train, evaluate, and write the error rates of each model on each test set."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not shutil.which("sox"):
        raise UserError("sox is needed; type: apt-get install sox")
    if not (ROOT / MODELS["without"]).is_file():
        raise UserError(f"there is no {MODELS['without']}; type: make demo")
    script("train", f"training.telephone={SHARE}", "training.output=runs/telephone", "training.name=Model-IT-telephone")
    found = {model: {} for model in MODELS}
    for line, folder in {"wide": "datasets/demo", **{codec: send(codec) for codec in CODECS}}.items():
        output = f"runs/telephone/{line}"
        script(
            "evaluate", f"dataset.output={folder}", f"evaluation.models=[{','.join(MODELS.values())}]",
            f"evaluation.predictions={output}", f"evaluation.results={output}/results", "evaluation.decoder=greedy",
        )  # fmt: skip
        for model, path in MODELS.items():
            result = read_json(ROOT / output / "results" / f"{Path(path).stem}.json")
            found[model][line] = {rate: result[rate] for rate in ("cer", "wer")}
    about = {"machine": cpu_name(), "data": "shipped sample, synthetic speech", "share": SHARE, "models": found}
    write_json(RESULT, about)
    print(RESULT.read_text())


def send(codec: str) -> str:
    """Write the demo's dataset with its test clips sent by a codec at 8 kHz; return the folder."""
    suffix, encoding = CODECS[codec]
    whole, folder = ROOT / "datasets" / "demo", ensure_writable_dir(ROOT / "datasets" / f"demo_{codec}")
    (folder / "wavs").mkdir(exist_ok=True)
    for split in SPLITS:
        utterances = read_manifest(manifest_path(whole, split))
        if split != SPLITS[-1]:
            moved = [replace(u, audio_filepath=f"../demo/{u.audio_filepath}") for u in utterances]
            write_manifest(manifest_path(folder, split), moved)
            continue
        for utterance in utterances:
            call = folder / f"call.{suffix}"
            clip, received = whole / utterance.audio_filepath, folder / utterance.audio_filepath
            sox = ["sox", "-D", "-V1"]
            subprocess.run([*sox, clip, "-r", "8000", "-e", encoding, call], check=True)
            length = f"{round(utterance.duration * 16000)}s"
            subprocess.run([*sox, "-r", "8000", call, "-b", "16", "-e", "signed-integer", received,
                            "rate", "16000", "pad", "0", "1", "trim", "0", length], check=True)  # fmt: skip
            call.unlink()
        write_manifest(manifest_path(folder, split), utterances)
    return str(folder.relative_to(ROOT))


def script(name: str, *overrides: str) -> None:
    """One of the scripts on the demo's configuration; ends the benchmark when it fails."""
    command = [sys.executable, str(ROOT / "Fine_tuning" / f"{name}.py"), "--config", "configs/demo.yaml", *overrides]
    if subprocess.run(command).returncode:
        sys.exit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    run_script(main)
