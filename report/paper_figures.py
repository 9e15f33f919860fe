"""The paper's pictures, as SVG: the same numbers give the same bytes, whatever the user's matplotlibrc says.

`recipes` as in results/reference/recipes.json: whatever variants it holds are drawn, and a picture without any is None.
"""

from collections.abc import Callable
from io import BytesIO
from statistics import fmean
from typing import TYPE_CHECKING, Any

from finetuning.metrics.loss_curve import plot_losses

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.3  # inches, of the paper's text
SIZE = 8.0  # points, of the letters
STYLE = {
    "font.family": "STIXGeneral",  # comes with matplotlib, goes with the paper's
    "font.size": SIZE + 1,  # its letters are small
    "axes.titlesize": SIZE + 1,
    "legend.fontsize": SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "svg.hashsalt": "paper",
    "text.parse_math": False,
}
GRID = {"alpha": 0.3, "linewidth": 0.5}
Look = tuple[str, str, str, str]  # name, colour of Okabe and Ito, line style, marker
START: dict[str, Look] = {
    "warm": ("warm decoder", "#0072b2", "-", "o"),
    "random": ("random decoder", "#d55e00", "--", "s"),
    "from scratch": ("without the English base", "#009e73", ":", "^"),
}
PHASES: dict[str, Look] = {
    "0 frozen epochs": ("never frozen", "#d55e00", "--", "s"),
    "warm": ("5 epochs", "#0072b2", "-", "o"),
    "10 frozen epochs": ("10 epochs", "#009e73", "-.", "^"),
    "10 frozen epochs and batch normalisation": ("10, and its batch norm.", "#cc79a7", ":", "D"),
    "always frozen": ("to the end", "#000000", (0, (6, 1.5)), "v"),
}
SHARES = {"a quarter of the hours": 0.25, "half of the hours": 0.5, "warm": 1.0}


def losses(metrics: "pd.DataFrame") -> bytes:
    """Training and validation loss per epoch, the frozen phase marked; `metrics` as in metrics.csv."""

    def draw(figure: "Figure") -> None:
        plot_losses(figure.subplots(), metrics)

    return _svg(draw, WIDTH, 2.3)


def epochs(recipes: dict[str, Any]) -> bytes | None:
    """Validation WER per epoch: what training starts from, and how long the encoder is frozen."""
    panels = {
        "What training starts from": START,
        "How long the encoder is frozen": PHASES,
    }
    found = {
        title: {variant: look for variant, look in looks.items() if _curves(recipes, variant)}
        for title, looks in panels.items()
    }
    found = {title: looks for title, looks in found.items() if set(looks) - {"warm"}}
    if not found:
        return None

    def draw(figure: "Figure") -> None:
        every = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for axes, (title, looks) in zip(every, found.items(), strict=True):
            for offset, (variant, look) in enumerate(looks.items()):
                _band(axes, _curves(recipes, variant), look, offset)
            axes.set(title=title, xlabel="epoch", ylim=(0, 1.45), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
            axes.grid(**GRID)
            axes.legend(
                frameon=False, loc="upper center", handlelength=2.7, ncols=2, columnspacing=0.8, borderaxespad=0
            )
        every[0].set_ylabel("validation WER")

    return _svg(draw, WIDTH, 2.7)


def hours(recipes: dict[str, Any]) -> bytes | None:
    """Test WER of each seed against the minutes of training speech, and their mean."""
    minutes = {
        variant: recipes.get("hours", 0) * 60 * share
        for variant, share in SHARES.items()
        if variant in recipes["variants"]
    }
    if len(minutes) < 2 or not recipes.get("hours"):
        return None
    wers = {variant: [run["wer"] for run in recipes["variants"][variant]["runs"]] for variant in minutes}

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.plot(minutes.values(), list(map(fmean, wers.values())), "-", color="#0072b2", label="mean")
        for number, (variant, each) in enumerate(wers.items()):
            label = None if number else "one seed"
            axes.plot([minutes[variant]] * len(each), each, "o", color="#d55e00", mfc="none", ms=4, label=label)
        axes.set(xscale="log", xlabel="training speech (minutes)", ylabel="test WER", ylim=(0, None))
        axes.set_xticks(list(minutes.values()), [f"{value:.1f}" for value in minutes.values()])
        axes.minorticks_off()
        axes.margins(x=0.12)
        axes.grid(**GRID)
        axes.legend(frameon=False)

    return _svg(draw, WIDTH / 2 - 0.1, 2.1)


def seeds(recipes: dict[str, Any]) -> bytes | None:
    """Test WER of each seed of the demo, greedy decoding beside the language model."""
    runs = recipes["variants"].get("demo", {}).get("runs", [])
    pairs = [(seed, run) for seed, run in zip(recipes["seeds"], runs, strict=False) if "lm_wer" in run]
    if not pairs:
        return None

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        looks = {"wer": ("greedy", "#56b4e9", ""), "lm_wer": ("with language model", "#0072b2", "////")}
        for place, (key, (name, colour, hatch)) in zip((-0.2, 0.2), looks.items(), strict=True):
            places = [number + place for number in range(len(pairs))]
            heights = [run[key] for _, run in pairs]
            bars = axes.bar(places, heights, 0.36, color=colour, hatch=hatch, edgecolor="white", lw=0, label=name)
            axes.bar_label(bars, [f"{height:.3f}" for height in heights], padding=1.5, fontsize=SIZE)
        axes.set_xticks(range(len(pairs)), [f"{seed}" for seed, _ in pairs])
        axes.set(xlabel="seed of the training", ylabel="test WER")
        axes.set_ylim(0, 1.4 * max(run[key] for _, run in pairs for key in looks))
        axes.grid(axis="y", **GRID)
        axes.legend(frameon=False, ncols=2, loc="upper center", columnspacing=1, handlelength=1.6)

    return _svg(draw, WIDTH / 2 - 0.1, 2.1)


def _curves(recipes: dict[str, Any], variant: str) -> list[list[float]]:
    """Validation WER per epoch of each run, none where that was not kept."""
    runs = recipes["variants"].get(variant, {}).get("runs", [])
    return [run["val_wer"] for run in runs if "val_wer" in run]


def _band(axes: "Axes", curves: list[list[float]], look: Look, offset: int) -> None:
    """Mean over the runs as a line, from lowest to highest as a band."""
    name, colour, line, marker = look
    columns = list(zip(*curves, strict=True))
    numbers = range(1, len(columns) + 1)
    axes.fill_between(numbers, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.15, lw=0)
    every = (offset % 5, 5)  # so that markers do not hide each other
    axes.plot(
        numbers, list(map(fmean, columns)), ls=line, color=colour, marker=marker, ms=3.5, markevery=every, label=name
    )


def _svg(draw: Callable[["Figure"], None], width: float, height: float) -> bytes:
    """What `draw` puts into a figure of so many inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(mpl.rcParamsDefault | STYLE):
        figure, drawn = Figure(figsize=(width, height), layout="constrained"), BytesIO()
        draw(figure)
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()
