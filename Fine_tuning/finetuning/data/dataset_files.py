"""The files of a dataset: manifests, rejected.jsonl, dataset.json, dataset.png. Those up to date are not rewritten."""

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetuning.audio.measurement import Measurement
from finetuning.config.schema import Config, Dataset, Repeated, Source, free_keys
from finetuning.data import dataset_figure, sound_summary, splits
from finetuning.data.listing import RejectedRow
from finetuning.data.manifest import SPLITS, Utterance, made_splits, manifest_path, read_manifest, write_manifest
from finetuning.data.row_filters import TextReport
from finetuning.errors import UserError, printable
from finetuning.files import atomic_open, create_temp_file, read_json, remove_stale_temp_files, sha256_of, write_json

SHOWN_RULES = 8  # on the screen; all are in dataset.json


def content_settings(config: Config) -> dict[str, Any]:
    """Return the part of the configuration that the manifests depend on, by dotted key."""
    tree = config.as_dict()
    tree["dataset"]["sources"] = [
        {key: value for key, value in source.items() if key not in free_keys(Source)}
        for source in tree["dataset"]["sources"]
    ]
    if tree["dataset"]["split"]["repeated"] == Repeated.drop:  # as before there was a choice
        del tree["dataset"]["split"]["repeated"]
    unset = {key for key in ("sources", "columns", "recordings", "channel") if not tree["dataset"][key]}
    hidden = free_keys(Dataset) | unset
    dataset = {f"dataset.{key}": value for key, value in tree["dataset"].items() if key not in hidden}
    text = {f"text.{key}": tree["text"][key] for key in ("alphabet", "numbers", "foreign")}
    for key in ("before_lower_case", "rules"):
        rules = [{name: value for name, value in rule.items() if name != "cases"} for rule in tree["text"][key]]
        if rules or key == "rules":  # most languages have no rules before lower case
            text[f"text.{key}"] = rules
    return {**dataset, **text}


def describe_dataset(
    config: Config,
    release: str,
    rows: int,
    chosen: dict[str, list[Utterance]],
    rejected: list[RejectedRow],
    texts: TextReport,
    sounds: Mapping[str, Measurement | None],
) -> dict[str, Any]:
    """Return the content of dataset.json; the same dataset gives the same bytes in any folder.

    `sounds` are the measurements of the clips by `audio_filepath`; those of clips outside `chosen` do not count.
    """
    return {
        "name": config.name,
        "release": release,
        "rows": rows,
        "utterances": sum(len(utterances) for utterances in chosen.values()),
        "rejected": len(rejected),
        "rejected_by_reason": dict(sorted(Counter(r.reason for r in rejected).items())),
        "splits": splits.describe_splits(chosen),
        "overlap": splits.split_overlap(chosen),
        "known_from_train": splits.seen_in_train(chosen),
        "recordings": sound_summary.describe_sounds(
            sounds.get(utterance.audio_filepath) for utterances in chosen.values() for utterance in utterances
        ),
        "alphabet": config.text.alphabet,
        **asdict(texts),
        "config": content_settings(config),
        "config_sha256": sha256_of(content_settings(config)),
    }


def changed_settings(output: Path, config: Config, release: str) -> list[str]:
    """Return the keys whose values have changed since dataset.json in `output` was written; none in a first run."""
    about = read_json(output / "dataset.json")
    old = about.get("config") if isinstance(about, dict) else None
    if not isinstance(old, dict):
        return []
    new = content_settings(config)
    changed = [key for key in {**new, **old} if new.get(key) != old.get(key)]
    return changed if about.get("release") == release else ["dataset.source", *changed]


def is_written_name(name: str) -> bool:
    """Return whether step 1 writes, or removes, files of this name in its output folder."""
    return name.endswith("_manifest.json") or name in ("dataset.json", "rejected.jsonl", "conversion.jsonl")


def check_output_folder(folder: Path) -> None:
    """Raise UserError when `folder` holds a manifest and nothing says that step 1 made it."""
    if any(folder.joinpath(name).exists() for name in ("dataset.json", "conversion.jsonl")):
        return
    if any(folder.glob("*/conversion.jsonl")) or not (found := sorted(folder.glob("*_manifest.json"))):
        return
    raise UserError(f"{found[0]} was not made by step 1, which would replace it; give another dataset.output=…")


@contextmanager
def keep_rejections_on_error(output: Path, rejected: list[RejectedRow]) -> Iterator[None]:
    """Write rejected.jsonl even when the block raises a UserError: it tells why nothing is left.

    That of a complete dataset in `output` is not overwritten.
    """
    try:
        yield
    except UserError as error:
        path = output / "rejected.jsonl"
        if not rejected or any(manifest_path(output, split).exists() for split in SPLITS):
            raise
        _write_rejected(path, _lines(rejected))
        raise UserError(f"{error}; {path} names the reason of each row") from error


def _lines(rejected: list[RejectedRow]) -> str:
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in sorted(rejected))


def _write_rejected(path: Path, lines: str) -> None:
    with atomic_open(path) as text:
        text.write(lines)


def write_dataset(
    output: Path, chosen: dict[str, list[Utterance]], rejected: list[RejectedRow], about: dict[str, Any]
) -> bool:
    """Write the files that have changed, dataset.json after those it describes; return whether there were any.

    dataset.png is removed first and drawn last when anything changes, so that it never shows another dataset.
    """
    stale = [split for split in chosen if read_manifest_or_none(manifest_path(output, split)) != chosen[split]]
    former = [manifest_path(output, name) for name in made_splits(output) - chosen.keys()]
    lines = _lines(rejected)
    path, figure = output / "rejected.jsonl", output / "dataset.png"
    rejected_stale = not path.is_file() or path.read_bytes() != lines.encode()
    about_stale = read_json(output / "dataset.json") != about
    if stale or rejected_stale or about_stale:
        figure.unlink(missing_ok=True)
    for manifest in former:
        manifest.unlink(missing_ok=True)
    replace_manifests(output, {split: chosen[split] for split in stale})
    if rejected_stale:
        _write_rejected(path, lines)
    if about_stale:
        write_json(output / "dataset.json", about)
    drawn = not figure.is_file()
    if drawn:
        dataset_figure.save_dataset_figure(about, chosen, figure)
    of_sources = [output / source["name"] for source in about["config"].get("dataset.sources", [])]
    for folder in (output, *(parent / name for parent in (output, *of_sources) for name in ("release", "wavs"))):
        if folder.is_dir():
            remove_stale_temp_files(folder)
    return drawn


def replace_manifests(output: Path, changed: dict[str, list[Utterance]]) -> None:
    """Replace manifests so that old and new ones are never side by side, also when the run is killed.

    A killed run may leave none of them, but never clips of the test set in a training manifest.
    """
    new: dict[str, Path] = {}
    try:
        for split, utterances in changed.items():
            new[split] = create_temp_file(manifest_path(output, split))
            write_manifest(new[split], utterances)
        for split in changed:
            manifest_path(output, split).unlink(missing_ok=True)
        for split in changed:
            new[split].replace(manifest_path(output, split))
    finally:
        for path in new.values():
            path.unlink(missing_ok=True)


def read_manifest_or_none(manifest: Path) -> list[Utterance] | None:
    """Return the utterances of a manifest, or None when it has to be written again."""
    try:
        return read_manifest(manifest, check_audio=False)
    except UserError:  # missing or damaged
        return None


def format_summary(about: dict[str, Any]) -> str:
    """Return a summary of dataset.json for the screen, at most 45 lines: splits, overlap, rejections and rules."""
    lines = [f"{'':22}{'hours':>10}{'share':>9}{'clips':>11}{'speakers':>11}{'sentences':>11}"]
    hours = sum(split["hours"] for split in about["splits"].values()) or 1.0
    for name, split in about["splits"].items():
        counts = f"{split['clips']:11,}{split['speakers']:11,}{split['sentences']:11,}"
        lines.append(f"{name:22}{split['hours']:10.3f}{split['hours'] / hours:9.1%}{counts}")
    lines.append("in both")
    for pair, both in about["overlap"].items():
        lines.append(f"  {pair:50}{_format_count(both['speakers']):>11}{both['sentences']:11,}")
    lines.append(f"{'clips known from train':22}{'by speaker':>19}{'by sentence':>19}{'by neither':>19}")
    for name, known in about["known_from_train"].items():
        lines.append(
            f"  {name:20}" + "".join(f"{_format_clips(known[what]):>19}" for what in ("speaker", "sentence", "neither"))
        )
    lines.append(f"rejected: {about['rejected']:,} of {about['rows']:,} rows")
    by_count = sorted(about["rejected_by_reason"].items(), key=lambda item: (-item[1], item[0]))
    lines += [f"  {reason:30}{count:11,}{count / about['rows']:10.2%}" for reason, count in by_count]
    lines += sound_summary.format_notable(about["recordings"])
    lines += _foreign_characters(about["foreign_characters"])
    rules = sorted(((rule, count) for rule, count in about["rules"].items() if count), key=lambda item: -item[1])
    lines.append("texts changed by rule" + (f", {SHOWN_RULES} of {len(rules)}" if len(rules) > SHOWN_RULES else ""))
    lines += [f"  {textwrap.shorten(rule, 58):60}{count:11,}" for rule, count in rules[:SHOWN_RULES]]
    return "\n".join(lines)


def _foreign_characters(characters: list[dict[str, Any]]) -> list[str]:
    """Return the lines about the few that cost most rows: candidates for the rules or the alphabet."""
    if not characters:
        return []
    top = characters[:5]
    more = f", {len(top)} of {len(characters)}; all in dataset.json" if len(top) < len(characters) else ""
    return [f"foreign characters{more}", *(f"  {_format_character(character)}" for character in top)]


def _format_character(about: dict[str, Any]) -> str:
    character = about["character"] if about["character"].isprintable() else " "
    sentence = textwrap.shorten(printable(about["sentence"]), 60, placeholder="…")
    return f"{character} U+{ord(about['character']):04X}{about['rows']:8,} rows  {sentence}"


def _format_count(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def _format_clips(figures: dict[str, float] | None) -> str:
    return "unknown" if figures is None else f"{figures['clips']:,} ({figures['share']:.1%})"
