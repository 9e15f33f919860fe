"""The `.nemo` file of a CTC model: its configuration, tokenizer and weights, read without running anything in it.

Of a hybrid model, a transducer with a CTC decoder beside it, the latter is read.
"""

import gzip
import io
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import yaml

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
MAX_CONFIG_BYTES = 1 << 19  # bytes; a QuartzNet15x5's has 10,000, one of 5,000 Chinese characters 160,000
MAX_TOKENIZER_BYTES = 1 << 25  # one of 8,000 pieces has 370,000
MAX_NODES = 100_000  # of the configuration, aliases written out
MAX_NUMBER = 48_000  # any number in a network's configuration: Hz, samples, frames, channels
MAX_COMPRESSION_RATIO = 10  # times its own size a compressed file may unpack to: weights hardly shrink at all
MODULES = "nemo.collections.asr.modules"
CLASSES = {  # of each section that NeMo instantiates
    "preprocessor": ("AudioToMelSpectrogramPreprocessor",),
    "spec_augment": ("SpectrogramAugmentation",),
    "encoder": ("ConvASREncoder", "ConformerEncoder"),
    "decoder": ("ConvASRDecoder",),
}
MODELS = "nemo.collections.asr.models"
CTC, HYBRID = ("EncDecCTCModel", "EncDecCTCModelBPE"), ("EncDecHybridRNNTCTCModel", "EncDecHybridRNNTCTCBPEModel")
DEFINED_IN = (  # the modules below these packages, by which their classes may be named too
    *("audio_preprocessing", "conv_asr", "conformer_encoder"),
    *("ctc_models", "ctc_bpe_models", "hybrid_rnnt_ctc_models", "hybrid_rnnt_ctc_bpe_models"),
)
SUPPORTED = (
    "supported are CTC models of characters or SentencePiece sub-words (QuartzNet, Citrinet, Conformer-CTC, "
    "FastConformer-CTC, Parakeet-CTC) and the CTC decoder of hybrid models"
)
TRANSDUCER = ("decoder", "joint", "aux_ctc", "decoding", "loss")  # sections of a hybrid model that CTC does not need
PLAIN = ("sample_rate", "labels", "nemo_version")  # other keys that a network needs
NAMES = ("_target_", "cls", "target")  # keys that name what Hydra calls, before 1.0 and after
HYDRA_OPTIONS = ("_args_", "_partial_", "_recursive_", "_convert_")  # and how it does


class _Loader(yaml.SafeLoader):
    """Reads 1e-5 as a number, as OmegaConf does, and refuses merge keys, which can grow without end."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Raise ConstructorError for what the base class would merge."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not understood", node.start_mark)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_config(path: Path) -> dict[str, Any]:
    """Return `network_config` of the configuration inside the file.

    Raise ValueError for what is wrong with it; errors of tarfile, gzip and YAML are passed on.
    """
    with _open_member(path, CONFIG) as file:
        return network_config(file.read(MAX_CONFIG_BYTES + 1))


def network_config(text: bytes) -> dict[str, Any]:
    """Return the sections of a model's YAML that describe its network, their classes under their current names.

    Sections about its training and decoding are left out: nothing here uses them, and they hold other people's paths.
    Of a hybrid model they are those of its CTC decoder. Raise ValueError for a model without one, and for a
    configuration that asks for anything else to be called, or for a value from outside itself.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise ValueError(f"its configuration is longer than {MAX_CONFIG_BYTES:,} bytes")
    tree = yaml.load(text, _Loader)
    _check_size(tree)
    tree = tree["model"] if isinstance(tree, dict) and isinstance(tree.get("model"), dict) else tree
    if not isinstance(tree, dict):
        raise ValueError("its configuration holds no sections")
    _check_model_class(tree)
    if isinstance(tree.get("aux_ctc"), dict):
        head = tree["aux_ctc"].get("decoder")
        tree = {name: part for name, part in tree.items() if name not in TRANSDUCER} | {"decoder": head}
    _check_classes(tree)
    network = {name: _interpolated(tree[name], tree) for name in (*CLASSES, *PLAIN) if tree.get(name) is not None}
    for name in CLASSES.keys() & network.keys():
        target = next((c for c in CLASSES[name] if c in _named(network[name])), CLASSES[name][0])
        section = _drop_names(network[name])
        arguments = _drop_names(section.pop("params", {}))  # as it was written before NeMo 1.0
        network[name] = {"_target_": f"{MODULES}.{target}", **section, **arguments}
    if tree.get("tokenizer") is not None:
        network["tokenizer"] = _tokenizer(tree["tokenizer"])
    if missing := [name for name in CLASSES if name not in network and name != "spec_augment"]:
        raise ValueError(f"its configuration has no {missing[0]}")
    preprocessor = network["preprocessor"] = {"sample_rate": 16000, **network["preprocessor"]}
    if not (preprocessor.get("window_stride") or 0) > 0 or (preprocessor.get("window_size") or 0) > 1:
        raise ValueError("its preprocessor has no window_stride, or windows of more than a second")
    return network


def _check_model_class(tree: dict[str, Any]) -> None:
    """Raise ValueError for a model without a CTC decoder, and for anything but a speech recogniser."""
    is_hybrid = "aux_ctc" in tree
    default = f"{MODELS}.{(HYBRID if is_hybrid else CTC)['tokenizer' in tree]}"
    target = tree.get("target", default)
    if "joint" in tree and not is_hybrid:
        raise ValueError(f"it is a transducer without a CTC decoder; {SUPPORTED}")
    if not any(_is_class(target, f"{MODELS}.{name}") for name in (HYBRID if is_hybrid else CTC)):
        raise ValueError(f"target names {target}; {SUPPORTED}")
    if _named({"target": target})[0].endswith("BPE") and "tokenizer" not in tree:
        raise ValueError("it writes sub-words and has no tokenizer")


def _tokenizer(section: Any) -> dict[str, Any]:
    """Return the kind of the tokenizer and the name of its file in the archive."""
    if not isinstance(section, dict) or section.get("type") != "bpe":
        kind = section.get("type") if isinstance(section, dict) else None
        raise ValueError(f"its tokenizer is of type {kind}, and only SentencePiece (bpe) is supported")
    name = str(section.get("model_path") or "nemo:tokenizer.model")
    return {"type": "bpe", "member": PurePosixPath(name.removeprefix("nemo:")).name}


def _named(section: Any) -> list[str]:
    """Return the classes that a section names, without their packages."""
    names = [section[key] for key in NAMES if key in section] if isinstance(section, dict) else []
    return [str(name).rpartition(".")[2] for name in names]


def _check_size(tree: Any) -> None:
    """Raise ValueError where aliases expand a small file beyond MAX_NODES, or contain themselves."""
    stack, nodes = [tree], 1
    while stack:
        part = stack.pop()
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        nodes += len(inner)
        if nodes > MAX_NODES:
            raise ValueError(f"its configuration has more than {MAX_NODES:,} entries")
        stack.extend(inner)


def _check_classes(part: Any, path: tuple[str, ...] = ()) -> None:
    """Raise ValueError where anything below `part` names something to call other than CLASSES in their sections."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        here = (*path, str(key))
        if key in HYDRA_OPTIONS:
            raise ValueError(f"its configuration holds {'.'.join(here)}, which this project does not support")
        supported = [f"{MODULES}.{name}" for name in CLASSES.get(path[0], ())] if len(path) == 1 else []
        if key in NAMES and here != ("target",) and not any(_is_class(value, name) for name in supported):
            raise ValueError(f"{'.'.join(here)} names {value}, which is not among the classes this project supports")
        _check_classes(value, here)


def _is_class(name: Any, expected: str) -> bool:
    """Tell whether `name` is the `expected` class, by its package or the module that defines it."""
    package, _, own = expected.rpartition(".")
    return name in (expected, *(f"{package}.{module}.{own}" for module in DEFINED_IN))


def _drop_names(section: Any) -> dict[str, Any]:
    if not isinstance(section, dict):
        raise ValueError("its configuration holds a value where a section is needed")
    return {key: value for key, value in section.items() if key not in NAMES}


def _interpolated(part: Any, root: dict[str, Any], is_reference: bool = False) -> Any:
    """Return `part` with `${key}` replaced by its value.

    Raise ValueError for every other `${…}`, for `???` and for numbers no network has. `is_reference`: `part` is the
    value of such a reference, which may hold none itself.
    """
    if isinstance(part, dict):
        return {str(key): _interpolated(value, root, is_reference) for key, value in part.items()}
    if isinstance(part, list):
        return [_interpolated(value, root, is_reference) for value in part]
    if part == "???":
        raise ValueError("its configuration leaves a value of the network open (???)")
    if isinstance(part, int | float) and not abs(part) <= MAX_NUMBER:
        raise ValueError(f"its configuration holds the number {part:.6g}")
    if not isinstance(part, str) or "${" not in part:
        return part
    reference = re.fullmatch(r"\$\{(?:model\.)?(\w+)(?:\.(\w+))?\}", part)
    value = root.get(reference[1]) if reference else None
    if reference and reference[2]:
        value = value.get(reference[2]) if isinstance(value, dict) else None
    if is_reference or isinstance(value, dict | None):
        raise ValueError(f"its configuration refers to {part}, which is not looked up")
    return _interpolated(value, root, is_reference=True)


def read_tokenizer(path: Path, network: dict[str, Any]) -> bytes:
    """Return the serialised SentencePiece model of the file's `network_config`, empty for a character model."""
    if "tokenizer" not in network:
        return b""
    with _open_member(path, network["tokenizer"]["member"]) as file:
        content = file.read(MAX_TOKENIZER_BYTES + 1)
    if len(content) > MAX_TOKENIZER_BYTES:
        raise ValueError(f"its tokenizer is longer than {MAX_TOKENIZER_BYTES:,} bytes")
    return content


@contextmanager
def open_weights(path: Path) -> Iterator[IO[bytes]]:
    """Open the weights inside the file for torch, to be loaded as weights only; raise ValueError if damaged."""
    with _open_member(path, WEIGHTS) as file:
        if zipfile.is_zipfile(file):
            check_zip(file)
        file.seek(0)
        yield file


def check_zip(file: IO[bytes]) -> None:
    """Raise ValueError where torch's archive is damaged, which torch does not check, or would unpack to more."""
    with zipfile.ZipFile(file) as packed:
        size, members = file.seek(0, io.SEEK_END), packed.infolist()
        if any(member.compress_type for member in members) or sum(member.file_size for member in members) > size:
            raise ValueError("its weights unpack to more than their size")
        if damaged := packed.testzip():
            raise ValueError(f"its weights are damaged: {damaged} does not have the checksum it was written with")


@contextmanager
def _open_member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Open one file of the archive, plain or (as NeMo wrote before 1.7) gzipped, for reading with seek."""
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        max_bytes = path.stat().st_size * MAX_COMPRESSION_RATIO + (1 << 20)
        source = _Bounded(gzip.GzipFile(fileobj=raw), max_bytes) if compressed else raw
        with tarfile.open(fileobj=source, mode="r:") as archive:
            member = _find_member(archive, name, path)
            if not compressed:
                yield archive.extractfile(member)
                return
            with tempfile.TemporaryFile() as unpacked:  # seeking back in a gzipped file reads it again from its start
                shutil.copyfileobj(archive.extractfile(member), unpacked)
                unpacked.seek(0)
                yield unpacked


def _find_member(archive: tarfile.TarFile, name: str, path: Path) -> tarfile.TarInfo:
    members = [member for member in archive if PurePosixPath(member.name).parts == (name,)]
    if not members:
        raise FileNotFoundError(2, f"there is no {name} in it", str(path / name))
    if len(members) > 1 or not members[0].isreg() or members[0].issparse():
        raise ValueError(f"its {name} is not one plain file")
    return members[0]


class _Bounded:
    """A gzipped file that raises ValueError beyond `max_bytes` unpacked bytes, whatever the archive in it asks for."""

    def __init__(self, file: gzip.GzipFile, max_bytes: int) -> None:
        self.file, self.max_bytes = file, max_bytes
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        self._check_position(self.file.tell() + size)
        return self.file.read(size)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        self._check_position(position)
        return self.file.seek(position, whence)

    def _check_position(self, position: int) -> None:
        if position > self.max_bytes:
            raise ValueError(f"it would unpack to more than {MAX_COMPRESSION_RATIO} times its size")
