"""A finished model -> a folder for others: the model and its card and, when asked, the same on the hub.

    python Fine_tuning/export.py --license ID [--language CODE] [--onnx] [--config FILE] [section.key=value …]
                                 [--push OWNER/NAME]
    python Fine_tuning/export.py --checkpoint FILE [--config FILE] [section.key=value …]

Writes <training.output>/export/: the .nemo and README.md, a model card made from run.json, metrics.csv, dataset.json
and the results of step 3. With --onnx also the files that sherpa-onnx runs, on phones, in browsers and elsewhere,
provided that it recognises the test set as step 3 does. Without --push nothing is sent anywhere. With --checkpoint it
only writes a .nemo of that checkpoint of step 2 into training.output, also while the training is not finished.
"""

import finetuning.startup  # noqa: F401  first: it says what ends a script while the rest is imported

# isort: split
import argparse
import difflib
import http.client
import os
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.config import schema as experiment
from finetuning.config.loading import config_parser, load_config
from finetuning.config.schema import Config
from finetuning.data.manifest import manifest_path
from finetuning.errors import UserError, printable, run_script
from finetuning.files import atomic_open, atomic_path, ensure_writable_dir, exclusive_locks, read_json, sha256

if TYPE_CHECKING:
    from finetuning.evaluation.results import Comparison, Result
    from finetuning.export.trained_model import TrainedModel


def main() -> None:
    """Gather, write and check; then push or say how."""
    arguments = command_line()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.checkpoint:
        print(f"Wrote {export_checkpoint(arguments.checkpoint, config)}")
        return
    from finetuning.export import card_metadata, model_card, onnx_files

    model = experiment.resolve_path(config.training.output) / f"{config.training.name}.nemo"
    read_from = (model.parent, experiment.resolve_path(config.evaluation.results))
    with ExitStack() as locks:
        with exclusive_locks(*filter(Path.is_dir, read_from)):  # what is gathered is of one run of each step
            finished = gather(model, config, arguments)
            card = model_card.write_model_card(finished)
            card_metadata.validate_card(card)
            folder = ensure_writable_dir(model.parent / "export")
            locks.enter_context(exclusive_locks(folder))
            if onnx := add_onnx(model, finished.rows[0], config, folder, arguments.onnx):
                card = model_card.write_model_card(replace(finished, onnx=onnx))
            exported = link(model, folder / finished.file_name)
        with atomic_open(folder / "README.md") as text:
            text.write(card)
        files = [exported, folder / "README.md", *(folder / name for name in onnx_files.FILES if onnx)]
        print("\n".join(["Wrote", *(f"  {file}  {file.stat().st_size:,} bytes" for file in files)]))
        if len(finished.rows) > 1:
            print(f"The language model behind {finished.rows[1]['model']} is not among them")
        if arguments.push:
            print(f"Pushed to {arguments.push}: {push(arguments.push, files)}")
        else:
            language = ["--language", arguments.language] if arguments.language else []
            more = ("--license", arguments.license, *language, "--push", "OWNER/NAME")
            again = command("export.py", arguments, *more)
            if onnx:
                print("test.wav is a recording of the test set: publish it only with its speaker's consent")
            print(f"Nothing was sent. These {len(files)} files go to the hub, for everybody to see, with:\n  {again}")


def command_line() -> argparse.Namespace:
    """Return the arguments; raise UserError for a licence the hub does not know and for what is not OWNER/NAME."""
    parser = config_parser(__doc__)
    parser.add_argument(
        "--license",
        metavar="ID",
        type=str.lower,
        help="the licence you give the model, by its id on the hub: mit, apache-2.0, cc-by-4.0, cc0-1.0, …; "
        "required; the licences of the data and of the base model may restrict your choice",
    )
    parser.add_argument(
        "--language",
        metavar="CODE",
        type=str.lower,
        help="the language's code, of ISO 639, for the model card: it, pl, mdw; a release of Common Voice says its own",
    )
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="upload to this model of the Hugging Face Hub, which is created, public, if it does not exist; the token "
        "is that of `hf auth login` or HF_TOKEN",
    )
    parser.add_argument(
        "--onnx", action="store_true", help="also the files for sherpa-onnx, tried on the whole test set"
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="a checkpoint of step 2, by its path or its name in checkpoints/"
    )
    arguments = parser.parse_intermixed_args()
    of_the_card = (arguments.license, arguments.language, arguments.onnx, arguments.push)
    if arguments.checkpoint and any(of_the_card):
        raise UserError("--checkpoint writes a .nemo alone; leave --license, --language, --onnx and --push out")
    if arguments.checkpoint:
        return arguments
    from finetuning.export.card_metadata import LICENSES

    if arguments.license not in LICENSES:
        near = difflib.get_close_matches(arguments.license or "", LICENSES, n=3, cutoff=0.5) or ["mit", "cc-by-4.0"]
        says = f"{arguments.license} is no licence of the hub" if arguments.license else "a model needs a licence"
        raise UserError(f"{says}; type --license ID, for example {', '.join(near)}")
    if arguments.language is not None and not re.fullmatch("[a-z]{2,3}", arguments.language):
        raise UserError(f"{printable(arguments.language)!r} is no code of a language; type one of ISO 639, such as it")
    if arguments.push is not None:
        validate_repository(arguments.push)
    return arguments


def export_checkpoint(name: str, config: Config) -> Path:
    """Write the weights of a checkpoint as a `.nemo` beside the run's own and return its path.

    Raise UserError for a file that is no checkpoint of this run.
    """
    output = experiment.resolve_path(config.training.output)
    folder = output / "checkpoints"
    path = folder / Path(name).name
    if not path.is_file() or (path.name != name and not path.samefile(name)):
        names = sorted(known.name for known in folder.glob("[!.]*.ckpt")) or ["none yet"]
        raise UserError(f"{name} is not among the checkpoints in {folder}: {', '.join(names)}")
    print("Loading NeMo, which takes a moment")
    from finetuning.model.ctc_model import save_model
    from finetuning.model.pretrained import locate_model
    from finetuning.training import run_record
    from finetuning.training.checkpoints import read_checkpoint
    from finetuning.training.fine_tuning import load_starting_model

    base = locate_model(config.model.base, config.model) if config.model.base else None
    run_record.start_run(output, config, base, is_main_process=False)  # as train.py: is it this configuration's run?
    model = load_starting_model(config, base, output)
    try:
        model.load_state_dict(read_checkpoint(path)["state_dict"])
    except Exception as error:  # torch, zipfile and pickle each have their own
        reason = textwrap.shorten(printable(str(error)) or type(error).__name__, 200, placeholder=" …")
        raise UserError(f"{path} is not a checkpoint of this run, or damaged ({reason}); name another") from error
    exported = output / f"{config.training.name}-{path.stem.replace('=', '')}.nemo"
    save_model(model, exported)
    return exported


def validate_repository(repository: str) -> None:
    """Raise UserError when `repository` is not of the form OWNER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        if repository.count("/") != 1:
            raise HFValidationError
    except HFValidationError as error:
        raise UserError(
            f"{printable(repository)!r} is not of the form OWNER/NAME; type for example --push your-name/asr-it "
            "(letters, digits, - _ . and neither -- nor ..)"
        ) from error


def command(script: str, arguments: argparse.Namespace, *more: str) -> str:
    """Return the command that runs `script` on the same experiment."""
    own = ["--config", arguments.config, *arguments.overrides, *more]
    return f"python Fine_tuning/{script} {shlex.join(own)}"


def gather(model: Path, config: Config, arguments: argparse.Namespace) -> "TrainedModel":
    """Return what the three steps recorded of `model`; raise UserError with the command to run where one is missing."""
    from finetuning.export.trained_model import TrainedModel, language_of, read_network
    from finetuning.metrics.history import read_metrics
    from finetuning.training import run_record

    again = command("train.py", arguments)
    record = run_record.read_record(model.parent) or {}
    if not model.is_file() or "model" not in record:
        raise UserError(f"there is no finished model {model} yet; make it with: {again}")
    if record["model"] != sha256(model):
        raise UserError(f"{model} is not the model that run.json beside it speaks of; delete it and type: {again}")
    data = experiment.manifest_folder(config)
    dataset, train = read_json(data / "dataset.json"), manifest_path(data, "train")
    if not isinstance(dataset, dict) or not train.is_file():
        raise UserError(f"there is no dataset in {data}; make it with: {command('dataset_creation.py', arguments)}")
    if record["made_from"].get("train_manifest") != sha256(train):
        raise UserError(f"{model} was trained on other data than {train}; train another one on them: {again}")
    rows = list(read_results(model, record["model"], config, arguments))
    stated = record["config"].get("evaluation")
    notes = (config.evaluation.note, stated.get("note") if isinstance(stated, dict) else "")
    return TrainedModel(
        name=config.training.name,
        license=arguments.license,
        language=arguments.language or language_of(str(dataset.get("release"))),
        network=read_network(model),
        run=record,
        dataset=dataset,
        metrics=read_metrics(model.parent / "metrics.csv"),
        rows=rows,
        compared=read_comparisons(rows, config),
        synthetic=any("synthetic" in str(note).lower() for note in notes),
        repository=arguments.push,
    )


def read_results(model: Path, digest: str, config: Config, arguments: argparse.Namespace) -> Iterator["Result"]:
    """Yield the results of `model` on the present test set: greedy and, if any, with the language model."""
    from finetuning.evaluation import results

    test = manifest_path(experiment.manifest_folder(config), "test")
    inputs = {"model": digest, "manifest": sha256(test) if test.is_file() else None}
    names = [name for name in config.evaluation.models if isinstance(name, str)]
    listed = any(experiment.resolve_path(name) == model for name in names)
    also = [] if listed else [f"evaluation.models=[{config.training.output}/{model.name}]"]
    for kind, decoder in ((model.stem, "greedy"), (f"{model.stem}{results.WITH_LM}", "lm")):
        path = experiment.resolve_path(config.evaluation.results) / f"{kind}.json"
        row = results.read_result(path)
        if row is None and decoder == "lm":
            continue
        again = command("evaluate.py", arguments, *also, *(["evaluation.decoder=lm"] if decoder == "lm" else []))
        if row is None:
            raise UserError(f"there are no results of {model.name} yet; make them with: {again}")
        other = [what for what, its_hash in inputs.items() if row["sha256"].get(what) != its_hash]
        if other:
            raise UserError(f"{path} is of another {other[0]} than the one that is there; evaluate again with: {again}")
        yield row


def read_comparisons(rows: list["Result"], config: Config) -> list["Comparison"]:
    """Return step 3's comparisons of these results that are from the same run."""
    from finetuning.evaluation.results import COMPARISONS, round_or_none

    path = experiment.resolve_path(config.evaluation.results) / f"{COMPARISONS}.json"
    wer: dict[str, Any] = {row["model"]: row["wer"] for row in rows}
    try:
        mine = [pair for pair in read_json(path) or [] if {pair["one"], pair["other"]} <= wer.keys()]
        return [pair for pair in mine if pair["wer_difference"] == round_or_none(wer[pair["one"]] - wer[pair["other"]])]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what evaluate.py writes; delete it and evaluate again") from error


def add_onnx(model: Path, row: "Result", config: Config, folder: Path, wanted: bool) -> dict[str, Any] | None:
    """Return the record of the ONNX files in `folder`, made where `wanted`; those of another model or test set go."""
    from finetuning.export import onnx_files

    if record := onnx_files.read_record(folder, row):
        print(f"The ONNX files in {folder} are of this model and test set")
        return record
    if not wanted:
        for name in onnx_files.FILES:
            (folder / name).unlink(missing_ok=True)
        return None
    print("Loading NeMo, which takes a moment")
    from finetuning.export.sherpa_onnx_folder import export_for_sherpa_onnx

    test = manifest_path(experiment.manifest_folder(config), "test")
    return export_for_sherpa_onnx(model, row, config.text, test, folder)


def link(model: Path, path: Path) -> Path:
    """Make `path` the only hard link to `model` in its folder, or a copy where there are no links, and return it."""
    with atomic_path(path) as temporary:
        temporary.unlink()
        try:
            os.link(model, temporary)
        except OSError:
            shutil.copyfile(model, temporary)
    for former in path.parent.glob("*.nemo"):  # of an export to another repository, or to none
        if former != path and former.samefile(model):
            former.unlink()
    return path


def push(repository: str, files: list[Path]) -> str:
    """Upload `files` in one commit and return its address; raise UserError in one sentence where that fails."""
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HTTPError

    if not get_token():
        raise UserError(
            f"cannot push to {repository} without a token of the hub; type: hf auth login (or set HF_TOKEN), then "
            "rerun the same command"
        )
    hub = HfApi()
    try:
        hub.create_repo(repository, exist_ok=True)
        added = [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file) for file in files]
        return hub.create_commit(repository, added, commit_message=f"{files[0].stem} and its card").commit_url
    except (HTTPError, OSError, RuntimeError, ValueError, KeyError) as error:  # the library lets them all through
        raise UserError(
            f"cannot push to {repository}: {describe_failure(error)}, and rerun the same command"
        ) from error


def describe_failure(error: BaseException) -> str:
    """Return the reason and what to do, in our words: the library's messages are long and may hold signed addresses."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    while not isinstance(error, HTTPError | OfflineModeIsEnabled) and error.__cause__:
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and isinstance(error, HTTPError):
        return "the hub cannot be reached; check the network"
    if status is None:
        message = re.sub(r"https?://\S+", "…", printable(str(error)))[:300]  # an address may be signed
        if isinstance(error, ValueError | KeyError):
            return f"its answer is not understood ({message}); look at the card and at HF_ENDPOINT"
        return f"the upload broke off ({message}); fix this"
    advice = {
        401: "log in with a token that is valid: hf auth login, or HF_TOKEN",
        403: "take a token that may write there, or another OWNER",
        404: "look at OWNER/NAME: there is none, or not for you",
    }.get(status, "wait, or look at OWNER/NAME and the card")
    return f"the hub answers {status} {http.client.responses.get(status, '')}; {advice}"


if __name__ == "__main__":
    run_script(main)
