"""The paper's numbers, as the text paper/paper.typ fills in.

They come from results/reference/, the configurations and paper/published.json (figures of others). What has not been
measured is not among them, and the paper then says nothing of it.
"""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from finetuning.config.schema import Config
from finetuning.evaluation.bootstrap import RESAMPLES
from finetuning.evaluation.significance import format_p
from paper_speed import decoding, speed
from wording import OF_DEMO, RECIPES, minutes, powers_of_ten, short, spread

OTHER_TEST_SET = {"split by clip"}
WAV_BYTES_PER_S = 32_000  # 16 kHz, 16 bit, mono


def numbers(
    found: Mapping[str, Any], rows: Sequence[dict[str, Any]], demo: Config, italian: Config, small: dict[str, Any]
) -> dict[str, Any]:
    """What paper.typ fills in, as text. `found`: the content of each JSON file by its stem, None where it is missing;
    `rows`: results of models, in order; `small`: the NeMo configuration of the demo's model.
    """
    common_voice = found["published"]["common_voice"]
    return {
        "sample": _sample(found["dataset"]),
        "common_voice": _common_voice(common_voice, italian),
        "demo": _recipe(demo),
        "italian": _recipe(italian),
        "base": {"epochs": str(found["base"]["epochs"])},
        "model": {
            "small": f"{parameters(small, len(demo.text.alphabet)) / 1e6:.2f} million",
            "mels": str(small["preprocessor"]["features"]),
            "window_ms": f"{1000 * small['preprocessor']['window_size']:g}",
            "stride_ms": f"{1000 * small['preprocessor']['window_stride']:g}",
            "frames_per_second": f"{demo.dataset.encoder_frames_per_second:g}",
            "rate_khz": f"{small['sample_rate'] / 1000:g}",
        },
        "language_model": _language_model(found["language_model"], demo),
        "results": _results(rows),
        "differences": [_difference(pair) for pair in found["comparisons"] or []],
        "recipes": _recipes(found["recipes"]),
        "domain": _domain(found["domain"]),
        "decoding": decoding(found["decoding"]),
        "speed": speed(found),
        "timing": _timing(found["timing"]),
        "published": _published(found["published"], italian),
        "gpu": gpu_hours(found["published"], found["training"]["padding"], italian),
    }


def parameters(model: dict[str, Any], letters: int) -> int:
    """How many numbers a model of separable convolutions learns; `model` as in configs/models/. CTC's blank is added.

    A separable convolution has kernel x inputs + inputs x outputs weights, one that is not kernel x inputs x outputs,
    and batch normalisation two an output; a residual connection is a convolution of kernel 1 with its own.
    """
    total, inputs = 0, model["encoder"]["feat_in"]
    for block in model["encoder"]["jasper"]:
        outputs, (kernel,) = block["filters"], block["kernel"]
        if block["residual"]:
            total += inputs * outputs + 2 * outputs
        for _ in range(block["repeat"]):
            weights = kernel * inputs + inputs * outputs if block["separable"] else kernel * inputs * outputs
            total += weights + 2 * outputs
            inputs = outputs
    return total + (inputs + 1) * (letters + 1)


def _sample(of: dict[str, Any]) -> dict[str, Any]:
    splits = [
        {
            "name": name,
            "utterances": str(split["clips"]),
            "minutes": f"{60 * split['hours']:.1f}",
            "speakers": str(split["speakers"]),
        }
        for name, split in of["splits"].items()
    ]
    return {
        "utterances": str(of["utterances"]),
        "minutes": f"{60 * sum(split['hours'] for split in of['splits'].values()):.1f}",
        "speakers": str(sum(split["speakers"] for split in of["splits"].values())),
        "rows": str(of["rows"]),
        "rejected": str(of["rejected"]),
        "letters": str(len(of["alphabet"])),
        "splits": splits,
    }


def _common_voice(of: dict[str, Any], italian: Config) -> dict[str, str]:
    return {
        "release": of["release"],
        "clips": f"{of['validated_clips']:,}",
        "hours": f"{of['hours']:.0f}",
        "mean_s": f"{of['mean_s']:.1f}",
        "speakers": f"{of['speakers']:,}",
        "clips_per_speaker": f"{of['validated_clips'] / of['speakers']:.0f}",
        "archive_gb": f"{italian.dataset.archive.size_bytes / 1e9:.1f}",
        "wavs_gb": f"{of['hours'] * 3600 * WAV_BYTES_PER_S / 1e9:.0f}",
    }


def _recipe(config: Config) -> dict[str, str]:
    training, split = config.training, config.dataset.split
    return {
        "epochs": str(training.max_epochs),
        "frozen": str(training.frozen_epochs),
        "batch": f"{training.batch_size} utterances"
        if training.batch_duration_s is None
        else f"{training.batch_duration_s:g} s",
        "optimizer": {"adamw": "AdamW", "novograd": "NovoGrad"}[training.optimizer.name],
        "lr": f"{training.optimizer.lr:g}",
        "warmup": f"{100 * training.schedule.warmup_ratio:g}",
        "perturbation": f"{100 * training.speed_perturbation:g}",
        "shares": "/".join(f"{100 * share:.0f}" for share in (split.train, split.validation, split.test)),
    }


def _language_model(of: dict[str, Any], demo: Config) -> dict[str, str]:
    validation = of["validation"]
    return {
        "order": str(demo.language_model.order),
        "sentences": f"{sum(source['sentences'] for source in of['sources']):,}",
        "words": f"{of['words']:,}",
        "perplexity": f"{validation['perplexity']:.1f}",
        "unknown": f"{validation['unknown']:,} of {validation['words']:,}",
    }


def _results(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "rows": [
            {
                "model": row["model"],
                "loss": f"{row['loss']:.2f}" if row["loss"] is not None and row["decoder"]["name"] == "greedy" else "",
                "cer": f"{row['cer']:.3f}",
                "cer_interval": _interval(row.get("cer_interval")),
                "wer": f"{row['wer']:.3f}",
                "wer_interval": _interval(row.get("wer_interval")),
                "lacks": " ".join(row["letters_missing"]),
            }
            for row in rows
        ],
        "resamples": f"{RESAMPLES:,}",
        "interval": "95",  # %, of bootstrap.bootstrap_t
        "speakers": str(rows[0]["speakers"]),
        "words": f"{rows[0]['words']:,}",
        "utterances": f"{rows[0]['utterances']:,}",
    }


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"


def _difference(pair: dict[str, Any]) -> dict[str, str]:
    return {
        "one": pair["one"],
        "other": pair["other"],
        "wer": _signed(pair["wer_difference"]),
        "interval": "" if pair["wer_interval"] is None else "[{}, {}]".format(*map(_signed, pair["wer_interval"])),
        **{key: _p(pair[key]) for key in ("p_holm", "mapsswe_p_holm")},
    }


def _p(value: float | None) -> str:
    return "" if value is None else re.sub("p (= )?", "", format_p(value))


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _recipes(of: dict[str, Any]) -> dict[str, Any]:
    """Each variant that was run: its spread over seeds, and whether its runs lie apart from the long recipe's."""
    variants = {variant: of["variants"][variant] for variant in RECIPES if variant in of["variants"]}
    demo, long = variants["demo"], variants["warm"]  # most others change the long recipe
    usual = long["runs"][0]["epochs"]
    found = {}
    for variant, measured in variants.items():
        epochs = measured["runs"][0]["epochs"]
        found[variant] = {
            "name": RECIPES[variant],
            "wer": spread(measured, "wer"),
            "cer": spread(measured, "cer"),
            "reached": ", ".join(str(run["reached"] or "never") for run in measured["runs"]),
            "epochs": str(epochs),
            "difference": _signed(_mean_wer(measured) - _mean_wer(long)),
            "beside": "" if variant == "warm" else _beside(variant, measured["runs"], long["runs"]),
        }
    adapting, frozen = "10 frozen epochs", "10 frozen epochs and batch normalisation"
    if {adapting, frozen} <= set(variants):
        found[frozen]["beside_adapting"] = _beside(frozen, variants[frozen]["runs"], variants[adapting]["runs"])
    with_lm = (
        {"lm_wer": spread(demo, "lm_wer"), "lm_cer": spread(demo, "lm_cer")} if "lm_wer" in demo["runs"][0] else {}
    )
    return {
        "variants": found,
        "seeds": str(len(of["seeds"])),
        "threshold": f"{of['validation_wer']:g}",
        "epochs": str(usual),
        "other_epochs": any(of["epochs"] != str(usual) for variant, of in found.items() if variant not in OF_DEMO),
        "machine": of["machine"],
        **with_lm,
    }


def _mean_wer(measured: dict[str, Any]) -> float:
    return fmean(run["wer"] for run in measured["runs"])


def _beside(variant: str, runs: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> str:
    """Whether each run is worse than each of the others, or better, or neither, by WER on the same test set."""
    if variant in OTHER_TEST_SET:
        return "other test set"
    ours, theirs = ([run["wer"] for run in each] for each in (runs, others))
    if min(ours) > max(theirs):
        return "worse"
    return "better" if max(ours) < min(theirs) else "overlaps"


def _domain(of: dict[str, Any] | None) -> dict[str, Any]:
    if of is None:
        return {}
    general, mixture = of["runs"]["general"], of["runs"]["mixture"]
    weights = " + ".join(f"{weight:.0%} {name}" for name, weight in of["weights"].items())
    models = {"none": general["greedy"], "general": general["lm"], weights: mixture["lm"]}
    on, off = (general["greedy"][part]["utterances"] for part in ("with its words", "without"))
    return {
        "rows": [
            {"model": name, "on": f"{wer['with its words']['wer']:.3f}", "off": f"{wer['without']['wer']:.3f}"}
            for name, wer in models.items()
        ],
        "texts": " and ".join(f"{source['sentences']} {source['name']}" for source in mixture["sources"]),
        "lacking": f"{100 * general['unknown_rate']:.1f}",
        "on": str(on),
        "off": str(off),
    }


def _timing(of: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": of["machine"],
        "install": minutes(of["install_s"]),
        "scripts": minutes(of["scripts_s"]),
        "steps": [{"name": name, "time": minutes(seconds)} for name, seconds in of["steps_s"].items()],
    }


def gpu_hours(of: dict[str, Any], padding: dict[str, float], italian: Config) -> dict[str, str]:
    """How long a GPU may take to train configs/italian.yaml: an estimate from what there is to compute.

    `of`: the figures of others; `padding`: its share of what is computed, as in results/reference/training.json. Twice
    a weight and frame forward, twice as much again for the gradients of the weights and of the activations.
    """
    share = padding["by_duration" if italian.training.batch_duration_s else "random"]
    spoken_s = 3600 * of["common_voice"]["hours"] * italian.dataset.split.train * italian.training.max_epochs
    audio_s = spoken_s / (1 - share)
    frames = audio_s * italian.dataset.encoder_frames_per_second
    operations = 6 * of["quartznet15x5"]["parameters"] * frames
    slow, fast = of["quartznet15x5"]["operations_per_s"]
    return {
        "operations": powers_of_ten(operations),
        "slow": powers_of_ten(slow),  # operations a second
        "fast": powers_of_ten(fast),
        "least": short(operations / fast / 3600),
        "most": short(operations / slow / 3600),
    }


def _published(of: dict[str, Any], italian: Config) -> dict[str, Any]:
    others, run = of["scribosermo"], of["run"]
    return {
        "rows": [
            {"model": p.model, "loss": f"{p.loss:.4f}", "cer": f"{p.cer:.4f}", "wer": f"{p.wer:.4f}"}
            for p in italian.evaluation.published
        ],
        "on": italian.evaluation.published_on,
        "epochs": str(run["epochs"]),
        "frozen": str(run["frozen_epochs"]),
        "steps": f"{run['steps']:,}",
        "batch": str(run["batch"]),
        "italian_greedy": f"{others['italian_wer']['greedy']:.4f}",
        "italian_lm": f"{others['italian_wer']['lm']:.4f}",
        "rows_kept": f"{others['spanish_wer']['rows kept']:.4f}",
        "two_steps": f"{others['spanish_wer']['two steps']:.4f}",
        "new_layer": f"{others['spanish_wer']['new last layer']:.4f}",
    }
