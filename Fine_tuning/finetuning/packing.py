"""A dataset in shards: tars and manifests as NeMo's tarred datasets have them, in a folder that needs nothing else."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from finetuning import dataset, shards
from finetuning.errors import UserError
from finetuning.files import clear_left_over, read_json, refuse_full_disk, sha256_of, write_json
from finetuning.manifest import SPLITS, Utterance, manifest_path, shard_path
from finetuning.shards import Member

SHARD_BYTES = 1_000_000_000  # about, at most: nearly nine hours
MARK = "dataset_creation.py "  # what a shard of ours is known by begins so


@dataclass(frozen=True)
class Shard:
    """A shard as it is to be."""

    path: Path
    wavs: list[tuple[Member, Path]]  # and the file each is a copy of
    size: int  # bytes
    made_from: str  # differs when anything in it does

    def is_made(self) -> bool:
        """Whether it is there already."""
        return shards.made_from(self.path) == self.made_from and self.path.stat().st_size == self.size


def refuse_taken(folder: Path, release: str) -> None:
    """UserError where `folder` holds something that `pack` would spoil."""
    about = read_json(folder / "dataset.json")
    other = about.get("release", release) if isinstance(about, dict) else release
    if other != release:
        raise UserError(f"{folder} holds shards of {other}; give another dataset.shards=…, or delete that folder")
    if (folder / "conversion.jsonl").exists():
        raise UserError(f"{folder} is the dataset.output of some run; give another dataset.shards=…")
    for path in _tars(folder):
        known_by = shards.made_from(path)
        if known_by is not None and not known_by.startswith(MARK):
            raise UserError(f"{path} was not made by step 1; give another dataset.shards=…")


def _tars(folder: Path) -> list[Path]:
    return [path for path in folder.glob("audio_*.tar") if re.fullmatch(r"audio_\d+\.tar", path.name)]


def pack(
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
    clear_left_over(folder)
    packed, planned = plan(output, chosen, stamps, folder, shard_bytes)
    stale = [shard for shard in planned if not shard.is_made()]
    surplus = set(_tars(folder)) - {shard.path for shard in planned}
    changed = {s: u for s, u in packed.items() if dataset.read_whole(manifest_path(folder, s)) != u}
    about_stale = read_json(folder / "dataset.json") != about
    _refuse_full_disk(folder, stale)
    for split in changed:
        manifest_path(folder, split).unlink(missing_ok=True)
    for path in surplus:
        path.unlink()
    _write(stale)
    dataset.write_manifests(folder, changed)
    if about_stale:
        write_json(folder / "dataset.json", about)
    numbers = {split: {u.shard_id for u in packed[split]} for split in SPLITS}
    ranges = {split: range(min(own), max(own) + 1) for split, own in numbers.items()}
    return ranges, bool(stale or surplus or changed or about_stale)


def plan(
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
            offsets, shard_size = shards.layout(utterances[number].wav_size for number in numbers)
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


def _refuse_full_disk(folder: Path, stale: list[Shard]) -> None:
    growth = needed = 0
    for shard in stale:  # the old one goes when the new one is whole
        needed = max(needed, growth + shard.size)
        growth += shard.size - (shard.path.stat().st_size if shard.path.is_file() else 0)
    refuse_full_disk(folder, needed, "the set of missing shards")


def _write(stale: list[Shard]) -> None:
    from tqdm import tqdm

    if stale:
        total = sum(member.size for shard in stale for member, _ in shard.wavs)
        with tqdm(total=total, desc="packing", unit="B", unit_scale=True) as bar:
            for shard in stale:
                shards.write(shard.path, shard.wavs, shard.made_from, bar.update)
