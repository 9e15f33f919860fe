"""A dataset in shards: tars and manifests as NeMo's tarred datasets have them, in a folder that needs nothing else."""

import random
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from finetuning.data import dataset_files, tar_stream
from finetuning.data.manifest import SPLITS, Utterance, manifest_path, shard_path
from finetuning.data.shard_reader import HEADER, ShardMember
from finetuning.errors import UserError
from finetuning.files import atomic_path, check_disk_space, read_json, remove_stale_temp_files, sha256_of, write_json

SHARD_BYTES = 1_000_000_000  # about, at most: nearly nine hours
MARK = "dataset_creation.py "  # what a shard of ours is known by begins so
FIRST_OFFSET = 2 * HEADER  # bytes before the first member: what the shard was made from


def shard_layout(sizes: Iterable[int]) -> tuple[list[int], int]:
    """The offset of each wav of these sizes in a shard, and the size of the shard, in bytes."""
    offsets, end = [], FIRST_OFFSET
    for size in sizes:
        offsets.append(end)
        end += HEADER + _round_up(size, HEADER)
    return offsets, _round_up(end + 2 * HEADER, tarfile.RECORDSIZE)


def _round_up(size: int, block: int) -> int:
    return -(-size // block) * block


def write_shard(
    path: Path, wavs: Iterable[tuple[ShardMember, Path]], made_from: str, progress: Callable[[int], object]
) -> None:
    """Write a shard that holds a copy of each wav where its member says; `made_from` is what it is known by.

    That stands in a global pax header, as a commit does in `git archive`'s; no time, user or place is in it. UserError
    when a wav is gone or changed, or the disk is full; then nothing has its name. `progress` is told the bytes of each.
    """
    with (
        atomic_path(path) as temporary,
        tarfile.open(temporary, "w:", format=tarfile.PAX_FORMAT, pax_headers={"comment": made_from}) as tar,
    ):
        for member, wav in wavs:
            data = _read_wav(wav, member.size)
            assert tar.offset == member.offset, "a shard is not laid out as planned"
            header = tarfile.TarInfo(member.name)
            header.size = member.size
            tar.addfile(header, BytesIO(data))
            progress(member.size)


def _read_wav(wav: Path, size: int) -> bytes:
    try:
        data = wav.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {wav} ({error.strerror}); type it again, only what is missing is made") from error
    if len(data) != size:
        raise UserError(f"{wav} has changed meanwhile; type it again, only what is missing is made")
    return data


def read_fingerprint(path: Path) -> str | None:
    """What the shard at `path` is known by: "" for another's tar, None where there is none or it cannot be read."""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:", tarinfo=tar_stream.TarHeader) as tar:
            return tar.pax_headers.get("comment", "")
    except (FileNotFoundError, tarfile.TarError, RecursionError, ValueError, OverflowError, IndexError):
        return None


@dataclass(frozen=True)
class Shard:
    """A shard as it is to be."""

    path: Path
    wavs: list[tuple[ShardMember, Path]]  # and the file each is a copy of
    size: int  # bytes
    made_from: str  # differs when anything in it does

    def is_made(self) -> bool:
        """Whether it is there already."""
        return read_fingerprint(self.path) == self.made_from and self.path.stat().st_size == self.size


def check_shard_folder(folder: Path, release: str) -> None:
    """UserError where `folder` holds something that `pack` would spoil."""
    about = read_json(folder / "dataset.json")
    other = about.get("release", release) if isinstance(about, dict) else release
    if other != release:
        raise UserError(f"{folder} holds shards of {other}; give another dataset.shards=…, or delete that folder")
    if (folder / "conversion.jsonl").exists():
        raise UserError(f"{folder} is the dataset.output of some run; give another dataset.shards=…")
    for path in _tars(folder):
        known_by = read_fingerprint(path)
        if known_by is not None and not known_by.startswith(MARK):
            raise UserError(f"{path} was not made by step 1; give another dataset.shards=…")


def _tars(folder: Path) -> list[Path]:
    return [path for path in folder.glob("audio_*.tar") if re.fullmatch(r"audio_\d+\.tar", path.name)]


def pack_dataset(
    output: Path,
    chosen: dict[str, list[Utterance]],
    stamps: Mapping[str, Any],
    about: dict[str, Any],
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[dict[str, range], bool]:
    """Make `folder` hold the utterances, whose wavs lie in `output`: the numbers of each split's shards, and whether
    anything had to be written.

    `stamps`: for each wav what differs when the wav does. A shard is written when it would be another one. Manifests
    that change go before the first shard does and come back after the last: none ever speaks of other shards.
    """
    remove_stale_temp_files(folder)
    packed, planned = plan_shards(output, chosen, stamps, folder, shard_bytes)
    stale = [shard for shard in planned if not shard.is_made()]
    surplus = set(_tars(folder)) - {shard.path for shard in planned}
    changed = {s: u for s, u in packed.items() if dataset_files.read_manifest_or_none(manifest_path(folder, s)) != u}
    about_stale = read_json(folder / "dataset.json") != about
    _check_disk_space(folder, stale)
    for split in changed:
        manifest_path(folder, split).unlink(missing_ok=True)
    for path in surplus:
        path.unlink()
    _write_shards(stale)
    dataset_files.replace_manifests(folder, changed)
    if about_stale:
        write_json(folder / "dataset.json", about)
    numbers = {split: {u.shard_id for u in packed[split]} for split in SPLITS}
    ranges = {split: range(min(own), max(own) + 1) for split, own in numbers.items()}
    return ranges, bool(stale or surplus or changed or about_stale)


def plan_shards(
    output: Path, chosen: dict[str, list[Utterance]], stamps: Mapping[str, Any], folder: Path, shard_bytes: int
) -> tuple[dict[str, list[Utterance]], list[Shard]]:
    """The manifests, in the order of `chosen`, and the shards: of a split as many as it needs, numbered on.

    Which shard an utterance is in, and where there, is drawn at random, so that each is a fair sample; shards of a
    split differ by one utterance at most.
    """
    packed, planned = {}, []
    for split in SPLITS:
        utterances, size = chosen[split], sum(u.wav_size for u in chosen[split])
        count, packed[split] = -(-size // shard_bytes), list(utterances)
        order = random.Random(split).sample(range(len(utterances)), len(utterances))
        for part in range(count):
            numbers = order[part * len(order) // count : (part + 1) * len(order) // count]
            offsets, shard_size = shard_layout(utterances[number].wav_size for number in numbers)
            wavs, contents = [], []
            for number, offset in zip(numbers, offsets, strict=True):
                loose = utterances[number]
                name = member_name(loose.audio_filepath)
                own = replace(loose, audio_filepath=name, shard_id=len(planned), shard_offset=offset)
                packed[split][number] = own
                wavs.append((own.wav(folder), loose.wav(output)))
                contents.append([name, offset, loose.wav_size, stamps[loose.audio_filepath]])
            planned.append(Shard(shard_path(folder, len(planned)), wavs, shard_size, MARK + sha256_of(contents)))
    return packed, planned


def member_name(wav: str) -> str:
    """A wav's name in a shard: no folder, one dot, since webdataset takes all behind the first for the suffix, and
    nothing that would need more than a plain header. What does not fit gets a digest instead.
    """
    stem = PurePosixPath(wav).stem
    if not re.fullmatch(r"\w{1,90}", stem, re.ASCII):
        stem = f"{re.sub(r'[^A-Za-z0-9]', '_', stem)[:60]}_{sha256(stem.encode()).hexdigest()[:16]}"
    return f"{stem}.wav"


def _check_disk_space(folder: Path, stale: list[Shard]) -> None:
    growth = needed = 0
    for shard in stale:  # the old one goes when the new one is whole
        needed = max(needed, growth + shard.size)
        growth += shard.size - (shard.path.stat().st_size if shard.path.is_file() else 0)
    check_disk_space(folder, needed, "the set of missing shards")


def _write_shards(stale: list[Shard]) -> None:
    from tqdm import tqdm

    if stale:
        total = sum(member.size for shard in stale for member, _ in shard.wavs)
        with tqdm(total=total, desc="packing", unit="B", unit_scale=True) as bar:
            for shard in stale:
                write_shard(shard.path, shard.wavs, shard.made_from, bar.update)
