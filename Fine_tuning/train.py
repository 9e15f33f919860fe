"""Step 2: manifests and a base model -> a fine-tuned model and its loss curve.

    python Fine_tuning/train.py [--config FILE] [section.key=value ...]

Swaps the base model's letters for the configuration's alphabet, trains with the encoder frozen and then unfrozen, and
writes into training.output: the model, image.png, metrics.csv, run.json, checkpoints/ and tensorboard/. Started again
after an interruption it goes on from the last checkpoint.
"""

import finetuning.startup  # noqa: F401  first: it says what ends a script while the rest is imported

# isort: split
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.config import schema as experiment
from finetuning.config.loading import from_command_line
from finetuning.config.schema import Config
from finetuning.data.manifest import SPLITS, Utterance, manifest_path, read_manifest
from finetuning.errors import UserError, run_script
from finetuning.files import ensure_writable_dir, exclusive_lock, remove_stale_temp_files, sha256
from finetuning.metrics.history import last_validation_metrics, missing_epochs, read_metrics
from finetuning.metrics.loss_curve import save_loss_curve
from finetuning.training import diagnostics, run_record

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecCTCModel


LONGEST_NAME = 180  # bytes of a model's name, of the 255 of a file's: others are longer


def main() -> None:
    """Train one model."""
    config = from_command_line(__doc__)
    output = experiment.resolve_path(config.training.output)
    rank = run_record.process_rank(config.training.devices)
    data = read_data(config, speaks=rank == 0)
    base = find_base(config)
    if config.training.overfit:
        self_test(config, base)
        return
    check_names(config, base, output)
    with exclusive_lock(ensure_writable_dir(output)) if rank == 0 else nullcontext():  # the others belong to the first
        train(config, base, output, data["validation"], rank)


def train(config: Config, base: Path | None, output: Path, validation: list[Utterance], rank: int) -> None:
    """Train from `base`, or go on, and leave the model and what belongs to it in `output`."""
    exported = output / f"{config.training.name}.nemo"
    record = run_record.start_run(output, config, base, writes=rank == 0)
    if run_record.is_finished(output, config, record):
        print(f"Already finished: {exported}; type training.output=… to train another one")
        return

    if rank == 0:
        for folder in filter(Path.is_dir, (output, output / "checkpoints")):
            remove_stale_temp_files(folder)
    model = starting_point(config, base, speaks=rank == 0)
    from finetuning.decoding.inference import read_wavs
    from finetuning.model import ctc_model
    from finetuning.training import checkpoints, fine_tuning

    shown = validation[:16]  # the transcripts that are compared at the end, for which step 3's reader is stricter
    read_wavs([utterance.wav(experiment.manifest_folder(config)) for utterance in shown], ctc_model.sample_rate(model))
    start = checkpoints.find_resume_point(output / "checkpoints", model, writes=rank == 0)
    circumstances = fine_tuning.session_info(config.training, start)
    if rank == 0:
        if start.path:
            print(f"Going on from {start.path}")
        if lost := missing_epochs(output / "metrics.csv", start.epochs):
            print(lost)
        run_record.add_session(output, record, **circumstances)
    warnings = fine_tuning.fit(model, config, output, start)
    if rank != 0:
        return

    ctc_model.save_model(model, exported)
    check_transcripts(model, exported, shown, config)
    metrics = read_metrics(output / "metrics.csv")
    if len(metrics):
        save_loss_curve(metrics, f"{config.training.name}: loss per epoch", output / "image.png")
    figures = {"device": circumstances["device"], "epochs": config.training.max_epochs, "warnings": warnings}
    run_record.finish_run(output, record, model=sha256(exported), **figures, **last_validation_metrics(metrics))
    print(f"Wrote {exported}, image.png, metrics.csv and run.json beside it")
    for warning in warnings:
        print(f"There was a warning, {warning}")


def read_data(config: Config, speaks: bool) -> dict[str, list[Utterance]]:
    """The training and validation utterances; one process of several `speaks`."""
    data = {split: checked_utterances(config, split) for split in SPLITS[:2]}
    for split, utterances in data.items() if speaks else ():
        print(f"{split}: {len(utterances)} utterances, {sum(u.duration for u in utterances) / 3600:.2f} h")
    unknown = diagnostics.unseen_characters(*([u.text for u in utterances] for utterances in data.values()))
    if unknown and speaks:
        print(f"warning: {unknown}")
    return data


def find_base(config: Config) -> Path | None:
    """The file of the base model, downloaded when it is not there; None to train from scratch."""
    if not (config.model.base or config.model.architecture):
        raise UserError(f"{config.file} names no model.base; name one, or a model.architecture to train from scratch")
    if not config.model.base and not experiment.resolve_path(config.model.architecture).is_file():
        raise UserError(f"there is no model configuration {config.model.architecture}; model.architecture names a file")
    from finetuning.model.pretrained import locate_model

    return locate_model(config.model.base, config.model) if config.model.base else None


def check_names(config: Config, base: Path | None, output: Path) -> None:
    """UserError for a name or a place that only the end of training, or step 3, would find out to be none."""
    name, path = config.training.name, output / f"{config.training.name}.nemo"
    models = config.evaluation.models
    others = [model for model in models if experiment.resolve_path(model) != path]
    beside = others if len(others) < len(models) else []  # in the table, where step 3 is to run this one
    taken = {m if m in config.model.registry else Path(m).name.removesuffix(".nemo") for m in beside}
    if base and base.resolve() == path.resolve():
        raise UserError(f"model.base is {path}, the file this run writes; type training.output=… or training.name=…")
    if name in {"comparisons", *taken} or name.endswith("+LM"):
        raise UserError(f"training.name={name}: step 3 calls other results so; type another training.name")
    if not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        raise UserError(
            f"training.name must be printable and of at most {LONGEST_NAME} bytes: files are called after it"
        )
    for file in (path, output / "image.png", output / "metrics.csv"):
        if file.is_dir():
            raise UserError(f"{file} is a folder, and this run writes a file of that name; remove it")


def starting_point(config: Config, base: Path | None, speaks: bool) -> "EncDecCTCModel":
    """The model as training begins, its convolutions fast on a CPU."""
    if speaks:
        print("Loading NeMo, which takes a moment")
    from finetuning.model import channels_last, ctc_model
    from finetuning.training import fine_tuning

    model = fine_tuning.load_starting_model(config, base)
    channels_last.use_channels_last(model)
    if speaks:
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{parameters / 1e6:.2f} M parameters, {len(ctc_model.get_vocabulary(model))} letters")
    return model


def self_test(config: Config, base: Path | None) -> None:
    """Say whether the model can learn a few utterances by heart; writes nothing."""
    model = starting_point(config, base, speaks=True)
    from finetuning.training.overfit_check import check_overfit

    steps = check_overfit(model, config)
    print(f"Self-test passed: {config.training.overfit} utterances are learnt by heart after {steps} steps")


def checked_utterances(config: Config, split: str) -> list[Utterance]:
    """The utterances of a manifest whose letters are all in the alphabet: NeMo drops the others without a word."""
    path = manifest_path(experiment.manifest_folder(config), split)
    utterances = read_manifest(path)
    for utterance in utterances:
        foreign = sorted(set(utterance.text) - set(config.text.alphabet))
        if foreign:
            raise UserError(
                f"{path}: the text of {utterance.audio_filepath} holds {''.join(foreign)!r}, which text.alphabet does "
                "not; run step 1 again with this configuration"
            )
    return utterances


def check_transcripts(model: "EncDecCTCModel", exported: Path, utterances: list[Utterance], config: Config) -> None:
    """Restore the exported model once and check that it writes what the trained one writes."""
    from finetuning.decoding.inference import transcribe
    from finetuning.model.ctc_model import restore_model

    folder = experiment.manifest_folder(config)
    trained, restored = (transcribe(m, utterances, folder) for m in (model, restore_model(exported)))
    if trained != restored:
        exported.unlink()
        raise UserError(
            f"{exported} did not transcribe as the trained model does and was removed; checkpoints are kept"
        )
    print(f"Restored {exported.name}: the same transcripts on {len(utterances)} validation utterances")


if __name__ == "__main__":
    run_script(main)
