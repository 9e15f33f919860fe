"""Convert many clips to wavs in a pool of processes, with a log of the results from which a rerun resumes."""

import json
import os
import signal
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from finetuning.audio import decoding
from finetuning.audio.decoding import ConvertedPart, Part
from finetuning.audio.measurement import Measurement
from finetuning.audio.stream import AudioError
from finetuning.data.listing import Clip, Listing
from finetuning.data.manifest import made_splits, manifest_path
from finetuning.errors import UserError
from finetuning.files import atomic_open, ensure_writable_dir, remove_stale_temp_files
from finetuning.processes import available_cpus, follow_parent, sigint_blocked

BATCH = 16  # clips sent to a worker at a time: sending one costs the main process as much as sending all of them
IN_FLIGHT = 2  # batches per worker, queued or in progress: enough to keep it busy, few enough to keep memory constant
DISK_BYTES_A_CLIP = 4096 + 1024  # the last, partly filled block of a wav, and a kilobyte of lines about it
LARGE = 1e300  # larger than any number in the log
CRASHES = "ends the process that decodes it"  # or a lack of memory did: the next run tries again

Task = tuple[bytes | Path, list[tuple[str, str]], list[Part], float | None]  # recording, paths and stamps, parts, dB


@dataclass(frozen=True, slots=True)
class ConvertedClip:
    """The result for a clip: a wav of `duration_s`, or a reason why there is none."""

    path: str
    stamp: str  # of the source clip
    duration_s: float = 0.0  # of the wav
    decoded_s: float = 0.0  # before silence was trimmed
    reason: str = ""
    detail: str = ""
    passing: bool = False  # a fault of this machine, not of the clip: the next run tries again
    wav_mtime_ns: int = 0  # of the wav; 0: converted before this was recorded
    wav_crc32: int = 0
    sound: Measurement | None = None  # None: converted before it was measured

    @classmethod
    def read(cls, fields: Any) -> Self | None:
        """Return the entry that a line of the log holds; None when it is not one."""
        try:
            sound = fields.get("sound")
            entry = cls(**fields | {"sound": Measurement.read(sound) if sound is not None else None})
            "".join((entry.path, entry.stamp, entry.reason, entry.detail)).encode()  # a lone surrogate is not text
            numbers = (entry.duration_s, entry.decoded_s, entry.wav_mtime_ns, entry.wav_crc32)
            return entry if all(0 <= number < LARGE for number in numbers) else None
        except (AttributeError, TypeError, UnicodeEncodeError):
            return None


class ConversionLog:
    """`conversion.jsonl`: a first line with what all wavs depend on, then one line per clip as results arrive."""

    def __init__(self, output: Path, key: dict[str, Any], dataset: Path | None = None) -> None:
        """Read the log in `output`; entries made under another `key` do not count.

        `dataset`: the folder of the manifests, where that is not `output` itself.
        """
        self.path, self.key, self.wavs = output / "conversion.jsonl", key, output / "wavs"
        self.dataset = dataset or output
        first, *lines = _lines(self.path)
        self.old_key = first if isinstance(first, dict) else None
        entries = [ConvertedClip.read(line) for line in lines] if self.old_key == key else []
        self.done = {entry.path: entry for entry in entries if entry}
        if broken := entries.count(None):
            print(f"{self.path}: {broken:,} lines cannot be read; their clips are converted again")

    def missing(self, clips: Iterable[Clip], stamps: dict[str, str]) -> list[Clip]:
        """Return the clips without a result, those that have changed since, and those whose wav is gone or altered."""
        stats: dict[str, os.stat_result] = {}
        if self.wavs.is_dir():
            with os.scandir(self.wavs) as entries:
                stats = {entry.name: entry.stat() for entry in entries if entry.is_file()}
        missing, changed, touched = [], [], []
        for clip in clips:
            entry, wav = self.done.get(clip.path), stats.get(clip.wav)
            if entry is None or entry.passing or entry.stamp != stamps[clip.path]:
                missing.append(clip)
            elif entry.reason:
                continue
            elif wav is None:
                missing.append(clip)
            elif not self._is_unaltered(entry, clip, wav):
                changed.append(clip)
            elif entry.wav_crc32 and entry.wav_mtime_ns != wav.st_mtime_ns:
                touched.append(replace(entry, wav_mtime_ns=wav.st_mtime_ns))
        if changed:
            example = changed[0].wav
            print(f"{len(changed):,} wavs have changed since they were made, such as {example}; they are made again")
        if touched:  # the folder was copied: each wav is read once because of that, not by every run
            self.done |= {entry.path: entry for entry in touched}
            self._write()
        return missing + changed

    def _is_unaltered(self, entry: ConvertedClip, clip: Clip, wav: os.stat_result) -> bool:
        """Return whether a wav still has its size and, where its time stamp differs, its content."""
        if wav.st_size != decoding.wav_size(entry.duration_s):
            return False
        if wav.st_mtime_ns == entry.wav_mtime_ns or not entry.wav_crc32:
            return True
        return zlib.crc32((self.wavs / clip.wav).read_bytes()) == entry.wav_crc32

    def start(self) -> None:
        """Rewrite the log without a line cut off by a crash, and remove files that are out of date."""
        remove_stale_temp_files(self.wavs)  # half-written wavs of a run that was killed
        if self.old_key != self.key:  # manifests must not outlive the wavs that they list
            for split in made_splits(self.dataset):
                manifest_path(self.dataset, split).unlink(missing_ok=True)
        self._write()

    def _write(self) -> None:
        with atomic_open(self.path) as lines:
            lines.write(json.dumps(self.key, ensure_ascii=False) + "\n")
            lines.writelines(_line(entry) for entry in self.done.values())

    def record(self, results: Iterable[ConvertedClip]) -> None:
        """Append results one by one; raise OSError when the disk is full."""
        with self.path.open("a", encoding="utf-8", buffering=1) as lines:
            for result in results:
                lines.write(_line(result))
                self.done[result.path] = result


def _lines(path: Path) -> list[Any]:
    """Return the content of each line of a log, None for a line that is not JSON, without a last line cut off."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    contents = []
    for line in lines:
        try:
            contents.append(json.loads(line))
        except (ValueError, RecursionError):
            contents.append(None)
    return contents[:-1] if len(contents) > 1 else contents  # nothing follows the last line feed


def _line(entry: ConvertedClip) -> str:
    stated = {name: value for name, value in _fields(entry).items() if value not in ("", False, None)}
    return json.dumps(stated, ensure_ascii=False, default=_fields) + "\n"


def _fields(row: ConvertedClip | Measurement) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}


def convert_all(
    listing: Listing, clips: list[Clip], log: ConversionLog, trim_silence_db: float | None, workers: int
) -> None:
    """Convert `clips` and log each result; raise UserError when the disk is full or cannot be written to."""
    decoding.check_installation(trim_silence_db)
    workers = workers or available_cpus()
    try:
        ensure_writable_dir(log.wavs)
        log.start()
        log.record(iter_results(_iter_tasks(listing, clips, log.wavs, trim_silence_db), len(clips), workers))
    except OSError as error:
        raise UserError(
            f"cannot write to {log.wavs} ({error.strerror or error}); converted clips are kept: fix this (if the disk "
            "is full, make room) and rerun the same command"
        ) from error


def _iter_tasks(listing: Listing, clips: list[Clip], wavs: Path, trim_silence_db: float | None) -> Iterator[Task]:
    for recording, rows in listing.iter_recordings(clips):
        cuts = [(wavs / row.wav, row.cut) for row in rows]
        parts = [Part(wav, cut.start_s, cut.end_s, cut.channel) if cut else Part(wav) for wav, cut in cuts]
        yield recording, [(row.path, listing.stamps[row.path]) for row in rows], parts, trim_silence_db


def estimate_disk_bytes(durations_s: Iterable[float]) -> int:
    """Return the bytes on disk of wavs of these durations, with their lines in the log and the manifests."""
    return sum(
        decoding.wav_size(min(duration_s, decoding.MAX_DURATION_S)) + DISK_BYTES_A_CLIP for duration_s in durations_s
    )


def iter_results(tasks: Iterator[Task], count: int, workers: int) -> Iterator[ConvertedClip]:
    """Yield results as they arrive, with a progress bar; a clip that crashes the decoding process is a bad clip."""
    from tqdm import tqdm

    batches = _batches(tasks)
    with tqdm(total=count, desc="converting", unit=" clips", mininterval=0.5) as bar:
        broken = True
        while broken:
            in_flight: dict[str, list[Task]] = {}
            try:
                for result in _pooled(batches, workers, in_flight):
                    bar.update()
                    yield result
                broken = False
            except BrokenProcessPool:
                for result in _one_by_one([task for batch in in_flight.values() for task in batch]):
                    bar.update()
                    yield result


def _batches(tasks: Iterator[Task]) -> Iterator[list[Task]]:
    """Yield the tasks in lists of as many as have BATCH clips together, the last one of fewer."""
    batch: list[Task] = []
    for task in tasks:
        batch.append(task)
        if sum(len(names) for _, names, *_ in batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _pooled(batches: Iterator[list[Task]], workers: int, in_flight: dict[str, list[Task]]) -> Iterator[ConvertedClip]:
    """Run `batches` in a pool, at most IN_FLIGHT per worker, kept in `in_flight` by the path of their first clip."""
    pool, futures = _pool(workers), set[Future[list[ConvertedClip]]]()
    try:
        for batch in batches:
            in_flight[batch[0][1][0][0]] = batch
            with sigint_blocked():
                futures.add(pool.submit(_convert_batch, batch))
            while len(futures) >= IN_FLIGHT * workers:
                done, futures = wait(futures, return_when=FIRST_COMPLETED)
                yield from _completed(done, in_flight)
        while futures:
            done, futures = wait(futures, return_when=FIRST_COMPLETED)
            yield from _completed(done, in_flight)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second Ctrl-C
        for worker in list(pool._processes.values()):  # half a second of work is lost
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _completed(
    done: Iterable[Future[list[ConvertedClip]]], in_flight: dict[str, list[Task]]
) -> Iterator[ConvertedClip]:
    """Yield the results of finished batches, then raise the exception of one that failed."""
    for results in [future.result() for future in done if future.exception() is None]:
        del in_flight[results[0].path]
        yield from results
    for future in done:
        future.result()


def _one_by_one(tasks: list[Task]) -> Iterator[ConvertedClip]:
    """Convert, one at a time, the clips that were in flight when a worker crashed.

    A clip during which the process crashes is tried again as the first clip of a new process before it is blamed: a
    signal, or what an earlier clip left behind in the process, may have caused the crash.
    """
    remaining = deque(tasks)
    while remaining:
        fresh = True
        with _pool(1) as pool:
            try:
                while remaining:
                    with sigint_blocked():
                        future = pool.submit(_convert_recording, *remaining[0])
                    results = future.result()
                    remaining.popleft()
                    fresh = False
                    yield from results
            except BrokenProcessPool:
                if fresh:
                    for path, stamp in remaining.popleft()[1]:
                        yield ConvertedClip(path, stamp, reason="clip_undecodable", detail=CRASHES, passing=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    import multiprocessing

    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_prepare_worker)


def _convert_batch(tasks: list[Task]) -> list[ConvertedClip]:
    """Return, in a worker, the results in the order of `tasks`."""
    return [result for task in tasks for result in _convert_recording(*task)]


def _convert_recording(
    recording: bytes | Path, names: list[tuple[str, str]], parts: list[Part], trim: float | None
) -> list[ConvertedClip]:
    """Convert the parts of a recording in a worker; `names`: path and stamp of each, which its result repeats.

    Errors become results, except OSError (the disk), which ends the run.
    """
    outcomes: list[ConvertedPart | AudioError]
    try:
        outcomes = decoding.convert_parts(recording, parts, trim)
    except AudioError as error:
        outcomes = [error] * len(parts)
    except MemoryError:
        outcomes = [AudioError("clip_undecodable", "not enough memory", passing=True)] * len(parts)
    except OSError:
        raise
    except Exception as error:  # whatever a decoder raises for a broken file, it must not stop a run of hours
        outcomes = [AudioError("clip_undecodable", f"{error.__class__.__name__}: {error}", passing=True)] * len(parts)
    return [_result(*name, part.wav, outcome) for name, part, outcome in zip(names, parts, outcomes, strict=True)]


def _result(path: str, stamp: str, wav: Path, outcome: ConvertedPart | AudioError) -> ConvertedClip:
    if isinstance(outcome, AudioError):
        return ConvertedClip(path, stamp, reason=outcome.reason, detail=outcome.detail, passing=outcome.passing)
    about = {"wav_mtime_ns": wav.stat().st_mtime_ns, "wav_crc32": zlib.crc32(wav.read_bytes())}
    return ConvertedClip(path, stamp, outcome.duration_s, outcome.decoded_s, **about, sound=outcome.sound)


def _prepare_worker() -> None:
    """Silence libmpg123's messages in this worker."""
    follow_parent()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
