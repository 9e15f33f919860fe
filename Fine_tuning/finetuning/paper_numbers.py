"""The paper's numbers, as the text paper/paper.typ fills in.

They come from results/reference/, the configurations and paper/published.json (figures of others). What has not been
measured is not among them, and the paper then says nothing of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from finetuning.config import Config
from finetuning.scoring import RESAMPLES

RECIPES = {
    "warm": "the demo: warm decoder, 5 frozen epochs",
    "random": "random decoder, as published",
    "from scratch": "without the English base",
    "0 frozen epochs": "nothing frozen",
    "10 frozen epochs": "10 frozen epochs",
    "10 frozen epochs and batch normalisation": "10 frozen epochs, batch normalisation frozen too",
    "always frozen": "encoder frozen to the end",
    "batches by duration": "batches by duration",
    "split by clip": "test speakers heard in training (split by clip)",
    "half of the hours": "half of the training utterances, as many steps",
    "a quarter of the hours": "a quarter of the training utterances, as many steps",
}
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
        "decoding": _decoding(found["decoding"]),
        "speed": _speed(found),
        "timing": _timing(found["timing"]),
        "published": _published(found["published"], italian),
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


def short(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def minutes(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    return f"{int(seconds) // 60} min {round(seconds) % 60:02d} s" if seconds >= 60 else f"{round(seconds)} s"


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
        "batch": str(training.batch_size),
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
    drawn = [row for row in rows if "resampled" in row]
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
        "interval": "95",  # %, of scoring.interval
        "resampled": f"{drawn[0]['resampled_units']} {drawn[0]['resampled']}" if drawn else "",
        "words": f"{rows[0]['words']:,}",
        "utterances": f"{rows[0]['utterances']:,}",
    }


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"


def _difference(pair: dict[str, Any]) -> dict[str, str]:
    low, high = pair["wer_interval"]
    return {
        "one": pair["one"],
        "other": pair["other"],
        "wer": _signed(pair["wer_difference"]),
        "interval": f"[{_signed(low)}, {_signed(high)}]",
        "zero": "outside" if low > 0 or high < 0 else "inside",
    }


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _recipes(of: dict[str, Any]) -> dict[str, Any]:
    """Each variant that was run: mean ± standard deviation, and whether its runs lie apart from the demo's."""
    variants = {variant: of["variants"][variant] for variant in RECIPES if variant in of["variants"]}
    demo = variants["warm"]
    usual = demo["runs"][0]["epochs"]
    found = {}
    for variant, measured in variants.items():
        epochs = measured["runs"][0]["epochs"]
        found[variant] = {
            "name": RECIPES[variant],
            "wer": spread(measured, "wer"),
            "cer": spread(measured, "cer"),
            "reached": ", ".join(str(run["reached"] or "never") for run in measured["runs"]),
            "epochs": str(epochs),
            "beside": "" if variant == "warm" else _beside(variant, measured["runs"], demo["runs"]),
        }
    adapting, frozen = "10 frozen epochs", "10 frozen epochs and batch normalisation"
    if {adapting, frozen} <= set(variants):
        found[frozen]["beside_adapting"] = _beside(frozen, variants[frozen]["runs"], variants[adapting]["runs"])
    with_lm = {"lm_wer": spread(demo, "lm_wer"), "lm_cer": spread(demo, "lm_cer")} if "lm_wer" in demo["mean"] else {}
    return {
        "variants": found,
        "seeds": str(len(of["seeds"])),
        "threshold": f"{of['validation_wer']:g}",
        "epochs": str(usual),
        "other_epochs": any(of["epochs"] != str(usual) for of in found.values()),
        "machine": of["machine"],
        **with_lm,
    }


def spread(measured: dict[str, Any], key: str) -> str:
    """Mean and standard deviation over seeds, or the one figure there is."""
    of_all = measured["standard_deviation"].get(key)
    return f"{measured['mean'][key]:.3f} {'(one seed)' if of_all is None else f'± {of_all:.3f}'}"


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


def _decoding(of: dict[str, Any] | None) -> dict[str, Any]:
    if of is None:
        return {}
    ways = {
        "greedy": "best path",
        "this": "words, the lexicon open (ours)",
        "lexicon alone": "words of the lexicon only",
        "letters": "letters, flashlight without a lexicon",
        "NeMo flashlight": "words, NeMo's flashlight strategy",
        "NeMo beam_batch": "letters, NeMo's beam_batch strategy",
    }
    lacking = of["unknown_words"]
    rows = [
        {
            "way": name,
            "wer": f"{of['wer'][way]:.3f}",
            "lacking_wer": f"{lacking['wer'][way]:.3f}" if way in lacking["wer"] else "",
            "written": str(lacking["written"].get(way, "")),
            "speed": short(of["audio_s_per_s"][way]["median"]) if way in of["audio_s_per_s"] else "",
        }
        for way, name in ways.items()
        if way in of["wer"]
    ]
    return {
        "rows": rows,
        "lacking": str(lacking["words"]),
        "rounds": str(of["rounds"]),
        "machine": of["machine"],
        "data": of["data"],
    }


def _speed(found: Mapping[str, Any]) -> dict[str, Any]:
    """Ways to do each step: how fast, and how that compares."""
    creation, training, evaluation = (found[name] for name in ("dataset_creation", "training", "evaluation"))
    batch, trained = evaluation["batch"], training["stock_to"]
    return {
        "steps": [
            {
                "name": "mp3 to wav, clips/s",
                "ways": [
                    _way("this project, from the archive", creation["clips_per_s"]["archive"]),
                    _way("sox, a process a clip", creation["clips_per_s"]["sox"], creation["archive_to"]["sox"]),
                    _way("pydub, one process", creation["clips_per_s"]["original"], creation["archive_to"]["original"]),
                ],
            },
            {
                "name": "a training step, s of audio/s",
                "ways": [
                    _way("this project, batches by duration", training["audio_s_per_s"]["and batches"]),
                    _way("this project, random batches", training["audio_s_per_s"]["convolutions"]),
                    _way("stock NeMo, random batches", training["audio_s_per_s"]["stock"], trained["and batches"]),
                ],
            },
            {
                "name": "the test set, s of audio/s",
                "ways": [
                    _way("this project", evaluation["audio_s_per_s"]["this"]),
                    _way(
                        f"NeMo's transcribe(), batches of {batch}",
                        evaluation["audio_s_per_s"]["transcribe"],
                        evaluation["this_to"]["transcribe"],
                    ),
                    _way(
                        "Trainer.test() for WER and again for CER",
                        evaluation["audio_s_per_s"]["original"],
                        evaluation["this_to"]["original"],
                    ),
                ],
            },
        ],
        "machine": training["machine"],
        "model": training["model"],
        "rounds": str(training["rounds"]),
        "identical": f"{evaluation['difference']['identical']} of {evaluation['difference']['transcripts']}",
        "padding_random": f"{100 * training['padding']['random']:.0f}",
        "padding_by_duration": f"{100 * training['padding']['by_duration']:.1f}",
    }


def _way(name: str, speed: dict[str, float], ratio: dict[str, float] | None = None) -> dict[str, str]:
    """One line; `ratio`: how many times as fast the first line of the step is."""
    return {"name": name, "speed": short(speed["median"]), "ratio": f"{short(ratio['median'])} ×" if ratio else ""}


def _timing(of: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": of["machine"],
        "install": minutes(of["install_s"]),
        "scripts": minutes(of["scripts_s"]),
        "steps": [{"name": name, "time": minutes(seconds)} for name, seconds in of["steps_s"].items()],
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
