"""A real small model on real clips: results that depend on nothing but model and wav; the loss by hand."""

import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from conftest import ROOT
from finetuning.data.manifest import Utterance, read_manifest
from finetuning.decoding.greedy import greedy_decode
from finetuning.decoding.predictions import Prediction
from finetuning.errors import UserError
from finetuning.model.vocabulary import Vocabulary
from small import ARCHITECTURE, ENGLISH, ITALIAN, lively_model, write_clips

of_characters = Vocabulary.of_characters

pytestmark = pytest.mark.nemo


@pytest.fixture(scope="module")
def model() -> Any:
    from finetuning.decoding.inference import prepare_for_inference

    return prepare_for_inference(lively_model(ITALIAN))


@pytest.fixture(scope="module")
def exported(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same network in OpenVINO."""
    from finetuning.decoding.openvino_runtime import load_network
    from finetuning.model.ctc_model import save_model

    path = tmp_path_factory.mktemp("exported") / "lively.nemo"
    save_model(model, path)
    return load_network(model, path)


@pytest.fixture(scope="module")
def clips(sample_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Utterance]]:
    """A folder and its utterances: 10 clips of different length, and one of 0.1 s."""
    manifest = write_clips(sample_archive, tmp_path_factory.mktemp("clips") / "it", 10)
    utterances = read_manifest(manifest)
    samples, _ = soundfile.read(manifest.parent / utterances[0].audio_filepath)
    soundfile.write(manifest.parent / "wavs" / "short.wav", samples[3000:4600], 16000)
    return manifest.parent, [*utterances, Utterance("wavs/short.wav", 0.1, "è")]


def all_frames(model: Any, clips: tuple[Path, list[Utterance]], order: list[int], size: int) -> dict[int, np.ndarray]:
    """Log-probabilities by number of the utterance, run in batches of `size` in this order."""
    from finetuning.decoding.inference import compute_log_probs, prepare_for_inference, read_wavs

    folder, utterances = clips
    prepare_for_inference(model)  # NeMo's own transcribe() leaves the encoder in train mode
    found = {}
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        wavs = read_wavs([folder / utterances[number].audio_filepath for number in numbers], 16000)
        found |= dict(zip(numbers, compute_log_probs(model, wavs), strict=True))
    return found


def test_results_do_not_depend_on_batch_size_or_order(
    model: Any, exported: Any, clips: tuple[Path, list[Utterance]]
) -> None:
    from finetuning.decoding.inference import predict

    folder, utterances = clips
    order = list(range(len(utterances)))
    alone = all_frames(model, clips, order, 1)
    random.Random(0).shuffle(order)
    for size in (3, 16):
        together = all_frames(model, clips, order, size)
        for number, frames in alone.items():
            np.testing.assert_allclose(together[number], frames, rtol=0, atol=1e-3)
    shuffled = [utterances[number] for number in order]
    ways = [dict(predict(model, None, utterances, folder, size)) for size in (1, 3, 16)]
    ways += [dict(predict(model, exported, utterances, folder, 16))]
    for network in (None, exported):
        found = dict(predict(model, network, shuffled, folder, 3))
        ways.append({order[place]: prediction for place, prediction in found.items()})
    texts = [{number: prediction.pred_text for number, prediction in way.items()} for way in ways]
    assert all(other == texts[0] for other in texts)
    assert len(set(texts[0].values())) > len(utterances) // 2, "it would pass on a model that always writes the same"
    losses = [{number: prediction.loss for number, prediction in way.items()} for way in ways]
    assert all(other == pytest.approx(losses[0], abs=1e-3) for other in losses)


def test_texts_do_not_depend_on_the_number_of_threads(
    model: Any, clips: tuple[Path, list[Utterance]], tmp_path: Path
) -> None:
    import torch

    from finetuning.decoding.inference import describe_device, predict
    from finetuning.decoding.openvino_runtime import load_network
    from finetuning.model.ctc_model import save_model

    folder, utterances = clips
    save_model(model, tmp_path / "lively.nemo")
    texts = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for way in (None, load_network(model, tmp_path / "lively.nemo")):
                assert describe_device(model, way)["threads"] == threads
                texts.append({n: p.pred_text for n, p in predict(model, way, utterances[:5], folder, 4)})
    finally:
        torch.set_num_threads(1)
    assert all(other == texts[0] for other in texts)


def test_frames_and_texts_are_nemos(model: Any, exported: Any, clips: tuple[Path, list[Utterance]]) -> None:
    from finetuning.decoding.inference import iter_log_probs, prepare_for_inference, read_wavs, transcribe

    folder, utterances = clips
    paths = [str(folder / utterance.audio_filepath) for utterance in utterances]
    theirs = model.transcribe(paths, batch_size=4, verbose=False, return_hypotheses=True)
    ours = all_frames(model, clips, list(range(len(utterances))), 16)
    for number, hypothesis in enumerate(theirs):
        np.testing.assert_allclose(ours[number], hypothesis.y_sequence.numpy(), rtol=0, atol=1e-3)
    for own, hypothesis in zip(
        iter_log_probs(prepare_for_inference(model), exported, [read_wavs(paths, 16000)]), theirs, strict=True
    ):
        np.testing.assert_allclose(own, hypothesis.y_sequence.numpy(), rtol=0, atol=1e-3)
    texts = transcribe(
        model, utterances, folder
    )  # NeMo takes the apostrophe for punctuation and drops a space before it
    assert [text.replace(" '", "'") for text in texts] == [hypothesis.text for hypothesis in theirs]


def test_an_encoder_without_masks_does_not_see_its_neighbours(
    clips: tuple[Path, list[Utterance]], model: Any, tmp_path: Path
) -> None:
    from finetuning.decoding.inference import prepare_for_inference

    config = yaml.safe_load(ARCHITECTURE.read_text(encoding="utf-8"))
    config["encoder"]["conv_mask"] = False
    (tmp_path / "unmasked.yaml").write_text(yaml.safe_dump(config))
    unmasked = prepare_for_inference(lively_model(ITALIAN, tmp_path / "unmasked.yaml"))
    order = list(range(0, len(clips[1]), 2))
    alone, together = (all_frames(unmasked, clips, order, size) for size in (1, 16))
    masked = all_frames(model, clips, order, 16)
    for number in order:
        np.testing.assert_array_equal(together[number], alone[number])
        assert together[number].shape == masked[number].shape


def test_no_dither(clips: tuple[Path, list[Utterance]], tmp_path: Path) -> None:
    from finetuning.decoding.inference import prepare_for_inference

    config = yaml.safe_load(ARCHITECTURE.read_text(encoding="utf-8"))
    config["preprocessor"]["dither"] = 0.1
    (tmp_path / "dithered.yaml").write_text(yaml.safe_dump(config))
    dithered = lively_model(ITALIAN, tmp_path / "dithered.yaml").train()
    first, second = (all_frames(prepare_for_inference(dithered), clips, [0], 1)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not dithered.training
    assert dithered.preprocessor.featurizer.dither == 0


@pytest.mark.parametrize("by", ["torch", "openvino"])
def test_batches_are_read_one_at_a_time_longest_first(
    model: Any, exported: Any, clips: tuple[Path, list[Utterance]], by: str
) -> None:
    from finetuning.decoding.inference import predict

    network = {"torch": None, "openvino": exported}[by]
    folder, utterances = clips
    gone = Utterance("wavs/gone.wav", 0.05, "a")  # the shortest: in the last batch
    running = predict(model, network, [*utterances, gone], folder, 4)
    durations = [next(running)[1].duration for _ in range(8)]
    assert durations == sorted(durations, reverse=True)
    with pytest.raises(UserError, match=r"cannot read .*gone\.wav"):
        list(running)


def test_what_is_done_is_not_run_again_and_the_rest_comes_out_the_same(
    model: Any, exported: Any, clips: tuple[Path, list[Utterance]]
) -> None:
    from finetuning.decoding.inference import predict

    folder, utterances = clips
    whole = list(predict(model, None, utterances, folder, 4))
    done = {number for number, _ in whole[:5]}
    assert list(predict(model, None, utterances, folder, 4, done)) == whole[4:]
    whole = list(predict(model, exported, utterances, folder, 4))
    assert list(predict(model, exported, utterances, folder, 4, done)) == whole[5:]


def brute_force(log_probabilities: np.ndarray, text: str, letters: str) -> float:
    """Negative log of the summed probability of all paths that read `text`: the definition, term by term."""
    total = 0.0
    for path in itertools.product(range(len(letters) + 1), repeat=len(log_probabilities)):
        merged = [token for token, _ in itertools.groupby(path)]
        if "".join(letters[token] for token in merged if token < len(letters)) == text:
            total += math.exp(sum(frame[token] for frame, token in zip(log_probabilities, path, strict=True)))
    return -math.log(total) if total else math.inf


@pytest.mark.parametrize("text", ["", "a", "ab", "aa", "aba", "bbb", "aab", "abab", "aaaa"])
def test_loss_is_the_sum_over_all_alignments(text: str) -> None:
    from finetuning.decoding.inference import ctc_loss

    scores = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    frames = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    expected = brute_force(frames, text, "ab")
    found = ctc_loss(frames, text, of_characters("ab"))
    assert found == (None if math.isinf(expected) else pytest.approx(expected, abs=1e-5))


def test_letters_the_model_lacks_are_left_out_of_the_loss() -> None:
    from finetuning.decoding.inference import ctc_loss

    frames = np.log(np.full((6, 3), 1 / 3, dtype=np.float32))
    assert ctc_loss(frames, "àabè", of_characters("ab")) == ctc_loss(frames, "ab", of_characters("ab"))
    assert ctc_loss(frames, "è", of_characters("ab")) == pytest.approx(
        6 * math.log(3), abs=1e-4
    )  # the path of six blanks


def test_the_mean_of_the_losses_is_nemos(model: Any, clips: tuple[Path, list[Utterance]]) -> None:
    import torch

    from finetuning.decoding.inference import ctc_loss

    utterances = clips[1][:4]
    frames = all_frames(model, clips, [0, 1, 2, 3], 4)
    ours = [ctc_loss(frames[number], u.text, of_characters(ITALIAN)) for number, u in enumerate(utterances)]
    texts = [torch.tensor([ITALIAN.index(letter) for letter in u.text]) for u in utterances]
    theirs = model.loss(
        log_probs=torch.nn.utils.rnn.pad_sequence([torch.from_numpy(f) for f in frames.values()], batch_first=True),
        targets=torch.nn.utils.rnn.pad_sequence(texts, batch_first=True),
        input_lengths=torch.tensor([len(f) for f in frames.values()]),
        target_lengths=torch.tensor([len(text) for text in texts]),
    )
    assert sum(ours) / 4 == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("rate", "channels", "seconds", "words"),
    [(8000, 1, 1, "8000 Hz and 1 channel"), (16000, 2, 1, "2 channel"), (16000, 1, 0.01, "shorter than"),
     (16000, 1, 0, "shorter than")],
)  # fmt: skip
def test_wavs_that_are_not_step_1s_are_named(
    tmp_path: Path, rate: int, channels: int, seconds: float, words: str
) -> None:
    from finetuning.decoding.inference import read_wavs

    wave = np.sin(np.arange(int(rate * seconds)) / 5)
    soundfile.write(tmp_path / "odd.wav", np.stack([wave] * channels, axis=1), rate)
    with pytest.raises(UserError, match=words) as refusal:
        read_wavs([tmp_path / "odd.wav"], 16000)
    assert str(tmp_path / "odd.wav") in str(refusal.value)


def test_a_file_that_is_no_wav_is_named(tmp_path: Path) -> None:
    from finetuning.decoding.inference import read_wavs

    (tmp_path / "text.wav").write_text("hello")
    for name in ("text.wav", "none.wav"):
        with pytest.raises(UserError, match=f"cannot read .*{name}"):
            read_wavs([tmp_path / name], 16000)


def nemos_metric(model: Any, texts: list[str], frames: list[np.ndarray]) -> float:
    """The WER that NeMo's own test says: its parser's references, its greedy decoding, its metric."""
    import torch
    from nemo.collections.asr.metrics.wer import WER
    from nemo.collections.common.parts.preprocessing.parsers import make_parser
    from torch.nn.utils.rnn import pad_sequence

    letters = list(model.decoder.vocabulary)
    parser = make_parser(labels=letters, name="base", unk_id=-1, blank_id=-1)
    targets = [torch.tensor(parser(text), dtype=torch.long) for text in texts]
    metric = WER(decoding=model.decoding, log_prediction=False)
    metric.update(
        predictions=pad_sequence([torch.from_numpy(own) for own in frames], batch_first=True),
        predictions_lengths=torch.tensor([len(own) for own in frames]),
        targets=pad_sequence(targets, batch_first=True),
        targets_lengths=torch.tensor([len(target) for target in targets]),
    )
    return metric.compute()[0].item()


@pytest.fixture(scope="module")
def english() -> Any:
    from finetuning.decoding.inference import prepare_for_inference
    from finetuning.model.ctc_model import restore_model

    return prepare_for_inference(restore_model(ROOT / "models" / "demo" / "quartznet_small_en.nemo"))


def sample(language: str, folder: Path) -> list[Utterance]:
    """12 clips of the shipped sample."""
    archive = ROOT / "datasets" / "sample" / f"cv-corpus-sample-{language}.tar.gz"
    return read_manifest(write_clips(archive, folder, 12))


def test_the_result_depends_neither_on_the_batch_size_nor_on_the_order_of_the_manifest(
    english: Any, tmp_path: Path
) -> None:
    from finetuning.decoding.inference import predict
    from finetuning.evaluation import bootstrap, results, scoring

    utterances = [replace(u, speaker=f"speaker {n % 6}") for n, u in enumerate(sample("en", tmp_path))]
    found, losses = set(), []
    for size, order in ((1, range(12)), (5, random.Random(0).sample(range(12), 12)), (16, range(11, -1, -1))):
        chosen = [utterances[number] for number in order]
        said = dict(predict(english, None, chosen, tmp_path, size))
        score = scoring.score_predictions(said[number] for number in range(12))
        by_speaker = bootstrap.sum_by_speaker(score, chosen)
        row = results.make_result("m", score, 1.0, "", {}) | results.interval_fields(by_speaker)
        losses.append(row.pop("loss"))
        found.add(json.dumps(row))
    assert len(found) == 1
    assert losses == pytest.approx([losses[0]] * 3, abs=2e-4)


@pytest.mark.parametrize("language", ["en", "it"])
def test_error_rates_are_nemos(english: Any, language: str, tmp_path: Path) -> None:
    """The shipped English model, on English, and on Italian, of which NeMo's own test drops the accented letters."""
    from nemo.collections.asr.metrics.wer import word_error_rate

    from finetuning.evaluation.scoring import nemo_word_error_rate, score_predictions

    utterances = sample(language, tmp_path)
    frames = list(all_frames(english, (tmp_path, utterances), list(range(12)), 4).values())
    said = [
        Prediction("", u.text, greedy_decode(own, of_characters(ENGLISH)), None, 1)
        for u, own in zip(utterances, frames, strict=True)
    ]
    ours, references = score_predictions(said), [u.text for u in utterances]
    theirs = nemos_metric(english, references, frames)
    assert nemo_word_error_rate(said, ours, of_characters(ENGLISH)) == pytest.approx(theirs, abs=1e-6)
    if language == "en":
        assert 0 < ours.words.rate < 0.5
        assert ours.words.rate == pytest.approx(theirs, abs=1e-6)
        theirs = word_error_rate([p.pred_text.strip() for p in said], references, use_cer=True)
        assert ours.characters.rate == pytest.approx(theirs, abs=1e-6)
    else:
        assert any(letter not in ENGLISH for text in references for letter in text)
        assert ours.words.rate != pytest.approx(theirs, abs=1e-3)
