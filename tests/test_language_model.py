"""The step between 2 and 3: texts -> an n-gram model, as a user runs it on manifests written by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import ROOT, Script, assert_refused
from finetuning import arpa, language_model, ngrams
from finetuning.errors import UserError

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
    return json.loads((folder / "lm" / language_model.ABOUT).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(run_script: Script, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompletedProcess[str]]:
    """The folder of an experiment whose language model is made from two sources."""
    folder = prepare(tmp_path_factory.mktemp("made"))
    process = run_script("train_language_model.py", *both(folder), cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder, process


def test_what_it_says_and_leaves(made: tuple[Path, CompletedProcess[str]]) -> None:
    folder, process = made
    assert sorted(path.name for path in (folder / "lm").iterdir()) == sorted(
        [language_model.ABOUT, language_model.ARPA, language_model.LEXICON]
    )
    taken_out = (
        "taken out {} sentences of validation and test and {} lines that are empty, outside the alphabet "
        "or longer than 10,000 characters"
    )
    assert f"training: 4 sentences, 14 words; {taken_out.format(1, 0)}" in process.stdout
    assert f"extra: 3 sentences, 12 words; {taken_out.format(2, 3)}" in process.stdout
    assert "Estimating a 3-gram model" in process.stdout
    assert "11.11% of the validation words unknown" in process.stdout
    assert f"Wrote {folder}/lm: language_model.arpa, lexicon.txt, language_model.json" in process.stdout
    assert process.stderr == ""


def test_sentences_of_validation_and_test_are_taken_out_and_the_counts_add_up(
    made: tuple[Path, CompletedProcess[str]],
) -> None:
    found = about(made[0])
    assert found["sources"] == [
        {"name": "training", "weight": 0.7, "sentences": 4, "words": 14, "held_out": 1, "rejected": 0},
        {"name": "extra", "weight": 0.3, "sentences": 3, "words": 12, "held_out": 2, "rejected": 3},
    ]
    for source, lines in zip(found["sources"], (TRAIN, EXTRA.splitlines()), strict=True):
        assert source["sentences"] + source["held_out"] + source["rejected"] == len(lines)
    words = sorted({word for texts in SENTENCES.values() for text in texts for word in text.split()})
    assert found["words"] == len(words)
    lexicon = made[0] / "lm" / language_model.LEXICON
    assert language_model.read_lexicon(lexicon) == {word: word for word in words}
    assert "l'altro\tl ' a l t r o\n" in lexicon.read_text(encoding="utf-8")
    model = arpa.read(made[0] / "lm" / language_model.ARPA)
    assert model.words == [*ngrams.SPECIAL, *words]
    assert found["ngrams"] == [len(level.keys) for level in model.levels]


def test_the_mixture_is_the_weighted_sum_of_a_model_of_each_source(made: tuple[Path, CompletedProcess[str]]) -> None:
    mixture = arpa.read(made[0] / "lm" / language_model.ARPA)
    words = mixture.words[len(ngrams.SPECIAL) :]
    models = {
        name: ngrams.estimate([text.split() for text in texts], 3, (), words) for name, texts in SENTENCES.items()
    }
    for order, level in enumerate(mixture.levels, start=1):
        grams = mixture.grams(order)
        sums = sum(WEIGHTS[name] * 10 ** ngrams.log_probabilities(model, grams) for name, model in models.items())
        predicted = grams[:, -1] != ngrams.BEGIN
        np.testing.assert_allclose(level.log_probability[predicted], np.log10(sums[predicted]), atol=1e-6)
    p = ngrams.log_probability
    assert p(mixture, ["la"], "cosa") != pytest.approx(p(models["training"], ["la"], "cosa"), abs=1e-3)


def test_perplexity_and_unknown_words_are_those_counted_by_hand(made: tuple[Path, CompletedProcess[str]]) -> None:
    model = arpa.read(made[0] / "lm" / language_model.ARPA)
    scores = []
    for text in VALIDATION:
        told = ["<s>", *text.split(), "</s>"]
        scores += [
            (told[n] == "miagola", ngrams.log_probability(model, told[:n], told[n])) for n in range(1, len(told))
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
    for name in (language_model.ARPA, language_model.LEXICON):
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
    assert [*language_model.read_lexicon(folder / "lm" / language_model.LEXICON)] == often, "gatto once in each source"
    assert rarer["validation"]["unknown"] == 1, "miagola, which occurs once"
    said, _ = run("language_model.min_count=2")
    assert said.startswith("Already made: ")
    with (folder / "it" / "validation_manifest.json").open("a", encoding="utf-8") as manifest:
        manifest.write(json.dumps({"audio_filepath": "x.wav", "duration": 1.0, "text": "il gatto dorme"}) + "\n")
    said, _ = run()
    assert "training: 3 sentences, 11 words; taken out 2 sentences of validation" in said


def test_what_is_not_as_it_was_made_is_not_used(run_in_process: Script, tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    with pytest.raises(UserError, match=r"no language model in .* yet; make it with: .*model.py --config my.yaml"):
        language_model.find(f"{folder}/lm", "my.yaml")
    assert run_in_process("train_language_model.py", *both(folder)).returncode == 0
    path, words, hashes = language_model.find(f"{folder}/lm", "my.yaml")
    assert (path, "l'altro" in words, hashes) == (folder / "lm" / language_model.ARPA, True, about(folder)["sha256"])
    for name in (language_model.ARPA, language_model.LEXICON):
        whole = (folder / "lm" / name).read_bytes()
        (folder / "lm" / name).write_bytes(whole[:-1])
        with pytest.raises(UserError, match=r"are not what language_model.json beside them says; wait .*or type: "):
            language_model.find(f"{folder}/lm", "my.yaml")
        (folder / "lm" / name).unlink()
        with pytest.raises(UserError, match=r"or type: "):
            language_model.find(f"{folder}/lm", "my.yaml")
        (folder / "lm" / name).write_bytes(whole)
    assert language_model.find(f"{folder}/lm", "my.yaml")[0] == path


def write_arpa(path: Path, sentences: Sequence[str] = TRAIN, order: int = 3) -> Path:
    arpa.write(path, ngrams.estimate([text.split() for text in sentences], order))
    return path


def test_a_language_model_that_is_there_is_taken_as_it_is(run_in_process: Script, tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    path = write_arpa(tmp_path / "given.arpa", ["la casa è rossa", "il cane miagola", "la città dorme", "größe und"])
    process = run_in_process("train_language_model.py", *options(folder), f"language_model.file={path}")
    assert process.returncode == 0, process.stderr
    assert sorted(p.name for p in (folder / "lm").iterdir()) == [language_model.ABOUT, language_model.LEXICON]
    found, words, _ = language_model.find(f"{folder}/lm", "my.yaml")
    assert found == path
    assert [*words] == sorted({*["la", "casa", "è", "rossa", "il", "cane", "miagola", "città", "dorme", "und"]}), (
        "größe cannot be spelt"
    )
    assert about(folder)["validation"]["unknown"] == 1, "chiara"
    write_arpa(path, TRAIN)
    with pytest.raises(UserError, match=r"are not what language_model.json"):
        language_model.find(f"{folder}/lm", "my.yaml")
    process = run_in_process("train_language_model.py", *options(folder), f"language_model.file={path}")
    assert "Already made" not in process.stdout


CYRILLIC = "Москва слезам не верит\nв Москве\n"


def test_kenlms_binary_form_is_taken_with_the_words_of_the_sources(run_in_process: Script, tmp_path: Path) -> None:
    """The binary was made of the ARPA file beside it by KenLM's build_binary."""
    data, folder = ROOT / "tests" / "data", prepare(tmp_path)
    binary, same = data / "lmplz_fallback.binary", data / "lmplz_fallback.arpa"
    process = run_in_process("train_language_model.py", *options(folder), f"language_model.file={binary}")
    assert process.returncode == 0, process.stderr
    found, words, _ = language_model.find(f"{folder}/lm", "my.yaml")
    assert found == binary
    assert words == sorted({word for text in TRAIN for word in text.split()})
    known = arpa.read(same).words[3:]
    texts = (data / "lmplz.txt").read_text(encoding="utf-8").splitlines()[:12]
    one, other = (language_model.perplexity(path, known, texts) for path in (binary, same))
    assert one == other and one["unknown"] > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["there is no text ", "extra.txt", "a sentence a line"]),
        ("", ["extra.txt gives the language model no sentence", "name another file"]),
        ("\n\n ...\n", ["gives the language model no sentence", "of 3 lines, 0 can be used"]),
        (CYRILLIC, ["of 2 lines, 0 can be used", "letters outside text.alphabet", "name another file"]),
        ("Una cosa rossa\n", ["of 1 lines, 1 can be used and 1 of those stand in validation or test"]),
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
    assert not (folder / "lm" / language_model.ABOUT).exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["language_model.order=7"], ["language_model.order must be between 2 and 6"]),
        (["language_model.order=1"], ["language_model.order must be between 2 and 6"]),
        (["language_model.prune=[0,0,1,1]"], ["language_model.min_count must be", "prune"]),
        (["language_model.prune=[1]"], ["pruning by [1] does not suit order 3"]),
        (["language_model.min_count=9"], ["language_model.min_count=9 leaves no word"]),
        (["language_model.sources=[{name: a, weight: 0.5}]"], ["the weights must be above 0 and add up to 1"]),
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
        assert not (folder / "lm" / language_model.ABOUT).exists()

    refuse(tmp_path / "gone.arpa", "cannot read", "language_model.file names an ARPA file")
    refuse(write_arpa(tmp_path / "cyrillic.arpa", CYRILLIC.lower().splitlines()), "is of another alphabet")
    refuse(write_arpa(tmp_path / "longer.arpa", order=4), "is of order 4", "language_model.order=4")
    refuse(write_arpa(tmp_path / "single.arpa", order=1), "KenLM cannot read")
    cut = write_arpa(tmp_path / "cut.arpa")
    cut.write_text(cut.read_text(encoding="utf-8")[:-60], encoding="utf-8")
    refuse(cut, "cut.arpa, line ", "make the ARPA file anew")
    refuse(ROOT / "README.md", "so it is no ARPA file")
    binary = tmp_path / "cut.binary"
    binary.write_bytes(language_model.BINARY + b" 5\n" + bytes(60))
    refuse(binary, "KenLM cannot read")


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
