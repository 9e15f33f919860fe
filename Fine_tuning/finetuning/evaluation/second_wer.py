"""A second word error rate beside the WER: by the scoring that others report, evaluation.second_wer.

It compares the sentences as they stand in the manifest's `sentence`, before the text rules, with what a system wrote:

- orthographic: unchanged, with capitals and punctuation, but for spaces and Unicode's composition (NFC);
- whisper: both after the normaliser that Whisper is evaluated with in all languages but English, which removes
  punctuation, capitals and what stands in brackets (Radford et al. 2023, "Robust speech recognition via large-scale
  weak supervision", appendix C);
- whisper_english: both after its English one, which also spells out contractions and writes numbers in digits.
"""

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version

import jiwer
import numpy as np

from finetuning.config.schema import SecondWer
from finetuning.data.manifest import Utterance
from finetuning.data.text_normalization import to_nfc
from finetuning.decoding.predictions import Prediction
from finetuning.errors import UserError
from finetuning.evaluation.bootstrap import bootstrap_t, sum_by_speaker
from finetuning.evaluation.evaluated_data import Data
from finetuning.evaluation.results import Result, round_or_none
from finetuning.evaluation.scoring import Score
from finetuning.metrics.error_rates import alignment_counts

Second = tuple[Score, np.ndarray]  # of words alone, and the same by speaker, as in bootstrap.sum_by_speaker


def check_sentences(kind: SecondWer, tests: Iterable[Data]) -> None:
    """Raise UserError where an utterance has no sentence to score against."""
    for test in tests:
        for number, utterance in enumerate(test.utterances, start=1):
            if not utterance.sentence.strip():
                raise UserError(
                    f"{test.manifest}, utterance {number} has no sentence, against which evaluation.second_wer={kind} "
                    "is scored; add the field sentence to the manifest, or give evaluation.second_wer=null"
                )


def score_words(kind: SecondWer, predictions: Sequence[Prediction], utterances: Sequence[Utterance]) -> Second:
    """Return the word errors of `predictions`, as the system wrote them, against the sentences of `utterances`."""
    normalise = normaliser(kind)
    pairs = ((normalise(u.sentence), normalise(p.pred_text)) for u, p in zip(utterances, predictions, strict=True))
    counts = np.array([alignment_counts(jiwer.process_words(*pair)) for pair in pairs], dtype=np.int64)
    score = Score(None, 0, counts, np.zeros_like(counts))
    return score, sum_by_speaker(score, utterances)


def normaliser(kind: SecondWer) -> Callable[[str], str]:
    """Return what is done to both texts before their words are compared."""
    if kind is SecondWer.orthographic:
        return lambda text: " ".join(to_nfc(text).split())
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    whisper = EnglishTextNormalizer() if kind is SecondWer.whisper_english else BasicTextNormalizer()
    return lambda text: " ".join(whisper(text).split())


def second_fields(kind: SecondWer, second: Second) -> Result:
    """Return the fields of a result for its second WER, with its interval and its counts."""
    score, by_speaker = second
    (interval,) = bootstrap_t(by_speaker[:, :1], by_speaker[:, 1:2])
    words = score.words
    by = "" if kind is SecondWer.orthographic else f"whisper_normalizer {version('whisper_normalizer')}"
    return {
        "second_wer": round_or_none(words.rate),
        "second_wer_interval": interval and [max(0.0, round_or_none(bound)) for bound in interval],
        "second_wer_kind": str(kind),
        "second_wer_by": by,
        "second_wer_counts": {
            "words": words.reference,
            "insertions": words.insertions,
            "deletions": words.deletions,
            "substitutions": words.substitutions,
        },
    }


def pool(seconds: Sequence[Second]) -> Second:
    """Return the second scores of several runs as one."""
    counts = np.concatenate([score.word_counts for score, _ in seconds])
    return Score(None, 0, counts, np.zeros_like(counts)), sum(by_speaker for _, by_speaker in seconds)
