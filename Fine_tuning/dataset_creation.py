"""Step 1: a Common Voice release -> 16 kHz wavs and manifests for train, validation and test.

    python Fine_tuning/dataset_creation.py [--config FILE] [section.key=value …]

Running it again does only what is missing. The release itself is never changed. With dataset.shards=FOLDER the wavs are
also packed into a few large tars.
"""

import finetuning.startup  # noqa: F401  first: it says what ends a script while the rest is imported

# isort: split
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from finetuning.config.loading import from_command_line
from finetuning.config.schema import Config, SplitBy, resolve_path
from finetuning.data import common_voice, dataset_files, mozilla_data_collective, row_filters, shard_writer, splits
from finetuning.data.common_voice import Clip, RejectedRow, Release
from finetuning.data.conversion_pool import ConversionLog, convert_all, estimate_disk_bytes
from finetuning.data.manifest import SPLITS, Utterance
from finetuning.data.text_normalization import Language
from finetuning.errors import UserError, printable, run_script
from finetuning.files import check_disk_space, ensure_writable_dir, exclusive_lock


def main() -> None:
    """From the config's release to the config's output folder."""
    config = from_command_line("Step 1: a Common Voice release -> 16 kHz wavs and train/validation/test manifests.")
    output = resolve_path(config.dataset.output)
    language = Language.of(config.text)
    folders = {"dataset.output": output}
    if config.dataset.shards:
        folders["dataset.shards"] = resolve_path(config.dataset.shards)
    source = find_source(config.dataset.source)
    for key, folder in folders.items():
        check_outside_release(source, key, folder)
    new = [folder for folder in folders.values() if not folder.exists()]
    try:
        with ExitStack() as held:
            for folder in folders.values():
                held.enter_context(exclusive_lock(ensure_writable_dir(folder)))
            create(config, language, source, output)
    except UserError:
        for folder in reversed(new):
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


def create(config: Config, language: Language, source: Path, output: Path) -> None:
    """All of it, while no other run writes to `output` or to dataset.shards."""
    release = open_release(config, source, output)
    if config.dataset.shards:
        shard_writer.check_shard_folder(resolve_path(config.dataset.shards), release.name)
    rows, rejected, speakers_named = common_voice.read_rows(release)
    row_count = len(rows) + len(rejected)
    print(f"{release.name}: {row_count:,} rows in validated.tsv, {len(release.stamps):,} clips")
    if changed := dataset_files.changed_settings(output, config, release.name):
        print(f"changed since the last run: {', '.join(changed)}; texts, filters, splits and manifests are made anew")

    release_splits = None
    if config.dataset.split.by is SplitBy.release:
        release_splits = common_voice.read_release_splits(release)
    clips, texts, report, refused = choose_rows(rows, language, release, release_splits)
    rejected += refused
    report_oddities(release, rejected, row_count)
    with dataset_files.keep_rejections_on_error(output, rejected):
        row_filters.check_rows_left(clips, rejected, report, config.text.alphabet, set(release.stamps))
        splits.validate_split(config.dataset.split, {clip.speaker for clip in clips}, speakers_named)

    stated_s = stated_durations(release)
    log, new = convert_clips(config, release, clips, stated_s, output)
    utterances, refused = row_filters.filter_by_audio(clips, texts, log.done, stated_s, config.dataset)
    rejected += refused
    chosen, refused = split(config, clips, utterances, release_splits)
    rejected += refused

    assert row_count == len(rejected) + sum(len(chosen[name]) for name in SPLITS), "a row was lost"
    about = dataset_files.describe_dataset(config, release.name, row_count, chosen, rejected, report)
    with dataset_files.keep_rejections_on_error(output, rejected):
        splits.check_splits_not_empty(chosen, rejected)
    written = dataset_files.write_dataset(output, chosen, rejected, about)
    print(dataset_files.format_summary(about))
    print(f"{'written to' if written or new else 'nothing to do, all is up to date in'} {output}")
    if config.dataset.shards:
        stamps = {f"wavs/{clip.wav}": [log.key, log.done[clip.path].stamp] for clip in clips}
        pack(output, chosen, stamps, about, resolve_path(config.dataset.shards))


def pack(
    output: Path, chosen: dict[str, list[Utterance]], stamps: dict[str, Any], about: dict[str, Any], folder: Path
) -> None:
    """The same dataset in shards of dataset.shards, and which of them hold which split."""
    numbers, written = shard_writer.pack_dataset(output, chosen, stamps, about, folder)
    print(f"{'packed into' if written else 'nothing to pack, all is up to date in'} {folder}")
    print(", ".join(f"{split} audio_{{{own[0]}..{own[-1]}}}.tar" for split, own in numbers.items()))


def check_outside_release(source: Path, key: str, folder: Path) -> None:
    """UserError where the `folder` that `key` names, to be written to, lies in the release."""
    root = source.parent if source.parent.name.startswith("cv-corpus") else source
    if source.is_dir() and folder.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{folder} lies in the release, which is never changed; give another {key}=…")


def find_source(path: str) -> Path:
    """The release, which may be named from the project's folder or, where there is none, from the current one."""
    source, here = resolve_path(path), Path(path.replace("\0", ""))
    return here.absolute() if not source.exists() and here.exists() else source


def report_oddities(release: Release, rejected: list[RejectedRow], rows: int) -> None:
    """Say what was taken for something else, and what share of the rows is lost already, before hours are spent."""
    if release.taken_for:
        path, name = min(release.taken_for.items())
        example = f"{printable(path)!r} is taken for {printable(name)!r}"
        print(f"the tables name {len(release.taken_for):,} clips otherwise than clips/ does: {example}")
    for warning in row_filters.rejection_warnings(rejected, rows):
        print(printable(warning))


def open_release(config: Config, source: Path, output: Path) -> Release:
    """The config's release, downloaded when it is not there."""
    published, dataset_id = config.dataset.archive, config.dataset.download
    here = "" if Path(config.dataset.source).is_absolute() else f", nor {config.dataset.source} in the current folder"
    if not source.exists() and dataset_id and source.name == published.name:
        mozilla_data_collective.download_release(dataset_id, published, source)
    elif not source.exists():
        other = f"; only {published.name} is downloaded: give dataset.source=…/{published.name}" if dataset_id else ""
        raise UserError(
            f"there is no release {source}{here}{other or '; give dataset.source=…'} ({common_voice.LAYOUT})"
        )
    return common_voice.open_release(source, output / "release", published)


def choose_rows(
    rows: list[Clip], language: Language, release: Release, release_splits: dict[str, list[str]] | None
) -> tuple[list[Clip], dict[Clip, str], row_filters.TextReport, list[RejectedRow]]:
    """The rows worth converting, the texts, what the rules did, and the rows that are not."""
    texts, rejected, report = row_filters.filter_by_text(rows, language)
    clips, missing = row_filters.filter_by_clip(list(texts), release.stamps)
    rejected += missing
    if release_splits is not None:
        clips, nowhere = row_filters.filter_by_release_split(clips, release_splits)
        rejected += nowhere
    return clips, texts, report, rejected


def convert_clips(
    config: Config, release: Release, clips: list[Clip], stated_s: dict[str, float], output: Path
) -> tuple[ConversionLog, int]:
    """The log with a result for each clip, and how many of them were converted now."""
    trim = config.dataset.trim_silence_db
    log = ConversionLog(output, {"source": release.identity, "trim_silence_db": trim})
    missing = log.missing(clips, release.stamps)
    if log.old_key and log.old_key.get("source") != release.identity:
        raise UserError(f"{output} holds another release; give another dataset.output=…, or delete that folder")
    if log.old_key not in (None, log.key):
        print("dataset.trim_silence_db changed: every clip is converted again")
    print(
        f"{len(clips):,} clips wanted, {len(clips) - len(missing):,} converted already, {len(missing):,} to convert",
        flush=True,
    )
    if missing:
        needed = estimate_disk_bytes(stated_s.get(clip.path, 0.0) for clip in missing)
        check_disk_space(output, needed, "the set of missing wavs")
        convert_all(release, missing, log, trim, config.dataset.workers)
    return log, len(missing)


def stated_durations(release: Release) -> dict[str, float]:
    """Seconds by clip as the release states them; empty when it does not."""
    stated = common_voice.read_durations(release)
    if stated is None:
        print("the release has no clip_durations.tsv: truncated clips cannot be told from short ones")
    return stated or {}


def split(
    config: Config, clips: list[Clip], utterances: list[Utterance], release_splits: dict[str, list[str]] | None
) -> tuple[dict[str, list[Utterance]], list[RejectedRow]]:
    """Utterances by split, sorted by path, and those left out because another split has their sentence."""
    path_of = {f"wavs/{clip.wav}": clip.path for clip in clips}
    if release_splits is None:
        kept, lost = splits.assign_splits(config.dataset.split, utterances)
    else:
        kept, lost = {u.audio_filepath: release_splits[path_of[u.audio_filepath]][0] for u in utterances}, {}
    ordered = sorted(utterances, key=lambda u: u.audio_filepath)
    chosen = {name: [u for u in ordered if kept.get(u.audio_filepath) == name] for name in SPLITS}
    reason = "sentence_in_other_split"
    return chosen, [RejectedRow(path_of[wav], reason, f"also read in {keeper}") for wav, keeper in lost.items()]


if __name__ == "__main__":
    run_script(main)
