"""What the recordings of a dataset are: a summary of their measurements, and what of it a user should know."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from finetuning.audio.measurement import Measurement, is_telephone

QUANTILES = {"5%": 0.05, "50%": 0.5, "95%": 0.95}
CLIPPED = 0.001  # of a clip's samples: if more are at full scale, it was recorded too loud
MOSTLY_SILENT = 0.75  # of a clip's time
NOTABLE_SHARE = 0.01  # of the clips; what is rarer is not printed
NOTABLE = {"telephone": "telephone", "clipped": "clipped", "mostly_silent": "mostly silent"}  # what the screen says


def describe_sounds(sounds: Iterable[Measurement | None]) -> dict[str, Any]:
    """Return a summary of the clips that were measured; the same clips in any order give the same.

    How many have each rate, number of channels and codec; how many are notable, by the keys of NOTABLE; and quantiles,
    each the value of a clip.
    """
    known = [sound for sound in sounds if sound]
    if not known:
        return {"measured": 0}
    return {
        "measured": len(known),
        "rate_hz": _counts(sound.rate_hz for sound in known),
        "channels": _counts(sound.channels for sound in known),
        "codec": _counts(sound.codec for sound in known),
        "telephone": sum(is_telephone(sound.bandwidth_hz) for sound in known),
        "clipped": sum(sound.clipped_share > CLIPPED for sound in known),
        "mostly_silent": sum(sound.silent_share > MOSTLY_SILENT for sound in known),
        **{
            name: _quantiles([getattr(sound, name) for sound in known])
            for name in ("bandwidth_hz", "level_dbfs", "clipped_share", "silent_share")
        },
    }


def _counts(values: Iterable[Any]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items())}


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return the smallest values that at least these shares of all do not exceed."""
    ordered = sorted(values)
    return {name: ordered[-int(-share * len(ordered) // 1) - 1] for name, share in QUANTILES.items()}


def format_notable(about: dict[str, Any]) -> list[str]:
    """Return a line for the screen about what more than a few of the recordings are; none when that is nothing."""
    measured = about["measured"]
    found = [
        f"{about[key]:,} ({about[key] / measured:.0%}) {what}"
        for key, what in NOTABLE.items()
        if measured and about[key] >= NOTABLE_SHARE * measured
    ]
    return [f"recordings: {', '.join(found)}"] if found else []
