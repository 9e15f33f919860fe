import random
from dataclasses import replace

import pytest

from conftest import shipped
from finetuning.audio.measurement import Measurement
from finetuning.config.schema import Repeated, Split, SplitBy
from finetuning.data import row_filters, splits
from finetuning.data.conversion_pool import ConvertedClip
from finetuning.data.listing import Clip, Listing, RejectedRow
from finetuning.data.manifest import SPLITS, Utterance
from finetuning.errors import UserError


@pytest.fixture(scope="module")
def corpus() -> list[Utterance]:
    """1,000 speakers, a few of whom recorded most, 15 % of the clips repeat another's sentence."""
    draw = random.Random(7)
    clips = [max(1, round(400 / (1 + rank) ** 0.8)) for rank in range(1000)]
    utterances = []
    for speaker, count in enumerate(clips):
        for _ in range(count):
            i = len(utterances)
            text = f"frase {draw.randrange(i)}" if i and draw.random() < 0.15 else f"frase {i}"
            utterances.append(Utterance(f"wavs/{i}.wav", draw.uniform(2, 9), text, text, f"speaker {speaker}"))
    return utterances


def divided(utterances: list[Utterance], assignment: dict[str, str]) -> dict[str, list[Utterance]]:
    return {name: [u for u in utterances if assignment.get(u.audio_filepath) == name] for name in SPLITS}


def test_by_speaker_shares_nothing_loses_nothing_and_meets_the_hours(corpus: list[Utterance]) -> None:
    for seed in (0, 1):
        kept, lost = splits.assign_splits(Split(SplitBy.speaker, 0.7, 0.15, 0.15, seed), corpus)
        assert kept.keys() | lost.keys() == {u.audio_filepath for u in corpus} and not kept.keys() & lost.keys()
        chosen = divided(corpus, kept)
        for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
            assert not {u.speaker for u in chosen[a]} & {u.speaker for u in chosen[b]}
            assert not {u.text for u in chosen[a]} & {u.text for u in chosen[b]}
        hours = {name: sum(u.duration for u in group) for name, group in chosen.items()}
        for name, share in (("train", 0.70), ("validation", 0.15), ("test", 0.15)):
            assert hours[name] / sum(hours.values()) == pytest.approx(share, abs=0.01)
        assert len(lost) < 0.15 * len(corpus)
        texts = {name: {u.text for u in group} for name, group in chosen.items()}
        text_of = {u.audio_filepath: u.text for u in corpus}
        assert all(text_of[path] in texts[keeper] for path, keeper in lost.items())
        speakers = splits.describe_splits(chosen)
        assert min(speakers["validation"]["speakers"], speakers["test"]["speakers"]) > 100


@pytest.mark.parametrize("by", [SplitBy.speaker, SplitBy.clip])
def test_the_seed_decides_and_the_order_does_not(corpus: list[Utterance], by: SplitBy) -> None:
    split = Split(by, 0.7, 0.15, 0.15, 3)
    shuffled = random.Random(0).sample(corpus, len(corpus))
    assert splits.assign_splits(split, corpus) == splits.assign_splits(split, shuffled)
    assert splits.assign_splits(split, corpus) != splits.assign_splits(replace(split, seed=4), corpus)


def test_by_clip_meets_the_shares_in_clips(corpus: list[Utterance]) -> None:
    kept, lost = splits.assign_splits(Split(by=SplitBy.clip, train=0.8, validation=0.05, test=0.15, seed=0), corpus)
    assert not lost
    counts = {name: len(group) for name, group in divided(corpus, kept).items()}
    assert counts == {
        "train": round(len(corpus) * 0.8),
        "validation": round(len(corpus) * 0.85) - round(len(corpus) * 0.8),
        "test": len(corpus) - round(len(corpus) * 0.85),
    }


@pytest.mark.parametrize("hours", [(1, 1, 1), (100, 1, 1), (5, 5, 5, 5), (3, 2, 1, 1)])
def test_three_speakers_are_enough_for_three_splits(hours: tuple[int, ...]) -> None:
    utterances = [Utterance(f"wavs/{i}.wav", h, f"frase {i}", speaker=f"s{i}") for i, h in enumerate(hours)]
    kept, _ = splits.assign_splits(Split(SplitBy.speaker, 0.7, 0.15, 0.15, 0), utterances)
    assert set(kept.values()) == set(SPLITS)
    if hours[0] > 2 * hours[1]:
        assert kept["wavs/0.wav"] == "train"


def test_a_shared_sentence_stays_where_hours_lack_most() -> None:
    """70/15/15 of 100 s; the sentence all three read is kept by the split furthest below its share."""
    seconds = {"train": (66.0, 5.0), "validation": (14.0, 5.0), "test": (5.0, 5.0)}
    utterances = [
        Utterance(f"wavs/{name}{i}.wav", s, "la stessa" if i else f"propria {name}", speaker=name)
        for name, pair in seconds.items()
        for i, s in enumerate(pair)
    ]
    home = {name: name for name in SPLITS}
    kept, lost = splits._separate_sentences(utterances, home, {"train": 0.7, "validation": 0.15, "test": 0.15}, seed=0)
    assert lost == {"wavs/train1.wav": "test", "wavs/validation1.wav": "test"}
    assert kept == {f"wavs/{name}0.wav": name for name in SPLITS} | {"wavs/test1.wav": "test"}


def test_too_few_speakers_or_none_named_is_refused() -> None:
    named = Listing("it", "validated.tsv", {}, [], [], True, {}, None, None, iter)
    nameless = replace(named, speakers_named=False)
    with pytest.raises(UserError, match=r"2 speakers.*dataset\.split\.by=clip"):
        splits.validate_split(Split(by=SplitBy.speaker), {"a", "b"}, named)
    with pytest.raises(UserError, match="no column client_id"):
        splits.validate_split(Split(by=SplitBy.speaker), {""}, nameless)
    with pytest.raises(UserError, match="csv has no column speaker"):
        splits.validate_split(Split(by=SplitBy.speaker), {""}, replace(nameless, table="calls.csv"))
    splits.validate_split(Split(by=SplitBy.clip), {"a"}, nameless)


def test_what_a_split_by_speaker_leaves_out_is_foretold_and_can_be_kept() -> None:
    """Each sentence read by five speakers: most readers of a sentence are in train, and the others lose it."""
    utterances = [Utterance(f"{n}.wav", 3.0, f"text {n // 5}", speaker=f"speaker {n * 7 % 50}") for n in range(500)]
    split = Split(SplitBy.speaker, 0.7, 0.15, 0.15, 0, Repeated.drop)
    assigned, lost = splits.assign_splits(split, utterances)
    foretold = splits.foretell_losses(split, [replace(u, duration=1.0) for u in utterances])
    assert 0.3 < len(lost) / 500 < 0.7
    assert f"about {len(lost)} of 500 clips ({len(lost) / 500:.0%})" in foretold
    kept, none_lost = splits.assign_splits(replace(split, repeated=Repeated.keep), utterances)
    assert len(kept) == 500 and not none_lost
    assert kept.items() >= assigned.items()
    assert len({(u.speaker, kept[u.audio_filepath]) for u in utterances}) == 50  # each speaker in one split
    assert splits.foretell_losses(replace(split, repeated=Repeated.keep), utterances) == ""
    assert splits.foretell_losses(split, [replace(u, text=u.audio_filepath) for u in utterances]) == ""


def test_an_empty_split_is_named() -> None:
    one = [Utterance("wavs/a.wav", 1.0, "a")]
    with pytest.raises(UserError, match=r"validation and test.*2 too_long"):
        splits.check_splits_not_empty(
            {"train": one, "validation": [], "test": []}, [RejectedRow("a.mp3", "too_long")] * 2
        )


def test_overlap_counts_speakers_and_sentences_and_describe_the_rest() -> None:
    a, b = Utterance("wavs/a.wav", 3600.0, "ciao", speaker="x"), Utterance("wavs/b.wav", 1800.0, "ciao", speaker="x")
    chosen = {"train": [a], "validation": [b], "test": [replace(b, audio_filepath="wavs/c.wav", text="sì")]}
    assert splits.split_overlap(chosen) == {
        "train and validation": {"speakers": 1, "sentences": 1},
        "train and test": {"speakers": 1, "sentences": 0},
        "validation and test": {"speakers": 1, "sentences": 0},
    }
    assert splits.describe_splits(chosen)["validation"] == {"hours": 0.5, "clips": 1, "speakers": 1, "sentences": 1}


def test_clips_known_from_train_are_counted_as_clips() -> None:
    """Counted by hand: of four test clips two are by x and one of these repeats a sentence, as does another's."""

    def clips(*pairs: str) -> list[Utterance]:
        return [
            Utterance(f"wavs/{i}.wav", 1.0, text, speaker=who) for i, (who, text) in enumerate(map(str.split, pairs))
        ]

    chosen = {"train": clips("x ciao", "y sì"), "validation": clips("z no")}
    chosen["test"] = clips("x ciao", "x forse", "w ciao", "w mai")
    assert splits.seen_in_train(chosen) == {
        "validation": {
            "speaker": {"clips": 0, "share": 0.0},
            "sentence": {"clips": 0, "share": 0.0},
            "neither": {"clips": 1, "share": 1.0},
        },
        "test": {
            "speaker": {"clips": 2, "share": 0.5},
            "sentence": {"clips": 2, "share": 0.5},
            "neither": {"clips": 1, "share": 0.25},
        },
    }


def test_where_no_speaker_is_named_what_is_shared_is_unknown_and_not_none() -> None:
    utterances = [Utterance(f"wavs/{i}.wav", 1.0, "ciao") for i in range(3)]
    chosen = {name: [u] for name, u in zip(SPLITS, utterances, strict=True)}
    assert splits.split_overlap(chosen)["train and test"] == {"speakers": None, "sentences": 1}
    sentence = {"clips": 1, "share": 1.0}
    assert splits.seen_in_train(chosen)["test"] == {"speaker": None, "sentence": sentence, "neither": None}


@pytest.mark.parametrize(("text", "frames"), [("", 0), ("a", 1), ("ano", 3), ("anno", 5), ("aaa", 5), ("più più", 7)])
def test_frames_that_ctc_needs(text: str, frames: int) -> None:
    assert row_filters.min_ctc_frames(text) == frames


@pytest.mark.parametrize(
    ("duration_s", "decoded_s", "stated_s", "text", "reason"),
    [
        (2.0, 2.0, 2.0, "ciao", None),
        (1.0, 1.8, 2.0, "ciao", None),  # 90 % of what is stated was decoded, the rest of the difference is silence
        (1.79, 1.79, 2.0, "ciao", "clip_truncated"),
        (1.0, 1.0, 0.0, "ciao", None),  # nothing is stated
        (0.09, 0.09, 0.0, "a", "too_short"),
        (0.12, 0.12, 0.0, "occa", None),  # 5 frames for o-c-blank-c-a
        (0.12, 0.12, 0.0, "aabb", None),  # 6 frames, and there are no more
        (0.12, 0.12, 0.0, "aabbi", "too_many_characters"),
        (0.1, 0.1, 0.0, "anno", "too_fast"),  # 40 characters per second
        (2.0, 2.0, 0.0, "ab" * 35, None),
        (1.99, 1.99, 0.0, "ab" * 35, "too_fast"),
        (16.7, 16.7, 16.7, "ciao", None),
        (16.71, 16.71, 16.71, "ciao", "too_long"),
    ],
)
def test_filters(duration_s: float, decoded_s: float, stated_s: float, text: str, reason: str | None) -> None:
    converted = ConvertedClip("a.mp3", "1 1", duration_s, decoded_s)
    candidate = row_filters.Candidate(Clip("a.mp3", text), text, stated_s=stated_s, converted=converted)
    rejected: list[RejectedRow] = []
    passed = row_filters.filter_by_audio([candidate], shipped("italian").dataset, rejected)
    assert [r.reason for r in rejected] == ([reason] if reason else [])
    assert passed == ([] if reason else [candidate])


@pytest.mark.parametrize(("silent_share", "reason"), [(0.98, None), (0.981, "no_speech"), (None, None)])
def test_silent_clips_are_rejected_where_silence_was_measured(silent_share: float | None, reason: str | None) -> None:
    sound = None if silent_share is None else Measurement(16000, 1, "mp3", 0, -75.0, 0.0, silent_share)
    converted = ConvertedClip("a.mp3", "1 1", 3.0, 3.0, sound=sound)
    rejected: list[RejectedRow] = []
    row_filters.filter_by_audio(
        [row_filters.Candidate(Clip("a.mp3", "ciao"), "ciao", converted=converted)],
        shipped("italian").dataset,
        rejected,
    )
    assert [(r.reason, r.detail) for r in rejected] == [(reason, "98.1% of it is silent, at -75.0 dBFS")] * bool(reason)


@pytest.mark.parametrize(
    "path", ["../a.mp3", "/a.mp3", "x/a.mp3", "..", ".", "", "a\\b.mp3", ".a.mp3", "a\0.mp3", "é" * 101]
)
def test_paths_that_name_no_clip(path: str) -> None:
    assert not row_filters.is_file_name(path)
    assert row_filters.is_file_name("common_voice_it_1.mp3") and row_filters.is_file_name("a b..mp3")
