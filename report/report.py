"""README's tables, image.png and the paper from what runs have written, so that no number is typed by hand.

    python report/report.py

Reads the committed files in results/reference/, which the scripts in benchmarks/ write, and paper/'s own; writes
README.md, image.png, paper/numbers.json, paper/figures/ and `Finetuning ASR.pdf`. The same input gives the same bytes.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

import yaml

import paper_figures
import paper_pdf
import readme_tables
from finetuning.config.loading import ArgumentParser, load_config
from finetuning.config.schema import ROOT
from finetuning.errors import UserError, run_script
from finetuning.evaluation.results import COMPARISONS
from finetuning.evaluation.results_table import format_decoder_table, format_published, format_table
from finetuning.files import atomic_path, ensure_writable_dir, read_json
from finetuning.metrics import loss_curve
from finetuning.metrics.history import read_metrics
from paper_numbers import gpu_hours, numbers
from wording import minutes

if TYPE_CHECKING:
    import pandas as pd

README = ROOT / "README.md"
REFERENCE = ROOT / "results" / "reference"
PAPER = ROOT / "paper"
BASE = ROOT / "models" / "demo" / "quartznet_small_en.run.json"
MEASURED = {  # in results/reference/, and what writes it
    "timing": "clone_to_table.py",
    "dataset": "clone_to_table.py",
    "language_model": "clone_to_table.py",
    "recipes": "recipes.py",
    "dataset_creation": "dataset_creation.py",
    "training": "training.py",
    "evaluation": "evaluation.py",
    "domain": "domain.py",
    "decoding": "decoding.py",
}


def main() -> None:
    """Write everything that follows from the results, each file whole or not at all."""
    ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        files = made()
    except UserError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise UserError(
            f"{REFERENCE} or {PAPER / 'published.json'} lacks what the README and the paper state "
            f"({type(error).__name__}: {error}); restore it from git, or measure it again with benchmarks/"
        ) from error
    ensure_writable_dir(PAPER / "figures")
    for path, content in files.items():
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    for path in set((PAPER / "figures").glob("*.svg")) - set(files):  # of something that is measured no more
        path.unlink()
    print(f"Wrote {', '.join(str(path.relative_to(ROOT)) for path in files)}")


def made() -> dict[Path, bytes]:
    """Each file that follows from the results, and what it must hold."""
    metrics = read_metrics(REFERENCE / "metrics.csv")
    found = gathered()
    pictures = drawn(found["recipes"], metrics)
    said = {**told(found), "figures": list(pictures)}
    return {
        README: filled_in(README.read_text(encoding="utf-8")).encode(),
        ROOT / "image.png": loss_curve.render_loss_curve(metrics, "Demo: loss per epoch (synthetic speech)"),
        PAPER / "numbers.json": paper_pdf.as_json(said),
        **{PAPER / "figures" / f"{name}.svg": picture for name, picture in pictures.items()},
        ROOT / "Finetuning ASR.pdf": paper_pdf.typeset(said, pictures, PAPER),
    }


def gathered() -> dict[str, Any]:
    """Content of the JSON files by their stem; comparisons may be missing."""
    return {
        **{name: measured(f"{name}.json", benchmark) for name, benchmark in MEASURED.items()},
        "comparisons": read_json(REFERENCE / f"{COMPARISONS}.json") or [],
        "published": read_json(PAPER / "published.json"),
        "base": read_json(BASE),
    }


def told(found: dict[str, Any]) -> dict[str, Any]:
    """The paper's numbers."""
    small = yaml.safe_load((ROOT / "configs" / "models" / "quartznet_small.yaml").read_text(encoding="utf-8"))
    demo, italian = (load_config(f"configs/{name}.yaml", []) for name in ("demo", "italian"))
    return numbers(found, result_rows(found["timing"]), demo, italian, small)


def drawn(recipes: dict[str, Any], metrics: "pd.DataFrame") -> dict[str, bytes]:
    """The paper's pictures by name; one that nothing was measured for is left out."""
    pictures = {
        "losses": paper_figures.losses(metrics),
        "epochs": paper_figures.epochs(recipes),
        "hours": paper_figures.hours(recipes),
        "seeds": paper_figures.seeds(recipes),
    }
    return {name: picture for name, picture in pictures.items() if picture is not None}


def result_rows(timing: dict[str, Any]) -> list[dict[str, Any]]:
    """Results of the models of the demo, in the order of the table."""
    return [measured(f"{name}.json", MEASURED["timing"]) for name in timing["models"]]


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
    found = gathered()
    timing, rows = found["timing"], result_rows(found["timing"])
    italian = load_config("configs/italian.yaml", [])
    gpu = gpu_hours(found["published"], italian)
    steps = ", ".join(f"{name} {minutes(seconds)}" for name, seconds in timing["steps_s"].items())
    return {
        "reaches": readme_tables.reaches({row["model"]: row for row in rows}, found["recipes"]),
        "sizes": readme_tables.sizes(measured("dataset.json", MEASURED["dataset"])),
        "demo": readme_tables.listed(
            format_table(rows, load_config("configs/demo.yaml", []).evaluation, found["comparisons"])
        ),
        "published": f"On {italian.evaluation.published_on}, drawn and normalised by its authors:\n\n"
        f"{format_published(italian.evaluation)}\n\nFine-tuning should take a GPU between {gpu['least']} and "
        f"{gpu['most']} hours: an estimate, not measured, for one that sustains {gpu['slow']} to {gpu['fast']} "
        "operations a second, far fewer than its data sheet promises.",
        "timing": f"Measured from a fresh clone on {timing['machine']}: installation {minutes(timing['install_s'])}, "
        f"then the scripts {minutes(timing['scripts_s'])} ({steps}).",
        "recipes": readme_tables.recipes(found["recipes"]),
        "dataset_creation": readme_tables.speed(found["dataset_creation"]),
        "training": readme_tables.training(found["training"]),
        "evaluation": readme_tables.evaluation(found["evaluation"]),
        "decoders": format_decoder_table([row for row in rows if "scratch" not in row["model"]]),
        "domain": readme_tables.domain(found["domain"]),
        "decoding": readme_tables.decoding(found["decoding"]),
    }


def measured(name: str, benchmark: str) -> dict:
    """The content of a file in results/reference/; UserError says which benchmark writes it."""
    found = read_json(REFERENCE / name)
    if found is None:
        raise UserError(f"there is no {REFERENCE / name}; type: python benchmarks/{benchmark}")
    return found


if __name__ == "__main__":
    run_script(main)
