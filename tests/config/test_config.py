import sys
import time
from collections.abc import Iterator
from dataclasses import MISSING as MISSING_FACTORY
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT, Script, assert_refused
from finetuning.config.loading import from_command_line, load_config
from finetuning.config.schema import MISSING, Config, Dataset, SplitBy, Training, free_keys
from finetuning.errors import UserError

EXPERIMENTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", EXPERIMENTS)
def test_every_shipped_experiment_loads(file: str):
    config = load_config(file, [])
    assert config.name == Path(file).stem


def test_the_default_is_the_published_experiment():
    config = load_config("configs/italian.yaml", [])
    assert (config.training.max_epochs, config.training.frozen_epochs, config.training.batch_size) == (50, 10, 32)
    assert vars(config.training.optimizer) == {
        "name": "novograd", "lr": 5e-4, "betas": [0.95, 0.5], "weight_decay": 1e-3,
    }  # fmt: skip
    assert vars(config.training.schedule) == {"warmup_ratio": 0.05, "min_lr": 1e-5}
    assert config.model.base == "stt_en_quartznet15x5"
    assert [row.wer for row in config.evaluation.published] == [0.9783, 0.1781, 0.1040]


def test_the_command_line_wins_over_the_file_and_the_file_over_what_it_extends():
    config = load_config(
        "configs/demo.yaml", ["training.max_epochs=12", "dataset.split.by=clip", "evaluation.models=[a,b]"]
    )
    assert config.training.max_epochs == 12
    assert config.dataset.split.by is SplitBy.clip
    assert config.evaluation.models == ["a", "b"]
    assert config.training.optimizer.name == "adamw"  # demo.yaml
    assert config.dataset.max_duration_s == 16.7  # italian.yaml


def test_a_copy_of_a_configuration_has_folders_of_its_own(tmp_path: Path):
    (tmp_path / "catalan.yaml").write_text((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    (tmp_path / "calls.yaml").write_text(f"extends: {tmp_path}/catalan.yaml\n")
    (tmp_path / "named.yaml").write_text(f"extends: {tmp_path}/catalan.yaml\nname: calls\n")
    for file, name in (("catalan", "catalan"), ("calls", "calls"), ("named", "calls")):
        config = load_config(f"{tmp_path}/{file}.yaml", [])
        assert config.name == name
        assert config.dataset.output == f"datasets/{name}"
        assert (config.training.output, config.evaluation.results) == (f"runs/{name}", f"results/{name}")
        assert config.language_model.output == f"runs/{name}/language_model"
        assert config.evaluation.predictions == f"runs/{name}/predictions"
        assert config.evaluation.models[-1] == f"runs/{name}/Model-IT-finetuned.nemo"
    (tmp_path / "child.yaml").write_text(f"extends: {tmp_path}/named.yaml\n")
    assert load_config(f"{tmp_path}/child.yaml", []).name == "child"  # and not what its parent is called
    assert load_config(f"{tmp_path}/child.yaml", ["name=other"]).dataset.output == "datasets/other"


def test_the_own_row_follows_where_training_writes():
    config = load_config("configs/demo.yaml", ["training.output=/data/run", "training.name=Mine"])
    assert config.evaluation.models == ["models/demo/quartznet_small_en.nemo", "/data/run/Mine.nemo"]
    assert config.evaluation.predictions == "runs/demo/predictions"


def test_every_value_of_an_experiment_is_stated_once_in_a_configuration():
    """A default of the schema is null, empty or off, but for the folder of downloads."""
    assert {name: value for name, value in defaults(Config) if value and value != MISSING} == {"model.folder": "models"}


def defaults(section: type, prefix: str = "") -> Iterator[tuple[str, object]]:
    for each in fields(section):
        value = each.default if each.default_factory is MISSING_FACTORY else each.default_factory()
        if is_dataclass(value):
            yield from defaults(type(value), f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, value


def test_what_may_change_while_a_step_resumes():
    assert free_keys(Dataset) == {"source", "output", "download", "archive", "workers", "drop", "shards"}
    assert free_keys(Training) == {
        "output", "name", "workers", "accelerator", "precision", "checkpoint_minutes", "logger",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.max_epoch=3", ["training.max_epoch;", "did you mean training.max_epochs?"]),
        ("max_epochs=3", ["no key max_epochs;", "training.max_epochs?"]),
        ("dataset.splitt.by=clip", ["dataset.splitt", "did you mean dataset.split"]),
        (
            "training.max_epochs=many",
            ["training.max_epochs: 'many' is not a whole number, as in training.max_epochs=5"],
        ),
        ("dataset.split.by=voice", ["dataset.split.by", "'voice'", "speaker, clip, release"]),
        ("dataset=3", ["dataset: 3 is no section, as in dataset: {source: …}"]),
        ("dataset=null", ["dataset is empty"]),
        ("training=[1]", ["training: [1] is no section"]),
        ("training.max_epochs=", ["training.max_epochs: null (nothing) is not a whole number"]),
        ("training.max_epochs=5.0", ["training.max_epochs: 5.0 is not a whole number"]),
        ("training.max_epochs='5'", ["training.max_epochs: '5' is not a whole number", "without quotes"]),
        ("training.max_epochs=true", ["training.max_epochs: true is not a whole number"]),
        ("training.max_epochs=[1]", ["training.max_epochs: [1] is not a whole number"]),
        ("training.max_epochs=1e400", ["training.max_epochs: inf is not a whole number"]),
        ("training.max_epochs=" + "9" * 30, ["training.max_epochs", "30 digits is too large"]),
        ("training.max_epochs=" + "9" * 5000, ["training.max_epochs", "a number of 5,000 digits"]),
        ("training.max_epochs=010", ["010 would be read as a number to the base of 8"]),
        ("training.checkpoint_minutes=1:30", ["1:30 would be read as a number to the base of 60"]),
        ("training.max_epochs={a: 1, a: 2}", ["the key a is there twice"]),
        ("training.max_epochs={[a]: 1}", ["a list or a mapping stands where a key belongs"]),
        ("training.max_epochs=@5", ["a value cannot begin with @; write it in quotes"]),
        ("training.max_epochs=\t5", ["holds a tab"]),
        ("training.max_epochs=\x07", ["a character that is not allowed"]),
        ("training.max_epochs=!!int 5", ["tags (tag:yaml.org,2002:int) are not taken"]),
        ("training.max_epochs=&a 5", ["anchors (&a, *a) are not taken"]),
        ("training.max_epochs=" + "[" * 5000, ["more than 20 deep"]),
        ("training.max_epochs=" + "5" * 300_000, ["longer than 200,000 bytes"]),
        ("training.seed=-1", ["training.seed", "at least 0 and at most 4294967295"]),
        ("dataset.workers=99999999", ["dataset.workers=99999999 must be at least 0 and at most 1024"]),
        ("training.deterministic=maybe", ["'maybe' is not true or false, as in training.deterministic=true"]),
        ("training.optimizer.lr=fast", ["training.optimizer.lr: 'fast' is not a number, as in"]),
        ("training.optimizer.lr=1e999", ["training.optimizer.lr", "finite"]),
        ("training.optimizer.betas=[a, b]", ["training.optimizer.betas[0]: 'a' is not a number, such as 0.5"]),
        ("dataset.split.by=1", ["dataset.split.by: 1 is not one of speaker, clip, release"]),
        ("dataset.split.by=[clip]", ["dataset.split.by: ['clip'] is not one of"]),
        ("evaluation.models=one", ["evaluation.models: 'one' is not a list, as in evaluation.models=[one]"]),
        ("evaluation.models=null", ["evaluation.models: null (nothing) is not a list"]),
        ("evaluation.models=[[a]]", ["evaluation.models[0]: ['a'] is not a text"]),
        ("evaluation.topics=[a]", ["is not a mapping, as in evaluation.topics={name: [word, word]}"]),
        ("evaluation.topics={a: [no]}", ["evaluation.topics.a[0]: false is not a text; write it in quotes (yes, no"]),
        ("evaluation.topics={no: [a]}", ["evaluation.topics, as a name: false is not a text"]),
        (
            "dataset={channel: mix, sources: [{name: a, source: b.csv}]}",
            ["dataset.channel means nothing beside dataset.sources; write it into each source"],
        ),
        ("text.rules[0].name=x", ["a list is replaced as a whole; type text.rules=[…]"]),
        ("training..max_epochs=5", ["there is no key training.;"]),
        ("=5", ["'=5' is not of the form"]),
        ("configs/demo.yaml", ["named with --config configs/demo.yaml"]),
        ("config=configs/demo.yaml", ["named with dashes: --config configs/demo.yaml"]),
        ("training.max_epochs: 5", ["type training.max_epochs=5"]),
        ("training.name=???", ["training.name: ??? stands for a value that is still to be written"]),
        ("dataset.output=datasets/${oc.env:HOME}", ["dataset.output: 'datasets/${oc.env:HOME}' holds ${, which"]),
        ("dataset.output=datasets/${training.seed}", ["holds ${, which stands for nothing here but in ${name}"]),
        ("dataset.output=" + "${training.output}" * 4, ["holds ${, which"]),
        ("training.output=${training.output}/a", ["training.output: refers to itself; write it out"]),
        ("training.name=${training.name}", ["training.name: refers to itself"]),
        ("training.max_epochs=${name}", ["training.max_epochs: '${name}' is not a whole number"]),
        ("name=a/b", ["name must be the name of a file, without a folder"]),
        ('training.name="a\\0"', ["training.name: U+0000 is not a character"]),
        ("training.name=a\nb", ["training.name"]),
        ("dataset.output=caf\udce9", ["is not UTF-8"]),
        ("model.registry.m=https://user:s3cret@host/m", ["model.registry.m: 'https://…@host/m' is no section"]),
        ("model.registry.m={url: 'https://user:s3cret@host/m'}", ["model.registry.m", "a user name or a password"]),
        ("model.registry.m={url: 'https://s3cret@host/m'}", ["model.registry.m", "a user name or a password"]),
        ("model.registry.m={url: 'http://host:80@s3cret/m'}", ["model.registry.m", "a user name or a password"]),
        ("model.registry.m={url: 'https://h/m?s3cret', size: 3}", ["did you mean model.registry.NAME.size_bytes?"]),
        ("model.registry.m={url: 'file:///etc/passwd'}", ["model.registry.m", "begins with https:// or http://"]),
        ("model.registry.m={url: 'https://[::1/m'}", ["model.registry.m", "begins with https:// or http://"]),
        ("model.registry.m={url: 'https://h/m', sha256: abc}", ["model.registry.m.sha256 must be 64 hexadecimal"]),
        (
            "model.registry.m={url: 'https://h/m', size_bytes: 0}",
            ["model.registry.m.size_bytes=0 must be above 0"],
        ),
        ("model.registry={../m: {url: 'https://h/m'}}", ["model.registry.../m: the name becomes the name of a file"]),
        ("model.registry.m.size_bytes=5", ["does not state model.registry.m.url"]),
        ("dataset.split.train=0.5", ["add up to 1"]),
        ("training.frozen_epochs=99", ["training.frozen_epochs"]),
        ("training.batch_size=0", ["training.batch_size=0 must be at least 1"]),
        ("dataset.min_duration_s=20", ["dataset.min_duration_s"]),
        ("text.alphabet=abc", ["text.alphabet", "space"]),
        ("training.max_epochs", ["'training.max_epochs' is not of the form"]),
        ("training.max_epochs=[", ["training.max_epochs cannot be read as YAML", "brackets that are not closed"]),
        ("training.name=null", ["training.name"]),
        ("training.name=a/b", ["training.name", "without a folder"]),
        ("training.lr=3", ["no key training.lr", "did you mean training.optimizer.lr?"]),
        ("text.rules=[{name: x, patern: y}]", ["patern", "did you mean text.rules[].pattern?"]),
        ("dataset.output=${oc.env:HOME}", ["dataset.output: '${oc.env:HOME}' holds ${", "write the value out"]),
        ('dataset.output="\\x24{oc.env:HOME}"', ["dataset.output: '${oc.env:HOME}' holds ${"]),
        ("evaluation.models=['${x}']", ["evaluation.models[0]: '${x}' holds ${"]),
        ("evaluation.topics={'${oc.env:HOME}': [a]}", ["evaluation.topics, as a name", "holds ${"]),
        ("training.${x}=5", ["there is no key training.${x}"]),
        ("training.max_epochs=${dataset.split.seed}", ["is not a whole number"]),
        ("dataset.output=", ["dataset.output"]),
        ("file=x", ["no key file"]),
        ("dataset.split.train=.nan", ["dataset.split.train", "finite"]),
        ("training.optimizer.lr=1e-6", ["training.schedule.min_lr", "training.optimizer.lr"]),
        ("training.encoder_lr_scale=0.01", ["training.schedule.min_lr", "training.encoder_lr_scale=0.01"]),
        ("training.workers=-1", ["training.workers"]),
        ("training.keep_best=-2", ["training.keep_best"]),
        ("training.gradient_clip=-1", ["training.gradient_clip=-1.0 must be above 0, or null"]),
        ("training.dropout=1", ["training.dropout=1.0 must be at least 0 and below 1, or null"]),
        ("dataset.trim_silence_db=-5", ["dataset.trim_silence_db"]),
        ("dataset.shards=8", ["dataset.shards", "a folder"]),
        ("dataset.shards=datasets/./italian", ["dataset.shards", "another folder than dataset.output"]),
        ("training.accelerator=cuda", ["training.accelerator", "auto, gpu, cpu"]),
        ("training.optimizer.name=adamm", ["training.optimizer.name", "novograd, adamw"]),
        ("training.optimizer.betas=[0.9]", ["training.optimizer.betas"]),
        ("training.schedule.warmup_ratio=2", ["training.schedule.warmup_ratio=2.0 must be at least 0 and below 1"]),
        ("training.optimizer.betas=[0.9,1]", ["training.optimizer.betas[1]=1.0 must be at least 0 and below 1"]),
        ("training.decoder_init=zero", ["training.decoder_init: 'zero' is not one of random, warm"]),
        ("training.precision=16", ["training.precision: 16 is not one of auto, 32-true, 16-mixed, bf16-mixed"]),
        ("evaluation.decoder=no", ["evaluation.decoder: false is not one of greedy, lm"]),
        ("language_model.order=7", ["language_model.order=7 must be at least 2 and at most 6"]),
        ("language_model.sources=[]", ["language_model.sources: the weights must add up to 1"]),
    ],
)
@pytest.mark.slow
def test_a_wrong_override_is_refused_by_name(override: str, words: list[str]):
    with pytest.raises(UserError) as refusal:
        load_config("configs/italian.yaml", [override])
    message = str(refusal.value)
    for word in words:
        assert word in message
    assert "s3cret" not in message
    assert "\n" not in message.partition("training.name must")[0]
    assert len(message) < 400


def test_a_text_is_taken_as_it_is_typed():
    """YAML would make false of no, 8 of 010 and nothing of what stands behind #."""
    typed = ["training.name=no", "evaluation.note=010", "dataset.output=runs/a #1", "model.base=null", "name='a: b'"]
    config = load_config("configs/demo.yaml", [*typed, "evaluation.published_on=2026-01-01"])
    assert (config.training.name, config.evaluation.note, config.dataset.output) == ("no", "010", "runs/a #1")
    assert (config.model.base, config.name, config.evaluation.published_on) == (None, "a: b", "2026-01-01")


def test_addresses_are_stored_without_what_may_be_a_token():
    config = load_config("configs/demo.yaml", ["model.registry.m={url: 'https://host/m.nemo?token=s3cret#x'}"])
    assert config.model.registry["m"].url.endswith("?token=s3cret#x")
    assert config.as_dict()["model"]["registry"]["m"] == {
        "url": "https://host/m.nemo", "size_bytes": None, "sha256": None,
    }  # fmt: skip


LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\n" + "".join(f"c{i}: [*b, *b]\n" for i in range(9))
WRONG_FILES = [
    ("extends: configs/italian.yaml\ntraining: {epochs: 3}", ["training.epochs", "training.max_epochs"]),
    ("training: [", ["{file} cannot be read as YAML: line 1"]),
    ("- a list", ["does not hold an experiment"]),
    ("", ["does not hold an experiment"]),
    ("name: alone", ["does not state", "dataset.source"]),
    ("extends: {file}", ["extends itself"]),
    ("extends: {folder}/./mine.yaml", ["extends itself"]),
    ("extends: {folder}", ["{file}: extends: {folder} is a folder"]),
    ("extends: [configs/italian.yaml]", ["extends must be the path of one"]),
    (
        "extends: configs/nowhere.yaml",
        ["{file}: extends: there is no configuration configs/nowhere.yaml", "italian.yaml"],
    ),
    ("training:\n  lr: 1\n  lr: 2", ["{file} cannot be read as YAML: line 3: the key lr is there twice"]),
    ("training:\n\tlr: 1", ["line 2 holds a tab; YAML is indented with spaces"]),
    ("training:\n  seed: 1\n seed: 2", ["line 3", "indentation"]),
    ("name: caf\udce9", ["is not UTF-8 at byte 9; save it as UTF-8"]),
    ("name: a\0b", ["a character that is not allowed at position 7"]),
    ("name: a\n---\nname: b", ["a second document begins"]),
    ("training:", ["{file}: training is empty; write its keys below it"]),
    ("name: 2026", ["{file}: name: 2026 is not a text; write it in quotes"]),
    ("name: yes", ["{file}: name: true is not a text; write it in quotes (yes, no"]),
    ('name: "\\uD800"', ["{file}"]),
    ("? [a]\n: b", ["a list or a mapping stands where a key belongs"]),
    ("1: x", ["there is no key 1"]),
    (LAUGHS, ["{file}, line 1: anchors (&a, *a) are not taken"]),
    ("name: &a [*a]", ["{file}, line 1: anchors"]),
    ("name: " + "[" * 100_000, ["lists and mappings in each other, more than 20 deep"]),
    ("name: " + "{a: " * 40_000, ["lists and mappings in each other, more than 20 deep"]),
    ("name: " + "1:1" * 50_000, ["a number of 150,000 digits"]),
    ("x: y\n" * 100_000, ["longer than 200,000 bytes"]),
    ("name: !!python/object/apply:os.system [id]", ["tags (tag:yaml.org,2002:python/object/apply:os.system) are not"]),
    ("name: !!binary aGFsbG8=", ["tags"]),
    ("training: {name: '${oc.env:HOME}'}", ["{file}: training.name: '${oc.env:HOME}' holds ${"]),
    ("text: {rules: [{name: a, pattern: '[${]'}]}", ["text.rules[0].pattern: '[${]' holds ${", "[$][{]"]),
]


@pytest.mark.parametrize(("content", "words"), WRONG_FILES, ids=[words[0][:40] for _, words in WRONG_FILES])
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path: Path, content: str, words: list[str]):
    file = tmp_path / "mine.yaml"
    content = content.replace("{file}", str(file)).replace("{folder}", str(tmp_path))
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    started = time.process_time()
    with pytest.raises(UserError) as refusal:
        load_config(str(file), [])
    assert time.process_time() - started < 2
    for word in words:
        assert word.replace("{file}", str(file)).replace("{folder}", str(tmp_path)) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_none(tmp_path: Path):
    for file, words in {
        "configs": "configs is a folder; name a .yaml file in it",
        "": "the configuration is a folder",
        "/dev/zero": "is longer than 200,000 bytes",
        "a" * 300: "cannot read aaa.* name too long",
        "configs/italian.yaml/x": "cannot read configs/italian.yaml/x .Not a directory",
        str(ROOT / "models" / "demo" / "quartznet_small_en.nemo"): "is not UTF-8|character that is not allowed|longer",
    }.items():
        with pytest.raises(UserError, match=words):
            load_config(file, [])
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for parent, words in {tmp_path / "loop.yaml": "cannot read .*symbolic links", "b" * 300: "name too long"}.items():
        (tmp_path / "child.yaml").write_text(f"extends: {parent}")
        with pytest.raises(UserError, match=f"child.yaml: extends: .*{words}"):
            load_config(str(tmp_path / "child.yaml"), [])
    chain = [tmp_path / f"{number}.yaml" for number in range(30)]
    for file, parent in pairwise(chain):
        file.write_text(f"extends: {parent}")
    with pytest.raises(UserError, match="extends more than 10 configurations"):
        load_config(str(chain[0]), [])


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_a_damaged_file_is_a_sentence_or_an_experiment(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    content = bytearray((ROOT / "configs" / "demo.yaml").read_bytes())
    pieces = [
        b"\t",
        b"${x}",
        b"&a ",
        b"*a",
        b"!!set ",
        b"null",
        b": ",
        b"[",
        b"}",
        b'"',
        b"\xff",
        b"\0",
        b"? ",
        b"<<: ",
        b"|\n",
    ]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 9))] = data.draw(
            st.one_of(st.sampled_from(pieces), st.binary(max_size=3))
        )
    file = tmp_path_factory.getbasetemp() / "damaged.yaml"
    file.write_bytes(content)
    try:
        load_config(str(file), [])
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--training.max_epochs=5"], ["typed without dashes: training.max_epochs=5"]),
        (["--config", "configs/demo.yaml", "-training.max_epochs=5"], ["typed without dashes: training.max_epochs=5"]),
        (["--nothing"], ["there is no option --nothing; --help"]),
        (["--config"], ["--config needs a value"]),
        (["--config", "configs/demo.yaml", "--config=configs/italian.yaml"], ["--config is given twice", "keep one"]),
        (["--help=x"], ["--help"]),
        (["training.max_epochs", "5"], ["type training.max_epochs=5, without spaces"]),
        (["training.max_epochs", "=5"], ["type training.max_epochs=5, without spaces"]),
    ],
)
def test_what_argparse_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]):
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(UserError) as refusal:
        from_command_line("")
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("script", ["dataset_creation.py", "train.py", "evaluate.py"])
def test_a_typo_ends_each_script_with_one_sentence(run_script: Script, script: str):
    assert_refused(run_script(script, "training.max_epoch=3"), "training.max_epoch;", "training.max_epochs?")
