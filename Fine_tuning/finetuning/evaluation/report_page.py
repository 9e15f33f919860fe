"""report.html: where models fail. One file that opens from the disk, made of what an evaluation has stored.

page.html is its frame. Everything shown comes from one JSON in it and is put there as text, never as HTML; by its
Content-Security-Policy no script runs but its own, and nothing is loaded but the wavs it links to.
"""

import hashlib
import html
import json
import os
import random
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tqdm import tqdm

from finetuning.config.schema import Config, manifest_folder, resolve_path
from finetuning.data.manifest import Utterance, manifest_path
from finetuning.data.shard_reader import ShardMember, open_wav
from finetuning.decoding.predictions import Prediction, read_predictions
from finetuning.errors import UserError
from finetuning.evaluation.results import COMPARISONS, Result, format_table, release_name
from finetuning.files import atomic_open, read_json
from finetuning.metrics import confusions
from finetuning.metrics.confusions import AlignmentStats, Confusion, Pair
from finetuning.metrics.history import read_metrics

MOST_UTTERANCES = 2000  # shown on a page; of a larger test set
DRAWN = 500  # of these at random, the rest the worst of each model
MOST_EMBEDDED_S = 1800  # audio of all utterances shown: about 10 MB on the page, which can be mailed
MOST_PAIRS = 15  # in a list of confusions
MOST_SPEAKERS = 20


def write_report(
    config: Config, models: dict[str, str], rows: Sequence[Result], utterances: Sequence[Utterance]
) -> Path:
    """Write report.html beside the folder of the predictions and give its path.

    `models`: what the configuration calls the model of each row. The same results, predictions and wavs give the same
    bytes.
    """
    path = resolve_path(config.evaluation.predictions).parent / "report.html"
    found = report_content(config, models, rows, utterances, path.parent)
    with atomic_open(path) as text:
        text.write(fill_template(found, format_table(rows, config.evaluation, found["comparisons"])))
    return path


def fill_template(found: dict[str, Any], summary: str) -> str:
    """The page: its frame with the content, and the summary for a reader without JavaScript."""
    frame = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    hashes = {
        kind: b64encode(hashlib.sha256(re.search(f"<{kind}>(.*?)</{kind}>", frame, re.DOTALL)[1].encode()).digest())
        for kind in ("style", "script")
    }
    policy = {
        "default-src": "'none'",
        "style-src": f"'sha256-{hashes['style'].decode()}'",
        "script-src": f"'sha256-{hashes['script'].decode()}'",
        "media-src": "data:" if found["audio"] == "embedded" else "'self' file:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    parts = {
        "policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "title": html.escape(found["title"]),
        "summary": html.escape(summary),
        "content": _within_script(found),
    }
    return re.sub("@(policy|title|summary|content)@", lambda mark: parts[mark[1]], frame)


def _within_script(found: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def report_content(
    config: Config, models: dict[str, str], rows: Sequence[Result], utterances: Sequence[Utterance], folder: Path
) -> dict[str, Any]:
    """All that the page shows, ready for JSON; links to audio are relative to `folder`."""
    bar = partial(tqdm, desc="report.html", unit=" utterances", leave=False, delay=2)  # for what takes its time
    names = [row["model"] for row in rows]
    manifest = manifest_path(manifest_folder(config), "test")
    said = [_predictions(config, name, utterances) for name in names]
    surveys = [confusions.collect_alignments(bar([(p.text, p.pred_text) for p in predictions])) for predictions in said]
    shown, drawn = choose_utterances(surveys)
    speakers = short_names([u.speaker for u in utterances])
    audio = "linked" if utterances[0].shard_id is None else "packed"
    if sum(utterances[i].duration for i in shown) <= MOST_EMBEDDED_S:
        audio = "embedded"
    of = release_name(manifest.parent)
    comparisons = read_json(resolve_path(config.evaluation.results) / f"{COMPARISONS}.json") or []
    return {
        "title": config.name,
        "note": config.evaluation.note,
        "release": of,
        "language": language(of),
        "utterances": len(utterances),
        "seconds": round(sum(u.duration for u in utterances), 3),
        "speakers": len(set(speakers) - {""}),
        "models": [
            _model(row, models[row["model"]], found, speakers, [(i, predictions[i]) for i in shown])
            for row, found, predictions in zip(rows, surveys, said, strict=True)
        ],
        "published": [asdict(p) for p in config.evaluation.published],
        "published_on": config.evaluation.published_on,
        "comparisons": [c for c in comparisons if {c["one"], c["other"]} <= set(names)],
        "audio": audio,
        "worst": (MOST_UTTERANCES - DRAWN) // len(rows) if drawn else None,  # of each model; None: all are shown
        "shown": [
            {"number": i + 1, "speaker": speakers[i], "drawn": i in drawn}
            | _about(utterances[i], utterances[i].wav(manifest.parent), audio, folder)
            for i in bar(shown)
        ],
    }


def _about(utterance: Utterance, wav: Path | ShardMember, audio: str, folder: Path) -> dict[str, Any]:
    """An utterance's part of the content; its audio embedded, linked from `folder`, or neither: no link leads into a
    shard.
    """
    link = quote(os.path.relpath(wav.resolve(), folder.resolve())) if audio == "linked" else ""
    return {
        "file": wav.name,
        "audio": embedded(wav) if audio == "embedded" else link,
        "duration": utterance.duration,
        "about": [about for about in (utterance.gender, utterance.age, utterance.accents) if about],
        "sentence": utterance.sentence,
    }


def _predictions(config: Config, model: str, utterances: Sequence[Utterance]) -> list[Prediction]:
    """What the model wrote, in the order of the utterances."""
    folder = resolve_path(config.evaluation.predictions) / model
    found = read_predictions(folder) or []
    if [(p.audio_filepath, p.text) for p in found] != [(u.audio_filepath, u.text) for u in utterances]:
        raise UserError(f"{folder} is not of the test manifest; delete it and run evaluate.py again")
    return found


def choose_utterances(surveys: Sequence[AlignmentStats]) -> tuple[list[int], set[int]]:
    """The utterances shown, and which of them were drawn at random; none when all are shown."""
    total = len(surveys[0].utterances)
    if total <= MOST_UTTERANCES:
        return list(range(total)), set()
    drawn = set(random.Random(0).sample(range(total), DRAWN))
    worst: set[int] = set()
    for found in surveys:
        counts = found.utterances
        ranked = sorted(range(total), key=lambda i: (-counts[i].wer, -counts[i].cer, i))
        worst |= set(ranked[: (MOST_UTTERANCES - DRAWN) // len(surveys)])
    return sorted(drawn | worst), drawn


def _model(
    row: Result, source: str, found: AlignmentStats, speakers: Sequence[str], shown: Sequence[tuple[int, Prediction]]
) -> dict[str, Any]:
    """A model's part of the content; `speakers` of all utterances, `shown` those that are shown."""
    clearest_first = sorted(shown, key=lambda item: (found.utterances[item[0]].word_errors, item[0]))
    texts = {i + 1: (prediction.text, prediction.pred_text) for i, prediction in clearest_first}
    words, letters = confusions.most_frequent(found.words), confusions.most_frequent(found.characters)
    return {
        "result": row,
        "without_error": sum(counts.word_errors == 0 for counts in found.utterances),
        "loss_curve": _loss_curve(resolve_path(source))
        if row["decoder"]["name"] == "greedy"
        else [],  # else a second time
        "confusions": {
            "letters": _listed(letters, texts, confusions.aligned_characters),
            "accents": _listed(confusions.accent_confusions(letters), texts, confusions.aligned_characters),
            "words": _listed(words, texts, confusions.aligned_words),
        },
        "by_speaker": by_speaker(found, speakers),
        "shown": [
            {
                "loss": prediction.loss,
                "counts": astuple(found.utterances[i]),
                "words": [
                    confusions.char_diff(*pair)
                    for pair in confusions.aligned_words(prediction.text, prediction.pred_text)
                ],
            }
            for i, prediction in shown
        ],
    }


def _loss_curve(model: Path) -> list[list[Any]]:
    """Epoch, phase, training and validation loss, of the run in whose folder the model lies; else empty."""
    if not model.is_file():  # the registry's
        return []
    try:
        metrics = read_metrics(model.with_name("metrics.csv"))
    except UserError:  # of that name, but another's
        return []
    columns = metrics[["epoch", "phase", "train_loss", "val_loss"]].astype(object)
    return columns.where(columns.notna(), None).to_numpy().tolist()


def _listed(found: list[Confusion], texts: dict[int, Pair], align: Callable[[str, str], list[Pair]]) -> list[list[Any]]:
    """Reference, hypothesis, count, of how many, and the number of an utterance, of the most frequent ones."""
    listed = found[:MOST_PAIRS]
    examples = confusions.confusion_examples(listed, texts, align)
    return [[*astuple(confusion), examples.get(confusion)] for confusion in listed]


def by_speaker(found: AlignmentStats, speakers: Sequence[str]) -> list[list[Any]]:
    """Speaker, utterances, words and word errors, the speaker with the most errors first."""
    utterances, words, errors = Counter(), Counter(), Counter()
    for speaker, counts in zip(speakers, found.utterances, strict=True):
        if speaker:
            utterances[speaker] += 1
            words[speaker] += counts.words
            errors[speaker] += counts.word_errors
    ranked = sorted(utterances, key=lambda speaker: (-errors[speaker], speaker))[:MOST_SPEAKERS]
    return [[speaker, utterances[speaker], words[speaker], errors[speaker]] for speaker in ranked]


def short_names(speakers: Sequence[str]) -> list[str]:
    """The first letters of each, as many as tell all apart."""
    length = 8
    while len({speaker[:length] for speaker in speakers}) < len(set(speakers)):
        length += 1
    return [speaker[:length] for speaker in speakers]


def language(release: str) -> str:
    """The language code a release of Common Voice ends with, or "" for unknown."""
    code = release.rpartition("/")[2]
    return code if re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", code) else ""


def embedded(wav: Path | ShardMember) -> str:
    """The audio as an MP3 in base64, 32 kbit/s at 16 kHz; empty where it cannot be read or become one."""
    import soundfile

    mp3 = BytesIO()
    try:
        samples, rate = soundfile.read(open_wav(wav), dtype="int16")
        soundfile.write(mp3, samples, rate, format="MP3", bitrate_mode="CONSTANT", compression_level=0.85)
    except (soundfile.SoundFileError, OSError, ValueError):
        return ""
    return b64encode(mp3.getvalue()).decode()
