"""Real small NeMo models: built, saved, restored from files of every age, refused when they are not models."""

import gzip
import io
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import ROOT
from finetuning.errors import UserError
from finetuning.model.vocabulary import Vocabulary
from releases import SAMPLE
from small import (
    ARCHITECTURE,
    ENGLISH,
    ITALIAN,
    Change,
    as_published,
    config_changed,
    lively_model,
    rewritten,
    write_clips,
)  # fmt: skip

pytestmark = pytest.mark.nemo


@pytest.fixture(scope="module")
def model() -> Any:
    return lively_model(ENGLISH)


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from finetuning.model.ctc_model import save_model

    path = tmp_path_factory.mktemp("saved") / "small.nemo"
    save_model(model, path)
    return path


def sound() -> dict[str, Any]:
    import torch

    wave = torch.randn(3, 24000, generator=torch.Generator().manual_seed(0)) / 10
    return {"input_signal": wave, "input_signal_length": torch.tensor([24000, 17777, 9000])}


def encoded(model: Any) -> Any:
    """What the encoder makes of the sound, (B, C, T)."""
    features, lengths = model.preprocessor(**{"length" if k.endswith("length") else k: v for k, v in sound().items()})
    return model.eval().encoder(audio_signal=features, length=lengths)[0]


def outputs(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(**sound())[0]  # (B, T, V + 1)


def without_the_key_3_0_0_wants(config: dict[str, Any]) -> None:
    for search in ("greedy", "beam"):
        del config["decoding"][search]["boosting_tree"]["key_phrase_items_list"]


def with_references(config: dict[str, Any]) -> None:
    """As a configuration that somebody trained from, with its own `model` section."""
    network = config.copy()
    config.clear()
    network |= {"dropout": 0.1, "labels": list(ENGLISH)}
    network["decoder"]["vocabulary"] = "${model.labels}"
    network["encoder"]["jasper"][0]["dropout"] = "${dropout}"
    config |= {"model": network, "trainer": {"devices": "${oc.env:HOME}"}}


def as_nemo_wrote_it_before_1_0(config: dict[str, Any]) -> None:
    as_published(config)
    for section in ("preprocessor", "spec_augment", "encoder", "decoder"):
        params = config[section]
        config[section] = {"cls": params.pop("_target_"), "params": params}


def test_the_same_seed_builds_the_same_model() -> None:
    import torch

    from finetuning.model.ctc_model import build_model, get_vocabulary

    state = torch.random.get_rng_state()
    one, same, other = (
        build_model(ARCHITECTURE, Vocabulary.of_characters(ITALIAN), seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(state, torch.random.get_rng_state()), "nothing else's randomness is touched"
    assert list(get_vocabulary(build_model(ARCHITECTURE, Vocabulary.of_characters(ITALIAN)))) == list(ITALIAN)


def test_stock_nemo_restores_what_is_saved(model: Any, saved: Path) -> None:
    import torch
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf import OmegaConf, open_dict

    from finetuning.model.ctc_model import save_model

    with open_dict(model.cfg):
        model.cfg.train_ds = OmegaConf.create({"manifest_filepath": "/home/somebody/train.json"})
        model.cfg.optim = OmegaConf.create({"name": "novograd"})
    save_model(model, saved)
    assert "train_ds" in model.cfg, "the model itself is left as it was"
    stock = EncDecCTCModel.restore_from(str(saved), map_location="cpu")
    assert torch.equal(outputs(stock), outputs(model))
    assert not {"train_ds", "validation_ds", "test_ds", "optim"} & set(stock.cfg)
    assert b"somebody" not in saved.read_bytes()
    assert [path.name for path in saved.parent.iterdir()] == ["small.nemo"]


@pytest.mark.parametrize(
    "change",
    [
        config_changed(lambda config: config.pop("decoding")),  # as NeMo 1.0.0rc1
        config_changed(lambda config: config.update(decoding=None)),
        config_changed(without_the_key_3_0_0_wants),  # as NeMo 2.5 and 2.6
        config_changed(lambda config: config.pop("target")),
        config_changed(as_published),
        config_changed(lambda config: as_published(config, is_tarred=False)),
        config_changed(as_nemo_wrote_it_before_1_0),
        config_changed(with_references),
        config_changed(lambda config: config.update(train_ds={"manifest_filepath": "${oc.env:HOME}"})),
        config_changed(lambda config: config.update(decoding={"strategy": "beam", "beam": {"kenlm_path": "/x"}})),
    ],
    ids=[
        "no decoding",
        "empty decoding",
        "decoding of 2.5",
        "no target",
        "1.0",
        "1.0, not tarred",
        "before 1.0",
        "references",
        "an environment variable for data",
        "somebody's language model",
    ],
)
def test_files_of_other_nemo_versions(model: Any, saved: Path, tmp_path: Path, change: dict[str, Change]) -> None:
    import torch

    from finetuning.model.ctc_model import restore_model

    restored = restore_model(rewritten(saved, tmp_path / "old.nemo", change))
    assert torch.equal(outputs(restored), outputs(model))
    assert not restored.training
    assert not {"train_ds", "validation_ds", "test_ds", "optim"} & set(restored.cfg)
    twin = type(restored)(cfg=restored.cfg)  # as for the export: NeMo would open the data of the configuration
    twin.load_state_dict(restored.state_dict())
    assert torch.equal(outputs(twin.eval()), outputs(model))


def test_stock_nemo_refuses_the_decoding_section_of_2_5(saved: Path, tmp_path: Path) -> None:
    """Why restore() merges it over the defaults; when this fails, NeMo does it itself."""
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf.errors import ConfigAttributeError

    old = rewritten(saved, tmp_path / "old.nemo", config_changed(without_the_key_3_0_0_wants))
    with pytest.raises((TypeError, ConfigAttributeError), match=r"abstract class|key_phrase_items_list"):
        EncDecCTCModel.restore_from(str(old), map_location="cpu")


def test_the_oldest_files_are_compressed(model: Any, saved: Path, tmp_path: Path) -> None:
    import torch

    from finetuning.model.ctc_model import restore_model

    old = tmp_path / "old.nemo"
    old.write_bytes(gzip.compress(saved.read_bytes(), 1))
    assert torch.equal(outputs(restore_model(old)), outputs(model))


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def hostile_checkpoint(_: bytes) -> bytes:
    """As torch writes one."""
    import torch

    content = io.BytesIO()
    torch.save({"encoder": Hostile()}, content)
    return content.getvalue()


def a_bit_flipped(content: bytes) -> bytes:
    """In the middle of the largest weights, where torch does not notice."""
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        largest = max(packed.infolist(), key=lambda member: member.file_size)
    damaged = bytearray(content)
    damaged[largest.header_offset + largest.file_size // 2] ^= 64
    return bytes(damaged)


def deflated(content: bytes) -> bytes:
    """Weights that unpack to more than they are."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return packed.getvalue()


def no_numbers(content: bytes) -> bytes:
    import torch

    weights = torch.load(io.BytesIO(content))
    weights["decoder.decoder_layers.0.bias"][3] = float("nan")
    torch.save(weights, packed := io.BytesIO())
    return packed.getvalue()


TOUCHES = b"x: !!python/object/apply:pathlib.Path.touch [executed]\n"
WRITES = {  # what NeMo 3.0 takes for a class, and calls
    "_target_": "nemo.collections.asr.parts.utils.manifest_utils.write_manifest",
    "output_path": "executed",
    "target_manifest": [],
}
OLD = {"cls": WRITES["_target_"], "params": {"output_path": "executed", "target_manifest": []}}
NAMED = "manifest_utils.write_manifest, which is not among the classes"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_config.yaml": lambda _: None}, "no model_config.yaml"),
        ({"model_weights.ckpt": lambda _: None}, "no model_weights.ckpt"),
        ({"model_weights.ckpt": lambda content: content[:5000]}, "small.nemo is not a .nemo file"),
        ({"model_weights.ckpt": lambda _: pickle.dumps(Hostile())}, "weights cannot be read"),
        ({"model_weights.ckpt": hostile_checkpoint}, "weights cannot be read"),
        ({"model_weights.ckpt": a_bit_flipped}, "weights are damaged"),
        ({"model_weights.ckpt": deflated}, "unpack to more than their size"),
        ({"model_weights.ckpt": no_numbers}, "not finite"),
        ({"model_config.yaml": lambda _: b"a: [1"}, "small.nemo is not a .nemo file"),
        ({"model_config.yaml": lambda _: b"- 1"}, "small.nemo is not a .nemo file"),
        ({"model_config.yaml": lambda content: TOUCHES + content}, "python/object"),
        ({"model_config.yaml": lambda _: b"[" * 200_000}, "small.nemo is not a .nemo file"),
        ({"model_config.yaml": lambda content: content + b"#" * 600_000}, "longer than"),
        ({"model_config.yaml": lambda content: laughs("[", "]") + content}, "entries"),
        ({"model_config.yaml": lambda content: laughs("{<<: [", "]}") + content}, "merge keys"),
        ({"model_config.yaml": lambda content: b"x: &x [*x]\n" + content}, "entries"),
        (config_changed(lambda config: config.update(tokenizer={"dir": "x"})), "its tokenizer is of type None"),
        (config_changed(lambda config: config.update(target="models.EncDecCTCModelBPE")), "sub-words"),
        (config_changed(lambda config: config.update(target="os.system")), "target names os.system"),
        (config_changed(lambda config: config.update(joint={})), "transducer"),
        (config_changed(lambda config: config["decoder"].pop("vocabulary")), "is not a character CTC model"),
        (config_changed(lambda config: config["decoder"]["vocabulary"].__setitem__(0, "the")), "'the' is in its vocab"),
        (config_changed(lambda config: config["encoder"]["jasper"].pop()), "do not fit its configuration"),
        (config_changed(lambda config: config["encoder"]["jasper"][3].update(repeat=10**9)), "the number 1e.09"),
        (config_changed(lambda config: config["encoder"]["jasper"][3].update(repeat=40_000)), "far larger network"),
        (config_changed(lambda config: config["encoder"]["jasper"][3].update(filters=40_000)), "do not fit its conf"),
        (config_changed(lambda config: config["preprocessor"].update(features=80)), "small.nemo is not a"),
        (config_changed(lambda config: config["preprocessor"].update(window_size=1000)), "more than a second"),
        (config_changed(lambda config: config["preprocessor"].update(window_stride="???")), "leaves a value"),
        (config_changed(lambda config: config["preprocessor"].update(window="${oc.env:HOME}")), "oc.env:HOME}, which"),
        (config_changed(lambda config: config["preprocessor"].update(window="${window}", window2=1)), "refers to"),
        (config_changed(lambda config: config["encoder"].update(_target_="os.system")), "os.system"),
        (config_changed(lambda config: config.update(preprocessor=WRITES)), NAMED),
        (config_changed(lambda config: config.update(preprocessor=OLD)), NAMED),
        (config_changed(lambda config: config["preprocessor"].update(window=WRITES)), NAMED),
        (config_changed(lambda config: config["encoder"]["jasper"].append(OLD)), NAMED),
        (config_changed(lambda config: config.update(spec_augment={"rng": {"target": WRITES["_target_"]}})), NAMED),
        (config_changed(lambda config: config["decoding"]["beam"].update(kenlm_path=WRITES)), NAMED),
        (config_changed(lambda config: config.update(optim=WRITES, adapters=[WRITES])), NAMED),
        (config_changed(lambda config: config.update(train_ds={"augmentor": {"noise": WRITES}})), NAMED),
        (config_changed(lambda config: config["encoder"].update(_partial_=True)), "encoder._partial_"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)  # fmt: skip
def test_archives_that_are_no_model_are_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Change], words: str
) -> None:
    from finetuning.model.ctc_model import restore_model

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # of a user who needs it for something else
    with pytest.raises(UserError, match=words) as refusal:
        restore_model(rewritten(saved, tmp_path / "small.nemo", changes))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "executed").exists()


def laughs(opens: str, closes: str) -> bytes:
    """Twelve lines of YAML, each ten times the one before."""
    lines = [f"a0: &a0 {opens}{closes}"]
    lines += [f"a{n}: &a{n} {opens}{', '.join([f'*a{n - 1}'] * 10)}{closes}" for n in range(1, 12)]
    return "\n".join([*lines, ""]).encode()


def added(path: Path, name: str, content: bytes = b"x", **fields: Any) -> None:
    """Append a member to a .nemo file."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    with tarfile.open(path, "a") as archive:
        archive.addfile(member, io.BytesIO(content))


def test_other_members_of_an_archive_are_never_unpacked(
    model: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of it, links, devices, and what would be unpickled as somebody's tokenizer."""
    import torch

    from finetuning.model.ctc_model import restore_model

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    path = Path(shutil.copy(saved, tmp_path))
    added(path, "../executed")
    added(path, str(tmp_path / "executed"))
    added(path, "link", b"", type=tarfile.SYMTYPE, linkname=str(tmp_path))
    added(path, "link/executed")
    added(path, "device", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
    added(path, "tokenizer.pkl", pickle.dumps(Hostile()))
    assert torch.equal(outputs(restore_model(path)), outputs(model))
    assert not list(tmp_path.rglob("executed")) and not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("how", ["twice", "a link", "with holes", "gzipped zeros", "a gzipped header of zeros"])
def test_archives_that_are_not_what_they_look_like_are_refused(saved: Path, tmp_path: Path, how: str) -> None:
    from finetuning.model.ctc_model import restore_model

    path = Path(shutil.copy(saved, tmp_path))
    if how == "twice":
        added(path, "./model_config.yaml", b"encoder: {}")
    elif how == "a link":
        rewritten(saved, path, {"model_config.yaml": lambda _: None})
        added(path, "model_config.yaml", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    elif how == "with holes":
        with (tmp_path / "model_weights.ckpt").open("wb") as file:
            file.truncate(10**11)
        rewritten(saved, path, {"model_weights.ckpt": lambda _: None})
        subprocess.run(["tar", "-rSf", path, "-C", tmp_path, "model_weights.ckpt"], check=True)
    elif how == "gzipped zeros":
        large = rewritten(saved, path, {"model_weights.ckpt": lambda _: bytes(1 << 26)})
        path.write_bytes(gzip.compress(large.read_bytes(), 1))
    else:
        added(path, "pax", bytes(1 << 26), type=tarfile.XHDTYPE)
        whole = path.read_bytes()
        start = whole.index(b"pax\0")
        path.write_bytes(gzip.compress(whole[start:], 1))
    with pytest.raises(UserError, match=r"not one plain file|more than 10 times its size"):
        restore_model(path)


@pytest.mark.parametrize("share", [None, 0, 0.001, 0.5, 0.99])
def test_files_that_are_no_archive_are_refused(saved: Path, tmp_path: Path, share: float | None) -> None:
    from finetuning.model.ctc_model import restore_model

    content = saved.read_bytes()
    path = tmp_path / "broken.nemo"
    path.write_bytes(b"hello" if share is None else content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"broken\.nemo is not a .nemo file of a CTC model"):
        restore_model(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [("jasper:", "jaspers:"), ("decoder:", "coder:"), ("feat_in: 256", "feat_in: many"), ("ConvASREncoder", "Nothing"),
     ("features: 64", "features: 80"), ("hann", "${oc.env:HOME}"), ("stride: [2]", "stride: [???]")],
)  # fmt: skip
def test_a_broken_architecture_is_refused(tmp_path: Path, old: str, new: str) -> None:
    from finetuning.model.ctc_model import build_model

    path = tmp_path / "broken.yaml"
    path.write_text(ARCHITECTURE.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=r"broken\.yaml is not a NeMo model configuration"):
        build_model(path, Vocabulary.of_characters(ITALIAN))
    with pytest.raises(UserError, match=r"there is no none\.yaml"):
        build_model(tmp_path / "none.yaml", Vocabulary.of_characters(ITALIAN))


def test_another_alphabet(saved: Path, tmp_path: Path) -> None:
    import torch
    from nemo.collections.asr.models import EncDecCTCModel

    from finetuning.model.ctc_model import change_vocabulary, get_vocabulary, restore_model, save_model

    model = restore_model(saved)
    encoder = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    change_vocabulary(model, Vocabulary.of_characters(ITALIAN))
    assert list(get_vocabulary(model)) == list(ITALIAN) == list(model.cfg.labels) == list(model.cfg.decoder.vocabulary)
    assert outputs(model).shape[2] == len(ITALIAN) + 1  # the blank, added by NeMo
    assert model.loss._blank == len(ITALIAN)
    assert all(torch.equal(encoder[name], tensor) for name, tensor in model.encoder.state_dict().items())
    save_model(model, tmp_path / "it.nemo")
    assert list(get_vocabulary(EncDecCTCModel.restore_from(str(tmp_path / "it.nemo"), map_location="cpu"))) == list(
        ITALIAN
    )


def test_the_same_alphabet_keeps_the_decoder(model: Any, saved: Path) -> None:
    import torch

    from finetuning.model.ctc_model import change_vocabulary, restore_model

    restored = restore_model(saved)
    change_vocabulary(restored, Vocabulary.of_characters(ENGLISH))
    assert torch.equal(outputs(restored), outputs(model))


def test_channels_last_computes_the_same(model: Any, saved: Path, tmp_path: Path) -> None:
    import torch
    from nemo.collections.asr.models import EncDecCTCModel
    from torch import nn

    from finetuning.model.channels_last import use_channels_last
    from finetuning.model.ctc_model import restore_model, save_model

    fast = restore_model(saved)
    use_channels_last(fast)
    use_channels_last(fast)  # twice is as good as once
    classes = ("DepthwiseConv1d", "PointwiseConv1d", "ChannelsLastBatchNorm1d")
    swapped = [m for m in fast.encoder.modules() if type(m).__name__ in classes]
    assert len(swapped) == sum(type(m) in (nn.Conv1d, nn.BatchNorm1d) for m in model.encoder.modules())
    torch.testing.assert_close(encoded(fast), encoded(model), rtol=0, atol=1e-5)
    assert fast.state_dict().keys() == model.state_dict().keys()
    assert type(pickle.loads(pickle.dumps(swapped[0]))) is type(swapped[0])
    save_model(fast, tmp_path / "fast.nemo")
    stock = EncDecCTCModel.restore_from(str(tmp_path / "fast.nemo"), map_location="cpu")
    assert torch.equal(outputs(stock), outputs(model))


@pytest.mark.parametrize("training", [False, True])
def test_channels_last_learns_the_same(model: Any, saved: Path, training: bool) -> None:
    """In double precision, where rounding can neither hide nor feign a difference; the caller's features stay."""
    import torch

    from finetuning.model.channels_last import use_channels_last
    from finetuning.model.ctc_model import restore_model

    stock, fast = restore_model(saved).double(), restore_model(saved).double()
    use_channels_last(fast)
    features = torch.randn(3, 64, 150, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = features.clone()
    for one in (stock, fast):
        one.train(training)
        set_dropout(one, 0.0)  # at random, and in another order where channels come last
        one.encoder(audio_signal=features, length=torch.tensor([150, 110, 60]))[0].square().mean().backward()
    assert torch.equal(features, before)
    gradients = dict(stock.encoder.named_parameters())
    for name, parameter in fast.encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-6, atol=1e-9)
    assert sum(parameter.grad.abs().sum() for parameter in gradients.values()) > 0.01


def test_masks_in_place_learn_the_same_with_dropout(saved: Path) -> None:
    import torch
    from nemo.collections.asr.parts.submodules.jasper import MaskedConv1d

    from finetuning.model.channels_last import InPlaceMaskedConv1d, use_channels_last
    from finetuning.model.ctc_model import restore_model

    gradients = []
    features = torch.randn(3, 64, 150, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for masked in (MaskedConv1d, InPlaceMaskedConv1d):
        one = restore_model(saved).double().train()
        use_channels_last(one)
        set_dropout(one, 0.3)
        for module in one.encoder.modules():
            if isinstance(module, MaskedConv1d):
                module.__class__ = masked
        torch.manual_seed(0)
        one.encoder(audio_signal=features, length=torch.tensor([150, 110, 60]))[0].square().mean().backward()
        gradients.append([parameter.grad for parameter in one.encoder.parameters()])
    torch.testing.assert_close(*gradients)


def test_activations_stay_in_place_but_on_views() -> None:
    """On a GPU none is a view, so that its memory is stock NeMo's."""
    import torch

    from finetuning.model.channels_last import ViewPreservingReLU

    relu = ViewPreservingReLU(inplace=True)
    whole = torch.tensor([[-1.0, 2.0]])
    view = whole.squeeze(0)
    assert relu(view).tolist() == [0, 2]
    assert whole.tolist() == [[-1, 2]]
    assert relu(whole) is whole
    assert whole.tolist() == [[0, 2]]


def set_dropout(model: Any, p: float) -> None:
    """Of all layers of the encoder."""
    import torch

    layers = [module for module in model.encoder.modules() if isinstance(module, torch.nn.Dropout)]
    assert layers
    for layer in layers:
        layer.p = p


@pytest.mark.parametrize(
    "shape",
    [
        {"kernel_size": 11, "padding": 5},
        {"kernel_size": 11, "stride": 2, "padding": 5},
        {"kernel_size": 7, "dilation": 3, "padding": 9},
        {"kernel_size": 7, "dilation": 2, "padding": 6, "bias": True},
        {"kernel_size": 6, "padding": 1},
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 7},
    ],
    ids=["plain", "stride", "dilation", "bias", "even", "one tap", "more padding than taps"],
)
def test_depthwise_convolution_is_torchs(shape: dict[str, Any]) -> None:
    """Its values and all its gradients are those of nn.Conv1d."""
    import torch

    from finetuning.model.channels_last import DepthwiseConv1d

    torch.manual_seed(0)
    ours = DepthwiseConv1d(8, 8, groups=8, **{"bias": False, **shape}).double()
    found = []
    for forward in (DepthwiseConv1d.forward, torch.nn.Conv1d.forward):
        x = torch.randn(2, 8, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = forward(ours, x)
        found.append((y, *torch.autograd.grad(y.pow(3).sum(), [x, *ours.parameters()])))
    torch.testing.assert_close(*found)


def test_depthwise_convolution_in_bfloat16_has_gradients_in_32_bits() -> None:
    import torch

    from finetuning.model.channels_last import DepthwiseConv1d

    torch.manual_seed(0)
    ours = DepthwiseConv1d(16, 16, 11, padding=5, groups=16, bias=False)
    x = torch.randn(4, 16, 50, requires_grad=True)
    exact = torch.autograd.grad(ours(x).square().sum(), [x, ours.weight])
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
    found = torch.autograd.grad(y.float().square().sum(), [x, ours.weight])
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.1)  # dtypes too


def test_depthwise_convolution_in_bfloat16_returns_from_every_shape() -> None:
    """oneDNN's own in bfloat16 does not from this one, on a processor with AMX."""
    code = """
import torch
from finetuning.model.channels_last import DepthwiseConv1d
torch.set_num_threads(10)
convolution = DepthwiseConv1d(160, 160, 25, padding=12, groups=160, bias=False)
with torch.autocast("cpu", torch.bfloat16):
    y = convolution(torch.randn(1, 160, 60))
assert y.dtype == torch.bfloat16
with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
    convolution(torch.randn(1, 160, 60))
y.float().sum().backward()
"""
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True, cwd=ROOT / "Fine_tuning")


def test_encoders_that_group_channels_are_left_alone(tmp_path: Path) -> None:
    import torch

    from finetuning.model.channels_last import use_channels_last
    from finetuning.model.ctc_model import build_model

    config = yaml.safe_load(ARCHITECTURE.read_text(encoding="utf-8"))
    for block in config["encoder"]["jasper"][1:6]:
        block["groups"] = 2
    (tmp_path / "grouped.yaml").write_text(yaml.safe_dump(config))
    model = build_model(tmp_path / "grouped.yaml", Vocabulary.of_characters(ENGLISH))
    before = outputs(model)
    use_channels_last(model)
    assert torch.equal(outputs(model), before)


def test_a_warm_decoder_keeps_what_both_alphabets_write():
    """Shared letters and the blank keep their rows, è starts as e, я is drawn at random: all are by default."""
    import torch

    from finetuning.model.ctc_model import change_vocabulary

    alphabet = "zè'a яe"
    warm, cold = lively_model(ENGLISH), lively_model(ENGLISH)
    before = (
        warm.decoder.decoder_layers[0].weight.detach().clone(),
        warm.decoder.decoder_layers[0].bias.detach().clone(),
    )
    for model, init in ((warm, "warm"), (cold, "random")):
        torch.manual_seed(0)
        change_vocabulary(model, Vocabulary.of_characters(alphabet), init)
        assert model.decoder.vocabulary == list(alphabet)
    for name, old in zip(("weight", "bias"), before, strict=True):
        new, drawn = (getattr(m.decoder.decoder_layers[0], name) for m in (warm, cold))
        sources = [ENGLISH.index("e" if letter == "è" else letter) for letter in alphabet if letter != "я"]
        rows = [row for row, letter in enumerate(alphabet) if letter != "я"]
        assert torch.equal(new[[*rows, len(alphabet)]], old[[*sources, len(ENGLISH)]])
        assert torch.equal(new[alphabet.index("я")], drawn[alphabet.index("я")])
        assert not torch.isin(drawn, old).any() or name == "bias"


def test_channels_last_learns_the_same_on_real_speech(tmp_path: Path):
    """Loss, gradients and batch statistics of a training step of the shipped model on four clips, to 1e-4."""
    import torch

    from finetuning.data.manifest import read_manifest
    from finetuning.decoding.inference import read_wavs
    from finetuning.model.channels_last import use_channels_last
    from finetuning.model.ctc_model import restore_model

    manifest = write_clips(SAMPLE, tmp_path, 4)
    utterances = read_manifest(manifest)
    losses, gradients, statistics = [], [], []
    for changed in (False, True):
        model = restore_model(ROOT / "models" / "demo" / "quartznet_small_en.nemo")
        model.preprocessor.featurizer.dither = 0.0
        if changed:
            use_channels_last(model)
        model.train()
        for module in model.modules():
            module.p = 0.0 if isinstance(module, torch.nn.Dropout) else getattr(module, "p", None)
        wavs = read_wavs([manifest.parent / u.audio_filepath for u in utterances], 16000)
        signal = torch.nn.utils.rnn.pad_sequence([torch.tensor(wav) for wav in wavs], batch_first=True)
        features, frames = model.preprocessor(input_signal=signal, length=torch.tensor([len(wav) for wav in wavs]))
        encoded, frames = model.encoder(audio_signal=features, length=frames)
        texts = [[ENGLISH.index(c) for c in u.text if c in ENGLISH] for u in utterances]
        targets = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
        loss = model.loss(
            log_probs=model.decoder(encoder_output=encoded), targets=targets,
            input_lengths=frames, target_lengths=torch.tensor([len(text) for text in texts]),
        )  # fmt: skip
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        statistics.append(torch.cat([b.flatten() for name, b in model.named_buffers() if "running" in name]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()
    torch.testing.assert_close(statistics[0], statistics[1], rtol=1e-4, atol=1e-5)
