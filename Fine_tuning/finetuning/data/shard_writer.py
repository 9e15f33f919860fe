"""Pack a dataset into shards: tars and manifests like those of NeMo's tarred datasets, in a self-contained folder."""

import random
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from finetuning.data import dataset_files, tar_stream
from finetuning.data.manifest import Utterance, made_splits, manifest_path, shard_path
from finetuning.data.shard_reader import HEADER, ShardMember, member_name
from finetuning.errors import UserError
from finetuning.files import atomic_path, check_disk_space, read_json, remove_stale_temp_files, sha256_of, write_json

SHARD_BYTES = 1_000_000_000  # roughly the maximum size, nearly nine hours of audio
MARK = "dataset_creation.py "  # prefix of the fingerprint of every shard made here
FIRST_OFFSET = 2 * HEADER  # bytes before the first member: the fingerprint
RERUN = "rerun the same command: only what is missing is made"


def shard_layout(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Return the offset of each wav of these sizes in a shard, and the size of the shard, in bytes."""
    offsets, end = [], FIRST_OFFSET
    for size in sizes:
        offsets.append(end)
        end += HEADER + _round_up(size, HEADER)
    return offsets, _round_up(end + 2 * HEADER, tarfile.RECORDSIZE)


def _round_up(size: int, block: int) -> int:
    return -(-size // block) * block


def write_shard(
    path: Path, wavs: Iterable[tuple[ShardMember, Path]], fingerprint: str, progress: Callable[[int], object]
) -> None:
    """Write a shard that holds a copy of each wav at the offset of its member.

    The fingerprint is stored in a global pax header, like the commit in a `git archive`; the tar holds no time, user or
    path. `progress` is called with the bytes of each wav. Raises UserError, without a file at `path`, when a wav is
    missing or has changed, or the disk is full.
    """
    with (
        atomic_path(path) as temporary,
        tarfile.open(temporary, "w:", format=tarfile.PAX_FORMAT, pax_headers={"comment": fingerprint}) as tar,
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
        raise UserError(f"cannot read {wav} ({error.strerror}); {RERUN}") from error
    if len(data) != size:
        raise UserError(f"{wav} has changed meanwhile; {RERUN}")
    return data


def read_fingerprint(path: Path) -> str | None:
    """Return the fingerprint of the shard at `path`: "" for a foreign tar, None when there is none or it is damaged."""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:", tarinfo=tar_stream.TarHeader) as tar:
            return tar.pax_headers.get("comment", "")
    except (FileNotFoundError, tarfile.TarError, RecursionError, ValueError, OverflowError, IndexError):
        return None


@dataclass(frozen=True)
class Shard:
    """The plan of a shard."""

    path: Path
    wavs: list[tuple[ShardMember, Path]]  # each with the file it is a copy of
    size: int  # bytes
    fingerprint: str  # differs when anything in the shard does

    def is_up_to_date(self) -> bool:
        """Return whether the shard exists as planned."""
        return read_fingerprint(self.path) == self.fingerprint and self.path.stat().st_size == self.size


def check_shard_folder(folder: Path, release: str) -> None:
    """Raise UserError when `folder` holds something that packing would overwrite."""
    about = read_json(folder / "dataset.json")
    other = about.get("release", release) if isinstance(about, dict) else release
    if other != release:
        raise UserError(f"{folder} holds shards of {other}; give another dataset.shards=…, or delete that folder")
    if (folder / "conversion.jsonl").exists():
        raise UserError(f"{folder} is the dataset.output of some run; give another dataset.shards=…")
    tars = _tars(folder)
    if not (tars or isinstance(about, dict)) and (found := sorted(folder.glob("*_manifest.json"))):
        raise UserError(f"{found[0]} was not made by step 1; give another dataset.shards=…")
    for path in tars:
        fingerprint = read_fingerprint(path)
        if fingerprint is not None and not fingerprint.startswith(MARK):
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
    """Pack the utterances, whose wavs are in `output`, into shards in `folder`.

    `stamps`: for each wav, a value that differs when the wav does. Only shards that have changed are written. Manifests
    that change are removed before the first shard is written and replaced after the last, so that they never list other
    shards. Returns the shard numbers of each split, and whether anything had to be written.
    """
    remove_stale_temp_files(folder)
    packed, planned = plan_shards(output, chosen, stamps, folder, shard_bytes)
    stale = [shard for shard in planned if not shard.is_up_to_date()]
    surplus = set(_tars(folder)) - {shard.path for shard in planned}
    changed = {s: u for s, u in packed.items() if dataset_files.read_manifest_or_none(manifest_path(folder, s)) != u}
    about_stale = read_json(folder / "dataset.json") != about
    _check_disk_space(folder, stale)
    former = [manifest_path(folder, name) for name in made_splits(folder) - chosen.keys()]
    for manifest in (*former, *(manifest_path(folder, split) for split in changed)):
        manifest.unlink(missing_ok=True)
    for path in surplus:
        path.unlink()
    _write_shards(stale)
    dataset_files.replace_manifests(folder, changed)
    if about_stale:
        write_json(folder / "dataset.json", about)
    shard_ids = {split: {u.shard_id for u in packed[split]} for split in packed}
    ranges = {split: range(min(ids), max(ids) + 1) for split, ids in shard_ids.items()}
    return ranges, bool(stale or surplus or changed or about_stale)


def plan_shards(
    output: Path, chosen: dict[str, list[Utterance]], stamps: Mapping[str, Any], folder: Path, shard_bytes: int
) -> tuple[dict[str, list[Utterance]], list[Shard]]:
    """Return the manifests, in the order of `chosen`, and the shards, numbered through all splits.

    The shard of an utterance and its place there are random, so that each shard is a fair sample of its split; shards
    of a split differ by one utterance at most.
    """
    packed, planned = {}, []
    for split in chosen:
        utterances, size = chosen[split], sum(u.wav_size for u in chosen[split])
        count, packed[split] = -(-size // shard_bytes), list(utterances)
        order = random.Random(split).sample(range(len(utterances)), len(utterances))
        for part in range(count):
            numbers = order[part * len(order) // count : (part + 1) * len(order) // count]
            offsets, shard_size = shard_layout(utterances[number].wav_size for number in numbers)
            wavs, contents = [], []
            for number, offset in zip(numbers, offsets, strict=True):
                unpacked = utterances[number]
                name = member_name(unpacked.audio_filepath)
                member = replace(unpacked, audio_filepath=name, shard_id=len(planned), shard_offset=offset)
                packed[split][number] = member
                wavs.append((member.wav(folder), unpacked.wav(output)))
                contents.append([name, offset, unpacked.wav_size, stamps[unpacked.audio_filepath]])
            planned.append(Shard(shard_path(folder, len(planned)), wavs, shard_size, MARK + sha256_of(contents)))
    return packed, planned


def _check_disk_space(folder: Path, stale: list[Shard]) -> None:
    growth = needed = 0
    for shard in stale:  # the old one is removed when the new one is complete
        needed = max(needed, growth + shard.size)
        growth += shard.size - (shard.path.stat().st_size if shard.path.is_file() else 0)
    check_disk_space(folder, needed, "the set of missing shards")


def _write_shards(stale: list[Shard]) -> None:
    from tqdm import tqdm

    if stale:
        total = sum(member.size for shard in stale for member, _ in shard.wavs)
        with tqdm(total=total, desc="packing", unit="B", unit_scale=True) as bar:
            for shard in stale:
                write_shard(shard.path, shard.wavs, shard.fingerprint, bar.update)
