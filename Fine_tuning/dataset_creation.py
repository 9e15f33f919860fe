"""Step 1: a Common Voice release -> 16 kHz wavs and manifests for train, validation and test.

    python Fine_tuning/dataset_creation.py [--config FILE] [section.key=value …]

Running it again does only what is missing. The release itself is never changed.
"""

from contextlib import suppress
from pathlib import Path

from finetuning import common_voice, data_collective, dataset, selection, splits
from finetuning.common_voice import Clip, Rejected, Release
from finetuning.config import Config, SplitBy, resolve
from finetuning.config_file import from_command_line
from finetuning.conversion import Log, convert, disk_bytes
from finetuning.errors import UserError, run
from finetuning.files import make_folder, refuse_full_disk
from finetuning.manifest import SPLITS, Utterance
from finetuning.text import Language


def main() -> None:
    """From the config's release to the config's output folder."""
    config = from_command_line("Step 1: a Common Voice release -> 16 kHz wavs and train/validation/test manifests.")
    output = resolve(config.dataset.output)
    language = Language.of(config.text)
    release = open_release(config, output)
    rows, rejected, speakers_named = common_voice.read_rows(release)
    row_count = len(rows) + len(rejected)
    print(f"{release.name}: {row_count:,} rows in validated.tsv, {len(release.stamps):,} clips")
    if changed := dataset.changes(output, config, release.name):
        print(f"changed since the last run: {', '.join(changed)}; texts, filters, splits and manifests are made anew")

    release_splits = None
    if config.dataset.split.by is SplitBy.release:
        release_splits = common_voice.read_release_splits(release)
    clips, texts, report, refused = choose_rows(rows, language, release, release_splits)
    splits.refuse_impossible(config.dataset.split, {clip.speaker for clip in clips}, speakers_named)
    rejected += refused

    stated_s = stated_durations(release)
    log, new = convert_clips(config, release, clips, stated_s, output)
    utterances, refused = selection.with_sound(clips, texts, log.done, stated_s, config.dataset)
    rejected += refused
    chosen, refused = split(config, clips, utterances, release_splits)
    rejected += refused

    assert row_count == len(rejected) + sum(len(chosen[name]) for name in SPLITS), "a row was lost"
    about = dataset.describe(config, release.name, row_count, chosen, rejected, report)
    splits.refuse_empty(chosen, about["rejected_by_reason"])
    written = dataset.write(output, chosen, sorted(rejected), about)
    print(dataset.table(about))
    print(f"{'written to' if written or new else 'nothing to do, all is up to date in'} {output}")


def open_release(config: Config, output: Path) -> Release:
    """The config's release, downloaded when it is not there; UserError where it is none or `output` lies in it."""
    source, published, dataset_id = resolve(config.dataset.source), config.dataset.archive, config.dataset.download
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{output} lies in the release, which is never changed; give another dataset.output=…")
    make_folder(output)  # first of all: it can be refused
    try:
        if not source.exists() and dataset_id and source.name == published.name:
            data_collective.fetch(dataset_id, published, source)
        return common_voice.open_release(source, output / "release", published)
    except UserError as error:
        with suppress(OSError):  # it is not empty
            output.rmdir()
        if not isinstance(error, common_voice.OtherArchive):
            raise
        aside = source.replace(source.with_name(source.name + ".wrong"))
        again = "the same command downloads it again" if dataset_id else "download it again"
        raise UserError(f"{error}; it is damaged or another release, and was set aside as {aside}: {again}") from error


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
    if log.old_key not in (None, log.key):
        print("the source or dataset.trim_silence_db changed: every clip is converted again")
    print(f"{len(clips):,} clips wanted, {len(clips) - len(missing):,} converted already, {len(missing):,} to convert")
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
