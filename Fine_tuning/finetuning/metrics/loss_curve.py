"""The loss curve of a training run: training and validation loss per epoch."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Okabe and Ito: distinct to the colour-blind and, by their lightness, in grey print
COLOURS = {"train": "#0072b2", "validation": "#e69f00", "test": "#009e73"}


def save_loss_curve(metrics: "pd.DataFrame", title: str, path: Path) -> None:
    """Draw training and validation loss per epoch, the frozen phase marked, as a PNG; `metrics` as in metrics.csv."""
    png = render_loss_curve(metrics, title)
    with atomic_path(path) as temporary:
        temporary.write_bytes(png)


def render_loss_curve(metrics: "pd.DataFrame", title: str) -> bytes:
    """Return the loss curve as a PNG; the same metrics give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(mpl.rcParamsDefault):  # whatever the user's matplotlibrc says
        figure, png = Figure(figsize=(8, 4.8), layout="constrained"), BytesIO()
        axes = figure.subplots()
        plot_losses(axes, metrics)
        axes.set_title(title)
        figure.savefig(png, dpi=150, format="png", metadata={"Software": None})
    return png.getvalue()


def plot_losses(axes: "Axes", metrics: "pd.DataFrame") -> None:
    """Plot training and validation loss; `metrics`: epoch, phase, train_loss, val_loss (mean over utterances, nats)."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    epochs = metrics["epoch"]
    frozen = (metrics["phase"] == "frozen").sum()
    axes.plot(epochs, metrics["val_loss"], "o-", color="#0072b2", markersize=4, label="validation")
    axes.plot(epochs, metrics["train_loss"], "s--", color="#d55e00", markersize=3.5, label="training")
    if frozen:
        axes.axvspan(epochs.min() - 0.5, frozen + 0.5, color="0.9", zorder=0, label="encoder frozen")
    axes.set(xlabel="epoch", ylabel="CTC loss (nats per utterance)", yscale="log")
    axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(15, integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())  # by default it labels some where the major ticks are few
    axes.grid(alpha=0.3)
    axes.legend()
