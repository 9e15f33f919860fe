"""English human speech that anybody can fetch, as a table of recordings that step 1 reads: for a better English base.

    git clone https://github.com/felixbastian/Speaker_partition_module
    git clone https://github.com/jimbozhang/speechocean762
    python benchmarks/english_speech.py Speaker_partition_module speechocean762

Writes datasets/english_speech.jsonl, for configs/english_speech.yaml. The first holds half of LibriSpeech's dev-clean
(Panayotov et al. 2015, CC BY 4.0): 2.7 hours of 20 readers of books. The second is speechocean762 (Zhang et al. 2021,
Apache 2.0): short sentences read by native speakers of Mandarin; of its 250 speakers, the 128 who are 16 or older.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

from finetuning.errors import UserError, run_script
from finetuning.files import atomic_open

TABLE = Path(__file__).resolve().parents[1] / "datasets" / "english_speech.jsonl"
LIBRISPEECH = "data/LibriSpeech/dev-clean"  # in the first clone: mp3 under the names of wavs
MIN_AGE = 16

Row = dict[str, str]


def main() -> None:
    """Write the table, and say how many recordings it names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("librispeech", type=Path, metavar="LIBRISPEECH", help="the clone of Speaker_partition_module")
    parser.add_argument("speechocean", type=Path, metavar="SPEECHOCEAN", help="the clone of speechocean762")
    parser.add_argument("--table", type=Path, default=TABLE, metavar="FILE", help="to write (%(default)s)")
    arguments = parser.parse_args()
    rows = [*librispeech_rows(arguments.librispeech / LIBRISPEECH), *speechocean_rows(arguments.speechocean)]
    with atomic_open(arguments.table) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    speakers = len({row["speaker"] for row in rows})
    print(
        f"{arguments.table}: {len(rows):,} recordings of {speakers} speakers; now: "
        "python Fine_tuning/dataset_creation.py --config configs/english_speech.yaml"
    )


def librispeech_rows(folder: Path) -> Iterator[Row]:
    """Yield a row for each utterance of a LibriSpeech folder, SPEAKER/CHAPTER/*.trans.txt beside the audio."""
    transcripts = sorted(folder.glob("*/*/*.trans.txt"))
    if not transcripts:
        raise UserError(f"there is no */*/*.trans.txt in {folder}; name the folder of the clone")
    for transcript in transcripts:
        for name, text in read_pairs(transcript):
            audio = transcript.with_name(f"{name}.wav").resolve()
            yield {"path": str(audio), "text": text, "speaker": f"librispeech-{transcript.parts[-3]}"}


def speechocean_rows(folder: Path) -> Iterator[Row]:
    """Yield a row for each utterance of the adults in speechocean762, whose tables are Kaldi's."""
    for part in ("train", "test"):
        tables = {name: dict(read_pairs(folder / part / name)) for name in ("text", "wav.scp", "utt2spk", "spk2age")}
        for name, text in tables["text"].items():
            speaker = tables["utt2spk"][name]
            if int(tables["spk2age"][speaker]) >= MIN_AGE:
                audio = (folder / tables["wav.scp"][name]).resolve()
                yield {"path": str(audio), "text": text, "speaker": f"speechocean-{speaker}"}


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Return the first word and the rest of each line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); name the folder of the clone") from error
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines if line.strip()]


if __name__ == "__main__":
    run_script(main)
