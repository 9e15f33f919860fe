"""Training and evaluation from shards are those from the wavs; NeMo's own tarred datasets read the same shards."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import Script
from finetuning.config.loading import load_config
from finetuning.data import shard_writer
from finetuning.data.manifest import SPLITS, manifest_path, read_manifest
from finetuning.errors import UserError
from finetuning.files import read_json
from small import ITALIAN, lively_model

pytestmark = pytest.mark.nemo


@pytest.fixture(scope="module")
def packed(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset in shards of a few wavs, far from the wavs."""
    folder = tmp_path_factory.mktemp("packed")
    chosen = {split: read_manifest(manifest_path(tiny_dataset, split)) for split in SPLITS}
    stamps = {u.audio_filepath: "" for utterances in chosen.values() for u in utterances}
    shard_writer.pack_dataset(tiny_dataset, chosen, stamps, read_json(tiny_dataset / "dataset.json"), folder, 500_000)
    assert len({u.shard_id for u in read_manifest(folder / "train_manifest.json")}) > 3
    return folder


def test_training_from_shards_ends_with_the_same_weights(
    tiny_run: Path, tiny_config: Path, packed: Path, tmp_path: Path, run_script: Script
) -> None:
    import torch

    trained = run_script(
        "train.py", "--config", str(tiny_config), f"dataset.shards={packed}",
        f"dataset.output={tmp_path / 'none'}", f"training.output={tmp_path / 'run'}",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-2000:]
    one, other = (
        torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=False)["state_dict"]
        for run in (tmp_path / "run", tiny_run)
    )
    assert one.keys() == other.keys() and one
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (tiny_run / "metrics.csv").read_bytes()


def test_step_3_hears_the_same(packed: Path, tiny_dataset: Path) -> None:
    from finetuning.decoding.inference import predict

    model = lively_model(ITALIAN)
    results = []
    for folder in (tiny_dataset, packed):
        utterances = read_manifest(folder / "test_manifest.json")
        predicted = predict(model, None, utterances, folder, 4)
        results.append([(number, replace(one, audio_filepath="")) for number, one in predicted])
    assert results[0] == results[1] and len(results[0]) == len(utterances)


def test_nemos_tarred_dataset_reads_the_shards(packed: Path, tiny_dataset: Path) -> None:
    """The one with webdataset, its usual notation for the tars; each sample is that of the wav."""
    from nemo.collections.asr.data.audio_to_text import AudioToCharDataset, TarredAudioToCharDataset

    how: dict[str, Any] = {"labels": list(ITALIAN), "sample_rate": 16000, "normalize": False, "parser": "base"}
    for split in SPLITS:
        utterances = read_manifest(manifest_path(packed, split))
        numbers = [u.shard_id for u in utterances]
        tars = f"{packed}/audio__OP_{min(numbers)}..{max(numbers)}_CL_.tar"
        tarred = TarredAudioToCharDataset(tars, str(manifest_path(packed, split)), **how, return_sample_id=True)
        loose = AudioToCharDataset(str(manifest_path(tiny_dataset, split)), **how)
        assert len(tarred) == len(loose)
        samples = {sample[-1]: sample[:-1] for sample in tarred}
        assert samples.keys() == set(range(len(loose)))
        for index, sample in samples.items():
            assert all(one.equal(other) for one, other in zip(sample, loose[index], strict=True))


def test_nemos_lhotse_dataset_reads_the_shards(packed: Path, tiny_dataset: Path) -> None:
    """What NeMo recommends instead of the one with webdataset."""
    import soundfile
    from nemo.collections.common.data.lhotse.nemo_adapters import LazyNeMoTarredIterator

    utterances = read_manifest(packed / "train_manifest.json")
    tars = f"{packed}/audio_{{0..{max(u.shard_id for u in utterances)}}}.tar"
    cuts = {cut.recording_id: cut for cut in LazyNeMoTarredIterator(str(packed / "train_manifest.json"), tars)}
    assert len(cuts) == len(utterances)
    for utterance in utterances:
        cut = cuts[utterance.audio_filepath]
        expected, _ = soundfile.read(tiny_dataset / "wavs" / utterance.audio_filepath, dtype="float32")
        assert cut.supervisions[0].text == utterance.text
        assert (cut.load_audio()[0] == expected).all()


def test_a_shard_that_changes_while_it_is_read_is_named(packed: Path, tmp_path: Path) -> None:
    import lightning.pytorch as pl

    from finetuning.training import data_loading

    copy = shutil.copytree(packed, tmp_path / "packed")
    config = load_config("configs/demo.yaml", [f"dataset.shards={copy}"])
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    loader, _ = data_loading.build_dataloader(lively_model(ITALIAN), config, trainer, "test")
    utterances = read_manifest(copy / "test_manifest.json")
    samples, length, *_ = loader.dataset[0, 0]
    assert length == len(samples) == round(utterances[0].duration * 16000)
    with (copy / f"audio_{utterances[0].shard_id}.tar").open("r+b") as tar:
        tar.seek(utterances[0].shard_offset)
        tar.write(bytes(200))
    with pytest.raises(UserError, match=f"audio_{utterances[0].shard_id}.tar does not hold"):
        loader.dataset[0, 0]
