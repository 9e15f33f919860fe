"""A NeMo character CTC model: restored, built, given another alphabet, made fast on a CPU, saved."""

import copy
import errno
import logging
import pickle
import tempfile
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

logging.getLogger("nv_one_logger").setLevel(logging.ERROR)  # NeMo's telemetry talks while it is imported

from nemo.collections.asr.models import EncDecCTCModel  # noqa: E402
from nemo.collections.asr.parts.submodules.ctc_decoding import CTCDecodingConfig  # noqa: E402
from nemo.collections.asr.parts.submodules.jasper import GroupShuffle, MaskedConv1d  # noqa: E402
from nemo.utils import logging as nemo_logging  # noqa: E402
from omegaconf import DictConfig, OmegaConf, open_dict  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from finetuning import nemo_file  # noqa: E402
from finetuning.errors import UserError, lacks_memory  # noqa: E402
from finetuning.files import replacing  # noqa: E402

BLANK = ""  # CTC's; its row comes after those of the letters
DATA_SECTIONS = ("train_ds", "validation_ds", "test_ds")


def quiet() -> None:
    """Keep NeMo's and Lightning's running commentary off the screen; errors are raised, not printed."""
    nemo_logging.set_verbosity(nemo_logging.CRITICAL)
    rank_zero = "pytorch_lightning.utilities.rank_zero"  # a level of its own, whatever its parents say
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", rank_zero, "hydra"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")


def restore(path: Path) -> EncDecCTCModel:
    """Return the model of a `.nemo` file of NeMo 1.0.0rc1 to 3.0.0, on the CPU, in eval mode.

    Only the network is taken from the file: it is built from our few classes, gets this NeMo's decoding, which the
    oldest files lack and 3.0.0 refuses from 2.5 and 2.6, and no data. UserError for a file that is not a character CTC
    model, or that asks for anything else to be run.
    """
    quiet()
    with _refusing(path, "a .nemo file of a character CTC model"):
        config, weights = nemo_file.read_config(path), nemo_file.read_weights(path)
        _refuse_vocabulary(config["decoder"].get("vocabulary"))
        _refuse_other_shapes(config, weights)
        model = _built(config)
        model.load_state_dict(weights)
        _try_out(model.eval())
    return model


def build(architecture: Path, alphabet: str, seed: int = 0) -> EncDecCTCModel:
    """A new model of a NeMo configuration (preprocessor, encoder, decoder), its weights drawn from `seed`."""
    quiet()
    with _refusing(architecture, "a NeMo model configuration"):
        config = nemo_file.network_config(architecture.read_bytes())
        config["labels"] = list(alphabet)
        config["decoder"] |= {"vocabulary": list(alphabet), "num_classes": len(alphabet)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _built(config).eval()
        _try_out(model)
    return model


def _built(config: dict[str, Any]) -> EncDecCTCModel:
    """Return a model of this configuration that decodes as this NeMo does by default."""
    decoding = OmegaConf.to_container(OmegaConf.structured(CTCDecodingConfig))
    return EncDecCTCModel(cfg=OmegaConf.create({**config, "decoding": decoding}))


def _refuse_vocabulary(vocabulary: Any) -> None:
    """Raise ValueError for one that is not made of characters: its texts would be misread without a word."""
    if not isinstance(vocabulary, list) or not vocabulary:
        raise ValueError("it does not write characters by CTC: its decoder has no vocabulary")
    if longer := [token for token in vocabulary if not isinstance(token, str) or len(token) != 1]:
        raise ValueError(f"it does not write characters by CTC: {longer[0]!r} is in its vocabulary")
    if len(set(vocabulary)) < len(vocabulary):
        raise ValueError("a character is in its vocabulary twice")


def _refuse_other_shapes(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Raise ValueError where the network is not that of the weights, before memory is asked for it."""
    repeats = sum(block["repeat"] for block in config["encoder"]["jasper"])
    if repeats > len(weights):
        raise ValueError("its configuration describes a far larger network than its weights are of")
    with torch.device("meta"):
        parts = {
            part: EncDecCTCModel.from_config_dict(OmegaConf.create(config[part])) for part in ("encoder", "decoder")
        }
    expected = {f"{part}.{name}": w.shape for part, own in parts.items() for name, w in own.state_dict().items()}
    found = {name: w.shape for name, w in weights.items() if name.partition(".")[0] in parts}
    if other := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise ValueError(f"its weights are not those of its configuration: {other[0]}")


@torch.no_grad()
def _try_out(model: EncDecCTCModel) -> None:
    """Raise ValueError where a second of noise does not pass through the model to numbers."""
    rate = sample_rate(model)
    noise = torch.randn(1, rate, generator=torch.Generator().manual_seed(0)) / 10
    features, length = model.preprocessor(input_signal=noise, length=torch.tensor([rate]))
    if features.shape[1] != model.encoder._feat_in:
        raise ValueError(
            f"its encoder wants {model.encoder._feat_in} features, its preprocessor makes {features.shape[1]}"
        )
    encoded, _ = model.encoder(audio_signal=features, length=length)
    if not torch.isfinite(model.decoder(encoder_output=encoded)).all():
        raise ValueError("what it computes are no numbers: its weights are damaged")


@contextmanager
def _refusing(path: Path, what: str) -> Iterator[None]:
    """Turn what NeMo, torch, tar and YAML raise over a file that is not `what` into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        missing = Path(error.filename or str(error)).name
        raise UserError(f"{path} is not {what}: there is no {missing}; fetch or make it again") from error
    except Exception as error:  # each of these libraries has its own, and a foreign file can bring about any
        if lacks_memory(error):
            raise MemoryError from error
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(f"no room to unpack {path}; {_ROOM}") from error
        reason = "its weights cannot be read" if isinstance(error, pickle.UnpicklingError) else str(error)
        reason = textwrap.shorten(reason or type(error).__name__, 200, placeholder=" …")
        raise UserError(f"{path} is not {what} ({reason}); fetch or make it again, or name another") from error


_ROOM = f"make some in {tempfile.gettempdir()} or set TMPDIR to another folder, type the same command again"


def labels(model: EncDecCTCModel) -> list[str]:
    """The characters the model writes, in the order of its outputs; the CTC blank comes after them."""
    return list(model.decoder.vocabulary)


def sample_rate(model: EncDecCTCModel) -> int:
    """Return what the model expects of a wav, in Hz."""
    return int(model.cfg.preprocessor.sample_rate)


def frame_duration_s(model: EncDecCTCModel) -> float:
    """Return the time between two of the model's outputs, in seconds."""
    return model.cfg.preprocessor.window_stride * model.encoder.subsampling_factor


def set_alphabet(model: EncDecCTCModel, alphabet: str, decoder_init: str = "random") -> None:
    """Let the model write `alphabet`, in that order; where it differs from its own, the decoder starts anew.

    With `decoder_init="warm"` the letters both know, and the blank, keep their rows; a letter with marks starts from
    the row of the letter without; the others are drawn at random, as all are with "random". The blank is NeMo's to add.
    """
    if labels(model) != list(alphabet):
        known = {letter: row for row, letter in enumerate([*labels(model), BLANK])}
        before = copy.deepcopy(model.decoder.decoder_layers[0].state_dict())
        model.change_vocabulary(list(alphabet))
        if decoder_init == "warm":
            after = model.decoder.decoder_layers[0].state_dict()  # weight (V + 1, C, 1), bias (V + 1)
            for row, letter in enumerate([*alphabet, BLANK]):
                source = known.get(letter, known.get(unicodedata.normalize("NFD", letter)[:1]))
                for name in after if source is not None else ():
                    after[name][row] = before[name][source]
    with open_dict(model.cfg):
        model.cfg.labels = list(alphabet)


def save(model: EncDecCTCModel, path: Path) -> None:
    """Write a `.nemo` file that stock NeMo restores, whole or not at all, without the sections with local paths."""
    own = model._cfg
    model._cfg = _portable(own)
    try:
        with replacing(path) as temporary:
            model.save_to(str(temporary))
    except RuntimeError as error:  # of torch, which writes the weights to a temporary folder and cannot say why not
        raise UserError(f"cannot write the weights of {path}; {_ROOM}") from error
    finally:
        model._cfg = own


def _portable(config: DictConfig) -> DictConfig:
    config = copy.deepcopy(config)
    with open_dict(config):
        for section in (*DATA_SECTIONS, "optim"):
            config.pop(section, None)
    return config


def channels_last(model: EncDecCTCModel) -> None:
    """Compute the encoder's convolutions and batch normalisation with channels last, which suits a CPU; same to 1e-5.

    Only the way of computing changes: parameters, checkpoints and `.nemo` files stay stock, and on a GPU so does the
    computation. Encoders that reshape channels in groups are left as they are: they need channels first.
    """
    modules = list(model.encoder.modules())
    if any(isinstance(m, GroupShuffle) or getattr(m, "heads", -1) != -1 for m in modules):
        return
    for module in modules:
        if isinstance(module, MaskedConv1d) and type(module.conv) is nn.Conv1d:
            conv = module.conv
            if conv.groups == conv.in_channels == conv.out_channels:
                conv.__class__ = DepthwiseConv1d
            elif conv.groups == 1 and conv.kernel_size == conv.stride == (1,) and conv.padding == (0,):
                conv.__class__ = PointwiseConv1d
        elif type(module) is nn.BatchNorm1d:
            module.__class__ = ChannelsLastBatchNorm1d


class DepthwiseConv1d(nn.Conv1d):
    """One filter a channel: a Conv2d of height 1, for which the CPU has a channels-last kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, T) -> (B, C, T')
        """As nn.Conv1d."""
        if x.device.type != "cpu":
            return super().forward(x)
        image = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)  # (B, C, 1, T)
        weight = self.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        stride, padding, dilation = (1, *self.stride), (0, *self.padding), (1, *self.dilation)
        return F.conv2d(image, weight, self.bias, stride, padding, dilation, self.groups).squeeze(2)


class PointwiseConv1d(nn.Conv1d):
    """A matrix applied at every frame; the frames are rows already when channels come last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, T) -> (B, C', T)
        """As nn.Conv1d."""
        if x.device.type != "cpu":
            return super().forward(x)
        return F.linear(x.transpose(1, 2), self.weight[:, :, 0], self.bias).transpose(1, 2)


class ChannelsLastBatchNorm1d(nn.BatchNorm1d):
    """Of an image of height 1, for which torch's kernel keeps channels last; of (B, C, T) it would turn them around."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, T) -> (B, C, T)
        """As nn.BatchNorm1d."""
        if x.device.type != "cpu":
            return super().forward(x)
        return super().forward(x.unsqueeze(2)).squeeze(2)

    def _check_input_dim(self, x: torch.Tensor) -> None:
        """Nothing to check: an image on the CPU."""
