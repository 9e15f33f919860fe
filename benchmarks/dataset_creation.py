"""Step 1 timed: against other ways to the same wavs, packed and extracted; its memory; its part without audio.

    python benchmarks/dataset_creation.py

Writes results/reference/dataset_creation.json in about ten minutes. The clips are the sample's synthetic speech, joined
to lengths spread like Common Voice's and encoded like much of it: 48 kHz mono mp3 at 64 kbit/s. Needs sox, ffmpeg and
12 GB for temporary files, deleted at the end: ext4 creates files more slowly for a while after others were deleted.
"""

import argparse
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from itertools import cycle
from multiprocessing import Pool
from multiprocessing.pool import ThreadPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

import numpy as np
import soundfile
import soxr

from clone_to_table import ROOT, cpu_name, write_speeds
from finetuning.errors import UserError, run_script

SAMPLE = ROOT / "datasets" / "sample" / "cv-corpus-sample-it.tar.gz"
COLUMNS = "client_id path sentence sentence_id sentence_domain up_votes down_votes age gender accents variant locale"
COLUMNS = "\t".join([*COLUMNS.split(), "segment"])
CORES = len(os.sched_getaffinity(0))
CLIPS = 4000  # of the release that is timed; memory is also measured with four times as many
FEW = 32  # clips of the release that takes little longer than the start-up: work for two processes
DIFFERENT = 512  # clips; a release links to them as often as it needs
NAME = "common_voice_it_2{:07}"  # of the clip of a row
RATE = 48000  # Hz, of the clips
MEAN_S = 5.4  # of a clip, as in Common Voice
TABLE = {"rows": 240_000, "speakers": 7300}  # Common Voice 24 Italian, about

# pysox, by which NeMo's get_commonvoice_data.py converts a clip in each of its threads, runs these two
SOX = ("sox -D -V2 {clip} {wav} rate -h 16000 channels 1", "sox --i -D {wav}")
FFMPEG = ("ffmpeg -nostdin -y -loglevel error -i {clip} -ar 16000 -ac 1 {wav}",)

run = partial(subprocess.run, check=True, capture_output=True)


def main() -> None:
    """Measure and write, or say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of all ways in turn; the median is what counts")
    parser.add_argument("--folder", type=Path, help="for temporary files, instead of the system's place for them")
    options = parser.parse_args()
    if missing := missing_packages():
        raise UserError(f"sox, its mp3 format and ffmpeg are needed; type: apt-get install {' '.join(missing)}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measured = measure(Path(folder), options.rounds)
    result = write_speeds("dataset_creation", measured)
    print(f"{'':10} clips/s  archive is")
    for way, rate in measured["clips_per_s"].items():
        print(f"{way:10}{rate['median']:8.1f}{measured['archive_to'][way]['median']:8.2f} times as fast")
    print(f"the other figures: {result}")


def missing_packages() -> list[str]:
    """The Debian packages of what converts clips in other ways and is not there."""
    missing = [tool for tool in ("sox", "ffmpeg") if not shutil.which(tool)]
    if "sox" in missing or " mp3 " not in run(["sox", "--help"], text=True).stdout:
        missing.append("libsox-fmt-mp3")
    return missing


def measure(folder: Path, rounds: int) -> dict:
    """What the JSON holds. Each way takes its turn in every round, and is compared with the others of that round."""
    clips = make_clips(folder / "clips")
    few, some, many = (make_release(folder / str(n), clips, n, 3 + n // 30) for n in (FEW, CLIPS, 4 * CLIPS))
    archives = [pack(release) for release in (few, some, many)]
    counts = {"archive": CLIPS - FEW, "folder": CLIPS - FEW, "sox": 256, "ffmpeg": 64, "original": 16, "decoding": 2048}
    ways = {"sox": partial(programs, SOX), "ffmpeg": partial(programs, FFMPEG), "original": original}
    seconds = {name: np.zeros(rounds) for name in ("start_up", "archive", "extract", "folder", *ways, "decoding")}
    for i in range(rounds):
        made = folder / f"round {i}"
        made.mkdir()
        seconds["start_up"][i], _ = step_1(archives[0], made / "few")
        seconds["archive"][i], peak_mb = step_1(archives[1], made / "from archive")
        seconds["extract"][i] = timed(partial(run, ["tar", "-xzf", archives[1], "-C", made]))
        seconds["folder"][i], _ = step_1(made / some.name, made / "from folder")
        for way, convert in {**ways, "decoding": decoding}.items():
            (made / way).mkdir()
            share = [clips[(2 * j + 1) * DIFFERENT // (2 * counts[way])] for j in range(counts[way])]
            seconds[way][i] = convert(share, made / way)
        print(f"round {i}, s:", {name: round(float(took[i]), 2) for name, took in seconds.items()}, file=sys.stderr)
    working = seconds | {way: seconds[way] - seconds["start_up"] for way in ("archive", "folder")}
    rates = {way: count / working[way] for way, count in counts.items()}
    said = {"sox": run(["sox", "--version"], text=True), "ffmpeg": run(["ffmpeg", "-version"], text=True)}
    versions = {name: version(name) for name in ("soundfile", "soxr", "numpy", "pydub")}
    versions |= {tool: re.search(r"\d\S+", of.stdout)[0] for tool, of in said.items()}
    return {
        "machine": f"{CORES} CPU cores ({cpu_name()})",
        "versions": {"python": sys.version.split()[0], "libsndfile": soundfile.__libsndfile_version__, **versions},
        "data": f"synthetic speech, {DIFFERENT} different mp3 clips of {MEAN_S} s on average, {RATE // 1000} kHz mono",
        "rounds": rounds,
        "clips": counts,  # a round
        "clips_per_s": {way: figures(rate) for way, rate in rates.items()},  # archive and folder: without the start-up
        "archive_to": {way: figures(rates["archive"] / rate) for way, rate in rates.items()},
        "start_up_s": figures(seconds["start_up"]),
        "archive_s": figures(seconds["archive"]),
        "extract_then_folder_s": figures(seconds["extract"] + seconds["folder"]),
        "extracted_mb": sum(clip.stat().st_size for clip in (some / "clips").iterdir()) // 10**6,
        "peak_mb": {str(CLIPS): peak_mb, str(4 * CLIPS): step_1(archives[2], folder / "from many")[1]},
        "without_audio": without_audio(folder / "table"),
    }


def figures(values: np.ndarray) -> dict[str, float]:
    """Of the rounds."""
    return {name: round(float(of(values)), 3) for name, of in (("median", np.median), ("min", np.min), ("max", np.max))}


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def step_1(source: Path, output: Path) -> tuple[float, dict[str, int]]:
    """Seconds from the script's start to its end, and the peak memory in MB of its main process and of any other."""
    command = [sys.executable, ROOT / "Fine_tuning" / "dataset_creation.py", f"dataset.source={source}"]
    command += [f"dataset.output={output}", "dataset.split.by=speaker"]
    peak_mb, start = {}, time.perf_counter()
    said = output.with_suffix(".txt")
    with said.open("w") as screen:
        script = subprocess.Popen(command, stdout=screen, stderr=subprocess.STDOUT)
        while script.poll() is None:
            time.sleep(0.02)
            with suppress(OSError, TypeError):  # a process that has just ended
                others = Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text().split()
                for pid in (script.pid, *map(int, others)):  # the last value counts: a child starts with its parent's
                    memory = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
                    peak_mb[pid] = int(memory[1]) // 1024
    took = time.perf_counter() - start
    assert script.returncode == 0, said.read_text()
    return took, {"main": peak_mb.pop(script.pid), "worker": max(peak_mb.values(), default=0)}


def original(clips: list[Path], wavs: Path) -> float:
    """As the scripts this repository began with: pydub, which runs ffmpeg for each clip, in one process."""
    from pydub import AudioSegment

    def convert(clip: Path) -> None:
        sound = AudioSegment.from_mp3(clip).set_channels(1).set_frame_rate(16000)
        sound.export(wavs / f"{clip.stem}.wav", format="wav")

    return timed(lambda: [convert(clip) for clip in clips])


def programs(commands: tuple[str, ...], clips: list[Path], wavs: Path) -> float:
    """Run `commands` for each clip, in a thread a core."""

    def convert(clip: Path) -> None:
        for command in commands:
            run([part.format(clip=clip, wav=wavs / f"{clip.stem}.wav") for part in command.split()])

    with ThreadPool(CORES) as pool:
        return timed(lambda: pool.map(convert, clips, chunksize=1))


def decoding(clips: list[Path], wavs: Path) -> float:
    """The limit of what is built on libsndfile: decode on all cores, do not resample, do not write."""
    with Pool(CORES) as pool:
        pool.map(decode, clips[:CORES], chunksize=1)  # from here on the processes are there
        return timed(lambda: pool.map(decode, clips, chunksize=16))


def decode(clip: Path) -> int:
    """Samples of a clip."""
    return len(soundfile.read(clip, dtype="float32")[0])


def make_clips(folder: Path) -> list[Path]:
    """DIFFERENT clips, the shortest first, the same in every run."""
    folder.mkdir()
    lengths = np.sort(np.random.default_rng(0).lognormal(0, 0.42, DIFFERENT).clip(max=2.5))
    with tarfile.open(SAMPLE) as tar:
        whole = [member for member in tar if member.name.endswith(".mp3") and member.size > 5000]
        coded = [tar.extractfile(member).read() for member in whole]
    speech = cycle(soxr.resample(*soundfile.read(io.BytesIO(clip), dtype="float32"), RATE) for clip in coded)
    clips, sounds = [folder / f"{i:03}.mp3" for i in range(DIFFERENT)], []
    for length in lengths * MEAN_S / lengths.mean():
        sound = next(speech)
        while len(sound) < length * RATE:
            sound = np.concatenate([sound, next(speech)])
        sounds.append(sound[: round(length * RATE)])
    encode = partial(soundfile.write, samplerate=RATE, format="MP3", bitrate_mode="CONSTANT", compression_level=0.88)
    with ThreadPool(CORES) as pool:
        pool.starmap(encode, zip(clips, sounds, strict=True), chunksize=4)
    return clips


def make_release(folder: Path, clips: list[Path], rows: int, speakers: int) -> Path:
    """A release of links to `clips`: every speaker has a row, few have many; 15 % of the rows repeat a sentence."""
    dice = random.Random(0)
    many = dice.choices(range(speakers), [1 / rank**0.9 for rank in range(1, speakers + 1)], k=rows - speakers)
    words = ["".join(dice.choices("aaeeiioounrtlscdmpvgà", k=dice.randint(2, 9))) for _ in range(5000)]
    table, durations, sentences = [COLUMNS], ["clip\tduration[ms]"], []
    (folder / "clips").mkdir(parents=True)
    for i, speaker in enumerate([*range(speakers), *many]):
        new = " ".join(dice.choices(words, k=dice.randint(4, 14))).capitalize() + "."
        sentences.append(dice.choice(sentences) if sentences and dice.random() < 0.15 else new)
        clip = NAME.format(i) + ".mp3"
        table.append(f"{speaker:0128x}\t{clip}\t{sentences[-1]}\t{i:064x}\t\t2\t0\t\t\t\t\tit\t")
        durations.append(f"{clip}\t1000")  # less than any has: none is truncated
        os.link(clips[i * 331 % len(clips)], folder / "clips" / clip)
    (folder / "validated.tsv").write_text("\n".join(table) + "\n")
    (folder / "clip_durations.tsv").write_text("\n".join(durations) + "\n")
    return folder


def pack(release: Path) -> Path:
    """The release as a .tar.gz beside its folder."""
    archive = release.with_suffix(".tar.gz")
    with tarfile.open(archive, "w:gz", compresslevel=6, dereference=True, format=tarfile.GNU_FORMAT) as tar:
        tar.add(release, release.name)
    return archive


def without_audio(folder: Path) -> dict[str, float]:
    """The script on a table of full size, each clip converted already: read, normalise, filter, split and write."""
    files = [[folder / f"{i}.{end}" for i in range(8)] for end in ("mp3", "wav")]  # ext4: 65,000 links to a file
    (folder / "data" / "wavs").mkdir(parents=True)
    for clip, wav in zip(*files, strict=True):
        clip.write_bytes(b"stands for a clip")
        wav.write_bytes(bytes(44 + 2 * round(MEAN_S * 16000)))
    release = make_release(folder / "release", files[0], **TABLE)
    with (folder / "data" / "conversion.jsonl").open("w") as log:  # as conversion.py writes it
        print(json.dumps({"source": {"name": release.name}, "trim_silence_db": None}), file=log)
        for i in range(TABLE["rows"]):
            os.link(files[1][i % 8], folder / "data" / "wavs" / f"{NAME.format(i)}.wav")
            clip = release / "clips" / f"{NAME.format(i)}.mp3"
            entry = {"path": clip.name, "stamp": f"{clip.stat().st_size} {clip.stat().st_mtime_ns}"}
            print(json.dumps(entry | {"duration_s": MEAN_S, "decoded_s": MEAN_S}), file=log)
    seconds, peak_mb = step_1(release, folder / "data")
    assert " 0 to convert" in (folder / "data.txt").read_text(), "conversion.jsonl is not what the script would write"
    return {**TABLE, "s": round(seconds, 1), "peak_mb": peak_mb["main"]}


if __name__ == "__main__":
    run_script(main)
