"""Many clips -> wavs in a pool of processes, with a log of what is done, so that a rerun goes on where it was."""

import json
import os
import signal
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

from finetuning.audio import decoding
from finetuning.audio.stream import AudioError
from finetuning.data.common_voice import Clip, Release, iter_clip_files
from finetuning.data.manifest import SPLITS, manifest_path
from finetuning.errors import UserError
from finetuning.files import atomic_open, ensure_writable_dir, remove_stale_temp_files

BATCH = 16  # clips sent at a time: sending one costs the main process as much as sending all of them
IN_FLIGHT = 2  # batches a worker, waiting or at work: enough to keep it busy, few enough to keep memory flat
DISK_BYTES_A_CLIP = 4096 + 1024  # the last block of a wav is not full; a kilobyte of lines about it
LARGE = 1e300  # no number in the log is
ENDS = "ends the process that decodes it"  # or something else did, such as a lack of memory: the next run asks again

Task = tuple[str, str, bytes | Path, Path, float | None]  # path, stamp, clip, wav, dB


@dataclass(frozen=True, slots=True)
class ConvertedClip:
    """What became of a clip: a wav of `duration_s`, or a reason why there is none."""

    path: str
    stamp: str  # of the clip it was made from
    duration_s: float = 0.0  # of the wav
    decoded_s: float = 0.0  # before silence was trimmed
    reason: str = ""
    detail: str = ""
    passing: bool = False  # a fault of this machine, not of the clip: tried again by the next run
    wav_mtime_ns: int = 0  # of the wav; 0: made before this was recorded
    wav_crc32: int = 0

    @classmethod
    def read(cls, fields: Any) -> Self | None:
        """The entry that a line of the log holds; None where it is none."""
        try:
            entry = cls(**fields)
            "".join((entry.path, entry.stamp, entry.reason, entry.detail)).encode()  # half a surrogate pair is no text
            numbers = (entry.duration_s, entry.decoded_s, entry.wav_mtime_ns, entry.wav_crc32)
            return entry if all(0 <= number < LARGE for number in numbers) else None
        except (TypeError, UnicodeEncodeError):
            return None


class ConversionLog:
    """`conversion.jsonl`: a first line that says what all wavs depend on, then one line a clip as results arrive."""

    def __init__(self, output: Path, key: dict[str, Any]) -> None:
        """Read the log in `output`; what was made under another `key` counts as not made."""
        self.path, self.key, self.wavs = output / "conversion.jsonl", key, output / "wavs"
        first, *lines = _lines(self.path)
        self.old_key = first if isinstance(first, dict) else None
        entries = [ConvertedClip.read(line) for line in lines] if self.old_key == key else []
        self.done = {entry.path: entry for entry in entries if entry}
        if broken := entries.count(None):
            print(f"{self.path}: {broken:,} lines cannot be read; what they speak of is converted again")

    def missing(self, clips: Iterable[Clip], stamps: dict[str, str]) -> list[Clip]:
        """Clips without a result, changed since, or with a wav that is gone or is not what it was when it was made."""
        found: dict[str, os.stat_result] = {}
        if self.wavs.is_dir():
            with os.scandir(self.wavs) as entries:
                found = {entry.name: entry.stat() for entry in entries if entry.is_file()}
        missing, changed, touched = [], [], []
        for clip in clips:
            entry, wav = self.done.get(clip.path), found.get(clip.wav)
            if entry is None or entry.passing or entry.stamp != stamps[clip.path]:
                missing.append(clip)
            elif entry.reason:
                continue
            elif wav is None:
                missing.append(clip)
            elif not self._is_as_made(entry, clip, wav):
                changed.append(clip)
            elif entry.wav_crc32 and entry.wav_mtime_ns != wav.st_mtime_ns:
                touched.append(replace(entry, wav_mtime_ns=wav.st_mtime_ns))
        if changed:
            example = changed[0].wav
            print(f"{len(changed):,} wavs have changed since they were made, such as {example}; they are made again")
        if touched:  # the folder was copied: each wav is read once for that, not by each run
            self.done |= {entry.path: entry for entry in touched}
            self._write()
        return missing + changed

    def _is_as_made(self, entry: ConvertedClip, clip: Clip, wav: os.stat_result) -> bool:
        """Whether a wav has its size and, where its time stamp is another, its content."""
        if wav.st_size != decoding.wav_size(entry.duration_s):
            return False
        if wav.st_mtime_ns == entry.wav_mtime_ns or not entry.wav_crc32:
            return True
        return zlib.crc32((self.wavs / clip.wav).read_bytes()) == entry.wav_crc32

    def start(self) -> None:
        """Write the log anew without a line cut off by a crash, and clear away what no longer holds."""
        remove_stale_temp_files(self.wavs)  # half-written wavs of a run that was killed
        if self.old_key != self.key:  # manifests that speak of other wavs must not outlive them
            for split in SPLITS:
                manifest_path(self.path.parent, split).unlink(missing_ok=True)
        self._write()

    def _write(self) -> None:
        with atomic_open(self.path) as lines:
            lines.write(json.dumps(self.key, ensure_ascii=False) + "\n")
            lines.writelines(_line(entry) for entry in self.done.values())

    def record(self, results: Iterable[ConvertedClip]) -> None:
        """Append results one by one; OSError when the disk is full."""
        with self.path.open("a", encoding="utf-8", buffering=1) as lines:
            for result in results:
                lines.write(_line(result))
                self.done[result.path] = result


def _lines(path: Path) -> list[Any]:
    """What the lines of a log hold, None for one that is no JSON; the last one may be cut off and is left out then."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            found.append(None)
    return found[:-1] if len(found) > 1 else found  # behind the last line feed stands nothing


def _line(entry: ConvertedClip) -> str:
    fields = {name: getattr(entry, name) for name in ConvertedClip.__slots__}
    return json.dumps({k: v for k, v in fields.items() if v not in ("", False)}, ensure_ascii=False) + "\n"


def convert_all(
    release: Release, clips: list[Clip], log: ConversionLog, trim_silence_db: float | None, workers: int
) -> None:
    """Convert `clips` and log each result; UserError when the disk is full or a process was killed."""
    decoding.check_installation(trim_silence_db)
    workers = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        ensure_writable_dir(log.wavs)
        log.start()
        wavs, stamps = {clip.path: log.wavs / clip.wav for clip in clips}, release.stamps
        tasks = ((p, stamps[p], clip, wavs[p], trim_silence_db) for p, clip in iter_clip_files(release, set(wavs)))
        log.record(iter_results(tasks, len(wavs), workers))
    except OSError as error:
        raise UserError(
            f"cannot write to {log.wavs} ({error.strerror or error}); what is converted is kept, mend that (where the "
            "disk is full, make room) and run the same command again"
        ) from error


def estimate_disk_bytes(durations_s: Iterable[float]) -> int:
    """What wavs of these durations take on a disk, with their lines in the log, the manifests and dataset.json."""
    return sum(
        decoding.wav_size(min(duration_s, decoding.MAX_DURATION_S)) + DISK_BYTES_A_CLIP for duration_s in durations_s
    )


def iter_results(tasks: Iterator[Task], count: int, workers: int) -> Iterator[ConvertedClip]:
    """Results in the order they arrive, with a progress bar; a clip that ends the process decoding it is a bad clip."""
    from tqdm import tqdm

    batches = iter(lambda: list(islice(tasks, BATCH)), [])
    with tqdm(total=count, desc="converting", unit=" clips", mininterval=0.5) as bar:
        broken = True
        while broken:
            flying: dict[str, list[Task]] = {}
            try:
                for result in _pooled(batches, workers, flying):
                    bar.update()
                    yield result
                broken = False
            except BrokenProcessPool:
                for result in _one_by_one([task for batch in flying.values() for task in batch]):
                    bar.update()
                    yield result


def _pooled(batches: Iterator[list[Task]], workers: int, flying: dict[str, list[Task]]) -> Iterator[ConvertedClip]:
    """Run `batches` in a pool; at most IN_FLIGHT a worker are held, in `flying` by the path of their first clip."""
    pool, futures = _pool(workers), set[Future[list[ConvertedClip]]]()
    try:
        for batch in batches:
            flying[batch[0][0]] = batch
            with _uninterrupted():
                futures.add(pool.submit(_convert_batch, batch))
            while len(futures) >= IN_FLIGHT * workers:
                done, futures = wait(futures, return_when=FIRST_COMPLETED)
                yield from _landed(done, flying)
        while futures:
            done, futures = wait(futures, return_when=FIRST_COMPLETED)
            yield from _landed(done, flying)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the impatient second one
        for worker in list(pool._processes.values()):  # what they are at is half a second of work
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits; processes started meanwhile never get it: it is their parent's, who ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _landed(done: Iterable[Future[list[ConvertedClip]]], flying: dict[str, list[Task]]) -> Iterator[ConvertedClip]:
    for results in [future.result() for future in done if future.exception() is None]:
        del flying[results[0].path]
        yield from results
    for future in done:
        future.result()  # raises what a worker could not turn into a result


def _one_by_one(tasks: list[Task]) -> Iterator[ConvertedClip]:
    """Clips held when a process ended: each alone at work, in one process until a clip ends that, then in another.

    The clip is asked again there, as its first one, before it gets the blame: what an earlier clip left behind in a
    process, or a signal, may have ended it.
    """
    left = deque(tasks)
    while left:
        fresh = True
        with _pool(1) as pool:
            try:
                while left:
                    with _uninterrupted():
                        future = pool.submit(_convert_one, *left[0])
                    result = future.result()
                    left.popleft()
                    fresh = False
                    yield result
            except BrokenProcessPool:
                if fresh:
                    path, stamp = left.popleft()[:2]
                    yield ConvertedClip(path, stamp, reason="clip_undecodable", detail=ENDS, passing=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    import multiprocessing

    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_prepare_worker)


def _convert_batch(tasks: list[Task]) -> list[ConvertedClip]:
    """In a worker: the results in the order of `tasks`."""
    return [_convert_one(*task) for task in tasks]


def _convert_one(path: str, stamp: str, clip: bytes | Path, wav: Path, trim: float | None) -> ConvertedClip:
    """In a worker. An error of one clip is that clip's; only OSError (the disk) concerns them all."""
    try:
        duration_s, decoded_s = decoding.convert_to_wav(clip, wav, trim)
    except AudioError as bad:
        return ConvertedClip(path, stamp, reason=bad.reason, detail=bad.detail, passing=bad.passing)
    except MemoryError:
        return ConvertedClip(path, stamp, reason="clip_undecodable", detail="not enough memory", passing=True)
    except OSError:
        raise
    except Exception as error:  # whatever a decoder makes of a broken file, it must not stop a run of hours
        detail = f"{error.__class__.__name__}: {error}"
        return ConvertedClip(path, stamp, reason="clip_undecodable", detail=detail, passing=True)
    return ConvertedClip(
        path, stamp, duration_s, decoded_s, wav_mtime_ns=wav.stat().st_mtime_ns, wav_crc32=zlib.crc32(wav.read_bytes())
    )


def _prepare_worker() -> None:
    """Quiet and mortal: no chatter of libmpg123 on the screen, Ctrl-C is the parent's, no life without it."""
    import multiprocessing
    import threading

    def follow_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=follow_parent, daemon=True).start()
