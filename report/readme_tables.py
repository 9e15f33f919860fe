"""The parts of the README that are made from what runs have written, as Markdown."""

import re
from typing import Any

from finetuning.config.schema import Config, Evaluation
from finetuning.evaluation.results_table import format_published
from paper_numbers import WAV_BYTES_PER_S, gpu_hours
from wording import ARCHITECTURES, DECODINGS, OF_DEMO, RECIPES, short, spread

OVER_SEEDS = "Mean over {} seeds of the training, and how far a single new run may lie from it (95 %, Student's t)"
GPU_SIZES_GB, GPU_RESERVE = (24, 80), 0.2


def seeds(measured: dict) -> str:
    """Return the demo's word error rates over seeds; `measured` as in results/reference/recipes.json."""
    variants = measured["variants"]
    rates = [
        f"**{spread(variants[variant], key)}** {when}"
        for variant, key, when in (
            ("demo", "wer", "after fine-tuning"),
            ("demo", "lm_wer", "with the language model (its weights searched for over wider ranges then)"),
            ("demo from scratch", "wer", "without the English model"),
        )
        if variant in variants and key in variants[variant]["runs"][0]
    ]
    return (
        f"Each row is one run. Over {len(measured['seeds'])} seeds the demo's WER is {_and(rates)}: the mean, and how "
        "far a new run may lie from it (95 %). Another CPU or number of threads is like another seed."
    )


def gpu(torch: dict[str, Any], version: str) -> str:
    """Return what the pinned `version` of torch takes; `torch` as in paper/published.json."""
    return (
        f"**GPU.** On Linux the pinned torch {version} is a build for CUDA {torch['cuda']}: {torch['download_gb']} GB "
        f"to download, {torch['installed_gb']} GB installed, NVIDIA driver {torch['driver']} or newer "
        "(`nvidia-smi` shows yours)."
    )


def needs(
    others: dict[str, Any],
    conversion: dict[str, Any],
    memory: dict[str, Any],
    padding: dict[str, float],
    italian: Config,
) -> str:
    """Return what configs/italian.yaml takes of a machine, as a table.

    `others`: paper/published.json. `conversion`, `memory`: results/reference/dataset_creation.json and memory.json;
    `padding` as in training.json.
    """
    clips, archive_gb = others["common_voice"]["validated_clips"], italian.dataset.archive.size_bytes / 1e9
    wavs_gb = others["common_voice"]["hours"] * 3600 * WAV_BYTES_PER_S / 1e9
    batch, longest_s = italian.training.batch_size, italian.dataset.max_duration_s
    activations_gb = memory["networks"]["QuartzNet15x5"]["activation_mb_per_s"] * batch * longest_s / 1e3
    clips_per_s, hours = conversion["clips_per_s"]["archive"]["median"], gpu_hours(others, padding, italian)
    rows = {
        "Disk": f"about {archive_gb + wavs_gb + 1:.0f} GB: {archive_gb:.1f} for the archive, {wavs_gb:.0f} for the "
        "wavs, 1 for models and checkpoints",
        "GPU memory": f"{activations_gb:.1f} GB for the activations of the largest batch ({batch} clips of "
        f"{longest_s:g} s), 1 to 2 for the rest; calculated, not measured",
        "Time, step 1": f"about {clips / clips_per_s / 60:.0f} minutes: {clips:,} clips at {short(clips_per_s)} per "
        f"second on {conversion['machine']}",
        "Time, step 2": f"{hours['least']} to {hours['most']} hours: estimated, not measured, for a GPU that sustains "
        f"{hours['slow']} to {hours['fast']} operations per second, well below data sheets; half of it is padding, "
        "which training.batch_duration_s saves",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def memory(measured: dict[str, Any]) -> str:
    """Return how much audio a training step may hold on GPUs of two sizes, as a table."""
    free = {gb: gb * (1 - GPU_RESERVE) for gb in GPU_SIZES_GB}
    sizes = " | ".join(f"Audio a step on {gb} GB" for gb in GPU_SIZES_GB)
    lines = [f"| Network | Weights and AdamW | Activations, 1 s of audio | {sizes} |"]
    lines.append("|---|---:|---:|" + "---:|" * len(GPU_SIZES_GB))
    for name, network in measured["networks"].items():
        audio_s = (1000 * (gb - network["state_gb"]) / network["activation_mb_per_s"] for gb in free.values())
        lines.append(
            f"| {name}, {network['parameters'] / 1e6:.0f} M parameters | {network['state_gb']:.1f} GB | "
            f"{network['activation_mb_per_s']:.0f} MB | {' | '.join(f'{seconds:,.0f} s' for seconds in audio_s)} |"
        )
    about = (
        "Estimated, not measured on a GPU: counted on a CPU in 16-bit mixed precision with utterances of "
        f"{measured['utterance_s']:g} s, the longest that step 1 keeps; {GPU_RESERVE:.0%} of the memory is left for "
        "the libraries, their workspaces and fragments."
    )
    return "\n".join([*lines, "", about])


def published(others: dict[str, Any], evaluation: Evaluation) -> str:
    """Return the published rows and what is known of the run behind them; `others`: paper/published.json."""
    run, clips = others["run"], others["common_voice"]["validated_clips"]
    steps, frozen, knee = round(run["steps"] / run["epochs"]), run["frozen_epochs"], run["second_knee_epoch"]
    known = (
        f"Known of the second row's training: its text states a split of {run['split']['text']}, its code "
        f"{run['split']['code']}, its log fits neither ({steps * run['batch'] / clips:.0%} of the clips an epoch); "
        f"silence was trimmed (in the test too: WER {run['test_wer_trimmed']}); the {run['labels']} labels include a "
        f"stray `_`. Resumed at epoch {knee}, where the validation loss has a second knee, it left the encoder frozen "
        f"again: probably only about {knee - frozen - 1} of {run['epochs']} epochs trained it."
    )
    return "\n".join(
        [
            "**Not measured here**, but reported by the authors of the experiment that this project began as. On "
            f"{evaluation.published_on}, with their own split and text normalisation:\n",
            f"{format_published(evaluation)}\n",
            known,
        ]
    )


def anchors(rows: list[dict[str, Any]]) -> str:
    """Return what others state of their Italian recognisers; `rows`: of paper/published.json."""
    lines = ["| System | WER | With a language model | Test set | Stated by |", "|---|---:|---:|---|---|"]
    for row in rows:
        wers = row["wer"] if isinstance(row["wer"], list) else [row["wer"]]
        with_lm = "" if row["lm_wer"] is None else f"{row['lm_wer']:.2f}"
        wer = ", ".join(f"{wer:.2f}" for wer in wers)
        lines.append(f"| {row['system']} | {wer} | {with_lm} | {row['test']} | {row['source']} |")
    return "\n".join(lines)


def as_list(text: str) -> str:
    """Footnotes and comparisons as a list: Markdown would make one line of them."""
    return re.sub(r"^(?=\[\d|.* minus )", "- ", text, flags=re.MULTILINE)


def sizes(of: dict[str, Any]) -> str:
    """How much there is of the sample."""
    splits = list(of["splits"].values())
    clips, hours, speakers = ([split[key] for split in splits] for key in ("clips", "hours", "speakers"))
    return (
        f"Train, validation and test are {_and(clips)} utterances ({_and([round(60 * h) for h in hours])} minutes) of "
        f"{_and(speakers)} speakers."
    )


def _and(items: list) -> str:
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


def conversion(of: dict) -> str:
    """Step 1 beside other ways to the same wavs, and what it takes of a machine."""
    ways = {
        "archive": "`dataset_creation.py`, from the archive",
        "folder": "`dataset_creation.py`, from the extracted folder",
        "sox": "sox, as NeMo's script for Common Voice runs it",
        "ffmpeg": "ffmpeg, one process per clip",
        "original": "pydub in one process, as in the original code",
        "decoding": "only decoding, with libsndfile",
    }
    lines = ["| mp3 to 16 kHz wav | Clips/s | Reading from the archive is |", "|---|---:|---:|"]
    for way, name in ways.items():
        ratio = "" if way == "archive" else f"{short(of['archive_to'][way]['median'])} × as fast"
        lines.append(f"| {name} | {short(of['clips_per_s'][way]['median'])} | {ratio} |")
    packed, extracted = of["archive_s"]["median"], of["extract_then_folder_s"]["median"]
    (few, at_first), (many, at_last) = of["peak_mb"].items()
    table = of["without_audio"]
    about = [
        f"Medians of {of['rounds']} rounds on {of['machine']}; {of['data']}.",
        f"The start-up, {of['start_up_s']['median']:.1f} s, is left out of the rates.",
        f"With it, {of['clips']['archive']:,} clips took {short(packed)} s from the archive where it lies; extracting "
        f"it and converting from the folder took {short(extracted)} s and {of['extracted_mb']:,} MB more of the disk.",
        f"Peak memory with {int(few):,} and {int(many):,} clips: {at_first['main']} and {at_last['main']} MB, "
        f"and {at_first['worker']} and {at_last['worker']} MB per worker.",
        f"Without the audio, {table['rows']:,} rows took {table['s']:.0f} s and {table['peak_mb']} MB.",
    ]
    return "\n".join([*lines, "", *about])


def training(of: dict) -> str:
    """A training step beside stock NeMo's, what is padded, and that the gradients are the same."""
    ways = {
        "stock": "stock NeMo, random batches",
        "convolutions": "channels last, random batches",
        "and batches": "channels last, batches by duration",
        "and bf16": "and in bfloat16, by the processor's AMX",
    }
    lines = ["| A training step on the CPU | Seconds of audio/s | Faster than stock NeMo |", "|---|---:|---:|"]
    for way, name in ((way, name) for way, name in ways.items() if way in of["audio_s_per_s"]):
        ratio = "" if way == "stock" else f"{of['stock_to'][way]['median']:.2f} ×"
        lines.append(f"| {name} | {short(of['audio_s_per_s'][way]['median'])} | {ratio} |")
    about = [
        f"Medians of {of['rounds']} rounds on {of['machine']}, the ratios of those of each round; {of['model']}, "
        f"batches of {of['batch']} or of as many seconds; {of['data']}.",
        f"Padding, batches of 32: {of['padding']['random']:.0%} of what is computed with random batches, "
        f"{of['padding']['by_duration']:.1%} with batches by duration.",
        f"In double precision the loss differs from stock NeMo's by {of['difference']['loss']:.0e} of it and the "
        f"gradients by {of['difference']['gradients']:.0e} of their norm.",
    ]
    return "\n".join([*lines, "", *about])


def evaluation(of: dict) -> str:
    """Step 3 beside NeMo's ways to the same transcripts."""
    ways = {
        "this": "`evaluate.py`",
        "transcribe": f"NeMo's `transcribe()`, batches of {of['batch']}",
        "transcribe 4": "NeMo's `transcribe()`, batches of 4, its default",
        "original": "`Trainer.test()` twice, for WER and for CER, as in the original code",
    }
    lines = ["| Test set on the CPU | Seconds of audio/s | `evaluate.py` is |", "|---|---:|---:|"]
    for way, name in ways.items():
        ratio = "" if way == "this" else f"{short(of['this_to'][way]['median'])} × as fast"
        lines.append(f"| {name} | {short(of['audio_s_per_s'][way]['median'])} | {ratio} |")
    found = of["difference"]
    about = [
        f"Medians of {of['rounds']} rounds on {of['machine']}; {of['model']}; {of['data']}.",
        f"Loading is left out; so is the export, {of['export_s']:.0f} s once per model.",
        f"The log-probabilities differ from NeMo's by at most {found['log_probabilities']:.0e}; {found['identical']} "
        f"of {found['transcripts']} transcripts, {found['distinct']} of them distinct, are identical.",
    ]
    others = of.get("others", {})
    more = ["", "| Network of published shape | `evaluate.py` | `transcribe()`, 32 | 4 | Identical transcripts |"]
    more.append("|---|---:|---:|---:|---:|")
    for name, one in others.items():
        rates = (short(one["audio_s_per_s"][way]["median"]) for way in ("this", "transcribe", "transcribe 4"))
        same = f"{one['difference']['identical']} of {one['difference']['transcripts']}"
        more.append(f"| {name}, {one['parameters'] / 1e6:.0f} M parameters | {' | '.join(rates)} | {same} |")
    note = "".join(f"\nOf {one['utterances']} utterances, on {one['machine']}." for one in [*others.values()][:1])
    return "\n".join([*lines, "", *about, *([*more, note] if others else [])])


def decoding(of: dict) -> str:
    """The beam search beside other ways to decode the same log-probabilities."""
    lacking = of["unknown_words"]
    lines = [
        "| Decoding | Test WER | Seconds of audio/s | WER, general text alone | Unknown words right |",
        "|---|---:|---:|---:|---:|",
    ]
    for way, name in DECODINGS.items():
        speed = short(of["audio_s_per_s"][way]["median"]) if way in of["audio_s_per_s"] else ""
        there = (f"{lacking['wer'][way]:.4f}", str(lacking["written"][way])) if way in lacking["wer"] else ("", "")
        lines.append(f"| {name} | {of['wer'][way]:.4f} | {speed} | {' | '.join(there)} |")
    about = [
        f"Medians of {of['rounds']} rounds on {of['machine']}, one thread but for `beam_batch`; {of['data']}.",
        "The last two columns: WER with a language model of the general text alone, and how many of the "
        f"{lacking['words']} words of the test set that it does not know are recognised; greedy decoding uses none.",
    ]
    return "\n".join([*lines, "", *about])


def domain(of: dict) -> str:
    """What a text of a domain brings on its sentences and on the others."""
    general, mixture = of["runs"]["general"], of["runs"]["mixture"]
    weights = " + ".join(f"{weight:.0%} {name}" for name, weight in of["weights"].items())
    lines = ["| Language model | Timetable sentences | Others |", "|---|---:|---:|"]
    for name, found in (("none", general["greedy"]), ("general", general["lm"]), (weights, mixture["lm"])):
        lines.append(f"| {name} | {found['with its words']['wer']:.4f} | {found['without']['wer']:.4f} |")
    on, off = (general["greedy"][part] for part in ("with its words", "without"))
    texts = " and ".join(f"{source['sentences']} {source['name']}" for source in mixture["sources"])
    about = (
        f"Test WER; {on['utterances']} and {off['utterances']} utterances, synthetic speech. Texts: {texts} sentences, "
        f"none of validation or test. Of the validation words the general text lacks {general['unknown_rate']:.1%}."
    )
    return "\n".join([*lines, "", about])


def architectures(of: dict[str, Any], demo: dict[str, Any]) -> str:
    """Return other architectures beside the demo's network, with the spread over seeds.

    `of`: results/reference/architectures.json; `demo`: the demo's variant of recipes.json.
    """
    lines = ["| Network | Test WER | Test CER | Each seed's WER |", "|---|---:|---:|---|"]
    rows = {"QuartzNet, in characters: the demo": demo}
    rows |= {ARCHITECTURES[variant]: found for variant, found in of["variants"].items()}
    for name, found in rows.items():
        each = ", ".join(f"{run['wer']:.3f}" for run in found["runs"])
        lines.append(f"| {name} | {spread(found, 'wer')} | {spread(found, 'cer')} | {each} |")
    bases = _and([f"{base['val_wer']:.2f} ({name})" for name, base in of["bases"].items()])
    about = (
        f"{OVER_SEEDS.format(len(of['seeds']))}, greedy; {of['data']}; "
        f"{of['machine']}, one thread a run but for the demo's. Validation WER of the English bases: {bases}."
    )
    return "\n".join([*lines, "", about])


def recipes(of: dict) -> str:
    """What changes of the recipe bring, with the spread over seeds."""
    reached = f"Epochs to validation WER {of['validation_wer']:g}"
    lines = [f"| Recipe | Test WER | Test CER | {reached} |", "|---|---:|---:|---:|"]
    for variant, found in of["variants"].items():
        rates = [spread(found, key) for key in ("wer", "cer")]
        epochs = ", ".join(str(run["reached"] or "never") for run in found["runs"])
        lines.append(f"| {RECIPES[variant]} | {' | '.join(rates)} | {epochs} |")
    demo = of["variants"]["demo"]
    epochs = {variant: found["runs"][0]["epochs"] for variant, found in of["variants"].items()}
    short_run, usual = epochs["demo"], epochs["warm"]
    lengths = {epochs[variant] for variant in epochs if variant not in OF_DEMO}
    about = (
        f"{OVER_SEEDS.format(len(of['seeds']))}; {of['data']}; {of['machine']}; "
        f"the demo's recipe {short_run} epochs, with all cores, the others {usual} with one thread"
        f"{', more epochs where there are fewer utterances' if lengths != {usual} else ''}."
    )
    if "lm_wer" in demo["runs"][0]:
        wer, cer = (spread(demo, key) for key in ("lm_wer", "lm_cer"))
        about += f" With the language model the demo has a WER of {wer} and a CER of {cer}."
    return "\n".join([*lines, "", about])


def conditions(of: dict[str, Any]) -> str:
    """Return what training on telephone speech or on silence brings on such clips, and costs without them."""
    names = {
        "as they are": "as they are",
        "GSM": "GSM",
        "ADPCM": "ADPCM",
        "zeros": f"{of['silence_s']:g} s of zeros around",
        "background": f"{of['silence_s']:g} s of background around",
        "joined": f"two joined, {of['pause_s']:g} s of background between",
        "pauses": f"all in one recording, {' to '.join(f'{s:g}' for s in of['long_pauses_s'])} s of background between",
        "music": "the same with music between",
        "noise": f"the same in white noise, {of['noise_db']:g} dB below the speech",
    }
    trainings = [f"`{overrides[0]}`" if overrides else "the demo" for overrides in of["trainings"].values()]
    rows = [f"| Test WER | {' | '.join(trainings)} |", f"|---|{'---:|' * len(trainings)}"]
    for condition, name in names.items():
        wers = [spread(of["rates"][training][condition], "wer") for training in of["trainings"]]
        rows.append(f"| {name} | {' | '.join(wers)} |")
    about = (
        f"{OVER_SEEDS.format(len(of['seeds']))}; {of['data']}; {of['machine']}, one thread a run. ADPCM: Dialogic's, "
        "none of the training's codecs. Background: of the quietest tenth of a second of the clip, to and fro. The "
        f"recording of all clips lasts {of['long_s']} s and goes through `transcribe.py`; the others, `evaluate.py`."
    )
    return "\n".join([*rows, "", about])


def wrong_texts(of: dict[str, Any]) -> str:
    """Return how many exchanged texts are among the worst tenth by loss."""
    found = " and ".join(f"{count} by {ranking}" for ranking, count in reversed(of["found"].items()))
    return (
        f"Of {of['utterances']} training texts {of['exchanged']} were exchanged with each other before training; of "
        f"these, {found} are among the worst {of['worst']} (one run, on {of['machine']}; {of['data']})."
    )
