"""The step between 2 and 3: texts -> an n-gram model, as a user runs it on manifests written by hand."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import ROOT, Script, assert_refused
from finetuning.config.loading import load_config
from finetuning.config.schema import TextSource
from finetuning.decoding import beam_search
from finetuning.errors import UserError
from finetuning.files import sha256, write_json
from finetuning.language_model import arpa, corpus, kenlm, kneser_ney, lexicon_file
from finetuning.model.vocabulary import Vocabulary
from mutations import mutated

TRAIN = ["la casa è rossa", "la cosa è chiara", "una cosa rossa", "una casa rossa", "il gatto dorme"]
VALIDATION = ["la casa è chiara", "il cane miagola", "la rossa"]
TEST = ["una cosa rossa"]
EXTRA = """\
\ufeffLa cosa è chiara!
«Il gatto è rosso.»
UNA COSA… ROSSA?
la casa è chiara
Москва
...

L’altro cane è rosso
"""
SENTENCES = {  # what is left of them
    "training": ["la casa è rossa", "la cosa è chiara", "una casa rossa", "il gatto dorme"],
    "extra": ["la cosa è chiara", "il gatto è rosso", "l'altro cane è rosso"],
}
WEIGHTS = {"training": 0.7, "extra": 0.3}


def write_manifests(folder: Path) -> Path:
    """Manifests of wavs that are not there: only their texts are read."""
    folder.mkdir(parents=True)
    for split, texts in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        lines = [{"audio_filepath": f"{n}.wav", "duration": 1.0, "text": text} for n, text in enumerate(texts)]
        (folder / f"{split}_manifest.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def options(folder: Path, *sources: str) -> list[str]:
    """An experiment in `folder`, whose texts are those of training and `sources`, in YAML."""
    return [
        "--config",
        "configs/demo.yaml",
        f"dataset.output={folder}/it",
        f"language_model.output={folder}/lm",
        "language_model.order=3",
        *([f"language_model.sources=[{', '.join(sources)}]"] if sources else []),
    ]


def both(folder: Path) -> list[str]:
    extra = f"{{name: extra, file: '{folder}/extra.txt', weight: 0.3}}"
    return options(folder, "{name: training, weight: 0.7}", extra)


def prepare(folder: Path) -> Path:
    write_manifests(folder / "it")
    (folder / "extra.txt").write_text(EXTRA, encoding="utf-8")
    return folder


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "lm" / kenlm.ABOUT).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(run_script: Script, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompletedProcess[str]]:
    """The folder of an experiment whose language model is made from two sources."""
    folder = prepare(tmp_path_factory.mktemp("made"))
    process = run_script("train_language_model.py", *both(folder), cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder, process


def test_what_it_says_and_leaves(made: tuple[Path, CompletedProcess[str]]) -> None:
    folder, process = made
    assert sorted(path.name for path in (folder / "lm").iterdir()) == sorted([kenlm.ABOUT, kenlm.ARPA, kenlm.LEXICON])
    taken_out = (
        "left out {} sentences of validation and test, 0 of the same words in another order and {} lines that are "
        "empty, outside the alphabet or longer than 2,000 characters"
    )
    assert f"training: 4 sentences, 14 words; {taken_out.format(1, 0)}" in process.stdout
    assert f"extra: 3 sentences, 12 words; {taken_out.format(2, 3)}" in process.stdout
    assert "Estimating a 3-gram model" in process.stdout
    assert (
        "too little text to estimate the Kneser-Ney discounts of order 1, 2, 3: the fixed ones 0.5, 1.0, 1.5 are used"
        in (process.stdout)
    )
    assert about(folder)["discount_fallbacks"] == [1, 2, 3]
    assert "11.11% of the validation words unknown" in process.stdout
    assert f"Wrote {folder}/lm: language_model.arpa, lexicon.txt, language_model.json" in process.stdout
    assert process.stderr == ""


def test_sentences_of_validation_and_test_are_taken_out_and_the_counts_add_up(
    made: tuple[Path, CompletedProcess[str]],
) -> None:
    found = about(made[0])
    assert found["sources"] == [
        {
            "name": "training",
            "weight": 0.7,
            "sentences": 4,
            "words": 14,
            "held_out": 1,
            "near_duplicates": 0,
            "rejected": 0,
        },
        {
            "name": "extra",
            "weight": 0.3,
            "sentences": 3,
            "words": 12,
            "held_out": 2,
            "near_duplicates": 0,
            "rejected": 3,
        },
    ]
    for source, lines in zip(found["sources"], (TRAIN, EXTRA.splitlines()), strict=True):
        assert source["sentences"] + source["held_out"] + source["rejected"] == len(lines)
    words = sorted({word for texts in SENTENCES.values() for text in texts for word in text.split()})
    assert found["words"] == len(words)
    lexicon = made[0] / "lm" / kenlm.LEXICON
    assert lexicon_file.read_lexicon(lexicon) == {word: word for word in words}
    assert "l'altro\tl ' a l t r o\n" in lexicon.read_text(encoding="utf-8")
    model = arpa.read_arpa(made[0] / "lm" / kenlm.ARPA)
    assert model.words == [*kneser_ney.SPECIAL, *words]
    assert found["ngrams"] == [len(level.keys) for level in model.levels]


def test_sentences_of_a_further_test_set_are_taken_out_too(run_in_process: Script, tmp_path: Path) -> None:
    folder, found = prepare(tmp_path), []
    for _ in range(2):
        assert run_in_process("train_language_model.py", *options(folder)).returncode == 0
        found.append(about(folder)["sources"][0])
        line = {"audio_filepath": "0.wav", "duration": 1.0, "text": "il gatto dorme"}
        (folder / "it" / "test_radio_manifest.json").write_text(json.dumps(line) + "\n")
    assert [each["held_out"] for each in found] == [1, 2]


def test_the_same_words_in_another_order_are_left_out_and_counted_apart(run_in_process: Script, tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    lines = ["La rossa: una cosa!", "cosa rossa una", "Rossa, la…", "una cosa rossa", "la rossa la", "una rossa"]
    (folder / "extra.txt").write_text("\n".join(lines), encoding="utf-8")
    process = run_in_process(
        "train_language_model.py", *options(folder, f"{{name: extra, file: '{folder}/extra.txt'}}")
    )
    assert process.returncode == 0, process.stderr
    [found] = about(folder)["sources"]
    assert (found["sentences"], found["held_out"], found["near_duplicates"]) == (3, 1, 2), "other numbers of words stay"
    assert "1 sentences of validation and test, 2 of the same words in another order and 0 lines" in process.stdout


def test_the_mixture_is_the_weighted_sum_of_a_model_of_each_source(made: tuple[Path, CompletedProcess[str]]) -> None:
    mixture = arpa.read_arpa(made[0] / "lm" / kenlm.ARPA)
    words = mixture.words[len(kneser_ney.SPECIAL) :]
    models = {
        name: kneser_ney.estimate_model([text.split() for text in texts], 3, (), words)
        for name, texts in SENTENCES.items()
    }
    for order, level in enumerate(mixture.levels, start=1):
        grams = mixture.grams(order)
        sums = sum(WEIGHTS[name] * 10 ** kneser_ney.log_probabilities(model, grams) for name, model in models.items())
        predicted = grams[:, -1] != kneser_ney.BEGIN
        np.testing.assert_allclose(level.log_probability[predicted], np.log10(sums[predicted]), atol=1e-6)
    p = kneser_ney.log_probability
    assert p(mixture, ["la"], "cosa") != pytest.approx(p(models["training"], ["la"], "cosa"), abs=1e-3)


def test_perplexity_and_unknown_words_are_those_counted_by_hand(made: tuple[Path, CompletedProcess[str]]) -> None:
    model = arpa.read_arpa(made[0] / "lm" / kenlm.ARPA)
    scores = []
    for text in VALIDATION:
        told = ["<s>", *text.split(), "</s>"]
        scores += [
            (told[n] == "miagola", kneser_ney.log_probability(model, told[:n], told[n])) for n in range(1, len(told))
        ]
    known, everything = [score for unknown, score in scores if not unknown], [score for _, score in scores]
    assert (len(known), len(everything)) == (11, 12)
    found = about(made[0])["validation"]
    assert (found["words"], found["unknown"], found["unknown_rate"]) == (9, 1, round(1 / 9, 4))
    assert found["perplexity"] == pytest.approx(10 ** (-sum(known) / 11), rel=1e-4)
    assert found["perplexity_with_unknown"] == pytest.approx(10 ** (-sum(everything) / 12), rel=1e-4)


def test_the_same_texts_give_the_same_bytes_wherever_they_are(
    made: tuple[Path, CompletedProcess[str]], run_script: Script, tmp_path: Path
) -> None:
    folder = prepare(tmp_path / "elsewhere")
    assert run_script("train_language_model.py", *both(folder), cwd=tmp_path).returncode == 0
    for name in (kenlm.ARPA, kenlm.LEXICON):
        assert (folder / "lm" / name).read_bytes() == (made[0] / "lm" / name).read_bytes()
    assert about(folder)["sha256"] == about(made[0])["sha256"]


def test_it_is_made_once_and_anew_when_a_text_or_a_setting_changes(run_in_process: Script, tmp_path: Path) -> None:
    folder = prepare(tmp_path)

    def run(*more: str) -> tuple[str, dict[str, Any]]:
        process = run_in_process("train_language_model.py", *both(folder), *more)
        assert process.returncode == 0, process.stderr
        return process.stdout, about(folder)

    _, first = run()
    said, again = run()
    assert said.startswith("Already made: ") and again == first
    with (folder / "extra.txt").open("a", encoding="utf-8") as text:
        text.write("il cane miagola forte\n")
    said, more = run()
    assert "extra: 4 sentences, 16 words" in said and more["validation"]["unknown"] == 0
    said, rarer = run("language_model.min_count=2")
    assert "Estimating" in said
    often = ["cane", "casa", "chiara", "cosa", "gatto", "il", "la", "rossa", "rosso", "è"]
    assert [*lexicon_file.read_lexicon(folder / "lm" / kenlm.LEXICON)] == often, "gatto once in each source"
    assert rarer["validation"]["unknown"] == 1, "miagola, which occurs once"
    said, _ = run("language_model.min_count=2")
    assert said.startswith("Already made: ")
    with (folder / "it" / "validation_manifest.json").open("a", encoding="utf-8") as manifest:
        manifest.write(json.dumps({"audio_filepath": "x.wav", "duration": 1.0, "text": "il gatto dorme"}) + "\n")
    said, _ = run()
    assert "training: 3 sentences, 11 words; left out 2 sentences of validation" in said


def test_what_is_not_as_it_was_made_is_not_used(run_in_process: Script, tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    with pytest.raises(UserError, match=r"no language model in .* yet; make it with: .*model.py --config my.yaml"):
        kenlm.find_language_model(f"{folder}/lm", "my.yaml")
    assert run_in_process("train_language_model.py", *both(folder)).returncode == 0
    path, words, hashes = kenlm.find_language_model(f"{folder}/lm", "my.yaml")
    assert (path, "l'altro" in words, hashes) == (folder / "lm" / kenlm.ARPA, True, about(folder)["sha256"])
    for name in (kenlm.ARPA, kenlm.LEXICON):
        whole = (folder / "lm" / name).read_bytes()
        (folder / "lm" / name).write_bytes(whole[:-1])
        with pytest.raises(UserError, match=r"are not those that language_model.json describes; wait .*or run: "):
            kenlm.find_language_model(f"{folder}/lm", "my.yaml")
        (folder / "lm" / name).unlink()
        with pytest.raises(UserError, match=r"or run: "):
            kenlm.find_language_model(f"{folder}/lm", "my.yaml")
        (folder / "lm" / name).write_bytes(whole)
    assert kenlm.find_language_model(f"{folder}/lm", "my.yaml")[0] == path


def test_what_another_run_left_half_made_is_made_again(run_in_process: Script, tmp_path: Path) -> None:
    """As when a run with other settings was killed between the ARPA file and language_model.json."""
    folder = prepare(tmp_path)
    assert run_in_process("train_language_model.py", *both(folder)).returncode == 0
    arpa_file = folder / "lm" / kenlm.ARPA
    whole = arpa_file.read_bytes()
    write_arpa(arpa_file, ["un altro testo"])
    process = run_in_process("train_language_model.py", *both(folder))
    assert process.returncode == 0 and "Already made" not in process.stdout
    assert arpa_file.read_bytes() == whole and kenlm.find_language_model(f"{folder}/lm", "my.yaml")[0] == arpa_file


def test_a_model_that_was_replaced_meanwhile_is_not_searched_with(run_in_process: Script, tmp_path: Path) -> None:
    folder, letters = prepare(tmp_path), Vocabulary.of_characters(" abcdefghijklmnopqrstuvwxyzèà'")
    assert run_in_process("train_language_model.py", *both(folder)).returncode == 0
    *_, hashes = kenlm.find_language_model(f"{folder}/lm", "my.yaml")
    assert "gatto" in beam_search.load_beam_search(f"{folder}/lm", "my.yaml", letters, hashes).known
    assert run_in_process("train_language_model.py", *both(folder), "language_model.order=2").returncode == 0
    with pytest.raises(UserError, match="was replaced meanwhile; rerun the same command"):
        beam_search.load_beam_search(f"{folder}/lm", "my.yaml", letters, hashes)


def write_arpa(path: Path, sentences: Sequence[str] = TRAIN, order: int = 3) -> Path:
    arpa.write_arpa(path, kneser_ney.estimate_model([text.split() for text in sentences], order))
    return path


def test_a_language_model_that_is_there_is_taken_as_it_is(run_in_process: Script, tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    path = write_arpa(tmp_path / "given.arpa", ["la casa è rossa", "il cane miagola", "la città dorme", "размер und"])
    process = run_in_process("train_language_model.py", *options(folder), f"language_model.file={path}")
    assert process.returncode == 0, process.stderr
    assert sorted(p.name for p in (folder / "lm").iterdir()) == [kenlm.ABOUT, kenlm.LEXICON]
    found, words, _ = kenlm.find_language_model(f"{folder}/lm", "my.yaml")
    assert found == path
    assert [*words] == sorted({*["la", "casa", "è", "rossa", "il", "cane", "miagola", "città", "dorme", "und"]}), (
        "размер cannot be spelt"
    )
    assert about(folder)["validation"]["unknown"] == 1, "chiara"
    write_arpa(path, TRAIN)
    with pytest.raises(UserError, match=r"are not those that language_model.json"):
        kenlm.find_language_model(f"{folder}/lm", "my.yaml")
    process = run_in_process("train_language_model.py", *options(folder), f"language_model.file={path}")
    assert "Already made" not in process.stdout


CYRILLIC = "Москва слезам не верит\nв Москве\n"


DATA = ROOT / "tests" / "fixtures"


@pytest.mark.parametrize("kind", ["", "_probing"])
def test_kenlms_binary_form_is_taken_with_its_own_words(run_in_process: Script, tmp_path: Path, kind: str) -> None:
    """The binary was made of the ARPA file beside it by KenLM's build_binary."""
    folder, binary, same = prepare(tmp_path), DATA / f"lmplz_fallback{kind}.binary", DATA / "lmplz_fallback.arpa"
    words, told = {}, {}
    for file in (same, binary):
        process = run_in_process("train_language_model.py", *options(folder), f"language_model.file={file}")
        assert process.returncode == 0, process.stderr
        found, words[file], _ = kenlm.find_language_model(f"{folder}/lm", "my.yaml")
        assert found == file
        told[file] = {name: about(folder)[name] for name in ("given", "words", "validation")}
    assert words[binary] == words[same] == {word: word for word in arpa.read_arpa(same).words[3:] if word != "'"}
    assert told[binary] == told[same] and told[binary]["given"]["words"] == told[binary]["words"] + 1 == 41
    assert told[binary]["validation"]["unknown"] == 9 - 2, "only il and la are known"


def test_a_binary_without_words_gets_those_of_the_sources_and_says_so(run_in_process: Script, tmp_path: Path) -> None:
    folder, binary = prepare(tmp_path), DATA / "lmplz_fallback_no_words.binary"
    process = run_in_process("train_language_model.py", *options(folder), f"language_model.file={binary}")
    assert process.returncode == 0, process.stderr
    assert "was built without its words, so those of the sources are used" in process.stdout
    _, words, _ = kenlm.find_language_model(f"{folder}/lm", "my.yaml")
    assert [*words] == sorted({word for text in SENTENCES["training"] for word in text.split()})
    assert about(folder)["given"] == {"words": None}


def test_words_are_spelt_by_the_rules_for_texts(run_in_process: Script, tmp_path: Path) -> None:
    """What is left out is counted, by its reason; two words of one spelling both stay."""
    folder = prepare(tmp_path)
    given = ["La casa è rossa", "la citta\u0300 dorme", "l’ altro e-mail", "мир 25‰ !!", "il gatto La casa Grün"]
    path = write_arpa(tmp_path / "given.arpa", given)
    process = run_in_process("train_language_model.py", *options(folder), f"language_model.file={path}")
    assert process.returncode == 0, process.stderr
    as_they_are = {word: word for word in ["altro", "casa", "dorme", "gatto", "il", "la", "rossa", "è"]}
    otherwise = {"Grün": "grun", "La": "la", "citta\u0300": "città", "l’": "l'"}
    found, words, _ = kenlm.find_language_model(f"{folder}/lm", "my.yaml")
    assert found == path and words == as_they_are | otherwise
    assert "citta\u0300\tc i t t à\n" in (folder / "lm" / kenlm.LEXICON).read_text(encoding="utf-8")
    assert about(folder)["given"] == {
        "words": 16,
        "spelt_otherwise": {"words": 4, "as": sorted(otherwise)},
        "same_spelling": 1,
        "left_out": {
            "without a letter": {"words": 1, "as": ["!!"]},
            "outside the alphabet": {"words": 2, "as": ["25‰", "мир"]},
            "several words": {"words": 1, "as": ["e-mail"]},
        },
    }
    assert "given.arpa: 16 words; " in process.stdout
    assert "1 left out, several words (such as e-mail)" in process.stdout
    assert "1 that share their spelling with another word" in process.stdout
    assert about(folder)["validation"]["unknown"] == 3, "chiara, cane, miagola"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["there is no text ", "extra.txt", "one sentence per line"]),
        ("", ["extra.txt gives the language model no sentence", "name another file"]),
        ("\n\n ...\n", ["gives the language model no sentence", "of 3 lines, 0 can be used"]),
        (CYRILLIC, ["of 2 lines, 0 can be used", "characters outside text.alphabet", "name another file"]),
        ("Una cosa rossa\n", ["of 1 lines, 1 can be used and 1 of those are in validation or test"]),
        (b"la citt\xe0\n", ["cannot read the text ", "extra.txt", "it must be UTF-8"]),
    ],
)
def test_texts_that_give_no_sentence_are_refused(
    run_in_process: Script, tmp_path: Path, text: str | bytes | None, words: list[str]
) -> None:
    folder = prepare(tmp_path)
    if text is None:
        (folder / "extra.txt").unlink()
    else:
        (folder / "extra.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused = run_in_process("train_language_model.py", *both(folder))
    assert_refused(refused, *words)
    assert refused.stderr.strip().count("\n") == 0
    assert not (folder / "lm" / kenlm.ABOUT).exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["language_model.order=7"], ["must be at least 2 and at most 6"]),
        (["language_model.order=1"], ["must be at least 2 and at most 6"]),
        (["language_model.prune=[0,0,1,1]"], ["language_model.prune must have at most language_model.order=3"]),
        (["language_model.prune=[1]"], ["pruning by [1] does not suit order 3"]),
        (["language_model.min_count=9"], ["language_model.min_count=9 leaves no word"]),
        (["language_model.sources=[{name: a, weight: 0.5}]"], ["the weights must add up to 1"]),
        (["language_model.sources=[{name: a, weight: 1.5}, {name: b, weight: -0.5}]"], ["must be above 0"]),
        (["language_model.sources=[{name: a, weight: 0.5}, {name: a, weight: 0.5}]"], ["two have the same name"]),
        (["language_model.sources=[]"], ["language_model.sources"]),
        (["language_model.sources=[{name: a, wheight: 1}]"], ["wheight"]),
        (["dataset.output=/nowhere/it"], ["no manifest /nowhere/it/", "dataset_creation.py"]),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    run_in_process: Script, tmp_path: Path, settings: list[str], words: list[str]
) -> None:
    refused = run_in_process("train_language_model.py", *options(prepare(tmp_path)), *settings)
    assert_refused(refused, *words)
    assert refused.stderr.strip().count("\n") == 0


def test_arpa_files_that_cannot_be_used_are_refused(run_in_process: Script, tmp_path: Path) -> None:
    folder = prepare(tmp_path)

    def refuse(path: Path, *words: str) -> None:
        refused = run_in_process("train_language_model.py", *options(folder), f"language_model.file={path}")
        assert_refused(refused, path.name, *words)
        assert refused.stderr.strip().count("\n") == 0
        assert not (folder / "lm" / kenlm.ABOUT).exists()

    refuse(tmp_path / "gone.arpa", "cannot read", "language_model.file names an ARPA file")
    refuse(write_arpa(tmp_path / "cyrillic.arpa", CYRILLIC.lower().splitlines()), "is of another alphabet")
    refuse(write_arpa(tmp_path / "longer.arpa", order=4), "is of order 4", "language_model.order=4")
    refuse(write_arpa(tmp_path / "single.arpa", order=1), "KenLM cannot read")
    cut = write_arpa(tmp_path / "cut.arpa")
    cut.write_text(cut.read_text(encoding="utf-8")[:-60], encoding="utf-8")
    refuse(cut, "cut.arpa, line ", "make the ARPA file again")
    refuse(ROOT / "README.md", "so it is not an ARPA file")
    binary = tmp_path / "cut.binary"
    binary.write_bytes((DATA / "lmplz_fallback.binary").read_bytes()[:-100])
    refuse(binary, "is not a usable KenLM binary", "make it again with build_binary")


def test_the_steps_that_use_it_name_the_command_that_makes_it(run_in_process: Script, tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    (folder / "it" / "0.wav").touch()
    evaluation = [f"evaluation.{name}={folder}/{name}" for name in ("predictions", "results")]
    models = "evaluation.models=[a.nemo]"
    refused = run_in_process("evaluate.py", *options(folder), *evaluation, models, "evaluation.decoder=lm")
    command = "make it with: python Fine_tuning/train_language_model.py --config configs/demo.yaml"
    assert_refused(refused, f"there is no language model in {folder}/lm yet; {command}")


@pytest.mark.parametrize("given", [ROOT / "README.md", ROOT / "configs", Path("gone/decoder.json"), "[]", '{"a": 1}'])
def test_what_describes_no_beam_search_is_refused_before_a_model_is_loaded(
    run_in_process: Script, tmp_path: Path, given: Path | str
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    if isinstance(given, str):
        (tmp_path / "decoder.json").write_text(given)
        given = tmp_path / "decoder.json"
    model = ROOT / "models" / "demo" / "quartznet_small_en.nemo"
    refused = run_in_process("transcribe.py", str(model), str(tmp_path / "a.wav"), "--language-model", str(given))
    assert_refused(refused, str(given), "describes no beam search", "evaluate.py evaluation.decoder=lm")
    assert "loading" not in refused.stderr and refused.stderr.strip().count("\n") == 0


LEXICON = b"la\tl a\nl\xe2\x80\x99\tl '\ncitt\xc3\xa0\tc i t t \xc3\xa0\n"


@pytest.mark.parametrize(
    "content",
    [b"", b"la\n", b"la\t\n", b"la\tla\n", b"\tl a\n", LEXICON + b"la\tl a\n", LEXICON + b"\n", b"la\tl a\xff\n"],
)
def test_a_lexicon_that_is_none_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_bytes(LEXICON)
    assert lexicon_file.read_lexicon(path) == {"la": "la", "l’": "l'", "città": "città"}
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"lexicon\.txt.* make it again with train_language_model\.py") as refused:
        lexicon_file.read_lexicon(path)
    assert "\n" not in str(refused.value)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["lexicon", "about", "arpa"]), st.data())
def test_no_mutation_of_what_lies_in_its_folder_is_a_traceback(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Either it is read as it was, or refused in one sentence."""
    lexicon, about_it = tmp_path / kenlm.LEXICON, tmp_path / kenlm.ABOUT
    lexicon.write_bytes(LEXICON)
    path = write_arpa(tmp_path / kenlm.ARPA, ["la città", "l’ altro"])
    hashes = {"arpa": sha256(path), "lexicon": sha256(lexicon)}
    write_json(about_it, {"words": 3, "sha256": hashes, "inputs": {"file": None, "order": 3}})
    changed = {"lexicon": lexicon, "about": about_it, "arpa": path}[name]
    changed.write_bytes(data.draw(mutated(changed.read_bytes())))
    for read in (
        lambda: kenlm.find_language_model(str(tmp_path), "my.yaml"),
        lambda: lexicon_file.read_lexicon(lexicon),
        lambda: arpa.read_arpa(path),
    ):
        try:
            read()
        except UserError as refused:
            assert "\n" not in str(refused)


DEMO = cache(lambda: load_config("configs/demo.yaml", []))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutated(EXTRA.encode()))
def test_no_mutation_of_a_text_is_a_traceback(tmp_path: Path, text: bytes) -> None:
    """Each line of a text is counted once, or the text is refused in one sentence."""
    (tmp_path / "extra.txt").write_bytes(text)
    config, tally = DEMO(), corpus.SourceStats("extra", 1.0)
    source = TextSource("extra", str(tmp_path / "extra.txt"))
    try:
        found = [*corpus.iter_sentences(source, config, {"cosa rossa una": {"una cosa rossa"}}, tally)]
    except UserError as refused:
        assert "\n" not in str(refused)
    else:
        assert tally.sentences == len(found) and tally.words == sum(map(len, found)) > 0
        lines = text.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
        assert tally.sentences + tally.held_out + tally.near_duplicates + tally.rejected == len(lines)
    assert corpus.count_words(source, config) == len(text.split())


def test_a_text_without_line_ends_is_not_read_for_hours(tmp_path: Path) -> None:
    """Rules may take the square of a sentence's length."""
    (tmp_path / "extra.txt").write_text("‘" * 60_000 + "\nuna casa\n" + "una casa " * 10_000, encoding="utf-8")
    tally = corpus.SourceStats("extra", 1.0)
    source = TextSource("extra", str(tmp_path / "extra.txt"))
    assert [*corpus.iter_sentences(source, DEMO(), {}, tally)] == [["una", "casa"]]
    assert (tally.sentences, tally.rejected) == (1, 2)
