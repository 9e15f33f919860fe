"""Texts of a language model that are no plain text yet: a web address, a Wikipedia dump, a Common Voice release.

Each becomes a text file with one sentence per line, once; it is made again when the dump or the release is newer. A
dump is streamed. Its markup is removed by a few patterns, from the innermost outwards: what is no running text (tables,
lists, headings, references) is dropped, and so is a sentence in which markup is left. A sentence ends with . ! ? or …
before a space and a capital letter, so an abbreviation may cut one in two.
"""

import bz2
import html
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from xml.etree import ElementTree

import requests

from finetuning.config.schema import Config, TextSource, resolve_path, strip_query
from finetuning.data.tar_stream import iter_members
from finetuning.download import describe_request_error, resume_download
from finetuning.errors import UserError
from finetuning.files import atomic_open, ensure_writable_dir, exclusive_lock

ADDRESS = re.compile(r"https?://", re.IGNORECASE)
DUMPS, ARCHIVES = (".xml.bz2", ".xml"), (".tar.gz", ".tgz")
RELEASE_TABLES = ("validated.tsv", "other.tsv", "validated_sentences.tsv")  # of sentences that were checked or read
ARTICLE = "0"  # the namespace of a dump's articles
DROPPED = [  # in this order
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"<ref\b[^<>]*/>", re.IGNORECASE),
    re.compile(r"<(ref|math|gallery|timeline|table|pre|code|syntaxhighlight|score)\b.*?</\1\s*>", re.DOTALL | re.I),
    re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE),
    re.compile(r"__[A-Z]+__"),
]
NESTED = [  # (pattern of the innermost, replacement), until there are no more
    (re.compile(r"\{\{[^{}]*\}\}"), ""),
    (re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL), ""),
    (
        re.compile(r"\[\[([^\[\]]*)\]\]"),
        lambda link: "" if ":" in link[1].partition("|")[0] else link[1].split("|")[-1],
    ),
]
EXTERNAL = re.compile(r"\[(?:https?:)?//\S+\s?([^\[\]]*)\]")
NO_SENTENCE = re.compile(r"[{}\[\]<>|=]|^[*#:;!]")
END = re.compile(r"(?<=[.!?…])[\"»”’)]*\s+(?=[«\"“‘(]?[^\W\d_])")


def is_plain(file: str) -> bool:
    """Return whether a source's file is a text file as it stands."""
    return not (ADDRESS.match(file) or file.endswith((*DUMPS, *ARCHIVES)) or resolve_path(file).is_dir())


def text_path(file: str, config: Config) -> Path:
    """Return the text file of a source: its own, or what `prepare_texts` makes of it in `texts`, beside the dataset."""
    if is_plain(file):
        return resolve_path(file)
    path = _stored(file, config)
    return path if path.suffix == ".txt" else _folder(config) / f"{path.name}.txt"


def prepare_texts(config: Config) -> None:
    """Download and extract the texts of language_model.sources that are not there yet.

    Raises UserError when one cannot be had or read.
    """
    files = [source.file for source in config.language_model.sources if source.file and not is_plain(source.file)]
    texts: dict[Path, str] = {}
    for file in dict.fromkeys(files):
        if (other := texts.setdefault(text_path(file, config), file)) != file:
            raise UserError(
                f"language_model.sources: {strip_query(other)} and {strip_query(file)} would both be kept as "
                f"{text_path(file, config)}; give one of them another name"
            )
    for source in config.language_model.sources:
        if source.file and not is_plain(source.file):
            with exclusive_lock(ensure_writable_dir(_folder(config)), wait=True):
                _prepare(source, config)


def _folder(config: Config) -> Path:
    return resolve_path(config.dataset.output).parent / "texts"


def _stored(file: str, config: Config) -> Path:
    """Return where the dump or the release is, or is downloaded to."""
    if not ADDRESS.match(file):
        return resolve_path(file)
    name = PurePosixPath(urlsplit(file).path).name
    if not name.endswith((*DUMPS, ".txt")):
        raise UserError(
            f"language_model.sources: {strip_query(file)} is no address of a Wikipedia dump (.xml.bz2) or a text (.txt)"
        )
    return _folder(config) / name


def _prepare(source: TextSource, config: Config) -> None:
    stored, text = _stored(source.file, config), text_path(source.file, config)
    if ADDRESS.match(source.file) and not stored.is_file():
        _download(source.file, stored)
    if not stored.exists():
        raise UserError(f"there is no {stored}; language_model.sources names a text, a Wikipedia dump or a release")
    read = [stored, *(path for name in RELEASE_TABLES if (path := stored / name).is_file())]
    changed_ns = max(path.stat().st_mtime_ns for path in read)
    if text == stored or (text.is_file() and text.stat().st_mtime_ns == changed_ns):
        return
    print(f"Extracting sentences from {stored}")
    sentences = iter_dump(stored) if stored.name.endswith(DUMPS) else iter_release(stored)
    with atomic_open(text) as file:
        file.writelines(f"{sentence}\n" for sentence in sentences)
    os.utime(text, ns=(changed_ns, changed_ns))


def _download(address: str, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        resume_download(address, part, None, path.name)
    except requests.RequestException as error:
        raise UserError(
            f"cannot download {strip_query(address)} ({describe_request_error(error)}); rerun the same command to "
            f"resume, or download it by other means and put the file at {path}"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write {part} ({error.strerror}); make room and rerun the same command") from error
    part.replace(path)


def iter_release(path: Path) -> Iterator[str]:
    """Yield each sentence of a Common Voice release once: of the tables that it has of RELEASE_TABLES.

    `path`: the archive, or the folder with the tables. Raises UserError when there is no such table, or it has no
    column `sentence`.
    """
    seen: set[str] = set()
    for sentence in chain.from_iterable(_iter_column(path, *table) for table in _iter_tables(path)):
        if sentence not in seen:
            seen.add(sentence)
            yield sentence
    if not seen:
        raise UserError(f"{path} has no sentence in {', '.join(RELEASE_TABLES)}; name a release of Common Voice")


def _iter_tables(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for name in RELEASE_TABLES:
            if (path / name).is_file():
                yield name, (path / name).read_bytes()
        return
    with iter_members(path, path.name) as members:
        for archive, member in members:
            if member.isfile() and PurePosixPath(member.name).name in RELEASE_TABLES:
                yield PurePosixPath(member.name).name, archive.extractfile(member).read()


def _iter_column(path: Path, name: str, content: bytes) -> Iterator[str]:
    """Yield the column `sentence`; the tables are unquoted."""
    try:
        header, *lines = content.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
        column = header.split("\t").index("sentence")
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(f"{name} of {path} is not UTF-8 or has no column sentence; get the release again") from error
    for line in lines:
        fields = line.split("\t")
        if len(fields) > column and fields[column].strip():
            yield " ".join(fields[column].split())


def iter_dump(path: Path) -> Iterator[str]:
    """Yield the sentences of the articles of a Wikipedia dump (pages-articles), in constant memory.

    Raises UserError when the file is damaged, is no dump, or has no article with a sentence.
    """
    found = False
    try:
        with bz2.open(path) if path.suffix == ".bz2" else path.open("rb") as file:
            for article in _iter_articles(file):
                for sentence in iter_sentences(article):
                    found = True
                    yield sentence
    except (OSError, EOFError, ElementTree.ParseError) as error:
        raise UserError(
            f"cannot read the Wikipedia dump {path} ({error}); delete it and rerun the same command, or get it again"
        ) from error
    if not found:
        raise UserError(f"{path} holds no article of a Wikipedia dump; name a file like pages-articles.xml.bz2")


def _iter_articles(file: "bz2.BZ2File") -> Iterator[str]:
    """Yield the wiki markup of each article; redirects and pages of other kinds are left out."""
    events = ElementTree.iterparse(file, events=("start", "end"))
    _, root = next(events)
    for event, element in events:
        if event == "end" and element.tag.rpartition("}")[2] == "page":
            texts = {each.tag.rpartition("}")[2]: each.text or "" for each in element.iter()}
            if texts.get("ns") == ARTICLE and "redirect" not in texts:
                yield texts.get("text", "")
            root.clear()


def iter_sentences(markup: str) -> Iterator[str]:
    """Yield the sentences in the wiki markup of an article, without the markup."""
    text = html.unescape(markup)
    for pattern in DROPPED:
        text = pattern.sub("", text)
    for pattern, replacement in NESTED:
        count = 1
        while count:
            text, count = pattern.subn(replacement, text)
    text = re.sub("'{2,}", "", EXTERNAL.sub(r"\1", text))  # italics and bold
    for line in text.splitlines():
        if not re.match(r"[*#:;!|=]", line):
            for sentence in END.split(line):
                if sentence.strip() and not NO_SENTENCE.search(sentence.strip()):
                    yield " ".join(sentence.split())
