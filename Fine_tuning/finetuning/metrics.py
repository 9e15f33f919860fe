"""`metrics.csv` of a training run: one row an epoch. Needs no NeMo."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetuning.files import written_whole

# losses in nats, mean over utterances; WER and CER as fractions
COLUMNS = ("epoch", "phase", "train_loss", "val_loss", "val_wer", "val_cer", "learning_rate")


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a `metrics.csv`, one an epoch; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_metrics(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the rows, whole or not at all."""
    with written_whole(path) as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
