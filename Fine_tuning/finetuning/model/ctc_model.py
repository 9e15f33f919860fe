"""A NeMo character CTC model: restore, build, change its vocabulary, save."""

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
from nemo.collections.asr.models import EncDecCTCModel
from nemo.collections.asr.parts.submodules.ctc_decoding import CTCDecodingConfig
from nemo.utils import logging as nemo_logging
from omegaconf import DictConfig, OmegaConf, open_dict

from finetuning.errors import UserError, is_out_of_memory
from finetuning.files import atomic_path
from finetuning.model import nemo_file

BLANK = ""  # of CTC; its row comes after those of the vocabulary
DATA_SECTIONS = ("train_ds", "validation_ds", "test_ds")


def silence_nemo() -> None:
    """Silence the log messages of NeMo and Lightning; errors are raised, not printed."""
    nemo_logging.set_verbosity(nemo_logging.CRITICAL)
    rank_zero = "pytorch_lightning.utilities.rank_zero"  # a level of its own, whatever its parents say
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", rank_zero, "hydra"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")


def restore_model(path: Path) -> EncDecCTCModel:
    """Return the model of a `.nemo` file of NeMo 1.0.0rc1 to 3.0.0, on the CPU, in eval mode.

    Only the network is taken from the file. It is built from a few known classes, with this NeMo's decoding (the oldest
    files have none, and 3.0.0 refuses that of 2.5 and 2.6) and without data. Raise UserError for a file that is not a
    character CTC model, or that asks for anything else to be run.
    """
    silence_nemo()
    with _as_user_error(path, "a .nemo file of a character CTC model"):
        config, weights = nemo_file.read_config(path), _read_weights(path)
        _check_vocabulary(config["decoder"].get("vocabulary"))
        _check_shapes(config, weights)
        model = _build_from_config(config)
        model.load_state_dict(weights)
        _try_out(model.eval())
    return model


def build_model(architecture: Path, alphabet: str, seed: int = 0) -> EncDecCTCModel:
    """Return a new model of a NeMo configuration (preprocessor, encoder, decoder), initialised from `seed`."""
    silence_nemo()
    with _as_user_error(architecture, "a NeMo model configuration"):
        config = nemo_file.network_config(architecture.read_bytes())
        config["labels"] = list(alphabet)
        config["decoder"] |= {"vocabulary": list(alphabet), "num_classes": len(alphabet)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _build_from_config(config).eval()
        _try_out(model)
    return model


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the file by name; raise ValueError where it holds anything else. Nothing is unpickled."""
    with nemo_file.open_weights(path) as file:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError("its weights are not tensors by name")
    return weights


def _build_from_config(config: dict[str, Any]) -> EncDecCTCModel:
    """Return a model of this configuration that decodes as this NeMo does by default."""
    decoding = OmegaConf.to_container(OmegaConf.structured(CTCDecodingConfig))
    return EncDecCTCModel(cfg=OmegaConf.create({**config, "decoding": decoding}))


def _check_vocabulary(vocabulary: Any) -> None:
    """Raise ValueError unless the vocabulary is made of characters: otherwise texts would silently be wrong."""
    if not isinstance(vocabulary, list) or not vocabulary:
        raise ValueError("it is not a character CTC model: its decoder has no vocabulary")
    if longer := [token for token in vocabulary if not isinstance(token, str) or len(token) != 1]:
        raise ValueError(f"it is not a character CTC model: {longer[0]!r} is in its vocabulary")
    if len(set(vocabulary)) < len(vocabulary):
        raise ValueError("a character is in its vocabulary twice")


def _check_shapes(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Raise ValueError where the weights do not fit the network, before memory is allocated for it."""
    repeats = sum(block["repeat"] for block in config["encoder"]["jasper"])
    if repeats > len(weights):
        raise ValueError("its configuration describes a far larger network than its weights")
    with torch.device("meta"):
        parts = {
            part: EncDecCTCModel.from_config_dict(OmegaConf.create(config[part])) for part in ("encoder", "decoder")
        }
    expected = {f"{part}.{name}": w.shape for part, module in parts.items() for name, w in module.state_dict().items()}
    shapes = {name: w.shape for name, w in weights.items() if name.partition(".")[0] in parts}
    if wrong := sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name)):
        raise ValueError(f"its weights do not fit its configuration: {wrong[0]}")


@torch.no_grad()
def _try_out(model: EncDecCTCModel) -> None:
    """Raise ValueError where the outputs for a second of noise are not finite, or cannot be computed."""
    rate = sample_rate(model)
    noise = torch.randn(1, rate, generator=torch.Generator().manual_seed(0)) / 10
    features, length = model.preprocessor(input_signal=noise, length=torch.tensor([rate]))
    if features.shape[1] != model.encoder._feat_in:
        raise ValueError(
            f"its encoder wants {model.encoder._feat_in} features, its preprocessor makes {features.shape[1]}"
        )
    encoded, _ = model.encoder(audio_signal=features, length=length)
    if not torch.isfinite(model.decoder(encoder_output=encoded)).all():
        raise ValueError("its outputs are not finite: its weights are damaged")


@contextmanager
def _as_user_error(path: Path, what: str) -> Iterator[None]:
    """Turn what NeMo, torch, tar and YAML raise over a file that is not `what` into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        missing = Path(error.filename or str(error)).name
        raise UserError(f"{path} is not {what}: there is no {missing}; download or make it again") from error
    except Exception as error:  # each of these libraries has its own, and a foreign file can cause any
        if is_out_of_memory(error):
            raise MemoryError from error
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(f"no room to unpack {path}; {_ROOM}") from error
        reason = "its weights cannot be read" if isinstance(error, pickle.UnpicklingError) else str(error)
        reason = textwrap.shorten(reason or type(error).__name__, 200, placeholder=" …")
        raise UserError(f"{path} is not {what} ({reason}); download or make it again, or name another") from error


_ROOM = f"make some in {tempfile.gettempdir()} or set TMPDIR to another folder, rerun the same command"


def get_vocabulary(model: EncDecCTCModel) -> list[str]:
    """Return the characters of the model in the order of its outputs; the CTC blank comes after them."""
    return list(model.decoder.vocabulary)


def sample_rate(model: EncDecCTCModel) -> int:
    """Return the sample rate of the model's input, in Hz."""
    return int(model.cfg.preprocessor.sample_rate)


def frame_duration_s(model: EncDecCTCModel) -> float:
    """Return the time between two of the model's outputs, in seconds."""
    return model.cfg.preprocessor.window_stride * model.encoder.subsampling_factor


def change_vocabulary(model: EncDecCTCModel, alphabet: str, decoder_init: str = "random") -> None:
    """Replace the model's vocabulary by `alphabet`; where they differ, the decoder starts anew.

    With `decoder_init="warm"` the characters of both, and the blank, keep their rows, and a character with marks starts
    from the row of the one without; the others are drawn at random, as all are with "random". NeMo adds the blank.
    """
    if get_vocabulary(model) != list(alphabet):
        known = {character: row for row, character in enumerate([*get_vocabulary(model), BLANK])}
        before = copy.deepcopy(model.decoder.decoder_layers[0].state_dict())
        model.change_vocabulary(list(alphabet))
        if decoder_init == "warm":
            after = model.decoder.decoder_layers[0].state_dict()  # weight (V + 1, C, 1), bias (V + 1)
            for row, character in enumerate([*alphabet, BLANK]):
                source = known.get(character, known.get(unicodedata.normalize("NFD", character)[:1]))
                for name in after if source is not None else ():
                    after[name][row] = before[name][source]
    with open_dict(model.cfg):
        model.cfg.labels = list(alphabet)


def save_model(model: EncDecCTCModel, path: Path) -> None:
    """Write a `.nemo` file that stock NeMo restores, atomically, without the sections that hold local paths."""
    config = model._cfg
    model._cfg = _portable(config)
    try:
        with atomic_path(path) as temporary:
            model.save_to(str(temporary))
    except RuntimeError as error:  # of torch, which writes the weights to a temporary folder and gives no reason
        raise UserError(f"cannot write the weights of {path}; {_ROOM}") from error
    finally:
        model._cfg = config


def _portable(config: DictConfig) -> DictConfig:
    config = copy.deepcopy(config)
    with open_dict(config):
        for section in (*DATA_SECTIONS, "optim"):
            config.pop(section, None)
    return config
