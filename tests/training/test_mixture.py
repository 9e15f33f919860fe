"""Training on a mixture of sources, and evaluating on each of its test sets."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from conftest import Script
from finetuning.data.manifest import find_test_sets, read_manifest
from mixtures import sources


@pytest.fixture(scope="module")
def mixture(run_script: Script, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of an experiment on three sources, and what its three steps said."""
    folder = tmp_path_factory.mktemp("mixture")
    config = {
        "extends": "configs/demo.yaml",
        "dataset": {"sources": sources(folder), "output": f"{folder}/data", "workers": 2},
        "training": {"output": f"{folder}/run", "max_epochs": 2, "frozen_epochs": 1, "batch_duration_s": 20},
        "language_model": {"output": f"{folder}/lm"},
        "evaluation": {"predictions": f"{folder}/run/predictions", "results": f"{folder}/results", "decoder": "lm"},
    }
    (folder / "mixture.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    said = []
    for script in ("dataset_creation", "train", "train_language_model", "evaluate"):
        made = run_script(f"{script}.py", "--config", f"{folder}/mixture.yaml")
        assert made.returncode == 0, made.stderr[-2000:]
        said.append(made.stdout)
    return folder, said


@pytest.mark.nemo
def test_an_epoch_draws_by_the_weights_of_the_sources(mixture: tuple[Path, list[str]]) -> None:
    folder, (_, trained, *_) = mixture
    training = read_manifest(folder / "data" / "train_manifest.json")
    calls = sum(u.source == "calls" for u in training)
    drawn = f"{calls}, of which an epoch draws {round(2.5 * calls)}"
    assert f"  from cv: {len(training) - calls}\n  from calls: {drawn}\n" in trained
    record = json.loads((folder / "run" / "run.json").read_text())
    assert record["made_from"]["weights"] == {"calls": 2.5}


@pytest.mark.nemo
def test_each_test_set_has_its_results_and_its_columns(mixture: tuple[Path, list[str]], run_script: Script) -> None:
    folder, (*_, said) = mixture
    rates = {}
    for name, manifest in find_test_sets(folder / "data").items():
        part = "" if name == "test" else name
        for model in ("Model-IT-finetuned", "Model-IT-finetuned+LM"):
            result = json.loads((folder / "results" / part / f"{model}.json").read_text())
            assert result["utterances"] == len(read_manifest(manifest))
            assert result.get("test_set", "") == part
            rates[name, model] = result["cer"], result["wer"]
    assert (folder / "run" / "report.html").is_file()
    assert "mixture, test_radio" in (folder / "run" / "report_test_radio.html").read_text()
    joint = said[said.rindex("| Model ") :]
    header = [cell.strip() for cell in joint.splitlines()[0].split("|")[2:-1]]
    assert header == ["test, CER", "test, WER", "test_radio, CER", "test_radio, WER"]
    for model in ("Model-IT-finetuned", "Model-IT-finetuned+LM"):
        row = next(line for line in joint.splitlines() if line.startswith(f"| {model} "))
        cells = [float(cell) for cell in row.split("|")[2:-1]]
        assert cells == [round(rate, 4) for name in ("test", "test_radio") for rate in rates[name, model]]
    assert said.count("weights on the validation set") <= said.count("+LM")  # tuned once a model
    decoders = sorted((folder / "run" / "predictions").rglob("decoder.json"))
    assert [path.parent.name for path in decoders] == ["Model-IT-finetuned+LM", "quartznet_small_en+LM"]
    again: subprocess.CompletedProcess[str] = run_script("evaluate.py", "--config", f"{folder}/mixture.yaml")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("predictions are reused from") == 8  # two models, two decoders, two test sets
    assert joint in again.stdout


@pytest.mark.nemo
def test_the_training_texts_can_be_ranked_by_loss(mixture: tuple[Path, list[str]], run_script: Script) -> None:
    folder, _ = mixture
    before = {path: path.read_bytes() for path in (folder / "results").rglob("*.json")}
    made = run_script(
        "evaluate.py", "--config", f"{folder}/mixture.yaml", "evaluation.split=train", "evaluation.decoder=greedy",
        f"evaluation.models=[{folder}/run/Model-IT-finetuned.nemo]",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    ranking = folder / "results" / "all_of_train" / "Model-IT-finetuned.by_loss.tsv"
    assert f"by loss, wrong texts first: {ranking}" in made.stdout
    rows = [line.split("\t") for line in ranking.read_text().splitlines()]
    training = {u.audio_filepath: u for u in read_manifest(folder / "data" / "train_manifest.json")}
    assert sorted(path for path, *_ in rows) == sorted(training)
    losses = [float(loss) for _, loss, *_ in rows]
    assert losses == sorted(losses, reverse=True)
    assert all(text == training[path].text for path, _, text, _ in rows)
    assert (folder / "run" / "report_all_of_train.html").is_file()
    assert before == {path: path.read_bytes() for path in before}
