"""report.html: where models fail. One file that opens from the disk.

report_template/ holds its parts. All content is one JSON in it, shown as text, never as HTML; its
Content-Security-Policy admits no script but its own. Besides, it loads only wavs and, of a large test set, utterances.
"""

import hashlib
import html
import json
import os
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from finetuning.config.schema import Config, System, manifest_folder, resolve_path
from finetuning.data.manifest import Utterance, manifest_path, read_manifest
from finetuning.data.shard_reader import ShardMember, open_wav
from finetuning.decoding.predictions import Prediction
from finetuning.errors import UserError
from finetuning.evaluation.recipes import pool_recipes
from finetuning.evaluation.results import Comparison, Row, release_name
from finetuning.evaluation.results_table import KNOWS_TEST_SET, SECOND_WER, comparison_note, format_table
from finetuning.evaluation.significance import verdict
from finetuning.files import atomic_open, ensure_writable_dir
from finetuning.metrics import confusions
from finetuning.metrics.confusions import Confusion, Pair
from finetuning.metrics.history import read_metrics

TEMPLATE = Path(__file__).with_name("report_template")
SCRIPTS = ("base", "overview", "words", "scatter", "sound", "utterances", "start")  # in this order
CHUNK_SIZE = 2000  # utterances on the page itself; those of a larger test set lie beside it, as many to a file
MOST_EMBEDDED_S = 1800  # audio of all utterances on the page: about 10 MB, which can be mailed
MOST_PAIRS = 15  # in a list of confusions
MOST_SPEAKERS = 20
PRIOR_WORDS = 20  # words of the average error rate, added to those of each speaker or word before they are ranked


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
    content = report_content(config, models, rows, utterances, comparisons)
    table = [row.result for row in pool_recipes(rows, config.evaluation.recipes)]
    content["means"] = [result for result in table if "runs" in result]
    if test_set:
        content["title"] += f", {test_set}"
    chunks = utterance_chunks(config, rows, utterances, content["audio"], path.parent)
    folder = path.with_name(f"{path.stem}_data")
    if len(utterances) <= CHUNK_SIZE:
        content["shown"] = next(chunks)
    else:
        content["chunks"] = [f"{folder.name}/{write_chunk(chunk, folder)}" for chunk in chunks]
    with atomic_open(path) as text:
        text.write(fill_template(content, format_table(table, config.evaluation, comparisons)))
    remove_other_chunks(folder, content["chunks"])
    return path


def write_chunk(chunk: list[dict[str, Any]], folder: Path) -> str:
    """Write a script that adds these utterances, for a page from the disk may read no file; return its name, a hash."""
    script = f"addUtterances({_script_json(chunk)});\n"
    name = f"{hashlib.sha256(script.encode()).hexdigest()[:16]}.js"
    with atomic_open(ensure_writable_dir(folder) / name) as text:
        text.write(script)
    return name


def remove_other_chunks(folder: Path, chunks: Sequence[str]) -> None:
    """Remove the chunks of earlier pages from `folder`, and the folder when it is empty then."""
    for path in folder.glob("*.js"):
        if re.fullmatch(r"[0-9a-f]{16}\.js", path.name) and f"{folder.name}/{path.name}" not in chunks:
            path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def fill_template(content: dict[str, Any], summary: str) -> str:
    """Return the page: the template with its content, and the summary for a reader without JavaScript."""
    style = (TEMPLATE / "style.css").read_text(encoding="utf-8")
    script = "\n".join((TEMPLATE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    hashes = {text: b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)}
    policy = {
        "default-src": "'none'",
        "style-src": f"'sha256-{hashes[style]}'",
        # the chunks too, which its own script adds
        "script-src": f"'sha256-{hashes[script]}'" + " 'strict-dynamic'" * bool(content["chunks"]),
        "media-src": "data:" if content["audio"] == "embedded" else "'self' file:",
        "connect-src": "'self'" if content["audio"] == "linked" else "'none'",  # to draw linked audio, from a server
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    parts = {
        "policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "style": style,
        "script": script,
        "title": html.escape(content["title"]),
        "summary": html.escape(summary),
        "content": _script_json(content),
    }
    template = (TEMPLATE / "page.html").read_text(encoding="utf-8")
    return re.sub(f"@({'|'.join(parts)})@", lambda mark: parts[mark[1]], template)


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
) -> dict[str, Any]:
    """Return all that the page shows but the utterances, ready for JSON."""
    speakers = short_names([u.speaker for u in utterances])
    release = release_name(manifest_folder(config))
    return {
        "title": config.name,
        "note": config.evaluation.note,
        "release": release,
        "language": language(release),
        "utterances": len(utterances),
        "seconds": round(sum(u.duration for u in utterances), 3),
        "speakers": len(set(speakers) - {""}),
        "models": [_model_content(row, models[row.result["model"]], speakers) for row in rows],
        "published": [asdict(p) for p in config.evaluation.published],
        "published_on": config.evaluation.published_on,
        "comparisons": [{**pair, "verdict": verdict(pair)} for pair in comparisons],
        "knows_test_set": KNOWS_TEST_SET,
        "second_wer": SECOND_WER.get(config.evaluation.second_wer, ""),
        "comparison_note": comparison_note(comparisons),
        "audio": _audio_kind(utterances),
        "unseen_words": words_not_in_training(config, rows),
        "prior_words": PRIOR_WORDS,
        "chunks": [],
        "shown": [],
    }


def words_not_in_training(config: Config, rows: Sequence[Row]) -> list[str] | None:
    """Return the words of the references that no sentence of the training manifest holds; None where there is none."""
    manifest = manifest_path(manifest_folder(config), "train")
    if not manifest.is_file():
        return None
    words = {word for row in rows for prediction in row.predictions for word in prediction.text.split()}
    return sorted(words.difference(*(u.text.split() for u in read_manifest(manifest, check_audio=False))))


def utterance_chunks(
    config: Config, rows: Sequence[Row], utterances: Sequence[Utterance], audio: str, folder: Path
) -> Iterator[list[dict[str, Any]]]:
    """Yield what the page shows of each utterance, CHUNK_SIZE at a time; links to audio are relative to `folder`."""
    data, speakers = manifest_folder(config), short_names([u.speaker for u in utterances])
    models = [(row.predictions, row.score.utterance_errors) for row in rows]
    bar = tqdm(utterances, desc="report.html", unit=" utterances", leave=False, delay=2)
    chunk: list[dict[str, Any]] = []
    for i, utterance in enumerate(bar):
        by_model = [_prediction_content(predictions[i], errors[i]) for predictions, errors in models]
        shown = _utterance_content(utterance, utterance.wav(data), audio, folder)
        chunk.append({"number": i + 1, "speaker": speakers[i], **shown, "by_model": by_model})
        if len(chunk) == CHUNK_SIZE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _audio_kind(utterances: Sequence[Utterance]) -> str:
    """Return whether audio is embedded, linked, or packed in shards, where no link leads."""
    if sum(u.duration for u in utterances) <= MOST_EMBEDDED_S:
        return "embedded"
    return "linked" if utterances[0].shard_id is None else "packed"


def _utterance_content(utterance: Utterance, wav: Path | ShardMember, audio: str, folder: Path) -> dict[str, Any]:
    """Return an utterance's part of the content; a link to its audio is relative to `folder`."""
    link = quote(Path(os.path.relpath(wav.resolve(), folder.resolve())).as_posix()) if audio == "linked" else ""
    return {
        "file": wav.name,
        "audio": embedded_audio(wav) if audio == "embedded" else link,
        "duration": utterance.duration,
        "about": [about for about in (utterance.gender, utterance.age, utterance.accents) if about],
        "sentence": utterance.sentence,
    }


def _model_content(row: Row, source: str | System, speakers: Sequence[str]) -> dict[str, Any]:
    """Return a model's part of the content; `speakers` of all utterances."""
    score, predictions, errors = row.score, row.predictions, row.score.utterance_errors
    clearest_first = np.argsort(errors[:, 0], kind="stable").tolist()
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
    """Return speaker, utterances, words and word errors, the highest word error rate first.

    PRIOR_WORDS are added to each before, so that a speaker of few words does not lead by chance. `errors`:
    `Score.utterance_errors`.
    """
    utterances, words, word_errors = Counter(), Counter(), Counter()
    for speaker, (errors_here, words_here, *_) in zip(speakers, errors.tolist(), strict=True):
        if speaker:
            utterances[speaker] += 1
            words[speaker] += words_here
            word_errors[speaker] += errors_here
    prior = PRIOR_WORDS * word_errors.total() / max(words.total(), 1)
    rank = {name: (word_errors[name] + prior) / (words[name] + PRIOR_WORDS) for name in utterances}
    ranked = sorted(rank, key=lambda name: (-rank[name], name))[:MOST_SPEAKERS]
    return [[name, utterances[name], words[name], word_errors[name]] for name in ranked]


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
