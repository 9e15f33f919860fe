"""Small releases for the tests: real mp3 bytes of the sample, real tar files, the real columns."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

SAMPLE = Path(__file__).resolve().parents[1] / "datasets" / "sample" / "cv-corpus-sample-it.tar.gz"
COLUMNS = ["client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes", "age", "gender"]
COLUMNS += ["accents", "variant", "locale", "segment"]


@cache
def sample_files() -> dict[str, bytes]:
    """Every file of the Italian sample by its name without folders."""
    with tarfile.open(SAMPLE) as tar:
        return {Path(member.name).name: tar.extractfile(member).read() for member in tar}


@cache
def good_rows(count: int) -> list[dict[str, str]]:
    """The first `count` rows of the sample without a defect, by path."""
    lines = [line.split("\t") for line in sample_files()["validated.tsv"].decode().splitlines()[1:]]
    rows = sorted((dict(zip(COLUMNS, line, strict=True)) for line in lines), key=lambda row: row["path"])
    return rows[:count]


def table(rows: Iterable[dict[str, str]], columns: list[str] = COLUMNS) -> bytes:
    return "".join("\t".join(line) + "\n" for line in (columns, *([r[c] for c in columns] for r in rows))).encode()


def release_files(rows: list[dict[str, str]], clips: dict[str, bytes]) -> dict[str, bytes]:
    """validated.tsv, clip_durations.tsv as the sample states them, and the clips, by name in the language folder."""
    stated = [
        line for line in sample_files()["clip_durations.tsv"].splitlines() if line.split(b"\t")[0].decode() in clips
    ]
    durations = b"\n".join([b"clip\tduration[ms]", *stated]) + b"\n"
    tables = {"validated.tsv": table(rows), "clip_durations.tsv": durations}
    return tables | {f"clips/{name}": data for name, data in clips.items()}


def small_release(count: int = 12) -> dict[str, bytes]:
    """`count` good rows and their clips."""
    rows = good_rows(count)
    return release_files(rows, {row["path"]: sample_files()[row["path"]] for row in rows})


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "clips").mkdir(exist_ok=True)
    return folder


def write_archive(path: Path, files: dict[str, bytes], prefix: str = "cv-corpus-9.0/it/", links: bool = False) -> Path:
    """A .tar.gz with `files`; `links`: their content is where a symbolic link of that name points to."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(prefix + name)
            if links:
                member.type, member.linkname = tarfile.SYMTYPE, data.decode()
            member.size = 0 if links else len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def tone(frequency: float, rate: int, channels: int, seconds: float, format: str = "MP3") -> bytes:
    """A sine of `frequency` Hz, the same in every channel, at half of full scale."""
    wave = 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.repeat(wave[:, None], channels, axis=1), rate, format=format)
    return buffer.getvalue()


def dominant(samples: np.ndarray, rate: int) -> float:
    """Frequency in Hz that holds most energy."""
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples))


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
