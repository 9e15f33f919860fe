"""What a source of recordings lists, whether it is a Common Voice release or a table of somebody's own."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a recording that a row of a table means."""

    recording: Path
    wav: str  # file name of the converted clip
    start_s: float = 0.0
    end_s: float | None = None  # None: the end of the recording
    channel: str = ""  # 0, 1, …, or mix: their mean; "": the only one


@dataclass(frozen=True, slots=True, order=True)
class Clip:
    """One row of a table."""

    path: str  # of a release: file name in clips/; of a table: what it names, and which part of it
    sentence: str  # as it stands there
    speaker: str = ""  # client_id
    gender: str = ""
    age: str = ""
    accents: str = ""
    cut: Cut | None = field(default=None, compare=False)  # None: all of a file in clips/, its channels mixed

    @property
    def wav(self) -> str:
        """File name of the converted clip."""
        return self.cut.wav if self.cut else (self.path.rpartition(".")[0] or self.path) + ".wav"


@dataclass(frozen=True, slots=True, order=True)
class RejectedRow:
    """A row that did not become an utterance."""

    path: str
    reason: str
    detail: str = ""


Recording = tuple[bytes | Path, list[Clip]]  # a file or its content, and the rows that mean parts of it


@dataclass(frozen=True)
class Listing:
    """The rows of a source and where their audio is."""

    name: str  # of a release's folder and its language: cv-corpus-24.0-2025-12-05/it; or of the table
    table: str  # name of the file with the rows
    identity: dict[str, Any]  # differs when the source does
    rows: list[Clip]  # sorted: they do not depend on the order of the lines
    rejected: list[RejectedRow]  # malformed rows
    speakers_named: bool
    stamps: dict[str, str]  # by Clip.path, of those whose file is there: differs when the clip does
    durations_s: dict[str, float] | None  # stated, by Clip.path
    splits: dict[str, list[str]] | None  # by Clip.path: which of train, validation, test the source puts it into
    iter_recordings: Callable[[Iterable[Clip]], Iterator[Recording]]  # of the given rows, each recording once
    notes: list[str] = field(default_factory=list)  # for the user

    @property
    def row_count(self) -> int:
        """Return how many rows there are, the malformed ones included."""
        return len(self.rows) + len(self.rejected)

    @property
    def where(self) -> str:
        """Return where the recordings lie, for messages."""
        return "clips/" if self.table == "validated.tsv" else "the folder of the table"
