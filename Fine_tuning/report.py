"""README's results and image.png from what runs have written, so that no number is typed by hand.

    python Fine_tuning/report.py

Reads the committed files in results/reference/, which the scripts in benchmarks/ write.
"""

import argparse
import re

from finetuning.config import ROOT
from finetuning.config_file import load
from finetuning.errors import UserError, run
from finetuning.figures import loss_curve
from finetuning.files import read_json, written_whole
from finetuning.metrics import read_metrics
from finetuning.results import COMPARISONS, decoders, published_table, table

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
    timing = measured("timing.json", "clone_to_table.py")
    rows = [read_json(REFERENCE / f"{name}.json") for name in timing["models"]]
    compared = read_json(REFERENCE / f"{COMPARISONS}.json") or []
    italian = load("configs/italian.yaml", []).evaluation
    steps = ", ".join(f"{name} {minutes(seconds)}" for name, seconds in timing["steps_s"].items())
    return {
        "demo": table(rows, load("configs/demo.yaml", []).evaluation, compared),
        "published": f"On {italian.published_on}, drawn and normalised by its authors:\n\n{published_table(italian)}",
        "timing": f"Measured from a fresh clone on {timing['machine']}: installation {minutes(timing['install_s'])}, "
        f"then the three scripts {minutes(timing['scripts_s'])} ({steps}).",
        "recipes": recipes(measured("recipes.json", "recipes.py")),
        "dataset_creation": speed(measured("dataset_creation.json", "dataset_creation.py")),
        "training": training(measured("training.json", "training.py")),
        "evaluation": evaluation(measured("evaluation.json", "evaluation.py")),
        "decoders": decoders([row for row in rows if "scratch" not in row["model"]]),
        "domain": domain(measured("domain.json", "domain.py")),
        "decoding": decoding(measured("decoding.json", "decoding.py")),
    }


def measured(name: str, benchmark: str) -> dict:
    """The content of a file in results/reference/; UserError says which benchmark writes it."""
    found = read_json(REFERENCE / name)
    if found is None:
        raise UserError(f"there is no {REFERENCE / name}; type: python benchmarks/{benchmark}")
    return found


def speed(of: dict) -> str:
    """Step 1 beside other ways to the same wavs, and what it takes of a machine."""
    ways = {
        "archive": "`dataset_creation.py`, from the archive",
        "folder": "`dataset_creation.py`, from the extracted folder",
        "sox": "sox, as NeMo's script for Common Voice runs it",
        "ffmpeg": "ffmpeg, a process a clip",
        "original": "pydub in one process, as this project began",
        "decoding": "only decoding, with libsndfile",
    }
    lines = ["| mp3 to 16 kHz wav | Clips/s | From the archive is |", "|---|---:|---:|"]
    for way, name in ways.items():
        ratio = "" if way == "archive" else f"{short(of['archive_to'][way]['median'])} × as fast"
        lines.append(f"| {name} | {short(of['clips_per_s'][way]['median'])} | {ratio} |")
    packed, extracted = of["archive_s"]["median"], of["extract_then_folder_s"]["median"]
    (few, at_first), (many, at_last) = of["peak_mb"].items()
    table = of["without_audio"]
    about = [
        f"Medians of {of['rounds']} rounds on {of['machine']}; {of['data']}.",
        f"The start-up, {of['start_up_s']['median']:.1f} s, is left out.",
        f"Reading the archive where it lies took {short(packed)} s; extracting it first, {short(extracted)} s and "
        f"{of['extracted_mb']:,} MB of the disk.",
        f"Peak memory with {int(few):,} and {int(many):,} clips: {at_first['main']} and {at_last['main']} MB, "
        f"and {at_first['worker']} and {at_last['worker']} MB a worker.",
        f"Without the audio, {table['rows']:,} rows took {table['s']:.0f} s and {table['peak_mb']} MB.",
    ]
    return "\n".join([*lines, "", *about])


def training(of: dict) -> str:
    """A training step beside stock NeMo's, what is padded, and that the gradients are the same."""
    ways = {
        "stock": "stock NeMo, random batches",
        "convolutions": "channels last, random batches",
        "and batches": "channels last, batches by duration",
    }
    lines = ["| A training step on the CPU | Seconds of audio/s | Stock NeMo |", "|---|---:|---:|"]
    for way, name in ways.items():
        ratio = "" if way == "stock" else f"{of['stock_to'][way]['median']:.2f} ×"
        lines.append(f"| {name} | {short(of['audio_s_per_s'][way]['median'])} | {ratio} |")
    about = [
        f"Medians of {of['rounds']} rounds on {of['machine']}; {of['model']}, batches of {of['batch']} or of as many "
        f"seconds; {of['data']}.",
        f"Padding, batches of 32: {of['padding']['random']:.0%} of what is computed with random batches, "
        f"{of['padding']['by_duration']:.1%} with batches by duration.",
        f"In double precision the loss differs from stock NeMo's by {of['difference']['loss']:.0e} of it and the "
        f"gradients by {of['difference']['gradients']:.0e} of their norm.",
    ]
    return "\n".join([*lines, "", *about])


def evaluation(of: dict) -> str:
    """Step 3 beside NeMo's ways to the same transcripts."""
    ways = {
        "this": "`evaluate.py`",
        "transcribe": f"NeMo's `transcribe()`, batches of {of['batch']}",
        "transcribe 4": "NeMo's `transcribe()`, batches of 4, its default",
        "original": "`Trainer.test()` twice, for WER and for CER, as this project began",
    }
    lines = ["| Test set on the CPU | Seconds of audio/s | `evaluate.py` is |", "|---|---:|---:|"]
    for way, name in ways.items():
        ratio = "" if way == "this" else f"{short(of['this_to'][way]['median'])} × as fast"
        lines.append(f"| {name} | {short(of['audio_s_per_s'][way]['median'])} | {ratio} |")
    found = of["difference"]
    about = [
        f"Medians of {of['rounds']} rounds on {of['machine']}; {of['model']}; {of['data']}.",
        f"Loading is left out; so is the export, {of['export_s']:.0f} s once a model.",
        f"The log-probabilities differ from NeMo's by at most {found['log_probabilities']:.0e}; {found['identical']} "
        f"of {found['transcripts']} transcripts, {found['distinct']} of them distinct, are identical.",
    ]
    return "\n".join([*lines, "", *about])


def decoding(of: dict) -> str:
    """The beam search beside other ways to decode the same log-probabilities."""
    ways = {
        "greedy": "best path",
        "this": "words, the lexicon open: `evaluate.py`",
        "lexicon alone": "words of the lexicon only",
        "letters": "letters, flashlight without a lexicon",
        "NeMo flashlight": "words, NeMo's `flashlight`",
        "NeMo beam_batch": "letters, NeMo's `beam_batch`",
    }
    unknown = of["unknown_words"]
    lines = [
        f"| Decoding | Test WER | Of {unknown['all']} words not in the lexicon | Seconds of audio/s |",
        "|---|---:|---:|---:|",
    ]
    for way, name in ways.items():
        speed = f"{short(of['audio_s_per_s'][way]['median'])}" if way in of["audio_s_per_s"] else ""
        lines.append(f"| {name} | {of['wer'][way]:.4f} | {unknown[way]} | {speed} |")
    about = f"Medians of {of['rounds']} rounds on {of['machine']}, one thread but for `beam_batch`; {of['data']}."
    return "\n".join([*lines, "", about])


def domain(of: dict) -> str:
    """What a text of a domain brings on its sentences and on the others."""
    general, mixture = of["runs"]["general"], of["runs"]["mixture"]
    weights = " + ".join(f"{weight:.0%} {name}" for name, weight in of["weights"].items())
    lines = ["| Language model | Timetable sentences | Others |", "|---|---:|---:|"]
    for name, found in (("none", general["greedy"]), ("general", general["lm"]), (weights, mixture["lm"])):
        lines.append(f"| {name} | {found['with its words']['wer']:.4f} | {found['without']['wer']:.4f} |")
    on, off = (general["greedy"][part] for part in ("with its words", "without"))
    texts = " and ".join(f"{source['sentences']} {source['name']}" for source in mixture["sources"])
    about = (
        f"Test WER; {on['utterances']} and {off['utterances']} utterances, synthetic speech. Texts: {texts} sentences, "
        f"none of validation or test. Of the validation words the general text lacks {general['unknown_rate']:.1%}."
    )
    return "\n".join([*lines, "", about])


def recipes(of: dict) -> str:
    """What changes of the recipe bring, with the spread over seeds."""
    names = {
        "warm": "the demo: warm decoder, 5 frozen epochs",
        "random": "random decoder, as published",
        "from scratch": "without the English base",
        "0 frozen epochs": "nothing frozen",
        "10 frozen epochs": "10 frozen epochs",
        "10 frozen epochs, batch normalisation too": "10 frozen epochs, batch normalisation frozen too",
        "always frozen": "encoder frozen to the end",
        "batches by duration": "batches by duration",
        "split by clip": "test speakers heard in training (split by clip)",
        "half of the hours": "half of the training utterances, as many steps",
        "a quarter of the hours": "a quarter of the training utterances, as many steps",
    }
    reached = f"Epochs to validation WER {of['validation_wer']:g}"
    lines = [f"| Recipe | Test WER | Test CER | {reached} |", "|---|---:|---:|---:|"]
    for variant, found in of["variants"].items():
        spread = [f"{found['mean'][key]:.3f} ± {found['standard_deviation'][key]:.3f}" for key in ("wer", "cer")]
        epochs = ", ".join(str(run["reached"] or "never") for run in found["runs"])
        lines.append(f"| {names[variant]} | {' | '.join(spread)} | {epochs} |")
    about = (
        f"Mean and standard deviation over {len(of['seeds'])} seeds of the training; {of['data']}; {of['machine']}; "
        f"{of['variants']['warm']['runs'][0]['epochs']} epochs each."
    )
    return "\n".join([*lines, "", about])


def short(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def minutes(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    return f"{int(seconds) // 60} min {round(seconds) % 60:02d} s" if seconds >= 60 else f"{round(seconds)} s"


if __name__ == "__main__":
    run(main)
