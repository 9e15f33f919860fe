"""Predictions of another system for the utterances of the test sets: JSON lines, CTM, CSV or TSV.

JSON lines have NeMo's field names, `audio_filepath` and `pred_text`, as transcribe.py --format jsonl writes them; lines
of one file with different `offset` are joined. CTM is NIST's format (sclite): utterance, channel, start, duration and
word, in seconds; the word <eps> is none, so that an utterance without words can be stated. Nothing is executed.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from finetuning.config.schema import Config, System, resolve_path
from finetuning.data import recording_table
from finetuning.data.manifest import Utterance
from finetuning.decoding.predictions import Prediction
from finetuning.errors import UserError, printable
from finetuning.files import sha256, sha256_of

PATHS = ("audio_filepath", "path")  # names of the field with the recording; the first that a file has
TEXTS = ("pred_text", "text")  # and of the one with what the system wrote
SUFFIXES = (".jsonl", ".json", ".ctm", ".csv", ".tsv")
AUDIO_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")  # not of a name as "clip.12"
NO_WORD = "<eps>"  # of a CTM
SHOWN = 3  # names in a message

ExternalPredictions = tuple[dict[Path, list[Prediction]], str]  # by manifest, in its order, and the hash of the files
Line = tuple[str, tuple[float, ...], str]  # the recording, what orders its lines, the text


def check_not_overwritten(system: System, config: Config) -> None:
    """Raise UserError where what another system wrote lies under a name of the files that evaluate.py writes."""
    path = resolve_path(system.predictions)
    inside = path.resolve().is_relative_to(resolve_path(config.evaluation.results).resolve())
    if inside and (path.is_dir() or path.suffix in (".json", ".tsv")):
        raise UserError(f"{path} lies in evaluation.results, where evaluate.py writes; move it to another folder")


def read_predictions(system: System, test_sets: Mapping[Path, Sequence[Utterance]]) -> ExternalPredictions:
    """Return the predictions of each test set, in its order, by the path of its manifest, and the hash of the files.

    `system.predictions` is a file, or a folder of them, for all test sets together. Raise UserError where an utterance
    has none or two, or where there are some of other recordings.
    """
    source = resolve_path(system.predictions)
    files = _find_files(source)
    hashes = [[file.name, sha256(file)] for file in files]
    lines, names_text = [], set()
    for file in files:
        of_file, field = _read_ctm(file) if file.suffix.lower() == ".ctm" else _read_table(file)
        lines += of_file
        names_text.add(field)
    if hashes != [[file.name, sha256(file)] for file in files]:
        raise UserError(f"{source} was replaced while it was read; rerun the same command")
    if not lines:
        raise UserError(f"{source} holds no prediction; write one line per utterance")
    texts = _match(source, lines, test_sets)
    if names_text == {"text"} and all(texts[u.audio_filepath] == u.text for us in test_sets.values() for u in us):
        raise UserError(
            f"{source} holds the references themselves, word for word, in its field text; name the file of what the "
            "system wrote, or call the field pred_text"
        )
    predictions = {
        manifest: [Prediction(u.audio_filepath, u.text, texts[u.audio_filepath], None, u.duration) for u in utterances]
        for manifest, utterances in test_sets.items()
    }
    return predictions, hashes[0][1] if source.is_file() else sha256_of(hashes)


def _find_files(source: Path) -> list[Path]:
    """Return the file, or those below a folder that are not hidden, sorted."""
    if source.is_dir():
        found = [p for p in sorted(source.rglob("[!.]*")) if p.suffix.lower() in SUFFIXES and p.is_file()]
        if not found:
            raise UserError(f"the folder {source} holds no predictions; their files end in {', '.join(SUFFIXES)}")
        return found
    if source.suffix.lower() not in SUFFIXES:
        raise UserError(f"{source} is not a file of predictions by its name; it must end in {', '.join(SUFFIXES)}")
    if not source.is_file():
        raise UserError(f"there is no {source}; evaluation.models names it as predictions")
    return [source]


def _read_table(source: Path) -> tuple[list[Line], str]:
    """Return the lines of a file of JSON lines, CSV or TSV, and the name of the field that holds the texts."""
    is_json = "json" in source.suffix.lower()
    header, rows = (recording_table.read_json_lines if is_json else recording_table.read_csv)(source)
    path = next((name for name in PATHS if name in header), None)
    text = next((name for name in TEXTS if name in header), None)
    if rows and not (path and text):
        has = ", ".join(map(printable, header[:10])) or "nothing"
        raise UserError(f"{source} needs {' or '.join(PATHS)} and {' or '.join(TEXTS)}; it has: {has}")
    lines: list[Line] = []
    for number, fields in rows:
        offset = fields.get("offset", 0.0) if is_json else 0.0
        if not (isinstance(fields.get(path), str) and fields[path] and isinstance(fields.get(text), str)):
            raise UserError(f"{source}, line {number} does not hold {path} and {text}, both texts; fix or remove it")
        if isinstance(offset, bool) or not isinstance(offset, int | float):
            raise UserError(f"{source}, line {number}: offset is no number of seconds; fix or remove it")
        lines.append((fields[path], (float(offset),), fields[text]))
    return lines, text or ""


def _read_ctm(source: Path) -> tuple[list[Line], str]:
    """Return a line for each word of a CTM file."""
    lines: list[Line] = []
    channels: dict[str, str] = {}
    for number, line in enumerate(recording_table.read_text(source).splitlines(), start=1):
        if not line.strip() or line.startswith(";;"):
            continue
        fields = line.split()
        try:
            name, channel, start, duration, word = fields[:5]
            times = float(start), float(duration)
            if len(fields) > 6 or not all(math.isfinite(time) and time >= 0 for time in times):
                raise ValueError
        except ValueError as error:
            raise UserError(
                f"{source}, line {number} is not utterance, channel, start, duration and word; fix or remove it"
            ) from error
        if channels.setdefault(name, channel) != channel:
            raise UserError(f"{source}, line {number}: {printable(name)} has words of two channels; keep those of one")
        lines.append((name, times, "" if word == NO_WORD else word))
    return lines, "words"


def _match(source: Path, lines: Iterable[Line], test_sets: Mapping[Path, Sequence[Utterance]]) -> dict[str, str]:
    """Return the text of each utterance by its `audio_filepath`; raise UserError where not each has exactly one."""
    index = _index(test_sets)
    parts: dict[str, list[tuple[tuple[float, ...], str]]] = {}
    owners: dict[str, set[str]] = {}
    unknown: dict[str, None] = {}
    ambiguous: dict[str, None] = {}
    for path, place, text in lines:
        found = next(filter(None, (index.get(form) for form in _forms(path))), set())
        if len(found) != 1:
            (ambiguous if found else unknown)[path] = None
            continue
        (utterance,) = found
        parts.setdefault(utterance, []).append((place, text))
        owners.setdefault(utterance, set()).add(path)
    repeated = [name for name, of in parts.items() if len(owners[name]) > 1 or max(_counts(of)) > 1]
    expected = dict.fromkeys(u.audio_filepath for utterances in test_sets.values() for u in utterances)
    problems = {
        "{} of {:,} utterances have no prediction": [name for name in expected if name not in parts],
        "{} have more than one": repeated,
        "{} are of no utterance of the test set": list(unknown),
        "{} may be of several utterances with the same file name": list(ambiguous),
    }
    if any(problems.values()):
        said = [f"{what.format(f'{len(n):,}', len(expected))} ({_shown(n)})" for what, n in problems.items() if n]
        raise UserError(f"{source}: {'; '.join(said)}; each utterance of the manifest needs exactly one")
    return {name: " ".join(text.strip() for _, text in sorted(of)).strip() for name, of in parts.items()}


def _counts(parts: Sequence[tuple[tuple[float, ...], str]]) -> Iterable[int]:
    """Return how often each part occurs: of a CTM two words may begin together, of other files no two lines may."""
    is_ctm = any(len(place) > 1 for place, _ in parts)
    return Counter(part if is_ctm else part[0] for part in parts).values()


def _index(test_sets: Mapping[Path, Sequence[Utterance]]) -> dict[tuple[str, str], set[str]]:
    """Return the utterances by each form of their names: whole path, file name, and this without its suffix."""
    index: dict[tuple[str, str], set[str]] = {}
    for manifest, utterances in test_sets.items():
        for path in {utterance.audio_filepath for utterance in utterances}:
            name = _normal(path).rpartition("/")[2]
            forms = [("path", _normal(path)), ("path", str(Path(manifest.parent / path).absolute()))]
            for form in (*forms, ("name", name), ("stem", AUDIO_SUFFIX.sub("", name))):
                index.setdefault(form, set()).add(path)
    return index


def _forms(path: str) -> Iterator[tuple[str, str]]:
    """Yield the forms under which an utterance is looked for, the surest first."""
    name = _normal(path).rpartition("/")[2]
    yield "path", _normal(path)
    yield "path", str(Path(path.replace("\0", "")).absolute())
    yield "name", name
    yield "stem", name
    yield "stem", AUDIO_SUFFIX.sub("", name)


def _normal(path: str) -> str:
    return unicodedata.normalize("NFC", path.replace("\\", "/")).removeprefix("./")


def _shown(names: Sequence[str]) -> str:
    return ", ".join(printable(name)[:100] for name in names[:SHOWN]) + ", …" * (len(names) > SHOWN)
