"""The weights of the beam search: tuned on the validation set, used on the test set.

A random search (Bergstra and Bengio 2012) with a fixed seed: the first half of the settings is drawn around the start,
the second half, with half the spread, around the best so far; on human speech, draws from the whole ranges rarely came
near. Then the narrowest beam that is as good as the widest. How far the choice is chance is told by the bootstrap over
the validation utterances (Efron and Tibshirani 1993): each resample chooses among the same settings, from the errors
that are counted already.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from finetuning.config.schema import Config
from finetuning.data.manifest import Utterance
from finetuning.decoding import beam_search
from finetuning.decoding.beam_search import BeamSearch, Settings
from finetuning.decoding.boosting import Phrase
from finetuning.decoding.decoding_pool import decoding_pool, processes
from finetuning.decoding.partial_predictions import open_partial, read_partial
from finetuning.decoding.predictions import DECODER, TIMING, ModelOutput, Prediction, finish_predictions
from finetuning.errors import UserError
from finetuning.files import parse_json, write_json
from finetuning.language_model import kenlm
from finetuning.metrics.error_rates import character_error_rate, count_word_errors, word_error_rate
from finetuning.model.vocabulary import Vocabulary

TRIALS = 40
BEAMS = (25, 50, 100)  # the weights are searched with the first one
MAX_UTTERANCES = 500  # of the validation set, drawn at random
SEED = 0
TUNED = {"lm_weight": (0.5, 6.0), "word_score": (-4.0, 6.0), "unknown_score": (-20.0, 0.0)}  # the range of each
RESAMPLES = 1000
MAX_WEIGHT = 1e6  # weights beyond it are damage


@dataclass(frozen=True)
class Trial:
    """Settings and their error rates on the validation set, as fractions."""

    settings: Settings
    wer: float
    cer: float
    errors: tuple[int, ...] = ()  # word errors of each utterance

    def as_dict(self) -> dict[str, Any]:
        """Return the trial as decoder.json holds it, without the errors of each utterance."""
        return {**asdict(self.settings), "wer": round(self.wer, 6), "cer": round(self.cer, 6)}


def sample_utterances(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Return the utterances the weights are tuned on, the same for any order of the manifest."""
    ordered = sorted(utterances, key=lambda u: u.audio_filepath)
    return random.Random(SEED).sample(ordered, min(MAX_UTTERANCES, len(ordered)))


def draw_settings(rng: random.Random, trials: Sequence[Trial]) -> Settings:
    """Return the settings to try after `trials`: the start, then random ones around it and, later, around the best."""
    if not trials:
        return Settings(beam=BEAMS[0])
    late = len(trials) >= TRIALS / 2
    centre = min(trials, key=_rank).settings if late else Settings()
    weights = []
    for name, (low, high) in TUNED.items():
        weight = rng.gauss(getattr(centre, name), (0.1 if late else 0.2) * (high - low))
        weights.append(round(min(max(weight, low), high), 2))
    return Settings(*weights, beam=BEAMS[0])


def _rank(trial: Trial) -> tuple[float, float]:
    return trial.wer, trial.cer


def search_weights(
    search: BeamSearch, log_probs: Sequence[np.ndarray], references: Sequence[str], name: str
) -> tuple[Settings, list[Trial]]:
    """Return the best settings and all trials, and print what was chosen.

    The lowest WER wins, then the lowest CER, then the first trial. `log_probs`: of each validation utterance,
    (T, vocabulary + 1); `name`: for the screen.
    """

    def trial(settings: Settings) -> Trial:
        hypotheses = list(decode(settings, range(len(log_probs))))
        bar.update()
        rates = [rate(references, hypotheses) for rate in (word_error_rate, character_error_rate)]
        return Trial(settings, *rates, tuple(count_word_errors(references, hypotheses)))

    progress = tqdm(desc=f"{name}, tuning", total=TRIALS + len(BEAMS) - 1, unit=" settings")
    with progress as bar, decoding_pool(search, log_probs) as decode:
        rng, trials = random.Random(SEED), []
        while len(trials) < TRIALS:
            trials.append(trial(draw_settings(rng, trials)))
        best = min(trials, key=_rank)
        wider = [best, *(trial(replace(best.settings, beam=beam)) for beam in BEAMS[1:])]
    chosen = min(wider, key=lambda each: (*_rank(each), each.settings.beam))
    trials += wider[1:]
    print(f"{name}: {describe_choice(chosen.settings, trials)}")
    return chosen.settings, trials


def bootstrap_choice(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return which settings win where the validation utterances are resampled, and their gain on those left out.

    `start_wins`: the share of resamples in which the start, the first trial, is the best; it wins its ties. For each
    weight, the 2.5 % and the 97.5 % quantile of the winners. `gain`: how many of the start's word errors the winners
    save in the utterances that their resamples lack, as a fraction; below 0 they make more.
    """
    errors = np.array([trial.errors for trial in trials])  # (trials, utterances)
    size = errors.shape[1]
    counts = np.random.default_rng(SEED).multinomial(size, np.full(size, 1 / size), RESAMPLES)  # (R, utterances)
    winners = (counts @ errors.T).argmin(axis=1)  # (R,): the first of the best
    left_out = counts == 0
    of_start = (left_out * errors[0]).sum()
    gain = float(1 - (left_out * errors[winners]).sum() / of_start) if of_start else 0.0
    chosen = {name: [getattr(trials[number].settings, name) for number in winners] for name in TUNED}
    quantiles = {name: np.quantile(values, (0.025, 0.975)).round(2).tolist() for name, values in chosen.items()}
    return {"resamples": RESAMPLES, "start_wins": float((winners == 0).mean()), "gain": round(gain, 4), **quantiles}


def describe_choice(settings: Settings, trials: Sequence[Trial]) -> str:
    """Return one sentence for the screen: the settings, what they gain over the start, and how far that is chance."""
    chosen, start = next(trial for trial in trials if trial.settings == settings), trials[0]
    bootstrap = bootstrap_choice(trials)
    weights = ", ".join(f"{name} {getattr(settings, name)} {bootstrap[name]}" for name in TUNED)
    if replace(settings, beam=start.settings.beam) == start.settings:
        rates = f"WER {chosen.wer:.4f}: none of {len(trials) - 1} other settings beats the start, which"
    else:
        rates = f"WER {chosen.wer:.4f}, {start.wer:.4f} at the start, which"
    gain, more = abs(bootstrap["gain"]), "more" if bootstrap["gain"] < 0 else "fewer"
    return (
        f"tuned on {len(chosen.errors):,} utterances: {weights}, beam {settings.beam}; {rates} wins in "
        f"{bootstrap['start_wins']:.0%} of {RESAMPLES:,} bootstrap resamples; where they are not tuned on, the winners "
        f"make {gain:.0%} {more} word errors than the start (in brackets: 95 % of the winners)"
    )


def decode_utterances(
    search: BeamSearch, settings: Settings, log_probs: Sequence[np.ndarray], greedy: Sequence[Prediction], work: Path
) -> ModelOutput:
    """Return the `greedy` predictions with the texts of the beam search instead, and save them in the folder `work`.

    What an interrupted run has decoded is not decoded again. inference.json states how long the rest took.
    """
    done = {number: prediction for number, (prediction, _) in read_partial(work, greedy).items()}
    missing = [number for number in range(len(greedy)) if number not in done]
    start = time.perf_counter()
    progress = tqdm(desc=work.name, total=len(greedy), initial=len(done), unit=" utterances")
    with open_partial(work) as partial, progress as bar, decoding_pool(search, log_probs) as decode:
        for number, text in zip(missing, decode(settings, missing), strict=True):
            done[number] = replace(greedy[number], pred_text=text)
            partial.append(number, done[number], log_probs[number])
            bar.update()
    seconds, audio_seconds = time.perf_counter() - start, sum(greedy[number].duration for number in missing)
    decoded = [done[number] for number in range(len(greedy))]
    timing = {"seconds": round(seconds, 3), "audio_seconds": round(audio_seconds, 3)}
    timing |= {"device": "cpu", "by": "flashlight", "threads": processes()}
    write_json(work / TIMING, timing)
    finish_predictions(work, decoded)
    return ModelOutput(decoded, search.vocabulary, timing)


def decoder_record(
    config: Config,
    settings: Settings,
    trials: Sequence[Trial],
    greedy: Sequence[Prediction],
    hashes: dict[str, str],
    audio: str = "",
) -> dict[str, Any]:
    """Return the content of decoder.json: all that is needed to decode like this again, and how it was tuned.

    `greedy`: the predictions on the validation utterances; `hashes`: of all files the settings depend on; `audio`: the
    state of the validation wavs.
    """
    greedy_wer = round(word_error_rate([p.text for p in greedy], [p.pred_text for p in greedy]), 6)
    return {
        "settings": asdict(settings),
        "language_model": config.language_model.output,
        "config": config.file,
        "sha256": hashes,
        "validation": {"utterances": len(greedy), "greedy_wer": greedy_wer, "audio": audio},
        "bootstrap": bootstrap_choice(trials),
        "trials": [trial.as_dict() for trial in trials],
    }


def read_decoder(path: Path) -> tuple[Settings, str, str, dict[str, str]]:
    """Return settings, language_model.output, the configuration and the hashes of the files they were tuned with.

    Raise UserError when `path` is no decoder.json.
    """
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
        settings, hashes = Settings(**record["settings"]), record["sha256"]
        if not all(type(value) in (int, float) and abs(value) < MAX_WEIGHT for value in asdict(settings).values()):
            raise TypeError("a setting is not a number")
        if not (isinstance(settings.beam, int) and settings.beam > 0):
            raise TypeError("beam must be a number of hypotheses")
        texts = (record["language_model"], record["config"], *hashes.keys(), *hashes.values())
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("language_model, config and sha256 must be strings")
        return settings, record["language_model"], record["config"], hashes
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"there is no {path}, or it describes no beam search; evaluate.py evaluation.decoder=lm writes one beside "
            f"the predictions, as {DECODER}"
        ) from error


def read_current_settings(path: Path, hashes: dict[str, str], audio: str = "") -> Settings | None:
    """Return the settings of a decoder.json, None where it is not one of these inputs.

    It must have been tuned with the files of these `hashes` and with the validation wavs in the state `audio`, and its
    settings must be the best of its trials.
    """
    try:
        settings, *_, tuned_with = read_decoder(path)
        record = parse_json(path.read_text(encoding="utf-8"))
        best = min((trial["wer"], trial["cer"]) for trial in record["trials"])
        chosen = [trial for trial in record["trials"] if trial.items() >= asdict(settings).items()]
        is_current = tuned_with == hashes and record["validation"]["audio"] == audio
        return settings if is_current and best in [(trial["wer"], trial["cer"]) for trial in chosen] else None
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return None


def restore_decoder(path: Path, vocabulary: Vocabulary, phrases: Sequence[Phrase] = ()) -> tuple[BeamSearch, Settings]:
    """Return the beam search that a decoder.json describes, for a model with this `vocabulary`, and its settings.

    Raise UserError when there is another language model than the one it was tuned with.
    """
    settings, folder, config_file, tuned_with = read_decoder(path)
    *_, hashes = kenlm.find_language_model(folder, config_file)
    if not hashes.items() <= tuned_with.items():
        raise UserError(f"{path} was tuned with another language model; rerun evaluate.py evaluation.decoder=lm")
    return beam_search.load_beam_search(folder, config_file, vocabulary, hashes, phrases), settings
