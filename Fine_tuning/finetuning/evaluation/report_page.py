"""report.html: where models fail. One file that opens from the disk.

report_page.html is its template. All content is one JSON in it, shown as text, never as HTML; its
Content-Security-Policy admits no script but its own, and nothing is loaded but the wavs it links to.
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
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from finetuning.config.schema import Config, System, manifest_folder, resolve_path
from finetuning.data.manifest import Utterance, manifest_path
from finetuning.data.shard_reader import ShardMember, open_wav
from finetuning.decoding.predictions import Prediction
from finetuning.errors import UserError
from finetuning.evaluation.results import Comparison, Row, release_name
from finetuning.evaluation.results_table import format_table
from finetuning.evaluation.scoring import Score
from finetuning.files import atomic_open
from finetuning.metrics import confusions
from finetuning.metrics.confusions import Confusion, Pair
from finetuning.metrics.history import read_metrics

MOST_UTTERANCES = 2000  # on the page; of a larger test set a sample and the worst of each model
SAMPLE_SIZE = 500  # of these
MOST_EMBEDDED_S = 1800  # audio of all utterances on the page: about 10 MB, which can be mailed
MOST_PAIRS = 15  # in a list of confusions
MOST_SPEAKERS = 20


def write_report(
    config: Config,
    models: dict[str, str | System],
    rows: Sequence[Row],
    utterances: Sequence[Utterance],
    comparisons: Sequence[Comparison] = (),
    test_set: str = "",
) -> Path:
    """Write report.html beside the folder of the predictions, or report_SET.html, and return its path.

    `models`: the configuration's name of each row's model; `test_set`: another one than that of the split. The same
    results, predictions and wavs give the same bytes.
    """
    name = f"report_{test_set}.html" if test_set else "report.html"
    path = resolve_path(config.evaluation.predictions).parent / name
    content = report_content(config, models, rows, utterances, comparisons, path.parent)
    if test_set:
        content["title"] += f", {test_set}"
    with atomic_open(path) as text:
        text.write(fill_template(content, format_table([row.result for row in rows], config.evaluation, comparisons)))
    return path


def fill_template(content: dict[str, Any], summary: str) -> str:
    """Return the page: the template with its content, and the summary for a reader without JavaScript."""
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    hashes = {
        kind: b64encode(hashlib.sha256(re.search(f"<{kind}>(.*?)</{kind}>", template, re.DOTALL)[1].encode()).digest())
        for kind in ("style", "script")
    }
    policy = {
        "default-src": "'none'",
        "style-src": f"'sha256-{hashes['style'].decode()}'",
        "script-src": f"'sha256-{hashes['script'].decode()}'",
        "media-src": "data:" if content["audio"] == "embedded" else "'self' file:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    parts = {
        "policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "title": html.escape(content["title"]),
        "summary": html.escape(summary),
        "content": _script_json(content),
    }
    return re.sub("@(policy|title|summary|content)@", lambda mark: parts[mark[1]], template)


def _script_json(content: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def report_content(
    config: Config,
    models: dict[str, str | System],
    rows: Sequence[Row],
    utterances: Sequence[Utterance],
    comparisons: Sequence[Comparison],
    folder: Path,
) -> dict[str, Any]:
    """Return all that the page shows, ready for JSON; links to audio are relative to `folder`."""
    manifest = manifest_path(manifest_folder(config), "test")
    shown, sample = choose_utterances([row.score for row in rows])
    speakers = short_names([u.speaker for u in utterances])
    audio = _audio_kind(utterances, shown)
    release = release_name(manifest.parent)
    return {
        "title": config.name,
        "note": config.evaluation.note,
        "release": release,
        "language": language(release),
        "utterances": len(utterances),
        "seconds": round(sum(u.duration for u in utterances), 3),
        "speakers": len(set(speakers) - {""}),
        "models": [_model_content(row, models[row.result["model"]], speakers, shown) for row in rows],
        "published": [asdict(p) for p in config.evaluation.published],
        "published_on": config.evaluation.published_on,
        "comparisons": list(comparisons),
        "audio": audio,
        "worst": (MOST_UTTERANCES - SAMPLE_SIZE) // len(rows) if sample else None,  # of each model; None: all are shown
        "shown": [
            {"number": i + 1, "speaker": speakers[i], "drawn": i in sample}
            | _utterance_content(utterances[i], utterances[i].wav(manifest.parent), audio, folder)
            for i in tqdm(shown, desc="report.html", unit=" utterances", leave=False, delay=2)
        ],
    }


def _audio_kind(utterances: Sequence[Utterance], shown: Sequence[int]) -> str:
    """Return whether audio is embedded, linked, or packed in shards, where no link leads."""
    if sum(utterances[i].duration for i in shown) <= MOST_EMBEDDED_S:
        return "embedded"
    return "linked" if utterances[0].shard_id is None else "packed"


def _utterance_content(utterance: Utterance, wav: Path | ShardMember, audio: str, folder: Path) -> dict[str, Any]:
    """Return an utterance's part of the content; a link to its audio is relative to `folder`."""
    link = quote(os.path.relpath(wav.resolve(), folder.resolve())) if audio == "linked" else ""
    return {
        "file": wav.name,
        "audio": embedded_audio(wav) if audio == "embedded" else link,
        "duration": utterance.duration,
        "about": [about for about in (utterance.gender, utterance.age, utterance.accents) if about],
        "sentence": utterance.sentence,
    }


def choose_utterances(scores: Sequence[Score]) -> tuple[list[int], set[int]]:
    """Return the numbers of the utterances on the page, and which of them are the random sample.

    The sample is empty when all utterances are shown.
    """
    total = len(scores[0].word_counts)
    if total <= MOST_UTTERANCES:
        return list(range(total)), set()
    sample = set(random.Random(0).sample(range(total), SAMPLE_SIZE))
    worst: set[int] = set()
    for score in scores:
        word_errors, words, character_errors, characters = score.utterance_errors.T
        ranked = np.lexsort((-character_errors / characters, -word_errors / words))  # stable: then by number
        worst |= set(ranked[: (MOST_UTTERANCES - SAMPLE_SIZE) // len(scores)].tolist())
    return sorted(sample | worst), sample


def _model_content(row: Row, source: str | System, speakers: Sequence[str], shown: Sequence[int]) -> dict[str, Any]:
    """Return a model's part of the content; `speakers` of all utterances, `shown`: those on the page."""
    score, predictions, errors = row.score, row.predictions, row.score.utterance_errors
    clearest_first = sorted(shown, key=lambda i: (errors[i, 0], i))
    texts = {i + 1: (predictions[i].text, predictions[i].pred_text) for i in clearest_first}
    words, characters = confusions.most_frequent(score.word_pairs), confusions.most_frequent(score.character_pairs)
    is_greedy = row.result["decoder"]["name"] == "greedy"
    return {
        "result": row.result,
        "without_error": int((errors[:, 0] == 0).sum()),
        "loss_curve": _loss_curve(resolve_path(source)) if is_greedy else [],  # once a model, not once a row
        "confusions": {
            "letters": _list_confusions(characters, texts, confusions.aligned_characters),
            "accents": _list_confusions(confusions.accent_confusions(characters), texts, confusions.aligned_characters),
            "words": _list_confusions(words, texts, confusions.aligned_words),
        },
        "by_speaker": by_speaker(errors, speakers),
        "shown": [_prediction_content(predictions[i], errors[i]) for i in shown],
    }


def _prediction_content(prediction: Prediction, errors: np.ndarray) -> dict[str, Any]:
    """Return what the page shows of one utterance by one model; `errors`: a row of `Score.utterance_errors`."""
    pairs = confusions.aligned_words(prediction.text, prediction.pred_text)
    return {
        "loss": prediction.loss,
        "counts": errors.tolist(),
        "words": [confusions.char_diff(*pair) for pair in pairs],
    }


def _loss_curve(model: Path) -> list[list[Any]]:
    """Return epoch, phase, training and validation loss of the run in whose folder the model lies; else nothing."""
    if not model.is_file():  # a model of the registry
        return []
    try:
        metrics = read_metrics(model.with_name("metrics.csv"))
    except UserError:  # a file of that name that no training wrote
        return []
    columns = metrics[["epoch", "phase", "train_loss", "val_loss"]].astype(object)
    return columns.where(columns.notna(), None).to_numpy().tolist()


def _list_confusions(
    ranked: list[Confusion], texts: dict[int, Pair], align: Callable[[str, str], list[Pair]]
) -> list[list[Any]]:
    """Return reference, hypothesis, count, of how many, and the number of an example, of the most frequent ones."""
    most_frequent = ranked[:MOST_PAIRS]
    examples = confusions.confusion_examples(most_frequent, texts, align)
    return [[*astuple(confusion), examples.get(confusion)] for confusion in most_frequent]


def by_speaker(errors: np.ndarray, speakers: Sequence[str]) -> list[list[Any]]:
    """Return speaker, utterances, words and word errors, the speaker with the most errors first.

    `errors`: `Score.utterance_errors`.
    """
    utterances, words, word_errors = Counter(), Counter(), Counter()
    for speaker, (errors_here, words_here, *_) in zip(speakers, errors.tolist(), strict=True):
        if speaker:
            utterances[speaker] += 1
            words[speaker] += words_here
            word_errors[speaker] += errors_here
    ranked = sorted(utterances, key=lambda speaker: (-word_errors[speaker], speaker))[:MOST_SPEAKERS]
    return [[speaker, utterances[speaker], words[speaker], word_errors[speaker]] for speaker in ranked]


def short_names(speakers: Sequence[str]) -> list[str]:
    """Return the first characters of each name, as many as distinguish all."""
    length = 8
    while len({speaker[:length] for speaker in speakers}) < len(set(speakers)):
        length += 1
    return [speaker[:length] for speaker in speakers]


def language(release: str) -> str:
    """Return the language code a release of Common Voice ends with, or "" for unknown."""
    code = release.rpartition("/")[2]
    return code if re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", code) else ""


def embedded_audio(wav: Path | ShardMember) -> str:
    """Return the audio as MP3 in base64, 32 kbit/s at 16 kHz; empty where it cannot be read or encoded."""
    import soundfile

    mp3 = BytesIO()
    try:
        samples, rate = soundfile.read(open_wav(wav), dtype="int16")
        soundfile.write(mp3, samples, rate, format="MP3", bitrate_mode="CONSTANT", compression_level=0.85)
    except (soundfile.SoundFileError, OSError, ValueError):
        return ""
    return b64encode(mp3.getvalue()).decode()
