"""Find, check and load the language model of an experiment with KenLM, and measure its perplexity.

Its folder holds `language_model.arpa`, `lexicon.txt` (a word, a tab, its characters separated by spaces),
`language_model.json` and, of a long text, `language_model.binary`, which is then used. A word of a given model may be
spelt differently in the texts (`Città`, `l’`).
"""

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
BINARY = "language_model.binary"  # the same model, of a long text


def find_language_model(output: str, config_file: str) -> tuple[Path, Lexicon, dict[str, str]]:
    """Return the language model in the folder `output`, its lexicon and the hashes of both.

    Raises UserError when there is none yet, or when the files are not those that language_model.json describes.
    """
    folder = resolve_path(output)
    command = f"python Fine_tuning/train_language_model.py --config {config_file}"
    about = read_json(folder / ABOUT)
    if about is None:
        raise UserError(f"there is no language model in {folder} yet; make it with: {command}")
    try:
        path, recorded = folder / (BINARY if about.get("binary") else ARPA), dict(about["sha256"])
        if about["inputs"]["file"]:
            path = resolve_path(about["inputs"]["file"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / ABOUT} describes no language model; delete it and run: {command}") from error
    lexicon, content = folder / LEXICON, _read_bytes(folder / LEXICON)
    hashes = {
        "arpa": sha256(path) if path.is_file() else "",
        "lexicon": hashlib.sha256(content).hexdigest() if content else "",
    }
    if hashes != recorded:
        raise UserError(
            f"{path} and {lexicon} are not those that {ABOUT} describes; wait for the run that is making them, or "
            f"run: {command}"
        )
    return path, parse_lexicon(lexicon, content), hashes


def _read_bytes(path: Path) -> bytes:
    """Return the content of a file, empty if there is none: read once, so that what is hashed is what is used."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def is_up_to_date(folder: Path, inputs: Mapping[str, Any]) -> bool:
    """Return whether the language model in a folder was made from these inputs and has not changed since."""
    about = read_json(folder / ABOUT)
    if not isinstance(about, dict) or about.get("inputs") != inputs:
        return False
    try:
        find_language_model(str(folder), "")
    except UserError:
        return False
    return True


def perplexity(path: Path, lexicon: Lexicon, texts: Iterable[str]) -> dict[str, Any]:
    """Return the perplexity of texts, 10 ** -mean log10 p over words and sentence ends, scored by KenLM.

    It is given without unknown words and with them (as <unk>), together with their rate. Of words with the same
    spelling, the most probable one in its place counts. Raises UserError when a probability is not a number.
    """
    lm, dictionary = load_kenlm(path, lexicon)
    known, unknown_index = defaultdict(list), [dictionary.get_index(UNKNOWN)]
    for word, spelling in lexicon.items():
        known[spelling].append(dictionary.get_index(word))
    total, all_total, unknown, count, ends = 0.0, 0.0, 0, 0, 0
    for text in texts:
        state = lm.start(False)
        for word in text.split():
            scored = [lm.score(state, number) for number in known.get(word, unknown_index)]
            state, score = max(scored, key=lambda result: result[1])
            all_total += score
            total += score if word in known else 0.0
            unknown += word not in known
            count += 1
        _, score = lm.finish(state)
        total, all_total, ends = total + score, all_total + score, ends + 1
    if not math.isfinite(all_total):
        raise UserError(f"{path} gives probabilities that are not numbers; make it again or name another one")
    figures = {
        "perplexity": _power(-total / (count - unknown + ends)),
        "perplexity_with_unknown": _power(-all_total / (count + ends)),
        "unknown_rate": unknown / count if count else math.nan,
    }
    return {"words": count, "unknown": unknown, **{name: round(value, 4) for name, value in figures.items()}}


def _power(exponent: float) -> float:
    """Return 10 to that power, infinity where a float cannot hold it."""
    return 10**exponent if exponent < 300 else math.inf


def require_flashlight() -> None:
    """Raise UserError where flashlight-text is not installed: it has no wheel for Python 3.13."""
    if not find_spec("flashlight"):
        version = ".".join(map(str, sys.version_info[:2]))
        raise UserError(
            f"beam search needs the package flashlight-text, which this Python {version} lacks and which exists for "
            "3.11 and 3.12; type: make -B .venv/.complete PYTHON=python3.12, or do without a language model and "
            "boosted words: evaluation.decoder=greedy evaluation.boost=null"
        )


def load_kenlm(path: Path, words: Iterable[str]) -> "tuple[KenLM, Dictionary]":
    """Load an ARPA file or KenLM binary; return it and the dictionary of `words` and <unk>.

    Raises UserError when KenLM cannot read it.
    """
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
    """Suppress the progress bar that KenLM draws on stderr."""
    sys.stderr.flush()
    original, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.close(null)
