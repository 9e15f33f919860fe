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
    """The rows of a `metrics.csv`, none where there is no such file; UserError when it is not such a table."""
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
            f"{path} is not a table of metrics ({reason}); delete it, the training goes on without"
        ) from error


def missing_epochs(path: Path, epochs: int) -> str:
    """Which of the first `epochs` a `metrics.csv` has no row of, in words; empty where it has all."""
    missing = sorted(set(range(1, epochs + 1)) - set(read_metrics(path)["epoch"]))
    if not missing:
        return ""
    return (
        f"{path} has no row of {len(missing)} of the {epochs} epochs that are done (the first is {missing[0]}): the "
        "loss curve and the model card go without"
    )


def last_validation_metrics(metrics: "pd.DataFrame") -> dict[str, float | None]:
    """Validation loss, WER and CER of the last epoch there is; None where the table was lost."""
    names = ("val_loss", "val_wer", "val_cer")
    return {name: float(metrics[name].iloc[-1]) if len(metrics) else None for name in names}


def append_row(metrics: "pd.DataFrame", row: dict[str, Any]) -> "pd.DataFrame":
    """`metrics` with `row` as the last one; rows of its own and later epochs are from a run that was cut off."""
    import pandas as pd

    kept = metrics[metrics["epoch"] < row["epoch"]]
    return pd.DataFrame([*kept.to_dict("records"), row], columns=COLUMNS)


def write_metrics(path: Path, metrics: "pd.DataFrame") -> None:
    """Write the table, whole or not at all."""
    with atomic_open(path) as file:
        metrics.to_csv(file, index=False, lineterminator="\n")
