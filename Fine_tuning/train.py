"""Step 2: manifests and a base model -> a fine-tuned model and its loss curve.

    python Fine_tuning/train.py [--config FILE] [--overfit N] [section.key=value ...]

Replaces the base model's vocabulary by the configuration's alphabet, trains with the encoder frozen and then unfrozen,
and writes into training.output: the model, image.png, metrics.csv, run.json, checkpoints/ and tensorboard/. Rerun after
an interruption, it resumes from the last checkpoint.
"""

import finetuning.startup  # noqa: F401  first: it says what ends a script while the rest is imported

# isort: split
import argparse
import os
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.config import schema as experiment
from finetuning.config.loading import config_parser, load_config
from finetuning.config.schema import Config
from finetuning.data.manifest import SPLITS, Utterance, manifest_path, read_manifest
from finetuning.errors import UserError, run_script
from finetuning.files import ensure_writable_dir, exclusive_lock, remove_stale_temp_files, sha256
from finetuning.metrics.history import last_validation_metrics, missing_epochs, read_metrics
from finetuning.metrics.loss_curve import save_loss_curve
from finetuning.training import diagnostics, run_record

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecCTCModel

    from finetuning.training.checkpoints import ResumePoint

MAX_NAME_BYTES = 180  # of a model, of the 255 of a file name: other files have longer names made from it
# How long a waiting thread of OpenMP stays active. Beside one busy process on two cores, training falls to a quarter of
# its speed with OpenMP's own value and to half with this, which is a tenth slower where nothing else runs
SPIN_COUNT = "1000"
EXAMPLES = 16  # validation utterances whose transcripts are compared after the export


def main() -> None:
    """Train one model, or check that it can overfit a few utterances."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # which torch reads when it is imported
    arguments = parse_arguments()
    config = load_config(arguments.config, arguments.overrides)
    output = experiment.resolve_path(config.training.output)
    rank = run_record.process_rank(config.training.devices)
    data = read_data(config, is_main_process=rank == 0)
    base = find_base(config)
    if arguments.overfit is not None:
        run_overfit_check(config, base, arguments.overfit)
        return
    check_names(config, base, output)
    check_logger(config)
    with exclusive_lock(ensure_writable_dir(output)) if rank == 0 else nullcontext():  # one lock for all processes
        train(config, base, output, data["validation"], rank == 0)


def parse_arguments() -> argparse.Namespace:
    """Read the command line; raise UserError for what it cannot mean."""
    parser = config_parser(__doc__)
    parser.add_argument(
        "--overfit", type=int, metavar="N", help="only test whether the model can overfit the first N utterances"
    )
    arguments = parser.parse_intermixed_args()
    if arguments.overfit is not None and arguments.overfit < 1:
        raise UserError(f"--overfit {arguments.overfit}: the number of utterances must be at least 1")
    return arguments


def train(config: Config, base: Path | None, output: Path, validation: list[Utterance], is_main_process: bool) -> None:
    """Train from `base`, or resume, and leave the model and what belongs to it in `output`."""
    exported = output / f"{config.training.name}.nemo"
    record = run_record.start_run(output, config, base, is_main_process)
    if run_record.is_finished(output, config, record):
        print(f"Already finished: {exported}; type training.output=… to train another one")
        return

    if is_main_process:
        for folder in filter(Path.is_dir, (output, output / "checkpoints")):
            remove_stale_temp_files(folder)
    model = load_starting_model(config, base, output, is_main_process)
    from finetuning.decoding.inference import read_wavs
    from finetuning.model import ctc_model
    from finetuning.training import checkpoints, fine_tuning, model_selection

    run_record.check_tokenizer(output, record, ctc_model.get_vocabulary(model))
    examples = validation[:EXAMPLES]  # read before training: step 3's reader is stricter
    read_wavs(
        [utterance.wav(experiment.manifest_folder(config)) for utterance in examples], ctc_model.sample_rate(model)
    )
    start = checkpoints.find_resume_point(output / "checkpoints", model, is_main_process)
    session = fine_tuning.session_info(config.training, start)
    if is_main_process:
        report_resume(output, start)
        run_record.add_session(output, record, **session)
    warnings = fine_tuning.fit(model, config, output, start)
    if not is_main_process:
        return

    selection = model_selection.select_weights(model, validation, experiment.manifest_folder(config))
    report_selection(selection)
    ctc_model.save_model(model, exported)
    check_transcripts(model, exported, examples, config)
    metrics = read_metrics(output / "metrics.csv")
    if len(metrics):
        save_loss_curve(metrics, f"{config.training.name}: loss per epoch", output / "image.png")
    results = {"device": session["device"], "epochs": model.trainer.max_epochs, "warnings": warnings, **selection}
    run_record.finish_run(output, record, model=sha256(exported), **results, **last_validation_metrics(metrics))
    print(f"Wrote {exported}, image.png, metrics.csv and run.json beside it")
    for warning in warnings:
        print(f"There was a warning, {warning}")


def report_resume(output: Path, start: "ResumePoint") -> None:
    """Print from which checkpoint the run resumes, and which epochs metrics.csv lacks."""
    if start.path:
        print(f"Resuming from {start.path}")
    if sentence := missing_epochs(output / "metrics.csv", start.epochs):
        print(sentence)


def report_selection(selection: dict[str, Any]) -> None:
    """Print WER and CER on the validation set of the weights to choose from, and which are exported."""
    for name, candidate in selection["candidates"].items():
        epochs = ", ".join(map(str, candidate["epochs"]))
        chosen = "   <- exported" if name == selection["exported"] else ""
        rates = "validation WER {val_wer:.4f}, CER {val_cer:.4f}".format(**candidate)
        print(f"{name:>8} weights: {rates} (epochs {epochs}){chosen}")


def read_data(config: Config, is_main_process: bool) -> dict[str, list[Utterance]]:
    """Return the training and validation utterances; the main process prints how many they are."""
    data = {split: read_split(config, split) for split in SPLITS[:2]}
    for split, utterances in data.items() if is_main_process else ():
        print(f"{split}: {len(utterances)} utterances, {sum(u.duration for u in utterances) / 3600:.2f} h")
    for source in config.dataset.sources if is_main_process else ():
        count = sum(utterance.source == source.name for utterance in data["train"])
        drawn = "" if source.weight == 1 else f", of which an epoch draws {max(1, round(source.weight * count))}"
        print(f"  from {source.name}: {count}{drawn if count else ''}")
    warning = diagnostics.unseen_characters(*([u.text for u in utterances] for utterances in data.values()))
    if warning and is_main_process:
        print(f"warning: {warning}")
    return data


def find_base(config: Config) -> Path | None:
    """Return the file of the base model, downloaded when it is not there; None to train from scratch."""
    if not (config.model.base or config.model.architecture):
        raise UserError(f"{config.file} names no model.base; name one, or a model.architecture to train from scratch")
    if not config.model.base and not experiment.resolve_path(config.model.architecture).is_file():
        raise UserError(f"there is no model configuration {config.model.architecture}; model.architecture names a file")
    from finetuning.model.pretrained import locate_model

    return locate_model(config.model.base, config.model) if config.model.base else None


def check_names(config: Config, base: Path | None, output: Path) -> None:
    """Raise UserError for a name or a place that would fail only at the end of training, or in step 3."""
    name, path = config.training.name, output / f"{config.training.name}.nemo"
    models = config.evaluation.models
    is_own = [isinstance(model, str) and experiment.resolve_path(model) == path for model in models]
    others = [model for model, own in zip(models, is_own, strict=True) if not own]
    table = others if len(others) < len(models) else []  # the other rows, if step 3 is to evaluate this model
    taken = {experiment.row_name(model, config) for model in table}
    if base and base.resolve() == path.resolve():
        raise UserError(f"model.base is {path}, the file this run writes; type training.output=… or training.name=…")
    if name in {"comparisons", *taken} or name.endswith("+LM"):
        raise UserError(f"training.name={name}: step 3 uses this name for other results; type another training.name")
    if not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        raise UserError(
            f"training.name must be printable and of at most {MAX_NAME_BYTES} bytes: files are named after it"
        )
    for file in (path, output / "image.png", output / "metrics.csv"):
        if file.is_dir():
            raise UserError(f"{file} is a folder, and this run writes a file of that name; remove it")


def check_logger(config: Config) -> None:
    """Raise UserError where the package of `training.logger` is missing."""
    if name := config.training.logger:
        try:
            version(name)
        except PackageNotFoundError:
            raise UserError(f"training.logger={name} needs the package {name}; type: pip install {name}") from None


def load_starting_model(
    config: Config, base: Path | None, output: Path | None, is_main_process: bool
) -> "EncDecCTCModel":
    """Return the model as training begins, its convolutions fast on a CPU; `output`: where a new tokenizer is kept."""
    if is_main_process:
        print("Loading NeMo, which takes a moment")
    from finetuning.model import channels_last, ctc_model
    from finetuning.training import fine_tuning

    model = fine_tuning.load_starting_model(config, base, output)
    channels_last.use_channels_last(model)
    if is_main_process:
        parameters, vocabulary = sum(p.numel() for p in model.parameters()), ctc_model.get_vocabulary(model)
        kind = "pieces of words" if vocabulary.sentencepiece else "characters"
        print(f"{parameters / 1e6:.2f} M parameters, {len(vocabulary)} {kind}")
    return model


def run_overfit_check(config: Config, base: Path | None, count: int) -> None:
    """Print whether the model can overfit `count` utterances; writes nothing."""
    model = load_starting_model(config, base, None, is_main_process=True)
    from finetuning.training.overfit_check import check_overfit

    steps = check_overfit(model, config, count)
    print(f"Overfit check passed: the transcripts of {count} utterances equal their texts after {steps} steps")


def read_split(config: Config, split: str) -> list[Utterance]:
    """Return the utterances of a manifest; raise UserError for characters outside the alphabet, which NeMo drops."""
    path = manifest_path(experiment.manifest_folder(config), split)
    utterances = read_manifest(path)
    for utterance in utterances:
        foreign = sorted(set(utterance.text) - set(config.text.alphabet))
        if foreign:
            raise UserError(
                f"{path}: the text of {utterance.audio_filepath} contains {''.join(foreign)!r}, which text.alphabet "
                "does not; run step 1 again with this configuration"
            )
    return utterances


def check_transcripts(model: "EncDecCTCModel", exported: Path, utterances: list[Utterance], config: Config) -> None:
    """Restore the exported model and raise UserError unless it transcribes as the trained one does."""
    from finetuning.decoding.inference import transcribe
    from finetuning.model.ctc_model import restore_model

    folder = experiment.manifest_folder(config)
    trained, restored = (transcribe(m, utterances, folder) for m in (model, restore_model(exported)))
    if trained != restored:
        exported.unlink()
        raise UserError(
            f"{exported} did not transcribe as the trained model does and was removed; the checkpoints are kept"
        )
    print(f"Restored {exported.name}: the same transcripts on {len(utterances)} validation utterances")


if __name__ == "__main__":
    run_script(main)
