from dataclasses import replace

from finetuning.audio.measurement import Measurement
from finetuning.data import sound_summary

STUDIO = Measurement(48000, 1, "mp3", 7250, -20.5, 0.0, 0.25)
CALL = Measurement(8000, 2, "gsm", 3875, -31.0, 0.00101, 0.751)


def test_recordings_are_counted_and_their_quantiles_are_values_of_clips() -> None:
    levels = [replace(STUDIO, level_dbfs=-20.0 - number / 10) for number in range(20)]
    found = sound_summary.describe_sounds([None, *levels, CALL, None])
    assert found == {
        "measured": 21,
        "rate_hz": {"8000": 1, "48000": 20},
        "channels": {"1": 20, "2": 1},
        "codec": {"gsm": 1, "mp3": 20},
        "telephone": 1,
        "clipped": 1,
        "mostly_silent": 1,
        "bandwidth_hz": {"5%": 7250, "50%": 7250, "95%": 7250},
        "level_dbfs": {"5%": -21.9, "50%": -21.0, "95%": -20.1},
        "clipped_share": {"5%": 0.0, "50%": 0.0, "95%": 0.0},
        "silent_share": {"5%": 0.25, "50%": 0.25, "95%": 0.25},
    }
    assert list(found["rate_hz"]) == ["8000", "48000"]
    assert found == sound_summary.describe_sounds([CALL, *levels[::-1]])
    assert sound_summary.describe_sounds([CALL])["level_dbfs"] == dict.fromkeys(("5%", "50%", "95%"), -31.0)


def test_what_was_not_measured_is_not_described() -> None:
    assert sound_summary.describe_sounds([None, None]) == {"measured": 0}
    assert sound_summary.format_notable({"measured": 0}) == []


def test_only_what_more_than_a_few_are_is_said() -> None:
    def said(*sounds: Measurement) -> list[str]:
        return sound_summary.format_notable(sound_summary.describe_sounds(sounds))

    assert said(*[STUDIO] * 100) == []
    assert said(*[STUDIO] * 100, CALL) == []
    calls = [replace(STUDIO, bandwidth_hz=hertz) for hertz in (4000, 4250, 4375)]
    assert said(*[STUDIO] * 97, *calls) == ["recordings: 2 (2%) telephone"]
    assert said(CALL, STUDIO) == ["recordings: 1 (50%) telephone, 1 (50%) clipped, 1 (50%) mostly silent"]
