"""Noise and rooms on real clips: what is heard of them, that it repeats, and which recordings are refused."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from conftest import ROOT, shipped
from finetuning.config.loading import load_config
from finetuning.config.schema import Training
from finetuning.errors import UserError
from finetuning.training import augmentation_files
from finetuning.training.augmentation_files import list_noise, list_rooms

if TYPE_CHECKING:
    from nemo.collections.asr.parts.preprocessing.perturb import AudioAugmentor

RATE = 16000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    return tmp_path


def noise(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(round(seconds * rate), channels)) / 20


def training(*overrides: str) -> Training:
    return load_config("configs/demo.yaml", ["training.speed_perturbation=0", *overrides]).training


def changed(augmentor: "AudioAugmentor", samples: np.ndarray, seed: int = 0) -> np.ndarray:
    from nemo.collections.asr.parts.preprocessing.segment import AudioSegment

    random.seed(seed)
    segment = AudioSegment(samples.copy(), RATE)
    augmentor.perturb(segment)
    return segment.samples


def test_long_recordings_are_taken_in_pieces(folder: Path) -> None:
    soundfile.write(folder / "inner" / "a.wav", noise(45), RATE)
    soundfile.write(folder / "b.flac", noise(1.5, 8000), 8000)
    (folder / "notes.txt").touch()
    pieces = [(Path(piece.audio_filepath).name, piece.offset, piece.duration) for piece in list_noise(str(folder))]
    assert pieces == [("b.flac", 0.0, 1.5), ("a.wav", 0.0, 20.0), ("a.wav", 20.0, 20.0)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "training.noise.folder: there are no recordings (.wav, .flac, .ogg, .mp3) in "),
        (lambda path: path.write_text("no wav"), "training.noise.folder: cannot read "),
        (lambda path: soundfile.write(path, noise(1, channels=2), RATE), "a.wav has 2 channels, and recordings of one"),
        (lambda path: soundfile.write(path, noise(0), RATE), "a.wav is empty"),
    ],
)
def test_what_cannot_be_added_is_refused(folder: Path, make: Callable[[Path], None], words: str) -> None:
    make(folder / "a.wav")
    with pytest.raises(UserError) as refused:
        list_noise(str(folder))
    assert words in str(refused.value)


def test_a_recording_is_no_impulse_response(folder: Path) -> None:
    soundfile.write(folder / "a.wav", noise(21), RATE)
    with pytest.raises(UserError, match=r"training.room.folder: .*a.wav lasts 21 s, which no impulse response does"):
        list_rooms(str(folder))


def test_the_record_of_a_run_notices_other_recordings(folder: Path) -> None:
    assert augmentation_files.files_digest(shipped("italian").training) == ""
    soundfile.write(folder / "a.wav", noise(1), RATE)
    before = augmentation_files.files_digest(training(f"training.room.folder={folder}"))
    assert before == augmentation_files.files_digest(training(f"training.room.folder={folder}"))
    soundfile.write(folder / "b.wav", noise(1), RATE)
    assert before != augmentation_files.files_digest(training(f"training.room.folder={folder}"))


@pytest.mark.nemo
def test_noise_is_added_at_the_ratio_that_is_asked_for(folder: Path) -> None:
    from finetuning.training.augmentation import build_augmentor

    soundfile.write(folder / "a.wav", noise(30), RATE)
    asked = f"training.noise={{folder: {folder}, probability: 1, min_snr_db: 6, max_snr_db: 12}}"
    augmentor = build_augmentor(training(asked), RATE)
    clip = np.sin(np.arange(3 * RATE) / 10).astype(np.float32) / 10
    ratios = []
    for seed in range(10):
        heard = changed(augmentor, clip, seed)
        assert heard.shape == clip.shape and np.array_equal(heard, changed(augmentor, clip, seed))
        ratios.append(10 * np.log10(np.mean(clip**2) / np.mean((heard - clip) ** 2)))
    assert 5.8 < min(ratios) < 8 and 10 < max(ratios) < 12.2


@pytest.mark.nemo
def test_loudness_changes_by_as_much_as_is_allowed() -> None:
    from finetuning.training.augmentation import build_augmentor

    augmentor, clip = build_augmentor(training("training.gain_db=6"), RATE), noise(1)[:, 0].astype(np.float32)
    gains = [20 * np.log10(np.abs(changed(augmentor, clip, seed)).max() / np.abs(clip).max()) for seed in range(30)]
    assert -6 <= min(gains) < -4 and 4 < max(gains) <= 6.001
    assert build_augmentor(training(), RATE) is None


@pytest.mark.nemo
def test_silence_is_digital_or_the_clips_own_background() -> None:
    """A hum of 1 kHz, 40 dB below the tone that follows it, is what half of the clips are padded with."""
    from finetuning.training.augmentation import build_augmentor

    augmentor, time_s = build_augmentor(training("training.silence_s=0.5"), RATE), np.arange(RATE) / RATE
    clip = (np.sin(2 * np.pi * 1000 * time_s) * np.where(time_s < 0.2, 0.005, 0.5)).astype(np.float32)
    padded = [changed(augmentor, clip, seed) for seed in range(40)]
    lengths, digital = [], 0
    for each in padded:
        start = next(i for i in range(len(each)) if np.array_equal(each[i : i + len(clip)], clip))
        lengths += [start, len(each) - len(clip) - start]
        before = each[:start]
        digital += not before.any()
        if before.any() and start > 1600:
            power = np.abs(np.fft.rfft(before)) ** 2
            assert abs(np.fft.rfftfreq(start, 1 / RATE)[power.argmax()] - 1000) < 40
            assert 0.002 < np.sqrt(np.mean(before**2)) < 0.007  # the hum's is 0.0035
    assert all(each.dtype == clip.dtype for each in padded) and 12 < digital < 28
    assert min(lengths) < 800 and 7200 < max(lengths) <= 8000
    assert np.array_equal(padded[0], changed(augmentor, clip, 0))
    assert not changed(augmentor, np.zeros(RATE, np.float32)).any(), "digital silence has no background"


@pytest.mark.nemo
def test_a_telephone_takes_what_is_above_its_band() -> None:
    """Of white noise what is below 3.4 kHz stays, with the noise of the codec; each of the codecs is drawn."""
    from finetuning.training.augmentation import build_augmentor

    augmentor, clip = build_augmentor(training("training.telephone=1"), RATE), noise(2)[:, 0].astype(np.float32)
    before = np.abs(np.fft.rfft(clip)) ** 2
    heard = [changed(augmentor, clip, seed) for seed in range(12)]
    for each in heard:
        after = np.abs(np.fft.rfft(each)) ** 2
        assert each.shape == clip.shape and each.dtype == clip.dtype
        assert 0.3 < after[600:6800].sum() / before[600:6800].sum() < 1.5  # 0.3 to 3.4 kHz, in steps of 0.5 Hz
        assert after[8800:].sum() < 0.001 * before[8800:].sum()  # above 4.4 kHz
        assert 0.3 < np.corrcoef(each, clip)[0, 1] < 0.8  # GSM keeps less of a noise than G.711 does
    assert len({each.tobytes() for each in heard}) == 3
    assert np.array_equal(heard[0], changed(augmentor, clip, 0))


@pytest.mark.nemo
def test_a_room_is_heard_without_its_delay_and_its_length(folder: Path) -> None:
    from finetuning.training.augmentation import build_augmentor

    response = np.zeros(4000)
    response[[800, 2400]] = 0.5, 0.25  # the direct sound and an echo after 0.1 s
    soundfile.write(folder / "a.wav", response, RATE, subtype="FLOAT")
    augmentor = build_augmentor(training(f"training.room={{folder: {folder}, probability: 1}}"), RATE)
    clip = noise(1)[:, 0].astype(np.float32)
    heard = changed(augmentor, clip)
    expected = clip + 0.5 * np.concatenate([np.zeros(1600), clip[:-1600]])
    assert heard.shape == clip.shape
    assert np.corrcoef(heard, expected)[0, 1] > 0.999


@pytest.mark.nemo
def test_clips_are_changed_in_training_and_alike_when_it_is_resumed(
    tiny_config: Path, tiny_dataset: Path, folder: Path
):
    from finetuning.training import data_loading, fine_tuning

    soundfile.write(folder / "a.wav", noise(5), RATE)
    added = f"training.noise={{folder: {folder}, probability: 1, min_snr_db: 0, max_snr_db: 5}}"
    plain, noisy = (load_config(str(tiny_config), ["training.speed_perturbation=0", *more]) for more in ([], [added]))
    model = fine_tuning.load_starting_model(plain, ROOT / "models/demo/quartznet_small_en.nemo")
    trainer = fine_tuning.build_trainer(plain.training, folder, [])

    def clip(config, epoch: int, split: str = "train") -> np.ndarray:
        loader, _ = data_loading.build_dataloader(model, config, trainer, split, augment=split == "train")
        return loader.dataset[epoch, 3][0].numpy()

    assert np.array_equal(clip(noisy, 0), clip(noisy, 0))
    assert not np.array_equal(clip(noisy, 0), clip(noisy, 1)), "as in every epoch"
    assert not np.array_equal(clip(noisy, 0), clip(plain, 0))
    assert np.array_equal(clip(noisy, 0, "validation"), clip(plain, 0, "validation"))

    silent = load_config(str(tiny_config), ["training.silence_s=0.5"])
    samplers = [data_loading.build_dataloader(model, of, trainer, "train", augment=True)[1] for of in (plain, silent)]
    planned = [[slot.duration_s for slot in sampler.slots] for sampler in samplers]
    assert planned[1] == [duration + 1 for duration in planned[0]], "batches by duration have room for it"
