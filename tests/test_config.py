from pathlib import Path

import pytest
from conftest import ROOT, Script, assert_refused
from finetuning.config import SplitBy
from finetuning.config_file import load
from finetuning.errors import UserError

EXPERIMENTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", EXPERIMENTS)
def test_every_shipped_experiment_loads(file: str):
    config = load(file, [])
    assert config.name == Path(file).stem


def test_the_default_is_the_published_experiment():
    config = load("configs/italian.yaml", [])
    assert (config.training.max_epochs, config.training.frozen_epochs, config.training.batch_size) == (50, 10, 32)
    assert vars(config.training.optimizer) == {
        "name": "novograd", "lr": 5e-4, "betas": [0.95, 0.5], "weight_decay": 1e-3,
    }  # fmt: skip
    assert vars(config.training.schedule) == {"warmup_ratio": 0.05, "min_lr": 1e-5}
    assert config.model.base == "stt_en_quartznet15x5"
    assert [row.wer for row in config.evaluation.published] == [0.9783, 0.1781, 0.1040]


def test_the_command_line_wins_over_the_file_and_the_file_over_what_it_extends():
    config = load("configs/demo.yaml", ["training.max_epochs=12", "dataset.split.by=clip", "evaluation.models=[a,b]"])
    assert config.training.max_epochs == 12
    assert config.dataset.split.by is SplitBy.clip
    assert config.evaluation.models == ["a", "b"]
    assert config.training.optimizer.name == "adamw"  # demo.yaml
    assert config.dataset.max_duration_s == 16.7  # italian.yaml


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.max_epoch=3", ["training.max_epoch;", "did you mean training.max_epochs?"]),
        ("max_epochs=3", ["no key max_epochs;", "training.max_epochs?"]),
        ("dataset.splitt.by=clip", ["dataset.splitt", "did you mean dataset.split"]),
        ("training.max_epochs=many", ["training.max_epochs", "'many'", "Integer"]),
        ("dataset.split.by=voice", ["dataset.split.by", "'voice'", "speaker, clip, release"]),
        ("dataset=3", ["dataset"]),
        ("evaluation.models=one", ["evaluation.models"]),
        ("dataset.split.train=0.5", ["add up to 1"]),
        ("training.frozen_epochs=99", ["training.frozen_epochs"]),
        ("training.batch_size=0", ["training.batch_size"]),
        ("dataset.min_duration_s=20", ["dataset.min_duration_s"]),
        ("text.alphabet=abc", ["text.alphabet", "space"]),
        ("training.max_epochs", ["'training.max_epochs' is not of the form"]),
        ("training.max_epochs=[", ["cannot read"]),
        ("training.name=null", ["training.name"]),
        ("training.name=a/b", ["training.name", "without a folder"]),
        ("training.lr=3", ["no key training.lr", "did you mean training.optimizer.lr?"]),
        ("text.rules=[{name: x, patern: y}]", ["patern", "did you mean text.rules[].pattern?"]),
        ("dataset.output=${HOME}", ["dataset.output", "HOME"]),
        ("dataset.output=", ["dataset.output"]),
        ("file=x", ["no key file"]),
        ("dataset.split.train=.nan", ["dataset.split.train", "finite"]),
        ("training.optimizer.lr=1e-6", ["training.schedule.min_lr", "training.optimizer.lr"]),
        ("training.workers=-1", ["training.workers"]),
        ("training.keep_best=-2", ["training.keep_best"]),
        ("training.gradient_clip=-1", ["training.gradient_clip"]),
        ("dataset.trim_silence_db=-5", ["dataset.trim_silence_db"]),
        ("dataset.shards=8", ["dataset.shards", "a folder"]),
        ("dataset.shards=datasets/./italian", ["dataset.shards", "another folder than dataset.output"]),
        ("training.accelerator=cuda", ["training.accelerator", "auto, gpu, cpu"]),
        ("training.optimizer.name=adamm", ["training.optimizer.name", "novograd, adamw"]),
        ("training.optimizer.betas=[0.9]", ["training.optimizer.betas"]),
        ("training.schedule.warmup_ratio=2", ["training.schedule.warmup_ratio"]),
    ],
)
def test_a_wrong_override_is_refused_by_name(override: str, words: list[str]):
    with pytest.raises(UserError) as refusal:
        load("configs/italian.yaml", [override])
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("extends: configs/italian.yaml\ntraining: {epochs: 3}", ["training.epochs", "training.max_epochs"]),
        ("training: [", ["is not a YAML file"]),
        ("- a list", ["does not hold an experiment"]),
        ("name: alone", ["does not state", "dataset.source"]),
        ("extends: {file}", ["extends itself"]),
        ("extends: [configs/italian.yaml]", ["extends must be the path of one"]),
        ("extends: configs/nowhere.yaml", ["configs/nowhere.yaml", "configs/italian.yaml"]),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path: Path, content: str, words: list[str]):
    file = tmp_path / "mine.yaml"
    file.write_text(content.replace("{file}", str(file)))
    with pytest.raises(UserError) as refusal:
        load(str(file), [])
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize("script", ["dataset_creation.py", "train.py", "evaluate.py"])
def test_a_typo_ends_each_script_with_one_sentence(run_script: Script, script: str):
    assert_refused(run_script(script, "training.max_epoch=3"), "training.max_epoch;", "training.max_epochs?")
