"""A whole recogniser as one ONNX graph for sherpa-onnx, from the samples of a recording to log-probabilities.

For models of NeMo, sherpa-onnx computes features itself, with windows of 25 ms centred 5 ms later than NeMo's and
another floor, and rounds the number of outputs down where NeMo's encoders round up, which costs last letters. So the
graph holds NeMo's preprocessor too, and is loaded as the type of model that gets samples: "omnilingual", CTC with an
output every 20 ms.
"""

import logging
import math
from pathlib import Path

import onnx
import torch
from nemo.collections.asr.models import EncDecCTCModel
from torch import nn
from torch.nn import functional as F

from finetuning.decoding.openvino_runtime import copy_for_export
from finetuning.errors import UserError
from finetuning.model.ctc_model import frame_duration_s, sample_rate
from finetuning.model.vocabulary import WORD_START, Vocabulary

SAMPLE_RATE, OUTPUT_S = 16_000, 0.02  # Hz and the time between two outputs, both fixed in sherpa-onnx
EPSILON = 1e-5  # that sherpa-onnx adds to the variance of the samples before it divides by its root
QUIET = 0.05  # standard deviations: samples nearer to the mean may be silence
FEATURES = {
    "normalize": "per_feature",
    "log": True,
    "log_zero_guard_type": "add",
    "mag_power": 2.0,
    "frame_splicing": 1,
    "exact_pad": False,
}  # of NeMo's preprocessor, as all published CTC models have them
BLANK = "<blk>"
UNUSABLE = (BLANK, "<eps>", "<blank>", "</s>", "SIL")  # texts with a meaning of their own in sherpa-onnx
OPSET = 17


class RecognitionGraph(nn.Module):
    """NeMo's preprocessor, encoder and decoder for one recording, without dither, masks or padding."""

    def __init__(self, model: EncDecCTCModel) -> None:
        """Take the parts of a model that NeMo has prepared for its own export."""
        super().__init__()
        self.featurizer = featurizer = model.preprocessor.featurizer
        self.encoder, self.decoder = model.encoder, model.decoder
        self.repeats = round(frame_duration_s(model) / OUTPUT_S)
        size, width = featurizer.n_fft, featurizer.win_length
        places = torch.arange(width, dtype=torch.float64) + (size - width) // 2
        angles = 2 * math.pi / size * torch.arange(size // 2 + 1, dtype=torch.float64)[:, None] * places
        waves = torch.cat([torch.cos(angles), torch.sin(angles)]) * featurizer.window.double()
        self.register_buffer("waves", waves.float()[:, None])  # (2 · (n_fft / 2 + 1), 1, window): the Fourier transform
        self.register_buffer("mel", featurizer.fb[0])  # (C, n_fft / 2 + 1)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:  # (1, N) -> (1, T, V + 1)
        """Return the log-probabilities of one recording, as sherpa-onnx hands it over.

        Each is repeated to make an output every 20 ms, which changes no greedy decoding and keeps the times right.
        """
        features = self.compute_features(restore_level(samples))
        length = torch.full((1,), features.shape[2], dtype=torch.int64)
        encoded = self.encoder(audio_signal=features, length=length)
        log_probs = self.decoder(encoder_output=encoded[0] if isinstance(encoded, tuple) else encoded)
        return log_probs.repeat_interleave(self.repeats, dim=1) if self.repeats > 1 else log_probs

    def compute_features(self, samples: torch.Tensor) -> torch.Tensor:  # (1, N) -> (1, C, T')
        """Return what NeMo's FilterbankFeatures does, by operations that ONNX has."""
        f = self.featurizer
        samples = torch.cat([samples[:, :1], samples[:, 1:] - f.preemph * samples[:, :-1]], dim=1)
        samples = F.pad(samples, (f.n_fft // 2 - (f.n_fft - f.win_length) // 2,) * 2)
        spectrum = F.conv1d(samples[:, None], self.waves, stride=f.hop_length)[:, :, :-1]  # NeMo drops the last frame
        real, imaginary = spectrum.chunk(2, dim=1)
        features = torch.log(self.mel @ (real.square() + imaginary.square()) + f.log_zero_guard_value)
        features = features - features.mean(dim=2, keepdim=True)
        deviation = torch.sqrt(features.square().sum(dim=2, keepdim=True) / (features.shape[2] - 1))
        return features / (deviation + 1e-5)


def restore_level(samples: torch.Tensor) -> torch.Tensor:  # (1, N) -> (1, N)
    """Return the samples before sherpa-onnx has subtracted their mean and divided them by sqrt(variance + EPSILON).

    What is left of the variance tells the level. Where a recording is digital silence, the samples are equal and show
    the mean; elsewhere NeMo's features hardly depend on it, while in silence it would be heard.
    """
    level = torch.sqrt(EPSILON / (1 - samples.square().mean()).clamp(min=EPSILON))
    later = samples[:, 1:]
    is_silence = ((later == samples[:, :-1]) & (later.abs() < QUIET)).to(samples.dtype)
    zero = (later * is_silence).sum() / is_silence.sum().clamp(min=1)
    return (samples - zero) * level


def check_supported(model: EncDecCTCModel, path: Path) -> None:
    """Raise UserError in one sentence for a model that sherpa-onnx cannot run."""
    featurizer, output_s = model.preprocessor.featurizer, frame_duration_s(model)
    repeats = output_s / OUTPUT_S
    other = [name for name, value in FEATURES.items() if getattr(featurizer, name) != value]
    if featurizer.window is None or featurizer.preemph is None or isinstance(featurizer.log_zero_guard_value, str):
        other.append("window, preemph or log_zero_guard_value")
    if sample_rate(model) != SAMPLE_RATE:
        reason = f"it takes audio of {sample_rate(model)} Hz, not {SAMPLE_RATE}"
    elif repeats < 1 or abs(repeats - round(repeats)) > 1e-6:
        reason = f"it writes every {1000 * output_s:g} ms, which is no multiple of {1000 * OUTPUT_S:g}"
    elif other:
        reason = f"its preprocessor has another {other[0]} than NeMo's published models"
    else:
        return
    raise UserError(f"sherpa-onnx cannot run {path.name}: {reason}; export it without --onnx")


@torch.no_grad()
def write_graph(model: EncDecCTCModel, path: Path) -> None:
    """Write the graph of a model; the same model gives the same bytes."""
    copy = copy_for_export(model).eval()
    copy._prepare_for_export()  # as its export() does: it removes masks, which a single recording does not need
    noise = torch.randn(1, 2 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    torch.onnx.export(
        RecognitionGraph(copy).eval(),
        (noise,),
        str(path),
        input_names=["samples"],
        output_names=["log_probs"],
        dynamic_axes={"samples": {1: "N"}, "log_probs": {1: "T"}},
        opset_version=OPSET,
        dynamo=False,
    )


def write_int8_graph(graph: Path, path: Path) -> None:
    """Write a graph with weights of 8 bits and activations that are quantised while it runs, by onnxruntime.

    The preprocessor keeps its precision, as do depthwise convolutions, whose few weights are slower in integers.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kept = [node.name for node in onnx.load(graph).graph.node if not _is_quantised(node)]
    logging.disable(logging.WARNING)  # its advice to optimise the graph first, which changes nothing here
    try:
        quantize_dynamic(graph, path, weight_type=QuantType.QUInt8, nodes_to_exclude=kept)
    finally:
        logging.disable(logging.NOTSET)


def _is_quantised(node: onnx.NodeProto) -> bool:
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return node.name.startswith(("/encoder/", "/decoder/")) and groups == 1


def write_tokens(vocabulary: Vocabulary, path: Path) -> None:
    """Write tokens.txt: the text of each output and its number, the blank last.

    sherpa-onnx reads ▁ at the start of a text as a space, and a line without a text as the space. Raise UserError for a
    text that this cannot hold.
    """
    texts = list(vocabulary)
    if vocabulary.sentencepiece:
        texts = [f"{text[:1].replace(' ', WORD_START)}{text[1:].rstrip(' ')}" for text in texts]
    for text in texts:
        if (text != " " and (not text or any(map(str.isspace, text)))) or text in UNUSABLE:
            raise UserError(f"sherpa-onnx cannot write {text!r}, a token of the model; export it without --onnx")
    lines = (f"{text} {number}\n" for number, text in enumerate([*texts, BLANK]))
    path.write_text("".join(lines), encoding="utf-8")
