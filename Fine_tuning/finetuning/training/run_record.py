"""The record of a training run: what it was made from, complete enough to repeat it and to notice a change."""

import hashlib
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
from finetuning.model.vocabulary import Vocabulary
from finetuning.training.augmentation_files import files_digest

RECORD = "run.json"
RUN_IDS = "logger.json"  # by service: what it calls the run, so that a session that resumes adds to the same one
PACKAGES = ("nemo_toolkit", "torch", "lightning", "omegaconf", "jiwer", "numpy", "soundfile", "librosa")
FORMER_KEY = "training.strategy"  # of earlier versions: how processes exchange gradients, not what a run learns


def process_rank(devices: int) -> int:
    """Return the rank of this process among those that train together, as torchrun, Lightning or SLURM sets it."""
    environment = os.environ
    if "RANK" in environment:
        return int(environment["RANK"])
    if "LOCAL_RANK" in environment:  # started by Lightning, maybe within a SLURM job, whose SLURM_PROCID it inherits
        return int(environment.get("NODE_RANK", 0)) * devices + int(environment["LOCAL_RANK"])
    return int(environment.get("SLURM_PROCID", 0))


def read_record(output: Path) -> dict[str, Any] | None:
    """Return the record of the run in `output`, or None where there is none; raise UserError where it is damaged."""
    path = output / RECORD
    try:
        record = read_json(path)
        if record is None and not path.is_file():  # it may hold "null"
            return None
        texts = (record["commit"], record.get("model", ""), *record["versions"].values())
        sections = (record["made_from"], record["config"], record["versions"], *record.get("sessions", []))
        if all(isinstance(text, str) for text in texts) and all(isinstance(section, dict) for section in sections):
            return record
        reason = "it is not the record of a run"
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"it is not the record of a run: {type(error).__name__} {error}"
    except ValueError as error:
        reason = str(error.__cause__ or error)
    raise UserError(
        f"{path} is damaged ({reason}), and nothing else says what the run beside it was made from; restore it from "
        f"a copy, type training.output=… for another run, or delete the whole folder {output} to start over"
    )


def start_run(
    output: Path, config: experiment.Config, base: Path | None, is_main_process: bool = True
) -> dict[str, Any]:
    """Write `run.json` for a new run, in the main process, or return the existing record when the same run resumes.

    Raise UserError when `output` holds a run made from another configuration, other data or another base model, or a
    run without a record.
    """
    record, exported = _new_record(config, base), output / f"{config.training.name}.nemo"
    weights = next(list_checkpoints(output), exported if exported.is_file() else None)
    if weights is None:
        if is_main_process:
            write_json(output / RECORD, record)
            (output / RUN_IDS).unlink(missing_ok=True)  # of a run that came to nothing
        return record
    existing = read_record(output)
    if existing is None or (weights == exported and "model" not in existing):
        what = f"no {RECORD}" if existing is None else f"a {RECORD} that does not mention it"
        raise UserError(
            f"{output} holds {weights.relative_to(output)} and {what}: nothing says what it was made from; type "
            f"training.output=… for another run, or delete the whole folder to start over"
        )
    changed = sorted(set(changed_keys(existing["made_from"], record["made_from"])) - {FORMER_KEY})
    if changed:
        raise UserError(
            f"{output} holds a run made from something else (different: {', '.join(changed)}); "
            f"type training.output=… to start another one, or delete the folder"
        )
    return existing


def check_tokenizer(output: Path, record: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Add the hash of the tokenizer to the record; raise UserError where it is not the one the run was started with."""
    if not vocabulary.sentencepiece:
        return
    digest = hashlib.sha256(vocabulary.sentencepiece).hexdigest()
    if record.setdefault("tokenizer", digest) != digest:
        raise UserError(
            f"the tokenizer in {output} is not the one this run was started with; restore it, type training.output=… "
            "for another run, or delete the folder"
        )


def list_checkpoints(output: Path) -> Iterator[Path]:
    """Yield the checkpoints of the run in `output`."""
    return (path for path in (output / "checkpoints").glob("*.ckpt") if not path.name.startswith("."))


def is_finished(output: Path, config: experiment.Config, record: dict[str, Any]) -> bool:
    """Tell whether the run of `record` is finished; raise UserError where its exported model was changed since."""
    exported = output / f"{config.training.name}.nemo"
    if "model" not in record or not exported.is_file():
        return False
    if record["model"] != sha256(exported):
        resumes = any(list_checkpoints(output))
        result = "it is exported again from the last checkpoint" if resumes else "training starts over"
        raise UserError(
            f"{exported} is not the model that {RECORD} beside it describes: it was changed, damaged or replaced; "
            f"delete it and rerun the same command ({result})"
        )
    return True


def add_session(output: Path, record: dict[str, Any], **session: Any) -> None:
    """Add a session of the run to its record: where it starts, what it runs on, and the code, which may be newer."""
    code = {"commit": git_commit(), "versions": library_versions()}
    if changed := sorted(changed_keys({key: record[key] for key in code}, code)):
        print(f"Resuming with other code than this run was started with ({', '.join(changed)}): run.json keeps both")
    record["sessions"] = [*record.get("sessions", []), {**code, **session}]
    write_json(output / RECORD, record)


def finish_run(output: Path, record: dict[str, Any], **results: Any) -> None:
    """Add the results of the run to its record, which marks it as finished."""
    write_json(output / RECORD, {**record, **results})


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what a run learns."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _new_record(config: experiment.Config, base: Path | None) -> dict[str, Any]:
    settings = config.as_dict()
    folder = experiment.manifest_folder(config)
    free = experiment.free_keys(experiment.Training)
    architecture, vocabulary, size = config.model.architecture, config.model.vocabulary, config.model.vocabulary_size
    is_characters = vocabulary is experiment.VocabularyKind.characters
    weights = {source.name: source.weight for source in config.dataset.sources if source.weight != 1}
    pieces = {} if is_characters else {"vocabulary": f"{vocabulary.value}, at most {size}"}
    return {
        "experiment": config.name,
        "made_from": {
            "training": {key: value for key, value in settings["training"].items() if key not in free},
            "alphabet": config.text.alphabet,
            **pieces,
            **({"weights": weights} if weights else {}),
            **({"augmentation": digest} if (digest := files_digest(config.training)) else {}),
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
    """Return the commit of the code, with `-dirty` when files differ from it; "unknown" outside a git checkout."""
    try:
        process = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=experiment.ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return process.stdout.strip()
