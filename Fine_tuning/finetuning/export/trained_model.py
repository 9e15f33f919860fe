"""A finished model, as the three steps have written it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.errors import UserError
from finetuning.evaluation.results import Comparison, Result
from finetuning.model import nemo_file

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TrainedModel:
    """All that is known of a finished model, as the three steps have written it."""

    name: str
    license: str
    language: str  # its code, of ISO 639
    network: dict[str, Any]  # the model's own configuration
    run: dict[str, Any]  # run.json
    dataset: dict[str, Any]  # dataset.json
    metrics: "pd.DataFrame"  # metrics.csv
    rows: list[Result]  # greedy and, where there is one, with the language model
    compared: list[Comparison]
    synthetic: bool  # whether the speech is
    repository: str | None = None  # OWNER/NAME on the hub, when it goes there
    onnx: dict[str, Any] | None = None  # what onnx_files.RECORD holds

    @property
    def file_name(self) -> str:
        """Return the name of the exported `.nemo`: on the hub NeMo looks for the one named after the repository."""
        return f"{self.repository.partition('/')[2] if self.repository else self.name}.nemo"

    @property
    def base(self) -> str | None:
        """Return the base model's name, the registry's or the file's; None when trained from scratch."""
        base = self.run["config"]["model"]["base"]
        return base and Path(base).name.removesuffix(".nemo")

    @property
    def architecture(self) -> str:
        """Return QuartzNet, known by its blocks (separable, no squeeze-and-excitation), or the encoder's class."""
        encoder = self.network["encoder"]
        blocks = encoder.get("jasper", [])
        if any(block.get("separable") for block in blocks) and not any(block.get("se") for block in blocks):
            return "QuartzNet"
        return encoder["_target_"].rpartition(".")[2]


def language_of(release: str) -> str:
    """Return the language that a release of Common Voice is named after; raise UserError for other names."""
    codes = set(re.findall(r"cv-corpus-[^/]*/([a-z]{2,3})\b", release))
    if len(codes) != 1:
        raise UserError(f"the name of the data, {release}, does not say the language; add for example --language it")
    return codes.pop()


def read_network(path: Path) -> dict[str, Any]:
    """Return the configuration inside a `.nemo` file; raise UserError when `path` is no such file."""
    try:
        return nemo_file.read_config(path)
    except Exception as error:  # of tarfile, gzip or YAML
        raise UserError(f"{path} is no model of NeMo, or damaged; delete it and train it again") from error
