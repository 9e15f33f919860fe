"""The paper's numbers of benchmarks/: ways to do each step, and ways to decode."""

from collections.abc import Mapping
from typing import Any

from wording import DECODINGS, short


def decoding(of: dict[str, Any] | None) -> dict[str, Any]:
    """The rows of the comparison of ways to decode; none where it was not run."""
    if of is None:
        return {}
    lacking = of["unknown_words"]
    rows = [
        {
            "way": name,
            "wer": f"{of['wer'][way]:.3f}",
            "lacking_wer": f"{lacking['wer'][way]:.3f}" if way in lacking["wer"] else "",
            "written": str(lacking["written"].get(way, "")),
            "speed": short(of["audio_s_per_s"][way]["median"]) if way in of["audio_s_per_s"] else "",
        }
        for way, name in DECODINGS.items()
        if way in of["wer"]
    ]
    return {
        "rows": rows,
        "lacking": str(lacking["words"]),
        "rounds": str(of["rounds"]),
        "machine": of["machine"],
        "data": of["data"],
    }


def speed(found: Mapping[str, Any]) -> dict[str, Any]:
    """Ways to do each step: how fast, and how that compares."""
    creation, training, evaluation = (found[name] for name in ("dataset_creation", "training", "evaluation"))
    batch, trained = evaluation["batch"], training["stock_to"]
    return {
        "steps": [
            {
                "name": "mp3 to wav, clips/s",
                "ways": [
                    _way("this project, from the archive", creation["clips_per_s"]["archive"]),
                    _way("sox, a process a clip", creation["clips_per_s"]["sox"], creation["archive_to"]["sox"]),
                    _way("pydub, one process", creation["clips_per_s"]["original"], creation["archive_to"]["original"]),
                ],
            },
            {
                "name": "a training step, s of audio/s",
                "ways": [
                    _way("this project, random batches", training["audio_s_per_s"]["convolutions"]),
                    _way("stock NeMo, random batches", training["audio_s_per_s"]["stock"], trained["convolutions"]),
                    _way("this project, batches by duration", training["audio_s_per_s"]["and batches"]),
                ],
            },
            {
                "name": "the test set, s of audio/s",
                "ways": [
                    _way("this project", evaluation["audio_s_per_s"]["this"]),
                    _way(
                        f"NeMo's transcribe(), batches of {batch}",
                        evaluation["audio_s_per_s"]["transcribe"],
                        evaluation["this_to"]["transcribe"],
                    ),
                    _way(
                        "Trainer.test() for WER and again for CER",
                        evaluation["audio_s_per_s"]["original"],
                        evaluation["this_to"]["original"],
                    ),
                ],
            },
        ],
        "random_batches": short(trained["convolutions"]["median"]),
        "by_duration": short(trained["and batches"]["median"]),
        "machine": training["machine"],
        "model": training["model"],
        "rounds": str(training["rounds"]),
        "identical": f"{evaluation['difference']['identical']} of {evaluation['difference']['transcripts']}",
        "padding_random": f"{100 * training['padding']['random']:.0f}",
        "padding_by_duration": f"{100 * training['padding']['by_duration']:.1f}",
    }


def _way(name: str, speed: dict[str, float], ratio: dict[str, float] | None = None) -> dict[str, str]:
    """One line; `ratio`: how many times as fast the first line of the step is."""
    return {"name": name, "speed": short(speed["median"]), "ratio": f"{short(ratio['median'])} ×" if ratio else ""}
