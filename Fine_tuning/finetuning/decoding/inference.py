"""Wavs -> features -> log-probabilities: the one way this project runs a model."""

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import torch
from nemo.collections.asr.models import EncDecCTCModel
from torch.nn import functional as F

from finetuning.audio.decoding import SAMPLE_RATE, check_not_truncated
from finetuning.data.manifest import Utterance
from finetuning.data.shard_reader import ShardMember, open_wav
from finetuning.decoding.greedy import greedy_decode
from finetuning.decoding.openvino_runtime import run_network
from finetuning.decoding.predictions import Prediction
from finetuning.errors import UserError
from finetuning.model.channels_last import use_channels_last
from finetuning.model.ctc_model import get_vocabulary, sample_rate
from finetuning.model.vocabulary import Vocabulary

if TYPE_CHECKING:
    import openvino


def prepare_for_inference(model: EncDecCTCModel) -> EncDecCTCModel:
    """Return the model ready: on a GPU when there is one, in eval mode, without dither, with fast convolutions."""
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    model.preprocessor.featurizer.dither = 0.0
    use_channels_last(model)
    return model


def describe_device(model: EncDecCTCModel, network: "openvino.CompiledModel | None") -> dict[str, Any]:
    """Return the kind of device, the library that runs the network, and the number of threads on a CPU."""
    library = "openvino" if network else "torch"
    return {"device": model.device.type, "by": library, "threads": torch.get_num_threads()}


def predict(
    model: EncDecCTCModel,
    network: "openvino.CompiledModel | None",
    utterances: Sequence[Utterance],
    folder: Path,
    batch_size: int,
    done: Container[int] = (),
) -> Iterator[tuple[int, Prediction]]:
    """Yield the number of each utterance and its prediction, in the order of `iter_predictions`."""
    for number, prediction, _ in iter_predictions(model, network, utterances, folder, batch_size, done):
        yield number, prediction


def iter_predictions(
    model: EncDecCTCModel,
    network: "openvino.CompiledModel | None",
    utterances: Sequence[Utterance],
    folder: Path,
    batch_size: int,
    done: Container[int] = (),
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[int, Prediction, np.ndarray]]:
    """Yield number, greedy prediction and log-probabilities, (T, vocabulary + 1), of each utterance, the longest first.

    `folder` is that of their manifest. With `network`, which `load_network` returns for `model`, utterances are run one
    by one; without, in batches. A batch whose numbers are all `done` is skipped; any other is run whole, so that a
    resumed run computes what an uninterrupted one does. `share`: this process's number and that of all processes, which
    take the batches in turn.
    """
    vocabulary = get_vocabulary(prepare_for_inference(model))
    planned = [
        numbers
        for numbers in plan_batches(utterances, 1 if network else batch_size)
        if not all(number in done for number in numbers)
    ][share[0] :: share[1]]
    rate = sample_rate(model)
    batched = ([utterances[number] for number in numbers] for numbers in planned)
    wavs = ([read_wav(u.wav(folder), rate, u.duration) for u in batch] for batch in batched)
    for number, log_probs in zip(chain.from_iterable(planned), iter_log_probs(model, network, wavs), strict=True):
        u = utterances[number]
        text, loss = greedy_decode(log_probs, vocabulary), ctc_loss(log_probs, u.text, vocabulary)
        yield number, Prediction(u.audio_filepath, u.text, text, loss, u.duration), log_probs


def transcribe(model: EncDecCTCModel, utterances: Sequence[Utterance], folder: Path, batch_size: int = 16) -> list[str]:
    """Return the greedy text of each utterance, in the order given; run by torch, as `model` is still in training."""
    by_number = dict(predict(model, None, utterances, folder, batch_size))
    return [by_number[number].pred_text for number in range(len(utterances))]


def plan_batches(utterances: Sequence[Utterance], batch_size: int) -> list[list[int]]:
    """Return batches of utterance numbers, the longest first: little padding, and too little memory shows at once."""
    order = sorted(range(len(utterances)), key=lambda number: -utterances[number].duration)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def read_wavs(wavs: Sequence[Path | ShardMember], rate: int) -> list[np.ndarray]:
    """Return the samples of each wav, between -1 and 1; raise UserError for one that is not mono at `rate` Hz."""
    return [read_wav(wav, rate) for wav in wavs]


def read_wav(wav: Path | ShardMember, rate: int, stated_s: float = 0.0) -> np.ndarray:
    """Return the samples of a wav, between -1 and 1.

    Raise UserError where it is no mono wav at `rate` Hz or shorter than `stated_s` seconds.
    """
    try:
        samples, wav_rate = soundfile.read(open_wav(wav), dtype="float32")
        check_not_truncated(len(samples) / wav_rate, stated_s)
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"cannot read {wav} as a wav ({error}); delete it and run step 1 again") from error
    if wav_rate == SAMPLE_RATE != rate and samples.ndim == 1:
        raise UserError(
            f"the model takes audio of {rate} Hz and {wav} has {SAMPLE_RATE} Hz, as step 1 makes it; use another model"
        )
    if wav_rate != rate or samples.ndim != 1:
        channels = 1 if samples.ndim == 1 else samples.shape[1]
        raise UserError(f"{wav} has {wav_rate} Hz and {channels} channel(s), not {rate} Hz and 1; make it with step 1")
    if len(samples) < rate // 20:
        raise UserError(f"{wav} is shorter than 0.05 s; delete it and run step 1 again")
    return samples


def iter_log_probs(
    model: EncDecCTCModel, network: "openvino.CompiledModel | None", batches: Iterable[Sequence[np.ndarray]]
) -> Iterator[np.ndarray]:
    """Yield the log-probabilities of each wav of each batch, (T, vocabulary + 1); batches are fetched as needed."""
    if network:
        yield from run_network(network, (compute_features(model, wav) for wavs in batches for wav in wavs))
    else:
        for wavs in batches:
            yield from compute_log_probs(model, wavs)


@torch.no_grad()
def compute_features(model: EncDecCTCModel, wav: np.ndarray) -> np.ndarray:
    """Return the features of one wav, (1, mel bands, frames), without padding, from a model prepared for inference."""
    samples, length = torch.from_numpy(wav)[None], torch.tensor([len(wav)])
    features, length = model.preprocessor(input_signal=samples, length=length)
    return features[:, :, : int(length)].numpy()


@torch.no_grad()
def compute_log_probs(model: EncDecCTCModel, wavs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the log-probabilities of each wav, (its own frames, vocabulary + 1), as if it were alone.

    Padding is cut off and, thanks to the encoder's masked convolutions, has no influence; an encoder without masks
    (NeMo's `conv_mask: false`) gets its wavs one by one. `model` must be prepared for inference.
    """
    if not wavs:
        return []
    if len(wavs) > 1 and not model.cfg.encoder.get("conv_mask", True):
        return [log_probs for wav in wavs for log_probs in compute_log_probs(model, [wav])]
    lengths = torch.tensor([len(wav) for wav in wavs], device=model.device)
    padded = torch.zeros(len(wavs), max(map(len, wavs)), device=model.device)  # (B, samples)
    for row, wav in zip(padded, wavs, strict=True):
        row[: len(wav)] = torch.from_numpy(wav)
    features, lengths = model.preprocessor(input_signal=padded, length=lengths)
    encoded, lengths = model.encoder(audio_signal=features, length=lengths)
    if not model.cfg.encoder.get("conv_mask", True):  # then NeMo does not divide the lengths by the stride
        lengths = -(-lengths // model.encoder.subsampling_factor)
    padded_log_probs = model.decoder(encoder_output=encoded).float().cpu().numpy()  # (B, T, V + 1)
    return [log_probs[:length] for log_probs, length in zip(padded_log_probs, lengths.tolist(), strict=True)]


def ctc_loss(log_probs: np.ndarray, text: str, vocabulary: Vocabulary) -> float | None:
    """Return the CTC negative log-likelihood of `text` in nats (Graves et al. 2006, equation 8), summed over frames.

    `log_probs`: (T, vocabulary + 1), the blank last. Characters outside the `vocabulary` are left out of the text. None
    when the likelihood is zero: the text needs more frames than there are.
    """
    target = torch.tensor([vocabulary.encode(text)], dtype=torch.long)
    batch = torch.from_numpy(log_probs).unsqueeze(1)  # (T, 1, V + 1)
    sizes = torch.tensor([len(batch)]), torch.tensor([target.shape[1]])
    loss = F.ctc_loss(batch, target, *sizes, blank=len(vocabulary), reduction="sum").item()
    return round(loss, 6) if np.isfinite(loss) else None
