"""The model card of a finished model: metadata in the hub's form, then text; no figure in it is typed by hand."""

import math
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from finetuning import results, slices
from finetuning.config import Evaluation
from finetuning.errors import UserError, printable
from finetuning.results import Comparison, Result, markdown

if TYPE_CHECKING:
    import pandas as pd

# The hub's ids of licences that a model can bear, without those that need a text of their own (other, unknown)
LICENSES = [
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bigcode-openrail-m", "bigscience-bloom-rail-1.0",
    "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0",
    "creativeml-openrail-m", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gfdl", "gpl",
    "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl",
    "ncsa", "odbl", "odc-by", "ofl-1.1", "openrail", "openrail++", "osl-3.0", "pddl", "postgresql", "unlicense",
    "wtfpl", "zlib",
]  # fmt: skip
LANGUAGES = {
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "pt": "Portuguese",
    "ru": "Russian",
}  # those of configs/; another one is called by its code
TASK = "automatic-speech-recognition"
COMMON_VOICE = re.compile(r"cv-corpus-\d[\d.]*-(delta-)?\d{4}-\d\d-\d\d/.+")  # its releases' names
REQUIRED = ("language", "license", "library_name", "pipeline_tag", "tags", "metrics", "eval_results")
SECTIONS = ("Results", "Limits", "Use", "Training", "Data", "Licence")


@dataclass(frozen=True)
class Finished:
    """All that is known of a finished model, as the three steps have written it."""

    name: str
    license: str
    network: dict[str, Any]  # the model's own configuration
    run: dict[str, Any]  # run.json
    dataset: dict[str, Any]  # dataset.json
    metrics: "pd.DataFrame"  # metrics.csv
    rows: list[Result]  # by the best path and, where there is one, with the language model
    compared: list[Comparison]
    synthetic: bool  # whether the speech is

    @property
    def language(self) -> str:
        """Its code, from the release's folder; UserError where that is called otherwise."""
        code = self.dataset["release"].rpartition("/")[2].partition("-")[0].lower()
        if not re.fullmatch("[a-z]{2,3}", code):
            raise UserError(
                f"the release {self.dataset['release']} does not say its language; call its folder by the language's "
                "code, as cv-corpus-…/it, and run step 1 again"
            )
        return code

    @property
    def base(self) -> str | None:
        """What the base model is called: the registry's name or the file's; None when trained from scratch."""
        base = self.run["config"]["model"]["base"]
        return base and Path(base).name.removesuffix(".nemo")

    @property
    def architecture(self) -> str:
        """QuartzNet by its blocks (time-channel separable, no squeeze-and-excitation), or the encoder's class."""
        encoder = self.network["encoder"]
        blocks = encoder.get("jasper", [])
        if any(block.get("separable") for block in blocks) and not any(block.get("se") for block in blocks):
            return "QuartzNet"
        return encoder["_target_"].rpartition(".")[2]


def read_network(path: Path) -> dict[str, Any]:
    """The configuration inside a `.nemo` file; UserError when it is none."""
    try:
        with tarfile.open(path) as archive:
            (member,) = (m for m in archive if Path(m.name).name == "model_config.yaml")
            return yaml.safe_load(archive.extractfile(member))
    except (OSError, tarfile.TarError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no model of NeMo, or damaged; delete it and train it again") from error


def write(of: Finished) -> str:
    """The whole card; UserError where what the steps have written lacks something that it states."""
    sections = dict(zip(SECTIONS, (_results, _limits, _use, _training, _data, _licence), strict=True))
    try:
        parts = [f"---\n{metadata(of).to_yaml()}\n---", f"# {of.name}", _introduction(of)]
        parts += [f"## {name}\n\n{section(of)}" for name, section in sections.items()]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"dataset.json, run.json or the results of {of.name} lack what a model card states ({error}), as those of "
            "an older version do; run the step again that writes it"
        ) from error
    return "\n\n".join(parts) + "\n"


def check(text: str) -> None:
    """UserError where the hub could not read a card, or its readers would miss something; needs no network."""
    try:
        card = ModelCard(text)
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"the model card's metadata cannot be read: {printable(str(error))}") from error
    data, found = card.data, card.data.get("eval_results") or []
    rates = {r.metric_type: r.metric_value for r in found}
    unusual = [r.metric_name for r in found if not _is_rate(r.metric_value)]
    missing = [name for name in REQUIRED if not data.get(name)]
    wrong = [
        (missing, f"lacks {', '.join(missing)}"),
        (data.get("license") not in LICENSES, f"names the licence {data.get('license')}, which the hub does not know"),
        (
            not re.fullmatch("[a-z]{2,3}", str(data.get("language"))),
            f"names the language {data.get('language')}, no code of one",
        ),
        (data.get("pipeline_tag") != TASK, f"is of the task {data.get('pipeline_tag')}, not {TASK}"),
        (not {"wer", "cer"} <= rates.keys(), "does not state both WER and CER"),
        (unusual, f"states no number for {', '.join(map(str, unusual))}"),
        *((f"\n## {name}\n" not in card.text, f"has no section {name}") for name in SECTIONS),
        (re.search(r"[ (\[](None|nan)\b", card.text), "has a figure that is not known"),
    ]
    for is_wrong, what in wrong:
        if is_wrong:
            raise UserError(f"the model card {what}; nothing is exported: run step 3 again, or mend what it came from")


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def metadata(of: Finished) -> ModelCardData:
    """The card's head. A release of Common Voice is named as such only when the speech is not synthetic."""
    base, registry = of.run["config"]["model"]["base"], of.run["config"]["model"]["registry"]
    real = _is_common_voice(of)
    return ModelCardData(
        language=of.language,
        license=of.license,
        library_name="nemo",
        pipeline_tag=TASK,
        tags=[TASK, "speech", "audio", "CTC", of.architecture, "NeMo", *(["synthetic-speech"] if of.synthetic else [])],
        datasets=["common_voice"] if real else None,
        base_model=base if base in registry else None,
        metrics=["wer", "cer"],
        model_name=of.name,
        eval_results=[_eval_result(of, row, metric) for row in of.rows for metric in ("wer", "cer")],
    )


def _is_common_voice(of: Finished) -> bool:
    return bool(COMMON_VOICE.fullmatch(of.dataset["release"])) and not of.synthetic


def _eval_result(of: Finished, row: Result, metric: str) -> EvalResult:
    """A rate in percent, as the hub's speech models state theirs."""
    release = of.dataset["release"].partition("/")[0]
    by = "best path" if row["decoder"]["name"] == "greedy" else "with an n-gram language model, not included"
    return EvalResult(
        task_type=TASK,
        task_name="Automatic Speech Recognition",
        dataset_type="common_voice" if _is_common_voice(of) else release,
        dataset_name=_test_set(of),
        dataset_config=of.language,
        dataset_split="test",
        metric_type=metric,
        metric_name=f"Test {metric.upper()} in %, {by}",
        metric_value=None if row[metric] is None else round(100 * row[metric], 2),
    )


def _test_set(of: Finished) -> str:
    row, speakers = of.rows[0], of.dataset["splits"]["test"]["speakers"]
    synthetic = ", synthetic speech" if of.synthetic else ""
    return (
        f"{of.dataset['release']}, test set split by {row['split']}: {row['utterances']:,} utterances, "
        f"{speakers:,} speakers{synthetic}"
    )


def _introduction(of: Finished) -> str:
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
    if f"{metric}_interval" not in row:
        return ""
    low, high = row[f"{metric}_interval"]
    return f" (95 % interval {low:.3f} to {high:.3f})"


def _results(of: Finished) -> str:
    """The project's own table of this model's rows, and how to read it."""
    parts = [
        f"Test set: {_test_set(of)}; {of.rows[0]['hours']:,.2f} h, {of.rows[0]['words']:,} words, "
        f"{of.rows[0]['characters']:,} characters.",
        results.table(of.rows, Evaluation(), of.compared),
        "WER and CER: insertions, deletions and substitutions of words and of characters to those of the reference, as "
        "fractions. Test loss: CTC, in nats an utterance.",
        *(
            f"{row['model']}: beam search with an n-gram language model of words, which is **not** among these files; "
            + ", ".join(f"{key} {value:g}" for key, value in row["decoder"].items() if key != "name")
            + ", found on the validation set."
            for row in of.rows[1:]
        ),
        slices.table(of.rows),
    ]
    return "\n\n".join(parts)


def _limits(of: Finished) -> str:
    """What the figures do not say and what the model cannot do."""
    letters = [letter for letter in of.network["decoder"]["vocabulary"] if letter != " "]
    row, longest = of.rows[0], of.dataset["config"]["dataset.max_duration_s"]
    limits = [
        "Synthetic speech, in training and in the test: nothing is known about real voices, microphones and rooms."
        if of.synthetic
        else f"Read sentences of `{of.dataset['release']}`: spontaneous speech, other microphones, noise and far "
        "speakers are not tested.",
        _known(of),
        f"It writes {' '.join(f'`{letter}`' for letter in letters)} and the space: no capitals, no punctuation"
        + (", digits as words." if not any(map(str.isdecimal, letters)) else "."),
        f"It was trained on clips of at most {longest:g} s; cut longer recordings, as `transcribe.py` does.",
    ]
    if "resampled" in row:
        limits.append(
            f"The intervals come from {row['resampled_units']:,} {row['resampled']} of one test set and one training "
            "run: another seed is not in them."
        )
    return "\n".join(f"- {limit}" for limit in limits)


def _known(of: Finished) -> str:
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


def _use(of: Finished) -> str:
    return f"""Recordings of {of.network["sample_rate"] / 1000:g} kHz, one channel, with NVIDIA NeMo alone:

```python
from nemo.collections.asr.models import EncDecCTCModel

model = EncDecCTCModel.restore_from("{of.name}.nemo", map_location="cpu")
print(model.transcribe(["recording.wav"])[0].text)
```

Audio and video of any format and length, with the project that made this model, at the commit below:

```
python Fine_tuning/transcribe.py {of.name}.nemo recording.mp3
```

SHA-256 of `{of.name}.nemo`: `{of.run["model"]}`"""


def _training(of: Finished) -> str:
    """The recipe, what the run was made with, and how it went."""
    shown = "\n".join(f"- {name}: {printable(value)}" for name, value in _recipe(of).items())
    if not len(of.metrics):
        return shown
    first, last = of.metrics.iloc[0], of.metrics.iloc[-1]
    went = (
        f"Validation WER: {first['val_wer']:.4f} after the first epoch, {last['val_wer']:.4f} after the last "
        f"({int(last['epoch'])}), whose weights these are; lowest {of.metrics['val_wer'].min():.4f}. Validation CER "
        f"and loss after the last: {last['val_cer']:.4f} and {last['val_loss']:.4f}."
    )
    warnings = [f"There was a warning in training: {warning}" for warning in of.run["warnings"]]
    return "\n\n".join([shown, went, *warnings])


def _recipe(of: Finished) -> dict[str, str]:
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
        "Seed": str(training["seed"]),
        "Device": f"{of.run['device']}, precision {sessions[-1]['precision']}",
        "Versions": ", ".join(f"{name} {version}" for name, version in of.run["versions"].items()),
        "Commit of the project": f"{', '.join(f'`{commit}`' for commit in commits)}{dirty}",
    }


def _data(of: Finished) -> str:
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
        markdown(("Split", "Hours", "Clips", "Speakers", "Sentences"), cells),
        f"In both of two splits: {both}.",
        f"Of {about['rows']:,} rows {about['rejected']:,} were rejected" + (f" ({reasons})." if reasons else "."),
    ]
    return "\n\n".join(parts)


def _licence(of: Finished) -> str:
    data = f"`{of.dataset['release']}`"
    others = f"{data} and of `{of.base}`" if of.base else data
    return f"`{of.license}`, as stated by whoever exported this model. The licences of {others} are their own."
