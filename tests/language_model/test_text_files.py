"""Texts of a language model from a dump of Wikipedia, its address and a release, as a user runs the step."""

import bz2
import re
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_language_model import about, options, prepare

from conftest import ROOT, Script, assert_refused
from finetuning.language_model import text_files

PAGE = '<page><title>{}</title><ns>{}</ns>{}<revision><id>1</id><text xml:space="preserve">{}</text></revision></page>'
ARTICLE = """\
{{Box|nome=Roma|{{Note|a=1}}}}
[[File:r.jpg|thumb|Veduta di [[Roma]]]]'''Roma''' è la [[capitale|capitale]] d'Italia.&lt;ref&gt;P. 3.&lt;/ref&gt; \
Si trova nel [[Lazio]]! &lt;!-- da rivedere --&gt;
== Storia ==
* una voce
{| class="wikitable"
| cella || altra
|}
Il sito è [http://example.org questo]. La città&amp;nbsp;dorme {{citazione.
[[Categoria:Roma]]
"""
WRITTEN = ["Roma è la capitale d'Italia.", "Si trova nel Lazio!", "Il sito è questo."]
PAGES = [
    PAGE.format("Roma", 0, "", ARTICLE),
    PAGE.format("Discussione:Roma", 1, "", "Questo non serve. Nemmeno questo."),
    PAGE.format("Urbe", 0, '<redirect title="Roma" />', "#RINVIA [[Roma]]"),
]
DUMP = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="it">'
    f"<siteinfo><sitename>Wikipedia</sitename></siteinfo>{''.join(PAGES)}</mediawiki>"
).encode()
PACKED = bz2.compress(DUMP[:700]) + bz2.compress(DUMP[700:])  # in several streams, as the real ones


@contextmanager
def serving(content: bytes) -> Iterator[tuple[str, list[str | None]]]:
    """The address of a server on this machine that knows ranges, and the Range headers it was sent."""
    asked: list[str | None] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Range"])
            start = int(re.fullmatch(r"bytes=(\d+)-", asked[-1])[1]) if asked[-1] else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


def test_a_dump_becomes_the_sentences_of_its_articles(tmp_path: Path) -> None:
    (tmp_path / "dump.xml.bz2").write_bytes(PACKED)
    assert list(text_files.iter_dump(tmp_path / "dump.xml.bz2")) == WRITTEN
    (tmp_path / "dump.xml").write_bytes(DUMP)
    assert list(text_files.iter_dump(tmp_path / "dump.xml")) == WRITTEN


def test_a_dump_is_fetched_by_its_address_resumed_and_kept(
    run_in_process: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = prepare(tmp_path)
    (folder / "texts").mkdir()
    (folder / "texts" / "w.xml.bz2.part").write_bytes(PACKED[:100])
    with serving(PACKED) as (address, asked):
        given = options(folder, f"{{name: wiki, file: '{address}/it/w.xml.bz2?token=secret'}}")
        process = run_in_process("train_language_model.py", *given)
        assert process.returncode == 0, process.stderr
        assert asked == ["bytes=100-"]
        assert "wiki: 3 sentences, 13 words" in process.stdout
        assert (folder / "texts" / "w.xml.bz2.txt").read_text(encoding="utf-8").splitlines() == WRITTEN
        assert "secret" not in (folder / "lm" / "language_model.json").read_text(encoding="utf-8")
        assert "Already made" in run_in_process("train_language_model.py", *given).stdout
        assert len(asked) == 1
        refused = run_in_process("train_language_model.py", *options(folder, f"{{name: w, file: '{address}/w.zip'}}"))
        assert_refused(refused, "is no address of a Wikipedia dump (.xml.bz2) or a text (.txt)")
    refused = run_in_process("train_language_model.py", *options(folder, f"{{name: w, file: '{address}/v.xml.bz2'}}"))
    assert_refused(refused, "cannot download http://127.0.0.1", "rerun the same command to resume")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PACKED[:-20], "cannot read the Wikipedia dump"),
        (b"no bzip2", "cannot read the Wikipedia dump"),
        (bz2.compress(DUMP[:-30]), "cannot read the Wikipedia dump"),
        (bz2.compress(b"<mediawiki><page><title>a</title></page></mediawiki>"), "holds no article"),
        (bz2.compress(b"<a/>"), "holds no article of a Wikipedia dump"),
    ],
)
def test_a_damaged_dump_leaves_no_text(run_in_process: Script, tmp_path: Path, content: bytes, words: str) -> None:
    folder = prepare(tmp_path)
    (folder / "w.xml.bz2").write_bytes(content)
    given = options(folder, f"{{name: wiki, file: '{folder}/w.xml.bz2'}}")
    assert_refused(run_in_process("train_language_model.py", *given), words)
    assert not list((folder / "texts").glob("*.txt"))


def test_the_sentences_of_a_release_are_those_that_were_read_or_checked(run_in_process: Script, tmp_path: Path) -> None:
    """Packed or not, each once; those of validation and test are left out as from any text."""
    folder, release = prepare(tmp_path), tmp_path / "release"
    release.mkdir()
    (release / "validated.tsv").write_text("client_id\tpath\tsentence\na\t1.mp3\tLa casa.\nb\t2.mp3\tUna cosa rossa!\n")
    (release / "other.tsv").write_text('path\tsentence\n3.mp3\tLa casa.\n4.mp3\til "gatto\n')
    (release / "validated_sentences.tsv").write_text("sentence_id\tsentence\tsource\nx\tIl cane dorme.\ty\n")
    (release / "invalidated.tsv").write_text("path\tsentence\n5.mp3\tNo.\n")
    with tarfile.open(tmp_path / "r.tar.gz", "w:gz") as archive:
        archive.add(release, "cv/it")
    for given in (release, tmp_path / "r.tar.gz"):
        process = run_in_process("train_language_model.py", *options(folder, f"{{name: cv, file: '{given}'}}"))
        assert process.returncode == 0, process.stderr
        text = (folder / "texts" / f"{given.name}.txt").read_text(encoding="utf-8").splitlines()
        assert sorted(text) == ["Il cane dorme.", "La casa.", "Una cosa rossa!", 'il "gatto']
        [found] = about(folder)["sources"]
        assert (found["sentences"], found["held_out"]) == (3, 1)
    (release / "other.tsv").write_text("path\tsentence\n3.mp3\tLa casa.\n4.mp3\tuna zuppa\n")
    assert (
        "Extracting"
        in run_in_process("train_language_model.py", *options(folder, f"{{name: cv, file: '{release}'}}")).stdout
    )
    (release / "other.tsv").write_text("path\ttext\n")
    refused = run_in_process("train_language_model.py", *options(folder, f"{{name: cv, file: '{release}'}}"))
    assert_refused(refused, "other.tsv of ", "has no column sentence")
    refused = run_in_process("train_language_model.py", *options(folder, f"{{name: cv, file: '{folder}/it'}}"))
    assert_refused(refused, "has no sentence in validated.tsv")


def test_two_texts_of_one_name_are_not_taken_for_each_other(run_in_process: Script, tmp_path: Path) -> None:
    folder, found = prepare(tmp_path), []
    for version, text in (("23", "La casa rossa."), ("24", "Il gatto dorme.")):
        release = tmp_path / version / "it"
        release.mkdir(parents=True)
        (release / "validated.tsv").write_text(f"path\tsentence\n1.mp3\t{text}\n")
        found.append(f"{{name: cv{version}, file: '{release}', weight: 0.5}}")
    assert_refused(
        run_in_process("train_language_model.py", *options(folder, *found)), "would both be kept as", "another name"
    )
    for source, text in zip(found, ("La casa rossa.", "Il gatto dorme."), strict=True):
        made = run_in_process("train_language_model.py", *options(folder, source.replace("0.5", "1")))
        assert made.returncode == 0, made.stderr
        assert (folder / "texts" / "it.txt").read_text() == f"{text}\n"


def test_the_sample_is_a_release() -> None:
    found = list(text_files.iter_release(ROOT / "datasets" / "sample" / "cv-corpus-sample-it.tar.gz"))
    assert len(found) == len(set(found)) > 100
