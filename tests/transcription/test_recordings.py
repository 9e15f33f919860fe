"""The recordings of NeMo manifests, whole and in parts."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from finetuning.errors import UserError
from finetuning.transcription.recordings import Recording, find_recordings, parts_of
from finetuning.transcription.segmentation import Segment

RATE = 16000


def manifest(path: Path, *lines: object) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(path)


def test_a_manifest_stands_for_the_recordings_that_it_names(tmp_path: Path) -> None:
    """A whole file twice, which is there once; parts; files that are not below the manifest."""
    data = tmp_path / "it"
    whole = {"audio_filepath": "wavs/a.1.wav", "duration": 2.0, "text": "x", "offset": None}
    part = {"audio_filepath": "talk.mp3", "offset": 12.5, "duration": 3, "text": ""}
    others = [{"audio_filepath": "/clips/b.wav"}, {"audio_filepath": "../c.flac", "duration": 1}]
    given = manifest(data / "test.json", whole, "", whole, part, {**part, "offset": 0}, *others)
    found, left_out = find_recordings([given])
    assert found == [
        Recording(data / "wavs/a.1.wav", "wavs/a.1", "wavs/a.1.wav"),
        Recording(data / "talk.mp3", "talk_12.5-15.5", "talk.mp3", 12.5, 3.0),
        Recording(data / "talk.mp3", "talk_0-3", "talk.mp3", 0.0, 3.0),
        Recording(Path("/clips/b.wav"), "clips/b", "/clips/b.wav"),
        Recording(data / "../c.flac", "c", "../c.flac"),
    ]
    assert left_out == [] and [str(recording.shown) for recording in found[:1]] == ["wavs/a.1.wav"]


def test_recordings_of_one_name_in_two_folders_and_parts_of_long_ones_have_names_of_their_own(tmp_path: Path) -> None:
    lines = [{"audio_filepath": f"/d/s{number}/001.wav"} for number in (1, 2)]
    lines += [{"audio_filepath": "a.wav", "offset": start, "duration": 0.5} for start in (10000.01, 10000.04)]
    found, _ = find_recordings([manifest(tmp_path / "test.json", *lines)])
    names = ["d/s1/001", "d/s2/001", "a_10000.01-10000.51", "a_10000.04-10000.54"]
    assert [recording.name for recording in found] == names


def test_a_recording_given_twice_has_the_name_by_which_it_is_given_first(tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    soundfile.write(tmp_path / "wavs" / "a.wav", np.zeros(RATE, np.int16), RATE)
    given = [manifest(tmp_path / "test.json", {"audio_filepath": "wavs/a.wav"}), str(tmp_path / "wavs")]
    for ordered, name in ((given, "wavs/a"), (given[::-1], "a")):
        assert [recording.name for recording in find_recordings(ordered)[0]] == [name]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([{"audio_filepath": "a.wav"}, {"path": "b.wav"}], "line 2 names no recording; a line .* audio_filepath"),
        ([{"audio_filepath": "a.wav", "offset": 1.0}], "line 1: offset and duration must both be numbers"),
        ([{"audio_filepath": "a.wav", "offset": -1, "duration": 2}], "line 1: offset and duration"),
        ([{"audio_filepath": "a.wav", "offset": 1, "duration": 0}], "line 1: offset and duration"),
        ([{"audio_filepath": "a.wav", "offset": 1, "duration": "2"}], "line 1: offset and duration"),
        (
            [{"audio_filepath": "a.wav", "shard_id": 0, "shard_offset": 0}],
            r"a.wav lies in a tar; give .*dataset.output",
        ),
        ([{"audio_filepath": "a\0b"}], "line 1 names no recording"),
        ([{"audio_filepath": "."}], "line 1 names no recording"),
        ([{"audio_filepath": ".."}], "line 1 names no recording"),
        ([{"audio_filepath": "a/../.."}], "line 1 names no recording"),
        (["{"], "line 1 is not JSON"),
        (["[]"], "line 1 names no recording"),
        ([], "test.json names no recording; a NeMo manifest has a line of JSON for each"),
    ],
)
def test_a_line_that_names_none_is_one_sentence(tmp_path: Path, lines: list[object], words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        find_recordings([manifest(tmp_path / "test.json", *lines)])
    assert "\n" not in str(refused.value)


def test_a_part_is_read_from_its_place_and_keeps_the_times_of_its_file(tmp_path: Path) -> None:
    """Samples are growing numbers. The second part ends 0.2 s after the file, the third 1 s; the last begins there."""
    ramp = (np.arange(5 * RATE) % 30000).astype(np.int16)
    soundfile.write(tmp_path / "talk.wav", ramp, RATE)
    of_parts = [(1.5, 2.0), (4.0, 1.2), (4.0, 2.0), (7.0, 1.0)]
    lines = [{"audio_filepath": "talk.wav", "offset": offset, "duration": s} for offset, s in of_parts]
    found, _ = find_recordings([manifest(tmp_path / "test.json", *lines)])
    read = list(parts_of(found, RATE, [""], lambda rate: lambda block, is_last: [], print))
    segments = [part for _, part in read if isinstance(part, Segment)]
    assert [segment.start / RATE for segment in segments] == [1.5, 4.0, 4.0]
    expected = [ramp[24000:56000], ramp[64000:], ramp[64000:]]
    for segment, samples in zip(segments, expected, strict=True):
        assert np.array_equal(np.round(segment.samples * 32768), samples)
    ends = [str(part) if part else None for _, part in read if not isinstance(part, Segment)]
    assert ends[:2] == [None, None]
    assert "talk.wav ends at 5.0 s, before its part of 2 s at 4 s" in ends[2]
    assert "talk.wav ends at 5.0 s, before its part of 1 s at 7 s" in ends[3]
