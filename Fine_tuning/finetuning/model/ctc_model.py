"""A NeMo CTC model: restore, build, change its vocabulary, save."""

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
from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE
from nemo.collections.asr.parts.submodules.ctc_decoding import CTCBPEDecodingConfig, CTCDecodingConfig
from nemo.utils import logging as nemo_logging
from omegaconf import DictConfig, OmegaConf, open_dict

from finetuning.errors import UserError, is_out_of_memory
from finetuning.files import atomic_path
from finetuning.model import nemo_file
from finetuning.model.vocabulary import WORD_START, Vocabulary

CTC_DECODER = "ctc_decoder."  # how the weights of a hybrid model's CTC decoder begin
DATA_SECTIONS = ("train_ds", "validation_ds", "test_ds")


def silence_nemo() -> None:
    """Silence the log messages of NeMo and Lightning; errors are raised, not printed."""
    nemo_logging.set_verbosity(nemo_logging.CRITICAL)
    rank_zero = "pytorch_lightning.utilities.rank_zero"  # a level of its own, whatever its parents say
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", rank_zero, "hydra"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")


def restore_model(path: Path) -> EncDecCTCModel:
    """Return the CTC model of a `.nemo` file of NeMo 1.0.0rc1 to 3.0.0, on the CPU, in eval mode.

    Only network and tokenizer are taken from the file; a hybrid model becomes a CTC model without its transducer. It is
    built from a few known classes, with this NeMo's decoding (the oldest files have none, and 3.0.0 refuses that of 2.5
    and 2.6) and without data. Raise UserError for a file without a CTC decoder, or that asks for anything else to be
    run.
    """
    silence_nemo()
    with _as_user_error(path, "a .nemo file of a CTC model"):
        config, weights = nemo_file.read_config(path), _read_weights(path)
        tokenizer = nemo_file.read_tokenizer(path, config)
        _set_vocabulary(config, tokenizer)
        _check_shapes(config, weights)
        model = _build_from_config(config, tokenizer)
        model.load_state_dict(weights)
        _try_out(model.eval())
    return model


def build_model(architecture: Path, vocabulary: Vocabulary, seed: int = 0) -> EncDecCTCModel:
    """Return a new model of a NeMo configuration (preprocessor, encoder, decoder), initialised from `seed`."""
    silence_nemo()
    with _as_user_error(architecture, "a NeMo model configuration"):
        config = nemo_file.network_config(architecture.read_bytes())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _build_with_vocabulary(config, vocabulary).eval()
        _try_out(model)
    return model


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the file by name; raise ValueError where it holds anything else. Nothing is unpickled."""
    with nemo_file.open_weights(path) as file:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError("its weights are not tensors by name")
    if any(name.startswith(CTC_DECODER) for name in weights):  # of a hybrid model, without its transducer
        own = {name: value for name, value in weights.items() if not name.startswith(("decoder.", "joint."))}
        weights = {f"decoder.{n[len(CTC_DECODER) :]}" if n.startswith(CTC_DECODER) else n: v for n, v in own.items()}
    return weights


def _build_from_config(config: dict[str, Any], tokenizer: bytes = b"") -> EncDecCTCModel:
    """Return a model of this configuration that decodes as this NeMo does by default."""
    if not tokenizer:
        decoding = OmegaConf.to_container(OmegaConf.structured(CTCDecodingConfig))
        return EncDecCTCModel(cfg=OmegaConf.create({**config, "decoding": decoding}))
    folder = tempfile.TemporaryDirectory(prefix="tokenizer-")
    write_tokenizer(Path(folder.name), tokenizer)
    decoding = OmegaConf.to_container(OmegaConf.structured(CTCBPEDecodingConfig))
    section = {"dir": folder.name, "type": "bpe"}
    model = EncDecCTCModelBPE(cfg=OmegaConf.create({**config, "tokenizer": section, "decoding": decoding}))
    model.tokenizer_folder = folder  # NeMo copies its files when it saves the model
    return model


def _build_with_vocabulary(config: dict[str, Any], vocabulary: Vocabulary) -> EncDecCTCModel:
    decoder = {**config["decoder"], "vocabulary": list(vocabulary), "num_classes": len(vocabulary)}
    labels = {} if vocabulary.sentencepiece else {"labels": list(vocabulary)}
    network = {name: part for name, part in config.items() if name not in ("labels", "tokenizer")}
    return _build_from_config({**network, **labels, "decoder": decoder}, vocabulary.sentencepiece)


def write_tokenizer(folder: Path, sentencepiece: bytes) -> None:
    """Write the files of a tokenizer that NeMo reads from a folder."""
    (folder / "tokenizer.model").write_bytes(sentencepiece)
    pieces = (token.replace(" ", WORD_START) for token in Vocabulary.of_pieces(sentencepiece))
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")


def _set_vocabulary(config: dict[str, Any], tokenizer: bytes) -> None:
    """Check the decoder's vocabulary or take it from the tokenizer; raise ValueError where texts would be wrong."""
    decoder = config["decoder"]
    if not tokenizer:
        _check_characters(decoder.get("vocabulary"))
        return
    pieces = list(Vocabulary.of_pieces(tokenizer))
    if decoder.get("vocabulary") and len(decoder["vocabulary"]) != len(pieces):
        raise ValueError(f"its decoder has {len(decoder['vocabulary'])} outputs and its tokenizer {len(pieces)} pieces")
    decoder.update(vocabulary=pieces, num_classes=len(pieces))


def _check_characters(vocabulary: Any) -> None:
    """Raise ValueError unless the vocabulary is made of characters."""
    if not isinstance(vocabulary, list) or not vocabulary:
        raise ValueError("it is not a character CTC model: its decoder has no vocabulary")
    if longer := [token for token in vocabulary if not isinstance(token, str) or len(token) != 1]:
        raise ValueError(f"it is not a character CTC model: {longer[0]!r} is in its vocabulary")
    if len(set(vocabulary)) < len(vocabulary):
        raise ValueError("a character is in its vocabulary twice")


def _check_shapes(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Raise ValueError where the weights do not fit the network, before more memory is allocated for it than they take.

    An encoder of convolutions is built without memory; a Conformer cannot be, so its size is calculated first.
    """
    encoder, decoder = config["encoder"], config["decoder"]
    if "jasper" in encoder:
        too_large = sum(block["repeat"] for block in encoder["jasper"]) > len(weights)
    else:
        too_large = _conformer_size(encoder) > sum(weight.numel() for weight in weights.values())
    if too_large:
        raise ValueError("its configuration describes a far larger network than its weights")
    with torch.device("meta" if "jasper" in encoder else "cpu"):
        parts = {"encoder": EncDecCTCModel.from_config_dict(OmegaConf.create(encoder))}
    decoder["feat_in"] = decoder.get("feat_in") or parts["encoder"]._feat_out
    with torch.device("meta"):
        parts["decoder"] = EncDecCTCModel.from_config_dict(OmegaConf.create(decoder))
    expected = {f"{part}.{name}": w.shape for part, module in parts.items() for name, w in module.state_dict().items()}
    shapes = {name: w.shape for name, w in weights.items() if name.partition(".")[0] in parts}
    if wrong := sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name)):
        raise ValueError(f"its weights do not fit its configuration: {wrong[0]}")


def _conformer_size(encoder: dict[str, Any]) -> int:
    """Return fewer parameters than a Conformer encoder has: the matrices of its layers and its subsampling."""
    width, channels = encoder["d_model"], encoder.get("subsampling_conv_channels", -1)
    channels = width if channels < 0 else channels
    matrices = 8 + 4 * encoder.get("ff_expansion_factor", 4)  # of attention and convolution, and of two feed-forwards
    layer = width * (width * matrices + encoder.get("conv_kernel_size", 31))
    reduced = encoder["feat_in"] // (2 * encoder.get("subsampling_factor", 4))
    return encoder["n_layers"] * layer + channels * reduced * width


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


def get_vocabulary(model: EncDecCTCModel) -> Vocabulary:
    """Return the texts of the model's outputs in their order; the CTC blank comes after them."""
    if isinstance(model, EncDecCTCModelBPE):
        return Vocabulary.of_pieces(model.tokenizer.tokenizer.serialized_model_proto())
    return Vocabulary.of_characters(model.decoder.vocabulary)


def sample_rate(model: EncDecCTCModel) -> int:
    """Return the sample rate of the model's input, in Hz."""
    return int(model.cfg.preprocessor.sample_rate)


def frame_duration_s(model: EncDecCTCModel) -> float:
    """Return the time between two of the model's outputs, in seconds."""
    return model.cfg.preprocessor.window_stride * model.encoder.subsampling_factor


def change_vocabulary(model: EncDecCTCModel, vocabulary: Vocabulary, decoder_init: str = "random") -> EncDecCTCModel:
    """Return the model with another vocabulary; unless it has that already, its decoder starts anew.

    With `decoder_init="warm"` the tokens of both vocabularies, and the blank, keep their rows, a character with marks
    starts from the row of the one without, and a piece of a word from the mean of the rows that the old vocabulary
    spells it with; the others are drawn at random, as all are with "random". NeMo adds the blank.
    """
    old = get_vocabulary(model)
    if not vocabulary.sentencepiece and not old.sentencepiece:
        with open_dict(model.cfg):
            model.cfg.labels = list(vocabulary)
    if list(old) == list(vocabulary):
        return model
    before = copy.deepcopy(model.decoder.decoder_layers[0].state_dict())
    if old.sentencepiece or vocabulary.sentencepiece:  # a model of another class
        parts = {name: OmegaConf.to_container(part) for name, part in model.cfg.items() if name in nemo_file.CLASSES}
        changed = _build_with_vocabulary(parts, vocabulary).eval()
        for part in ("preprocessor", "encoder"):
            getattr(changed, part).load_state_dict(getattr(model, part).state_dict())
        model = changed
    else:
        model.change_vocabulary(list(vocabulary))
    if decoder_init == "warm":
        after = model.decoder.decoder_layers[0].state_dict()  # weight (V + 1, C, 1), bias (V + 1)
        sources = [*(_sources(token, old) for token in vocabulary), [len(old)]]
        for row, source in enumerate(sources):
            for name in after if source else ():
                after[name][row] = before[name][source].mean(dim=0)
    return model


def _sources(token: str, old: Vocabulary) -> list[int]:
    """Return the rows of the old vocabulary that a token starts from."""
    if token in old:
        return [old.tokens.index(token)]
    if len(token) == 1 or not old.sentencepiece:
        plain = [letter if letter in old else unicodedata.normalize("NFD", letter)[:1] for letter in token]
        return [old.tokens.index(letter) for letter in plain if letter in old]
    return old.encode(token.strip())


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
        if "tokenizer" in config:
            config.validation_ds = {"manifest_filepath": None, "use_start_end_token": False}  # transcribe() asks for it
    return config
