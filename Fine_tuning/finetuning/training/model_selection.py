"""Which weights a finished run exports: those of the last epoch, of the best, or the average of the best epochs'."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from nemo.collections.asr.models import EncDecCTCModel
from tqdm import tqdm

from finetuning.data.manifest import Utterance
from finetuning.decoding.inference import predict
from finetuning.errors import is_out_of_memory
from finetuning.metrics.error_rates import character_error_rate, word_error_rate
from finetuning.training.checkpoints import BestCheckpoints, read_checkpoint

BATCH_SIZE = 16  # utterances that are transcribed at a time
UNLEARNT = 0.9  # from this WER on, the lower one is that of the model which writes less, not of the better one

Weights = dict[str, torch.Tensor]


def select_weights(model: EncDecCTCModel, utterances: Sequence[Utterance], folder: Path) -> dict[str, Any]:
    """Load into a trained `model`, which holds the last epoch's weights, those that `rank` best on `utterances`.

    The others are those of the best epoch that is kept, and the average of all that are (as ESPnet and icefall export
    it). `folder` is that of the manifest. Return `exported`, the name of the chosen, and `candidates`: of each name its
    epochs, counted from 1, its WER and CER as fractions. Of equal ones the first is taken, in this order. Where no
    epoch is kept, nothing is measured.
    """
    last, best = model.trainer.max_epochs, dict(read_best_epochs(model.trainer))
    if not best:
        return {"exported": "last", "candidates": {}}
    kept = {last: {name: weight.clone() for name, weight in model.state_dict().items()}} | best
    names = {"last": [last], "best": [next(iter(best))], "average": sorted(best)}
    candidates: dict[str, dict[str, Any]] = {}
    for name, epochs in names.items():
        if not any(epochs == other["epochs"] for other in candidates.values()):
            model.load_state_dict(average_weights([kept[epoch] for epoch in epochs]))
            candidates[name] = {"epochs": epochs, **_error_rates(model, utterances, folder, name)}
    exported = min(candidates, key=lambda name: rank(candidates[name]))
    model.load_state_dict(average_weights([kept[epoch] for epoch in candidates[exported]["epochs"]]))
    return {"exported": exported, "candidates": candidates}


def rank(rates: dict[str, Any]) -> tuple[float, float]:
    """Return by what candidates are compared: the WER and then the CER; the CER alone from a WER of UNLEARNT on."""
    return min(rates["val_wer"], UNLEARNT), rates["val_cer"]


def read_best_epochs(trainer: pl.Trainer) -> Iterator[tuple[int, Weights]]:
    """Yield number, counted from 1, and weights of the kept epochs, the best first; say which cannot be read."""
    (callback,) = (callback for callback in trainer.callbacks if isinstance(callback, BestCheckpoints))
    for path in sorted(callback.best_k_models, key=callback.best_k_models.__getitem__):
        try:
            checkpoint = read_checkpoint(path, mmap=True)
            yield checkpoint["epoch"] + 1, checkpoint["state_dict"]
        except Exception as error:  # torch, zipfile and pickle each have their own
            if is_out_of_memory(error):
                raise
            print(f"{Path(path).name} is missing or damaged, and its epoch is not among those to choose from")


def average_weights(states: Sequence[Weights]) -> Weights:
    """Return the mean of each weight, in its own precision; what counts in whole numbers is the last one's."""
    if len(states) == 1:
        return states[0]
    return {
        name: sum(state[name].double().cpu() for state in states).div(len(states)).to(weight.dtype)
        if weight.is_floating_point()
        else weight
        for name, weight in states[-1].items()
    }


def _error_rates(model: EncDecCTCModel, utterances: Sequence[Utterance], folder: Path, name: str) -> dict[str, float]:
    predictions = tqdm(
        predict(model, None, utterances, folder, BATCH_SIZE),
        total=len(utterances), desc=f"validating the {name} weights", unit=" utterances", disable=None, leave=False,
    )  # fmt: skip
    texts = [(prediction.text, prediction.pred_text) for _, prediction in predictions]
    references, hypotheses = zip(*texts, strict=True)
    rates = {
        "val_wer": word_error_rate(references, hypotheses),
        "val_cer": character_error_rate(references, hypotheses),
    }
    return {key: round(rate, 4) for key, rate in rates.items()}
