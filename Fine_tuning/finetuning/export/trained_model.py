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
    network: dict[str, Any]  # the model's own configuration
    run: dict[str, Any]  # run.json
    dataset: dict[str, Any]  # dataset.json
    metrics: "pd.DataFrame"  # metrics.csv
    rows: list[Result]  # by the best path and, where there is one, with the language model
    compared: list[Comparison]
    synthetic: bool  # whether the speech is

    @property
    def language(self) -> str:
        """Its code, from the release's folder; UserError where that is called otherwise."""
        code = self.dataset["release"].rpartition("/")[2].partition("-")[0].lower()
        if not re.fullmatch("[a-z]{2,3}", code):
            raise UserError(
                f"the release {self.dataset['release']} does not say its language; call its folder by the language's "
                "code, as cv-corpus-…/it, and run step 1 again"
            )
        return code

    @property
    def base(self) -> str | None:
        """What the base model is called: the registry's name or the file's; None when trained from scratch."""
        base = self.run["config"]["model"]["base"]
        return base and Path(base).name.removesuffix(".nemo")

    @property
    def architecture(self) -> str:
        """QuartzNet by its blocks (time-channel separable, no squeeze-and-excitation), or the encoder's class."""
        encoder = self.network["encoder"]
        blocks = encoder.get("jasper", [])
        if any(block.get("separable") for block in blocks) and not any(block.get("se") for block in blocks):
            return "QuartzNet"
        return encoder["_target_"].rpartition(".")[2]


def read_network(path: Path) -> dict[str, Any]:
    """The configuration inside a `.nemo` file; UserError when it is none."""
    try:
        return nemo_file.read_config(path)
    except Exception as error:  # of tarfile, gzip or YAML
        raise UserError(f"{path} is no model of NeMo, or damaged; delete it and train it again") from error
