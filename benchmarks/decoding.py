"""The demo's test set decoded from the same stored log-probabilities: this project's beam search beside other ways.

    python benchmarks/decoding.py

Needs what `make demo-domain` leaves; writes results/reference/decoding.json in a quarter of an hour. Weights are
tuned on the validation set by random draws, fewer for NeMo's slow beam_batch; NeMo's flashlight, which scores a
hypothesis as ours does, has ours. Each way takes its turn in every round; loading is left out. What an open lexicon is
worth is measured with the language model that `make demo-domain` leaves, which lacks words.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Fine_tuning"))

import numpy as np
import torch
from flashlight.lib.text.decoder import CriterionType, LexiconFreeDecoder, LexiconFreeDecoderOptions
from nemo.collections.asr.parts.submodules.ctc_beam_decoding import (
    BeamBatchedCTCInfer,
    BeamCTCInfer,
    FlashlightConfig,
)
from tqdm import tqdm

from clone_to_table import ROOT, cpu_name
from finetuning.config import loading
from finetuning.data.manifest import manifest_path, read_manifest
from finetuning.decoding import predictions, weight_search
from finetuning.decoding.beam_search import Settings
from finetuning.decoding.greedy import ctc_collapse, greedy_decode
from finetuning.decoding.predictions import Prediction
from finetuning.files import write_json
from finetuning.language_model import arpa, corpus, kenlm, kneser_ney
from finetuning.language_model.kenlm import load_kenlm
from finetuning.metrics.error_rates import word_errors
from training import CORES, figures

RESULT = ROOT / "results" / "reference" / "decoding.json"
WORK = ROOT / "runs" / "demo" / "predictions"
MODEL = "Model-IT-finetuned"
OFFSET = 100  # NeMo's beam_batch reads a letter's number as this many characters later
TOKEN_ORDER = 6  # letters, as many as flashlight's KenLM takes
DRAWS, FEW_DRAWS = 40, 8
NEVER = -1e4  # so that no word outside the lexicon is written
BATCH = 16  # utterances, of beam_batch
Frames = Sequence[np.ndarray]
Decode = Callable[[Frames], list[str]]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of all ways in turn; the median is what counts")
    rounds = parser.parse_args().rounds
    if not (ROOT / "runs" / "demo_domain" / "general").is_dir():
        sys.exit("there is no decoded demo; type: make demo-domain")
    torch.set_num_threads(CORES)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        measured = measure(Path(folder), rounds)
    write_json(RESULT, measured)
    print(json.dumps(measured, indent=2))


def measure(folder: Path, rounds: int) -> dict:
    """What the JSON holds."""
    letters = predictions.read_vocabulary(WORK / MODEL)
    test = list(zip(predictions.read_predictions(WORK / MODEL), predictions.read_log_probs(WORK / MODEL), strict=True))
    tuned_on = WORK / MODEL / "validation"
    validation = [
        (p.text, own)
        for p, own in zip(predictions.read_predictions(tuned_on), predictions.read_log_probs(tuned_on), strict=True)
    ]
    references, frames = [p.text for p, _ in test], [own for _, own in test]
    seconds = sum(p.duration for p, _ in test)
    ways, weights = prepared(folder, letters, validation)
    texts = {way: decode(frames) for way, decode in ways.items()}  # warms up
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in tqdm(range(rounds), unit=" rounds"):
        for way, decode in ways.items():
            started = time.perf_counter()
            decode(frames)
            speeds[way].append(seconds / (time.perf_counter() - started))
    texts = {"greedy": [greedy_decode(own, letters) for own in frames], **texts}
    return {
        "machine": f"{CORES} CPU cores ({cpu_name()})",
        "versions": {name: version(name) for name in ("nemo_toolkit", "torch", "flashlight-text")},
        "data": f"{len(frames)} utterances of the sample's test set, synthetic speech, {seconds:.0f} s",
        "rounds": rounds,
        "weights": weights,
        "audio_s_per_s": {way: figures(found) for way, found in speeds.items()},
        "this_to": {way: figures(np.array(speeds["this"]) / np.array(found)) for way, found in speeds.items()},
        "wer": {way: round(word_errors(references, found).rate, 4) for way, found in texts.items()},
        "unknown_words": open_vocabulary(folder, letters, test, weights["letters"]),
    }


def prepared(folder: Path, letters: list[str], validation: list[tuple[str, np.ndarray]]) -> tuple[dict, dict]:
    """Each way as a function of the log-probabilities of an utterance, and the weights it was given."""
    search, settings = weight_search.restore_decoder(WORK / f"{MODEL}+LM" / weight_search.DECODER, letters)
    path, _, _ = kenlm.find_language_model("runs/demo/language_model", "configs/demo.yaml")
    closed = replace(settings, unknown_score=NEVER)
    training = read_manifest(manifest_path(ROOT / "datasets" / "demo", "train"), check_audio=False)
    of_letters = letter_model(folder / "letters.arpa", letters, (u.text for u in training))
    with_nemo = nemo_flashlight(path, letters, settings)
    free, free_weights = tuned(partial(lexicon_free, of_letters, letters), (0.2, 3.0), DRAWS, validation)
    batched, batched_weights = tuned(partial(beam_batch, of_letters, letters), (0.05, 1.0), FEW_DRAWS, validation)
    ways: dict[str, Decode] = {
        "this": lambda frames: [search.text(own, settings) for own in frames],
        "lexicon alone": lambda frames: [search.text(own, closed) for own in frames],
        "letters": free,
        "NeMo flashlight": with_nemo,
        "NeMo beam_batch": batched,
    }
    return ways, {"words": vars(settings), "letters": free_weights, "NeMo beam_batch": batched_weights}


def letter_model(path: Path, letters: list[str], texts: Iterable[str]) -> Path:
    """Of the same texts, letters in the place of words, called as NeMo's beam_batch wants them."""
    number = {letter: chr(index + OFFSET) for index, letter in enumerate(letters)}
    arpa.write_arpa(
        path, kneser_ney.estimate_model(([number[letter] for letter in text] for text in texts), TOKEN_ORDER)
    )
    return path


def lexicon_free(path: Path, letters: list[str], lm_weight: float, score: float) -> Decode:
    """flashlight's beam search over letters; `score` for each space."""
    lm, _ = load_kenlm(path, [chr(index + OFFSET) for index in range(len(letters))])
    # load() numbers <unk> first: its model's words are one behind the letters
    options = LexiconFreeDecoderOptions(50, 16, 25.0, lm_weight, score, False, CriterionType.CTC)
    space, blank = letters.index(" ") + 1, len(letters) + 1
    decoder = LexiconFreeDecoder(options, lm, space, blank, [])

    def decode(own: np.ndarray) -> str:
        shifted = np.full((len(own), len(letters) + 2), -1e4, dtype=np.float32)
        shifted[:, 1:] = own
        found = decoder.decode(shifted.ctypes.data, *shifted.shape)[0]
        return " ".join(ctc_collapse(np.array(found.tokens[1:-1]) - 1, letters).split())

    return lambda frames: list(map(decode, frames))


def nemo_flashlight(path: Path, letters: list[str], settings: Settings) -> Decode:
    """NeMo's strategy of that name with our language model, lexicon and weights."""
    strategy = BeamCTCInfer(
        blank_id=len(letters), beam_size=settings.beam, search_type="flashlight", ngram_lm_alpha=settings.lm_weight,
        beam_beta=settings.word_score, ngram_lm_model=str(path),
        flashlight_cfg=FlashlightConfig(str(path.with_name(kenlm.LEXICON)), None, 16, 25.0),
    )  # fmt: skip
    strategy.set_vocabulary(letters)
    strategy.set_decoding_type("char")
    return lambda frames: [text for own in frames for text in of_nemo(strategy, [own], letters)]


def beam_batch(path: Path, letters: list[str], lm_weight: float, letter_score: float) -> Decode:
    """NeMo's strategy of that name with a language model of letters."""
    strategy = BeamBatchedCTCInfer(
        blank_index=len(letters),
        beam_size=50,
        ngram_lm_alpha=lm_weight,
        beam_beta=letter_score,
        ngram_lm_model=str(path),
    )

    def decode(frames: Frames) -> list[str]:
        found, order = {}, sorted(range(len(frames)), key=lambda number: -len(frames[number]))
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            found.update(zip(numbers, of_nemo(strategy, [frames[number] for number in numbers], letters), strict=True))
        return [found[number] for number in range(len(frames))]

    return decode


def of_nemo(strategy: BeamCTCInfer | BeamBatchedCTCInfer, batch: Frames, letters: list[str]) -> list[str]:
    """The best hypothesis of each utterance of a batch."""
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(np.array(own)) for own in batch], batch_first=True)
    (found,) = strategy(decoder_output=padded, decoder_lengths=torch.tensor([len(own) for own in batch]))
    best = [
        hypothesis.n_best_hypotheses[0] if hasattr(hypothesis, "n_best_hypotheses") else hypothesis
        for hypothesis in found
    ]
    return [" ".join("".join(letters[int(token)] for token in each.y_sequence).split()) for each in best]


def tuned(
    make: Callable[..., Decode], reach: tuple[float, float], draws: int, validation: list[tuple[str, np.ndarray]]
) -> tuple[Decode, dict[str, float]]:
    """The way with the lowest WER of some draws of its two weights, the first between the limits of `reach`."""
    rng, references = random.Random(0), [text for text, _ in validation]
    tried = []
    for number in tqdm(range(draws), desc="tuning", unit=" settings"):
        weights = round(rng.uniform(*reach), 2), round(rng.uniform(-1.0, 3.0), 2)
        decode = make(*weights)
        rate = word_errors(references, decode([own for _, own in validation])).rate
        tried.append((rate, number, weights, decode))
    _, _, weights, decode = min(tried)
    return decode, dict(zip(("lm_weight", "score"), weights, strict=True))


def open_vocabulary(
    folder: Path, letters: list[str], test: Sequence[tuple[Prediction, np.ndarray]], free: dict
) -> dict:
    """What an open lexicon, or none, is worth where the language model lacks words: that of the general text alone."""
    work = ROOT / "runs" / "demo_domain" / "general"
    search, settings = weight_search.restore_decoder(
        work / "predictions" / f"{MODEL}+LM" / weight_search.DECODER, letters
    )
    config = loading.load_config("configs/demo_domain.yaml", [])
    general = config.language_model.sources[0]
    stats = corpus.SourceStats(general.name, general.weight)
    texts = corpus.iter_sentences(general, config, corpus.held_out_texts(config), stats)
    of_letters = letter_model(folder / "general.arpa", letters, (" ".join(words) for words in texts))
    ways: dict[str, Decode] = {
        "this": lambda frames: [search.text(own, settings) for own in frames],
        "lexicon alone": lambda frames: [search.text(own, replace(settings, unknown_score=NEVER)) for own in frames],
        "letters": lexicon_free(of_letters, letters, **free),
    }
    references, frames = [p.text for p, _ in test], [own for _, own in test]
    said = {"greedy": [p.pred_text for p, _ in test], **{way: decode(frames) for way, decode in ways.items()}}
    lacking = [[word for word in text.split() if word not in search.known] for text in references]
    return {
        "words": sum(map(len, lacking)),
        "written": {
            way: sum(word in text.split() for words, text in zip(lacking, texts, strict=True) for word in words)
            for way, texts in said.items()
        },
        "wer": {way: round(word_errors(references, texts).rate, 4) for way, texts in said.items()},
    }


if __name__ == "__main__":
    main()
