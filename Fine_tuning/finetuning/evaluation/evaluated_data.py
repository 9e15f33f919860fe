"""The utterances that models are evaluated on: of the test set, of each further one, or of another split."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from finetuning.config.schema import Evaluated
from finetuning.data.manifest import Utterance, find_test_sets, manifest_path, read_manifest
from finetuning.decoding import prediction_cache
from finetuning.errors import UserError
from finetuning.files import sha256


@dataclass(frozen=True)
class Data:
    """The utterances of a manifest, and the hash of the file they were read from."""

    manifest: Path
    sha256: str
    utterances: list[Utterance]
    part: str = ""  # folder of what is written about it, "" for the test set of the split

    @property
    def folder(self) -> Path:
        """Return the folder that the wavs' paths are relative to."""
        return self.manifest.parent

    @property
    def hours(self) -> float:
        """Return the duration of all utterances."""
        return sum(utterance.duration for utterance in self.utterances) / 3600

    @cached_property
    def audio(self) -> str:
        """Return the state of the wavs when this is first asked for; a wav that changes has another state."""
        return prediction_cache.audio_state(self.utterances, self.folder)


def find_manifests(folder: Path, split: Evaluated) -> dict[str, Path]:
    """Return the manifests to evaluate by the part that they are: of the test, "" and each further test set."""
    if split is Evaluated.test:
        return {name.removeprefix("test") and name: path for name, path in find_test_sets(folder).items()}
    return {f"all_of_{split}": manifest_path(folder, split)}


def read_data(manifest: Path, part: str = "") -> Data:
    """Return the manifest's utterances and its hash; raise UserError where one has no text to score against.

    `part`: the folder of what is written about them, beside that of the test set.
    """
    before = sha256(manifest) if manifest.is_file() else ""
    utterances = read_manifest(manifest)
    for number, utterance in enumerate(utterances, start=1):
        if not utterance.text.strip():
            raise UserError(f"{manifest}, utterance {number} has an empty text to score against; run step 1 again")
    if sha256(manifest) != before:
        raise UserError(f"{manifest} was replaced while it was read; rerun the same command")
    return Data(manifest, before, utterances, part)


def read_training(folder: Path) -> list[Utterance] | None:
    """Return the utterances of the training manifest in `folder`, None where there is none."""
    manifest = manifest_path(folder, "train")
    return read_manifest(manifest, check_audio=False) if manifest.is_file() else None
