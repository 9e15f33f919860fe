"""README's results and image.png from what runs have written, so that no number is typed by hand.

    python Fine_tuning/report.py

Reads the committed files in results/reference/, which benchmarks/clone_to_table.py writes.
"""

import argparse
import re

from finetuning.config import ROOT
from finetuning.config_file import load
from finetuning.errors import UserError, run
from finetuning.figures import loss_curve
from finetuning.files import read_json, written_whole
from finetuning.metrics import read_metrics
from finetuning.results import published_table, table

README = ROOT / "README.md"
REFERENCE = ROOT / "results" / "reference"


def main() -> None:
    """Rewrite the marked parts of README.md and draw image.png."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    filled = filled_in(README.read_text(encoding="utf-8"))
    with written_whole(README) as text:
        text.write(filled)
    metrics = read_metrics(REFERENCE / "metrics.csv")
    loss_curve(metrics, "Demo: loss per epoch (synthetic speech)", ROOT / "image.png")
    print(f"Wrote {README} and {ROOT / 'image.png'}")


def filled_in(readme: str) -> str:
    """`readme` with every part between `<!-- name -->` and `<!-- /name -->` made anew."""
    for name, content in parts().items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        readme, found = marked.subn(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", readme)
        if not found:
            raise UserError(f"{README} has no part marked <!-- {name} --> … <!-- /{name} -->; put the marks back")
    return readme


def parts() -> dict[str, str]:
    """Markdown by the name of the mark."""
    timing = read_json(REFERENCE / "timing.json")
    if timing is None:
        raise UserError(f"there is no {REFERENCE / 'timing.json'}; type: python benchmarks/clone_to_table.py")
    rows = [read_json(REFERENCE / f"{name}.json") for name in timing["models"]]
    italian = load("configs/italian.yaml", []).evaluation
    steps = ", ".join(f"{name} {minutes(seconds)}" for name, seconds in timing["steps_s"].items())
    return {
        "demo": table(rows, load("configs/demo.yaml", []).evaluation),
        "published": f"On {italian.published_on}:\n\n{published_table(italian)}",
        "timing": f"Measured from a fresh clone on {timing['machine']}: installation {minutes(timing['install_s'])}, "
        f"then the three scripts {minutes(timing['scripts_s'])} ({steps}).",
    }


def minutes(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    return f"{int(seconds) // 60} min {round(seconds) % 60:02d} s" if seconds >= 60 else f"{round(seconds)} s"


if __name__ == "__main__":
    run(main)
