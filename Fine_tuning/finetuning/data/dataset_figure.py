"""The figure of a dataset: hours, durations, speakers, rejected rows and, where it is known, bandwidth."""

from collections import Counter
from itertools import accumulate
from math import floor
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from finetuning.audio.measurement import TELEPHONE_HZ, is_telephone
from finetuning.data.manifest import Utterance
from finetuning.files import atomic_path
from finetuning.metrics.loss_curve import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
REJECTED = "#d55e00"
MAX_BANDWIDTH_HZ = 8000  # at 16 kHz
BANDWIDTH_STEP_HZ = 250  # of the histogram: two of the measurement, the upper of which are multiples of it


def save_dataset_figure(about: dict[str, Any], chosen: dict[str, list[Utterance]], path: Path) -> None:
    """Draw hours, durations, speakers, rejections and, below them, the bandwidth of a dataset as a PNG.

    `about` is the content of dataset.json, `chosen` that of the manifests; the same numbers give the same bytes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {"text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
    with mpl.rc_context(mpl.rcParamsDefault | style):  # whatever the user's matplotlibrc says
        hertz = {name: [u.bandwidth_hz for u in chosen[name] if u.bandwidth_hz is not None] for name in COLOURS}
        rows = [["hours", "durations"], ["speakers", "rejections"]] + [["bandwidths"] * 2] * any(hertz.values())
        figure = Figure(figsize=(11, 4 * len(rows)), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
        total = sum(split["hours"] for split in about["splits"].values())
        title = f"{about['name']}: {_hours(total)} h in {about['utterances']:,} clips"
        by = about["config"]["dataset.split"]["by"]
        figure.suptitle(f"{title}\n{about['release']}, split by {by}", fontsize=13)
        panels = figure.subplot_mosaic(rows)
        _draw_hours(panels["hours"], about["splits"])
        _draw_durations(panels["durations"], {name: [u.duration for u in chosen[name]] for name in COLOURS})
        _draw_speakers(panels["speakers"], {name: [u.speaker for u in chosen[name] if u.speaker] for name in COLOURS})
        _draw_rejections(panels["rejections"], about)
        if "bandwidths" in panels:
            _draw_bandwidths(panels["bandwidths"], hertz)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})


def _draw_hours(axes: "Axes", splits: dict[str, dict[str, float]]) -> None:
    hours = [splits[name]["hours"] for name in COLOURS]
    bars = axes.bar(range(len(hours)), hours, color=list(COLOURS.values()), width=0.65)
    axes.bar_label(bars, [f"{_hours(h)} h\n{h / (sum(hours) or 1):.1%}" for h in hours], padding=3)
    counts = [f"clips: {split['clips']:,}\nspeakers: {_count(split['speakers'])}" for split in map(splits.get, COLOURS)]
    axes.set_xticks(range(len(hours)), [f"{name}\n{count}" for name, count in zip(COLOURS, counts, strict=True)])
    axes.set(title="Hours by split", ylabel="hours")
    axes.margins(y=0.2)
    axes.grid(axis="y", alpha=0.3)


def _count(speakers: int) -> str:
    return f"{speakers:,}" if speakers else "unknown"


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.3f}"


def _draw_durations(axes: "Axes", seconds: dict[str, list[float]]) -> None:
    """Draw a stacked histogram from the shortest clip on, with bins of a round width, fewer of them for fewer clips."""
    pooled = [s for group in seconds.values() for s in group]
    max_bins = min(70.0, max(12.0, 2 * len(pooled) ** 0.4))
    span = max(pooled) - min(pooled)
    width = next(w for w in (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, max(pooled)) if span / w <= max_bins)
    edges = [width * i for i in range(floor(min(pooled) / width + 1e-9), floor(max(pooled) / width) + 2)]
    edges[0] = min(edges[0], min(pooled))  # 7 * 0.05 is more than 0.35
    stacks, *_ = axes.hist(list(seconds.values()), edges, stacked=True, color=COLOURS.values(), label=list(COLOURS))
    axes.set(title=f"Durations: mean {fmean(pooled):.2f} s, median {median(pooled):.2f} s")
    axes.set(xlabel="duration (s)", ylabel=f"clips in {width:g} s")
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.2 * stacks.max()))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, loc="upper center", ncols=len(COLOURS))


def _draw_speakers(axes: "Axes", speakers: dict[str, list[str]]) -> None:
    """Plot clips over rank on logarithmic axes: few speakers and a long tail are both readable."""
    from matplotlib.ticker import LogLocator, NullFormatter

    clips = Counter(speaker for group in speakers.values() for speaker in group)
    if not clips:
        return _draw_nothing(axes, "Clips by speaker", "no clip names its speaker")
    ranked = {name: sorted(Counter(group).values(), reverse=True) for name, group in speakers.items()}
    for (name, counts), mark in zip(ranked.items(), ("o-", "s--", "^:"), strict=True):
        size = 4 if len(counts) <= 100 else 0
        axes.plot(range(1, len(counts) + 1), counts, mark, color=COLOURS[name], markersize=size, label=name)
    cumulative = list(accumulate(sorted(clips.values(), reverse=True)))
    half = next(rank for rank, count in enumerate(cumulative, start=1) if 2 * count >= cumulative[-1])
    most = max(len(counts) for counts in ranked.values())
    top = max(counts[0] for counts in ranked.values() if counts)
    axes.set(title=f"Clips by speaker: half are by {half:,} of {len(clips):,} speakers")
    axes.set(xlabel="speakers of the split, the most active first", ylabel="clips in the split")
    axes.set(xscale="log", yscale="log", xlim=(0.8, 1.3 * most), ylim=(0.8, 1.4 * top**1.15))
    for axis, end in ((axes.xaxis, most), (axes.yaxis, top)):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if end <= 200 else (1,)))
        axis.set_major_formatter("{x:,.0f}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="major")
    axes.legend(frameon=False, loc="upper center", ncols=len(COLOURS))
    return None


def _draw_rejections(axes: "Axes", about: dict[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    title = f"Rejected: {about['rejected']:,} of {about['rows']:,} rows"
    reasons = sorted(about["rejected_by_reason"].items(), key=lambda item: (-item[1], item[0]))
    if not reasons:
        return _draw_nothing(axes, title, "no row was rejected")
    counts = [count for _, count in reasons]
    bars = axes.barh(range(len(reasons)), counts, height=min(0.8, 0.2 * len(reasons)), color=REJECTED)
    axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3)
    axes.set_yticks(range(len(reasons)), [reason for reason, _ in reasons])
    axes.set(title=title, xlabel="rows", xlim=(0, 1.2 * max(counts)), ylim=(len(reasons) - 0.5, -0.5))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", alpha=0.3)
    return None


def _draw_bandwidths(axes: "Axes", hertz: dict[str, list[float]]) -> None:
    """Draw a stacked histogram of bandwidths in Hz, with the limit up to which it is a telephone's."""
    pooled = [hz for group in hertz.values() for hz in group]
    edges = [BANDWIDTH_STEP_HZ * (number + 0.25) for number in range(-1, MAX_BANDWIDTH_HZ // BANDWIDTH_STEP_HZ + 1)]
    stacks, *_ = axes.hist(list(hertz.values()), edges, stacked=True, color=COLOURS.values(), label=list(COLOURS))
    telephone = sum(map(is_telephone, pooled))
    limit_hz = TELEPHONE_HZ + BANDWIDTH_STEP_HZ / 4  # the edge of its bar
    axes.axvline(limit_hz, color=REJECTED, linestyle="--", label=f"telephone: up to {TELEPHONE_HZ:,} Hz")
    axes.set(title=f"Bandwidth: {telephone:,} of {len(pooled):,} clips have a telephone's")
    axes.set(xlabel="highest frequency of a clip's sound (Hz)", ylabel=f"clips in {BANDWIDTH_STEP_HZ} Hz")
    axes.set(xlim=(0, edges[-1]), ylim=(0, 1.2 * stacks.max()))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, loc="upper left")


def _draw_nothing(axes: "Axes", title: str, why: str) -> None:
    axes.set_title(title)
    axes.text(0.5, 0.5, why, ha="center", va="center", color="0.3", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
