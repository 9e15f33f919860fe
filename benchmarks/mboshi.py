"""The Mboshi corpus, human speech that anybody can fetch, as a release that step 1 reads.

    git clone https://github.com/besacier/mboshi-french-parallel-corpus
    python benchmarks/mboshi.py mboshi-french-parallel-corpus

Writes datasets/mboshi_release/: the tables of a Common Voice release beside links to the corpus's wavs, for
configs/mboshi.yaml. 5,130 utterances of three speakers, 4.5 hours, in a Bantu language without other resources
(Godard et al. 2018, arXiv:1710.03501). The corpus's `dev` is the test set; every tenth utterance of its `train`, in
the order of their names, becomes validation.
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

from finetuning.errors import UserError, run_script
from finetuning.files import atomic_open, ensure_writable_dir

RELEASE = Path(__file__).resolve().parents[1] / "datasets" / "mboshi_release"
FOLDER = "full_corpus_newsplit"  # of the corpus: checked by its authors, split by utterance
VALIDATION = 10  # one of so many training utterances
COLUMNS = ("client_id", "path", "sentence")


def main() -> None:
    """Write the tables, and say how many utterances they name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, metavar="FOLDER", help="the clone of the corpus")
    parser.add_argument("--release", type=Path, default=RELEASE, metavar="FOLDER", help="to write (%(default)s)")
    arguments = parser.parse_args()
    train, test = (read_split(arguments.corpus / FOLDER / name) for name in ("train", "dev"))
    clips = ensure_writable_dir(arguments.release / "clips")
    tables = {
        "train": [row for number, row in enumerate(train) if number % VALIDATION],
        "dev": train[::VALIDATION],
        "test": test,
        "validated": train + test,
    }
    for _, wav, _ in tables["validated"]:
        link = clips / wav.name
        link.unlink(missing_ok=True)
        link.symlink_to(wav.resolve())
    for name, rows in tables.items():
        with atomic_open(arguments.release / f"{name}.tsv") as file:
            table = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
            table.writerows([COLUMNS, *((speaker, wav.name, text) for speaker, wav, text in rows)])
    sizes = ", ".join(f"{len(tables[name]):,} {name}" for name in ("train", "dev", "test"))
    print(f"{arguments.release}: {sizes}; now: python Fine_tuning/dataset_creation.py --config configs/mboshi.yaml")


def read_split(folder: Path) -> list[tuple[str, Path, str]]:
    """Return speaker, wav and text of each utterance of a folder, in the order of their names."""
    wavs = sorted(folder.glob("*.wav"))
    if not wavs:
        raise UserError(f"there is no wav in {folder}; name the folder of the cloned corpus")
    rows = []
    for wav in wavs:
        try:
            text = " ".join(wav.with_suffix(".mb").read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the text of {wav} cannot be read ({error}); fetch the corpus again") from error
        rows.append((wav.name.partition("_")[0], wav, text))
    return rows


if __name__ == "__main__":
    run_script(main)
