"""What a small text of a domain brings: the demo's model with a language model of general text, and of both.

    python benchmarks/domain.py

Needs runs/demo as `make demo` leaves it; runs configs/demo_domain.yaml in two forms, in about a minute, and writes
results/reference/domain.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

from clone_to_table import ROOT
from finetuning.config import loading
from finetuning.files import read_json, write_json

CONFIG = "configs/demo_domain.yaml"
RESULT = ROOT / "results" / "reference" / "domain.json"
MODEL = "Model-IT-finetuned"


def main() -> None:
    """Run both and write what came out."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sources = loading.load_config(CONFIG, []).language_model.sources
    general = f"language_model.sources=[{{name: {sources[0].name}, file: {sources[0].file}, weight: 1.0}}]"
    runs = {"general": run("general", general), "mixture": run("mixture")}
    about = {"weights": {source.name: source.weight for source in sources}, "runs": runs}
    write_json(RESULT, about)
    print(json.dumps(about, indent=2))


def run(name: str, *overrides: str) -> dict:
    """One language model, made and decoded with: WER, and error rates on and off the domain, without it and with it."""
    folder, results = f"runs/demo_domain/{name}", f"results/demo_domain_{name}"
    given = [f"language_model.output={folder}/language_model", *overrides]
    script("train_language_model", *given)
    script("evaluate", *given, f"evaluation.predictions={folder}/predictions", f"evaluation.results={results}")
    made = read_json(ROOT / folder / "language_model" / "language_model.json")
    rows = {kind: read_json(ROOT / results / f"{MODEL}{kind}.json") for kind in ("", "+LM")}
    return {
        "unknown_rate": made["validation"]["unknown_rate"],
        "sources": made["sources"],
        **{
            decoder: row["slices"]["topic timetable"]
            for decoder, row in zip(("greedy", "lm"), rows.values(), strict=True)
        },
    }


def script(name: str, *overrides: str) -> None:
    """A script of Fine_tuning on the configuration; ends the benchmark when it fails."""
    command = [sys.executable, str(ROOT / "Fine_tuning" / f"{name}.py"), "--config", CONFIG, *overrides]
    if subprocess.run(command).returncode:
        sys.exit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    main()
