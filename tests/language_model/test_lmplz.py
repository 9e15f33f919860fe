"""Texts that do not fit in memory: KenLM's lmplz where it is installed, and what is said where it cannot help."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_language_model import both, options, prepare

from conftest import ROOT, Script, assert_refused
from finetuning.config.schema import Config, TextSource
from finetuning.decoding.beam_search import BeamSearch, Settings
from finetuning.errors import UserError
from finetuning.files import sha256
from finetuning.language_model import arpa, corpus, kenlm, kneser_ney, lmplz
from finetuning.model.vocabulary import Vocabulary

LETTERS = Vocabulary.of_characters(" abcdefghijklmnopqrstuvwxyzèà'")
FIXTURES = ROOT / "tests" / "fixtures"
SENTENCES = [line.split() for line in (FIXTURES / "lmplz.txt").read_text(encoding="utf-8").splitlines()]
real = pytest.mark.skipif(lmplz.find_program("lmplz") is None, reason="KenLM's lmplz is not installed (make lmplz)")


@real
@pytest.mark.parametrize(("order", "prune"), [(4, ()), (4, (0, 0, 1)), (3, (0, 1))])
def test_it_writes_what_is_estimated_here(tmp_path: Path, order: int, prune: tuple[int, ...]) -> None:
    ours = kneser_ney.estimate_model(SENTENCES, order, prune)
    assert (
        lmplz.estimate_with_lmplz(lmplz.find_program("lmplz"), tmp_path / "a.arpa", iter(SENTENCES), order, prune, None)
        == []
    )
    theirs = arpa.read_arpa(tmp_path / "a.arpa")
    assert theirs.words == ours.words and arpa.read_unigrams(tmp_path / "a.arpa")[1] == ours.words[3:]
    for level, same in zip(ours.levels, theirs.levels, strict=True):
        assert (level.keys == same.keys).all()
        assert same.log_probability == pytest.approx(level.log_probability, abs=5e-7)
        assert same.back_off == pytest.approx(level.back_off, abs=5e-7)


@real
def test_rare_words_are_unknown_there_too(tmp_path: Path) -> None:
    """Over one word more lmplz spreads what is for words that do not occur: the same to a few times 1 / 100."""
    words = kneser_ney.frequent_words(SENTENCES, 2)
    ours = kneser_ney.estimate_model(SENTENCES, 3, (), words)
    lmplz.estimate_with_lmplz(lmplz.find_program("lmplz"), tmp_path / "a.arpa", iter(SENTENCES), 3, (), words)
    theirs = arpa.read_arpa(tmp_path / "a.arpa")
    assert theirs.words == ours.words
    for level, same in zip(ours.levels, theirs.levels, strict=True):
        assert (level.keys == same.keys).all(), "also of the n-grams with <unk>"
        assert same.log_probability == pytest.approx(level.log_probability, abs=0.05)
    assert sum(10 ** theirs.levels[0].log_probability) == pytest.approx(1, abs=1e-5)


@real
@pytest.mark.parametrize("min_count", [1, 2])
def test_a_mixture_of_sources_is_that_of_the_models_estimated_here(tmp_path: Path, min_count: int) -> None:
    """Each source lacks words of the other, which have the probability of a word that does not occur."""
    sources, weights, program = [SENTENCES[:40], SENTENCES[20:]], [0.7, 0.3], lmplz.find_program("lmplz")
    words, models = kneser_ney.frequent_words(SENTENCES[:40] + SENTENCES[20:], min_count), []
    for number, source in enumerate(sources):
        path, absent = tmp_path / f"{number}.arpa", sorted(set(words) - {word for text in source for word in text})
        assert absent
        lmplz.estimate_with_lmplz(program, path, iter(source), 3, (0, 1), words, absent)
        models.append(arpa.read_arpa(path))
    theirs = kneser_ney.mix_models(models, weights)
    ours = corpus.estimate_mixture(sources, weights, 3, (0, 1), min_count)
    assert theirs.words == ours.words
    for level, same in zip(ours.levels, theirs.levels, strict=True):
        assert (level.keys == same.keys).all()
        assert same.log_probability == pytest.approx(level.log_probability, abs=1e-5)
        assert same.back_off == pytest.approx(level.back_off, abs=1e-4)


@pytest.mark.parametrize(
    ("has_rare", "absent", "expected"),
    [
        (False, [], ["ngram 1=4", "-2\t<unk>\t0", "-0.3\t<rare>\t-0.1"]),
        (False, ["zù"], ["ngram 1=5", "-2\tzù\t0", "-2\t<unk>\t0", "-0.3\t<rare>\t-0.1"]),
        (True, [], ["ngram 1=3", "-0.2914200\t<unk>\t-0.1"]),  # log10(10^-0.3 + 10^-2)
        (True, ["zù"], ["ngram 1=4", "-2\tzù\t0", "-0.3\t<unk>\t-0.1"]),
    ],
)
def test_rare_and_absent_words_are_added_to_the_unigrams(
    has_rare: bool, absent: list[str], expected: list[str]
) -> None:
    lines = ["ngram 1=4", "ngram 2=1", "-2\t<unk>\t0", "-0.3\t<rare>\t-0.1", "-1\ta\t0", "-1\ta a"]
    found = lmplz._complete_unigrams([f"{line}\n".encode() for line in lines], has_rare, absent)
    whole = [expected[0], "ngram 2=1", *expected[1:], "-1\ta\t0", "-1\ta a"]
    assert [line.decode() for line in found] == [f"{line}\n" for line in whole]


MIXED = ["language_model.sources=[{name: extra, file: '%s', weight: 0.6}, {name: training, weight: 0.4}]"]


@real
@pytest.mark.parametrize("settings", [[], ["language_model.min_count=2", "language_model.prune=[0,0,1]"], MIXED])
def test_a_text_that_does_not_fit_gives_the_same_model(
    run_in_process: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    folder = prepare(tmp_path)
    texts = [" ".join(words).replace(" ' ", "'") for words in SENTENCES]
    extra = folder / "lmplz" / "sources" / "extra.txt"  # where the model of one run goes, and its temporary files
    extra.parent.mkdir(parents=True)
    extra.write_text("\n".join([*texts, "Москва", "la rossa"]), encoding="utf-8")
    given = [*options(folder, f"{{name: extra, file: '{extra}'}}"), *settings]
    if settings is MIXED:
        given = [*options(folder), MIXED[0] % extra]
    found, said = {}, {}
    for by in ("here", "lmplz"):
        process = run_in_process("train_language_model.py", *given, f"language_model.output={folder}/{by}")
        assert process.returncode == 0, process.stderr
        found[by] = json.loads((folder / by / kenlm.ABOUT).read_text(encoding="utf-8"))
        said[by] = [line for line in process.stdout.splitlines() if line.startswith("extra: ")]
        (tmp_path / "meminfo").write_text("MemTotal: 1 kB\nMemAvailable:       0 kB\n")
        monkeypatch.setattr(lmplz, "PROC", tmp_path)
    assert (
        found["lmplz"].pop("estimated_by") == "lmplz"
        and f"{lmplz.find_program('lmplz')} estimates the model on" in process.stdout
    )
    assert found["lmplz"].pop("binary") is (lmplz.find_program("build_binary") is not None)
    assert said["here"] == said["lmplz"] and len(said["here"]) == 1
    perplexities = [found[by].pop("validation").pop("perplexity") for by in ("here", "lmplz")]
    assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-2 if settings else 1e-5)
    lexicons = [(folder / by / kenlm.LEXICON).read_bytes() for by in ("here", "lmplz")]
    assert lexicons[0] == lexicons[1] and len({found[by].pop("sha256")["lexicon"] for by in found}) == 1
    assert found["here"] == found["lmplz"]
    assert extra.is_file() and not list((folder / "lmplz").glob(".finetuning-*"))


@real
@pytest.mark.skipif(lmplz.find_program("build_binary") is None, reason="KenLM's build_binary is not installed")
def test_a_long_text_gives_a_binary_that_decodes_as_the_arpa_file(
    run_in_process: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(tmp_path)
    monkeypatch.setattr(lmplz, "MANY_WORDS", 10)
    process = run_in_process("train_language_model.py", *options(folder))
    assert process.returncode == 0, process.stderr
    assert "17 words take about 0.0 to 0.0 GB" in process.stdout and "estimates the model on disk" in process.stdout
    assert "Wrote" in process.stdout and ": language_model.binary, lexicon.txt" in process.stdout
    path, lexicon, hashes = kenlm.find_language_model(f"{folder}/lm", "my.yaml")
    assert path == folder / "lm" / kenlm.BINARY and hashes["arpa"] == sha256(path)
    noise = np.log(np.random.default_rng(0).dirichlet(np.full(len(LETTERS) + 1, 0.1), (20, 30)) + 1e-9)
    texts = {
        file: [BeamSearch(file, lexicon, LETTERS).text(log_probs, Settings()) for log_probs in noise]
        for file in (path, folder / "lm" / kenlm.ARPA)
    }
    assert texts[path] == texts[folder / "lm" / kenlm.ARPA] and any(texts[path])
    assert "Already made" in run_in_process("train_language_model.py", *options(folder)).stdout
    path.write_bytes(path.read_bytes()[:-1])
    assert "Already made" not in run_in_process("train_language_model.py", *options(folder)).stdout


def test_where_no_binary_can_be_built_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = program(tmp_path / "bin", "echo 'No space left' >&2; exit 1").rename(tmp_path / "bin" / "build_binary")
    monkeypatch.setenv("PATH", f"{failing.parent}:{NO_LMPLZ}")
    with pytest.raises(UserError, match=r"build_binary ended with status 1 \(No space left\); nothing was written"):
        lmplz.build_binary(FIXTURES / "lmplz_full.arpa", tmp_path / kenlm.BINARY)
    assert not (tmp_path / kenlm.BINARY).exists()


@real
def test_discounts_that_cannot_be_estimated_are_named(tmp_path: Path) -> None:
    fallbacks = lmplz.estimate_with_lmplz(
        lmplz.find_program("lmplz"), tmp_path / "a.arpa", iter(SENTENCES[:8]), 3, (), None
    )
    assert tuple(fallbacks) == kneser_ney.estimate_model(SENTENCES[:8], 3).fallbacks == (2, 3)


def program(folder: Path, script: str) -> Path:
    """Something else that is called lmplz."""
    folder.mkdir(exist_ok=True)
    path = folder / "lmplz"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'no space left' >&2; exit 1", ["ended with status 1 (no space left)"]),
        ("kill -9 $$", ["was ended by signal 9 (without a message)"]),
        ("cat > /dev/null; echo half an ARPA; kill -9 $$", ["was ended by signal 9"]),
        ("head -c 10 > /dev/null; printf '\\033[31mred\\n' >&2; exit 3", ["ended with status 3 ( [31mred)"]),
    ],
)
def test_when_it_fails_nothing_is_written(tmp_path: Path, script: str, words: list[str]) -> None:
    target, many = tmp_path / "out" / "a.arpa", (sentence for _ in range(2000) for sentence in SENTENCES)
    target.parent.mkdir()
    target.write_text("as it was")
    with pytest.raises(UserError, match="nothing was written: give it more memory, or more disk space") as refused:
        lmplz.estimate_with_lmplz(str(program(tmp_path, script)), target, many, 3, (), None)
    assert all(word in str(refused.value) for word in words) and "\n" not in str(refused.value)
    assert target.read_text() == "as it was" and [*target.parent.iterdir()] == [target]


def test_it_ends_when_the_text_fails(tmp_path: Path) -> None:
    def text() -> Iterator[list[str]]:
        yield ["la", "casa"]
        raise KeyboardInterrupt

    asleep = program(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    while_asleep = text()
    with pytest.raises(KeyboardInterrupt):
        lmplz.estimate_with_lmplz(str(asleep), tmp_path / "a.arpa", while_asleep, 3, (), None)
    assert not (tmp_path / "a.arpa").exists()
    if (tmp_path / "pid").exists():  # it may have been ended before its first word
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


NO_LMPLZ = "/usr/bin:/bin" if shutil.which("lmplz", path="/usr/bin:/bin") is None else "/nowhere"
ELSEWHERE = """
import os, runpy, sys
sys.executable = "/nowhere/python"  # beside which make lmplz puts none
sys.argv.pop(0)
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_what_cannot_fit_in_memory_is_said_before_it_is_begun(tmp_path: Path) -> None:
    """In a process that may have 0.5 GB, 5 million words of at least 100 bytes each."""
    folder = prepare(tmp_path)
    (folder / "extra.txt").write_text("la casa è rossa\n" * 1_250_000, encoding="utf-8")
    script, one = ROOT / "Fine_tuning" / "train_language_model.py", f"{{name: extra, file: '{folder}/extra.txt'}}"
    process = [sys.executable, "-c", ELSEWHERE, str(script), *options(folder, one)]
    limited = ["bash", "-c", 'ulimit -v 500000; exec "$@"', "-", *process]
    env = {**os.environ, "PATH": NO_LMPLZ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    refused = subprocess.run(limited, env=env, capture_output=True, text=True)
    assert_refused(
        refused, "5,000,000 words take about 0.5 to 2.6 GB of memory", " GB are free; shorten ", "type: make lmplz"
    )
    assert [*(folder / "lm").iterdir()] == []


def test_where_no_memory_is_free_lmplz_helps(
    run_in_process: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\nMemAvailable:       0 kB\n")
    monkeypatch.setattr(lmplz, "PROC", tmp_path)
    monkeypatch.setenv("PATH", NO_LMPLZ)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    refused = run_in_process("train_language_model.py", *both(folder))
    assert_refused(refused, "shorten the texts of language_model.sources, or type: make lmplz")
    failing = program(tmp_path / "bin", "echo 'Cannot allocate' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{failing.parent}:{NO_LMPLZ}")
    refused = run_in_process("train_language_model.py", *options(folder))
    assert f"are free: {failing} estimates the model on disk" in refused.stdout
    assert_refused(refused, f"{failing} ended with status 1 (Cannot allocate); nothing was written")
    assert [*(folder / "lm").iterdir()] == []


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_container_or_a_job_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """What has been read from files is not in use."""
    before = lmplz.available_memory_bytes()
    limit, used = (
        ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    job = tmp_path / ("" if version == 2 else "memory") / "slurm" / "job_1"
    (job / "step").mkdir(parents=True)
    (job / limit).write_text("5000000\n")
    (job / used).write_text("3000000\n")
    (job / "memory.stat").write_text("anon 1\ninactive_file 600000\nactive_file 400000\nfile_mapped 7\n")
    (job / "step" / limit).write_text("max\n" if version == 2 else "9223372036854771712\n")
    (job / "step" / used).write_text("2000000\n")
    (tmp_path / "self").mkdir()
    own = "0::/slurm/job_1/step\n" if version == 2 else "12:cpu,cpuacct:/\n4:memory:/slurm/job_1/step\n0::/\n"
    (tmp_path / "self" / "cgroup").write_text(own)
    monkeypatch.setattr(lmplz, "CGROUPS", tmp_path)
    monkeypatch.setattr(lmplz, "PROC", tmp_path)
    assert lmplz.available_memory_bytes() == 3_000_000 < before


def test_words_are_counted_over_the_ends_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "BLOCK", 3)  # so that words go on from block to block
    (tmp_path / "a.txt").write_text("una  casa\n\nè\trossa\n" * 1000, encoding="utf-8")
    assert corpus.count_words(TextSource(file=str(tmp_path / "a.txt")), Config()) == 4000
