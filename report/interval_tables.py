"""How well intervals and comparisons hold up in simulations, as tables of docs/metrics.md."""

from typing import Any


def coverage(of: dict[str, Any]) -> str:
    """Return how often intervals hold the true WER; `of` as in results/reference/interval_coverage.json."""
    lines = [
        "| Speakers | Utterances each | Bootstrap-t | Percentiles | Percentiles, by utterances | Without interval |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for case in of["coverage"]:
        shares = (f"{case[way]:.1%}" for way in ("bootstrap_t", "percentile", "percentile_of_utterances"))
        each = "skewed" if case["skewed"] else "equal"
        without = f"{case['without'] / of['test_sets']:.1%}"
        lines.append(f"| {case['speakers']} | {each} | {' | '.join(shares)} | {without} |")
    about = (
        f"Simulated, {of['test_sets']:,} test sets a line: {of['utterances']} utterances a speaker on average, of "
        f"{of['words']} words, skewed: log-normal; WER {of['wer']:g}, between speakers with a standard deviation of "
        f"{of['spread']:.0%} of it. 95 % is right. Without interval: in too many resamples nobody differs."
    )
    return "\n".join([*lines, "", about])


def equal_models(of: dict[str, Any]) -> str:
    """Return how often equal models are called different; `of` as in results/reference/interval_coverage.json."""
    lines = [
        "| Speakers | Percentile interval without 0 | Sign-flip test, Holm | Sign-flip test of one pair alone |",
        "|---:|---:|---:|---:|",
    ]
    for case in of["told_apart"]:
        shares = (f"{case[way]:.1%}" for way in ("percentile", "sign_flip_holm", "sign_flip_one_pair"))
        lines.append(f"| {case['speakers']} | {' | '.join(shares)} |")
    about = (
        f"Simulated, {of['tables']:,} tables a line of {of['models']} models that are equally good, each with "
        f"strengths of its own (its WER on a speaker varies by {of['own_spread']:.0%}): in how many of them some pair "
        "of all, or a pair chosen before, is called different. At most 5 % is right."
    )
    return "\n".join([*lines, "", about])
