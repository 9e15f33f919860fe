"""Write the tables of README and docs/, image.png and the paper from what runs have left: no number is typed by hand.

    python report/report.py

Reads the committed files in results/reference/, which the scripts in benchmarks/ write, and paper/'s own; writes
README.md, three files of docs/, image.png, paper/numbers.json, paper/figures/ and `Finetuning ASR.pdf`.
The same input gives the same bytes.
"""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

import yaml

import boosting_table
import human_speech_tables
import interval_tables
import paper_figures
import paper_pdf
import readme_tables
from finetuning.config.loading import ArgumentParser, load_config
from finetuning.config.schema import ROOT
from finetuning.errors import UserError, run_script
from finetuning.evaluation.results import COMPARISONS
from finetuning.evaluation.results_table import format_decoder_table, format_table
from finetuning.files import atomic_path, ensure_writable_dir, read_json
from finetuning.metrics import loss_curve
from finetuning.metrics.history import read_metrics
from paper_numbers import numbers
from wording import minutes

if TYPE_CHECKING:
    import pandas as pd

PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "metrics", "language_model")),
)  # with the tables
REFERENCE = ROOT / "results" / "reference"
PAPER = ROOT / "paper"
BASE = ROOT / "models" / "demo" / "quartznet_small_en.run.json"
MEASURED = {  # in results/reference/, and what writes it
    "timing": "clone_to_table.py",
    "dataset": "clone_to_table.py",
    "language_model": "clone_to_table.py",
    "recipes": "recipes.py",
    "recipes_mboshi": "recipes.py --corpus mboshi",
    "architectures": "architectures.py",
    "dataset_creation": "dataset_creation.py",
    "training": "training.py",
    "memory": "memory.py",
    "evaluation": "evaluation.py",
    "domain": "domain.py",
    "conditions": "conditions.py",
    "boosting": "boosting.py",
    "wrong_texts": "wrong_texts.py",
    "decoding": "decoding.py",
    "interval_coverage": "interval_coverage.py",
}


def main() -> None:
    """Write everything that follows from the results, each file whole or not at all."""
    ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        files = build_files()
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


def build_files() -> dict[Path, bytes]:
    """Return the content of each file that follows from the results."""
    metrics = read_metrics(REFERENCE / "metrics.csv")
    inputs = gather()
    pictures = draw_figures(inputs["recipes"], metrics)
    values = {**paper_values(inputs), "figures": list(pictures)}
    return {
        **{page: text.encode() for page, text in fill_pages({p: p.read_text(encoding="utf-8") for p in PAGES}).items()},
        ROOT / "image.png": loss_curve.render_loss_curve(metrics, "Demo: loss per epoch (synthetic speech)"),
        PAPER / "numbers.json": paper_pdf.as_json(values),
        **{PAPER / "figures" / f"{name}.svg": picture for name, picture in pictures.items()},
        ROOT / "Finetuning ASR.pdf": paper_pdf.typeset(values, pictures, PAPER),
    }


def gather() -> dict[str, Any]:
    """Return the content of the JSON files by their stem; comparisons may be missing."""
    return {
        **{name: read_measurement(f"{name}.json", benchmark) for name, benchmark in MEASURED.items()},
        "comparisons": read_json(REFERENCE / f"{COMPARISONS}.json") or [],
        "published": read_json(PAPER / "published.json"),
        "base": read_json(BASE),
    }


def paper_values(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the paper's numbers."""
    small = yaml.safe_load((ROOT / "configs" / "models" / "quartznet_small.yaml").read_text(encoding="utf-8"))
    demo, italian = (load_config(f"configs/{name}.yaml", []) for name in ("demo", "italian"))
    return numbers(inputs, result_rows(inputs["timing"]), demo, italian, small)


def on_each_processor(table: Callable[[dict[str, Any]], str], name: str) -> str:
    """Return the table of a benchmark and those of the other processors that it ran on."""
    others = sorted(path.name for path in REFERENCE.glob(f"{name}.*.json"))
    return "\n\n".join(table(read_measurement(file, MEASURED[name])) for file in (f"{name}.json", *others))


def draw_figures(recipes: dict[str, Any], metrics: "pd.DataFrame") -> dict[str, bytes]:
    """Return the paper's figures by name, without those that nothing was measured for."""
    pictures = {
        "losses": paper_figures.losses(metrics),
        "epochs": paper_figures.epochs(recipes),
        "hours": paper_figures.hours(recipes),
        "seeds": paper_figures.seeds(recipes),
    }
    return {name: picture for name, picture in pictures.items() if picture is not None}


def result_rows(timing: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results of the demo's models, in the order of the table."""
    return [read_measurement(f"{name}.json", MEASURED["timing"]) for name in timing["models"]]


def fill_pages(pages: dict[Path, str]) -> dict[Path, str]:
    """Return `pages` with every part between `<!-- name -->` and `<!-- /name -->` written anew."""
    content = build_parts()
    left = set(content)

    def fill(match: re.Match[str]) -> str:
        left.discard(match[2])
        return f"{match[1]}{content[match[2]]}\n{match[3]}"

    marked = re.compile(rf"(<!-- ({'|'.join(content)}) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
    filled = {page: marked.sub(fill, text) for page, text in pages.items()}
    if left:
        names = ", ".join(f"<!-- {name} --> … <!-- /{name} -->" for name in sorted(left))
        raise UserError(
            f"none of {', '.join(page.name for page in pages)} has a part marked {names}; put the marks back"
        )
    return filled


def build_parts() -> dict[str, str]:
    """Return the Markdown of each part by its name."""
    inputs = gather()
    timing, rows = inputs["timing"], result_rows(inputs["timing"])
    demo, italian = (load_config(f"configs/{name}.yaml", []) for name in ("demo", "italian"))
    shipped = [row for row in rows if "scratch" not in row["model"]]
    steps = ", ".join(f"{name} {minutes(seconds)}" for name, seconds in timing["steps_s"].items())
    return {
        "timing": f"From a fresh clone on {timing['machine']}, installation took {minutes(timing['install_s'])} (with "
        f"torch's CPU build on the disk) and the demo {minutes(timing['scripts_s'])}: {steps}.",
        "demo": readme_tables.as_list(format_table(shipped, replace(demo.evaluation, note=""))),
        "seeds": readme_tables.seeds(inputs["recipes"]),
        "gpu": readme_tables.gpu(inputs["published"]["torch"], pin("torch")),
        "needs": readme_tables.needs(
            inputs["published"], inputs["dataset_creation"], inputs["memory"], inputs["training"]["padding"], italian
        ),
        "published": readme_tables.published(inputs["published"], italian.evaluation),
        "sizes": readme_tables.sizes(read_measurement("dataset.json", MEASURED["dataset"])),
        "results": readme_tables.as_list(format_table(rows, demo.evaluation, inputs["comparisons"])),
        "recipes": readme_tables.recipes(inputs["recipes"]),
        "human": human_speech_tables.recipes(inputs["recipes_mboshi"], ("long", "warm", "from scratch")),
        "human_recipes": human_speech_tables.recipes(inputs["recipes_mboshi"]),
        "human_choices": human_speech_tables.choices(inputs["recipes_mboshi"]),
        "architectures": readme_tables.architectures(inputs["architectures"], inputs["recipes"]["variants"]["demo"]),
        "decoders": format_decoder_table(shipped),
        "domain": readme_tables.domain(inputs["domain"]),
        "boosting": boosting_table.boosting(inputs["boosting"]),
        "decoding": readme_tables.decoding(inputs["decoding"]),
        "conditions": readme_tables.conditions(inputs["conditions"]),
        "wrong_texts": readme_tables.wrong_texts(inputs["wrong_texts"]),
        "dataset_creation": on_each_processor(readme_tables.conversion, "dataset_creation"),
        "training": on_each_processor(readme_tables.training, "training"),
        "memory": readme_tables.memory(inputs["memory"]),
        "evaluation": on_each_processor(readme_tables.evaluation, "evaluation"),
        "coverage": interval_tables.coverage(inputs["interval_coverage"]),
        "told_apart": interval_tables.equal_models(inputs["interval_coverage"]),
        "anchors": readme_tables.anchors(inputs["published"]["italian"]),
    }


def pin(package: str) -> str:
    """Return the version of `package` in requirements.txt."""
    return re.search(rf"^{package}==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]


def read_measurement(name: str, benchmark: str) -> dict:
    """Return the content of a file in results/reference/; UserError says which benchmark writes it."""
    content = read_json(REFERENCE / name)
    if content is None:
        raise UserError(f"there is no {REFERENCE / name}; type: python benchmarks/{benchmark}")
    return content


if __name__ == "__main__":
    run_script(main)
