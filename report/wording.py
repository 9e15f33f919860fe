"""How the README and the paper call what was measured, and write its numbers."""

from statistics import fmean
from typing import Any

from finetuning.evaluation.recipes import new_run_distance

RECIPES = {
    "demo": "the demo",
    "demo from scratch": "the demo, without the English base",
    "warm": "the long recipe: warm decoder, 5 frozen epochs",  # which most of the others change
    "random": "random decoder, as published",
    "from scratch": "without the English base",
    "0 frozen epochs": "nothing frozen",
    "10 frozen epochs": "10 frozen epochs",
    "10 frozen epochs and batch normalisation": "10 frozen epochs, batch normalisation frozen too",
    "always frozen": "encoder frozen to the end",
    "batches by duration": "batches by duration",
    "split by clip": "split by clip (another test set)",
    "half of the hours": "half of the utterances, as many steps",
    "a quarter of the hours": "a quarter of the utterances, as many steps",
}
OF_SHORT = {  # recipes on Mboshi that change the short one
    "warm": "the short recipe: warm decoder, 2 frozen epochs",
    "from scratch": "without the English base",
    "random": "random decoder",
    "0 frozen epochs": "nothing frozen",
    "always frozen": "encoder frozen to the end",
    "batches at random": "batches at random",
    "no speed perturbation": "no speed perturbation",
    "masks": "SpecAugment",
    "strong masks": "SpecAugment, more of it",
    "half of the hours": "half of the utterances, as many steps",
    "a quarter of the hours": "a quarter of the utterances, as many steps",
}
HUMAN = {  # all recipes on Mboshi
    "long": "`configs/mboshi.yaml`",
    "long with masks": "the same with SpecAugment",
    "long with masks at half the learning rate": "the same with SpecAugment at half the learning rate",
    **OF_SHORT,
    "warm at twice the learning rate": "twice the learning rate",
    "warm at a quarter of the learning rate": "a quarter of the learning rate",
    **{f"{variant} at half the learning rate": f"half the learning rate, {name}" for variant, name in OF_SHORT.items()},
    "warm at half the learning rate": "half the learning rate",
}
ARCHITECTURES = {  # of benchmarks/architectures.py
    "citrinet": "Citrinet",
    "citrinet random": "Citrinet, random decoder",
    "fastconformer": "FastConformer",
    "fastconformer random": "FastConformer, random decoder",
    "fastconformer layer norm": "FastConformer, layer normalisation trained in the frozen epochs too",
}
OF_DEMO = ("demo", "demo from scratch")  # the others change the long recipe
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
DECODINGS = {  # of benchmarks/decoding.py
    "greedy": "greedy",
    "this": "words, the lexicon open: evaluate.py",
    "lexicon alone": "words, unknown ones all but forbidden",
    "letters": "letters, flashlight without a lexicon",
    "NeMo flashlight": "words, NeMo's flashlight strategy",
    "NeMo beam_batch": "letters, NeMo's beam_batch strategy",
}


def short(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def powers_of_ten(value: float) -> str:
    """Two digits and the power of ten they are multiplied with."""
    digits, power = f"{value:.1e}".split("e")
    return f"{float(digits):g} · 10{str(int(power)).translate(SUPERSCRIPTS)}"


def minutes(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    if seconds < 1:
        return "less than 1 s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def spread(measured: dict[str, Any], key: str) -> str:
    """The mean over seeds and how far a single new run may lie from it: half of Student's 95 % prediction interval."""
    values = [run[key] for run in measured["runs"]]
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{fmean(values):.3f} ± {new_run_distance(values):.3f}"
