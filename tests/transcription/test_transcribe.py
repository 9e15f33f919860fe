"""Recordings transcribed as a user has it done, with the demo's English model and its sample."""

import io
import json
import re
import shutil
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
import soxr
from test_transcripts import parse

from conftest import ROOT, Script, assert_refused, start_by_slurm
from finetuning.data.manifest import Utterance
from finetuning.transcription.segmentation import MARGIN_S, MAX_SEGMENT_S, Segment, iter_segments, read_blocks
from finetuning.transcription.transcripts import Passage, format_transcript
from forked import Forked

RATE = 16000
MODEL = ROOT / "models" / "demo" / "quartznet_small_en.nemo"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # small matrices: a second thread costs more than it does
ENGLISH = ROOT / "datasets" / "sample" / "cv-corpus-sample-en.tar.gz"


@pytest.fixture(scope="session")
def clips() -> list[tuple[np.ndarray, str]]:
    """44 clips, 16 kHz mono, and what is said in them."""
    from finetuning.audio.decoding import decode_audio, to_mono_16k

    with tarfile.open(ENGLISH) as archive:
        members = {Path(member.name).name: member for member in archive if member.isfile()}
        header, *rows = archive.extractfile(members["validated.tsv"]).read().decode().splitlines()
        rows = [dict(zip(header.split("\t"), row.split("\t"), strict=True)) for row in rows[:44]]
        mp3s = [archive.extractfile(members[row["path"]]).read() for row in rows]
    texts = ["".join(c for c in row["sentence"].lower() if c.isalpha() or c in " '") for row in rows]
    return [(to_mono_16k(*decode_audio(mp3)), text) for mp3, text in zip(mp3s, texts, strict=True)]


@pytest.fixture(scope="session")
def talks(clips: list[tuple[np.ndarray, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: a clip as step 1 writes it, one in stereo, no audio, a damaged mp3, three minutes."""
    folder = tmp_path_factory.mktemp("talks")
    soundfile.write(folder / "a.wav", clips[0][0], RATE)
    soundfile.write(folder / "b.flac", np.stack([clips[1][0]] * 2, axis=1), RATE)
    (folder / "bad.wav").write_text("hello")
    mp3 = io.BytesIO()
    soundfile.write(mp3, np.concatenate([clip for clip, _ in clips[:6]]), RATE, format="MP3")
    (folder / "cut.mp3").write_bytes(mp3.getvalue()[: len(mp3.getvalue()) // 2])
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(folder / "long.wav", "w", RATE, 1) as long:
        for clip, _ in clips:
            long.write(clip)
            long.write(rng.normal(size=round(RATE * rng.uniform(0.3, 0.8))) * 5e-4)
    return folder


@pytest.fixture(scope="session")
def transcribed(talks: Path, run_script: Script, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the transcripts are, and the last words, of a run that was killed in the long one and started again."""
    out = tmp_path_factory.mktemp("transcripts") / "out"
    command = [str(MODEL), str(talks), "--format", "jsonl", "--output", str(out)]
    process = Forked("transcribe.py", *command, env=ONE_THREAD)
    while process.poll() is None and not (out / "cut.jsonl").is_file():
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert sorted(path.name for path in out.glob("*.jsonl")) == [
        ".transcribed.jsonl",
        "a.jsonl",
        "b.jsonl",
        "cut.jsonl",
    ]
    again = run_script("transcribe.py", *command, env=ONE_THREAD)
    assert_refused(again, "2 of 5 recordings are transcribed already", "bad.wav is no audio", "cut.mp3 is damaged, ")
    assert_refused(again, "2 of 5 recordings are not transcribed, or not wholly, for the reasons above")
    assert again.stdout == ""
    return out, again.stderr


@pytest.fixture(scope="session")
def model() -> Any:
    import torch

    from finetuning.decoding.inference import prepare_for_inference
    from finetuning.model import ctc_model

    torch.set_num_threads(1)
    return prepare_for_inference(ctc_model.restore_model(MODEL))


@pytest.fixture(scope="session")
def network(model: Any) -> Any:
    from finetuning.decoding import openvino_runtime

    return openvino_runtime.load_network(model, MODEL)


def make_listener(rate: int) -> Any:
    from finetuning.transcription import voice_activity  # which loads NeMo

    return voice_activity.make_listener(rate)


def segments_of(path: Path) -> list[Segment]:
    return list(iter_segments(read_blocks(path, RATE), RATE, make_listener(RATE)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluated(model: Any, folder: Path, wavs: list[np.ndarray]) -> list[str]:
    """The texts that evaluate.py writes for these wavs."""
    from finetuning.decoding.inference import transcribe

    utterances = [Utterance(f"{number}.wav", len(wav) / RATE, "") for number, wav in enumerate(wavs)]
    for utterance, wav in zip(utterances, wavs, strict=True):
        soundfile.write(folder / utterance.audio_filepath, wav, RATE)
    return transcribe(model, utterances, folder)


@pytest.mark.slow
@pytest.mark.nemo
def test_a_killed_run_goes_on_and_what_is_wrong_is_named(transcribed: tuple[Path, str]) -> None:
    out, said = transcribed
    assert sorted(path.name for path in out.glob("[!.]*")) == ["a.jsonl", "b.jsonl", "cut.jsonl", "long.jsonl"]
    assert sum(line["duration"] for line in lines(out / "cut.jsonl")) > 5
    for chatter in ("NeMo W", "NeMo I", "OneLogger", "Warning", "Traceback", "Illegal"):
        assert chatter not in said


@pytest.mark.slow
@pytest.mark.nemo
def test_two_processes_share_the_recordings(
    transcribed: tuple[Path, str], talks: Path, run_script: Script, tmp_path: Path
) -> None:
    given = [str(talks / name) for name in ("a.wav", "b.flac", "cut.mp3", "long.wav")]
    command = [str(MODEL), *given, "--format", "jsonl", "--output", str(tmp_path)]
    processes = start_by_slurm("transcribe.py", *command)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [2, 0], outputs
    assert "1 of 4 recordings are not transcribed, or not wholly" in outputs[0][1], outputs
    for name in ("a", "b", "cut", "long"):
        transcript = f"{name}.jsonl"
        assert (tmp_path / transcript).read_bytes() == (transcribed[0] / transcript).read_bytes()
    assert len(lines(tmp_path / ".transcribed-1.jsonl")) == 2
    again = run_script("transcribe.py", *command, env=ONE_THREAD)
    assert "3 of 4 recordings are transcribed already" in again.stderr
    assert not (tmp_path / ".transcribed-1.jsonl").exists() and len(lines(tmp_path / ".transcribed.jsonl")) == 5

    first, second = start_by_slurm("transcribe.py", str(MODEL), given[0])
    assert "2 processes cannot print their transcripts in order; type --output FOLDER" in first.communicate()[1]
    assert second.wait() == 0


@pytest.mark.slow
@pytest.mark.nemo
def test_when_one_of_two_processes_is_killed_a_rerun_resumes_with_what_both_have_done(
    transcribed: tuple[Path, str], talks: Path, run_script: Script, tmp_path: Path
) -> None:
    given = [str(talks / name) for name in ("b.flac", "a.wav", "long.wav", "long.wav")]
    given[3] = str(shutil.copy(given[3], tmp_path / "longer.wav"))  # the second process's second
    command = [str(MODEL), *given, "--format", "jsonl", "--output", str(tmp_path / "out")]
    processes = start_by_slurm("transcribe.py", *command)
    while all(process.poll() is None for process in processes) and not (tmp_path / "out" / "a.jsonl").is_file():
        time.sleep(0.001)
    processes[1].kill()
    outputs = [process.communicate(timeout=60) for process in processes]
    ended = subprocess.CompletedProcess([], processes[0].returncode, *outputs[0])
    assert_refused(ended, "another process of those that share this task has ended", "rerun the same command")
    assert not (tmp_path / "out" / "longer.jsonl").exists()

    resumed = run_script("transcribe.py", *command, env=ONE_THREAD)
    assert resumed.returncode == 0, resumed.stderr
    assert re.search("[123] of 4 recordings are transcribed already", resumed.stderr)
    for name in ("a", "b", "long"):
        transcript = f"{name}.jsonl"
        assert (tmp_path / "out" / transcript).read_bytes() == (transcribed[0] / transcript).read_bytes()
    assert [line["pred_text"] for line in lines(tmp_path / "out" / "longer.jsonl")] == [
        line["pred_text"] for line in lines(transcribed[0] / "long.jsonl")
    ]


def test_a_process_whose_others_never_come_says_so(run_script: Script) -> None:
    alone = run_script("transcribe.py", str(MODEL), "a.wav", env={"RANK": "0", "WORLD_SIZE": "2"})
    assert_refused(alone, "process 0 of 2 does not reach the others", "or a single one with neither")


@pytest.mark.nemo
def test_again_nothing_is_run(transcribed: tuple[Path, str], talks: Path, run_script: Script) -> None:
    given = [str(talks / name) for name in ("a.wav", "b.flac", "long.wav")]
    again = run_script("transcribe.py", str(MODEL), *given, "--format", "jsonl", "--output", str(transcribed[0]))
    assert again.returncode == 0, again.stderr
    assert "3 of 3 recordings are transcribed already" in again.stderr
    assert "loading" not in again.stderr


@pytest.mark.nemo
def test_a_short_wav_reads_as_evaluate_reads_it(
    transcribed: tuple[Path, str], talks: Path, clips: list[tuple[np.ndarray, str]], model: Any, tmp_path: Path
) -> None:
    (line,) = lines(transcribed[0] / "a.jsonl")
    samples, _ = soundfile.read(talks / "a.wav")
    words = line.pop("words")
    assert [word["word"] for word in words] == line["pred_text"].split()
    assert all(0 <= word["start"] < word["end"] <= line["duration"] for word in words)
    confidences = [word.get("confidence", word.get("raw_confidence")) for word in words]  # calibrated by make demo
    assert all(0 <= confidence <= 1 for confidence in confidences)
    assert line == {
        "audio_filepath": str(talks / "a.wav"),
        "offset": 0.0,
        "duration": round(len(samples) / RATE, 3),
        "pred_text": evaluated(model, tmp_path, [samples])[0],
    }
    assert jiwer.wer(clips[0][1], line["pred_text"]) < 0.2
    assert jiwer.wer(clips[1][1], lines(transcribed[0] / "b.jsonl")[0]["pred_text"]) < 0.2


@pytest.mark.nemo
def test_a_long_recording_reads_as_its_segments_do(
    transcribed: tuple[Path, str], talks: Path, clips: list[tuple[np.ndarray, str]], model: Any, tmp_path: Path
) -> None:
    found = lines(transcribed[0] / "long.jsonl")
    segments = segments_of(talks / "long.wav")
    heard = [(s.start / RATE, len(s.samples) / RATE) for s in segments]
    assert [(line["offset"], line["duration"]) for line in found] == [pytest.approx(each, abs=1e-3) for each in heard]
    assert heard[-1][0] > 100 and all(line["duration"] <= MAX_SEGMENT_S for line in found)
    texts = evaluated(model, tmp_path, [segment.samples for segment in segments])
    assert [line["pred_text"] for line in found] == texts
    assert jiwer.wer(" ".join(text for _, text in clips), " ".join(texts)) < 0.2, "as of single clips"


@pytest.fixture(scope="session")
def passages(talks: Path, model: Any) -> list[Passage]:
    from finetuning.transcription.recognizer import transcribe_segments

    segments = segments_of(talks / "long.wav")
    return [passage for segment in segments for passage in transcribe_segments(model, None, [segment])]


@pytest.mark.nemo
def test_batches_do_not_matter(passages: list[Passage], talks: Path, model: Any, network: Any) -> None:
    from finetuning.transcription.recognizer import transcribe_segments

    quiet = Segment(0, np.zeros(3 * RATE, np.float32))
    found = [quiet, *segments_of(talks / "long.wav")]
    for way, given, expected in (
        (None, found, passages),
        (network, found, passages),
        (network, found[:4], passages[:3]),
    ):
        transcribed = transcribe_segments(model, way, given)[1:]
        assert [with_confidence(p, None) for p in transcribed] == [with_confidence(p, None) for p in expected]
        sure, expected_sure = ([w.confidence for p in each for w in p.words] for each in (transcribed, expected))
        assert sure == pytest.approx(expected_sure, abs=2e-3)  # torch and OpenVINO round differently


def with_confidence(passage: Passage, confidence: float | None) -> Passage:
    return replace(passage, words=[replace(word, confidence=confidence) for word in passage.words])


@pytest.mark.nemo
def test_subtitles_stand_where_the_words_are_said(
    passages: list[Passage], talks: Path, clips: list[tuple[np.ndarray, str]], model: Any
) -> None:
    from finetuning.transcription.recognizer import transcribe_segments

    found = parse(format_transcript("srt", talks / "long.wav", passages))
    times = [time for start, end, _ in found for time in (start, end)]
    assert times == sorted(times) and times[-1] <= soundfile.info(talks / "long.wav").duration
    assert all(end - start <= 7 and len(said) <= 2 and max(map(len, said)) <= 42 for start, end, said in found)
    texts = [" ".join(" ".join(said) for *_, said in found), " ".join(passage.text for passage in passages)]
    assert texts[0].split() == texts[1].split()
    first, second = clips[2][0], clips[3][0]
    (both,) = transcribe_segments(
        model, None, [Segment(RATE, np.concatenate([first, np.zeros(RATE // 2, np.float32), second]))]
    )
    before = [word for word in both.words if word.start_s < 1 + len(first) / RATE]
    assert abs(len(before) - len(clips[2][1].split())) <= 2
    assert abs(len(both.words) - len(before) - len(clips[3][1].split())) <= 2


@pytest.mark.nemo
def test_speech_is_told_from_pauses_noise_and_music(clips: list[tuple[np.ndarray, str]]) -> None:
    """Clips of the sample with half a second between them or, every third time, chords as loud as speech."""
    rng, parts, spoken, played = np.random.default_rng(0), [], [], []
    time_s = np.arange(4 * RATE) / RATE
    chords = sum(np.sin(2 * np.pi * 220 * ratio * time_s) for ratio in (1, 1.26, 1.5)) * np.exp(-2 * (time_s % 0.5))
    for number, (clip, _) in enumerate(clips[:9]):
        loud = np.flatnonzero(np.abs(clip) > 0.05 * np.abs(clip).max())
        at = sum(map(len, parts))
        spoken.append((at + loud[0], at + loud[-1]))
        parts += [clip, np.zeros(RATE // 2)]
        if number % 3 == 2:
            at = sum(map(len, parts))
            played.append((at, at + len(chords)))
            parts += [chords * clip.std(), np.zeros(RATE // 2)]
    sound = np.concatenate(parts)
    sound = (sound + rng.normal(size=len(sound)) * sound.std() * 10 ** (-30 / 20)).astype(np.float32)
    blocks = np.split(sound, range(65536, len(sound), 65536))
    found = list(iter_segments(blocks, RATE, make_listener(RATE)))
    covered = np.zeros(len(sound), bool)
    for segment in found:
        covered[segment.start : segment.start + len(segment.samples)] = True
    assert np.mean([covered[first:last].mean() for first, last in spoken]) > 0.99
    assert np.mean([covered[first:last].mean() for first, last in played]) < 0.25
    starts = [segment.start for segment in found]
    assert all(sum(first < start < last for start in starts) <= 1 for first, last in spoken)
    assert len(found) >= 9
    other = list(iter_segments(np.split(sound, range(7777, len(sound), 7777)), RATE, make_listener(RATE)))
    assert [(s.start, len(s.samples)) for s in other] == [(s.start, len(s.samples)) for s in found]

    telephone = soxr.resample(sound, RATE, 8000)
    slow = list(iter_segments([telephone], 8000, make_listener(8000)))
    assert abs(len(slow) - len(found)) <= 2 and abs(slow[0].start / 8000 - found[0].start / RATE) < MARGIN_S


@pytest.mark.nemo
def test_nothing_is_heard_in_silence(model: Any, network: Any) -> None:
    from finetuning.decoding.greedy import greedy_decode
    from finetuning.decoding.inference import compute_log_probs
    from finetuning.model.ctc_model import get_vocabulary
    from finetuning.transcription.recognizer import transcribe_segments

    silence = np.zeros(5 * RATE, np.float32)
    assert greedy_decode(compute_log_probs(model, [silence])[0], get_vocabulary(model)), (
        "the model itself hears nothing"
    )
    for way in (None, network):
        assert transcribe_segments(model, way, [Segment(RATE, silence)]) == [Passage(1.0, 5.0, "", [])]


@pytest.mark.nemo
def test_printed_transcripts_are_all_that_is_printed(
    transcribed: tuple[Path, str], talks: Path, run_script: Script, tmp_path: Path
) -> None:
    """Given relative to where the user is; of a recording without any speech that is said."""
    quiet, odd = tmp_path / "quiet.wav", tmp_path / "odd.wav"
    soundfile.write(quiet, np.zeros(RATE), RATE)
    samples, _ = soundfile.read(talks / "a.wav")
    soundfile.write(odd, np.stack([samples, -samples], axis=1), RATE)
    given = ["a.wav", "cut.mp3", "gone.wav", str(quiet), str(odd)]
    printed = run_script("transcribe.py", str(MODEL), *given, cwd=talks, env=ONE_THREAD)
    assert_refused(printed, "cannot read gone.wav", "cut.mp3 is damaged", "2 of 5 recordings are not")
    assert f"nothing is said in {quiet}" in printed.stderr
    assert f"{odd} has channels that cancel" in printed.stderr
    expected = [
        f"{name}\t{line['pred_text'].strip()}"
        for name, of in (("a.wav", "a.jsonl"), ("cut.mp3", "cut.jsonl"), (odd, "a.jsonl"))
        for line in lines(transcribed[0] / of)
    ]
    assert printed.stdout.splitlines() == expected


def test_refusals_before_any_model_is_loaded(run_script: Script, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.wav").touch()
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, np.zeros(RATE), RATE)
    refused = run_script("transcribe.py", str(MODEL), "empty", "zero.wav", "gone.wav", cwd=tmp_path)
    assert_refused(refused, "empty is a folder without audio files", "zero.wav is empty", "cannot read gone.wav")
    assert_refused(refused, "3 of 3 recordings are not transcribed")
    (tmp_path / "some").mkdir()
    for name in ("cover.jpg", "notes.txt", "zero.wav", ".hidden"):
        (tmp_path / "some" / name).touch()
    refused = run_script("transcribe.py", str(MODEL), "some", cwd=tmp_path)
    assert_refused(refused, "left out, for they do not look like sound: 2 files (cover.jpg, notes.txt)")
    assert_refused(refused, "zero.wav is empty", "1 of 1 recordings are not transcribed")
    assert_refused(run_script("transcribe.py", "gone.nemo", "a.wav", cwd=tmp_path), "there is no model gone.nemo")
    several = ("transcribe.py", str(MODEL), "a.wav", "a.flac", "--format", "srt")
    assert_refused(run_script(*several, cwd=tmp_path), "cannot be printed as one; type --output FOLDER")
    assert_refused(run_script(*several, "--output", "out", cwd=tmp_path), "would both be written to out/a.srt")
    assert_refused(run_script(*several, "--output", "a.wav", cwd=tmp_path), "cannot write to the folder a.wav")
    assert_refused(run_script("transcribe.py", str(MODEL)), "FILE_OR_FOLDER")


def test_names_are_those_of_the_configuration_and_a_path_needs_none(
    run_script: Script, talks: Path, tmp_path: Path
) -> None:
    own, broken = tmp_path / "own.yaml", tmp_path / "broken.yaml"
    own.write_text("extends: configs/demo.yaml\nmodel: {registry: {mine: {url: http://127.0.0.1:9/mine.nemo}}}\n")
    broken.write_text("model: [")
    wav = str(talks / "a.wav")
    assert_refused(run_script("transcribe.py", "none", wav, "--config", str(own)), "no model none", "mine")
    assert_refused(run_script("transcribe.py", "mine", wav, "--config", str(broken)), "broken.yaml")
    assert_refused(run_script("transcribe.py", "x.nemo", wav, "--config", str(broken)), "there is no model x.nemo")


def sounding(clip: np.ndarray) -> tuple[float, float]:
    """When a clip without noise begins and ceases to sound, in seconds: 35 dB below its loudest 10 ms."""
    hops = np.lib.stride_tricks.sliding_window_view(clip, RATE // 100)[:: RATE // 200]
    energy = np.square(hops).mean(axis=1)
    loud = np.flatnonzero(energy > energy.max() * 10**-3.5)
    return loud[0] / 200, loud[-1] / 200 + 0.01


@pytest.mark.nemo
def test_word_times_are_those_of_a_forced_alignment_and_of_the_sound(
    clips: list[tuple[np.ndarray, str]], model: Any, network: Any
) -> None:
    """Of the reference text: where the model writes its words, their times are the same; 60 ms is what is asked."""
    from finetuning.decoding.alignment import CLICK_S, align_to_sound, forced_alignment
    from finetuning.decoding.greedy import greedy_path, word_spans
    from finetuning.decoding.inference import iter_log_probs
    from finetuning.model.ctc_model import frame_duration_s, get_vocabulary
    from finetuning.transcription.recognizer import transcribe_segments

    vocabulary, frame_s = get_vocabulary(model), frame_duration_s(model)
    outputs = list(iter_log_probs(model, network, [[clip for clip, _ in clips]]))
    passages = transcribe_segments(model, network, [Segment(0, clip) for clip, _ in clips])
    differences, of_sound, greedy_of_sound = [], [], []
    for (clip, text), log_probs, passage in zip(clips, outputs, passages, strict=True):
        path = forced_alignment(log_probs, vocabulary.encode(text))
        frame, click = round(frame_s * RATE), round(CLICK_S / frame_s)
        expected = word_spans(align_to_sound(path, log_probs, clip, frame, vocabulary, click), vocabulary)
        matches = jiwer.process_words(text, " ".join(word.text for word in passage.words)).alignments[0]
        for match in (each for each in matches if each.type == "equal"):
            pairs = zip(
                expected[match.ref_start_idx : match.ref_end_idx],
                passage.words[match.hyp_start_idx : match.hyp_end_idx],
                strict=True,
            )
            for (_, first, end), word in pairs:
                differences += [abs(word.start_s - first * frame_s), abs(word.end_s - end * frame_s)]
        start_s, end_s = sounding(clip)
        of_sound += [abs(passage.words[0].start_s - start_s), abs(passage.words[-1].end_s - end_s)]
        unmoved = word_spans(greedy_path(log_probs), vocabulary)
        greedy_of_sound += [abs(unmoved[0][1] * frame_s - start_s), abs(unmoved[-1][2] * frame_s - end_s)]
    assert len(differences) > 400 and np.median(differences) < 0.02 and np.quantile(differences, 0.95) < 0.06
    assert np.median(of_sound) < 0.06
    assert np.median(greedy_of_sound) > 0.1, "the model's own times are as good: the test would pass without moving"


@pytest.mark.nemo
def test_two_sides_of_a_call_are_one_transcript_in_order_of_time(
    clips: list[tuple[np.ndarray, str]], run_in_process: Script, tmp_path: Path
) -> None:
    """Four turns, with the noise of a line on either side all the time; both mixed would be another transcript."""
    turns, call = clips[2:6], np.random.default_rng(0).normal(size=(30 * RATE, 2)) * 3e-4
    starts_s = [0.5]
    for number, (clip, _) in enumerate(turns):
        first = round(starts_s[-1] * RATE)
        call[first : first + len(clip), number % 2] += clip
        starts_s.append(starts_s[-1] + len(clip) / RATE + 0.5)
    soundfile.write(tmp_path / "call.flac", call, RATE)
    soundfile.write(tmp_path / "mono.wav", call[:, 0], RATE)
    split = ["transcribe.py", str(MODEL), str(tmp_path / "call.flac"), "--channels", "split"]
    out = ["--format", "jsonl", "--output", str(tmp_path / "out")]
    assert run_in_process(*split, *out).returncode == 0
    found = lines(tmp_path / "out" / "call.jsonl")
    assert [line["speaker"] for line in found] == ["left", "right", "left", "right"]
    assert jiwer.wer([text for _, text in turns], [line["pred_text"] for line in found]) < 0.2
    for line, begins, ends in zip(found, starts_s, starts_s[1:], strict=False):
        assert begins < line["words"][0]["start"] < line["words"][-1]["end"] < ends
    mixed = run_in_process("transcribe.py", str(MODEL), str(tmp_path / "call.flac"), *out)
    assert_refused(mixed, "call.jsonl is there already and not known as a transcript of")
    printed = run_in_process(*split[:2], str(tmp_path / "mono.wav"), *split[2:])
    assert_refused(printed, "mono.wav has 1 channel(s), not 2; transcribe it without --channels split")
    first = printed.stdout.splitlines()[0]
    assert first == f"{tmp_path / 'call.flac'}\tleft: {found[0]['pred_text']}"
