"""`metrics.csv` of a training run: a row an epoch; losses in nats, mean over utterances; WER and CER as fractions."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.errors import UserError
from finetuning.files import written_whole

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["epoch", "phase", "train_loss", "val_loss", "val_wer", "val_cer", "learning_rate"]


def read_metrics(path: Path) -> "pd.DataFrame":
    """The rows of a `metrics.csv`, none where there is no such file; UserError when it is not such a table."""
    import pandas as pd

    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    try:
        return pd.read_csv(path)[COLUMNS]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path} is not a table of metrics ({error}); delete it, the training goes on without"
        ) from error


def with_row(metrics: "pd.DataFrame", row: dict[str, Any]) -> "pd.DataFrame":
    """`metrics` with `row` as the last one; rows of its own and later epochs are from a run that was cut off."""
    import pandas as pd

    kept = metrics[metrics["epoch"] < row["epoch"]]
    return pd.DataFrame([*kept.to_dict("records"), row], columns=COLUMNS)


def write_metrics(path: Path, metrics: "pd.DataFrame") -> None:
    """Write the table, whole or not at all."""
    with written_whole(path) as file:
        metrics.to_csv(file, index=False, lineterminator="\n")
