"""The recipe of step 2 on a real small model: what learns when and how fast, what is masked, what is watched."""

import json
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
import yaml

from conftest import ROOT, Script
from finetuning.config import loading
from finetuning.errors import UserError
from small import ENGLISH, lively_model

if TYPE_CHECKING:
    import torch
    from nemo.collections.asr.models import EncDecCTCModel

    from finetuning.config.schema import Config

pytestmark = pytest.mark.nemo
CONVOLUTIONS = ".conv.weight"


@pytest.fixture
def tiny(tiny_config: Path, tiny_dataset: Path, tmp_path: Path):
    """The experiment of the tiny dataset with a few keys changed: tiny("training.max_epochs=1", …)."""

    def load(*overrides: str) -> "Config":
        fixed = [f"training.output={tmp_path}", "training.workers=0", "training.keep_best=0"]
        return loading.load_config(str(tiny_config), [*fixed, *overrides])

    return load


def start(config: "Config") -> "EncDecCTCModel":
    from finetuning.training import fine_tuning

    return fine_tuning.load_starting_model(config, ROOT / "models/demo/quartznet_small_en.nemo")


def state(model: "EncDecCTCModel") -> dict[str, "torch.Tensor"]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def trained(config: "Config") -> tuple["EncDecCTCModel", set[str]]:
    """The model after training, and the names of what is not as it was."""
    from finetuning.training import fine_tuning

    model = start(config)
    before = state(model)
    fine_tuning.fit(model, config, Path(config.training.output))
    return model, {name for name, value in model.state_dict().items() if not before[name].equal(value)}


def with_text(dataset: Path, folder: Path, **texts: str) -> None:
    """Manifests in `folder` of the same wavs, in which the first text of a split is another."""
    for split, text in texts.items():
        lines = (dataset / f"{split}_manifest.json").read_text().replace("wavs/", f"{dataset}/wavs/")
        first, *rest = lines.splitlines(keepends=True)
        changed = json.dumps(json.loads(first) | {"text": text}) + "\n"
        (folder / f"{split}_manifest.json").write_text("".join([changed, *rest]))


def of_encoder(names: set[str], kind: str = "") -> set[str]:
    return {name for name in names if name.startswith("encoder.") and kind in name}


@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_what_adapts_while_the_encoder_is_frozen(tiny, batch_norm: str):
    model, changed = trained(
        tiny("training.max_epochs=1", "training.frozen_epochs=1", f"training.batch_norm={batch_norm}")
    )
    assert not of_encoder(changed, CONVOLUTIONS)
    assert {name for name in changed if name.startswith("decoder.")}
    normalisation = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if "BatchNorm" in type(module).__name__
        for own in module.state_dict()
    }
    assert of_encoder(changed) == (normalisation if batch_norm == "train" else set())


def test_masks_fall_on_every_training_batch_and_on_no_validation_batch(tiny):
    import torch
    from nemo.collections.asr.modules import SpectrogramAugmentation

    from finetuning.training import fine_tuning

    config = tiny("training.max_epochs=2", "training.frozen_epochs=1")
    model = start(config)
    masked: list[tuple[bool, bool]] = []

    def note(module: Any, inputs: Any, output: Any) -> None:
        if isinstance(module, SpectrogramAugmentation):  # fit() makes it, of what the configuration says
            masks = module.spec_augment
            assert (masks.freq_masks, masks.freq_width, masks.time_masks, masks.time_width) == (2, 12, 2, 25)
            masked.append((model.training, bool((output == 0).all(dim=1).any() or (output == 0).all(dim=2).any())))

    with torch.nn.modules.module.register_module_forward_hook(note):
        fine_tuning.fit(model, config, Path(config.training.output))
    assert masked == [(True, True)] * model.trainer.global_step
    assert model.trainer.global_step == 2 * 6


@pytest.mark.parametrize(
    ("given", "masks"),
    [
        ("{rect_masks: 5, rect_freq: 50, rect_time: 120, freq_masks: 0, time_masks: 0}", "spec_cutout"),
        ("{rect_masks: 0, freq_masks: 1, freq_width: 7, time_masks: 1, time_width: 0.05}", "spec_augment"),
        ("{rect_masks: 0, freq_masks: 0, time_masks: 0}", ""),
    ],
)
def test_masks_are_those_of_the_configuration(tiny, given: str, masks: str):
    from torch import nn

    from finetuning.training.fine_tuning import set_regularization

    config = tiny(f"training.spec_augment={given}")
    model = start(config)
    before = model.cfg.spec_augment.copy()
    set_regularization(model, config.training)
    found = model.spec_augmentation
    assert {name for name, _ in found.named_children()} == {masks} if masks else found is None
    if masks == "spec_augment":
        assert (found.spec_augment.freq_width, found.spec_augment.time_width) == (7, 0.05)
        assert found.spec_augment.adaptive_temporal_width
    if masks == "spec_cutout":
        assert isinstance(found.spec_cutout, nn.Module) and found.spec_cutout.rect_time == 120
    assert model.cfg.spec_augment == before


def test_dropout_can_be_left_out_of_training_and_stays_in_the_exported_model(tiny, tmp_path: Path):
    import torch

    from finetuning.model.ctc_model import restore_model, save_model
    from finetuning.training import fine_tuning

    config = tiny("training.max_epochs=1", "training.frozen_epochs=0", "training.dropout=0")
    model = start(config)
    changed: list[bool] = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda _, inputs, output: changed.append(not output.equal(inputs[0])))
    fine_tuning.fit(model, config, Path(config.training.output))
    assert changed and not any(changed)
    save_model(model, tmp_path / "trained.nemo")
    restored = restore_model(tmp_path / "trained.nemo")
    assert {module.p for module in restored.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}


def test_the_learning_rate_warms_up_and_falls_as_a_cosine(tiny):
    config = tiny("training.max_epochs=4", "training.schedule.warmup_ratio=0.25")
    _, _ = trained(config)
    rows = (Path(config.training.output) / "metrics.csv").read_text().splitlines()[1:]
    rates = [float(row.split(",")[-1]) for row in rows]
    peak, lowest, steps, warm = 3e-3, 3e-5, 4 * 6, 6

    def rate(step: int) -> float:
        if step < warm:
            return peak * (step + 1) / (warm + 1)
        return lowest + (peak - lowest) * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2

    assert rates == pytest.approx([rate(6), rate(12), rate(18), rate(24)], rel=1e-3)


def test_steps_that_end_within_the_frozen_epochs_are_told(tiny, capsys: pytest.CaptureFixture[str]):
    _, changed = trained(tiny("training.max_epochs=4", "training.frozen_epochs=2", "training.max_steps=1"))
    assert not of_encoder(changed, "conv.weight")
    assert "warning: training.max_steps=1 ends the training with epoch 1, and the encoder" in capsys.readouterr().out


def test_the_encoder_learns_at_a_rate_of_its_own(tiny, tmp_path: Path):
    overrides = ("training.max_epochs=1", "training.frozen_epochs=0", "training.schedule.warmup_ratio=0")
    model, _ = trained(tiny(*overrides, "training.encoder_lr_scale=0.1"))
    groups = model.trainer.optimizers[0].param_groups
    by_rate = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    assert len(by_rate) == len(list(model.parameters()))
    assert all(by_rate[id(p)] == pytest.approx(3e-4) for p in model.encoder.parameters())
    assert all(by_rate[id(p)] == pytest.approx(3e-3) for p in model.decoder.parameters())

    still = ("training.encoder_lr_scale=0", "training.schedule.min_lr=0", f"training.output={tmp_path / 'other'}")
    _, changed = trained(tiny(*overrides, *still))
    assert not of_encoder(changed, ".weight")
    assert {name for name in changed if name.startswith("decoder.")}


@pytest.mark.parametrize(("lr", "warning"), [("10", "the training loss rises"), ("0.3", "outputs the blank")])
def test_a_recipe_that_fails_is_told_in_words_and_stays_on_record(
    tiny, capsys: pytest.CaptureFixture[str], lr: str, warning: str
):
    from finetuning.training import fine_tuning

    config = tiny(
        "training.max_epochs=3", "training.frozen_epochs=0", "training.batch_size=2", "training.gradient_clip=null",
        "training.optimizer.name=novograd", f"training.optimizer.lr={lr}", "training.optimizer.betas=[0.95,0.5]",
        "training.schedule.warmup_ratio=0.5", "training.speed_perturbation=0",
    )  # fmt: skip
    warnings = fine_tuning.fit(start(config), config, Path(config.training.output))
    assert warning in "\n".join(warnings)
    output = capsys.readouterr().out
    assert all(sentence in output for sentence in warnings)


def test_utterances_too_short_for_their_texts_are_left_out_and_counted(
    tiny, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from finetuning.training import fine_tuning

    with_text(tiny_dataset, tmp_path, train="a" * 2000, validation="ciao")
    config = tiny("training.max_epochs=1", "training.frozen_epochs=1", f"dataset.output={tmp_path}")
    fine_tuning.fit(start(config), config, tmp_path)
    output = capsys.readouterr().out
    assert "train: 1 of 28 utterances are left out" in output
    assert "validation: " not in output


def test_the_fastest_playback_counts_for_what_is_too_short(tiny, tiny_dataset: Path, tmp_path: Path):
    from finetuning.model.ctc_model import frame_duration_s
    from finetuning.training import data_loading, fine_tuning

    config = tiny(f"dataset.output={tmp_path}", "training.speed_perturbation=0.1")
    model, trainer = start(config), fine_tuning.build_trainer(config.training, tmp_path, [])
    duration_s = json.loads((tiny_dataset / "train_manifest.json").read_text().splitlines()[0])["duration"]
    frames = int(duration_s * 0.9 / frame_duration_s(model))
    for fits, text in ((True, "ab" * frames), (False, "ab" * frames + "a")):
        with_text(tiny_dataset, tmp_path, train=text[-frames - (not fits) :])
        loader, _ = data_loading.build_dataloader(model, config, trainer, "train", augment=True)
        assert len(loader.dataset) == 27 + fits


def test_speed_is_changed_as_nemo_changes_it_by_scipy():
    from nemo.collections.asr.parts.preprocessing.perturb import SpeedPerturbation
    from nemo.collections.asr.parts.preprocessing.segment import AudioSegment

    from finetuning.training.augmentation import SoxrSpeedPerturbation

    tone = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    lengths = set()
    for seed in range(20):
        changed = []
        for perturbation in (SoxrSpeedPerturbation(16000, 0.1), SpeedPerturbation(16000, "scipy", 0.9, 1.1, 5)):
            random.seed(seed)
            audio = AudioSegment(tone, 16000)
            perturbation.perturb(audio)
            changed.append(audio.samples)
        soxr, scipy = changed
        assert len(soxr) == len(scipy)
        assert np.abs(soxr - scipy)[500:-500].max() < 0.01
        lengths.add(len(soxr))
    assert lengths == {14400, 15200, 16000, 16800, 17600}


def test_a_cpu_trains_in_bfloat16_where_it_has_units_for_it(tiny):
    from finetuning.training import fine_tuning

    flags = Path("/proc/cpuinfo").read_text().split()
    assert fine_tuning.precision(tiny().training) == ("bf16-mixed" if "amx_bf16" in flags else "32-true")
    assert fine_tuning.precision(tiny("training.precision=32-true").training) == "32-true"


def test_batches_by_duration_train(tiny):
    config = tiny("training.max_epochs=1", "training.frozen_epochs=0", "training.batch_duration_s=20")
    model, changed = trained(config)
    assert of_encoder(changed, CONVOLUTIONS)
    assert model.trainer.global_step == len(model._train_dl.batch_sampler) > 1


def test_the_overfit_check_passes_and_writes_nothing(
    tiny_config: Path, tiny_dataset: Path, tmp_path: Path, run_script: Script
):
    output = tmp_path / "run"
    with_text(tiny_dataset, tmp_path, train="ciao", validation="una í e ù")
    process = run_script(
        "train.py", "--config", str(tiny_config), "--overfit", "2", f"training.output={output}",
        "training.workers=0", f"dataset.output={tmp_path}",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-2000:]
    assert "no training text contains í," in process.stdout
    assert "Overfit check passed: the transcripts of 2 utterances" in process.stdout
    assert not output.exists()


def test_the_overfit_check_names_what_cannot_be_learnt(tiny):
    from finetuning.training.overfit_check import check_overfit

    config = tiny()
    model = start(config)
    with pytest.raises(UserError, match=r"after 20 steps on 2 utterances the WER is .*Listen to these"):
        check_overfit(model, config, 2, max_steps=20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config["preprocessor"].update(sample_rate=8000), r"8,000 Hz.*16,000 Hz.*model\.base"),
        (lambda config: config["encoder"]["jasper"][6].update(stride=[2]), r"25 frames a second.*need 50"),
        (lambda config: config["preprocessor"].update(window_stride=0.02), r"25 frames a second.*need 50"),
    ],
    ids=["8 kHz", "stride 4", "windows 20 ms apart"],
)
def test_a_model_that_step_3_would_refuse_is_refused_before_training(tiny, tmp_path: Path, change: Any, words: str):
    from finetuning.model.ctc_model import save_model
    from finetuning.training import fine_tuning

    config = yaml.safe_load((ROOT / "configs/models/quartznet_small.yaml").read_text(encoding="utf-8"))
    change(config)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=words):
        fine_tuning.load_starting_model(tiny("model.base=null", f"model.architecture={tmp_path}/other.yaml"), None)
    base = lively_model(ENGLISH, tmp_path / "other.yaml")
    save_model(base, tmp_path / "other.nemo")
    with pytest.raises(UserError, match=words):
        fine_tuning.load_starting_model(tiny(), tmp_path / "other.nemo")
    fits = tiny("dataset.encoder_frames_per_second=25")
    if "frames" in words:
        assert fine_tuning.load_starting_model(fits, tmp_path / "other.nemo")


@pytest.mark.parametrize("channels", [1, 2])
def test_wavs_that_step_3_would_refuse_are_named(tiny, tiny_dataset: Path, tmp_path: Path, channels: int):
    """NeMo takes other sample rates and several channels."""
    from finetuning.training import fine_tuning

    with_text(tiny_dataset, tmp_path, train="ciao", validation="ciao")
    wav = tmp_path / "foreign.wav"
    samples, rate = soundfile.read(next((tiny_dataset / "wavs").iterdir()))
    soundfile.write(wav, samples if channels == 1 else np.stack([samples] * 2, axis=1), rate * (3 - channels))
    manifest = tmp_path / "train_manifest.json"
    first, *rest = manifest.read_text().splitlines(keepends=True)
    changed = json.loads(first) | {"audio_filepath": str(wav), "duration": len(samples) / rate / 2}
    manifest.write_text("".join([json.dumps(changed) + "\n", *rest]))
    config = tiny("training.max_epochs=1", "training.frozen_epochs=1", f"dataset.output={tmp_path}")
    with pytest.raises(UserError, match=r"foreign\.wav \(it has .* Hz and . channel\(s\), not 16000 Hz and 1\)"):
        fine_tuning.fit(start(config), config, tmp_path)
