"""`metrics.csv` of a training run: a row an epoch; losses in nats, mean over utterances; WER and CER as fractions."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.errors import UserError, printable
from finetuning.files import atomic_open

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["epoch", "phase", "train_loss", "val_loss", "val_wer", "val_cer", "learning_rate"]


def read_metrics(path: Path) -> "pd.DataFrame":
    """Return the rows of a `metrics.csv`, none where there is no file; raise UserError when it is no such table."""
    import pandas as pd

    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    try:
        table = pd.read_csv(path)[COLUMNS]
        figures = table[[name for name in COLUMNS if name != "phase"]].apply(pd.to_numeric)
        if not (figures["epoch"] % 1 == 0).all() or not figures["epoch"].is_monotonic_increasing:
            raise ValueError("the epochs are not numbered in their order")
        if figures.isin([math.inf, -math.inf]).any(axis=None):
            raise ValueError("a figure is infinite")
        return table.assign(**figures)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        reason = printable(str(error))[:200]
        raise UserError(
            f"{path} is not a table of metrics ({reason}); delete it, training continues without it"
        ) from error


def missing_epochs(path: Path, epochs: int) -> str:
    """Return a sentence on which of the first `epochs` have no row in a `metrics.csv`; empty where all have one."""
    missing = sorted(set(range(1, epochs + 1)) - set(read_metrics(path)["epoch"]))
    if not missing:
        return ""
    return (
        f"{path} has no row of {len(missing)} of the {epochs} epochs that are done (the first is {missing[0]}): the "
        "loss curve and the model card lack them"
    )


def last_validation_metrics(metrics: "pd.DataFrame") -> dict[str, float | None]:
    """Return validation loss, WER and CER of the last epoch; None for each where the table has no rows."""
    names = ("val_loss", "val_wer", "val_cer")
    return {name: float(metrics[name].iloc[-1]) if len(metrics) else None for name in names}


def append_row(metrics: "pd.DataFrame", row: dict[str, Any]) -> "pd.DataFrame":
    """Return `metrics` and `row`, without rows of the same and later epochs, which an interrupted run left."""
    import pandas as pd

    earlier = metrics[metrics["epoch"] < row["epoch"]]
    return pd.DataFrame([*earlier.to_dict("records"), row], columns=COLUMNS)


def write_metrics(path: Path, metrics: "pd.DataFrame") -> None:
    """Write the table atomically."""
    with atomic_open(path) as file:
        metrics.to_csv(file, index=False, lineterminator="\n")
