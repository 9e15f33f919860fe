import argparse
import base64
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard, metadata_load
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT, Script, assert_refused
from finetuning.config.loading import load_config
from finetuning.data import dataset_files
from finetuning.data.manifest import SPLITS, Utterance, manifest_path, write_manifest
from finetuning.data.row_filters import TextReport
from finetuning.errors import UserError
from finetuning.evaluation import results, significance, slices
from finetuning.evaluation.bootstrap import sum_by_speaker
from finetuning.evaluation.scoring import Score
from finetuning.export import card_metadata, model_card
from finetuning.files import read_json, sha256, write_json
from finetuning.metrics.history import COLUMNS, write_metrics
from finetuning.training import run_record
from mutations import mutated
from small import write_clips

MODEL = ROOT / "models" / "demo" / "quartznet_small_en.nemo"
SAMPLE, REAL = "cv-corpus-sample-1.0-2026-11-22/it", "cv-corpus-24.0-2025-12-05/it"
# ten utterances of 100 words and 507 characters: WER 104 / 1000, CER 80 / 5070
SCORE = Score(9.99159, 0, np.array([[90, 8, 2, 0]] * 6 + [[90, 8, 2, 1]] * 4), np.array([[500, 5, 2, 1]] * 10))
BETTER = replace(SCORE, word_counts=np.array([[99, 1, 0, 0]] * 10))  # WER 10 / 1000
TOKEN = "hf_itIsASecretThatNobodyMaySee"


def make(
    folder: Path, release: str = SAMPLE, note: str = "Synthetic speech.", base: str | None = None, seen: int = 0
) -> str:
    """An experiment that is finished, as the three steps leave it, `seen` of its test clips by a speaker of training;
    gives its configuration.
    """
    path = folder / "small.yaml"
    path.write_text(
        f"""
extends: configs/demo.yaml
name: small
dataset: {{output: {folder}/data}}
model: {{base: {base or MODEL}}}
training: {{output: {folder}/run}}
evaluation:
  models: [{folder}/run/Model-IT-finetuned.nemo]
  decoder: greedy
  predictions: {folder}/predictions
  results: {folder}/results
  note: "{note}"
""",
        encoding="utf-8",
    )
    config = load_config(str(path), [])
    data, output = folder / "data", folder / "run"
    for made in (data, output, folder / "results"):
        made.mkdir()
    chosen = {
        split: [
            Utterance(f"wavs/{split}{n}.wav", 3.0 + n, f"frase {split} {n}", speaker=f"{split}{n}") for n in range(10)
        ]
        for split in SPLITS
    }
    chosen["test"][:seen] = [replace(u, speaker="train0") for u in chosen["test"][:seen]]
    for split, utterances in chosen.items():
        write_manifest(manifest_path(data, split), utterances)
    write_json(
        data / "dataset.json", dataset_files.describe_dataset(config, release, 30, chosen, [], TextReport({}, []), {})
    )

    model = output / "Model-IT-finetuned.nemo"
    record = run_record.start_run(output, config, MODEL)
    shutil.copyfile(MODEL, model)
    run_record.add_session(output, record, device="CPU, 1 threads", precision="32-true")
    figures = [(1, "frozen", 90.0, 80.0, 0.9, 0.5, 1e-3), (2, "unfrozen", 20.0, 10.0, 0.125, 0.04, 1e-4)]
    write_metrics(output / "metrics.csv", pd.DataFrame(figures, columns=COLUMNS))
    run_record.finish_run(output, record, model=sha256(model), device="CPU, 1 threads", epochs=2, warnings=[])

    hashes = {"model": sha256(model), "manifest": sha256(manifest_path(data, "test"))}
    groups, rows, compared = slices.make_groups(chosen["test"], chosen["train"]), [], []
    for name, score in (("Model-IT-finetuned", SCORE), ("Model-IT-finetuned+LM", BETTER)):
        by_speaker = sum_by_speaker(score, chosen["test"])
        row = results.make_result(name, score, 0.02, "", hashes) | results.interval_fields(by_speaker)
        rows.append(
            {**row, "nemo_wer": None, **results.dataset_origin(data), "slices": slices.score_slices(groups, score)}
        )
        compared.append(results.Row(rows[-1], [], score, by_speaker, ""))
    rows[1]["decoder"] = {"name": "lm", "lm_weight": 3.18, "beam": 50}
    for row in rows:
        results.write_result(folder / "results", row)
    write_json(folder / "results" / "comparisons.json", significance.compare_models(compared))
    return str(path)


@pytest.fixture
def export(run_in_process: Script, tmp_path: Path) -> Script:
    """Export a finished experiment: export() as it is, export("--push", …) with more to type."""
    config = make(tmp_path)
    return lambda *more: run_in_process("export.py", "--config", config, "--license", "cc-by-4.0", *more)


def change(path: Path, **values: object) -> None:
    write_json(path, {**read_json(path), **values})


def test_the_model_and_its_card_lie_side_by_side(export: Script, tmp_path: Path) -> None:
    done = export()
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "export"
    assert sorted(path.name for path in folder.iterdir()) == ["Model-IT-finetuned.nemo", "README.md"]
    assert (folder / "Model-IT-finetuned.nemo").read_bytes() == MODEL.read_bytes()
    assert f"{MODEL.stat().st_size:,} bytes" in done.stdout
    card = (folder / "README.md").read_bytes()
    assert f"export.py --config {tmp_path}/small.yaml --license cc-by-4.0 --push OWNER/NAME" in done.stdout
    assert export().returncode == 0 and (folder / "README.md").read_bytes() == card, "the same again"
    assert str(tmp_path) not in card.decode() and str(ROOT) not in card.decode(), "nothing of the machine"


def test_the_hub_reads_the_metadata(export: Script, tmp_path: Path) -> None:
    assert export().returncode == 0
    path = tmp_path / "run" / "export" / "README.md"
    data = metadata_load(path)
    assert data.items() >= {
        "language": "it",
        "license": "cc-by-4.0",
        "library_name": "nemo",
        "pipeline_tag": "automatic-speech-recognition",
    }.items()  # fmt: skip
    assert {"automatic-speech-recognition", "CTC", "QuartzNet", "synthetic-speech"} <= set(data["tags"])
    assert "datasets" not in data and "base_model" not in data, "the hub knows neither the sample nor the demo's base"
    found = ModelCard.load(path).data.eval_results
    assert [(r.metric_type, r.metric_value) for r in found] == [
        ("wer", 10.4),
        ("cer", 1.58),
        ("wer", 1.0),
        ("cer", 1.58),
    ]
    assert {(r.dataset_type, r.dataset_config, r.dataset_split) for r in found} == {(SAMPLE[:-3], "it", "test")}
    assert {r.dataset_name for r in found} == {
        f"{SAMPLE}, test set split by speaker: 10 utterances, 10 speakers, synthetic speech"
    }


def test_the_card_says_what_is_known(export: Script, tmp_path: Path) -> None:
    assert export().returncode == 0
    card = (tmp_path / "run" / "export" / "README.md").read_text(encoding="utf-8")
    record = read_json(tmp_path / "run" / "run.json")
    for said in (
        "104 word errors to 1,000 words: WER 0.1040 (95 % interval 0.10",
        "> **Synthetic speech.**",
        "| Model-IT-finetuned [1]    |    9.9916 |",
        "No interval of CER: too few of the 10 speakers differ in it.",
        "The intervals come from 10 speakers of one test set and one training run",
        "Model-IT-finetuned minus Model-IT-finetuned+LM: WER +0.0940",
        "**not** among these files; lm_weight 3.18, beam 50",
        "Of 10 test utterances 0 (0.0%) are by a speaker heard in training, and 0 (0.0%)",
        f"- Base model: `quartznet_small_en`, SHA-256 `{sha256(MODEL)}`",
        f"torch {record['versions']['torch']}",
        f"`{record['commit']}`",
        "Validation WER: 0.9000 after the first epoch, 0.1250 after the last (2)",
        "| test       |  0.02 |    10 |       10 |        10 |",
        "Of 30 rows 0 were rejected.",
    ):
        assert said in card, said


def test_a_release_of_common_voice_and_a_base_of_the_registry_are_named(run_in_process: Script, tmp_path: Path) -> None:
    config = make(tmp_path, REAL, note="", base="stt_en_quartznet15x5", seen=2)
    assert run_in_process("export.py", "--config", config, "--license", "MIT").returncode == 0
    path = tmp_path / "run" / "export" / "README.md"
    data, text = metadata_load(path), path.read_text(encoding="utf-8").lower()
    assert (data["license"], data["datasets"]) == ("mit", ["common_voice"])
    assert "base_model" not in data, "a name of NVIDIA's catalogue is no model of the hub"
    assert data["model-index"][0]["results"][0]["dataset"]["type"] == "common_voice"
    assert "synthetic" not in text and "read sentences of" in text
    assert "of 10 test utterances 2 (20.0%) are by a speaker heard in training" in text
    assert "expect more errors with new voices" in text


@pytest.mark.parametrize(
    ("base", "named"),
    [
        ("nvidia/parakeet-ctc-0.6b", "nvidia/parakeet-ctc-0.6b"),
        *((base, None) for base in (None, "stt_it", "runs/a.nemo", "/models/a", "~/a/b")),
    ],
)
def test_only_a_base_of_the_hub_is_linked(tmp_path: Path, base: str | None, named: str | None) -> None:
    """The hub takes OWNER/NAME of a model it has, and nothing else."""
    script = runpy.run_path(str(ROOT / "Fine_tuning" / "export.py"))
    config = load_config(make(tmp_path), [])
    arguments = argparse.Namespace(language=None, config="c", overrides=[], license="mit", push=None)
    finished = script["gather"](tmp_path / "run" / "Model-IT-finetuned.nemo", config, arguments)
    finished.run["config"]["model"]["base"] = base
    assert card_metadata.make_metadata(finished).to_dict().get("base_model") == named


def test_without_a_language_model_there_is_one_row(export: Script, tmp_path: Path) -> None:
    (tmp_path / "results" / "Model-IT-finetuned+LM.json").unlink()
    assert export().returncode == 0
    path = tmp_path / "run" / "export" / "README.md"
    assert len(ModelCard.load(path).data.eval_results) == 2 and "+LM" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("nothing", ["run/Model-IT-finetuned.nemo", "run/run.json"])
def test_a_model_that_is_not_trained_yet(export: Script, tmp_path: Path, nothing: str) -> None:
    (tmp_path / nothing).unlink()
    assert_refused(export(), "there is no finished model", f"train.py --config {tmp_path}/small.yaml")
    assert not (tmp_path / "run" / "export").exists()


def test_a_model_that_is_not_evaluated_yet(export: Script, tmp_path: Path) -> None:
    (tmp_path / "results" / "Model-IT-finetuned.json").unlink()
    refused = export("training.seed=0")
    assert_refused(refused, "there are no results", f"evaluate.py --config {tmp_path}/small.yaml training.seed=0\n")
    refused = export("evaluation.models=[]")
    assert_refused(refused, f"'evaluation.models=[{tmp_path}/run/Model-IT-finetuned.nemo]'")


@pytest.mark.parametrize("kind", ["", "+LM"])
def test_results_of_another_model(export: Script, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "results" / f"Model-IT-finetuned{kind}.json"
    change(path, sha256={**read_json(path)["sha256"], "model": "0" * 64})
    assert_refused(export(), f"{path} is of another model", "evaluate again with: python Fine_tuning/evaluate.py")


def test_results_of_another_test_set(export: Script, tmp_path: Path) -> None:
    with manifest_path(tmp_path / "data", "test").open("a") as manifest:
        manifest.write("\n")
    assert_refused(export(), "is of another manifest", "evaluate again")


@pytest.mark.parametrize("folder", ["run", "results", "run/export"])
def test_a_folder_that_another_run_writes_to(export: Script, tmp_path: Path, folder: str) -> None:
    """What is read there could be of two runs."""
    (tmp_path / folder).mkdir(exist_ok=True)
    before = sorted((tmp_path / "run").rglob("*"))
    holder = f"import fcntl, os, time; fcntl.flock(os.open({str(tmp_path / folder)!r}, 0), 2); print(1); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-uc", holder], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        refused = export()
        other.kill()
    assert_refused(refused, f"another run is writing to {tmp_path / folder}; wait until it has finished")
    assert sorted((tmp_path / "run").rglob("*")) == before
    assert export().returncode == 0


def test_whatever_the_steps_have_left_it_is_one_sentence(tmp_path: Path) -> None:
    """Of the files that the card is made of, whatever is in them."""
    config = load_config(make(tmp_path), [])
    script = runpy.run_path(str(ROOT / "Fine_tuning" / "export.py"))
    arguments = argparse.Namespace(language=None, config="c", overrides=[], license="mit", push=None)
    model = tmp_path / "run" / "Model-IT-finetuned.nemo"
    names = ["run/run.json", "run/metrics.csv", "data/dataset.json", "results/comparisons.json"]
    whole = {name: (tmp_path / name).read_bytes() for name in [*names, "results/Model-IT-finetuned+LM.json"]}

    @given(st.sampled_from(list(whole)).flatmap(lambda name: st.tuples(st.just(name), mutated(whole[name]))))
    @settings(max_examples=40, deadline=None)
    def gather(changed: tuple[str, bytes]) -> None:
        (tmp_path / changed[0]).write_bytes(changed[1])
        try:
            card_metadata.validate_card(model_card.write_model_card(script["gather"](model, config, arguments)))
        except UserError as error:
            assert str(error).count("\n") == 0
        finally:
            (tmp_path / changed[0]).write_bytes(whole[changed[0]])

    gather()


def test_data_of_another_training(export: Script, tmp_path: Path) -> None:
    with manifest_path(tmp_path / "data", "train").open("a") as manifest:
        manifest.write("\n")
    assert_refused(export(), "was trained on other data", "train.py")


def test_a_model_of_another_run(export: Script, tmp_path: Path) -> None:
    (tmp_path / "run" / "Model-IT-finetuned.nemo").write_bytes(b"another")
    assert_refused(export(), "is not the model that run.json", "train.py")
    change(tmp_path / "run" / "run.json", model=sha256(tmp_path / "run" / "Model-IT-finetuned.nemo"))
    for path in (tmp_path / "results").glob("M*.json"):
        change(path, sha256={**read_json(path)["sha256"], "model": read_json(tmp_path / "run" / "run.json")["model"]})
    assert_refused(export(), "is no model of NeMo")


def test_no_dataset(export: Script, tmp_path: Path) -> None:
    (tmp_path / "data" / "dataset.json").unlink()
    assert_refused(export(), "there is no dataset", "dataset_creation.py")


@pytest.mark.parametrize("release", ["recordings", "my-calls.csv", f"{REAL} + cv-corpus-24.0-2025-12-05/es"])
def test_data_whose_name_does_not_say_the_language(export: Script, tmp_path: Path, release: str) -> None:
    change(tmp_path / "data" / "dataset.json", release=release)
    assert_refused(export(), f"{release}, does not say the language", "--language it")
    done = export("--language", "MDW")
    assert done.returncode == 0 and "--license cc-by-4.0 --language mdw --push OWNER/NAME" in done.stdout
    assert metadata_load(tmp_path / "run" / "export" / "README.md")["language"] == "mdw"


def test_the_language_of_a_release_beside_a_table(export: Script, tmp_path: Path) -> None:
    change(tmp_path / "data" / "dataset.json", release=f"calls.csv + {REAL} + cv-corpus-23.0-2025-09-05/it")
    assert export().returncode == 0
    assert metadata_load(tmp_path / "run" / "export" / "README.md")["language"] == "it"


def test_results_without_a_rate_or_of_an_older_version(export: Script, tmp_path: Path) -> None:
    path = tmp_path / "results" / "Model-IT-finetuned+LM.json"
    whole = read_json(path)
    change(path, cer=0.1)
    assert_refused(export(), f"{path} is not what evaluate.py writes; delete it and evaluate again")
    change(path, cer=None, characters=0)
    assert_refused(export(), "states no number for Test CER")
    assert not (tmp_path / "run" / "export").exists(), "a broken card is not written"
    write_json(path, {key: value for key, value in whole.items() if key != "slices"})
    assert_refused(export(), "lack what a model card states ('slices')")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ((), ["a model needs a licence", "--license ID"]),
        (("--license", "cc0"), ["cc0 is no licence of the hub", "cc0-1.0"]),
        (("--license", "other"), ["other is no licence of the hub"]),
        (("--license", "mit", "--language", "Italian"), ["'italian' is no code of a language", "such as it"]),
        *(
            (("--license", "mit", "--push", name), ["is not of the form OWNER/NAME", "--push your-name/asr-it"])
            for name in ("", "name", "a/b/c", "a--b/c", "à/b")
        ),
    ],
)
def test_what_is_typed_wrongly(
    run_in_process: Script, tmp_path: Path, typed: tuple[str, ...], words: list[str]
) -> None:
    assert_refused(run_in_process("export.py", "--config", "configs/demo.yaml", *typed), *words)


HEAD = """---
language: it
license: mit
library_name: nemo
pipeline_tag: automatic-speech-recognition
tags: [speech]
metrics: [wer, cer]
model-index:
- name: m
  results:
  - task: {type: automatic-speech-recognition}
    dataset: {type: d, name: D}
    metrics:
    - {type: wer, value: 10.4, name: WER}
    - {type: cer, value: 1.58, name: CER}
---
"""
CARD = HEAD + "".join(f"\n## {name}\n\ntext\n" for name in card_metadata.SECTIONS)


@pytest.mark.parametrize(
    ("whole", "broken", "says"),
    [
        (HEAD, "", "lacks language, license"),
        ("license: mit\n", "", "lacks license"),
        ("license: mit", "license: my-own", "names the licence my-own"),
        ("language: it", "language: Italian", "names the language Italian"),
        ("language: it", "language: [", "cannot be read"),
        ("automatic-speech-recognition\ntags", "text-generation\ntags", "is of the task text-generation"),
        ("tags: [speech]\n", "", "lacks tags"),
        ("    - {type: cer, value: 1.58, name: CER}\n", "", "does not state both"),
        ("value: 10.4, ", "", "cannot be read"),
        ("value: 10.4", "value: .nan", "states no number for WER"),
        ("value: 10.4", "value: '10.4'", "states no number for WER"),
        ("value: 10.4", "value: -1", "states no number for WER"),
        ("- name: m\n", "-\n", "cannot be read"),
        ("\n## Limits\n", "\n", "has no section Limits"),
        ("text", "a loss of nan", "has a figure that is not known"),
    ],
)
def test_a_broken_card_is_refused(whole: str, broken: str, says: str) -> None:
    card_metadata.validate_card(CARD)
    assert whole in CARD
    with pytest.raises(UserError, match=re.escape(says)) as refused:
        card_metadata.validate_card(CARD.replace(whole, broken, 1))
    assert "\n" not in str(refused.value)


class Hub(BaseHTTPRequestHandler):
    """Answers what the library asks when a model is uploaded and downloaded, and keeps what came."""

    protocol_version = "HTTP/1.1"
    status = 200  # from the first request on
    status_of_commit = 200
    came: dict[str, bytes]  # by path
    asked: list[tuple[str, str | None]]  # paths, and the token with it

    def body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        """As the hub's: a committed file of the large storage is a redirection to it, what is not there a code."""
        committed = map(json.loads, self.came.get("/api/models/me/asr-it/commit/main", b"").splitlines()[1:])
        oids = {file["value"]["path"]: file["value"]["oid"] for file in committed if file["key"] == "lfsFile"}
        folder, _, name = self.path.rpartition("/")
        if folder == "/storage":
            self.send(200, self.came[self.path])
        elif folder in ("/me/asr-it/resolve/main", "/me/asr-it/resolve/c0ffee") and name in oids:
            stored = f"/storage/{oids[name]}"
            address = f"http://localhost:{self.server.server_port}{stored}"  # another host than the hub's, as there
            size = str(len(self.came[stored]))
            self.send(302, Location=address, X_Repo_Commit="c0ffee", X_Linked_Etag=oids[name], X_Linked_Size=size)
        elif folder.startswith("/me/asr-it/resolve/"):
            self.send(404, X_Error_Code="EntryNotFound", X_Repo_Commit="c0ffee")
        else:
            self.answer()

    do_HEAD = do_GET

    def answer(self) -> None:
        content = self.body()
        self.asked.append((self.path, self.headers["Authorization"]))
        host = f"http://{self.headers['Host']}"
        status, told = self.status, {"error": "no"}
        if status == 200 and self.path == "/api/repos/create":
            told = {"url": f"{host}/me/asr-it"}
        elif status == 200 and self.path == "/api/models/me/asr-it/preupload/main":
            files = [file["path"] for file in json.loads(content)["files"]]
            modes = [(path, "lfs" if path.endswith(".nemo") else "regular") for path in files]
            told = {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]}
        elif status == 200 and self.path == "/me/asr-it.git/info/lfs/objects/batch":
            (file,) = json.loads(content)["objects"]
            told = {"objects": [{**file, "actions": {"upload": {"href": f"{host}/storage/{file['oid']}"}}}]}
        elif status == 200 and self.path == "/api/models/me/asr-it/commit/main":
            status, told = (
                self.status_of_commit,
                {"commitUrl": f"{host}/me/asr-it/commit/c0ffee", "commitOid": "c0ffee"},
            )
        self.came[self.path] = content
        self.send(status, json.dumps(told).encode())

    do_POST = do_PUT = answer

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(**behaviour: object) -> Iterator[tuple[str, Hub]]:
    """The address of a hub on this machine, and what it has kept."""
    hub = type("AsToldHub", (Hub,), {**behaviour, "came": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def push(run_script: Script, tmp_path: Path) -> Script:
    """push(address, token): export in a process of its own, which takes that address for the hub's."""
    config = make(tmp_path)

    def run(address: str, token: str = TOKEN, *typed: str) -> subprocess.CompletedProcess[str]:
        env = {"HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
        done = run_script("export.py", "--config", config, "--license", "mit", *(typed or TO), env=env, timeout=120)
        assert TOKEN not in done.stdout + done.stderr
        return done

    return run


TO = ("--push", "me/asr-it")


def test_what_is_pushed_arrives_complete(push: Script, tmp_path: Path) -> None:
    with serving() as (address, hub):
        done = push(address)
    assert done.returncode == 0, done.stderr
    assert f"Pushed to me/asr-it: {address}/me/asr-it/commit/c0ffee" in done.stdout
    created = json.loads(hub.came["/api/repos/create"])
    assert created.items() >= {"name": "asr-it", "organization": "me"}.items() and "visibility" not in created
    head, *files = map(json.loads, hub.came["/api/models/me/asr-it/commit/main"].splitlines())
    assert head["value"]["summary"] == "asr-it and its card"
    sent = {file["value"]["path"]: file["value"] for file in files}
    folder = tmp_path / "run" / "export"
    assert sent.keys() == {"README.md", "asr-it.nemo"} == {path.name for path in folder.iterdir()}
    card = (folder / "README.md").read_bytes()
    assert base64.b64decode(sent["README.md"]["content"]) == card
    assert json.loads(hub.came["/api/validate-yaml"])["content"].encode() == card
    assert sent["asr-it.nemo"]["oid"] == sha256(MODEL)
    assert hub.came[f"/storage/{sha256(MODEL)}"] == MODEL.read_bytes()
    tokens = dict(hub.asked)
    tokens.pop("/api/agent-harnesses", None)  # a list the library may look at
    assert tokens.pop(f"/storage/{sha256(MODEL)}") is None, "the storage is not told"
    assert set(tokens.values()) == {f"Bearer {TOKEN}"}


def test_without_push_nothing_is_sent(push: Script) -> None:
    with serving() as (address, hub):
        assert push(address, TOKEN, "training.seed=0").returncode == 0
    assert not hub.asked


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "hf auth login"), (403, "may write there"), (404, "look at OWNER/NAME"), (500, "wait")]
)
def test_a_hub_that_refuses(push: Script, status: int, advice: str) -> None:
    with serving(status=status) as (address, _):
        refused = push(address)
    assert_refused(refused, f"cannot push to me/asr-it: the hub answers {status}", advice)
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr


def test_a_hub_that_refuses_at_the_end(push: Script, tmp_path: Path) -> None:
    with serving(status_of_commit=403) as (address, _):
        assert_refused(push(address), "cannot push to me/asr-it: the hub answers 403")
    assert (tmp_path / "run" / "export" / "README.md").is_file()


def test_a_hub_that_cannot_be_reached(push: Script) -> None:
    with serving() as (address, _):
        pass
    refused = push(address)
    assert_refused(refused, "cannot push to me/asr-it: the hub cannot be reached")
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr


def test_no_token(push: Script) -> None:
    with serving() as (address, hub):
        assert_refused(push(address, ""), "without a token of the hub", "hf auth login")
    assert not hub.asked


@pytest.mark.nemo
def test_what_the_cards_say_to_type_works(push: Script, sample_archive: Path, tmp_path: Path) -> None:
    """Both cards, that of the folder and that of the hub, in stock NeMo, which downloads the pushed model."""
    write_clips(sample_archive, tmp_path, 6)
    folder, codes = tmp_path / "run" / "export", []
    with serving() as (address, _):
        for typed in (("training.seed=0",), TO):
            pushed = push(address, TOKEN, *typed)
            assert pushed.returncode == 0, pushed.stderr
            card = (folder / "README.md").read_text(encoding="utf-8")
            codes += re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        shutil.copyfile(MODEL, tmp_path / "Model-IT-finetuned.nemo")  # where the first card is read
        max((tmp_path / "wavs").iterdir(), key=lambda wav: wav.stat().st_size).rename(tmp_path / "recording.wav")
        env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": ""}
        program = [sys.executable, "-c", "\n".join(codes)]
        ran = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert 'ASRModel.from_pretrained("me/asr-it")' in codes[1]
    of_file, of_hub = [line for line in ran.stdout.splitlines() if not line.startswith("[NeMo")]
    assert of_file == of_hub and len(of_hub) > 3, ran.stdout
    assert [path.name for path in folder.glob("*.nemo")] == ["asr-it.nemo"], "the link of the first export is gone"


@pytest.mark.nemo
def test_a_checkpoint_of_a_run_becomes_a_model(
    tiny_config: Path, tiny_run: Path, run_script: Script, tmp_path: Path
) -> None:
    import torch

    from finetuning.model.ctc_model import get_vocabulary, restore_model

    (checkpoint,) = (tiny_run / "checkpoints").glob("epoch=000-*.ckpt")
    usual = ("export.py", "--config", str(tiny_config), "--checkpoint")
    for name in (checkpoint.name, str(checkpoint)):
        done = run_script(*usual, name)
        assert done.returncode == 0, done.stderr
        path = tiny_run / f"Model-IT-finetuned-{checkpoint.stem.replace('=', '')}.nemo"
        assert f"Wrote {path}" in done.stdout
        model, weights = restore_model(path), torch.load(checkpoint, weights_only=False)["state_dict"]
        assert all(torch.equal(weight, weights[key]) for key, weight in model.state_dict().items())
        assert "à" in get_vocabulary(model).tokens
        path.unlink()
    elsewhere = shutil.copy(checkpoint, tmp_path)
    for other in ("none.ckpt", elsewhere):
        refused = run_script(*usual, other)
        assert_refused(refused, f"{other} is not among the checkpoints in", checkpoint.name, "last.ckpt")
    damaged = checkpoint.with_name("damaged.ckpt")
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert_refused(run_script(*usual, str(damaged)), "damaged.ckpt is not a checkpoint of this run, or damaged")
    damaged.unlink()
    assert_refused(run_script(*usual, checkpoint.name, "training.seed=5"), "made from something else", "training.seed")
    assert_refused(
        run_script(*usual, checkpoint.name, "--license", "mit"), "leave --license, --language, --onnx and --push out"
    )
    assert not list(tiny_run.glob("Model-IT-finetuned-*"))


def test_the_card_names_the_sound_that_was_added() -> None:
    noise = {"folder": "noise", "probability": 0.5, "min_snr_db": 5, "max_snr_db": 30.0}
    training = {"gain_db": 6.0, "noise": noise, "room": {"folder": None, "probability": 0.3}}
    assert model_card._added_sound(training) == {
        "Loudness": "± 6 dB",
        "Noise": "in 50% of the clips, 5 to 30 dB below the speech",
    }
    assert model_card._masks(
        {"rect_masks": 5, "rect_freq": 50, "rect_time": 120, "freq_masks": 0, "time_masks": 0}
    ) == ("5 rectangles of up to 50 mel bands and 120 frames")
