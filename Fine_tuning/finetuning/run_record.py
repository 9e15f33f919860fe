"""What a training run was made from, complete enough to repeat it and to notice that it is not the same any more."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetuning import config as experiment
from finetuning.errors import UserError
from finetuning.files import read_json, sha256, write_json
from finetuning.manifest import manifest_path

PACKAGES = ("nemo_toolkit", "torch", "lightning", "omegaconf", "jiwer", "numpy", "soundfile", "librosa")
# where and how fast a run goes on may change in its middle; what it learns from may not
FREE_TO_CHANGE = ("output", "name", "workers", "accelerator", "precision", "keep_best", "checkpoint_minutes", "overfit")


def rank(devices: int) -> int:
    """This process's number among those that train together, as torchrun, Lightning or SLURM tells it."""
    told = os.environ
    if "RANK" in told:
        return int(told["RANK"])
    if "LOCAL_RANK" in told:  # started by Lightning, maybe within a job of SLURM, whose number is then its first's
        return int(told.get("NODE_RANK", 0)) * devices + int(told["LOCAL_RANK"])
    return int(told.get("SLURM_PROCID", 0))


def start(output: Path, config: experiment.Config, base: Path | None, writes: bool = True) -> dict[str, Any]:
    """Write `run.json` for a run that begins, or take the one that stands there when the same run goes on.

    Of several processes that train together one `writes`. UserError when `output` holds a run made from another
    configuration, other data or another base model.
    """
    record = _record(config, base)
    before = read_json(output / "run.json")
    if before is None or not (output / "checkpoints").is_dir():  # nothing learnt yet
        if writes:
            write_json(output / "run.json", record)
        return record
    changed = sorted(_changed(before.get("made_from", {}), record["made_from"]))
    if changed:
        raise UserError(
            f"{output} holds a run made from something else (different: {', '.join(changed)}); "
            f"type training.output=… to start another one, or delete the folder"
        )
    return before


def add_session(output: Path, record: dict[str, Any], **circumstances: Any) -> None:
    """Add this start of the run to its record, and say when it goes on with other code than it was begun with.

    `circumstances` is where and from which step it goes on.
    """
    now = {"commit": git_commit(), "versions": versions()}
    if changed := sorted(_changed({key: record[key] for key in now}, now)):
        print(f"Going on with other code than this run was begun with ({', '.join(changed)}): run.json keeps both")
    record["sessions"] = [*record.get("sessions", []), {**now, **circumstances}]
    write_json(output / "run.json", record)


def finish(output: Path, record: dict[str, Any], **results: Any) -> None:
    """Add what came out of the run to its record; from then on the run counts as finished."""
    write_json(output / "run.json", {**record, **results})


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what a run learns."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _record(config: experiment.Config, base: Path | None) -> dict[str, Any]:
    settings = config.as_dict()
    folder = experiment.data_folder(config)
    training = {key: value for key, value in settings["training"].items() if key not in FREE_TO_CHANGE}
    architecture = config.model.architecture
    return {
        "experiment": config.name,
        "made_from": {
            "training": training,
            "alphabet": config.text.alphabet,
            "base": sha256(base) if base else None,
            "architecture": sha256(experiment.resolve(architecture)) if architecture and not base else None,
            "train_manifest": sha256(manifest_path(folder, "train")),
            "validation_manifest": sha256(manifest_path(folder, "validation")),
        },
        "config": settings,
        "commit": git_commit(),
        "versions": versions(),
    }


def _changed(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    changed = []
    for key in now.keys() | before.keys():
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += _changed(old, new, f"{prefix}{key}.")
        elif old != new:
            changed.append(prefix + key)
    return changed


def git_commit() -> str:
    """The commit the code stands at, with `-dirty` when files differ from it; "unknown" outside a git checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=experiment.ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()
