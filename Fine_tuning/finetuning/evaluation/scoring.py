"""Predictions -> loss, CER, WER and aligned pairs: pure functions; references are the manifest's own texts.

Loss: mean over utterances of -ln p(reference | audio), in nats (CTC: Graves et al. 2006, equation 8).
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import jiwer
import numpy as np

from finetuning.config.schema import Foreign, Text
from finetuning.data.text_normalization import MAX_CHARACTERS, Language, lower
from finetuning.decoding.predictions import ModelOutput, Prediction
from finetuning.metrics.confusions import Pair, aligned_pairs
from finetuning.metrics.error_rates import ErrorCounts, alignment_counts, position_errors, sum_counts
from finetuning.model.vocabulary import Vocabulary

MARKS = ".,;:?!"  # of sentences; an apostrophe belongs to a word


@dataclass(frozen=True)
class Score:
    """Loss, error counts and aligned pairs of one model on one manifest."""

    loss: float | None  # nats; mean over utterances of the CTC negative log-likelihood; None: finite for none
    loss_left_out: int  # utterances without a finite loss: more characters than frames
    word_counts: np.ndarray  # (utterances, 4): hits, substitutions, deletions, insertions
    character_counts: np.ndarray  # (utterances, 4)
    word_pairs: Counter[Pair] = field(default_factory=Counter)  # over all utterances, those that agree included
    character_pairs: Counter[Pair] = field(default_factory=Counter)
    position_errors: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))  # of all utterances

    @property
    def words(self) -> ErrorCounts:
        """Return the counts of words over all utterances."""
        return sum_counts(self.word_counts)

    @property
    def characters(self) -> ErrorCounts:
        """Return the counts of characters over all utterances."""
        return sum_counts(self.character_counts)

    @property
    def utterance_errors(self) -> np.ndarray:
        """Return word errors, words, character errors and characters of each utterance, (utterances, 4).

        Words and characters are those of the reference.
        """
        columns = [(c[:, 1:].sum(axis=1), c[:, :3].sum(axis=1)) for c in (self.word_counts, self.character_counts)]
        return np.stack([*columns[0], *columns[1]], axis=1)


def score_predictions(predictions: Iterable[Prediction]) -> Score:
    """Return loss, error counts and aligned pairs; each utterance is aligned once, by words and by characters.

    An empty hypothesis deletes the whole reference.
    """
    losses, word_counts, character_counts, positions = [], [], [], []
    word_pairs: Counter[Pair] = Counter()
    character_pairs: Counter[Pair] = Counter()
    for p in predictions:
        losses.append(p.loss)
        words, characters = jiwer.process_words(p.text, p.pred_text), jiwer.process_characters(p.text, p.pred_text)
        word_counts.append(alignment_counts(words))
        character_counts.append(alignment_counts(characters))
        positions.append(position_errors(words))
        word_pairs.update(aligned_pairs(words))
        character_pairs.update(aligned_pairs(characters))
    finite = [loss for loss in losses if loss is not None]
    return Score(
        loss=math.fsum(finite) / len(finite) if finite else None,
        loss_left_out=len(losses) - len(finite),
        word_counts=np.array(word_counts, dtype=np.int64).reshape(-1, 4),
        character_counts=np.array(character_counts, dtype=np.int64).reshape(-1, 4),
        word_pairs=word_pairs,
        character_pairs=character_pairs,
        position_errors=np.concatenate(positions) if positions else np.zeros(0, dtype=np.int32),
    )


def needs_text_rules(vocabulary: Vocabulary, text: Text) -> bool:
    """Return whether a model writes what the references do not have: capitals, marks of a sentence, what rules replace.

    A model of another alphabet is not asked for the last.
    """
    language = Language.of(replace(text, foreign=Foreign.reject, numbers=None))
    shares_letters = any(map(str.isalpha, vocabulary.characters & set(text.alphabet)))
    return any(
        character.isupper()
        or character in MARKS
        or (shares_letters and language.apply_rules(f"l{character}l")[1])  # as in the Catalan l·l
        for character in vocabulary.characters - set(text.alphabet)
    )


def apply_text_rules(output: ModelOutput, text: Text) -> ModelOutput:
    """Return the output with each hypothesis normalised as step 1 normalises a sentence."""
    language = Language.of(text)
    normalised = (
        language.apply_rules(p.pred_text)[0] if len(p.pred_text) <= MAX_CHARACTERS else lower(p.pred_text).strip()
        for p in output.predictions
    )
    predictions = [replace(p, pred_text=t) for p, t in zip(output.predictions, normalised, strict=True)]
    return replace(output, predictions=predictions)


def characters_outside(predictions: Sequence[Prediction], characters: set[str]) -> dict[str, str | int]:
    """Return the characters of the hypotheses beyond `characters`, which count as errors, and in how many texts."""
    outside = [set(p.pred_text) - characters for p in predictions]
    return {"characters_outside": "".join(sorted(set().union(*outside))), "texts_outside": sum(map(bool, outside))}


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith("P")


def nemo_word_error_rate(predictions: Sequence[Prediction], score: Score, vocabulary: Vocabulary) -> float:
    """Return the WER that NeMo's own test would report of a model; `score`: that of `predictions`.

    NeMo drops characters outside the model's `vocabulary` from the references, so that the model need not write them,
    and from the hypotheses the space before a punctuation mark, for which it takes the apostrophe.
    """
    written = vocabulary.characters
    marks = "".join(re.escape(character) for character in sorted(written) if _is_punctuation(character))
    space = re.compile(rf"\s(?=[{marks}])" if marks else "(?!)")
    counts = score.word_counts.copy()
    for number, p in enumerate(predictions):
        reference = "".join(character for character in p.text if character in written)
        hypothesis = space.sub("", p.pred_text)
        if (reference, hypothesis) != (p.text, p.pred_text):
            counts[number] = alignment_counts(jiwer.process_words(reference, hypothesis))
    return sum_counts(counts).rate
