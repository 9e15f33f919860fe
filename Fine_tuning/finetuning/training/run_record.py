"""What a training run was made from, complete enough to repeat it and to notice that it is not the same any more."""

import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetuning.config import schema as experiment
from finetuning.data.manifest import manifest_path
from finetuning.errors import UserError
from finetuning.files import changed_keys, read_json, sha256, write_json

RECORD = "run.json"
PACKAGES = ("nemo_toolkit", "torch", "lightning", "omegaconf", "jiwer", "numpy", "soundfile", "librosa")
# where and how fast a run goes on may change in its middle; what it learns from may not
FREE_TO_CHANGE = ("output", "name", "workers", "accelerator", "precision", "keep_best", "checkpoint_minutes", "overfit")


def process_rank(devices: int) -> int:
    """This process's number among those that train together, as torchrun, Lightning or SLURM tells it."""
    told = os.environ
    if "RANK" in told:
        return int(told["RANK"])
    if "LOCAL_RANK" in told:  # started by Lightning, maybe within a job of SLURM, whose number is then its first's
        return int(told.get("NODE_RANK", 0)) * devices + int(told["LOCAL_RANK"])
    return int(told.get("SLURM_PROCID", 0))


def read_record(output: Path) -> dict[str, Any] | None:
    """The record of the run in `output`, None where there is none; UserError where it is damaged."""
    path = output / RECORD
    try:
        found = read_json(path)
        if found is None:
            return None
        texts = (found["commit"], found.get("model", ""), *found["versions"].values())
        parts = (found["made_from"], found["config"], found["versions"], *found.get("sessions", []))
        if all(isinstance(text, str) for text in texts) and all(isinstance(part, dict) for part in parts):
            return found
        reason = "it is no record of a run"
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"it is no record of a run: {type(error).__name__} {error}"
    except ValueError as error:
        reason = str(error.__cause__ or error)
    raise UserError(
        f"{path} is damaged ({reason}), and nothing else says what the run beside it was made from; put a copy of it "
        f"back, type training.output=… for another run, or delete the whole folder {output} to start over"
    )


def start_run(output: Path, config: experiment.Config, base: Path | None, writes: bool = True) -> dict[str, Any]:
    """Write `run.json` for a run that begins, or take the one that stands there when the same run goes on.

    Of several processes that train together one `writes`. UserError when `output` holds a run made from another
    configuration, other data or another base model, or one of which no record says what it was made from.
    """
    record, exported = _record(config, base), output / f"{config.training.name}.nemo"
    learnt = next(list_checkpoints(output), exported if exported.is_file() else None)
    if learnt is None:
        if writes:
            write_json(output / RECORD, record)
        return record
    before = read_record(output)
    if before is None or (learnt == exported and "model" not in before):
        what = f"no {RECORD}" if before is None else f"a {RECORD} that does not speak of it"
        raise UserError(
            f"{output} holds {learnt.relative_to(output)} and {what}: nothing says what it was made from; type "
            f"training.output=… for another run, or delete the whole folder to start over"
        )
    changed = sorted(changed_keys(before["made_from"], record["made_from"]))
    if changed:
        raise UserError(
            f"{output} holds a run made from something else (different: {', '.join(changed)}); "
            f"type training.output=… to start another one, or delete the folder"
        )
    return before


def list_checkpoints(output: Path) -> Iterator[Path]:
    """Those of the run in `output`."""
    return (path for path in (output / "checkpoints").glob("*.ckpt") if not path.name.startswith("."))


def is_finished(output: Path, config: experiment.Config, record: dict[str, Any]) -> bool:
    """Whether the run of `record` has ended; UserError where the model that it has left was changed since."""
    exported = output / f"{config.training.name}.nemo"
    if "model" not in record or not exported.is_file():
        return False
    if record["model"] != sha256(exported):
        is_kept = any(list_checkpoints(output))
        again = f"delete it and type the same command again: {'it is made' if is_kept else 'training starts'} again"
        raise UserError(
            f"{exported} is not the model that {RECORD} beside it speaks of: it was changed, damaged or exchanged; "
            f"{again}{' from the last checkpoint' if is_kept else ''}"
        )
    return True


def add_session(output: Path, record: dict[str, Any], **circumstances: Any) -> None:
    """Add this start of the run to its record, and say when it goes on with other code than it was begun with.

    `circumstances` is where and from which step it goes on.
    """
    now = {"commit": git_commit(), "versions": library_versions()}
    if changed := sorted(changed_keys({key: record[key] for key in now}, now)):
        print(f"Going on with other code than this run was begun with ({', '.join(changed)}): run.json keeps both")
    record["sessions"] = [*record.get("sessions", []), {**now, **circumstances}]
    write_json(output / RECORD, record)


def finish_run(output: Path, record: dict[str, Any], **results: Any) -> None:
    """Add what came out of the run to its record; from then on the run counts as finished."""
    write_json(output / RECORD, {**record, **results})


def library_versions() -> dict[str, str]:
    """Of Python and of the packages that decide what a run learns."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _record(config: experiment.Config, base: Path | None) -> dict[str, Any]:
    settings = config.as_dict()
    folder = experiment.manifest_folder(config)
    training = {key: value for key, value in settings["training"].items() if key not in FREE_TO_CHANGE}
    architecture = config.model.architecture
    return {
        "experiment": config.name,
        "made_from": {
            "training": training,
            "alphabet": config.text.alphabet,
            "base": sha256(base) if base else None,
            "architecture": sha256(experiment.resolve_path(architecture)) if architecture and not base else None,
            "train_manifest": sha256(manifest_path(folder, "train")),
            "validation_manifest": sha256(manifest_path(folder, "validation")),
        },
        "config": settings,
        "commit": git_commit(),
        "versions": library_versions(),
    }


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
