"""Step 1: a Common Voice release, or a table of recordings -> 16 kHz wavs and manifests for train, validation and test.

    python Fine_tuning/dataset_creation.py [--config FILE] [section.key=value …]

A rerun makes only what is missing. The source itself is never changed. With dataset.shards=FOLDER the wavs are also
packed into a few large tars.
"""

import finetuning.startup  # noqa: F401  first: it reports what ends the script during the other imports

# isort: split
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from finetuning.config.loading import from_command_line
from finetuning.config.schema import Config, SplitBy, resolve_path
from finetuning.data import (
    common_voice,
    dataset_files,
    mozilla_data_collective,
    recording_table,
    release_tables,
    row_filters,
    shard_writer,
    splits,
)
from finetuning.data.conversion_pool import ConversionLog, convert_all, estimate_disk_bytes
from finetuning.data.listing import Listing, RejectedRow
from finetuning.data.manifest import SPLITS, Utterance
from finetuning.data.row_filters import Candidate
from finetuning.data.text_normalization import Language
from finetuning.errors import UserError, printable, run_script
from finetuning.files import check_disk_space, ensure_writable_dir, exclusive_lock


def main() -> None:
    """Make the dataset of a configuration in its output folder."""
    config = from_command_line(__doc__)
    output = resolve_path(config.dataset.output)
    language = Language.of(config.text)
    folders = {"dataset.output": output}
    if config.dataset.shards:
        folders["dataset.shards"] = resolve_path(config.dataset.shards)
    source = find_source(config.dataset.source)
    for key, folder in folders.items():
        check_outside_release(source, key, folder)
    new_folders = [folder for folder in folders.values() if not folder.exists()]
    try:
        with ExitStack() as locks:
            for folder in folders.values():
                locks.enter_context(exclusive_lock(ensure_writable_dir(folder)))
            create(config, language, source, output)
    except UserError:
        for folder in reversed(new_folders):
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


def create(config: Config, language: Language, source: Path, output: Path) -> None:
    """Make the dataset while this run holds the locks of `output` and of dataset.shards."""
    listing = list_source(config, source, output)
    if config.dataset.shards:
        shard_writer.check_shard_folder(resolve_path(config.dataset.shards), listing.name)
    rejected = listing.rejected
    row_count = len(listing.rows) + len(rejected)
    print(f"{listing.name}: {row_count:,} rows in {listing.table}, {len(listing.stamps):,} clips")
    if changed := dataset_files.changed_settings(output, config, listing.name):
        print(f"changed since the last run: {', '.join(changed)}; texts, filters, splits and manifests are made again")

    candidates, report = choose_rows(language, listing, rejected)
    for note in [*listing.notes, *row_filters.rejection_warnings(rejected, row_count)]:
        print(printable(note))
    with dataset_files.keep_rejections_on_error(output, rejected):
        row_filters.check_rows_left(candidates, rejected, report, config.text.alphabet, listing)
        splits.validate_split(config.dataset.split, {c.clip.speaker for c in candidates}, listing)

    log, new_clips = convert_clips(config, listing, candidates, output)
    candidates = row_filters.filter_by_audio(candidates, config.dataset, rejected)
    chosen = split(config, candidates, rejected)

    assert row_count == len(rejected) + sum(len(chosen[name]) for name in SPLITS), "a row was lost"
    sounds = {c.audio_filepath: c.converted.sound for c in candidates}
    about = dataset_files.describe_dataset(config, listing.name, row_count, chosen, rejected, report, sounds)
    with dataset_files.keep_rejections_on_error(output, rejected):
        splits.check_splits_not_empty(chosen, rejected)
    written = dataset_files.write_dataset(output, chosen, rejected, about)
    print(dataset_files.format_summary(about))
    print(f"{'written to' if written or new_clips else 'nothing to do, all is up to date in'} {output}")
    if config.dataset.shards:
        stamps = {c.audio_filepath: [log.key, c.converted.stamp] for c in candidates}
        pack(output, chosen, stamps, about, resolve_path(config.dataset.shards))


def pack(
    output: Path, chosen: dict[str, list[Utterance]], stamps: dict[str, Any], about: dict[str, Any], folder: Path
) -> None:
    """Pack the dataset into shards in `folder` and print which of them hold which split."""
    shard_ids, written = shard_writer.pack_dataset(output, chosen, stamps, about, folder)
    print(f"{'packed into' if written else 'nothing to pack, all is up to date in'} {folder}")
    print(", ".join(f"{split} audio_{{{ids[0]}..{ids[-1]}}}.tar" for split, ids in shard_ids.items()))


def check_outside_release(source: Path, key: str, folder: Path) -> None:
    """Raise UserError when `folder`, an output that the configuration names as `key`, lies in the release."""
    root = source.parent if source.parent.name.startswith("cv-corpus") else source
    if source.is_dir() and folder.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{folder} lies in the release, which is never changed; give another {key}=…")


def find_source(path: str) -> Path:
    """Return the path of the release, relative to the project's folder or, if it is not there, to the current one."""
    source, here = resolve_path(path), Path(path.replace("\0", ""))
    return here.absolute() if not source.exists() and here.exists() else source


def list_source(config: Config, source: Path, output: Path) -> Listing:
    """Return what the table or the release at `source` lists; a release that is not there is downloaded first."""
    dataset, with_splits = config.dataset, config.dataset.split.by is SplitBy.release
    if recording_table.is_table(source):
        listing = recording_table.read_table(source, dataset.columns, dataset.channel, with_splits)
        recording_table.check_recordings_outside(listing, output)
        return listing
    here = "" if Path(dataset.source).is_absolute() else f", nor {dataset.source} in the current folder"
    if not source.exists() and dataset.download and source.name == dataset.archive.name:
        mozilla_data_collective.download_release(dataset.download, dataset.archive, source)
    elif not source.exists():
        name = dataset.archive.name
        other = f"; only {name} is downloaded: give dataset.source=…/{name}" if dataset.download else ""
        raise UserError(
            f"there is no release {source}{here}{other or '; give dataset.source=…'} ({common_voice.LAYOUT})"
        )
    release = common_voice.open_release(source, output / "release", dataset.archive)
    return release_tables.list_release(release, with_splits)


def choose_rows(
    language: Language, listing: Listing, rejected: list[RejectedRow]
) -> tuple[list[Candidate], row_filters.TextReport]:
    """Return the rows that are worth converting, and what the rules for texts did."""
    candidates, report = row_filters.filter_by_text(listing.rows, language, rejected)
    candidates = row_filters.filter_by_clip(candidates, listing.stamps, listing.where, rejected)
    if listing.splits is not None:
        candidates = row_filters.filter_by_release_split(candidates, listing.splits, rejected)
    if listing.durations_s is not None:
        for candidate in candidates:
            candidate.stated_s = listing.durations_s.get(candidate.clip.path, 0.0)
    return candidates, report


def convert_clips(
    config: Config, listing: Listing, candidates: list[Candidate], output: Path
) -> tuple[ConversionLog, int]:
    """Convert what is not converted yet and give each candidate its result; return the log and how many were new."""
    trim = config.dataset.trim_silence_db
    log = ConversionLog(output, {"source": listing.identity, "trim_silence_db": trim})
    missing = log.missing([candidate.clip for candidate in candidates], listing.stamps)
    if log.old_key and log.old_key.get("source") != listing.identity:
        raise UserError(f"{output} holds another source; give another dataset.output=…, or delete that folder")
    if log.old_key not in (None, log.key):
        print("dataset.trim_silence_db changed: every clip is converted again")
    done = len(candidates) - len(missing)
    print(f"{len(candidates):,} clips wanted, {done:,} converted already, {len(missing):,} to convert", flush=True)
    if missing:
        paths = {clip.path for clip in missing}
        needed = estimate_disk_bytes(c.stated_s for c in candidates if c.clip.path in paths)
        check_disk_space(output, needed, "the set of missing wavs")
        convert_all(listing, missing, log, trim, config.dataset.workers)
    for candidate in candidates:
        candidate.converted = log.done[candidate.clip.path]
    return log, len(missing)


def split(config: Config, candidates: list[Candidate], rejected: list[RejectedRow]) -> dict[str, list[Utterance]]:
    """Return the utterances of each split, sorted by path; reject those whose sentence is in another split."""
    candidates = sorted(candidates, key=lambda candidate: candidate.audio_filepath)
    utterances = [candidate.to_utterance() for candidate in candidates]
    if config.dataset.split.by is SplitBy.release:
        assignment, lost = {c.audio_filepath: c.release_split for c in candidates}, {}
    else:
        assignment, lost = splits.assign_splits(config.dataset.split, utterances)
    for candidate in candidates:
        if keeper := lost.get(candidate.audio_filepath):
            rejected.append(RejectedRow(candidate.clip.path, "sentence_in_other_split", f"also read in {keeper}"))
    return {name: [u for u in utterances if assignment.get(u.audio_filepath) == name] for name in SPLITS}


if __name__ == "__main__":
    run_script(main)
