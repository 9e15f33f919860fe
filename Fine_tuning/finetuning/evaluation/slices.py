"""Parts of the test set that may be easier or harder: who speaks, what is read, how long it is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetuning.data.manifest import Utterance
from finetuning.errors import printable
from finetuning.evaluation.results import Result, markdown_table, round_or_none
from finetuning.evaluation.scoring import Score
from finetuning.metrics.error_rates import sum_counts

SEEN, UNSEEN = "seen in training", "not seen in training"
TOPIC, OF_IT, OTHERS = "topic ", "with its words", "without"
DURATIONS_S = {"under 2 s": 2, "2 to 4 s": 4, "4 to 6 s": 6, "6 to 10 s": 10, "10 s and more": np.inf}
MOST_VALUES = 20  # of gender, age or accents; the rarer ones are put together
SHOWN_VALUES = 3  # on the screen

Groups = dict[str, dict[str, np.ndarray]]  # slice: group: numbers of its utterances


def make_groups(
    utterances: Sequence[Utterance],
    training: Sequence[Utterance] | None,
    topics: Mapping[str, Sequence[str]] | None = None,
) -> Groups:
    """Which utterances are in which group of which slice; each is in one group of every slice there is.

    A slice of what no utterance states is left out, and so are speaker and sentence without the `training` utterances:
    "seen" means heard or read in them, whatever else a model was trained on. Sentences are compared as normalised. A
    sentence is of one of the `topics` when it holds one of its words.
    """
    named = {}
    if training is not None:
        speakers, texts = {u.speaker for u in training}, {u.text for u in training}
        if any(u.speaker for u in utterances) and speakers != {""}:
            named["speaker"] = [_seen(u.speaker in speakers) if u.speaker else "not stated" for u in utterances]
        named["sentence"] = [_seen(u.text in texts) for u in utterances]
    named["duration"] = [next(name for name, end in DURATIONS_S.items() if u.duration < end) for u in utterances]
    order = {"speaker": [SEEN, UNSEEN, "not stated"], "sentence": [SEEN, UNSEEN], "duration": list(DURATIONS_S)}
    for field in ("gender", "age", "accents"):
        values = [getattr(u, field) for u in utterances]
        if any(values):
            frequent = [value for value, _ in sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))]
            known = {value: value or "not stated" for value in frequent[:MOST_VALUES]}
            named[field] = [known.get(value, "others") for value in values]
            order[field] = [*known.values(), "others"]
    for topic, words in (topics or {}).items():
        named[TOPIC + topic] = [OF_IT if set(words) & set(u.text.split()) else OTHERS for u in utterances]
        order[TOPIC + topic] = [OF_IT, OTHERS]
    found = {}
    for name, members in named.items():
        numbers = {group: [] for group in order[name]}
        for number, group in enumerate(members):
            numbers[group].append(number)
        found[name] = {group: np.array(chosen) for group, chosen in numbers.items() if chosen}
    return found


def _seen(is_seen: bool) -> str:
    return SEEN if is_seen else UNSEEN


def score_slices(of: Groups, score: Score) -> dict[str, dict[str, dict[str, Any]]]:
    """By slice and group: how much there is and its error rates."""
    return {name: {group: _scored(score, numbers) for group, numbers in part.items()} for name, part in of.items()}


def _scored(score: Score, numbers: np.ndarray) -> dict[str, Any]:
    words, characters = sum_counts(score.word_counts[numbers]), sum_counts(score.character_counts[numbers])
    return {
        "utterances": len(numbers),
        "words": words.reference,
        "characters": characters.reference,
        "wer": round_or_none(words.rate),
        "cer": round_or_none(characters.rate),
    }


def format_slices(rows: Sequence[Result]) -> str:
    """WER by slice, a column for each model: of gender the most frequent, age and accents not."""
    first = rows[0]["slices"]
    lines = []
    for name in ("speaker", "sentence", "duration", "gender", *(name for name in first if name.startswith(TOPIC))):
        for group, of in list(first.get(name, {}).items())[: SHOWN_VALUES if name == "gender" else None]:
            share = f"{of['utterances']:,} ({of['utterances'] / rows[0]['utterances']:.0%})"
            rates = [f"{row['slices'][name][group]['wer']:.4f}" for row in rows]
            lines.append((f"{name} {printable(group)}", share, f"{of['words']:,}", *rates))
    header = ("WER by", "Utterances", "Words", *(row["model"] for row in rows))
    shown = markdown_table(header, lines)
    if "sentence" not in first:
        shown += "\n\nWhat was seen in training is not known: there is no training manifest."
    return shown
