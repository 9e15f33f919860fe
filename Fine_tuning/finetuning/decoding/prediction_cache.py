"""Whether the predictions in a folder can be used again: made from the same inputs, and as they were written."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from finetuning.data.manifest import Utterance, shard_path
from finetuning.decoding.partial_predictions import utterance_key
from finetuning.decoding.predictions import (
    DECODER,
    INPUTS,
    LOG_PROBS,
    LOG_PROBS_INDEX,
    PREDICTIONS,
    VOCABULARY,
    WRITTEN,
    ModelOutput,
    is_as_written,
    partial_path,
    read_inputs,
    read_predictions,
    read_timing,
    read_vocabulary,
)
from finetuning.files import changed_keys, ensure_writable_dir, remove_stale_temp_files, sha256_of, write_json


def load_cached(
    folder: Path, inputs: dict[str, Any], utterances: Sequence[Utterance], with_log_probs: bool = False
) -> tuple[ModelOutput | None, str]:
    """Return the complete output for `utterances` made from `inputs`, or None and why what is there cannot be used.

    The reason is empty where no run has ended. `with_log_probs`: the log-probabilities are needed too. All files are
    compared with what was written, the log-probabilities by their size alone: `read_log_probs` compares the rest.
    """
    before = read_inputs(folder)
    written = before.pop(WRITTEN, None)
    if changed := sorted(changed_keys(before, inputs)):
        return None, f"different now: {', '.join(changed)}" if before else ""
    if written is None:
        return None, ""
    if not isinstance(written, dict):
        return None, f"{INPUTS} is damaged"
    if with_log_probs and LOG_PROBS not in written:
        return None, "their log-probabilities were not saved"
    needed = (
        {PREDICTIONS, VOCABULARY}
        | (written.keys() & {DECODER})
        | ({LOG_PROBS, LOG_PROBS_INDEX} if with_log_probs else set())
    )
    for name in sorted(needed):
        if not is_as_written(folder / name, written):
            return None, f"{name} is not what was written there"
    predictions = read_predictions(folder)
    if predictions is None or list(map(utterance_key, predictions)) != list(map(utterance_key, utterances)):
        return None, f"{PREDICTIONS} is of other utterances"
    return ModelOutput(predictions, read_vocabulary(folder), read_timing(folder)), ""


def prepare_folder(folder: Path, inputs: dict[str, Any]) -> None:
    """Make `folder` ready for predictions made from `inputs`.

    Those of an interrupted run from the same inputs stay, all others are removed.
    """
    remove_stale_temp_files(ensure_writable_dir(folder))
    if read_inputs(folder) != inputs:
        discard_predictions(folder)
        write_json(folder / INPUTS, inputs)


def discard_predictions(folder: Path) -> None:
    """Remove the predictions in `folder`, complete or partial, and their log-probabilities."""
    for name in (INPUTS, PREDICTIONS, partial_path(folder).name, LOG_PROBS, LOG_PROBS_INDEX):
        (folder / name).unlink(missing_ok=True)
    for share in folder.glob("share-*"):
        shutil.rmtree(share)


def audio_state(utterances: Iterable[Utterance], folder: Path) -> str:
    """Return a SHA-256 of name, size and modification time of all wavs, or of the shards they lie in.

    `folder` is that of their manifest. No audio is read: a test set may have tens of thousands of wavs.
    """
    names = {u.audio_filepath if u.shard_id is None else shard_path(folder, u.shard_id).name for u in utterances}
    states = [(name, (folder / name).stat()) for name in names]
    return sha256_of(sorted([name, state.st_size, state.st_mtime_ns] for name, state in states))
