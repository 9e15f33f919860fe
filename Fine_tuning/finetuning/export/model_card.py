"""The model card of a finished model: metadata, then text; no figure in it is typed by hand."""

from typing import Any

from finetuning.config.schema import Evaluation
from finetuning.errors import UserError, printable
from finetuning.evaluation import slices
from finetuning.evaluation.results import Result
from finetuning.evaluation.results_table import format_table, markdown_table
from finetuning.export.card_metadata import SECTIONS, describe_test_set, is_common_voice, make_metadata
from finetuning.export.onnx_files import describe_onnx_files
from finetuning.export.trained_model import TrainedModel
from finetuning.model.vocabulary import WORD_START

LANGUAGES = {
    "ca": "Catalan",
    "cy": "Welsh",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "tr": "Turkish",
    "uk": "Ukrainian",
}  # those of configs/; another one is called by its code
# A file written by the pinned NeMo was tried with 2.6.0, 2.7.3 and 3.0.0; by its code 1.23.0 refuses the decoding
# strategy "greedy_batch".
READERS = "NeMo 2.6, 2.7 and 3.0 read it, NeMo 1.23 does not"


def write_model_card(of: TrainedModel) -> str:
    """The whole card; UserError where what the steps have written lacks something that it states."""
    sections = dict(zip(SECTIONS, (_results, _limits, _use, _training, _data, _licence), strict=True))
    try:
        parts = [f"---\n{make_metadata(of).to_yaml()}\n---", f"# {of.name}", _introduction(of)]
        parts += [f"## {name}\n\n{section(of)}" for name, section in sections.items()]
    except UserError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise UserError(
            f"dataset.json, run.json or the results of {of.name} lack what a model card states ({error}), as those of "
            "an older version do; run the step again that writes it"
        ) from error
    return "\n\n".join(parts) + "\n"


def _introduction(of: TrainedModel) -> str:
    language, row = LANGUAGES.get(of.language, f"`{of.language}`"), of.rows[0]
    origin = f"fine-tuned from `{of.base}`" if of.base else "trained from scratch"
    hours = of.dataset["splits"]["train"]["hours"]
    what = (
        f"Speech recognition: {language} speech in, lower-case text out. A {of.architecture} with CTC, {origin} with "
        f"NVIDIA NeMo on {hours:,.2f} h of `{of.dataset['release']}`. On {row['utterances']:,} test utterances it "
        f"makes {row['insertions'] + row['deletions'] + row['substitutions']:,} word errors to {row['words']:,} words: "
        f"WER {row['wer']:.4f}{_interval(row, 'wer')}."
    )
    warning = (
        "> **Synthetic speech.** A machine spoke all that this model was trained and tested on. The figures below say "
        "nothing about how well it understands people."
    )
    return f"{what}\n\n{warning}" if of.synthetic else what


def _interval(row: Result, metric: str) -> str:
    if row.get(f"{metric}_interval") is None:
        return ""
    low, high = row[f"{metric}_interval"]
    return f" (95 % interval {low:.3f} to {high:.3f})"


def _results(of: TrainedModel) -> str:
    """The project's own table of this model's rows, and how to read it."""
    parts = [
        f"Test set: {describe_test_set(of)}; {of.rows[0]['hours']:,.2f} h, {of.rows[0]['words']:,} words, "
        f"{of.rows[0]['characters']:,} characters.",
        format_table(of.rows, Evaluation(), of.compared),
        "WER and CER: insertions, deletions and substitutions of words and of characters to those of the reference, as "
        "fractions. Test loss: CTC, in nats an utterance.",
        *(
            f"{row['model']}: beam search with an n-gram language model of words, which is **not** among these files; "
            + ", ".join(f"{key} {value:g}" for key, value in row["decoder"].items() if key != "name")
            + ", found on the validation set."
            for row in of.rows[1:]
        ),
        slices.format_slices(of.rows),
    ]
    return "\n\n".join(parts)


def _limits(of: TrainedModel) -> str:
    """What the figures do not say and what the model cannot do."""
    letters = _letters(of.network)
    row, longest = of.rows[0], of.dataset["config"]["dataset.max_duration_s"]
    limits = [
        "Synthetic speech, in training and in the test: nothing is known about real voices, microphones and rooms."
        if of.synthetic
        else f"Read sentences of `{of.dataset['release']}`: spontaneous speech, other microphones, noise and far "
        "speakers are not tested."
        if is_common_voice(of)
        else f"Recordings of `{of.dataset['release']}`: other ways to speak, microphones and rooms are not tested.",
        _known(of),
        f"It writes {' '.join(f'`{letter}`' for letter in letters)} and the space: no capitals, no punctuation"
        + (", digits as words." if not any(map(str.isdecimal, letters)) else "."),
        f"It was trained on clips of at most {longest:g} s; cut longer recordings, as `transcribe.py` does.",
    ]
    if row.get("wer_interval"):
        limits.append(
            f"The intervals come from {row['speakers']:,} speakers of one test set and one training run: another seed "
            "is not in them."
        )
    return "\n".join(f"- {limit}" for limit in limits)


def _letters(network: dict[str, Any]) -> list[str]:
    """Return the letters that a model writes; of pieces, those that they are made of."""
    tokens = network["decoder"]["vocabulary"]
    if "tokenizer" in network:
        tokens = sorted(set("".join(token for token in tokens if not token.startswith("<"))) - {WORD_START})
    return [letter for letter in tokens if letter != " "]


def _known(of: TrainedModel) -> str:
    known, clips = of.dataset["known_from_train"]["test"], of.dataset["splits"]["test"]["clips"]
    if known["speaker"] is None:
        speakers = "Which voices of the test set were heard in training is not known"
    else:
        speakers = f"Of {clips:,} test utterances {_counted(known['speaker'])} are by a speaker heard in training"
    sentences = f"{_counted(known['sentence'])} are of a sentence read there"
    easier = any(part and part["clips"] for part in (known["speaker"], known["sentence"]))
    return f"{speakers}, and {sentences}." + (
        " Expect more errors with new voices and sentences than the figures above say." if easier else ""
    )


def _counted(part: dict[str, float]) -> str:
    return f"{part['clips']:,} ({part['share']:.1%})"


def _use(of: TrainedModel) -> str:
    rate = of.network["preprocessor"]["sample_rate"]
    load = f'from_pretrained("{of.repository}")' if of.repository else f'restore_from("{of.file_name}")'
    return f"""Recordings of {rate / 1000:g} kHz, one channel, with NVIDIA NeMo alone ({READERS}):

```python
from nemo.collections.asr.models import ASRModel

model = ASRModel.{load}
print(model.transcribe(["recording.wav"])[0].text)
```

Audio and video of any format and length, with the project that made this model, at the commit below:

```
python Fine_tuning/transcribe.py {of.repository or of.file_name} recording.mp3
```

SHA-256 of `{of.file_name}`: `{of.run["model"]}`{describe_onnx_files(of.onnx) if of.onnx else ""}"""


def _training(of: TrainedModel) -> str:
    """The recipe, what the run was made with, and how it went."""
    shown = "\n".join(f"- {name}: {printable(value)}" for name, value in _recipe(of).items())
    if not len(of.metrics) or of.metrics["epoch"].iloc[-1] != of.run["epochs"]:  # lost, or of another run
        return shown
    first, last = of.metrics.iloc[0], of.metrics.iloc[-1]
    begin = "the first epoch" if first["epoch"] == 1 else f"epoch {int(first['epoch'])}"  # those before may be lost
    went = (
        f"Validation WER: {first['val_wer']:.4f} after {begin}, {last['val_wer']:.4f} after the last "
        f"({int(last['epoch'])}); lowest {of.metrics['val_wer'].min():.4f}. Validation CER and loss after the last: "
        f"{last['val_cer']:.4f} and {last['val_loss']:.4f}. {_exported_weights(of)}"
    )
    warnings = [f"There was a warning in training: {warning}" for warning in of.run["warnings"]]
    return "\n\n".join([shown, went, *warnings])


def _exported_weights(of: TrainedModel) -> str:
    """Which epochs the weights are of; runs of earlier versions exported the last epoch's."""
    chosen = of.run.get("candidates", {}).get(of.run.get("exported"))
    if not chosen:
        return "These weights are the last epoch's."
    *first, last = map(str, chosen["epochs"])
    weights = f"the average of those of epochs {', '.join(first)} and {last}" if first else f"those of epoch {last}"
    return (
        f"These weights are {weights}, which validated best of those compared: WER {chosen['val_wer']:.4f}, "
        f"CER {chosen['val_cer']:.4f}."
    )


def _added_sound(training: dict[str, Any]) -> dict[str, str]:
    noise, room = training["noise"], training["room"]
    ratio = f"{noise['min_snr_db']:g} to {noise['max_snr_db']:g} dB below the speech"
    used = {
        "Silence": f"up to {training['silence_s']:g} s at both ends" if training.get("silence_s") else "",
        "Loudness": f"± {training['gain_db']:g} dB" if training["gain_db"] else "",
        "Telephone": f"{training['telephone']:.0%} of the clips" if training.get("telephone") else "",
        "Noise": f"in {noise['probability']:.0%} of the clips, {ratio}" if noise["folder"] else "",
        "Rooms": f"in {room['probability']:.0%} of the clips" if room["folder"] else "",
    }
    return {name: how for name, how in used.items() if how}


def _masks(of: dict[str, float]) -> str:
    kinds = {
        "rectangles of up to {rect_freq} mel bands and {rect_time} frames": "rect_masks",
        "frequency masks of up to {freq_width} bands": "freq_masks",
        "time masks of up to {time_width:g}": "time_masks",
    }
    return ", ".join(f"{of[count]} {words.format(**of)}" for words, count in kinds.items() if of[count]) or "none"


def _recipe(of: TrainedModel) -> dict[str, str]:
    training, sessions, made_from = of.run["config"]["training"], of.run["sessions"], of.run["made_from"]
    optimizer, schedule = training["optimizer"], training["schedule"]
    seconds, clip = training["batch_duration_s"], training["gradient_clip"]
    alone = training["devices"] * training["num_nodes"] == 1
    warm = of.base and training["decoder_init"] == "warm"
    normalisation = "frozen too" if training["batch_norm"] == "frozen" else "trained"
    frozen = f"; in the first {training['frozen_epochs']} the encoder frozen, its batch normalisation {normalisation}"
    commits = dict.fromkeys(session["commit"] for session in sessions)
    dirty = " (-dirty: with changes that were not committed)" if any("dirty" in commit for commit in commits) else ""
    return {
        "Base model": f"`{of.base}`, SHA-256 `{made_from['base']}`" if of.base else "none",
        "Decoder at the start": "letters of the base model keep their weights" if warm else "random",
        "Epochs": f"{of.run['epochs']}{frozen if training['frozen_epochs'] else ''}",
        "Batch": (f"{seconds:g} s of audio" if seconds else f"{training['batch_size']} utterances")
        + ("" if alone else f", on each of {training['devices']} × {training['num_nodes']} devices"),
        "Optimiser": f"{optimizer['name']}, learning rate {optimizer['lr']:g}, "
        f"betas {' '.join(f'{beta:g}' for beta in optimizer['betas'])}, weight decay {optimizer['weight_decay']:g}, "
        + (f"gradients clipped at a norm of {clip:g}" if clip else "gradients not clipped"),
        "Learning rate": f"warm-up over {schedule['warmup_ratio']:.0%} of the steps, then cosine annealing to "
        f"{schedule['min_lr']:g}; the encoder's × {training['encoder_lr_scale']:g}",
        "Speed perturbation": f"± {training['speed_perturbation']:.0%}",
        "Dropout": "the base model's" if training["dropout"] is None else f"{training['dropout']:g}",
        "SpecAugment": _masks(training["spec_augment"]),
        **_added_sound(training),
        "Seed": str(training["seed"]),
        "Device": f"{of.run['device']}, precision {sessions[-1]['precision']}",
        "Versions": ", ".join(f"{name} {version}" for name, version in of.run["versions"].items()),
        "Commit of the project": f"{', '.join(f'`{commit}`' for commit in commits)}{dirty}",
    }


def _data(of: TrainedModel) -> str:
    """Who is in which split, what the splits share, and what was left out."""
    about, shares = of.dataset, of.dataset["overlap"]
    cells = [
        (name, f"{split['hours']:,.2f}", *(f"{split[key]:,}" for key in ("clips", "speakers", "sentences")))
        for name, split in about["splits"].items()
    ]
    unknown = "an unknown number of"
    both = "; ".join(
        f"{pair}: {unknown if found['speakers'] is None else format(found['speakers'], ',')} speakers, "
        f"{found['sentences']:,} sentences"
        for pair, found in shares.items()
    )
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in about["rejected_by_reason"].items())
    parts = [
        f"`{about['release']}`, split by {about['config']['dataset.split']['by']}"
        + (", synthetic speech." if of.synthetic else "."),
        markdown_table(("Split", "Hours", "Clips", "Speakers", "Sentences"), cells),
        f"In both of two splits: {both}.",
        f"Of {about['rows']:,} rows {about['rejected']:,} were rejected" + (f" ({reasons})." if reasons else "."),
    ]
    return "\n\n".join(parts)


def _licence(of: TrainedModel) -> str:
    data = f"`{of.dataset['release']}`"
    others = f"{data} and of `{of.base}`" if of.base else data
    return f"`{of.license}`, as stated by whoever exported this model. The licences of {others} are their own."
