"""Step 1: a Common Voice release, or a table of recordings -> 16 kHz wavs and manifests for train, validation and test.

    python Fine_tuning/dataset_creation.py [--config FILE] [section.key=value …]

A rerun makes only what is missing. The source itself is never changed. With dataset.shards=FOLDER the wavs are also
packed into a few large tars.
"""

import finetuning.startup  # noqa: F401  first: it reports what ends the script during the other imports

# isort: split
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetuning.config.loading import from_command_line
from finetuning.config.schema import Config, Role, Source, SplitBy, dataset_sources, resolve_path
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
from finetuning.data.repeated_audio import drop_repeated_audio
from finetuning.data.row_filters import Candidate
from finetuning.data.text_normalization import Language
from finetuning.errors import UserError, printable, run_script
from finetuning.files import check_disk_space, ensure_writable_dir, exclusive_lock


def main() -> None:
    """Make the dataset of a configuration in its output folder."""
    config = from_command_line(__doc__)
    output = resolve_path(config.dataset.output)
    Language.of(config.text)  # refuses rules that cannot be used
    folders = {"dataset.output": output}
    if config.dataset.shards:
        folders["dataset.shards"] = resolve_path(config.dataset.shards)
    sources = dataset_sources(config)
    for source in sources:
        for key, folder in folders.items():
            check_source_outside(find_source(source.source), key, folder)
    dataset_files.check_output_folder(output)
    new_folders = [folder for folder in folders.values() if not folder.exists()]
    try:
        with ExitStack() as locks:
            for folder in folders.values():
                locks.enter_context(exclusive_lock(ensure_writable_dir(folder)))
            create(config, sources, output)
    except UserError:
        for folder in reversed(new_folders):
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


@dataclass(frozen=True)
class Chosen:
    """What is taken of a source."""

    source: Source
    listing: Listing
    candidates: list[Candidate]
    report: row_filters.TextReport


def create(config: Config, sources: list[Source], output: Path) -> None:
    """Make the dataset while this run holds the locks of `output` and of dataset.shards."""
    listings = [list_source(config, source, output) for source in sources]
    name = " + ".join(listing.name for listing in listings)
    if config.dataset.shards:
        shard_writer.check_shard_folder(resolve_path(config.dataset.shards), name)
    for listing in listings:
        print(f"{listing.name}: {listing.row_count:,} rows in {listing.table}, {len(listing.stamps):,} clips")
    if changed := dataset_files.changed_settings(output, config, name):
        print(f"changed since the last run: {', '.join(changed)}; texts, filters, splits and manifests are made again")

    rejected: list[RejectedRow] = []
    chosen_rows = choose_rows(config, sources, listings, output, rejected)
    check_split(config, chosen_rows, output, rejected)
    candidates, stamps, new_clips = [], dict[str, Any](), 0
    for chosen in chosen_rows:
        log, new = convert_clips(config, chosen, output)
        stamps |= {c.audio_filepath: [log.key, c.converted.stamp] for c in chosen.candidates}
        candidates += row_filters.filter_by_audio(chosen.candidates, config.dataset, rejected)
        new_clips += new
    utterances = split(config, sources, candidates, rejected)

    row_count = sum(listing.row_count for listing in listings)
    assert row_count == len(rejected) + sum(map(len, utterances.values())), "a row was lost"
    report = row_filters.merge_reports([chosen.report for chosen in chosen_rows])
    sounds = {c.audio_filepath: c.converted.sound for c in candidates}
    about = dataset_files.describe_dataset(config, name, row_count, utterances, rejected, report, sounds)
    with dataset_files.keep_rejections_on_error(output, rejected):
        splits.check_splits_not_empty(utterances, rejected)
    written = dataset_files.write_dataset(output, utterances, rejected, about)
    print(dataset_files.format_summary(about))
    print(f"{'written to' if written or new_clips else 'nothing to do, all is up to date in'} {output}")
    if config.dataset.shards:
        pack(output, utterances, stamps, about, resolve_path(config.dataset.shards))


def pack(
    output: Path, chosen: dict[str, list[Utterance]], stamps: dict[str, Any], about: dict[str, Any], folder: Path
) -> None:
    """Pack the dataset into shards in `folder` and print which of them hold which split."""
    shard_ids, written = shard_writer.pack_dataset(output, chosen, stamps, about, folder)
    print(f"{'packed into' if written else 'nothing to pack, all is up to date in'} {folder}")
    print(", ".join(f"{split} audio_{{{ids[0]}..{ids[-1]}}}.tar" for split, ids in shard_ids.items()))


def check_source_outside(source: Path, key: str, folder: Path) -> None:
    """Raise UserError when `folder`, an output named by `key`, lies in the release or would replace the table."""
    if source.resolve().is_relative_to(folder.resolve()) and dataset_files.is_written_name(source.name):
        raise UserError(
            f"{source} has the name of a file that step 1 writes into {folder}, and sources are never changed; rename "
            f"it or give another {key}=…"
        )
    root = source.parent if source.parent.name.startswith("cv-corpus") else source
    if source.is_dir() and folder.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{folder} lies in the release, which is never changed; give another {key}=…")


def find_source(path: str) -> Path:
    """Return the path of the release, relative to the project's folder or, if it is not there, to the current one."""
    source, here = resolve_path(path), Path(path.replace("\0", ""))
    return here.absolute() if not source.exists() and here.exists() else source


def list_source(config: Config, source: Source, output: Path) -> Listing:
    """Return what the table or the release of a source lists; a release that is not there is downloaded first."""
    path = find_source(source.source)
    with_splits = config.dataset.split.by is SplitBy.release and source.role is Role.split
    if recording_table.is_table(path):
        recordings = resolve_path(source.recordings) if source.recordings else None
        listing = recording_table.read_table(path, source.columns, source.channel, with_splits, recordings)
        recording_table.check_recordings_outside(listing, output / source.name)
        if source.recordings:  # other recordings of the same names may have the same sizes and times
            stamps = {path: f"{stamp} {source.recordings}" for path, stamp in listing.stamps.items()}
            return replace(listing, stamps=stamps)
        return listing
    if source.columns or source.recordings or source.channel:
        raise UserError(
            f"columns, recordings and channel describe a table ({', '.join(recording_table.SUFFIXES)}), and {path} is "
            "none; leave them out"
        )
    here = "" if Path(source.source).is_absolute() else f", nor {source.source} in the current folder"
    name = source.archive.name
    if not path.exists() and source.download and path.name == name:
        mozilla_data_collective.download_release(source.download, source.archive, path)
    elif not path.exists():
        other = f"; only {name} is downloaded: give dataset.source=…/{name}" if source.download else ""
        raise UserError(f"there is no release {path}{here}{other or '; give dataset.source=…'} ({common_voice.LAYOUT})")
    release = common_voice.open_release(path, output / source.name / "release", source.archive)
    return release_tables.list_release(release, with_splits)


def choose_rows(
    config: Config, sources: list[Source], listings: list[Listing], output: Path, rejected: list[RejectedRow]
) -> list[Chosen]:
    """Return the rows of each source that are worth converting, and what the rules for texts did."""
    dropped = row_filters.read_dropped(resolve_path(config.dataset.drop)) if config.dataset.drop else {}
    chosen = []
    for source, listing in zip(sources, listings, strict=True):
        own = list(listing.rejected)
        language = Language.of(config.text, source.rules)
        repeated = config.dataset.repeated_audio
        candidates, report = row_filters.filter_by_text(listing.rows, language, own, source.name, repeated)
        candidates = row_filters.filter_by_name(candidates, dropped, own)
        candidates = row_filters.filter_by_clip(candidates, listing.stamps, listing.where, own)
        if listing.splits is not None:
            candidates = row_filters.filter_by_release_split(candidates, listing.splits, own)
        for candidate in candidates if listing.durations_s else ():
            candidate.stated_s = listing.durations_s.get(candidate.clip.path, 0.0)
        for note in [*listing.notes, *row_filters.rejection_warnings(own, listing.row_count)]:
            print(printable(note))
        rejected += [replace(row, path=row_filters.source_path(source.name, row.path)) for row in own]
        with dataset_files.keep_rejections_on_error(output, rejected):
            row_filters.check_rows_left(candidates, own, report, config.text.alphabet, listing)
        chosen.append(Chosen(source, listing, candidates, report))
    if unknown := [name for name, is_found in dropped.items() if not is_found]:
        print(printable(f"dataset.drop names {len(unknown):,} clips that there are not, such as {unknown[0]!r}"))
    return chosen


def check_split(config: Config, chosen_rows: list[Chosen], output: Path, rejected: list[RejectedRow]) -> None:
    """Raise UserError where dataset.split cannot work, and say what it will cost, before any clip is converted."""
    shared = [chosen for chosen in chosen_rows if chosen.source.role is Role.split]
    speakers = {candidate.clip.speaker for chosen in shared for candidate in chosen.candidates}
    with dataset_files.keep_rejections_on_error(output, rejected):
        for chosen in shared:
            splits.validate_split(config.dataset.split, speakers, chosen.listing)
    utterances = (candidate.to_utterance() for chosen in shared for candidate in chosen.candidates)
    if warning := splits.foretell_losses(config.dataset.split, utterances):
        print(f"warning: {warning}")


def convert_clips(config: Config, chosen: Chosen, output: Path) -> tuple[ConversionLog, int]:
    """Convert what is not converted yet and give each candidate its result; return the log and how many were new."""
    listing, candidates, name = chosen.listing, chosen.candidates, chosen.source.name
    trim, folder = config.dataset.trim_silence_db, ensure_writable_dir(output / name)
    log = ConversionLog(folder, {"source": listing.identity, "trim_silence_db": trim}, output)
    missing = log.missing([candidate.clip for candidate in candidates], listing.stamps)
    if log.old_key and log.old_key.get("source") != listing.identity:
        raise UserError(f"{folder} holds another source; give another dataset.output=…, or delete that folder")
    if log.old_key not in (None, log.key):
        print("dataset.trim_silence_db changed: every clip is converted again")
    wanted, done, of = len(candidates), len(candidates) - len(missing), f"{name}: " if name else ""
    print(f"{of}{wanted:,} clips wanted, {done:,} converted already, {len(missing):,} to convert", flush=True)
    if missing:
        paths = {clip.path for clip in missing}
        needed = estimate_disk_bytes(c.stated_s for c in candidates if c.clip.path in paths)
        check_disk_space(output, needed, "the set of missing wavs")
        convert_all(listing, missing, log, trim, config.dataset.workers)
    for candidate in candidates:
        candidate.converted = log.done[candidate.clip.path]
    return log, len(missing)


def split(
    config: Config, sources: list[Source], candidates: list[Candidate], rejected: list[RejectedRow]
) -> dict[str, list[Utterance]]:
    """Return the utterances of each split and of each further test set, sorted by path.

    Rejected are clips whose audio another has too, and those whose sentence or speaker must be in another split.
    """
    roles = {source.name: source.role for source in sources}
    names = {source.name: f"{SPLITS[-1]}_{source.name}" for source in sources if source.role is Role.test}
    order = {name: number for number, name in enumerate(sorted(roles, key=lambda name: roles[name] is not Role.test))}
    first = sorted(candidates, key=lambda c: (order[c.source], c.audio_filepath))  # a test set keeps its clips
    candidates = drop_repeated_audio(first, config.dataset.repeated_audio, rejected)
    candidates = sorted(candidates, key=lambda candidate: candidate.audio_filepath)
    utterances = {candidate.audio_filepath: candidate.to_utterance() for candidate in candidates}
    shared = [c for c in candidates if roles[c.source] is Role.split]
    if config.dataset.split.by is SplitBy.release:
        assignment, lost = {c.audio_filepath: c.release_split for c in shared}, {}
    else:
        assignment, kept_in = splits.assign_splits(config.dataset.split, [utterances[c.audio_filepath] for c in shared])
        lost = {path: ("sentence_in_other_split", f"also read in {keeper}") for path, keeper in kept_in.items()}
    for candidate in candidates:
        if roles[candidate.source] is not Role.split:
            assignment[candidate.audio_filepath] = names.get(candidate.source, "train")
    chosen = {name: list[Utterance]() for name in (*SPLITS, *names.values())}
    for path, name in sorted(assignment.items()):
        chosen[name].append(utterances[path])
    lost |= splits.separate_sources(chosen, config.dataset.split)
    for candidate in candidates:
        if reason := lost.get(candidate.audio_filepath):
            rejected.append(RejectedRow(row_filters.source_path(candidate.source, candidate.clip.path), *reason))
    return {name: [u for u in found if u.audio_filepath not in lost] for name, found in chosen.items()}


if __name__ == "__main__":
    run_script(main)
