"""Parts of the test set that may be easier or harder: who speaks, what is read, how long it is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetuning.audio.measurement import TELEPHONE_HZ
from finetuning.config.schema import Text
from finetuning.data.manifest import Utterance
from finetuning.data.sound_summary import CLIPPED, MOSTLY_SILENT
from finetuning.data.text_normalization import Language
from finetuning.errors import UserError, printable
from finetuning.evaluation.results import Result, round_or_none
from finetuning.evaluation.results_table import markdown_table
from finetuning.evaluation.scoring import Score
from finetuning.metrics.error_rates import sum_counts

SEEN, UNSEEN = "seen in training", "not seen in training"
TOPIC, WITH_WORDS, WITHOUT_WORDS = "topic ", "with its words", "without"
DURATIONS_S = {"under 2 s": 2, "2 to 4 s": 4, "4 to 6 s": 6, "6 to 10 s": 10, "10 s and more": np.inf}
SOUND = {  # slice: the field of the manifest, and the largest value of each group
    "bandwidth": ("bandwidth_hz", {"telephone": TELEPHONE_HZ, "wide": np.inf}),
    "level": ("level_dbfs", {"up to -35 dBFS": -35, "-35 to -20 dBFS": -20, "above -20 dBFS": np.inf}),
    "clipping": ("clipped_share", {"not clipped": CLIPPED, "clipped": np.inf}),
    "silence": ("silent_share", {"mostly sound": MOSTLY_SILENT, "mostly silent": np.inf}),
}
MOST_VALUES = 20  # of gender, age or accents; the rarer ones are grouped as others
SHOWN_VALUES = 3  # of gender, in the printed table

Groups = dict[str, dict[str, np.ndarray]]  # numbers of the utterances by slice and group


def make_groups(
    utterances: Sequence[Utterance],
    training: Sequence[Utterance] | None,
    topics: Mapping[str, Sequence[str]] | None = None,
) -> Groups:
    """Return the utterances of each group of each slice; every utterance is in one group of every slice.

    A slice of a property that no utterance states is left out, and so are speaker and sentence without the `training`
    utterances: "seen" means that they are in those, whatever else a model was trained on. Sentences are compared as
    normalised, and so are `topics`: a sentence is on one of them when it contains one of its words or phrases.
    """
    members = {}
    if training is not None:
        speakers, texts = {u.speaker for u in training}, {u.text for u in training}
        if any(u.speaker for u in utterances) and speakers != {""}:
            members["speaker"] = [_seen(u.speaker in speakers) if u.speaker else "not stated" for u in utterances]
        members["sentence"] = [_seen(u.text in texts) for u in utterances]
    members["duration"] = [next(name for name, end in DURATIONS_S.items() if u.duration < end) for u in utterances]
    order = {"speaker": [SEEN, UNSEEN, "not stated"], "sentence": [SEEN, UNSEEN], "duration": list(DURATIONS_S)}
    for field in ("gender", "age", "accents", "source"):
        values = [getattr(u, field) or "" for u in utterances]
        if any(values):
            frequent = [value for value, _ in sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))]
            known = {value: value or "not stated" for value in frequent[:MOST_VALUES]}
            members[field] = [known.get(value, "others") for value in values]
            order[field] = [*known.values(), "others"]
    for name, (field, largest) in SOUND.items():
        measured = [getattr(u, field) for u in utterances]
        if any(value is not None for value in measured):
            members[name] = [_sound_group(value, largest) for value in measured]
            order[name] = [*largest, "not stated"]
    for topic, words in (topics or {}).items():
        is_on = [any(f" {words_of} " in f" {u.text} " for words_of in words) for u in utterances]
        members[TOPIC + topic] = [WITH_WORDS if yes else WITHOUT_WORDS for yes in is_on]
        order[TOPIC + topic] = [WITH_WORDS, WITHOUT_WORDS]
    return {name: _group_numbers(order[name], groups) for name, groups in members.items()}


def normalise_topics(topics: Mapping[str, Sequence[str]], text: Text) -> dict[str, list[str]]:
    """Return evaluation.topics as the references are spelt; raise UserError for a word that no reference can hold."""
    language = Language.of(text)
    spelt = {topic: [language.normalise(words) for words in listed] for topic, listed in topics.items()}
    for topic, listed in topics.items():
        for words, after in zip(listed, spelt[topic], strict=True):
            if not after or language.foreign(after):
                raise UserError(
                    f"evaluation.topics.{printable(topic)}: after the rules for texts, {printable(words)!r} is "
                    f"{printable(after)!r}, which no text holds; change or remove it"
                )
    return spelt


def _group_numbers(order: Sequence[str], groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the numbers of the utterances of each group that has any, in this `order`."""
    numbers: dict[str, list[int]] = {group: [] for group in order}
    for number, group in enumerate(groups):
        numbers[group].append(number)
    return {group: np.array(chosen) for group, chosen in numbers.items() if chosen}


def _sound_group(value: float | None, largest: Mapping[str, float]) -> str:
    return "not stated" if value is None else next(name for name, most in largest.items() if value <= most)


def _seen(is_seen: bool) -> str:
    return SEEN if is_seen else UNSEEN


def score_slices(groups: Groups, score: Score) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the size and the error rates of each group by slice and group."""
    return {
        name: {group: _score_group(score, numbers) for group, numbers in members.items()}
        for name, members in groups.items()
    }


def _score_group(score: Score, numbers: np.ndarray) -> dict[str, Any]:
    words, characters = sum_counts(score.word_counts[numbers]), sum_counts(score.character_counts[numbers])
    return {
        "utterances": len(numbers),
        "words": words.reference,
        "characters": characters.reference,
        "wer": round_or_none(words.rate),
        "cer": round_or_none(characters.rate),
    }


def format_slices(rows: Sequence[Result]) -> str:
    """Return the table of WER by slice, a column for each model: of gender the most frequent, no age, no accents.

    What the recordings are is there where it differs.
    """
    first = rows[0]["slices"]
    topics = [name for name in first if name.startswith(TOPIC)]
    sound = [name for name in SOUND if len(first.get(name, {})) > 1]
    lines = []
    for name in ("speaker", "sentence", "duration", "gender", *sound, *topics):
        for group, size in list(first.get(name, {}).items())[: SHOWN_VALUES if name == "gender" else None]:
            share = f"{size['utterances']:,} ({size['utterances'] / rows[0]['utterances']:.0%})"
            rates = [f"{row['slices'][name][group]['wer']:.4f}" for row in rows]
            lines.append((f"{name} {printable(group)}", share, f"{size['words']:,}", *rates))
    header = ("WER by", "Utterances", "Words", *(row["model"] for row in rows))
    table = markdown_table(header, lines)
    if "sentence" not in first:
        table += "\n\nWhat was seen in training is not known: there is no training manifest."
    return table
