"""The metadata of a model card, and the check that the hub and its readers find in a card what they need."""

import math
import re
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from finetuning.errors import UserError, printable
from finetuning.evaluation.results import Result
from finetuning.export.trained_model import TrainedModel

# The hub's licence ids, without other and unknown, which need a text of their own. huggingface_hub has no such list and
# checks a card's licence only online (/api/validate-yaml)
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
TASK = "automatic-speech-recognition"
COMMON_VOICE = re.compile(r"cv-corpus-\d[\d.]*-(delta-)?\d{4}-\d\d-\d\d/.+")  # its releases' names
HUB_MODEL = re.compile(r"[\w-][\w.-]*/[\w.-]+(?<!\.nemo)")  # OWNER/NAME, all that the hub takes for a base model
REQUIRED = ("language", "license", "library_name", "pipeline_tag", "tags", "metrics", "eval_results")
SECTIONS = ("Results", "Limits", "Use", "Training", "Data", "Licence")


def validate_card(text: str) -> None:
    """Raise UserError where the hub could not read a card, or its readers would miss something; needs no network."""
    try:
        card = ModelCard(text)
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"the model card's metadata cannot be read: {printable(str(error))}") from error
    data, results = card.data, card.data.get("eval_results") or []
    rates = {r.metric_type: r.metric_value for r in results}
    unusual = [r.metric_name for r in results if not _is_rate(r.metric_value)]
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
            raise UserError(
                f"the model card {what}; nothing is exported: run step 3 again, or fix what it was made from"
            )


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def make_metadata(of: TrainedModel) -> ModelCardData:
    """Return the card's metadata. A release of Common Voice is named as such only when the speech is not synthetic."""
    base = of.run["config"]["model"]["base"] or ""
    real = is_common_voice(of)
    return ModelCardData(
        language=of.language,
        license=of.license,
        library_name="nemo",
        pipeline_tag=TASK,
        tags=[TASK, "speech", "audio", "CTC", of.architecture, "NeMo", *(["synthetic-speech"] if of.synthetic else [])],
        datasets=["common_voice"] if real else None,
        base_model=base if HUB_MODEL.fullmatch(base) else None,
        metrics=["wer", "cer"],
        model_name=of.name,
        eval_results=[_eval_result(of, row, metric) for row in of.rows for metric in ("wer", "cer")],
    )


def is_common_voice(of: TrainedModel) -> bool:
    """Return whether the data are a release of Common Voice."""
    return bool(COMMON_VOICE.fullmatch(of.dataset["release"])) and not of.synthetic


def _eval_result(of: TrainedModel, row: Result, metric: str) -> EvalResult:
    """Return a rate in percent, as the hub's speech models state theirs."""
    release = of.dataset["release"].partition("/")[0]
    by = "greedy decoding" if row["decoder"]["name"] == "greedy" else "with an n-gram language model, not included"
    name = f"Test {metric.upper()} in %, {by}"
    if row[metric] is None:
        raise UserError(f"the model card states no number for {name}; nothing is exported: run step 3 again")
    return EvalResult(
        task_type=TASK,
        task_name="Automatic Speech Recognition",
        dataset_type="common_voice" if is_common_voice(of) else release,
        dataset_name=describe_test_set(of),
        dataset_config=of.language,
        dataset_split="test",
        metric_type=metric,
        metric_name=name,
        metric_value=round(100 * row[metric], 2),
    )


def describe_test_set(of: TrainedModel) -> str:
    """Return a description of the test set."""
    row, speakers = of.rows[0], of.dataset["splits"]["test"]["speakers"]
    synthetic = ", synthetic speech" if of.synthetic else ""
    return (
        f"{of.dataset['release']}, test set split by {row['split']}: {row['utterances']:,} utterances, "
        f"{speakers:,} speakers{synthetic}"
    )
