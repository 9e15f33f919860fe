"""Step 3: models and the test manifest -> predictions, loss, CER, WER and the table of results.

    python Fine_tuning/evaluate.py [--config FILE] [section.key=value …]

Each model of evaluation.models is run over the test manifest once, and over that of each further test set; of another
system the predictions are read from a file. Rerun the same command to resume after an interruption; what is finished is
not computed again. The page report.html beside the predictions shows where the models fail. With evaluation.decoder=lm
each model has a second row, by beam search with the language model, and with evaluation.boost=FILE one more, by beam
search that prefers the words of the file. Started by torchrun or srun, several processes share the utterances, each on
a GPU of its own where there are GPUs.
"""

import finetuning.startup  # noqa: F401  first: it says what ends a script while the rest is imported

# isort: split
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from finetuning import distributed
from finetuning.config import schema as experiment
from finetuning.config.loading import from_command_line
from finetuning.config.schema import Config, Evaluated, System
from finetuning.decoding.predictions import ModelOutput
from finetuning.errors import UserError, describe_failure, is_interruption, printable, run_script
from finetuning.evaluation.evaluated_data import Data, find_manifests, read_data, read_training
from finetuning.evaluation.model_predictions import (
    Model,
    input_hashes,
    predict,
    predict_boosted,
    predict_with_lm,
    restore,
)
from finetuning.files import ensure_writable_dir, exclusive_locks, sha256, write_json

if TYPE_CHECKING:
    from finetuning.evaluation.external_predictions import ExternalPredictions
    from finetuning.evaluation.results import Row
    from finetuning.evaluation.slices import Groups


def main() -> None:
    """Evaluate; the other processes of torchrun or srun, where there are any, help the first with the inference."""
    config = from_command_line(__doc__)
    with distributed.connect() as rank:
        if rank == 0:
            evaluate(config)
        else:
            from finetuning.decoding import manifest_inference

            manifest_inference.serve()


def evaluate(config: Config) -> None:
    """Evaluate every model that can be, print the tables, and end with an error when one could not be."""
    from finetuning.evaluation import external_predictions, recipes, results, results_table, second_wer, slices
    from finetuning.language_model import kenlm

    sources = results.row_names(config)
    with_models = any(isinstance(source, str) for source in sources.values())
    if with_models and (config.evaluation.decoder == "lm" or config.evaluation.boost):
        kenlm.require_flashlight()
    folder = experiment.manifest_folder(config)
    tests = [read_data(path, part) for part, path in find_manifests(folder, config.evaluation.split).items()]
    if config.evaluation.second_wer:
        second_wer.check_sentences(config.evaluation.second_wer, tests)
    training = read_training(folder)
    topics = slices.normalise_topics(config.evaluation.topics, config.text)
    if with_models:
        check_beam_search(config)
    for test in tests:
        size = f"{len(test.utterances):,} test utterances, {test.hours:.2f} h, {len(sources)} model(s)"
        print(f"{test.part or config.name}: {size}")

    failed: list[str] = []
    rows: dict[str, list[Row]] = {test.part: [] for test in tests}
    paths: dict[str, Path | ExternalPredictions] = {}
    for name, source in sources.items():  # before the locks: a download locks the models' folder, maybe one of those
        with report_failure(name, failed):
            if isinstance(source, str):
                paths[name] = find_model(source, config)
            else:
                external_predictions.check_not_overwritten(source, config)
                manifests = {test.manifest: test.utterances for test in tests}
                paths[name] = external_predictions.read_predictions(source, manifests)
    folders = map(experiment.resolve_path, (config.evaluation.predictions, config.evaluation.results))
    with exclusive_locks(*map(ensure_writable_dir, folders)):
        for name, path in paths.items():
            restore.cache_clear()  # two models may not fit into memory
            with report_failure(name, failed):
                model = Model(name, path, sha256(path)) if isinstance(path, Path) else None
                for test in tests:
                    groups = slices.make_groups(test.utterances, training, topics)
                    if model is None:
                        written, digest = path
                        output, hashes = ModelOutput(written[test.manifest], None, None), {"predictions": digest}
                        hashes["manifest"] = test.sha256
                        rows[test.part].append(score_model(name, output, hashes, test, groups, config))
                        continue
                    for row in evaluate_model(model, test, groups, config, failed):
                        rows[test.part].append(row)
                        sources[row.result["model"]] = sources[name]
        for test in tests:
            if rows[test.part]:
                write_summary(rows[test.part], sources, test, config)
        if len(tests) > 1 and any(rows.values()):
            pooled = {part: recipes.pool_recipes(of_part, config.evaluation.recipes) for part, of_part in rows.items()}
            table = {part or "test": [row.result for row in of_part] for part, of_part in pooled.items()}
            print(f"\n{results_table.format_test_sets(table)}")
    if failed:
        raise UserError(f"not evaluated, for the reasons above: {', '.join(dict.fromkeys(failed))}")


def check_beam_search(config: Config) -> None:
    """Raise UserError, before anything is run, where the beam search that is asked for lacks a file."""
    from finetuning.decoding import boosting
    from finetuning.language_model import kenlm

    if config.evaluation.decoder == "lm":
        kenlm.find_language_model(config.language_model.output, config.file)
    if config.evaluation.boost:
        boosting.read_phrases(experiment.resolve_path(config.evaluation.boost), config.text)


def evaluate_model(model: Model, test: Data, groups: "Groups", config: Config, failed: list[str]) -> "Iterator[Row]":
    """Yield the rows of a model: greedy and, where they are asked for, those by beam search."""
    from finetuning.evaluation import results

    greedy, settings = predict(model, test, config), None
    yield score_model(model.name, greedy, input_hashes(model, test), test, groups, config)
    with_lm = config.evaluation.decoder == "lm"
    if with_lm:
        name = results.lm_row_name(model.name)
        with report_failure(name, failed):
            output, hashes, settings = predict_with_lm(model, test, greedy, config)
            yield score_model(name, output, hashes, test, groups, config, {"name": "lm", **asdict(settings)})
    if config.evaluation.boost:
        name = results.boosted_row_name(model.name, with_lm)
        with report_failure(name, failed):
            output, hashes, settings = predict_boosted(name, model, test, greedy, config, settings)
            decoder = {"name": "lm+boost" if with_lm else "boost", **asdict(settings)}
            yield score_model(name, output, hashes, test, groups, config, decoder)


def find_model(source: str, config: Config) -> Path:
    """Return the model's file; raise UserError with the command that makes or fetches it."""
    from finetuning.model import pretrained

    made_by_step_2 = experiment.resolve_path(config.training.output) / f"{config.training.name}.nemo"
    if experiment.resolve_path(source) == made_by_step_2 and not made_by_step_2.is_file():
        raise UserError(f"there is no {source} yet; make it with: python Fine_tuning/train.py --config {config.file}")
    return pretrained.locate_model(source, config.model)


def score_model(
    name: str,
    output: ModelOutput,
    hashes: dict[str, str],
    test: Data,
    groups: "Groups",
    config: Config,
    decoder: dict[str, Any] | None = None,
) -> "Row":
    """Return the row `name` of the table, and write its result; `decoder`: its name and settings, None for greedy."""
    from finetuning.evaluation import bootstrap, results, results_table, scoring, second_wer, slices

    kind, second = config.evaluation.second_wer, None
    if kind:
        second = second_wer.score_words(kind, output.predictions, test.utterances)
    is_external = output.vocabulary is None
    if with_rules := is_external or scoring.needs_text_rules(output.vocabulary, config.text):
        output = scoring.apply_text_rules(output, config.text)
    characters = set(config.text.alphabet).union(*(utterance.text for utterance in test.utterances))
    missing = "" if is_external else "".join(sorted(characters - output.vocabulary.characters))
    bar = tqdm(output.predictions, desc="scoring", unit=" utterances", delay=2, leave=False)
    score = scoring.score_predictions(bar)
    score = replace(score, loss_left_out=0) if is_external else score
    by_speaker = bootstrap.sum_by_speaker(score, test.utterances)
    has_nemo_wer = not (decoder or with_rules or output.vocabulary.sentencepiece)
    nemo_wer = scoring.nemo_word_error_rate(output.predictions, score, output.vocabulary) if has_nemo_wer else None
    result = {
        **results.make_result(name, score, test.hours, missing, hashes),
        **results.interval_fields(by_speaker),
        "nemo_wer": results.round_or_none(nemo_wer),
        **(second_wer.second_fields(kind, second) if second else {}),
        **results.origin_fields(name, config),
        "slices": slices.score_slices(groups, score),
        **({"decoder": decoder} if decoder else {}),
        **({"test_set": test.part} if test.part else {}),
    }
    if with_rules:
        result |= {"text_rules": True, **scoring.characters_outside(output.predictions, characters)}
    if is_external:
        result["decoder"] = {"name": results.EXTERNAL}
    results.write_result(ensure_writable_dir(experiment.resolve_path(config.evaluation.results) / test.part), result)
    speed = results_table.format_real_time_factor(name, output.timing)
    return results.Row(result, output.predictions, score, by_speaker, speed, second)


def write_summary(rows: "list[Row]", sources: dict[str, str | System], test: Data, config: Config) -> None:
    """Print the tables, and write the comparisons and the report page; `sources`: the model behind each row."""
    from finetuning.evaluation import recipes, report_page, results, results_table, significance, slices

    folder, table = experiment.resolve_path(config.evaluation.results) / test.part, [row.result for row in rows]
    pooled = recipes.pool_recipes(rows, config.evaluation.recipes)
    for row in pooled:
        results.write_result(folder, row.result)
    comparisons = significance.compare_models(pooled)
    write_json(folder / f"{results.COMPARISONS}.json", comparisons)
    print(f"\n{test.part}" if test.part else "")
    print(results_table.format_table([row.result for row in pooled], config.evaluation, comparisons))
    print(f"\n{slices.format_slices(table)}")
    if config.evaluation.decoder == "lm" or config.evaluation.boost:
        print(f"\n{results_table.format_decoder_table(table)}")
    speeds = ", ".join(row.real_time_factor for row in rows)
    print(f"\nReal-time factor, processing time / duration of the audio: {speeds}.")
    print(f"\nresults in {folder}, one file a model")
    page = report_page.write_report(config, sources, rows, test.utterances, comparisons, test.part)
    print(f"where they fail, utterance by utterance: {page}")
    has_loss = [row for row in rows if row.result["decoder"]["name"] != results.EXTERNAL]
    for row in has_loss if config.evaluation.split is not Evaluated.test else ():
        path = results.write_ranking(folder, row)
        print(f"by loss, wrong texts first: {path}; listen, and name those to leave out in a file: dataset.drop=FILE")


@contextmanager
def report_failure(name: str, failed: list[str]) -> Iterator[None]:
    """Print why row `name` could not be evaluated and add it to `failed`, so that the other rows are."""
    try:
        yield
    except (BrokenPipeError, distributed.ProcessLost):  # nobody reads the table; the others cannot help any more
        raise
    except Exception as error:
        if is_interruption(error):
            raise
        print(f"\n{printable(f'{name} is not evaluated: {describe_failure(error)}')}", file=sys.stderr)
        failed.append(name)


if __name__ == "__main__":
    run_script(main)
