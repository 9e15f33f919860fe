"""One pass of a model over a manifest, by one process or by several that share it; saved utterance by utterance."""

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from nemo.collections.asr.models import EncDecCTCModel
from tqdm import tqdm

from finetuning import distributed
from finetuning.data.manifest import Utterance
from finetuning.decoding import predictions
from finetuning.decoding.inference import describe_device, iter_predictions, plan_batches, prepare_for_inference
from finetuning.decoding.openvino_runtime import load_network
from finetuning.decoding.partial_predictions import merge_shares, open_partial, share_folder
from finetuning.decoding.predictions import ModelOutput
from finetuning.errors import UserError, describe_failure
from finetuning.files import ensure_writable_dir, sha256, write_json
from finetuning.model.ctc_model import get_vocabulary, restore_model

if TYPE_CHECKING:
    import openvino

    Loaded = tuple[EncDecCTCModel, "openvino.CompiledModel | None"]


@dataclass(frozen=True)
class Pass:
    """A pass over a manifest: what each process needs for its share."""

    model: Path
    sha256: str  # of the model's file
    with_network: bool  # run by OpenVINO
    utterances: list[Utterance]
    folder: Path  # of the manifest
    work: Path
    batch_size: int
    vocab_size: int  # vocabulary and blank where log-probabilities are saved, else 0
    done: frozenset[int]  # numbers of the utterances that are finished already


def run_inference(
    name: str,
    model: EncDecCTCModel,
    path: Path,
    utterances: list[Utterance],
    folder: Path,
    work: Path,
    batch_size: int,
    save_log_probs: bool = False,
) -> ModelOutput:
    """Return the greedy predictions of one pass over the utterances, or of what is left of it, and save them in `work`.

    `path`: the file of `model`; `folder`: of the utterances' manifest. The progress bar is in seconds of audio. Where
    there are several processes, this is rank 0, and each of the others runs its share in `serve`. inference.json states
    seconds, seconds of audio, device and threads: a resumed pass adds its own, while a pass that was killed is in
    neither of the sums.
    """
    vocabulary = get_vocabulary(model)
    write_json(work / predictions.VOCABULARY, vocabulary.as_json())
    vocab_size = len(vocabulary) + 1 if save_log_probs else 0
    done = merge_shares(work, utterances, vocab_size)
    if done:
        print(f"{name}: resumes after {len(done):,} of {len(utterances):,} utterances")
    else:
        for stale in (predictions.TIMING, predictions.LOG_PROBS, predictions.LOG_PROBS_INDEX):
            (work / stale).unlink(missing_ok=True)
    network = load_network(prepare_for_inference(model), path)  # its export is made once, before the others need it
    about = (utterances, folder, work, batch_size, vocab_size, frozenset(done))
    _run_in_all(distributed.broadcast(Pass(path, sha256(path), network is not None, *about)), (model, network), name)
    done = merge_shares(work, utterances, vocab_size)
    if len(done) < len(utterances):
        raise UserError(
            f"{work} lacks {len(utterances) - len(done):,} utterances of other processes: it must lie on storage that "
            "all of them share; name another evaluation.predictions and rerun"
        )
    if save_log_probs:
        done = predictions.sort_log_probs(work, done, [n for (n,) in plan_batches(utterances, 1)], vocab_size)
    in_order, spans = zip(*(done[number] for number in range(len(utterances))), strict=True)
    predictions.finish_predictions(work, in_order, spans if save_log_probs else None, vocab_size)
    return ModelOutput(list(in_order), vocabulary, predictions.read_timing(work))


def serve() -> None:
    """Run this process's share of each pass that rank 0 begins, until rank 0 ends."""
    for job in distributed.jobs():
        _run_in_all(job)


def _run_in_all(job: Pass, loaded: "Loaded | None" = None, name: str = "") -> None:
    """Run the share of this process and wait for the others; raise, in rank 0, what has failed in one of them."""
    seconds = audio_seconds = 0.0
    failure = None
    try:
        model, network = loaded or _load(job.model, job.sha256, job.with_network)
        seconds, audio_seconds = _run_share(job, model, network, name)
    except Exception as error:  # which the others wait for
        failure = error
    shares = distributed.gather((describe_failure(failure) if failure else "", audio_seconds))
    if distributed.rank() > 0:
        return
    if failure:
        raise failure
    for rank, (reason, _) in enumerate(shares):
        if reason:
            raise UserError(f"process {rank}: {reason}")
    if len(shares) > 1:
        _add_timing(job.work, seconds, sum(share_s for _, share_s in shares), model, network)


@lru_cache(maxsize=1)
def _load(path: Path, digest: str, with_network: bool) -> "Loaded":
    """Return what rank 0 has loaded, which is the same file."""
    model = prepare_for_inference(restore_model(path))
    network = load_network(model, path) if with_network else None
    if sha256(path) != digest or (network is not None) != with_network:
        raise UserError(f"{path} is not what the first process has read; rerun the same command")
    return model, network


def _run_share(
    job: Pass, model: EncDecCTCModel, network: "openvino.CompiledModel | None", name: str
) -> tuple[float, float]:
    """Save the predictions of this process's batches; return the seconds this took, and how many of audio they are."""
    rank, size = distributed.rank(), distributed.size()
    work = ensure_writable_dir(share_folder(job.work, rank))
    seconds = audio_seconds = 0.0
    bar = tqdm(
        desc=name, total=round(sum(u.duration for u in job.utterances)), unit="s", unit_scale=True, disable=rank > 0
    )
    with open_partial(work, job.vocab_size) as partial, bar:
        bar.update(sum(job.utterances[number].duration for number in job.done))
        batches = (job.utterances, job.folder, job.batch_size, job.done, (rank, size))
        try:
            start = time.perf_counter()
            for number, prediction, log_probs in iter_predictions(model, network, *batches):
                seconds += time.perf_counter() - start
                audio_seconds += prediction.duration
                if number not in job.done:
                    partial.append(number, prediction, log_probs)
                    bar.update(min(size * prediction.duration, bar.total - bar.n))  # the others are as far
                start = time.perf_counter()
        finally:
            if size == 1:
                _add_timing(work, seconds, audio_seconds, model, network)
    return seconds, audio_seconds


def _add_timing(
    work: Path, seconds: float, audio_seconds: float, model: EncDecCTCModel, network: "openvino.CompiledModel | None"
) -> None:
    """Add to the sums of inference.json, and write what the model was run on."""
    before = predictions.read_timing(work) or {"seconds": 0.0, "audio_seconds": 0.0}
    sums = {"seconds": seconds, "audio_seconds": audio_seconds}
    timing = {name: round(before[name] + value, 3) for name, value in sums.items()} | describe_device(model, network)
    if distributed.size() > 1:
        timing["processes"] = distributed.size()
    write_json(work / predictions.TIMING, timing)
