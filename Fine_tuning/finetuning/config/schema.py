"""An experiment: a tree of dataclasses, read from YAML by loading.py and checked by validation.py.

A key has a default here only where leaving it out means nothing: null, empty or off. What makes an experiment is stated
and explained in configs/italian.yaml, which the other configurations extend. The limits of a value stand with its key.
"""

import re
from dataclasses import asdict, dataclass, field, fields
from enum import Enum, StrEnum, auto
from pathlib import Path
from typing import Annotated, Any, ClassVar

from finetuning.errors import UserError

ROOT = Path(__file__).resolve().parents[3]  # paths in a config are relative to this folder
MISSING: Any = "???"  # OmegaConf's sign for a value that a YAML or the command line must state
MAX_PROCESSES = 1024
MAX_SEED = 2**32 - 1  # that numpy takes
MAX_PIECES = 100_000  # of a tokenizer
MAX_ORDER = 6  # of an n-gram that flashlight's KenLM can read; it reads no model of single words either


@dataclass(frozen=True)
class Limits:
    """What a number, or each number of a list, must be; for a text the regular expression that must match all of it."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    pattern: str = ""
    description: str = ""  # the pattern in words

    def __str__(self) -> str:
        """Return the limits in words, as in "above 0 and at most 1"."""
        bounds = {name.replace("_", " "): getattr(self, name) for name in ("at_least", "above", "at_most", "below")}
        return self.description or " and ".join(
            f"{words} {bound}" for words, bound in bounds.items() if bound is not None
        )

    def allow(self, value: Any) -> bool:
        """Tell whether the value is within the limits."""
        if self.pattern:
            return bool(re.fullmatch(self.pattern, value))
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def metadata(free: bool = False, **limits: Any) -> dict[str, Any]:
    """Return what a dataclass field says about its key: Limits, and whether it is free.

    A free value may change while the step resumes: it says where or how fast the step runs, not what it makes.
    """
    return {"limits": Limits(**limits) if limits else None, "free": free}


def key(default: Any = MISSING, **about: Any) -> Any:
    """Return a dataclass field with `metadata(**about)`."""
    return field(default=default, metadata=metadata(**about))


def free_keys(section: type) -> set[str]:
    """Return the keys of a section that may change while the step resumes."""
    return {each.name for each in fields(section) if each.metadata.get("free")}


SHA256 = {"pattern": "([0-9a-f]{64})?", "description": "64 hexadecimal digits in lower case"}
CHANNEL = {"pattern": "0|1|mix", "description": "0, 1 or mix"}
DATASET_ID = {"pattern": r"[\w.-]*", "description": "an id of the Mozilla Data Collective"}
SOURCE_NAME = {
    "pattern": r"(?!(wavs|release)$)\w[\w-]{0,49}",
    "description": "a short name of letters, digits, - and _",
}
FILE_NAME = {"pattern": "[^/.][^/]{0,199}", "description": "the name of a file, without a folder"}
PATH = {"pattern": "(?s).+", "description": "a path"}


class SplitBy(StrEnum):
    """Who is kept together: all clips of a speaker, nothing (the published protocol), or as the release says."""

    speaker = auto()
    clip = auto()
    release = auto()


class Repeated(StrEnum):
    """What is there several times, a sentence in several splits or a recording, stays once or as often as it is."""

    drop = auto()
    keep = auto()


class Role(StrEnum):
    """The utterances of a source are shared among the splits, all for training, or a test set of their own."""

    split = auto()
    train = auto()
    test = auto()


class Foreign(StrEnum):
    """A character outside the alphabet rejects its row, or is written in characters of the alphabet where possible."""

    reject = auto()
    transliterate = auto()


class DecoderInit(StrEnum):
    """The decoder starts at random, or keeps the rows of the characters that the base model writes."""

    random = auto()
    warm = auto()


class VocabularyKind(StrEnum):
    """What a trained model writes: the alphabet, pieces of words found in the training texts, or what its base does."""

    characters = auto()
    subwords = auto()
    base = auto()


class BatchNorm(StrEnum):
    """The batch normalisation of the frozen encoder is trained, or frozen too."""

    train = auto()
    frozen = auto()


class Accelerator(StrEnum):
    """What training runs on; auto is a GPU when there is one."""

    auto = "auto"
    gpu = "gpu"
    cpu = "cpu"


Precision = StrEnum("Precision", {name: name for name in ("auto", "32-true", "16-mixed", "bf16-mixed")})  # Lightning's


class TrackingServiceName(StrEnum):
    """A service that shows the metrics of runs: Weights & Biases or MLflow, as their packages are called."""

    wandb = auto()
    mlflow = auto()


class OptimizerName(StrEnum):
    """NeMo's name of the optimizer."""

    novograd = auto()
    adamw = auto()


class Evaluated(StrEnum):
    """The split that is evaluated; train and validation, to find wrong texts in them."""

    test = auto()
    validation = auto()
    train = auto()


class Decoder(StrEnum):
    """Greedy decoding alone or, beside it, beam search with the language model."""

    greedy = auto()
    lm = auto()


class SecondWer(StrEnum):
    """Another scoring, for a second WER: with capitals and punctuation, or after one of Whisper's normalisers."""

    orthographic = auto()
    whisper = auto()
    whisper_english = auto()


@dataclass
class Split:
    """Shares of train, validation and test, and how they are drawn."""

    by: SplitBy = MISSING
    train: float = key(above=0)
    validation: float = key(above=0)
    test: float = key(above=0)
    seed: int = MISSING
    repeated: Repeated = MISSING


@dataclass
class Archive:
    """The published archive: `dataset.source` is checked against it when it has this name."""

    name: str = ""
    size_bytes: int = key(0, at_least=0)
    sha256: str = key("", **SHA256)


@dataclass
class Rule:
    """One substitution and sentences that show it: `pattern` by `replace`, or each letter by its own replacement."""

    name: str = MISSING
    pattern: str | None = None  # a regular expression; null: any one of `letters`
    replace: str = ""  # may hold groups of the pattern as \\1; an empty group is nothing
    letters: dict[str, str] = field(default_factory=dict)  # what each matched text becomes, instead of `replace`
    cases: dict[str, str] = field(default_factory=dict)


@dataclass
class Source:
    """One of several sources of a dataset; most keys are those that `dataset` has for a single one."""

    name: str = key("", **SOURCE_NAME)
    source: str = key(free=True)
    role: Role = Role.split
    weight: float = key(1.0, free=True, above=0, at_most=100)  # how often its training utterances are drawn in an epoch
    columns: dict[str, str] = field(default_factory=dict)
    recordings: str | None = None
    channel: str | None = key(None, **CHANNEL)
    download: str | None = key(None, free=True, **DATASET_ID)
    archive: Archive = field(default_factory=Archive, metadata=metadata(free=True))
    rules: list[Rule] = field(default_factory=list)  # for its sentences as they stand, before all that `text` does


@dataclass
class Dataset:
    """Step 1: from recordings and texts to manifests."""

    source: str = key(free=True)
    sources: list[Source] = field(default_factory=list)  # several, instead of `source` and the keys that describe it
    output: str = key(free=True, **PATH)
    columns: dict[str, str] = field(default_factory=dict)
    recordings: str | None = None
    channel: str | None = key(None, **CHANNEL)
    download: str | None = key(None, free=True, **DATASET_ID)
    archive: Archive = field(default_factory=Archive, metadata=metadata(free=True))
    min_duration_s: float = key(at_least=0)
    max_duration_s: float = key(above=0)
    max_missing_share: float = key(above=0, at_most=1)
    max_silence: float = key(above=0, at_most=1)
    encoder_frames_per_second: float = key(above=0)
    max_characters_per_second: float = key(above=0)
    repeated_audio: Repeated = MISSING
    trim_silence_db: float | None = key(None, above=0)
    workers: int = key(0, free=True, at_least=0, at_most=MAX_PROCESSES)
    drop: str | None = key(None, free=True, **PATH)
    shards: str | None = key(None, free=True)
    split: Split = field(default_factory=Split)


@dataclass
class Text:
    """How a sentence of the release becomes the text of an utterance."""

    alphabet: str = MISSING  # every character a text may hold, the space included
    before_lower_case: list[Rule] = field(default_factory=list)  # applied first: capitals whose lower case is another
    numbers: str | None = None  # the language whose words replace whole numbers, as num2words calls it; null: none do
    rules: list[Rule] = field(default_factory=list)  # applied in this order after NFC and lower case
    foreign: Foreign = MISSING  # characters that are outside the alphabet after the rules
    rejected_cases: list[str] = field(default_factory=list)  # sentences that must be rejected, for the tests


@dataclass
class RegistryEntry:
    """A model of the registry: where it is fetched, and what it must be."""

    url: str = MISSING  # without a user name or a password
    size_bytes: int | None = key(None, above=0)  # null: as many as the server announces
    sha256: str | None = key(None, **SHA256)  # null: not checked


@dataclass
class Model:
    """Where training starts."""

    base: str | None = None  # a path to a .nemo, a name that locate_model finds, or null: train from scratch
    architecture: str | None = None  # without a base: a NeMo model configuration
    vocabulary: VocabularyKind = MISSING
    vocabulary_size: int = key(at_least=2, at_most=MAX_PIECES)
    registry: dict[str, RegistryEntry] = field(default_factory=dict)  # by name
    folder: str = "models"  # where downloaded models are kept


@dataclass
class Optimizer:
    """As NeMo's `optim` section."""

    name: OptimizerName = MISSING
    lr: float = key(above=0)
    betas: list[float] = field(default_factory=list, metadata=metadata(at_least=0, below=1))
    weight_decay: float = key(at_least=0)


@dataclass
class Schedule:
    """Of the learning rate: cosine annealing after a linear warm-up, as NeMo's `optim.sched` section."""

    warmup_ratio: float = key(at_least=0, below=1)
    min_lr: float = key(at_least=0)


@dataclass
class SpecAugment:
    """What is masked in each training spectrogram (Park et al. 2019), as NeMo's `spec_augment` section; 0: nothing."""

    freq_masks: int = key(at_least=0)
    freq_width: int = key(at_least=1)
    time_masks: int = key(at_least=0)
    time_width: float = key(above=0)
    rect_masks: int = key(at_least=0)
    rect_freq: int = key(at_least=1)
    rect_time: int = key(at_least=1)


@dataclass
class Noise:
    """Recordings without speech that are added to training clips."""

    folder: str | None = key(None, **PATH)  # null: none is
    probability: float = key(at_least=0, at_most=1)
    min_snr_db: float = MISSING
    max_snr_db: float = MISSING


@dataclass
class Room:
    """Impulse responses of rooms, in which training clips sound as if they were said there."""

    folder: str | None = key(None, **PATH)  # null: none is
    probability: float = key(at_least=0, at_most=1)


@dataclass
class Training:
    """Step 2: two phases, the encoder frozen, then everything."""

    output: str = key(free=True, **PATH)
    name: str = key(free=True, **FILE_NAME)
    max_epochs: int = key(at_least=1)
    max_steps: int | None = key(None, at_least=1)
    frozen_epochs: int = key(at_least=0)
    decoder_init: DecoderInit = MISSING
    batch_norm: BatchNorm = MISSING
    batch_size: int = key(at_least=1)
    batch_duration_s: float | None = key(None, above=0)
    accumulate_batches: int = key(at_least=1)
    workers: int = key(free=True, at_least=0, at_most=MAX_PROCESSES)
    seed: int = key(at_least=0, at_most=MAX_SEED)
    deterministic: bool = False
    accelerator: Accelerator = field(default=MISSING, metadata=metadata(free=True))
    devices: int = key(at_least=1)
    num_nodes: int = key(at_least=1)
    precision: Precision = field(default=MISSING, metadata=metadata(free=True))
    gradient_clip: float | None = key(None, above=0)
    checkpoint_minutes: float = key(free=True, at_least=0)
    keep_best: int = key(at_least=-1)
    logger: TrackingServiceName | None = field(default=None, metadata=metadata(free=True))
    encoder_lr_scale: float = key(at_least=0)
    speed_perturbation: float = key(0.0, at_least=0, below=0.5)
    silence_s: float = key(0.0, at_least=0, at_most=10)
    gain_db: float = key(0.0, at_least=0)
    noise: Noise = field(default_factory=Noise)
    room: Room = field(default_factory=Room)
    telephone: float = key(0.0, at_least=0, at_most=1)
    dropout: float | None = key(None, at_least=0, below=1)
    spec_augment: SpecAugment = field(default_factory=SpecAugment)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)


@dataclass
class TextSource:
    """Sentences of a language model and their share in it."""

    name: str = MISSING
    file: str | None = None  # a text, a dump, a release or an address; null: the texts of the training manifest
    weight: float = key(1.0, above=0)  # of the models estimated from each source, in their mixture


@dataclass
class LanguageModel:
    """Between steps 2 and 3, on request: an n-gram model of words that helps step 3 to decode."""

    output: str = key(**PATH)
    sources: list[TextSource] = field(default_factory=list)
    order: int = key(at_least=2, at_most=MAX_ORDER)
    prune: list[int] = field(default_factory=list, metadata=metadata(at_least=0))
    min_count: int = key(at_least=1)
    file: str | None = None


@dataclass
class System:
    """Another system as a row of the table, scored by what it wrote for the utterances of the test sets."""

    name: str = key(**FILE_NAME)
    predictions: str = key(**PATH)  # a file of JSON lines, CTM, CSV or TSV, or a folder of them


@dataclass
class PublishedRow:
    """A row of somebody's published table, shown beside ours and marked as published."""

    model: str = MISSING
    loss: float = MISSING
    cer: float = MISSING  # fraction
    wer: float = MISSING  # fraction


@dataclass
class Evaluation:
    """Step 3: which models, on the test manifest."""

    models: list[Annotated[Any, str | System]] = field(default_factory=list)  # OmegaConf knows no such union
    recipes: dict[str, list[str]] = field(default_factory=dict)
    split: Evaluated = MISSING
    decoder: Decoder = MISSING
    boost: str | None = key(None, **PATH)  # words and phrases that beam search prefers, one a line
    second_wer: SecondWer | None = None
    topics: dict[str, list[str]] = field(default_factory=dict)
    predictions: str = key(**PATH)
    results: str = key(**PATH)
    batch_size: int = key(at_least=1)
    published: list[PublishedRow] = field(default_factory=list)
    published_on: str = ""
    note: str = ""


@dataclass
class Config:
    """An experiment."""

    dataset: Dataset = field(default_factory=Dataset)
    text: Text = field(default_factory=Text)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    language_model: LanguageModel = field(default_factory=LanguageModel)
    evaluation: Evaluation = field(default_factory=Evaluation)
    name: str = key(**FILE_NAME)  # of the YAML, without .yaml, unless stated
    file: ClassVar[str] = ""  # the YAML it was read from; no key of it

    def as_dict(self) -> dict[str, Any]:
        """Return the tree as plain dicts, lists and scalars for JSON; addresses without what may be a token in them."""
        tree = asdict(self, dict_factory=lambda items: {k: v.value if isinstance(v, Enum) else v for k, v in items})
        for entry in tree["model"]["registry"].values():
            entry["url"] = strip_query(entry["url"])
        for source in tree["language_model"]["sources"]:
            if source["file"] and "://" in source["file"]:
                source["file"] = strip_query(source["file"])
        return tree


def resolve_path(path: str) -> Path:
    """Return an absolute path; a relative one starts at the project's folder, wherever the script is called from."""
    try:
        return ROOT / Path(path.replace("\0", "")).expanduser()
    except RuntimeError as error:  # ~somebody
        raise UserError(f"there is no folder {path} ({error}); write the path out") from error


def strip_query(address: str) -> str:
    """Return `address` up to its `?` or `#`: what follows may be a token, and is neither printed nor stored."""
    return address.partition("?")[0].partition("#")[0]


def dataset_sources(config: Config) -> list[Source]:
    """Return the sources of a dataset: those of `dataset.sources` or, without them, the single one, without a name."""
    of = config.dataset
    single = Source("", of.source, Role.split, 1.0, of.columns, of.recordings, of.channel, of.download, of.archive)
    return of.sources or [single]


def row_name(model: str | System, config: Config) -> str:
    """Return the name of the row of one of `evaluation.models`: its own, the registry's, or the file's."""
    if isinstance(model, System):
        return model.name
    return model if model in config.model.registry else Path(model).name.removesuffix(".nemo")


def manifest_folder(config: Config) -> Path:
    """Return the folder whose manifests steps 2 and 3 read: `dataset.shards` or, without it, `dataset.output`."""
    return resolve_path(config.dataset.shards or config.dataset.output)
