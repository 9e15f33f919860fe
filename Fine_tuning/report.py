"""README's results and image.png from what runs have written, so that no number is typed by hand.

    python Fine_tuning/report.py

Reads the committed files below results/; `--check` writes nothing and fails when README.md is stale.
"""

import argparse
import re
from pathlib import Path

from finetuning.config import ROOT, load
from finetuning.errors import UserError, run
from finetuning.figures import loss_curve
from finetuning.files import read_json, written_whole
from finetuning.metrics import read_metrics
from finetuning.results import published_table, table

README = ROOT / "README.md"
RESULTS = ROOT / "results"


def main() -> None:
    """Rewrite the marked parts of README.md and draw image.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether README.md is up to date")
    check = parser.parse_args().check
    before = README.read_text(encoding="utf-8")
    after = filled_in(before)
    if check:
        if before != after:
            raise UserError(f"{README} is stale; type: make report")
        return
    with written_whole(README) as text:
        text.write(after)
    loss_curve(read_metrics(RESULTS / "demo" / "metrics.csv"), "Demo: loss per epoch (synthetic speech)", ROOT / "image.png")
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
    rows = [read_json(path) for experiment in ("demo", "demo_scratch") for path in models_of(RESULTS / experiment)]
    timing = read_json(RESULTS / "demo" / "timing.json")
    return {
        "demo": table(rows, load("configs/demo.yaml", []).evaluation),
        "published": published_table(load("configs/italian.yaml", []).evaluation),
        "timing": f"Measured from a fresh clone on {timing['machine']}: installation {minutes(timing['install_s'])}, then "
        f"the three scripts {minutes(timing['scripts_s'])} "
        f"({', '.join(f'{name} {minutes(s)}' for name, s in timing['steps_s'].items())}).",
    }


def models_of(folder: Path) -> list[Path]:
    """The files of a results folder that hold a row of the table, the base model first."""
    return sorted((path for path in folder.glob("*.json") if path.name != "timing.json"), key=lambda p: p.name.lower()[::-1])


def minutes(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    return f"{int(seconds) // 60} min {round(seconds) % 60:02d} s" if seconds >= 60 else f"{round(seconds)} s"


if __name__ == "__main__":
    run(main)
