"""What holds for every release, sentence and corpus: searched for counter-examples, the same ones each time."""

import contextlib
import gzip
import io
import json
import re
import tarfile
import tempfile
from collections import defaultdict
from pathlib import Path

import kaldialign
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_languages import SHIPPED

from conftest import shipped
from finetuning.audio.measurement import Measurement
from finetuning.config.loading import load_config
from finetuning.config.schema import ROOT, Split, SplitBy
from finetuning.data import common_voice, dataset_files, release_tables, row_filters, shard_reader, shard_writer, splits
from finetuning.data.conversion_pool import ConversionLog, ConvertedClip
from finetuning.data.listing import Clip, RejectedRow
from finetuning.data.manifest import SPLITS, Utterance, read_manifest, write_manifest
from finetuning.data.text_normalization import TRANSLITERATION, Language
from finetuning.errors import UserError
from finetuning.metrics.error_rates import character_errors, word_errors
from releases import write_archive, write_folder

DATASET = shipped("italian").dataset
ITALIAN = Language.of(shipped("italian").text)
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
SHARES = {"train": 0.70, "validation": 0.15, "test": 0.15}
COLUMNS = ("path", "sentence", "client_id", "gender", "age", "accents")
AWKWARD = "\"'\\ ,;#\ufeff\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\x00\r\u200b\u0301\u0130ßẞ’‘`´«»-–…?!.()8éàÈ"

thorough = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150
)
hasty = settings(thorough, max_examples=60)  # where an example takes long

pytestmark = pytest.mark.slow


# --- the reader of the tables


def characters(without: str) -> st.SearchStrategy[str]:
    """Any character but `without` and lone surrogates, those that readers of tables stumble over more often."""
    anything = st.characters(exclude_characters=without, exclude_categories=["Cs"])
    return st.one_of(anything, st.sampled_from([c for c in AWKWARD if c not in without]))


fields = st.text(characters("\t\n"), max_size=12)


@st.composite
def tables(draw: st.DrawFn) -> tuple[bytes, list[Clip]]:
    """validated.tsv and the rows it states: the columns in any order, some unknown, some not there, blank lines."""
    known = draw(st.permutations(draw(st.sampled_from([COLUMNS, COLUMNS[:2], COLUMNS[:3], COLUMNS[1::-1]]))))
    columns = draw(st.permutations([*known, *draw(st.sampled_from([[], ["segment"], ["x", "up_votes"]]))]))
    rows = draw(st.lists(st.lists(fields, min_size=len(columns), max_size=len(columns)), max_size=6))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    if end == "\n":  # before it a carriage return is half of a line end
        rows = [[*row[:-1], row[-1].rstrip("\r")] for row in rows]
    lines = [end * draw(st.integers(0, 2)) + "\t".join(row) + end for row in rows]
    text = "\t".join(columns) + end + "".join(lines)
    data = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.encode()
    if rows and draw(st.booleans()):
        data = data.removesuffix(end.encode())
    stated = [Clip(*(row[columns.index(name)] if name in columns else "" for name in COLUMNS)) for row in rows]
    return data, stated


def read(data: bytes) -> tuple[list[Clip], list[RejectedRow], bool]:
    with tempfile.TemporaryDirectory() as folder:
        source = write_folder(Path(folder), {"validated.tsv": data})
        return release_tables.read_rows(common_voice.open_release(source, source / "cache"))


@thorough
@given(tables())
def test_every_field_of_a_table_survives(table: tuple[bytes, list[Clip]]) -> None:
    data, stated = table
    rows, rejected, named = read(data)
    assert rows == sorted(stated)
    assert not rejected
    assert named == (b"client_id" in data.split(b"\n")[0])


@thorough
@given(st.lists(st.lists(fields.filter(lambda field: not field.endswith("\r")), min_size=1, max_size=5), max_size=8))
def test_every_line_that_is_not_blank_is_a_row_or_rejected(lines: list[list[str]]) -> None:
    data = "path\tsentence\tage\n" + "".join("\t".join(line) + "\n" for line in lines)
    rows, rejected, _ = read(data.encode())
    assert len(rows) == sum(len(line) == 3 for line in lines)
    assert len(rows) + len(rejected) == sum(line != [""] for line in lines)
    assert {r.reason for r in rejected} <= {"malformed_row"}


@thorough
@given(st.text(max_size=20), st.characters(categories=["Cs"]), st.text(max_size=20))
def test_a_lone_surrogate_is_no_utf8_and_its_line_is_named(before: str, surrogate: str, after: str) -> None:
    sentence = (before + surrogate + after).replace("\t", " ")
    line = 2 + sentence[: sentence.index(surrogate)].count("\n")
    data = f"path\tsentence\na.mp3\t{sentence}\n".encode(errors="surrogatepass")
    with pytest.raises(UserError, match=f"line {line} is not UTF-8"):
        read(data)


# --- the text


def sentences(language: Language) -> st.SearchStrategy[str]:
    """Words of the alphabet between the signs that the rules are about, and any text at all."""
    signs = "".join(rule.pattern.pattern for rule in language.rules)
    likely = st.sampled_from(sorted(set(language.alphabet + language.alphabet.upper() + signs + AWKWARD)))
    quoted = st.text(st.sampled_from("aú '’‘`´«\".!"), max_size=10)
    return st.one_of(quoted, st.text(likely, max_size=20), st.text(st.one_of(likely, st.characters()), max_size=12))


@pytest.mark.parametrize("name", NAMES)
def test_an_accepted_text_stays_as_it_is_and_what_is_foreign_is_named(name: str) -> None:
    language = Language.of(shipped(name).text)

    @settings(thorough, max_examples=1000)
    @given(sentences(language))
    def holds(sentence: str) -> None:
        text, rules = language.trace(sentence)
        foreign = language.foreign(text)
        assert foreign == "".join(sorted(set(text) - set(language.alphabet)))
        assert text == " ".join(text.split())
        assert name not in SHIPPED or foreign or TRANSLITERATION in rules or language.normalise(text) == text

    holds()


# --- rows in = utterances + rejected


plain = st.builds(Clip, st.sampled_from(["0.mp3", "0.ogg", "0", "1.mp3", "2.mp3"]), st.sampled_from(["Ciao", "Sì!"]))
paths = st.sampled_from(["0.mp3", "../0.mp3", "/0.mp3", "", ".", ".0.mp3", "é" * 101]) | st.text(
    characters(""), max_size=6
)
odd = st.builds(Clip, paths, st.just("Ciao")) | st.builds(Clip, paths, st.sampled_from(["?!", "8", ""]) | fields)


@hasty
@given(st.lists(plain | odd, max_size=12), st.data())
def test_every_row_is_an_utterance_or_rejected_once(rows: list[Clip], data: st.DataObject) -> None:
    """Through all that chooses; what the converter says about a clip may be anything."""
    absent = data.draw(st.sets(st.sampled_from([row.path for row in rows] or [""]), max_size=2))
    seconds = st.sampled_from([3.0, 3.0, 3.0, 3.0, 0.05, 0.1, 17.0])
    in_splits = st.sampled_from([["train"], ["train"], ["validation"], ["test"], [], ["train", "test"]])
    rejected: list[RejectedRow] = []
    candidates, _ = row_filters.filter_by_text(rows, ITALIAN, rejected)
    candidates = row_filters.filter_by_clip(candidates, {row.path for row in rows} - absent, "clips/", rejected)
    candidates = row_filters.filter_by_release_split(
        candidates, {row.path: data.draw(in_splits) for row in rows}, rejected
    )
    for candidate in candidates:
        duration_s, reason = data.draw(seconds), data.draw(st.sampled_from(["", "", "", "clip_empty"]))
        candidate.converted = ConvertedClip(candidate.clip.path, "1 1", duration_s, duration_s, reason)
        candidate.stated_s = data.draw(seconds)
    utterances = [
        c.to_utterance() for c in row_filters.filter_by_audio(candidates, shipped("italian").dataset, rejected)
    ]
    assert len(rows) == len(utterances) + len(rejected)
    assert {candidate.release_split for candidate in candidates} <= {"train", "validation", "test"}
    wavs = [u.audio_filepath for u in utterances]
    assert len(wavs) == len(set(wavs))
    names = [Path(wav).name for wav in wavs]
    assert wavs == [f"wavs/{name}" for name in names], "a wav lies outside of wavs/"
    assert all(name[0] != "." and len(name.encode()) < 210 for name in names), "a wav is hidden or cannot be written"
    assert all(u.text and not ITALIAN.foreign(u.text) for u in utterances)


@thorough
@given(
    st.lists(st.builds(Utterance, fields, st.floats(1e-3, 1e6), *[st.text(characters(""), max_size=9)] * 6), min_size=1)
)
def test_a_manifest_is_read_as_it_was_written(utterances: list[Utterance]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder, "m.json"), utterances)
        assert read_manifest(Path(folder, "m.json"), check_audio=False) == utterances


# --- files of step 1's own, which somebody may have edited, and archives

JUNK = [b"null", b"[]", b"{}", b'"x"', b"-1", b"1e999", b"NaN", b"true", b'"\\ud800"', b'{"a": 1}', b""]
JUNK += [b"\xff", b"\0", b"\n"]
TABLE = b"path\tsentence\n0.mp3\tCiao\n"
DEEP = [b"9" * 5000, b"[" * 100_000]  # more than Python's reader of JSON takes
KEY = {"source": {"name": "it"}, "trim_silence_db": None}
SOUND = Measurement(48000, 1, "mp3", 7250, -20.5, 0.0, 0.25)
ENTRY = ConvertedClip("0.mp3", "1 1", 3.0, 3.0, wav_mtime_ns=5, wav_crc32=7, sound=SOUND)


@st.composite
def mutated(draw: st.DrawFn, data: bytes, junk: list[bytes]) -> bytes:
    """`data` with a few parts of it replaced: values of JSON, or bytes anywhere."""
    values = [match.span() for match in re.finditer(rb'"[^"]*"|-?[0-9.]+|\{[^{}]*\}|null', data)]
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        spans = [*values, (start, min(len(data), start + draw(st.sampled_from([0, 1, 9, 600]))))]
        start, end = draw(st.sampled_from(spans))
        data = data[:start] + draw(st.sampled_from(junk) | st.binary(max_size=4)) + data[end:]
    return data


@hasty
@given(st.data())
def test_a_log_that_somebody_edited_is_read_as_far_as_it_goes(data: st.DataObject) -> None:
    clips, stamps = [Clip("0.mp3", "Ciao"), Clip("1.mp3", "Ciao")], {"0.mp3": "1 1", "1.mp3": "2 2"}
    with tempfile.TemporaryDirectory() as folder:
        log = ConversionLog(Path(folder), KEY)
        log.wavs.mkdir()
        log.done = {"0.mp3": ENTRY, "1.mp3": ConvertedClip("1.mp3", "2 2", reason="clip_empty")}
        log.start()
        log.path.write_bytes(data.draw(mutated(log.path.read_bytes(), JUNK + DEEP)))
        again = ConversionLog(Path(folder), KEY)
        assert {clip.path for clip in again.missing(clips, stamps)} <= {"0.mp3", "1.mp3"}
        again.start()
        assert ConversionLog(Path(folder), KEY).done == again.done


@hasty
@given(st.data())
def test_what_was_kept_of_an_archive_or_of_a_run_may_be_edited(data: st.DataObject) -> None:
    config = load_config("configs/italian.yaml", [])
    about = {"release": "cv/it", "config": dataset_files.content_settings(config)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = write_archive(
            folder / "a.tar.gz", {"validated.tsv": b"path\tsentence\n0.mp3\tCiao\n", "clips/0.mp3": b"x"}
        )
        first = common_voice.open_release(archive, folder / "cache")
        kept = folder / "cache" / "release.json"
        kept.write_bytes(data.draw(mutated(kept.read_bytes(), JUNK + DEEP)))
        again = common_voice.open_release(archive, folder / "cache")
        json.dumps([again.name, again.identity, again.stamps], ensure_ascii=False).encode()
        assert (again.source, again.tables) == (first.source, first.tables)
        (folder / "dataset.json").write_bytes(data.draw(mutated(json.dumps(about).encode(), JUNK)))
        with contextlib.suppress(UserError):
            dataset_files.changed_settings(folder, config, "cv/it")
        with contextlib.suppress(UserError):
            shard_writer.check_shard_folder(folder, "cv/it")


@hasty
@given(st.data())
def test_an_archive_that_somebody_edited_is_read_or_refused_in_a_sentence(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(folder / "plain.tar", "w", format=data.draw(st.sampled_from([0, 1, 2]))) as tar:
            for path in ("it/validated.tsv", "it/clips/0.mp3", "it/" + "x" * 80 + "/" + "y" * 80):
                member = tarfile.TarInfo(path)
                member.size = len(TABLE)
                tar.addfile(member, io.BytesIO(TABLE))
        plain = data.draw(
            mutated((folder / "plain.tar").read_bytes()[:6000], [*JUNK, b"x", b"L", b"S", b"g", b"7" * 11])
        )
        (folder / "audio_0.tar").write_bytes(plain)
        (folder / "a.tar.gz").write_bytes(gzip.compress(plain + bytes(2048), 1))
        with contextlib.suppress(UserError):
            release = common_voice.open_release(folder / "a.tar.gz", folder / "cache")
            release_tables.read_rows(release)
            list(common_voice.iter_clip_files(release, {"0.mp3"}))
        shard_writer.read_fingerprint(folder / "audio_0.tar")
        for offset in (0, 512, 1 << 70):
            with pytest.raises(UserError, match="does not hold"):
                shard_reader.ShardMember(folder / "audio_0.tar", "0.wav", offset, 4).read()


# --- the splits


@st.composite
def corpora(draw: st.DrawFn) -> list[Utterance]:
    """Three speakers or more; few sentences, so that many are read twice."""
    speakers = draw(st.integers(3, 8))
    drawn = st.tuples(st.integers(0, speakers - 1), st.floats(0.1, 16.7), st.integers(0, 12))
    recorded = [(i, 1.0, 100 + i) for i in range(speakers)] + draw(st.lists(drawn, max_size=40))
    return [Utterance(f"wavs/{i}.wav", s, f"frase {t}", "", f"speaker {who}") for i, (who, s, t) in enumerate(recorded)]


def chosen_by(split: Split, utterances: list[Utterance]) -> tuple[dict[str, list[Utterance]], dict[str, str]]:
    kept, lost = splits.assign_splits(split, utterances)
    assert kept.keys() | lost.keys() == {u.audio_filepath for u in utterances} and not kept.keys() & lost.keys()
    assert set(kept.values()) <= set(SPLITS)
    return {name: [u for u in utterances if kept.get(u.audio_filepath) == name] for name in SPLITS}, lost


@thorough
@given(corpora(), st.integers(0, 9))
def test_by_speaker_no_voice_and_no_sentence_stands_in_two_splits(utterances: list[Utterance], seed: int) -> None:
    chosen, lost = chosen_by(Split(SplitBy.speaker, 0.7, 0.15, 0.15, seed), utterances)
    for both in splits.split_overlap(chosen).values():
        assert both == {"speakers": 0, "sentences": 0}
    for name, known in splits.seen_in_train(chosen).items():
        assert known["neither"]["clips"] == len(chosen[name]) and not known["sentence"]["clips"]
    keepers = {text: name for name, group in chosen.items() for text in (u.text for u in group)}
    assert all(keepers[u.text] == lost[u.audio_filepath] for u in utterances if u.audio_filepath in lost)
    assert keepers.keys() == {u.text for u in utterances}, "a sentence was lost everywhere"


@thorough
@given(corpora(), st.integers(0, 9))
def test_by_speaker_a_split_misses_its_hours_by_no_more_than_one_speaker(
    utterances: list[Utterance], seed: int
) -> None:
    """Every sentence is read once here: what another split has is taken away later."""
    alone = [Utterance(**{**vars(u), "text": u.audio_filepath}) for u in utterances]
    chosen, lost = chosen_by(Split(SplitBy.speaker, 0.7, 0.15, 0.15, seed), alone)
    assert not lost and all(chosen.values())
    hours: dict[str, float] = defaultdict(float)
    for u in alone:
        hours[u.speaker] += u.duration
    for name, group in chosen.items():
        too_much = sum(u.duration for u in group) - SHARES[name] * sum(hours.values())
        assert too_much <= max(hours[u.speaker] for u in group) + 1e-6


@thorough
@given(
    corpora(), st.sampled_from([SplitBy.speaker, SplitBy.clip]), st.integers(0, 9), st.randoms(use_true_random=False)
)
def test_the_order_of_rows_changes_nothing(utterances: list[Utterance], by: SplitBy, seed: int, draw) -> None:
    shuffled = draw.sample(utterances, len(utterances))
    assert splits.assign_splits(Split(by, 0.7, 0.15, 0.15, seed), shuffled) == splits.assign_splits(
        Split(by, 0.7, 0.15, 0.15, seed), utterances
    )


@thorough
@given(st.integers(0, 2**31), st.integers(0, 2**31), st.sampled_from([SplitBy.speaker, SplitBy.clip]))
def test_another_seed_gives_another_split(a: int, b: int, by: SplitBy) -> None:
    utterances = [Utterance(f"wavs/{i}.wav", 3.0, f"frase {i}", "", f"speaker {i}") for i in range(60)]
    same = splits.assign_splits(Split(by, 0.7, 0.15, 0.15, a), utterances) == splits.assign_splits(
        Split(by, 0.7, 0.15, 0.15, b), utterances
    )
    assert same == (a == b)


@thorough
@given(corpora(), st.integers(0, 9))
def test_by_clip_the_shares_are_met_to_a_clip_and_what_is_shared_is_counted(
    utterances: list[Utterance], seed: int
) -> None:
    chosen, lost = chosen_by(Split(SplitBy.clip, 0.7, 0.15, 0.15, seed), utterances)
    assert not lost
    for name, share in SHARES.items():
        assert abs(len(chosen[name]) - share * len(utterances)) <= 1
    overlap, known = splits.split_overlap(chosen), splits.seen_in_train(chosen)
    for name in SPLITS[1:]:
        both, clips = overlap[f"train and {name}"], known[name]
        assert bool(both["speakers"]) == bool(clips["speaker"]["clips"])
        assert bool(both["sentences"]) == bool(clips["sentence"]["clips"])
        assert clips["speaker"]["clips"] >= both["speakers"] and clips["sentence"]["clips"] >= both["sentences"]
        assert all(0 <= counted["share"] <= 1 for counted in clips.values())
        assert clips["neither"]["clips"] <= len(chosen[name]) - max(clips[w]["clips"] for w in ("speaker", "sentence"))


# --- the scores


said = st.text("ab è'", max_size=20)


@thorough
@given(st.lists(st.tuples(said.filter(str.strip), said), min_size=1, max_size=4))
def test_errors_are_as_many_as_another_tool_counts(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = zip(*pairs, strict=True)
    for count, parts in ((word_errors, str.split), (character_errors, str.strip)):
        ours = count(references, hypotheses)
        theirs = [kaldialign.edit_distance(parts(r), parts(h)) for r, h in pairs]
        length, errors = sum(t["ref_len"] for t in theirs), sum(t["total"] for t in theirs)
        assert ours.rate == pytest.approx(errors / length, abs=1e-12)
        assert ours.insertions - ours.deletions == sum(t["ins"] - t["del"] for t in theirs)
