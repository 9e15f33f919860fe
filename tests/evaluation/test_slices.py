from dataclasses import replace

import numpy as np
import pytest

from conftest import shipped
from finetuning.data.manifest import Utterance
from finetuning.errors import UserError
from finetuning.evaluation import slices
from finetuning.evaluation.scoring import Score

TEST = [
    Utterance("0.wav", 1.99, "sì", speaker="anna", gender="female_feminine", accents="Toscana"),
    Utterance("1.wav", 2.0, "no", speaker="anna", gender="female_feminine"),
    Utterance("2.wav", 5.0, "sì", speaker="bruno", gender="male_masculine"),
    Utterance("3.wav", 12.0, "forse domani", speaker="", gender="female_feminine"),
]
TRAIN = [Utterance("4.wav", 1.0, "sì", speaker="bruno"), Utterance("5.wav", 1.0, "ora", speaker="carla")]
# of 1, 1, 1 and 2 words: the first right, the second substituted, the third deleted, the fourth half right and one more
WORDS = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 1]])
SCORE = Score(None, 0, WORDS, 4 * WORDS)


def members(found: slices.Groups) -> dict[str, dict[str, list[int]]]:
    return {name: {group: numbers.tolist() for group, numbers in part.items()} for name, part in found.items()}


def test_every_utterance_is_in_one_group_of_every_slice() -> None:
    assert members(slices.make_groups(TEST, TRAIN)) == {
        "speaker": {"seen in training": [2], "not seen in training": [0, 1], "not stated": [3]},
        "sentence": {"seen in training": [0, 2], "not seen in training": [1, 3]},
        "duration": {"under 2 s": [0], "2 to 4 s": [1], "4 to 6 s": [2], "10 s and more": [3]},
        "gender": {"female_feminine": [0, 1, 3], "male_masculine": [2]},
        "accents": {"not stated": [1, 2, 3], "Toscana": [0]},
    }


def test_telephone_and_wide_band_are_told_apart_where_bandwidths_are_stated() -> None:
    stated = [replace(u, bandwidth_hz=hz) for u, hz in zip(TEST, (3875, 4250, 4375.5, None), strict=True)]
    groups = slices.make_groups(stated, TRAIN)
    assert members(groups)["bandwidth"] == {"telephone": [0, 1], "wide": [2], "not stated": [3]}
    rows = [{"model": "a", "utterances": 4, "slices": slices.score_slices(groups, SCORE)}]
    assert "| bandwidth telephone           |    2 (50%) |     2 | 0.5000 |" in slices.format_slices(rows)
    alike = slices.make_groups([replace(u, bandwidth_hz=8000) for u in TEST], TRAIN)
    assert members(alike)["bandwidth"] == {"wide": [0, 1, 2, 3]}
    rows = [{"model": "a", "utterances": 4, "slices": slices.score_slices(alike, SCORE)}]
    assert "bandwidth" not in slices.format_slices(rows)


def test_level_clipping_and_silence_are_groups_where_they_are_stated() -> None:
    levels, clipped, silent = (-60.0, -35.0, -20.5, -3.0), (0.0, 0.001, 0.0011, 1.0), (0.0, 0.75, 0.76, None)
    stated = [
        replace(u, level_dbfs=level, clipped_share=share, silent_share=quiet)
        for u, level, share, quiet in zip(TEST, levels, clipped, silent, strict=True)
    ]
    found = members(slices.make_groups(stated, TRAIN))
    assert found["level"] == {"up to -35 dBFS": [0, 1], "-35 to -20 dBFS": [2], "above -20 dBFS": [3]}
    assert found["clipping"] == {"not clipped": [0, 1], "clipped": [2, 3]}
    assert found["silence"] == {"mostly sound": [0, 1], "mostly silent": [2], "not stated": [3]}


def test_topics_are_normalised_and_may_be_phrases() -> None:
    text = shipped("demo").text
    topics = slices.normalise_topics({"time": ["Forse domani!", "Ieri"], "part": ["oma"], "word": ["SÌ"]}, text)
    found = members(slices.make_groups(TEST, None, topics))
    with_words = {name: found[f"topic {name}"].get("with its words", []) for name in topics}
    assert with_words == {"time": [3], "part": [], "word": [0, 2]}
    with pytest.raises(UserError, match=r"topics\.a: after the rules for texts, '3 anni' is '3 anni', which"):
        slices.normalise_topics({"a": ["3 anni"]}, text)


def test_what_is_not_known_is_left_out() -> None:
    bare = [Utterance(u.audio_filepath, u.duration, u.text) for u in TEST]
    assert list(slices.make_groups(bare, None)) == ["duration"]
    assert list(slices.make_groups(bare, TRAIN)) == ["sentence", "duration"]
    nameless = [Utterance(u.audio_filepath, u.duration, u.text) for u in TRAIN]
    assert list(slices.make_groups(TEST, nameless)) == ["sentence", "duration", "gender", "accents"]


def test_rare_values_are_put_together() -> None:
    accents = ["a", "a", *(f"accent {n:02}" for n in range(30))]
    found = slices.make_groups([Utterance("0.wav", 1.0, "a", accents=accent) for accent in accents], None)["accents"]
    assert list(found)[:3] == ["a", "accent 00", "accent 01"]
    assert (len(found), len(found["others"])) == (21, 11)


def test_each_group_has_its_counts_and_its_own_rates() -> None:
    found = slices.score_slices(slices.make_groups(TEST, TRAIN), SCORE)
    assert found["sentence"] == {
        "seen in training": {"utterances": 2, "words": 2, "characters": 8, "wer": 0.5, "cer": 0.5},
        "not seen in training": {"utterances": 2, "words": 3, "characters": 12, "wer": 1.0, "cer": 1.0},
    }
    assert found["duration"]["10 s and more"]["wer"] == 1  # one substituted and one inserted, of two
    assert [group["utterances"] for group in found["gender"].values()] == [3, 1]


def test_the_models_are_columns_on_the_screen() -> None:
    found = slices.score_slices(slices.make_groups(TEST, TRAIN), SCORE)
    rows = [{"model": name, "utterances": 4, "slices": found} for name in ("a", "b")]
    shown = slices.format_slices(rows).splitlines()
    assert shown[0] == "| WER by                        | Utterances | Words |      a |      b |"
    assert "| sentence seen in training     |    2 (50%) |     2 | 0.5000 | 0.5000 |" in shown
    assert "| gender female_feminine        |    3 (75%) |     4 | 0.7500 | 0.7500 |" in shown
    assert not [line for line in shown if "Toscana" in line]
    without = slices.score_slices(slices.make_groups(TEST, None), SCORE)
    shown = slices.format_slices([{"model": "a", "utterances": 4, "slices": without}])
    assert shown.endswith("What was seen in training is not known: there is no training manifest.")


def test_the_table_has_at_most_15_lines() -> None:
    rng = np.random.default_rng(0)
    speakers, values = ("a", "b", ""), [f"value {n}" for n in range(30)]
    utterances = [
        Utterance("0.wav", float(rng.uniform(0.5, 16)), str(rng.integers(9)), "", str(rng.choice(speakers)),
                  *map(str, rng.choice(values, 3)))
        for _ in range(500)
    ]  # fmt: skip
    groups = slices.make_groups(utterances, [Utterance("1.wav", 1.0, "3", speaker="a")])
    counts = np.tile(WORDS, (125, 1))
    found = slices.score_slices(groups, Score(None, 0, counts, counts))
    assert all(sum(group["words"] for group in part.values()) == 625 for part in found.values())
    shown = slices.format_slices([{"model": "a", "utterances": 500, "slices": found}])
    assert len(shown.splitlines()) == 15
