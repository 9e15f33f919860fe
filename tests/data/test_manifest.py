"""Manifests of whatever maker: what is read of a line, and that a broken one is one sentence."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning.data.manifest import Utterance, parse_line, read_manifest
from finetuning.errors import UserError
from mutations import mutated

LINE = {"audio_filepath": "wavs/a.wav", "duration": 1.5, "text": "ciao"}


def read(**fields: object) -> Utterance:
    return parse_line(json.dumps({**LINE, **fields}), "a manifest, line 1")


def test_what_other_tools_write_is_understood() -> None:
    assert read() == Utterance("wavs/a.wav", 1.5, "ciao")
    assert read(speaker=5, gender=None, offset=0, lang="it") == Utterance("wavs/a.wav", 1.5, "ciao", speaker="5")
    assert read(duration=2, accents="", shard_id=None) == Utterance("wavs/a.wav", 2, "ciao")
    assert read(level_dbfs=-20.5, clipped_share=0, silent_share=1).level_dbfs == -20.5
    assert read(bandwidth_hz=3875).bandwidth_hz == 3875 and read(bandwidth_hz=None).bandwidth_hz is None


@pytest.mark.parametrize(
    "line",
    [
        '["a"]',
        "null",
        '"a"',
        "5",
        "{}",
        "{",
        "[" * 100_000,
        json.dumps({**LINE, "text": "\ud800"}),
        json.dumps({**LINE, "text": None}),
        json.dumps({**LINE, "text": ["ciao"]}),
        json.dumps({**LINE, "audio_filepath": 5}),
        json.dumps({**LINE, "duration": "1.5"}),
        json.dumps({**LINE, "duration": True}),
        json.dumps({**LINE, "duration": 0}),
        json.dumps({**LINE, "duration": float("nan")}),
        json.dumps({**LINE, "duration": 1e300}),
        json.dumps(LINE).replace("1.5", "1" * 5_000),
        json.dumps({**LINE, "speaker": ["a"]}),
        json.dumps({**LINE, "gender": {"a": 1}}),
        json.dumps({**LINE, "age": True}),
        json.dumps({**LINE, "bandwidth_hz": "4000"}),
        json.dumps({**LINE, "bandwidth_hz": True}),
        json.dumps({**LINE, "bandwidth_hz": -1}),
        json.dumps({**LINE, "bandwidth_hz": float("nan")}),
        json.dumps({**LINE, "level_dbfs": "loud"}),
        json.dumps({**LINE, "clipped_share": 1.5}),
        json.dumps({**LINE, "silent_share": -0.1}),
        json.dumps({**LINE, "shard_id": 0}),
        json.dumps({**LINE, "shard_id": True, "shard_offset": 1024}),
        json.dumps({**LINE, "shard_id": 0, "shard_offset": 1 << 70}),
    ],
)
def test_what_is_no_utterance_is_one_sentence_with_its_place(line: str) -> None:
    with pytest.raises(UserError, match=r"^a manifest, line 1 is not an utterance") as refused:
        parse_line(line, "a manifest, line 1")
    assert len(str(refused.value)) < 400


@settings(derandomize=True, deadline=None, database=None, max_examples=300)
@given(st.data())
def test_a_damaged_manifest_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    whole = "".join(json.dumps({**LINE, "speaker": f"s{i}", "sentence": "È, «ciao»"}) + "\n" for i in range(3))
    path.write_bytes(data.draw(mutated(whole.encode())))
    try:
        utterances = read_manifest(path, check_audio=False)
    except UserError:
        return
    assert utterances and all(isinstance(field, str) for u in utterances for field in (u.speaker, u.text, u.age))


def test_a_wav_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "test_manifest.json"
    path.write_text(json.dumps({**LINE, "audio_filepath": "wavs/\0b.wav"}) + "\n")
    with pytest.raises(UserError, match="utterance 1: there is no"):
        read_manifest(path)
