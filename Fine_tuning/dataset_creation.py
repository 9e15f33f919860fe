"""Step 1: a Common Voice release -> 16 kHz wavs and manifests for train, validation and test.

    python Fine_tuning/dataset_creation.py [--config FILE] [section.key=value …]

Running it again does only what is missing. The release itself is never changed. With dataset.shards=FOLDER the wavs are
also packed into a few large tars.
"""

import finetuning.start  # noqa: F401  first: it says what ends a script while the rest is imported

# isort: split
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from finetuning import common_voice, data_collective, dataset, packing, selection, splits
from finetuning.common_voice import Clip, Rejected, Release
from finetuning.config import Config, SplitBy, resolve
from finetuning.config_file import from_command_line
from finetuning.conversion import Log, convert, disk_bytes
from finetuning.errors import UserError, printable, run
from finetuning.files import alone, make_folder, refuse_full_disk
from finetuning.manifest import SPLITS, Utterance
from finetuning.text import Language


def main() -> None:
    """From the config's release to the config's output folder."""
    config = from_command_line("Step 1: a Common Voice release -> 16 kHz wavs and train/validation/test manifests.")
    output = resolve(config.dataset.output)
    language = Language.of(config.text)
    folders = {"dataset.output": output}
    if config.dataset.shards:
        folders["dataset.shards"] = resolve(config.dataset.shards)
    source = find_source(config.dataset.source)
    for key, folder in folders.items():
        refuse_inside_release(source, key, folder)
    new = [folder for folder in folders.values() if not folder.exists()]
    try:
        with ExitStack() as held:
            for folder in folders.values():
                held.enter_context(alone(make_folder(folder)))
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
        packing.refuse_taken(resolve(config.dataset.shards), release.name)
    rows, rejected, speakers_named = common_voice.read_rows(release)
    row_count = len(rows) + len(rejected)
    print(f"{release.name}: {row_count:,} rows in validated.tsv, {len(release.stamps):,} clips")
    if changed := dataset.changes(output, config, release.name):
        print(f"changed since the last run: {', '.join(changed)}; texts, filters, splits and manifests are made anew")

    release_splits = None
    if config.dataset.split.by is SplitBy.release:
        release_splits = common_voice.read_release_splits(release)
    clips, texts, report, refused = choose_rows(rows, language, release, release_splits)
    rejected += refused
    report_oddities(release, rejected, row_count)
    with dataset.rejections_kept(output, rejected):
        selection.refuse_nothing(clips, rejected, report, config.text.alphabet, set(release.stamps))
        splits.refuse_impossible(config.dataset.split, {clip.speaker for clip in clips}, speakers_named)

    stated_s = stated_durations(release)
    log, new = convert_clips(config, release, clips, stated_s, output)
    utterances, refused = selection.with_sound(clips, texts, log.done, stated_s, config.dataset)
    rejected += refused
    chosen, refused = split(config, clips, utterances, release_splits)
    rejected += refused

    assert row_count == len(rejected) + sum(len(chosen[name]) for name in SPLITS), "a row was lost"
    about = dataset.describe(config, release.name, row_count, chosen, rejected, report)
    with dataset.rejections_kept(output, rejected):
        splits.refuse_empty(chosen, rejected)
    written = dataset.write(output, chosen, rejected, about)
    print(dataset.table(about))
    print(f"{'written to' if written or new else 'nothing to do, all is up to date in'} {output}")
    if config.dataset.shards:
        stamps = {f"wavs/{clip.wav}": [log.key, log.done[clip.path].stamp] for clip in clips}
        pack(output, chosen, stamps, about, resolve(config.dataset.shards))


def pack(
    output: Path, chosen: dict[str, list[Utterance]], stamps: dict[str, Any], about: dict[str, Any], folder: Path
) -> None:
    """The same dataset in shards of dataset.shards, and which of them hold which split."""
    numbers, written = packing.pack(output, chosen, stamps, about, folder)
    print(f"{'packed into' if written else 'nothing to pack, all is up to date in'} {folder}")
    print(", ".join(f"{split} audio_{{{own[0]}..{own[-1]}}}.tar" for split, own in numbers.items()))


def refuse_inside_release(source: Path, key: str, folder: Path) -> None:
    """UserError where the `folder` that `key` names, to be written to, lies in the release."""
    root = source.parent if source.parent.name.startswith("cv-corpus") else source
    if source.is_dir() and folder.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{folder} lies in the release, which is never changed; give another {key}=…")


def find_source(path: str) -> Path:
    """The release, which may be named from the project's folder or, where there is none, from the current one."""
    source, here = resolve(path), Path(path.replace("\0", ""))
    return here.absolute() if not source.exists() and here.exists() else source


def report_oddities(release: Release, rejected: list[Rejected], rows: int) -> None:
    """Say what was taken for something else, and what share of the rows is lost already, before hours are spent."""
    if release.taken_for:
        path, name = min(release.taken_for.items())
        example = f"{printable(path)!r} is taken for {printable(name)!r}"
        print(f"the tables name {len(release.taken_for):,} clips otherwise than clips/ does: {example}")
    for warning in selection.warnings(rejected, rows):
        print(printable(warning))


def open_release(config: Config, source: Path, output: Path) -> Release:
    """The config's release, downloaded when it is not there."""
    published, dataset_id = config.dataset.archive, config.dataset.download
    here = "" if Path(config.dataset.source).is_absolute() else f", nor {config.dataset.source} in the current folder"
    if not source.exists() and dataset_id and source.name == published.name:
        data_collective.fetch(dataset_id, published, source)
    elif not source.exists():
        other = f"; only {published.name} is downloaded: give dataset.source=…/{published.name}" if dataset_id else ""
        raise UserError(
            f"there is no release {source}{here}{other or '; give dataset.source=…'} ({common_voice.LAYOUT})"
        )
    return common_voice.open_release(source, output / "release", published)


def choose_rows(
    rows: list[Clip], language: Language, release: Release, release_splits: dict[str, list[str]] | None
) -> tuple[list[Clip], dict[Clip, str], selection.TextReport, list[Rejected]]:
    """The rows worth converting, the texts, what the rules did, and the rows that are not."""
    texts, rejected, report = selection.with_text(rows, language)
    clips, missing = selection.with_clip(list(texts), release.stamps)
    rejected += missing
    if release_splits is not None:
        clips, nowhere = selection.in_one_split(clips, release_splits)
        rejected += nowhere
    return clips, texts, report, rejected


def convert_clips(
    config: Config, release: Release, clips: list[Clip], stated_s: dict[str, float], output: Path
) -> tuple[Log, int]:
    """The log with a result for each clip, and how many of them were converted now."""
    trim = config.dataset.trim_silence_db
    log = Log(output, {"source": release.identity, "trim_silence_db": trim})
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
        needed = disk_bytes(stated_s.get(clip.path, 0.0) for clip in missing)
        refuse_full_disk(output, needed, "the set of missing wavs")
        convert(release, missing, log, trim, config.dataset.workers)
    return log, len(missing)


def stated_durations(release: Release) -> dict[str, float]:
    """Seconds by clip as the release states them; empty when it does not."""
    stated = common_voice.read_durations(release)
    if stated is None:
        print("the release has no clip_durations.tsv: truncated clips cannot be told from short ones")
    return stated or {}


def split(
    config: Config, clips: list[Clip], utterances: list[Utterance], release_splits: dict[str, list[str]] | None
) -> tuple[dict[str, list[Utterance]], list[Rejected]]:
    """Utterances by split, sorted by path, and those left out because another split has their sentence."""
    path_of = {f"wavs/{clip.wav}": clip.path for clip in clips}
    if release_splits is None:
        kept, lost = splits.assign(config.dataset.split, utterances)
    else:
        kept, lost = {u.audio_filepath: release_splits[path_of[u.audio_filepath]][0] for u in utterances}, {}
    ordered = sorted(utterances, key=lambda u: u.audio_filepath)
    chosen = {name: [u for u in ordered if kept.get(u.audio_filepath) == name] for name in SPLITS}
    reason = "sentence_in_other_split"
    return chosen, [Rejected(path_of[wav], reason, f"also read in {keeper}") for wav, keeper in lost.items()]


if __name__ == "__main__":
    run(main)
