"""From a manifest, or segments of recordings, to log-probabilities: the one way this project runs a model."""

import time
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import soundfile
import torch
from nemo.collections.asr.models import EncDecCTCModel
from torch.nn import functional as F
from tqdm import tqdm

from finetuning.audio.decoding import SAMPLE_RATE, check_not_truncated
from finetuning.data.manifest import Utterance
from finetuning.data.shard_reader import ShardMember, open_wav
from finetuning.decoding import predictions
from finetuning.decoding.greedy import greedy_decode
from finetuning.decoding.openvino_runtime import load_network as exported_network
from finetuning.decoding.openvino_runtime import run_network
from finetuning.decoding.predictions import Prediction
from finetuning.errors import UserError
from finetuning.files import write_json
from finetuning.model.channels_last import use_channels_last
from finetuning.model.ctc_model import get_vocabulary, sample_rate


def prepare_for_inference(model: EncDecCTCModel) -> EncDecCTCModel:
    """The model as it is run: on a GPU when there is one, in eval mode, without dither, convolutions made fast."""
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    model.preprocessor.featurizer.dither = 0.0
    use_channels_last(model)
    return model


def describe_device(model: EncDecCTCModel, network: openvino.CompiledModel | None) -> dict[str, Any]:
    """What the model runs on: the kind of device, by which library, and with how many threads on a CPU."""
    by = "openvino" if network else "torch"
    return {"device": model.device.type, "by": by, "threads": torch.get_num_threads()}


def run_inference(
    name: str,
    model: EncDecCTCModel,
    path: Path,
    utterances: list[Utterance],
    audio: Path,
    work: Path,
    batch_size: int,
    keeps: bool = False,
) -> list[Prediction]:
    """One pass over the utterances, or what is left of it, with a progress bar in seconds of audio.

    `keeps`: the log-probabilities too. inference.json tells how long it took: seconds, seconds of audio, device and
    threads. A pass that goes on after an interruption adds its part; a part that was killed is in neither of the sums.
    """
    write_json(work / predictions.VOCABULARY, get_vocabulary(model))
    columns = len(get_vocabulary(model)) + 1 if keeps else 0
    done = predictions.read_partial(work, utterances, columns)
    if done:
        print(f"{name}: goes on after {len(done):,} of {len(utterances):,} utterances")
    else:
        for stale in (predictions.TIMING, predictions.LOG_PROBS, predictions.LOG_PROBS_INDEX):
            (work / stale).unlink(missing_ok=True)
    before = predictions.read_timing(work) or {}
    seconds, audio_seconds = before.get("seconds", 0.0), before.get("audio_seconds", 0.0)
    compiled = exported_network(prepare_for_inference(model), path)
    bar = tqdm(desc=name, total=round(sum(u.duration for u in utterances)), unit="s", unit_scale=True)
    with predictions.open_partial(work, columns) as part, bar:
        bar.update(sum(prediction.duration for prediction, _ in done.values()))
        try:
            start = time.perf_counter()
            for number, prediction, own in iter_predictions(model, compiled, utterances, audio, batch_size, done):
                seconds += time.perf_counter() - start
                audio_seconds += prediction.duration
                if number not in done:
                    done[number] = prediction, part.append(number, prediction, own)
                    bar.update(prediction.duration)
                start = time.perf_counter()
        finally:
            spent = {"seconds": round(seconds, 3), "audio_seconds": round(audio_seconds, 3)}
            write_json(work / predictions.TIMING, spent | describe_device(model, compiled))
    found, spans = zip(*(done[number] for number in range(len(utterances))), strict=True)
    predictions.finish_predictions(work, found, spans if keeps else None, columns)
    return list(found)


def predict(
    model: EncDecCTCModel,
    network: openvino.CompiledModel | None,
    utterances: Sequence[Utterance],
    folder: Path,
    batch_size: int,
    done: Container[int] = (),
) -> Iterator[tuple[int, Prediction]]:
    """The number of each utterance and its prediction, as `computed` gives them."""
    for number, prediction, _ in iter_predictions(model, network, utterances, folder, batch_size, done):
        yield number, prediction


def iter_predictions(
    model: EncDecCTCModel,
    network: openvino.CompiledModel | None,
    utterances: Sequence[Utterance],
    folder: Path,
    batch_size: int,
    done: Container[int] = (),
) -> Iterator[tuple[int, Prediction, np.ndarray]]:
    """Number, prediction by the best path and log-probabilities, (T, labels + 1), of each utterance, the longest first.

    `folder` is that of their manifest. With `network`, of `model` by `exported.network`, utterances run one by one;
    without, in batches. A batch whose numbers are all `done` is skipped; one that is not is run whole, so that a run
    that goes on computes what an uninterrupted one does.
    """
    letters = get_vocabulary(prepare_for_inference(model))
    planned = [
        numbers
        for numbers in plan_batches(utterances, 1 if network else batch_size)
        if not all(number in done for number in numbers)
    ]
    rate = sample_rate(model)
    batched = ([utterances[number] for number in numbers] for numbers in planned)
    wavs = ([read_wav(u.wav(folder), rate, u.duration) for u in batch] for batch in batched)
    for number, own in zip(chain.from_iterable(planned), iter_log_probs(model, network, wavs), strict=True):
        u = utterances[number]
        text, nats = greedy_decode(own, letters), ctc_loss(own, u.text, letters)
        yield number, Prediction(u.audio_filepath, u.text, text, nats, u.duration), own


def transcribe(model: EncDecCTCModel, utterances: Sequence[Utterance], folder: Path, batch_size: int = 16) -> list[str]:
    """The text of the best path of each utterance, in the order given; by torch, since `model` is still learning."""
    found = dict(predict(model, None, utterances, folder, batch_size))
    return [found[number].pred_text for number in range(len(utterances))]


def plan_batches(utterances: Sequence[Utterance], batch_size: int) -> list[list[int]]:
    """Numbers of the utterances, the longest first: least padding, and what does not fit in memory fails at once."""
    order = sorted(range(len(utterances)), key=lambda number: -utterances[number].duration)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def read_wavs(wavs: Sequence[Path | ShardMember], rate: int) -> list[np.ndarray]:
    """Samples of each wav, between -1 and 1; UserError names the first that is not a mono wav at `rate` Hz."""
    return [read_wav(wav, rate) for wav in wavs]


def read_wav(wav: Path | ShardMember, rate: int, stated_s: float = 0.0) -> np.ndarray:
    """Samples of a wav, between -1 and 1; UserError where it is no mono wav at `rate` Hz or lasts less than
    `stated_s`.
    """
    try:
        samples, found = soundfile.read(open_wav(wav), dtype="float32")
        check_not_truncated(len(samples) / found, stated_s)
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"cannot read {wav} as a wav ({error}); delete it and run step 1 again") from error
    if found == SAMPLE_RATE != rate and samples.ndim == 1:
        raise UserError(
            f"the model takes sound of {rate} Hz and {wav} has {SAMPLE_RATE} Hz, as step 1 makes it; name another"
        )
    if found != rate or samples.ndim != 1:
        channels = 1 if samples.ndim == 1 else samples.shape[1]
        raise UserError(f"{wav} has {found} Hz and {channels} channel(s), not {rate} Hz and 1; make it with step 1")
    if len(samples) < rate // 20:
        raise UserError(f"{wav} is shorter than 0.05 s; delete it and run step 1 again")
    return samples


def iter_log_probs(
    model: EncDecCTCModel, network: openvino.CompiledModel | None, batches: Iterable[Sequence[np.ndarray]]
) -> Iterator[np.ndarray]:
    """Log-probabilities of each wav of each batch, (T, labels + blank), in their order; a batch is fetched when due."""
    if network:
        yield from run_network(network, (compute_features(model, wav) for wavs in batches for wav in wavs))
    else:
        for wavs in batches:
            yield from compute_log_probs(model, wavs)


@torch.no_grad()
def compute_features(model: EncDecCTCModel, wav: np.ndarray) -> np.ndarray:
    """What the encoder is given of one wav, (1, mel bands, frames), without padding; `model` is `ready`."""
    samples, length = torch.from_numpy(wav)[None], torch.tensor([len(wav)])
    found, length = model.preprocessor(input_signal=samples, length=length)
    return found[:, :, : int(length)].numpy()


@torch.no_grad()
def compute_log_probs(model: EncDecCTCModel, wavs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Log-probabilities of each wav, (its own frames, labels + blank), as if it were alone.

    Padding is cut off and, by the encoder's masked convolutions, has no influence; an encoder without masks (NeMo's
    `conv_mask: false`) gets its wavs one by one. `model` must be `ready`.
    """
    if not wavs:
        return []
    if len(wavs) > 1 and not model.cfg.encoder.get("conv_mask", True):
        return [frames for wav in wavs for frames in compute_log_probs(model, [wav])]
    lengths = torch.tensor([len(wav) for wav in wavs], device=model.device)
    padded = torch.zeros(len(wavs), max(map(len, wavs)), device=model.device)  # (B, samples)
    for row, wav in zip(padded, wavs, strict=True):
        row[: len(wav)] = torch.from_numpy(wav)
    features, lengths = model.preprocessor(input_signal=padded, length=lengths)
    encoded, lengths = model.encoder(audio_signal=features, length=lengths)
    if not model.cfg.encoder.get("conv_mask", True):  # then NeMo does not divide the lengths by the stride
        lengths = -(-lengths // model.encoder.subsampling_factor)
    frames = model.decoder(encoder_output=encoded).float().cpu().numpy()  # (B, T, V + 1)
    return [own[:length] for own, length in zip(frames, lengths.tolist(), strict=True)]


def ctc_loss(log_probabilities: np.ndarray, text: str, letters: Sequence[str]) -> float | None:
    """CTC negative log-likelihood of `text` in nats (Graves et al. 2006, equation 8), summed over frames.

    Characters that are not among the model's `letters` are left out of the text. None when it is not finite: the text
    needs more frames than there are.
    """
    index = {letter: number for number, letter in enumerate(letters)}
    target = torch.tensor([[index[letter] for letter in text if letter in index]], dtype=torch.long)
    frames = torch.from_numpy(log_probabilities).unsqueeze(1)  # (T, 1, V + 1)
    sizes = torch.tensor([len(frames)]), torch.tensor([target.shape[1]])
    value = F.ctc_loss(frames, target, *sizes, blank=len(letters), reduction="sum").item()
    return round(value, 6) if np.isfinite(value) else None
