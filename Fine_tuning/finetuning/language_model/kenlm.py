"""The language model in its folder: found, checked, loaded by KenLM, and its perplexity."""

import hashlib
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.config.schema import resolve_path
from finetuning.errors import UserError
from finetuning.files import read_json, sha256
from finetuning.language_model import kenlm_binary
from finetuning.language_model.lexicon_file import Lexicon, parse_lexicon

if TYPE_CHECKING:
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

UNKNOWN = "<unk>"
ARPA, LEXICON, ABOUT = "language_model.arpa", "lexicon.txt", "language_model.json"


def find_language_model(output: str, config_file: str) -> tuple[Path, Lexicon, dict[str, str]]:
    """The language model in the folder `output`, its words, the hashes of both; UserError when it is not made yet."""
    folder = resolve_path(output)
    command = f"python Fine_tuning/train_language_model.py --config {config_file}"
    about = read_json(folder / ABOUT)
    if about is None:
        raise UserError(f"there is no language model in {folder} yet; make it with: {command}")
    try:
        path, recorded = folder / ARPA, dict(about["sha256"])
        if about["inputs"]["file"]:
            path = resolve_path(about["inputs"]["file"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / ABOUT} describes no language model; delete it and type: {command}") from error
    lexicon, content = folder / LEXICON, _read_bytes(folder / LEXICON)
    hashes = {
        "arpa": sha256(path) if path.is_file() else "",
        "lexicon": hashlib.sha256(content).hexdigest() if content else "",
    }
    if hashes != recorded:
        raise UserError(
            f"{path} and {lexicon} are not what {ABOUT} beside them says; wait for the run that is making them, or "
            f"type: {command}"
        )
    return path, parse_lexicon(lexicon, content), hashes


def _read_bytes(path: Path) -> bytes:
    """Of a file, empty where there is none: read once, so that what is hashed is what is used."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def is_up_to_date(folder: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether the language model in a folder was made from these inputs and is still as it was made."""
    about = read_json(folder / ABOUT)
    if not isinstance(about, dict) or about.get("inputs") != inputs:
        return False
    try:
        find_language_model(str(folder), "")
    except UserError:
        return False
    return True


def perplexity(path: Path, lexicon: Lexicon, texts: Iterable[str]) -> dict[str, Any]:
    """How a model takes texts, as KenLM reads it: 10 ** -mean log10 p over words and sentence ends.

    Without the words it does not know; the rate of these; and with them, as <unk>. Of words of one spelling, the one
    that the model finds more probable there counts. UserError when the figures of a file are no numbers.
    """
    lm, dictionary = load_kenlm(path, lexicon)
    known, nothing = defaultdict(list), [dictionary.get_index(UNKNOWN)]
    for word, spelling in lexicon.items():
        known[spelling].append(dictionary.get_index(word))
    total, all_total, unknown, count, ends = 0.0, 0.0, 0, 0, 0
    for text in texts:
        state = lm.start(False)
        for word in text.split():
            scored = [lm.score(state, number) for number in known.get(word, nothing)]
            state, score = max(scored, key=lambda found: found[1])
            all_total += score
            total += score if word in known else 0.0
            unknown += word not in known
            count += 1
        _, score = lm.finish(state)
        total, all_total, ends = total + score, all_total + score, ends + 1
    if not math.isfinite(all_total):
        raise UserError(f"{path} gives probabilities that are none; make it again or name another one")
    figures = {
        "perplexity": _power(-total / (count - unknown + ends)),
        "perplexity_with_unknown": _power(-all_total / (count + ends)),
        "unknown_rate": unknown / count if count else math.nan,
    }
    return {"words": count, "unknown": unknown, **{name: round(value, 4) for name, value in figures.items()}}


def _power(exponent: float) -> float:
    """10 to that power, infinite where it is no float any more."""
    return 10**exponent if exponent < 300 else math.inf


def require_flashlight() -> None:
    """Raise UserError where flashlight-text is not installed: it has no wheel for Python 3.13."""
    if not find_spec("flashlight"):
        version = ".".join(map(str, sys.version_info[:2]))
        raise UserError(
            f"a language model needs the package flashlight-text, which this Python {version} lacks and which exists "
            "for 3.11 and 3.12; type: make -B .venv/.complete PYTHON=python3.12, or do without a language model: "
            "evaluation.decoder=greedy"
        )


def load_kenlm(path: Path, words: Iterable[str]) -> "tuple[KenLM, Dictionary]":
    """An ARPA file or KenLM's binary, and the numbers of `words` and of <unk>; UserError when KenLM cannot read it."""
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    if path.is_file() and kenlm_binary.is_kenlm_binary(path):
        kenlm_binary.read_binary(path)
    dictionary = Dictionary()
    for word in (UNKNOWN, *words):
        dictionary.add_entry(word)
    try:
        with _silent_stderr():
            return KenLM(str(path), dictionary), dictionary
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UserError(f"KenLM cannot read {path} ({reason}); make it again with train_language_model.py") from error


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """KenLM draws a progress bar of its own on stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
