import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import yaml
from test_export import MODEL, make

from conftest import ROOT, Script, assert_refused
from families import stock_model
from finetuning.data.manifest import read_manifest
from finetuning.decoding.predictions import Prediction
from finetuning.errors import UserError
from finetuning.evaluation import results
from finetuning.evaluation.scoring import score_predictions
from finetuning.export.onnx_files import FILES
from finetuning.files import read_json, sha256, write_json
from finetuning.model.vocabulary import Vocabulary
from small import ARCHITECTURE, ENGLISH, write_clips

pytestmark = pytest.mark.nemo
ENGLISH_SAMPLE = ROOT / "datasets" / "sample" / "cv-corpus-sample-en.tar.gz"


def greedy(model_path: Path, wavs: list[Path]) -> list[str]:
    """What evaluate.py's decoding writes."""
    from finetuning.decoding.greedy import greedy_decode
    from finetuning.decoding.inference import compute_log_probs, prepare_for_inference, read_wav
    from finetuning.model.ctc_model import get_vocabulary, restore_model

    model = prepare_for_inference(restore_model(model_path))
    vocabulary = get_vocabulary(model)
    return [greedy_decode(compute_log_probs(model, [read_wav(wav, 16000)])[0], vocabulary) for wav in wavs]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of recordings of the sample, one of them with a second of digital silence."""
    manifest = write_clips(ENGLISH_SAMPLE, tmp_path_factory.mktemp("clips") / "data", 6)
    wav = read_manifest(manifest)[-1].wav(manifest.parent)
    samples, rate = soundfile.read(wav)
    soundfile.write(wav, np.concatenate([np.zeros(rate), samples]), rate)
    return manifest


def evaluated(path: Path, manifest: Path, texts: list[str]) -> None:
    """Make the result at `path` that of these texts."""
    utterances = read_manifest(manifest)
    score = score_predictions(
        Prediction(u.audio_filepath, u.text, t, 1.0, u.duration) for u, t in zip(utterances, texts, strict=True)
    )
    row = read_json(path)
    hashes = {**row["sha256"], "manifest": sha256(manifest)}
    write_json(path, row | results.make_result(path.stem, score, 0.01, "", hashes))


@pytest.fixture
def experiment(tmp_path: Path, clips: Path) -> SimpleNamespace:
    """A finished experiment of the shipped English model, evaluated on the clips by torch."""
    config = make(tmp_path)
    shutil.copytree(clips.parent, tmp_path / "data", dirs_exist_ok=True)
    texts = greedy(MODEL, [u.wav(clips.parent) for u in read_manifest(clips)])
    (tmp_path / "results" / "Model-IT-finetuned+LM.json").unlink()
    row = tmp_path / "results" / "Model-IT-finetuned.json"
    evaluated(row, clips, texts)
    options = ("export.py", "--config", config, "--license", "cc0-1.0")
    return SimpleNamespace(options=options, texts=texts, row=row, folder=tmp_path / "run" / "export")


def test_the_folder_runs_in_sherpa_onnx(experiment: SimpleNamespace, run_in_process: Script, tmp_path: Path) -> None:
    from finetuning.export.onnx_graph import write_graph
    from finetuning.model.ctc_model import restore_model

    done = run_in_process(*experiment.options, "--onnx")
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(experiment.texts[0]) > 5, "the model writes something"
    folder = experiment.folder
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "Model-IT-finetuned.nemo", "README.md"])
    record = read_json(folder / "sherpa_onnx.json")
    assert record["wer"]["model.onnx"] == record["wer"]["evaluate.py"]
    assert record["bytes"]["model.int8.onnx"] < 0.7 * record["bytes"]["model.onnx"]

    card = (folder / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[1]
    without_nemo = "import sys\nsys.modules.update(nemo=None, torch=None)\n"
    code = without_nemo + code.replace("model.int8.onnx", "model.onnx")
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == experiment.texts[0].strip(), ran.stderr[-2000:]

    again = run_in_process(*experiment.options)
    assert again.returncode == 0 and "are of this model" in again.stdout
    assert (folder / "README.md").read_text(encoding="utf-8") == card
    write_graph(restore_model(MODEL), tmp_path / "again.onnx")
    assert sha256(tmp_path / "again.onnx") == record["sha256"]["model.onnx"], "the same bytes"

    with (folder / "tokens.txt").open("a") as tokens:  # as those of another model
        tokens.write("z 99\n")
    assert run_in_process(*experiment.options).returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["Model-IT-finetuned.nemo", "README.md"]
    assert "sherpa" not in (folder / "README.md").read_text(encoding="utf-8")


def test_other_words_than_those_of_step_3_are_refused(
    experiment: SimpleNamespace, run_in_process: Script, clips: Path
) -> None:
    right = read_json(experiment.row)["wer"]
    evaluated(experiment.row, clips, [f"and {experiment.texts[0]}", *experiment.texts[1:]])
    wrong = read_json(experiment.row)["wer"]
    refused = run_in_process(*experiment.options, "--onnx")
    assert_refused(refused, "recognises other words", f"is {right:.4f} instead of {wrong:.4f}", "without --onnx")
    assert not list(experiment.folder.iterdir()), "nothing half-made"


def as_sherpa_onnx_hands_over(samples: np.ndarray) -> np.ndarray:
    return ((samples - samples.mean()) / np.sqrt(samples.var() + 1e-5)).astype(np.float32)


@pytest.mark.parametrize("gain", [1.0, 0.003])
def test_the_graph_computes_the_features_of_nemo(clips: Path, gain: float) -> None:
    """Also where silence is digital, and in quiet recordings."""
    import torch

    from finetuning.decoding.inference import compute_features, prepare_for_inference
    from finetuning.export.onnx_graph import RecognitionGraph, restore_level
    from finetuning.model.ctc_model import restore_model

    model = prepare_for_inference(restore_model(MODEL))
    wav = read_manifest(clips)[-1].wav(clips.parent)
    samples = gain * soundfile.read(wav, dtype="float32")[0]
    handed_over = torch.from_numpy(as_sherpa_onnx_hands_over(samples))[None]
    assert abs(handed_over[0, 0]) > 1e-5, "its silence is not 0 any more"
    with torch.no_grad():
        features = RecognitionGraph(model).compute_features(restore_level(handed_over)).numpy()
    assert np.abs(features - compute_features(model, samples)).max() < 0.02


@pytest.mark.parametrize("family", ["conformer", "hybrid"])
def test_models_of_sub_words_with_attention(clips: Path, tmp_path: Path, family: str) -> None:
    """Outputs every 40 or 80 ms; of the hybrid model the transducer is left out."""
    from finetuning.export import onnx_graph
    from finetuning.export.sherpa_onnx_folder import load_recogniser
    from finetuning.model.ctc_model import get_vocabulary, restore_model
    from finetuning.training.tokenizer import train_tokenizer

    stock_model(family, tmp_path, train_tokenizer([u.text for u in read_manifest(clips)] * 3, 32))
    path = tmp_path / f"{family}.nemo"
    model = restore_model(path)
    onnx_graph.check_supported(model, path)
    onnx_graph.write_tokens(get_vocabulary(model), tmp_path / "tokens.txt")
    onnx_graph.write_graph(model, tmp_path / "model.onnx")
    recognise = load_recogniser(tmp_path / "model.onnx")
    utterances = read_manifest(clips)
    texts = greedy(path, [u.wav(clips.parent) for u in utterances])
    assert len(set("".join(texts))) > 3, "it writes more than one letter"
    for u, text in zip(utterances, texts, strict=True):
        result = recognise(soundfile.read(u.wav(clips.parent), dtype="float32")[0])
        assert result.text.split() == text.split()
        assert u.duration / 2 < result.timestamps[-1] < u.duration + 1, "seconds"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["preprocessor"].update(sample_rate=8000), "takes audio of 8000 Hz"),
        (lambda c: c["encoder"]["jasper"][0].update(stride=[1]), "writes every 10 ms"),
        (lambda c: c["preprocessor"].update(normalize="all_features"), "another normalize"),
    ],
)
def test_a_model_that_sherpa_onnx_cannot_run(change, reason: str, tmp_path: Path) -> None:
    from finetuning.export.onnx_graph import check_supported
    from finetuning.model.ctc_model import build_model

    config = yaml.safe_load(ARCHITECTURE.read_text())
    change(config)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    model = build_model(tmp_path / "model.yaml", Vocabulary.of_characters(ENGLISH))
    with pytest.raises(UserError, match=f"sherpa-onnx cannot run model.nemo: .*{reason}"):
        check_supported(model, Path("model.nemo"))


def test_a_token_that_sherpa_onnx_cannot_write(tmp_path: Path) -> None:
    from finetuning.export.onnx_graph import write_tokens

    write_tokens(Vocabulary.of_characters(" aè"), tmp_path / "tokens.txt")
    assert (tmp_path / "tokens.txt").read_text(encoding="utf-8") == "  0\na 1\nè 2\n<blk> 3\n"
    for token in ("\u00a0", ""):
        with pytest.raises(UserError, match="cannot write"):
            write_tokens(Vocabulary.of_characters(["a", token]), tmp_path / "tokens.txt")
