import copy
import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

import boosting_table
import human_speech_tables
import interval_tables
import paper_figures
import paper_pdf
import readme_tables
import report
from conftest import ROOT
from finetuning.config.loading import load_config
from finetuning.errors import UserError
from finetuning.metrics.history import read_metrics
from paper_numbers import gpu_hours, parameters
from test_environment import pins
from wording import HUMAN, RECIPES

DRAWN_BY = ("matplotlib", "typst")  # another version of these may give other bytes
TEXT = {".md", ".json"}


@pytest.fixture(scope="module")
def made() -> dict[Path, bytes]:
    return report.build_files()


@pytest.mark.slow
def test_what_follows_from_the_results_is_not_stale(made: dict[Path, bytes]):
    pinned = all(version(name) == pins("requirements.txt")[name] for name in DRAWN_BY)
    compared = [path for path in made if pinned or path.suffix in TEXT]
    stale = [path.name for path in compared if not path.is_file() or path.read_bytes() != made[path]]
    assert not stale, f"stale: {', '.join(stale)}; type: make report"
    assert {path.name for path in made} >= {
        "README.md",
        "benchmarks.md",
        "image.png",
        "numbers.json",
        "losses.svg",
        "Finetuning ASR.pdf",
    }
    assert set((ROOT / "paper" / "figures").iterdir()) <= set(made), "a figure of something that is measured no more"


def test_a_figure_that_is_edited_by_hand_is_put_back():
    pages = {page: page.read_text(encoding="utf-8") for page in report.PAGES}
    edited = {page: re.sub(r"\| (Model-IT-finetuned|6|no list) ", r"| \1!", text) for page, text in pages.items()}
    assert all(edited[page] != text for page, text in pages.items())
    assert report.fill_pages(edited) == pages


def test_a_part_without_its_marks_is_missed():
    pages = {page: page.read_text(encoding="utf-8") for page in report.PAGES}
    pages[report.PAGES[1]] = pages[report.PAGES[1]].replace("<!-- /recipes -->", "")
    with pytest.raises(UserError, match="<!-- recipes -->"):
        report.fill_pages(pages)


def test_what_a_machine_needs_follows_from_the_configuration():
    italian = load_config("configs/italian.yaml", ["training.batch_size=4", "dataset.max_duration_s=20"])
    others = {
        "common_voice": {"validated_clips": 36_000, "hours": 100},
        "quartznet15x5": {"parameters": 1e7, "operations_per_s": [1e12, 1e13]},
        "torch": {"driver": 580},
    }
    conversion = {"machine": "2 CPU cores (X)", "clips_per_s": {"archive": {"median": 60.0}}}
    memory = {"networks": {"QuartzNet15x5": {"activation_mb_per_s": 10}}}
    table = readme_tables.needs(others, conversion, memory, {"random": 0.5}, italian)
    assert "about 23 GB: 10.3 for the archive, 12 for the wavs" in table  # 10.33 + 360,000 s of 32,000 bytes + 1
    assert "0.8 GB for the activations of the largest batch (4 clips of 20 s)" in table
    assert "about 10 minutes: 36,000 clips at 60 per second on 2 CPU cores (X)" in table


def test_other_architectures_stand_beside_the_demo():
    def runs(*wers: float) -> dict[str, Any]:
        return {"runs": [{"wer": wer, "cer": wer / 4} for wer in wers]}

    found = {
        "machine": "2 CPU cores (X)",
        "data": "synthetic speech",
        "seeds": [0, 1],
        "bases": {"c": {"val_wer": 0.123}},
    }
    table = readme_tables.architectures({**found, "variants": {"citrinet random": runs(0.1, 0.3)}}, runs(0.2, 0.2))
    assert "| QuartzNet, in characters: the demo | 0.200 ± 0.000 | 0.050 ± 0.000 | 0.200, 0.200 |" in table
    assert (
        "| Citrinet, random decoder | 0.200 ± 2.201 | 0.050 ± 0.550 | 0.100, 0.300 |" in table
    )  # 12.706 · 0.1414 · √1.5
    assert "over 2 seeds" in table and "Validation WER of the English bases: 0.12 (c)." in table


def test_how_well_intervals_hold_up_is_told_as_simulated():
    case = {"speakers": 6, "skewed": True, "bootstrap_t": 0.948, "percentile": 0.8, "percentile_of_utterances": 0.5}
    found = {
        "test_sets": 2000, "tables": 500, "models": 6, "utterances": 10, "words": 8, "wer": 0.15, "spread": 0.5,
        "own_spread": 0.3, "coverage": [{**case, "without": 3}],
        "told_apart": [{"speakers": 9, "percentile": 0.612, "sign_flip_holm": 0.0, "sign_flip_one_pair": 0.044}],
    }  # fmt: skip
    table = interval_tables.coverage(found)
    assert "| 6 | skewed | 94.8% | 80.0% | 50.0% | 0.1% |" in table and "2,000 test sets a line: 10 utt" in table
    table = interval_tables.equal_models(found)
    assert "| 9 | 61.2% | 0.0% | 4.4% |" in table and "500 tables a line of 6 models" in table


def test_the_memory_of_a_gpu_holds_what_is_left_of_it():
    network = {"parameters": 2_000_000, "activation_mb_per_s": 10, "state_gb": 4}
    table = readme_tables.memory({"utterance_s": 16.7, "networks": {"Net": network}})
    assert "| Net, 2 M parameters | 4.0 GB | 10 MB | 1,520 s | 6,000 s |" in table  # 0.8 of 24 and of 80 GB, less 4


def test_what_is_known_of_the_published_run_follows_from_its_figures():
    others = {
        "common_voice": {"validated_clips": 1000},
        "run": {
            "epochs": 10, "frozen_epochs": 2, "steps": 500, "batch": 8, "labels": 30, "test_wer_trimmed": 0.2,
            "split": {"code": "80/10/10", "text": "70/15/15"}, "second_knee_epoch": 7,
        },
    }  # fmt: skip
    known = readme_tables.published(others, load_config("configs/italian.yaml", []).evaluation)
    assert "fits neither (40% of the clips an epoch)" in known  # 50 steps of 8 of 1,000
    assert "Resumed at epoch 7" in known and "only about 4 of 10" in known


def test_the_speed_of_step_1_is_told_as_measured():
    rates = {"archive": 301.4, "folder": 350.0, "sox": 75.3, "ffmpeg": 7.0, "original": 3.04, "decoding": 602.8}
    ratios = {"archive": 1.0, "folder": 0.861, "sox": 4.003, "ffmpeg": 43.1, "original": 99.1, "decoding": 0.5}
    told = readme_tables.conversion(
        {
            "machine": "2 CPU cores (X)",
            "data": "synthetic speech",
            "rounds": 5,
            "clips": {"archive": 4000},
            "clips_per_s": {way: {"median": rate} for way, rate in rates.items()},
            "archive_to": {way: {"median": ratio} for way, ratio in ratios.items()},
            "start_up_s": {"median": 0.94},
            "archive_s": {"median": 14.2},
            "extract_then_folder_s": {"median": 14.6},
            "extracted_mb": 1172,
            "peak_mb": {"4000": {"main": 40, "worker": 42}, "16000": {"main": 62, "worker": 43}},
            "without_audio": {"rows": 240000, "s": 20.4, "peak_mb": 533},
        }
    )
    assert "| `dataset_creation.py`, from the archive | 301 |  |\n" in told
    assert "| 75 | 4 × as fast |\n" in told
    assert "| 3 | 99 × as fast |\n" in told
    assert "| 603 | 0.5 × as fast |\n" in told
    assert "Medians of 5 rounds on 2 CPU cores (X); synthetic speech.\nThe start-up, 0.9 s, is left out of" in told
    assert (
        "4,000 clips took 14 s from the archive where it lies; extracting it and converting from the folder took 15 s"
        in told
    )
    assert "4,000 and 16,000 clips: 40 and 62 MB, and 42 and 43 MB per worker." in told
    assert "240,000 rows took 20 s and 533 MB." in told


SPEEDS = {"stock": 2.04, "convolutions": 4.1, "and batches": 12.3}
RATIOS = {"stock": 1.0, "convolutions": 2.011, "and batches": 6.04}


def test_the_speed_of_step_2_is_told_as_measured():
    speeds, ratios = ({way: {"median": rate} for way, rate in figures.items()} for figures in (SPEEDS, RATIOS))
    told = readme_tables.training(
        {
            "machine": "2 CPU cores (X)", "data": "noise", "model": "QuartzNet15x5", "rounds": 5, "batch": 16,
            "audio_s_per_s": speeds, "stock_to": ratios,
            "padding": {"random": 0.487, "by_duration": 0.0268},
            "difference": {"loss": 2.2e-13, "gradients": 1.4e-11},
        }
    )  # fmt: skip
    assert "| stock NeMo, random batches | 2 |  |\n" in told
    assert "| channels last, random batches | 4.1 | 2.01 × |\n" in told
    assert "| channels last, batches by duration | 12 | 6.04 × |\n" in told
    assert "49% of what is computed with random batches, 2.7% with" in told
    assert "by 2e-13 of it and the gradients by 1e-11 of" in told


def test_what_was_reached_on_human_speech_stands_with_each_run():
    made = {"cpu": "X", "precision": "32-true"}
    with_lm = {**made, "epochs": 20, "cer": 0.25, "wer": 0.7, "lm_cer": 0.2, "lm_wer": 0.55}
    runs = [{**made, "epochs": 10, "cer": cer, "wer": 0.8} for cer in (0.30, 0.31, 0.32)]
    runs[2]["precision"] = "bf16-mixed"
    variants = {"warm": {"runs": runs}, "long": {"runs": [with_lm]}, "masks": {"runs": runs[:1]}}
    found = {"machine": "2 CPU cores (X)", "data": "human speech", "hours": 3.61, "variants": variants}
    table = human_speech_tables.recipes(found).splitlines()
    assert table[2:7] == [
        "| `configs/mboshi.yaml` | 20 | 0.250 | 0.700 | 0.250 |",
        "| … with the language model |  | 0.200 | 0.550 | 0.200 |",
        f"| {HUMAN['warm']} | 10 | 0.310 ± 0.050 | 0.800 ± 0.000 | 0.300, 0.310, 0.320 |",
        "| SpecAugment | 10 | 0.300 | 0.800 | 0.300 |",
        "",
    ]
    assert "3.6 h of training; 2 CPU cores (X), one thread a run, 32-true or bf16-mixed." in table[7]
    assert len(human_speech_tables.recipes(found, ("long",)).splitlines()) == 6


def test_which_weights_validated_best_on_human_speech_is_counted():
    last = {"exported": "last", "candidates": {"last": {"val_wer": 0.7}, "average": {"val_wer": 0.71}}}
    best = {"exported": "best", "candidates": {"last": {"val_wer": 0.7}, "best": {"val_wer": 0.69}}}
    average = {"exported": "average", "candidates": {"last": {"val_wer": 0.7}, "average": {"val_wer": 0.66}}}
    variants = {"warm": {"runs": [last, last, best]}, "long": {"runs": [average]}}
    assert human_speech_tables.choices({"variants": variants}) == (
        "Of 4 runs the last weights validated best in 2, those of another epoch in 1, an average of the best "
        "in 1. Where it was not the last, validation WER was lower by 0.025 (median)."
    )
    alone = human_speech_tables.choices({"variants": {"warm": {"runs": [last]}}})
    assert alone.endswith("in 1, those of another epoch in 0, an average of the best in 0.")


def test_every_recipe_on_human_speech_has_a_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from recipes import CORPORA

    assert set(CORPORA["mboshi"].variants) == set(HUMAN)


def test_recipes_are_told_with_their_spread_over_seeds():
    runs = [
        {"epochs": 36, "reached": reached, "wer": wer, "cer": 0.0301}
        for reached, wer in ((16, 0.10), (None, 0.11), (17, 0.12))
    ]
    demo = {"epochs": 9, "reached": 5, "wer": 0.11, "cer": 0.0301}
    told = readme_tables.recipes(
        {
            "machine": "2 CPU cores (X)", "data": "synthetic speech", "seeds": [0, 1, 2], "validation_wer": 0.3,
            "variants": {"demo": {"runs": [demo]}, "warm": {"runs": runs}},
        }
    )  # fmt: skip
    assert "| the demo | 0.110 | 0.030 | 5 |\n| the long recipe: warm decoder, 5 frozen epochs |" in told
    assert "| 0.110 ± 0.050 | 0.030 ± 0.000 | 16, never, 17 |\n" in told  # 4.3027 · 0.01 · √(4/3) = 0.0497
    assert told.endswith("the demo's recipe 9 epochs, with all cores, the others 36 with one thread.")


def pages() -> list[Path]:
    """The documentation."""
    folders = ("datasets", "datasets/sample", "models/demo")
    return [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(ROOT / folder / "README.md" for folder in folders)]


def anchors(page: Path) -> set[str]:
    """What links to the headings of a page end in, as GitHub makes it."""
    text = re.sub("```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_of_the_documentation_leads_somewhere():
    broken, followed = [], 0
    for page in pages():
        for link in re.findall(r"\]\((?!https?:)(<[^>]+>|[^)\s]+)\)", page.read_text(encoding="utf-8")):
            path, _, anchor = link.strip("<>").partition("#")
            target = page.parent / path if path else page
            followed += 1
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert followed > 50
    assert not broken


def test_every_file_and_key_the_documentation_names_exists():
    def keys(settings: dict[str, Any], above: str = "") -> set[str]:
        below = [keys(value, f"{above}{key}.") for key, value in settings.items() if isinstance(value, dict)]
        return {f"{above}{key}" for key in settings}.union(*below)

    known = keys(load_config("configs/italian.yaml", []).as_dict())
    files = r"(?:Fine_tuning|configs|models/demo|results/reference|benchmarks|tests|datasets/sample)/[\w./-]*\w"
    sections = "dataset|text|model|training|language_model|evaluation"
    suffixes = "json|png|md|arpa|binary|nemo|onnx|int8"  # of files called as a section is
    suffixes += "|transcribe"  # NeMo's model.transcribe
    missing = []
    for page in set(pages()) - {ROOT / "CHANGELOG.md", ROOT / "LAB_LOG.md"}:  # these two speak of the past
        text = page.read_text(encoding="utf-8")
        missing += [(page.name, path) for path in re.findall(files, text) if not (ROOT / path).exists()]
        named = re.findall(rf"(?<![\w/.])(?:{sections})\.(?!(?:{suffixes})\b)[a-z_.]*[a-z_]", text)
        missing += [(page.name, key) for key in named if key not in known]
    assert not missing


def test_the_messages_that_troubleshooting_explains_are_those_of_the_program():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(quoted) > 20
    sources = [*(ROOT / "Fine_tuning").rglob("*.py"), ROOT / "Makefile"]
    said = re.sub(r'"\s+f?"|\\\n\s*', "", " ".join(path.read_text(encoding="utf-8") for path in sources))
    for message in quoted:  # … stands for what differs from case to case
        pieces = [piece.strip() for piece in re.split("…|stt_en_quartznet15x5.nemo|nan", message)]
        assert not [piece for piece in pieces if piece not in said], message


def test_the_ways_to_decode_are_told_as_measured():
    ways = ["this", "lexicon alone", "letters", "NeMo flashlight", "NeMo beam_batch"]
    told = readme_tables.decoding(
        {
            "machine": "2 CPU cores (X)", "data": "synthetic speech", "rounds": 5,
            "audio_s_per_s": {way: {"median": 100.0 + number} for number, way in enumerate(ways)},
            "wer": {way: 0.01 * number for number, way in enumerate(["greedy", *ways], start=1)},
            "unknown_words": {"words": 8, "written": {"greedy": 7, "this": 6}, "wer": {"greedy": 0.2, "this": 0.1}},
        }
    )  # fmt: skip
    assert "| greedy | 0.0100 |  | 0.2000 | 7 |\n" in told
    assert "| words, the lexicon open: evaluate.py | 0.0200 | 100 | 0.1000 | 6 |\n" in told
    assert "| letters, NeMo's beam_batch strategy | 0.0600 | 104 |  |  |\n" in told
    assert "how many of the 8 words" in told


def test_what_a_domain_brings_is_told_as_measured():
    def groups(on: float, off: float) -> dict[str, dict[str, float]]:
        return {"with its words": {"utterances": 10, "wer": on}, "without": {"utterances": 56, "wer": off}}

    sources = [{"name": "general", "sentences": 569}, {"name": "timetable", "sentences": 56}]
    shared = {"greedy": groups(0.09, 0.11), "sources": sources}
    told = readme_tables.domain(
        {
            "weights": {"general": 0.7, "timetable": 0.3},
            "runs": {
                "general": {"lm": groups(0.054, 0.009), "unknown_rate": 0.0562, **shared},
                "mixture": {"lm": groups(0.001, 0.007), "unknown_rate": 0.0, **shared},
            },
        }
    )
    assert "| none | 0.0900 | 0.1100 |\n| general | 0.0540 | 0.0090 |\n" in told
    assert "| 70% general + 30% timetable | 0.0010 | 0.0070 |\n" in told
    assert "10 and 56 utterances" in told and "569 general and 56 timetable sentences" in told and "lacks 5.6%" in told


def made_up(*variants: str) -> dict[str, Any]:
    """Recipes in which seed 2 of each variant lies 0.1 above seed 0, and the first one's from 0.1 to 0.2."""
    found = {}
    for number, variant in enumerate(variants):
        wers = [0.1 + 0.15 * number + 0.05 * seed for seed in range(3)]
        runs = [
            {"epochs": 4, "reached": None, "loss": 1.0, "cer": 0.1, "wer": wer, "val_wer": [1.0, 0.9, 0.5, wer]}
            for wer in wers
        ]
        found[variant] = {"runs": runs}
    return {
        "machine": "2 CPU cores (X)", "data": "synthetic speech", "hours": 0.5, "seeds": [0, 1, 2],
        "validation_wer": 0.3, "variants": found,
    }  # fmt: skip


def told(recipes: dict[str, Any]) -> dict[str, Any]:
    """The paper's numbers as if these were measured, all else as committed."""
    return report.paper_values({**report.gather(), "recipes": recipes})


@pytest.mark.parametrize(
    "variants", [("demo", "warm"), ("demo", "warm", "half of the hours", "always frozen"), tuple(RECIPES)]
)
@pytest.mark.slow
def test_the_paper_says_nothing_of_what_was_not_measured(variants: tuple[str, ...]):
    recipes = made_up(*variants)
    said, pictures = told(recipes), report.draw_figures(recipes, read_metrics(report.REFERENCE / "metrics.csv"))
    assert list(said["recipes"]["variants"]) == [variant for variant in RECIPES if variant in variants]
    assert ("epochs" in pictures) == ("always frozen" in variants)
    assert ("hours" in pictures) == ("half of the hours" in variants)
    assert "seeds" not in pictures and "lm_wer" not in said["recipes"]
    assert paper_pdf.typeset({**said, "figures": list(pictures)}, pictures, report.PAPER).startswith(b"%PDF")


def test_the_paper_says_better_or_worse_only_of_runs_that_lie_apart():
    recipes = made_up("warm", "0 frozen epochs", "split by clip", "demo")
    beside = told(recipes)["recipes"]["variants"]
    assert [beside[variant]["beside"] for variant in recipes["variants"]] == ["", "worse", "other test set", "worse"]
    recipes["variants"]["0 frozen epochs"]["runs"][0]["wer"] = 0.2  # as the worst of "warm"
    assert told(recipes)["recipes"]["variants"]["0 frozen epochs"]["beside"] == "overlaps"


def test_the_recipes_do_not_change_with_the_demo(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from recipes import CORPORA, LONG

    variants = CORPORA["sample"].variants
    assert set(variants) == set(RECIPES)
    demo = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"))["training"]
    stated = {override.partition("=")[0].removeprefix("training.") for override in LONG}
    assert demo.keys() - stated == {"workers", "accelerator"}
    training = load_config("configs/demo.yaml", list(variants["0 frozen epochs"])).training
    assert (training.max_epochs, training.frozen_epochs, training.optimizer.lr) == (36, 0, 3e-3)


def test_seeds_are_drawn_where_a_language_model_was_measured():
    recipes = made_up("demo")
    without = copy.deepcopy(recipes)
    for run in recipes["variants"]["demo"]["runs"]:
        run["lm_wer"] = 0.01
    picture = paper_figures.seeds(recipes)
    assert picture and picture.startswith(b"<?xml") and picture == paper_figures.seeds(recipes)
    assert paper_figures.seeds(without) is None


def test_no_number_is_typed_into_the_paper():
    text = (ROOT / "paper" / "paper.typ").read_text(encoding="utf-8")
    text = re.sub(r'//.*|"[^"\n]*"|@\w+|\d[\d.]*(pt|em|cm|fr|%)', "", text)
    assert not re.findall(r"(?<![\w(.])\d+[.,]?\d+", text)


def test_parameters_are_counted_as_torch_counts_them():
    small = yaml.safe_load((ROOT / "configs" / "models" / "quartznet_small.yaml").read_text(encoding="utf-8"))
    assert parameters(small, letters=38) == 458_471


def test_the_hours_of_a_gpu_follow_from_what_there_is_to_compute():
    italian = load_config("configs/italian.yaml", ["training.max_epochs=10", "dataset.encoder_frames_per_second=50"])
    of = {"common_voice": {"hours": 100}, "quartznet15x5": {"parameters": 1e7, "operations_per_s": [1e12, 1e13]}}
    # 2,520,000 s of audio and as much padding, 252 million frames, 6e7 operations each
    hours = gpu_hours(of, {"random": 0.5}, italian)
    assert hours == {
        "operations": "1.5 · 10¹⁶", "slow": "1 · 10¹²", "fast": "1 · 10¹³", "least": "0.42", "most": "4.2"
    }  # fmt: skip


def test_the_figures_of_another_processor_are_kept_and_shown_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import clone_to_table

    reference = tmp_path / "results" / "reference"
    shutil.copytree(report.REFERENCE, reference)
    monkeypatch.setattr(clone_to_table, "ROOT", tmp_path)
    monkeypatch.setattr(report, "REFERENCE", reference)
    first = (reference / "training.json").read_bytes()
    measured = json.loads(first)
    assert clone_to_table.write_speeds("training", measured | {"rounds": 6}).read_bytes() != first
    other = clone_to_table.write_speeds("training", measured | {"machine": "8 CPU cores (Y 9)", "rounds": 7})
    assert other.name == "training.8_CPU_cores_Y_9.json"
    shown = report.on_each_processor(readme_tables.training, "training")
    assert "Medians of 6 rounds on 2 CPU cores (" in shown and "Medians of 7 rounds on 8 CPU cores (Y 9)" in shown


def test_what_listed_words_bring_is_told_as_measured():
    def row(weight, right, false_alarms):
        return {"weight": weight, "said": 9, "right": right, "false_alarms": false_alarms, "wer": 0.25}

    rows = {"without": [row(None, 4, 0), row(3.0, 8, 2)], "with": [row(None, 5, 1), row(3.0, 9, 0)]}
    table = boosting_table.boosting(
        {"machine": "X", "words": ["binario"], "default_weight": 3.0, "data": {"clean": rows}}
    )
    assert "| no list | 4 + 0, 0.250 | 5 + 1, 0.250 |\n| 3 (default) | 8 + 2, 0.250 | 9 + 0, 0.250 |" in table
    assert "| Weight | clean | +LM, clean |" in table and "of 9," in table
