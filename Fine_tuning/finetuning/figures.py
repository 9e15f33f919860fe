"""Pictures drawn from the numbers a run has written."""

from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.files import replacing

if TYPE_CHECKING:
    import pandas as pd


def loss_curve(metrics: "pd.DataFrame", title: str, path: Path) -> None:
    """Draw training and validation loss per epoch, the frozen phase marked, as a PNG.

    `metrics` as read from metrics.csv: epoch, phase, train_loss, val_loss (mean over utterances, nats).
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    epochs = metrics["epoch"]
    frozen = (metrics["phase"] == "frozen").sum()
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    axes.plot(epochs, metrics["val_loss"], "o-", color="#0072b2", markersize=4, label="validation")
    axes.plot(epochs, metrics["train_loss"], "s--", color="#d55e00", markersize=3.5, label="training")
    if frozen:
        axes.axvspan(epochs.min() - 0.5, frozen + 0.5, color="0.9", zorder=0, label="encoder frozen")
    axes.set(title=title, xlabel="epoch", ylabel="CTC loss (nats per utterance)", yscale="log")
    axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
    axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})
    plt.close(figure)
