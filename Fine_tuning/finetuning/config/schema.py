"""An experiment: a tree of dataclasses, read from YAML by config_file.py, which asks config_check.py."""

from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from finetuning.errors import UserError

ROOT = Path(__file__).resolve().parents[3]  # paths in a config are relative to this folder


class SplitBy(Enum):
    """Who is kept together: all clips of a speaker, nothing (the published protocol), or as the release says."""

    speaker = 1
    clip = 2
    release = 3


class Foreign(Enum):
    """A letter outside the alphabet rejects its row, or is written in letters of the alphabet where there are some."""

    reject = 1
    transliterate = 2


@dataclass
class Split:
    """Shares of train, validation and test, and how they are drawn."""

    by: SplitBy = SplitBy.speaker
    train: float = 0.70
    validation: float = 0.15
    test: float = 0.15
    seed: int = 0


@dataclass
class Archive:
    """The published archive: `dataset.source` is checked against it when it bears this name."""

    name: str = ""
    size_bytes: int = 0
    sha256: str = ""  # in hexadecimal


@dataclass
class Dataset:
    """Step 1: from a release to manifests."""

    source: str = "???"
    output: str = "???"
    download: str | None = None  # its id at the Mozilla Data Collective: fetched when it is not there
    archive: Archive = field(default_factory=Archive)
    min_duration_s: float = 0.1
    max_duration_s: float = 16.7
    max_missing_share: float = 0.1  # a clip shorter than clip_durations.tsv says by more than this share is truncated
    encoder_frames_per_second: float = 50.0  # QuartzNet: 10 ms window stride, stride 2
    trim_silence_db: float | None = None  # cut leading and trailing sound this far below the peak
    workers: int = 0  # processes; 0: one for each core
    shards: str | None = None  # folder for the same in a few large tars; steps 2 and 3 read them when it is given
    split: Split = field(default_factory=Split)


@dataclass
class Rule:
    """One substitution and sentences that show it: `pattern` by `replace`, or each letter by its own replacement."""

    name: str = "???"
    pattern: str | None = None  # a regular expression; null: any one of `letters`
    replace: str = ""  # may hold groups of the pattern as \\1; an empty group is nothing
    letters: dict[str, str] = field(default_factory=dict)  # what each matched text becomes, instead of `replace`
    cases: dict[str, str] = field(default_factory=dict)


@dataclass
class Text:
    """How a sentence of the release becomes the text of an utterance."""

    alphabet: str = "???"  # every character a text may hold, the space included
    before_lower_case: list[Rule] = field(default_factory=list)  # applied first: capitals whose lower case is another
    numbers: str | None = None  # the language whose words replace whole numbers, as num2words calls it; null: none do
    rules: list[Rule] = field(default_factory=list)  # applied in this order after NFC and lower case
    foreign: Foreign = Foreign.reject  # letters that are outside the alphabet after the rules
    rejected_cases: list[str] = field(default_factory=list)  # sentences that must be rejected, for the tests


@dataclass
class RegistryEntry:
    """A model of the registry: where it is fetched, and what it must be."""

    url: str = "???"  # without a user name or a password
    size_bytes: int | None = None  # null: as many as the server announces
    sha256: str | None = None  # in hexadecimal; null: not checked


@dataclass
class Model:
    """Where training starts."""

    base: str | None = None  # a name in the registry, a path to a .nemo, or null: train from scratch
    architecture: str | None = None  # without a base: a NeMo model configuration
    registry: dict[str, RegistryEntry] = field(default_factory=dict)  # by name
    folder: str = "models"  # where downloaded models are kept


@dataclass
class Optimizer:
    """As NeMo's `optim` section."""

    name: str = "novograd"
    lr: float = 5e-4
    betas: list[float] = field(default_factory=lambda: [0.95, 0.5])
    weight_decay: float = 1e-3


@dataclass
class Schedule:
    """Of the learning rate: cosine annealing after a linear warm-up, as NeMo's `optim.sched` section."""

    warmup_ratio: float = 0.05  # share of all steps
    min_lr: float = 1e-5


@dataclass
class Training:
    """Step 2: two phases, the encoder frozen, then everything."""

    output: str = "???"
    name: str = "???"  # of the exported model, without .nemo
    max_epochs: int = 50
    frozen_epochs: int = 10
    decoder_init: str = "random"  # random | warm: rows of letters the base model writes are kept
    batch_norm: str = "train"  # of the frozen encoder: train | frozen
    batch_size: int = 32
    batch_duration_s: float | None = None  # instead of batch_size: utterances of nearly equal duration
    workers: int = 0  # processes that read audio; 0: the training process itself
    seed: int = 0
    deterministic: bool = False  # also on a GPU, as far as torch can
    accelerator: str = "auto"  # auto: a GPU when there is one
    devices: int = 1  # GPUs or, on CPUs, processes on each node; each takes batches of its own
    num_nodes: int = 1
    precision: str = "auto"  # auto: 16-mixed on a GPU, 32-true on a CPU
    gradient_clip: float | None = None  # largest norm of all gradients together
    checkpoint_minutes: float = 30.0  # between two checkpoints within an epoch
    keep_best: int = 3  # checkpoints kept by validation loss, beside the last one
    encoder_lr_scale: float = 1.0  # the encoder's learning rate is the optimizer's times this
    speed_perturbation: float = 0.0  # each training clip is played up to this share faster or slower
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)


@dataclass
class TextSource:
    """Sentences of a language model and their share in it."""

    name: str = "???"
    file: str | None = None  # UTF-8, a sentence a line; null: the texts of the training manifest
    weight: float = 1.0  # of the models estimated from each source, in their mixture


@dataclass
class LanguageModel:
    """Between steps 2 and 3, when asked: an n-gram model of words that helps step 3 to decode."""

    output: str = "???"
    sources: list[TextSource] = field(default_factory=lambda: [TextSource("training")])
    order: int = 4  # words of the longest n-gram
    prune: list[int] = field(default_factory=list)  # for each order: n-grams seen at most so often are left out
    min_count: int = 1  # words seen less often are unknown ones
    file: str | None = None  # ARPA or KenLM's binary that is there already: nothing is estimated


@dataclass
class PublishedRow:
    """A row of somebody's published table, shown beside ours and marked as published."""

    model: str = "???"
    loss: float = 0.0
    cer: float = 0.0  # fraction
    wer: float = 0.0  # fraction


@dataclass
class Evaluation:
    """Step 3: which models, on the test manifest."""

    models: list[str] = field(default_factory=list)  # names in the registry or paths to .nemo files
    decoder: str = "greedy"  # greedy | lm: greedy and, beside it, beam search with the language model
    topics: dict[str, list[str]] = field(default_factory=dict)  # parts of the test set: texts with one of these words
    predictions: str = "???"  # folder for predictions.jsonl, one folder a model
    results: str = "???"  # folder for the results, one small JSON a model
    batch_size: int = 16
    published: list[PublishedRow] = field(default_factory=list)
    published_on: str = ""  # the data of the published rows, in words
    note: str = ""  # printed below the table


@dataclass
class Config:
    """An experiment."""

    dataset: Dataset = field(default_factory=Dataset)
    text: Text = field(default_factory=Text)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    language_model: LanguageModel = field(default_factory=LanguageModel)
    evaluation: Evaluation = field(default_factory=Evaluation)
    name: str = "???"
    file: ClassVar[str] = ""  # the YAML it was read from; no key of it

    def as_dict(self) -> dict[str, Any]:
        """The tree as plain dicts, lists and scalars, ready for JSON; addresses without what may be a token in them."""
        tree = asdict(self, dict_factory=lambda items: {k: v.name if isinstance(v, Enum) else v for k, v in items})
        for entry in tree["model"]["registry"].values():
            entry["url"] = strip_query(entry["url"])
        return tree


def resolve_path(path: str) -> Path:
    """An absolute path; a relative one starts at the project's folder, wherever the script is called from."""
    try:
        return ROOT / Path(path.replace("\0", "")).expanduser()
    except RuntimeError as error:  # ~somebody
        raise UserError(f"there is no folder {path} ({error}); write the path out") from error


def strip_query(address: str) -> str:
    """`address` up to its `?` or `#`: what follows may be a token, and is neither printed nor stored."""
    return address.partition("?")[0].partition("#")[0]


def manifest_folder(config: Config) -> Path:
    """The folder whose manifests steps 2 and 3 read: `dataset.shards` or, without it, `dataset.output`."""
    return resolve_path(config.dataset.shards or config.dataset.output)
