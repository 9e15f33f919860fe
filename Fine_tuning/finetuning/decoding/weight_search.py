"""How much the language model weighs beside the acoustic model: found on the validation set, used on the test set.

A random search (Bergstra and Bengio 2012) with a fixed seed over the weights, then the narrowest beam that is as good
as the widest.
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from finetuning.config.schema import Config
from finetuning.data.manifest import Utterance
from finetuning.decoding import beam_search, predictions
from finetuning.decoding.beam_search import BeamSearch, Settings
from finetuning.decoding.predictions import DECODER, Prediction
from finetuning.errors import UserError
from finetuning.files import parse_json, write_json
from finetuning.language_model import kenlm
from finetuning.metrics.error_rates import character_error_rate, word_error_rate

TRIALS = 40
BEAMS = (25, 50, 100)  # the search itself is at the first one
MAX_UTTERANCES = 500  # of the validation set, drawn at random
SEED = 0
MAX_WEIGHT = 1e6  # a weight beyond it is none


@dataclass(frozen=True)
class Trial:
    """Settings and the error rates they give, as fractions."""

    settings: Settings
    wer: float
    cer: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self.settings), "wer": round(self.wer, 6), "cer": round(self.cer, 6)}


def sample_utterances(utterances: Sequence[Utterance]) -> list[Utterance]:
    """The utterances that are tuned on, whatever the order of the manifest."""
    ordered = sorted(utterances, key=lambda u: u.audio_filepath)
    return random.Random(SEED).sample(ordered, min(MAX_UTTERANCES, len(ordered)))


def candidates() -> Iterator[Settings]:
    """The defaults, then draws."""
    yield Settings(beam=BEAMS[0])
    rng = random.Random(SEED)
    for _ in range(TRIALS - 1):
        weights = rng.uniform(0.5, 6.0), rng.uniform(-4.0, 6.0), rng.uniform(-20.0, 0.0)
        yield Settings(*(round(weight, 2) for weight in weights), beam=BEAMS[0])


def search_weights(
    search: BeamSearch, frames: Sequence[np.ndarray], heard: Sequence[Prediction], name: str
) -> tuple[Settings, list[Trial]]:
    """The best settings, and all that were tried. The lowest WER wins, then CER, then the first.

    `frames`: log-probabilities of the validation utterances that were `heard`; `name` for the progress bar.
    """
    references = [prediction.text for prediction in heard]

    def tried(settings: Settings) -> Trial:
        hypotheses = [search.text(own, settings) for own in frames]
        bar.update()
        return Trial(settings, *(rate(references, hypotheses) for rate in (word_error_rate, character_error_rate)))

    with tqdm(desc=f"{name}, tuning", total=TRIALS + len(BEAMS) - 1, unit=" settings") as bar:
        trials = [tried(settings) for settings in candidates()]
        best = min(trials, key=lambda trial: (trial.wer, trial.cer))
        wider = [best, *(tried(replace(best.settings, beam=beam)) for beam in BEAMS[1:])]
    chosen = min(wider, key=lambda trial: (trial.wer, trial.cer, trial.settings.beam))
    return chosen.settings, [*trials, *wider[1:]]


def decode_utterances(
    search: BeamSearch, settings: Settings, frames: Sequence[np.ndarray], greedy: Sequence[Prediction], work: Path
) -> list[Prediction]:
    """The predictions with the texts of the beam search in the place of the `greedy` ones, kept in the folder `work`.

    What an interrupted run has decoded is not decoded again. inference.json tells how long the rest took.
    """
    done = {number: prediction for number, (prediction, _) in predictions.read_partial(work, greedy).items()}
    spent = audio = 0.0
    with predictions.open_partial(work) as part, tqdm(desc=work.name, total=len(greedy), unit=" utterances") as bar:
        for number, (p, own) in enumerate(zip(greedy, frames, strict=True)):
            if number not in done:
                started = time.perf_counter()
                done[number] = replace(p, pred_text=search.text(own, settings))
                spent, audio = spent + time.perf_counter() - started, audio + p.duration
                part.append(number, done[number], own)
            bar.update()
    found = [done[number] for number in range(len(greedy))]
    about = {"seconds": round(spent, 3), "audio_seconds": round(audio, 3), "device": "cpu", "by": "flashlight"}
    write_json(work / predictions.TIMING, {**about, "threads": 1})
    predictions.finish_predictions(work, found)
    return found


def decoder_record(
    config: Config,
    settings: Settings,
    trials: Sequence[Trial],
    heard: Sequence[Prediction],
    hashes: dict[str, str],
    audio: str = "",
) -> dict[str, Any]:
    """What decoder.json keeps: all that is needed to decode like this again, and what it was chosen from.

    `hashes` of all files that it follows from, `audio` the state of the wavs that were `heard`.
    """
    references, greedy = [p.text for p in heard], [p.pred_text for p in heard]
    greedy_wer = round(word_error_rate(references, greedy), 6)
    return {
        "settings": asdict(settings),
        "language_model": config.language_model.output,
        "config": config.file,
        "sha256": hashes,
        "validation": {"utterances": len(heard), "greedy_wer": greedy_wer, "audio": audio},
        "trials": [trial.as_dict() for trial in trials],
    }


def read_decoder(path: Path) -> tuple[Settings, str, str, dict[str, str]]:
    """What a decoder.json says: settings, language_model.output, the configuration, the hashes it was tuned with.

    UserError when it is none.
    """
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        settings, hashes = Settings(**found["settings"]), found["sha256"]
        if not all(type(value) in (int, float) and abs(value) < MAX_WEIGHT for value in asdict(settings).values()):
            raise TypeError("a setting is no number")
        if not (isinstance(settings.beam, int) and settings.beam > 0):
            raise TypeError("beam must be a number of hypotheses")
        texts = (found["language_model"], found["config"], *hashes.keys(), *hashes.values())
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("language_model, config and sha256 must be strings")
        return settings, found["language_model"], found["config"], hashes
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"there is no {path}, or it describes no beam search; evaluate.py evaluation.decoder=lm writes one beside "
            f"the predictions, as {DECODER}"
        ) from error


def is_decoder_current(path: Path, hashes: dict[str, str], audio: str = "") -> bool:
    """Whether there is a decoder.json that was tuned with the files of these hashes and the wavs in this state, whose
    settings are the best of its trials.
    """
    try:
        settings, *_, tuned = read_decoder(path)
        found = parse_json(path.read_text(encoding="utf-8"))
        best = min((trial["wer"], trial["cer"]) for trial in found["trials"])
        chosen = [trial for trial in found["trials"] if trial.items() >= asdict(settings).items()]
        was_heard = found["validation"]["audio"] == audio
        return tuned == hashes and was_heard and best in [(trial["wer"], trial["cer"]) for trial in chosen]
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return False


def restore_decoder(path: Path, letters: Sequence[str]) -> tuple[BeamSearch, Settings]:
    """The beam search that a decoder.json describes, for a model with these letters; UserError when it is another's."""
    settings, folder, config_file, tuned = read_decoder(path)
    *_, hashes = kenlm.find_language_model(folder, config_file)
    if not hashes.items() <= tuned.items():
        raise UserError(f"{path} was tuned with another language model; type evaluate.py evaluation.decoder=lm again")
    return beam_search.load_beam_search(folder, config_file, letters, hashes), settings
