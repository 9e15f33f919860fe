"""A small NeMo model and a few of the sample's clips, for the tests that run a real model."""

import json
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import soxr
import yaml

from conftest import ROOT
from finetuning.model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecCTCModel

ARCHITECTURE = ROOT / "configs" / "models" / "quartznet_small.yaml"
ENGLISH = " abcdefghijklmnopqrstuvwxyz'"
ITALIAN = ENGLISH + "àèéìíîòóùú"
Change = Callable[[bytes], bytes | None]


def lively_model(alphabet: str, architecture: Path = ARCHITECTURE, seed: int = 0) -> "EncDecCTCModel":
    """An untrained model whose BatchNorm statistics are those of noise, and which writes more than one letter."""
    import torch

    from finetuning.model.ctc_model import build_model

    torch.set_num_threads(1)  # small matrices: a second thread costs more than it does
    model = build_model(architecture, Vocabulary.of_characters(alphabet), seed)
    rng = torch.Generator().manual_seed(seed)
    noise = {"audio_signal": torch.randn(4, 64, 100, generator=rng), "length": torch.full((4,), 100)}
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = 1.0
            module.bias.data.normal_(0, 0.3, generator=rng)  # so that what padding becomes is not 0
    with torch.no_grad():
        model.encoder.train()(**noise)
        encoded = model.encoder.eval()(**noise)[0]  # (B, C, T)
        decoder = model.decoder.decoder_layers[0]
        decoder.weight *= 10
        decoder.bias.copy_(-decoder.weight[:, :, 0] @ encoded.mean(dim=(0, 2)))
    return model


def rewritten(saved: Path, path: Path, changes: dict[str, Change]) -> Path:
    """A copy of a .nemo file with some members changed, or left out where the change gives None."""
    with tarfile.open(saved) as old, tarfile.open(path, "w") as new:
        for member in old:
            content = old.extractfile(member).read() if member.isfile() else b""
            content = changes.get(Path(member.name).name, bytes)(content)
            if content is not None:
                member.size = len(content)
                new.addfile(member, BytesIO(content))
    return path


def config_changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Change]:
    def edited(content: bytes) -> bytes:
        config = yaml.safe_load(content)
        change(config)
        return yaml.safe_dump(config).encode()

    return {"model_config.yaml": edited}


def as_published(config: dict[str, Any], is_tarred: bool = True) -> None:
    """As the published base model's: keys of NeMo 1.0, its trainers' paths and what they left open, no decoding."""
    for key in ("decoding", "nemo_version", "labels"):
        config.pop(key, None)
    config["preprocessor"]["stft_conv"] = False
    config["spec_augment"] = {"_target_": "nemo.collections.asr.modules.SpectrogramAugmentation"}
    config["spec_augment"] |= {"rect_freq": 50, "rect_masks": 5, "rect_time": 120}
    data = {"labels": list(ENGLISH), "sample_rate": 16000, "batch_size": 32, "trim_silence": True, "max_duration": 16.7}
    tars = {
        "is_tarred": is_tarred,
        "tarred_audio_filepaths": "/asr_set_1.2/train/audio_{0..1023}.tar" * is_tarred or None,
    }
    tars |= {"shuffle_n": 2048} if is_tarred else {}
    config["train_ds"] = {"manifest_filepath": "/asr_set_1.2/train/train_{0..1023}.json", **data, **tars}
    config["validation_ds"] = {"manifest_filepath": "/asr_set_1.2/dev.json", **data, "shuffle": False}
    config["test_ds"] = {"manifest_filepath": "???", **data}
    schedule = {"name": "CosineAnnealing", "monitor": "val_loss", "reduce_on_plateau": False, "warmup_ratio": 0.02}
    config["optim"] = {"name": "novograd", "lr": 0.05, "betas": [0.95, 0.5], "sched": schedule}
    config["target"] = "nemo.collections.asr.models.ctc_models.EncDecCTCModel"


def write_clips(archive: Path, folder: Path, count: int) -> Path:
    """Decode clips of a release, cut to 0.8 s, 1.0 s, 1.2 s … with as much of the text; gives their manifest."""
    (folder / "wavs").mkdir(parents=True)
    lines = []
    with tarfile.open(archive) as release:
        members = {Path(member.name).name: member for member in release if member.isfile()}
        rows = release.extractfile(members["test.tsv"]).read().decode().splitlines()
        names = rows[0].split("\t")
        for number, row in enumerate(rows[1 : count + 1]):
            fields = dict(zip(names, row.split("\t"), strict=True))
            mp3 = BytesIO(release.extractfile(members[fields["path"]]).read())
            samples, rate = soundfile.read(mp3, dtype="float32")
            whole = soxr.resample(samples, rate, 16000).astype(np.float32)
            samples = whole[: int(16000 * (0.8 + 0.2 * number))]
            wav = f"wavs/{Path(fields['path']).stem}.wav"
            soundfile.write(folder / wav, samples, 16000)
            characters = [c for c in fields["sentence"].lower().replace("’", "'") if c in ITALIAN]
            text = "".join(characters[: len(characters) * len(samples) // len(whole)]).strip()
            lines.append({"audio_filepath": wav, "duration": len(samples) / 16000, "text": text})
    manifest = folder / "test_manifest.json"
    manifest.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return manifest
