"""Which recordings there are, their transcripts in each format, and which of them are finished."""

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning.audio.ffmpeg import find_ffmpeg
from finetuning.errors import UserError
from finetuning.transcription.recordings import Recording, find_recordings
from finetuning.transcription.segmentation import read_blocks
from finetuning.transcription.subtitles import (
    LINES,
    MAX_CUE_S,
    MIN_CUE_S,
    READING_SPEED,
    WIDTH,
    Word,
    format_srt,
    make_cues,
    time_cues,
)
from finetuning.transcription.transcripts import (
    LOG,
    Passage,
    TranscriptFolder,
    format_transcript,
)
from releases import tone

AUDIO = Path("talks/monday.mp3")
PASSAGES = [
    Passage(0.0, 4.5, "ciao a tutti", [Word("ciao", 0.5, 0.8, 0.9), Word("a", 0.9, 0.92), Word("tutti", 1.0, 1.4)]),
    Passage(4.5, 5.25, " è così", [Word("è", 6.0, 6.02), Word("così", 6.1, 6.5)]),
]
CALL = [
    Passage(0.0, 4.5, "pronto", [Word("pronto", 0.5, 1.25, 0.875)], "left"),
    Passage(1.0, 4.5, "chi parla", [Word("chi", 1.1, 1.4), Word("parla", 1.5, 2.0)], "right"),
    Passage(6.0, 2.0, "<io>", [Word("<io>", 6.5, 7.0)], "left"),
]
CUE = re.compile(r"(\d+)\n(\d\d):(\d\d):(\d\d),(\d{3}) --> (\d\d):(\d\d):(\d\d),(\d{3})\n(.+(?:\n.+)*)\n(?:\n|$)")


def parse(subtitles: str) -> list[tuple[float, float, list[str]]]:
    """Start, end and lines of each cue of a file that is nothing but cues, numbered from 1."""
    found = []
    while subtitles:
        cue = CUE.match(subtitles)
        assert cue, subtitles
        hours, minutes, seconds, thousandths = ([int(cue[number + i]) for i in (0, 4)] for number in (2, 3, 4, 5))
        times = [
            ((h * 60 + m) * 60_000 + s * 1000 + t) / 1000
            for h, m, s, t in zip(hours, minutes, seconds, thousandths, strict=True)
        ]
        assert int(cue[1]) == len(found) + 1
        found.append((*times, cue[10].split("\n")))
        subtitles = subtitles[cue.end() :]
    return found


# --- which files


def test_a_folder_stands_for_its_files_with_sound_sorted_without_what_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their content; one whose suffix is a sound's is refused later on when it holds none."""
    for name in ("b.mp3", "a.WAV", "notes.txt", "sub/c.m4a", ".d.wav", ".git/e.wav", "f.raw", "x.y.opus"):
        (tmp_path / "talks" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "talks" / name).touch()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "talks" / "pipe")
    monkeypatch.chdir(tmp_path)
    given = ["talks/notes.txt", "talks", "empty", "gone.wav", "./talks/b.mp3", str(tmp_path / "gone.wav")]
    found, left_out = find_recordings(given)
    assert [(str(recording.audio), recording.name) for recording in found] == [
        ("talks/notes.txt", "notes"),  # whoever names a file gets it
        ("talks/a.WAV", "a"),
        ("talks/b.mp3", "b"),
        ("talks/sub/c.m4a", "sub/c"),
        ("talks/x.y.opus", "x.y"),
        ("empty", "empty"),  # read later on, and refused there
        ("gone.wav", "gone"),
    ]
    assert [str(path) for path in left_out] == ["talks/f.raw", "talks/notes.txt", "talks/pipe"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    for name in ("talks/a.wav", "store/b.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "talks" / "2023").symlink_to("../store")
    (tmp_path / "store" / "back").symlink_to("../talks")
    (tmp_path / "talks" / "again").symlink_to("../store")
    found, _ = find_recordings([str(tmp_path / "talks")])
    assert [recording.name for recording in found] == ["2023/b", "a"]


FFMPEG = {  # name: how it is made
    "qta": "-c:a aac -f mov", "3ga": "-c:a aac -f mp4", "weba": "-c:a libopus -f webm", "mts": "-c:a aac -f mpegts",
    "m2ts": "-c:a aac -f mpegts -mpegts_m2ts_mode 1", "ts": "-c:a mp2 -f mpegts", "vob": "-c:a mp2 -f vob",
    "adts": "-c:a aac -f adts", "lame": "-b:a 64k -write_xing 0 -id3v2_version 0 -f mp3", "asf": "-c:a wmav2 -f asf",
    "flv": "-c:a aac -f flv", "mka": "-c:a flac -f matroska", "caf": "-c:a pcm_s16le -f caf", "au": "-f au",
    "wavpack": "-c:a wavpack -f wv", "tta": "-c:a tta -f tta", "ac3": "-c:a ac3 -f ac3", "oga": "-c:a flac -f ogg",
}  # fmt: skip
NO_SOUND = {
    "cover.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(range(256)) * 20,
    "page.html": b"<!doctype html><title>404</title>" * 99,
    "types.ts": b"export const GREETING: string = 'Good morning';\nGET(GREETING);\n" * 99,
    "photo.heic": b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(5000),
    "weights": np.random.default_rng(0).bytes(50000),
    "picture.webp": b"RIFF\x10\x27\0\0WEBPVP8 " + bytes(9999),
    "list.m3u8": b"#EXTM3U\nhttp://127.0.0.1:9/a.ts\n",
    "utf16.txt": "notes\n".encode("utf-16") * 99,
    "zeros": bytes(5000),
    "nothing": b"",
}


def test_files_are_told_by_their_content_whatever_they_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    source = tmp_path / "source.wav"
    source.write_bytes(tone(440, 44100, 1, 1.0, "WAV"))
    for name, options in FFMPEG.items():
        subprocess.run(
            [find_ffmpeg(), "-v", "error", "-i", source, *options.split(), tmp_path / "in" / name], check=True
        )
        (tmp_path / "in" / name).rename(tmp_path / "in" / (f"a.{name}" if name in ("ts", "qta") else name))
    for name, data in NO_SOUND.items():
        (tmp_path / "in" / name).write_bytes(data)
    monkeypatch.setenv("PATH", "")  # no program is asked
    found, left_out = find_recordings([str(tmp_path / "in")])
    assert {path.name for path in left_out} == NO_SOUND.keys()
    assert len(found) == len(FFMPEG)
    monkeypatch.undo()
    assert all(len(np.concatenate(list(read_blocks(recording.audio, 16000)))) > 15000 for recording in found)


# --- formats


def test_text_is_a_line_a_passage() -> None:
    assert format_transcript("text", AUDIO, PASSAGES) == "ciao a tutti\nè così\n"
    assert format_transcript("text", AUDIO, PASSAGES, named=True) == f"{AUDIO}\tciao a tutti\n{AUDIO}\tè così\n"
    assert format_transcript("text", AUDIO, []) == ""


def test_json_lines_have_nemos_names_and_the_text_as_it_is() -> None:
    first, second = map(json.loads, format_transcript("jsonl", AUDIO, PASSAGES).splitlines())
    words = first.pop("words")
    assert first == {"audio_filepath": str(AUDIO), "offset": 0.0, "duration": 4.5, "pred_text": "ciao a tutti"}
    assert words[:2] == [
        {"word": "ciao", "start": 0.5, "end": 0.8, "raw_confidence": 0.9},
        {"word": "a", "start": 0.9, "end": 0.92},
    ]
    assert (second["offset"], second["duration"], second["pred_text"]) == (4.5, 5.25, " è così")
    assert "è" in format_transcript("jsonl", AUDIO, PASSAGES)
    (first, *_) = map(json.loads, format_transcript("jsonl", AUDIO, CALL, calibrated=True).splitlines())
    assert first["speaker"] == "left"
    assert first["words"] == [{"word": "pronto", "start": 0.5, "end": 1.25, "confidence": 0.875}]


def test_ctm_has_a_line_a_word_sorted_by_channel_and_says_what_its_confidence_is() -> None:
    audio = Path("my talks/a  call.wav")
    calibrated = format_transcript("ctm", audio, CALL, calibrated=True)
    assert calibrated == (
        "a_call A 0.500 0.750 pronto 0.875\n"
        "a_call A 6.500 0.500 <io>\n"
        "a_call B 1.100 0.300 chi\n"
        "a_call B 1.500 0.500 parla\n"
    )
    assert format_transcript("ctm", audio, CALL) == ";; confidence: not calibrated\n" + calibrated
    assert format_transcript("ctm", AUDIO, PASSAGES, calibrated=True).startswith("monday A 0.500 0.300 ciao 0.900\n")


def test_labels_are_audacitys() -> None:
    assert format_transcript("labels", AUDIO, PASSAGES).splitlines()[0] == "0.500\t0.800\tciao"
    assert format_transcript("labels", AUDIO, CALL).splitlines()[1] == "1.100\t1.400\tright: chi"


def test_of_two_speakers_each_line_and_cue_has_one() -> None:
    assert format_transcript("text", AUDIO, CALL) == "left: pronto\nright: chi parla\nleft: <io>\n"
    assert format_transcript("srt", AUDIO, CALL).startswith(
        "1\n00:00:00,500 --> 00:00:01,500\nleft: pronto\n\n2\n00:00:01,100 --> 00:00:02,100\nright: chi parla\n\n3\n"
    )
    assert format_transcript("vtt", AUDIO, CALL) == (
        "WEBVTT\n\n"
        "00:00:00.500 --> 00:00:01.500\n<v left>pronto\n\n"
        "00:00:01.100 --> 00:00:02.100\n<v right>chi parla\n\n"
        "00:00:06.500 --> 00:00:07.500\n<v left>&lt;io&gt;\n"
    )
    assert format_transcript("vtt", AUDIO, []) == "WEBVTT\n"


def test_ffmpeg_reads_the_subtitles(tmp_path: Path) -> None:
    for style in ("srt", "vtt"):
        source = tmp_path / f"a.{style}"
        source.write_text(format_transcript(style, AUDIO, PASSAGES), encoding="utf-8")
        command = [find_ffmpeg(), "-v", "error", "-i", source, "-f", "srt", "-"]
        read = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        assert [text for *_, lines in parse(read) for text in lines] == ["ciao a tutti", "è così"]


def test_a_name_that_is_no_utf8_does_not_spoil_the_json() -> None:
    odd = Path(os.fsdecode(b"caf\xe9.wav"))
    assert (
        json.loads(format_transcript("jsonl", odd, PASSAGES).encode().splitlines()[0])["audio_filepath"]
        == "caf\ufffd.wav"
    )


def test_subtitles_by_hand() -> None:
    assert format_transcript("srt", AUDIO, PASSAGES) == (
        "1\n00:00:00,500 --> 00:00:01,500\nciao a tutti\n\n"  # a second at least
        "2\n00:00:06,000 --> 00:00:07,000\nè così\n"
    )
    late = [Word("ora", 3661.25, 3661.5), Word("basta", 3661.6, 3662.9996)]
    assert format_srt(time_cues(late, 3662.5)) == "1\n01:01:01,250 --> 01:01:02,500\nora basta\n"
    (short,) = time_cues([Word("sì", 20.0, 20.3)], 20.55)
    assert (short.start_s, short.end_s) == (20.0, 21.0), "a second at least"
    assert format_srt(time_cues([], 10.0)) == ""
    (slow,) = time_cues([Word("x" * 40, 1.0, 1.5)], 10.0)
    assert (slow.start_s, slow.end_s) == (1.0, 3.0), "40 characters at 20 a second"


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ([Word("a", 0, 1), Word("b", 1.9, 2)], ["a b"]),
        ([Word("a", 0, 1), Word("b", 2.1, 3)], ["a", "b"]),  # a pause
        ([Word("a", 0, 3.5), Word("b", 3.6, 7), Word("c", 7.01, 7.1)], ["a b", "c"]),  # 7 s
        ([Word("x" * 41, i, i + 0.9) for i in range(3)], [f"{'x' * 41} {'x' * 41}", "x" * 41]),  # two lines
        ([Word("x" * 90, 0, 1), Word("b", 1, 2), Word("c", 2, 3)], [f"{'x' * 90} b c"]),  # not divided
    ],
)  # fmt: skip
def test_what_begins_a_new_cue(words: list[Word], texts: list[str]) -> None:
    assert [" ".join(word.text for word in cue) for cue in make_cues(words)] == texts


steps = st.tuples(st.integers(1, 4000), st.integers(20, 3000), st.text("aè'", min_size=1, max_size=WIDTH))


@settings(derandomize=True, deadline=None, database=None)
@given(st.lists(steps, max_size=60))
def test_cues_hold_every_word_once_and_neither_overlap_nor_overflow(steps: list[tuple[int, int, str]]) -> None:
    """Words of up to 3 s with up to 4 s between them, in milliseconds."""
    words, now = [], 0
    for pause, length, text in steps:
        words.append(Word(text, (now + pause) / 1000, (now + pause + length) / 1000))
        now += pause + length
    found = parse(format_srt(time_cues(words, now / 1000)))
    assert [word for *_, lines in found for word in " ".join(lines).split()] == [word.text for word in words]
    assert all(len(lines) <= LINES and max(map(len, lines)) <= WIDTH for *_, lines in found)
    assert all(start < end <= start + MAX_CUE_S + 1e-6 for start, end, _ in found)
    times = [time for start, end, _ in found for time in (start, end)]
    assert times == sorted(times)
    end_s = max(now / 1000, found[-1][0] + MIN_CUE_S) if found else 0.0
    assert not times or times[-1] <= end_s + 1e-6
    limits = [*(start for start, *_ in found[1:]), end_s][: len(found)]
    for (start, end, lines), limit in zip(found, limits, strict=True):
        can_be_read = len(" ".join(lines)) / (end - start + 2e-3) <= READING_SPEED
        assert can_be_read or end == pytest.approx(min(limit, start + MAX_CUE_S), abs=2e-3)


# --- finished


@pytest.fixture
def talks(tmp_path: Path) -> list[Recording]:
    """Three files with something in them."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.wav", "b.wav", "sub/a.mp3"):
        (tmp_path / "in" / name).write_text(name)
    return find_recordings([str(tmp_path / "in")])[0]


def test_what_is_written_is_not_left(tmp_path: Path, talks: list[Recording]) -> None:
    (tmp_path / "out").mkdir()
    finished = TranscriptFolder(tmp_path / "out", "text", "model 1")
    assert finished.start(talks) == talks
    finished.write(talks[0], "uno\n", whole=True)
    finished.write(talks[1], "due\n", whole=False)
    finished.write(talks[2], "tre\n", whole=True)
    assert (tmp_path / "out" / "sub" / "a.txt").read_text() == "tre\n"
    (tmp_path / "out" / "a.txt").write_text("corrected by hand\n")

    again = TranscriptFolder(tmp_path / "out", "text", "model 1")
    assert again.start(talks) == [talks[1]], "a damaged recording is asked again"
    assert (tmp_path / "out" / "a.txt").read_text() == "corrected by hand\n"
    assert TranscriptFolder(tmp_path / "out", "srt", "model 1").start(talks) == talks, (
        "another format has its own files"
    )
    (tmp_path / "out" / "a.txt").unlink()
    assert TranscriptFolder(tmp_path / "out", "text", "model 1").start(talks) == talks[:2]


def test_a_transcript_that_was_corrected_is_never_replaced(tmp_path: Path, talks: list[Recording]) -> None:
    (tmp_path / "out").mkdir()
    finished = TranscriptFolder(tmp_path / "out", "text", "model 1")
    for recording in talks:
        finished.write(recording, "uno\n", whole=False)
    (tmp_path / "out" / "a.txt").write_text("corrected\n")
    again = TranscriptFolder(tmp_path / "out", "text", "model 1")
    assert again.start(talks) == talks[1:], "of a damaged recording, unless its text was changed"
    assert again.changed == [tmp_path / "out" / "a.txt"]
    (tmp_path / "out" / "b.txt").write_text("corrected while the next run was at work\n")
    with pytest.raises(UserError, match=r"b\.txt has appeared or was changed meanwhile; it is left as it is"):
        again.write(talks[1], "due\n", whole=True)
    again.write(talks[2], "tre\n", whole=True)
    texts = [(tmp_path / "out" / name).read_text() for name in ("a.txt", "b.txt", "sub/a.txt")]
    assert texts == ["corrected\n", "corrected while the next run was at work\n", "tre\n"]
    third = TranscriptFolder(tmp_path / "out", "text", "model 1")
    assert third.start(talks) == []


def test_a_transcript_is_known_on_either_side_of_a_kill(tmp_path: Path, talks: list[Recording]) -> None:
    """The log is written first: where the process is killed then, the older text is still its own."""
    (tmp_path / "out").mkdir()
    first = TranscriptFolder(tmp_path / "out", "text", "model 1")
    first.write(talks[0], "uno\n", whole=False)
    second = TranscriptFolder(tmp_path / "out", "text", "model 1")
    second.start(talks)
    second.write(talks[0], "due\n", whole=False)
    for text in ("uno\n", "due\n"):
        (tmp_path / "out" / "a.txt").write_text(text)
        assert TranscriptFolder(tmp_path / "out", "text", "model 1").start(talks[:1]) == talks[:1]


def test_a_half_transcript_is_not_whole_because_a_run_was_killed_before_it_replaced_it(
    tmp_path: Path, talks: list[Recording]
) -> None:
    (tmp_path / "out").mkdir()
    TranscriptFolder(tmp_path / "out", "text", "model 1").write(talks[0], "half\n", whole=False)
    second = TranscriptFolder(tmp_path / "out", "text", "model 1")
    second.write(talks[0], "all of it\n", whole=True)
    for text, left in (("half\n", talks[:1]), ("all of it\n", []), ("all of it, corrected\n", [])):
        (tmp_path / "out" / "a.txt").write_text(text)
        assert TranscriptFolder(tmp_path / "out", "text", "model 1").start(talks[:1]) == left, text


def test_names_of_other_encodings_do_not_share_a_line_of_the_log(tmp_path: Path, talks: list[Recording]) -> None:
    (tmp_path / "out").mkdir()
    odd = [replace(talk, name=os.fsdecode(name)) for talk, name in zip(talks, (b"caff\xe8", b"caff\xe9"), strict=False)]
    first = TranscriptFolder(tmp_path / "out", "text", "model 1")
    for number, talk in enumerate(odd):
        first.write(talk, f"{number}\n", whole=True)
    assert TranscriptFolder(tmp_path / "out", "text", "model 1").start(odd) == []


def test_a_log_of_before_knows_no_texts_and_nothing_is_replaced(tmp_path: Path, talks: list[Recording]) -> None:
    (tmp_path / "out").mkdir()
    TranscriptFolder(tmp_path / "out", "text", "model 1").write(talks[0], "uno\n", whole=False)
    log = tmp_path / "out" / LOG
    entry = json.loads(log.read_text())
    del entry["texts"]
    log.write_text(json.dumps(entry) + "\n[1]\n{}\nnull\n" + '{"transcript": ["a"]}\n' + "[" * 9999 + "\n")
    again = TranscriptFolder(tmp_path / "out", "text", "model 1")
    assert again.start(talks[:1]) == [] and again.changed == [tmp_path / "out" / "a.txt"]


def test_nothing_that_is_there_is_overwritten(tmp_path: Path, talks: list[Recording]) -> None:
    (tmp_path / "out").mkdir()
    finished = TranscriptFolder(tmp_path / "out", "text", "model 1")
    finished.write(talks[0], "uno\n", whole=True)
    with pytest.raises(
        UserError, match=r"a\.txt is there already .* by this model; delete it or name another --output"
    ):
        TranscriptFolder(tmp_path / "out", "text", "model 2").start(talks)
    other = Recording(talks[1].audio, talks[0].name)
    with pytest.raises(UserError, match=r"a\.txt is there already and not known as a transcript of .*b\.wav"):
        TranscriptFolder(tmp_path / "out", "text", "model 1").start([other])
    (tmp_path / "out" / "b.txt").write_text("notes\n")
    with pytest.raises(UserError, match=r"b\.txt is there already"):
        TranscriptFolder(tmp_path / "out", "text", "model 1").start(talks)
    assert (tmp_path / "out" / "b.txt").read_text() == "notes\n"


def test_two_recordings_with_one_transcript_are_refused(tmp_path: Path, talks: list[Recording]) -> None:
    given = [str(recording.audio) for recording in talks]
    with pytest.raises(UserError, match=r"in/a\.wav and .*sub/a\.mp3 would both be written to .*out/a\.jsonl"):
        TranscriptFolder(tmp_path / "out", "jsonl", "model").start(find_recordings(given)[0])


def test_a_log_cut_short_by_a_crash_keeps_its_whole_lines(tmp_path: Path, talks: list[Recording]) -> None:
    (tmp_path / "out").mkdir()
    TranscriptFolder(tmp_path / "out", "text", "model").write(talks[0], "uno\n", whole=True)
    with (tmp_path / "out" / LOG).open("a") as log:
        log.write('{"transcript": "b.txt", "aud')
    (tmp_path / "out" / ".finetuning-99999999-0123456789abcdef-b.txt").write_text("half")
    again = TranscriptFolder(tmp_path / "out", "text", "model")
    assert again.start(talks) == talks[1:]
    again.write(talks[1], "due\n", whole=True)
    assert TranscriptFolder(tmp_path / "out", "text", "model").start(talks) == [talks[2]]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [LOG, "a.txt", "b.txt"]
