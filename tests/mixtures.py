"""A dataset of three sources for the tests, from clips of the sample."""

import json
from pathlib import Path

import soundfile

from finetuning.audio import decoding
from releases import good_rows, release_files, sample_files, write_archive


def sources(folder: Path) -> list[dict[str, object]]:
    """Make a release of 40 clips, a table of calls with a tag in its texts and a table of a radio's recordings.

    Of the calls two are clips of the release, by another name. The radio's first sentence and first speaker are known
    from the release.
    """
    rows, files = good_rows(60), sample_files()
    write_archive(
        folder / "cv.tar.gz", release_files(rows[:40], {row["path"]: files[row["path"]] for row in rows[:40]})
    )
    tables: dict[str, list[dict[str, object]]] = {"calls": [], "radio": []}
    for name, chosen in (("calls", [*rows[38:40], *rows[40:50]]), ("radio", rows[50:60])):
        for number, row in enumerate(chosen):
            samples = decoding.to_mono_16k(*decoding.decode_audio(files[row["path"]]))
            path = f"{number}.mp3" if name == "calls" and number < 2 else f"{number}.flac"
            (folder / name).mkdir(exist_ok=True)
            if path.endswith("mp3"):
                (folder / name / path).write_bytes(files[row["path"]])
            else:
                soundfile.write(folder / name / path, samples, 16000)
            text = f"<eh> {row['sentence']}" if name == "calls" else row["sentence"]
            tables[name].append({"path": path, "text": text, "speaker": f"{name}-{number % 5}"})
    tables["radio"][0] |= {"text": rows[0]["sentence"]}
    tables["radio"][1] |= {"speaker": rows[1]["client_id"]}
    for name, table in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    tag = {"name": "hesitations", "pattern": "<eh>", "replace": " ", "cases": {"<eh> sì": "sì"}}
    return [
        {"name": "cv", "source": str(folder / "cv.tar.gz")},
        {"name": "calls", "source": str(folder / "calls.jsonl"), "recordings": str(folder / "calls"), "role": "train"}
        | {"rules": [tag], "weight": 2.5},
        {"name": "radio", "source": str(folder / "radio.jsonl"), "recordings": str(folder / "radio"), "role": "test"},
    ]
