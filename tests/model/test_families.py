"""Real small models of every CTC family, saved by stock NeMo: restored, saved, refused when they are something else."""

from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from families import FAMILIES, stock_model
from finetuning.data.manifest import read_manifest
from finetuning.errors import UserError
from releases import SAMPLE
from small import Change, config_changed, rewritten, write_clips

pytestmark = pytest.mark.nemo

TEXTS = ["il gatto e la palla sono rossi", "perché l'ingegnere non è venuto mercoledì", "è già più tardi così"] * 3


@pytest.fixture(scope="module")
def sentencepiece() -> bytes:
    from finetuning.training.tokenizer import train_tokenizer

    return train_tokenizer(TEXTS, 48)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, sentencepiece: bytes, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name, stock model, file."""
    folder = tmp_path_factory.mktemp("family")
    return request.param, stock_model(request.param, folder, sentencepiece), folder / f"{request.param}.nemo"


def log_probs(model: Any, decoder: Any) -> Any:
    import torch

    model.preprocessor.featurizer.dither = 0.0
    wave = torch.randn(2, 40000, generator=torch.Generator().manual_seed(1)) / 10
    with torch.no_grad():
        features, length = model.preprocessor(input_signal=wave, length=torch.tensor([40000, 30000]))
        return decoder(encoder_output=model.encoder(audio_signal=features, length=length)[0])


def test_its_ctc_decoder_is_stocks_and_what_is_saved_stock_nemo_restores(family: Any, tmp_path: Path) -> None:
    import torch
    from nemo.collections.asr.models import ASRModel

    from finetuning.model.ctc_model import frame_duration_s, get_vocabulary, restore_model, save_model

    name, stock, path = family
    restored = restore_model(path)
    expected = log_probs(stock, getattr(stock, "ctc_decoder", stock.decoder))
    assert torch.equal(log_probs(restored, restored.decoder), expected)
    assert expected.argmax(dim=2).unique().numel() > 5
    assert frame_duration_s(restored) == pytest.approx(0.01 * FAMILIES[name][1])
    save_model(restored, tmp_path / "saved.nemo")
    again = ASRModel.restore_from(str(tmp_path / "saved.nemo"), map_location="cpu").eval()
    assert torch.equal(log_probs(again, again.decoder), expected)
    assert type(again).__name__ == ("EncDecCTCModel" if name.endswith("char") else "EncDecCTCModelBPE")
    assert list(get_vocabulary(restore_model(tmp_path / "saved.nemo"))) == list(get_vocabulary(restored))


def as_nemo_2_7_wrote_it(config: dict[str, Any]) -> None:
    """With the data of its training on NVIDIA's cluster, and without the keys of a decoding that came with 3.0."""
    for section in (config.get("decoding"), config.get("aux_ctc", {}).get("decoding")):
        for strategy in ("greedy", "beam") if section else ():
            for key in ("key_phrase_items_list", "key_phrases_file", "source_lang", "boosting_tree"):
                (section.get(strategy) or {}).pop(key, None)
    bucketing = {"is_tarred": True, "bucketing_strategy": "synced_randomized", "use_start_end_token": False}
    audio = {
        "tarred_audio_filepaths": [["/data/bucket1/audio__OP_0..4095_CL_.tar"]],
        "shuffle_n": 2048,
        "num_workers": 8,
    }
    config["train_ds"] = {"manifest_filepath": [["/data/bucket1/tarred.json"]], "batch_size": 1, **bucketing, **audio}
    config["validation_ds"] = {"manifest_filepath": ["/manifests/dev.json"], "batch_size": 16}
    config["optim"] = {"name": "adamw", "lr": 2.0, "sched": {"name": "NoamAnnealing", "d_model": 512}}
    config["nemo_version"] = "2.7.3"


def test_a_file_with_the_data_of_its_training_is_the_same_model(family: Any, tmp_path: Path) -> None:
    import torch

    from finetuning.model.ctc_model import restore_model

    name, stock, path = family
    older = rewritten(path, tmp_path / "older.nemo", config_changed(as_nemo_2_7_wrote_it))
    restored = restore_model(older)
    expected = log_probs(stock, getattr(stock, "ctc_decoder", stock.decoder))
    assert torch.equal(log_probs(restored, restored.decoder), expected), name


def test_greedy_texts_are_those_of_nemo_whatever_the_batch(family: Any, tmp_path: Path) -> None:
    import numpy as np
    import soundfile
    from nemo.collections.asr.models import ASRModel

    from finetuning.decoding.greedy import greedy_decode
    from finetuning.decoding.inference import compute_log_probs, iter_log_probs, prepare_for_inference
    from finetuning.decoding.openvino_runtime import load_network
    from finetuning.model.ctc_model import get_vocabulary, restore_model, save_model

    name, _, path = family
    model = prepare_for_inference(restore_model(path))
    manifest = write_clips(SAMPLE, tmp_path / "clips", 6)
    paths = [manifest.parent / u.audio_filepath for u in read_manifest(manifest)]
    wavs = [soundfile.read(path, dtype="float32")[0] for path in paths]
    wavs.append(np.random.default_rng(0).normal(0, 0.1, 30 * 16000).astype(np.float32))  # as long as a segment can be
    together, alone = compute_log_probs(model, wavs), [compute_log_probs(model, [wav])[0] for wav in wavs]
    network = load_network(model, path)
    assert network is not None
    by_openvino = list(iter_log_probs(model, network, [wavs]))
    for one, other, third in zip(alone, together, by_openvino, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-3)
        np.testing.assert_allclose(third, one, rtol=0, atol=1e-3)
    texts = [greedy_decode(each, get_vocabulary(model)) for each in alone[:-1]]
    assert len(set(texts)) > 3
    save_model(model, tmp_path / "saved.nemo")
    stock = ASRModel.restore_from(str(tmp_path / "saved.nemo"), map_location="cpu").eval()
    stock.preprocessor.featurizer.dither = 0.0
    theirs = [hypothesis.text for hypothesis in stock.transcribe([str(path) for path in paths], verbose=False)]
    if name.endswith("char"):  # NeMo takes the apostrophe for punctuation and removes the space before it
        texts = [text.replace(" '", "'") for text in texts]
    assert texts == theirs


def test_the_vocabulary_is_that_of_sentencepiece(sentencepiece: bytes) -> None:
    import random

    from sentencepiece import SentencePieceProcessor

    from finetuning.model.vocabulary import Vocabulary

    vocabulary, processor = Vocabulary.of_pieces(sentencepiece), SentencePieceProcessor()
    processor.load_from_serialized_proto(sentencepiece)
    rng = random.Random(0)
    for _ in range(2000):
        pieces = [rng.randrange(len(vocabulary)) for _ in range(rng.randrange(9))]
        assert vocabulary.decode(pieces) == processor.decode(pieces)
    for text in TEXTS:
        assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.encode("w") == vocabulary.encode("")[:0] + [
        n for n in vocabulary.encode("w") if vocabulary[n] == " "
    ]
    assert {*"".join(TEXTS)} == vocabulary.characters
    assert Vocabulary.from_json(vocabulary.as_json()) == vocabulary


@pytest.mark.parametrize("content", [None, {}, {"sentencepiece": "?"}, {"sentencepiece": "AAAA"}, [1], "abc", 3])
def test_what_is_no_vocabulary_is_refused(content: Any) -> None:
    from finetuning.model.vocabulary import Vocabulary

    with pytest.raises((ValueError, TypeError)):
        Vocabulary.from_json(content)


CALLED = {"_target_": "os.system", "command": "true"}


@pytest.mark.parametrize(
    ("start", "changes", "words"),
    [
        ("hybrid", config_changed(lambda c: c.pop("aux_ctc")), "a transducer without a CTC decoder"),
        ("hybrid", config_changed(lambda c: c["aux_ctc"]["decoder"].update(CALLED)), "os.system, which is not"),
        ("hybrid", config_changed(lambda c: c["encoder"].update(CALLED)), "os.system, which is not"),
        ("hybrid", config_changed(lambda c: c["aux_ctc"].pop("decoder")), "has no decoder"),
        ("hybrid", config_changed(lambda c: c.update(target="a.b.EncDecMultiTaskModel")), "EncDecMultiTaskModel"),
        ("conformer", config_changed(lambda c: c["tokenizer"].update(type="wpe")), "type wpe"),
        ("conformer", config_changed(lambda c: c["tokenizer"].update(type="agg")), "type agg"),
        ("conformer", config_changed(lambda c: c["tokenizer"].update(custom_tokenizer=CALLED)), "os.system"),
        ("conformer", config_changed(lambda c: c.pop("tokenizer")), "has no tokenizer"),
        ("conformer", config_changed(lambda c: c["tokenizer"].update(model_path="nemo:none.model")), "no none.model"),
        ("conformer", config_changed(lambda c: c["encoder"].update(n_layers=20000)), "far larger network"),
        ("conformer", config_changed(lambda c: c["encoder"].update(d_model=48000)), "far larger network"),
        ("conformer", config_changed(lambda c: c["encoder"].update(n_layers=1)), "do not fit"),
        ("conformer", config_changed(lambda c: c["encoder"].update(conv_kernel_size=11)), "do not fit"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(
    sentencepiece: bytes, tmp_path: Path, start: str, changes: dict[str, Change], words: str
) -> None:
    from finetuning.model.ctc_model import restore_model

    stock_model(start, tmp_path, sentencepiece)
    changed = rewritten(tmp_path / f"{start}.nemo", tmp_path / "changed.nemo", changes)
    with pytest.raises(UserError, match=words) as refusal:
        restore_model(changed)
    assert "changed.nemo" in str(refusal.value)


def test_a_damaged_tokenizer_is_refused(sentencepiece: bytes, tmp_path: Path) -> None:
    import tarfile

    from finetuning.model.ctc_model import restore_model

    stock_model("conformer", tmp_path, sentencepiece)
    with tarfile.open(tmp_path / "conformer.nemo") as archive:
        (name,) = [Path(member).name for member in archive.getnames() if member.endswith("tokenizer.model")]
    for number, damage in enumerate((lambda content: content[:100], lambda content: b"", lambda content: bytes(300))):
        changed = rewritten(tmp_path / "conformer.nemo", tmp_path / f"{number}.nemo", {name: damage})
        with pytest.raises(UserError, match="tokenizer"):
            restore_model(changed)


def test_a_warm_decoder_starts_from_what_the_base_writes(sentencepiece: bytes, tmp_path: Path) -> None:
    import torch

    from finetuning.model.ctc_model import change_vocabulary, get_vocabulary, restore_model
    from finetuning.model.vocabulary import Vocabulary

    english = restore_model(ROOT / "models/demo/quartznet_small_en.nemo")
    old, before = get_vocabulary(english), english.decoder.decoder_layers[0].weight.detach().clone()
    pieces = Vocabulary.of_pieces(sentencepiece)
    changed = change_vocabulary(english, pieces, "warm")
    rows = changed.decoder.decoder_layers[0].weight.detach()
    assert torch.equal(rows[-1], before[-1])  # the blank
    by_text = {text: rows[number] for number, text in enumerate(pieces)}
    assert torch.equal(by_text[" "], before[old.tokens.index(" ")])
    assert torch.equal(by_text["è"], before[old.tokens.index("e")])
    word = next(text for text in by_text if len(text) > 2 and "⁇" not in text)
    letters = [letter if letter in old else {"ì": "i", "è": "e", "é": "e"}.get(letter, letter) for letter in word]
    mean = before[[old.tokens.index(letter) for letter in letters]].mean(dim=0)
    torch.testing.assert_close(by_text[word], mean)
    back = change_vocabulary(changed, Vocabulary.of_characters(" abcè"), "warm")
    assert torch.equal(back.decoder.decoder_layers[0].weight[4], by_text["è"])
    for name, tensor in back.encoder.state_dict().items():
        assert torch.equal(tensor, english.encoder.state_dict()[name])
