"""KenLM's own programs for long texts: the estimator lmplz, which sorts on disk, and build_binary.

lmplz estimates the same model as kneser_ney.py (interpolated modified Kneser-Ney; Heafield et al. 2013): log10 p agrees
to 5e-7. It does not accept <unk> in a text, so a word outside the vocabulary is written as RARE, which becomes <unk>
afterwards. Where the text has every word of the vocabulary, that spreads the probability of unseen words over one more
word, and log10 p differs by a few times 1 / number of words.
"""

import math
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from finetuning.errors import UserError, printable
from finetuning.files import atomic_path
from finetuning.language_model.kneser_ney import FALLBACK, SPECIAL

# bytes that kneser_ney.py and arpa.py take, measured on repeated and on ever new sentences, of which nothing is pruned
LEAST_PER_WORD, MOST_PER_WORD = 100, 530
MANY_WORDS = 10_000_000  # about a million sentences; above it lmplz is used wherever it is installed
RARE = "<rare>"  # in no text: such a tag is rejected as a transcriber's note, like <unk>
SORT_SHARE = 0.5  # of the free memory that lmplz may sort in
LEAST_TO_SORT, MOST_TO_SORT = 1 << 26, 1 << 31  # bytes: with less lmplz does not start, more does not help
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
SUBSTITUTED = re.compile(r"[Ss]ubstituting fallback discounts for order (\d+)")  # counted from 0


def available_memory_bytes() -> int:
    """Return the memory this process can still get, limited by the machine, its control groups and its own limit."""
    free = list(_free_in_groups())
    if available := re.search(r"^MemAvailable: +(\d+) kB", _read(PROC / "meminfo"), re.MULTILINE):
        free.append(int(available[1]) * 1024)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    size = re.search(r"^VmSize:\s+(\d+) kB", _read(PROC / "self" / "status"), re.MULTILINE)
    if limit != resource.RLIM_INFINITY and size:
        free.append(limit - int(size[1]) * 1024)
    return max(0, min(free, default=1 << 62))


def _free_in_groups() -> Iterator[int]:
    """Yield the bytes free in each control group of this process (of a container or a job, for example).

    The page cache counts as free.
    """
    for line in _read(PROC / "self" / "cgroup").splitlines():
        kinds, path = line.split(":", 2)[1:]
        if kinds not in ("", "memory"):
            continue
        root = CGROUPS / kinds
        limit, used = (
            ("memory.max", "memory.current") if not kinds else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        group = root / path.lstrip("/")
        for folder in [each for each in (group, *group.parents) if each.is_relative_to(root)]:
            numbers = [_read(folder / name).strip() for name in (limit, used)]
            if all(number.isdecimal() for number in numbers):
                files = re.findall(r"^(?:in)?active_file (\d+)", _read(folder / "memory.stat"), re.MULTILINE)
                yield int(numbers[0]) - int(numbers[1]) + sum(map(int, files))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def find_program(name: str) -> str | None:
    """Return the path of one of KenLM's programs: on the PATH, or beside this Python, where `make lmplz` puts it."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def build_binary(arpa: Path, binary: Path) -> bool:
    """Write KenLM's binary form of an ARPA file, hash tables that load in seconds; return whether that was possible.

    Without KenLM's build_binary nothing is written. Raises UserError when it fails.
    """
    program = find_program("build_binary")
    if not program:
        return False
    with atomic_path(binary) as temporary:
        process = subprocess.run([program, "probing", str(arpa), str(temporary)], capture_output=True)
        if process.returncode:
            raise _failure(program, binary, process.returncode, process.stderr.decode("utf-8", "replace"))
    return True


def estimate_with_lmplz(
    lmplz: str,
    arpa: Path,
    sentences: Iterable[Sequence[str]],
    order: int,
    prune: Sequence[int],
    vocabulary: Iterable[str] | None,
    absent: Sequence[str] = (),
) -> list[int]:
    """Write the ARPA file of a text, which is read once; return the orders whose discounts could not be estimated.

    `vocabulary`: the words of the model, any other becomes <unk>; None: all words. `absent`: those that the text lacks;
    they get the probability of a word that does not occur. Raises UserError, and writes nothing, when lmplz fails.
    """
    command = [
        lmplz,
        "-o",
        str(order),
        "-S",
        f"{min(MOST_TO_SORT, max(LEAST_TO_SORT, int(SORT_SHARE * available_memory_bytes())))}b",
    ]
    command += ["-T", f"{arpa.parent}/", "--discount_fallback", *map(str, FALLBACK[1:])]
    command += ["--prune", *map(str, prune)] if any(prune) else []
    allowed = None if vocabulary is None else frozenset(vocabulary)
    command += ["--vocab_pad", str(len(allowed) + len(SPECIAL) - 1)] if absent else []  # <s> is never predicted
    with atomic_path(arpa) as temporary, temporary.open("wb") as text, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        try:
            has_rare = _feed(process.stdin, sentences, allowed)
            text.writelines(_complete_unigrams(process.stdout, has_rare, absent))
        except BaseException:
            process.kill()
            raise
        finally:
            process.stdout.close()
            status = process.wait()
        log.seek(0)
        messages = log.read().decode("utf-8", "replace")
        if status:
            raise _failure(lmplz, arpa, status, messages)
    return [int(number) + 1 for number in SUBSTITUTED.findall(messages)]


def _feed(stdin: BinaryIO, sentences: Iterable[Sequence[str]], allowed: frozenset[str] | None) -> bool:
    """Write all sentences, one per line, unless the program ends; return whether RARE is among their words."""
    rare = False
    try:
        with stdin:
            for words in sentences:
                if allowed is not None:
                    words = [word if word in allowed else RARE for word in words]
                    rare = rare or RARE in words
                stdin.write(" ".join(words).encode() + b"\n")
    except BrokenPipeError:  # its status and its stderr say why
        pass
    return rare


def _complete_unigrams(lines: Iterable[bytes], has_rare: bool, absent: Sequence[str]) -> Iterator[bytes]:
    """Yield the lines of lmplz's ARPA file with the `absent` words, which are as probable as its <unk>.

    <unk> is first and in no n-gram; where there is RARE, this takes its place, with its share too where none is absent.
    """
    unknown = None
    for line in lines:
        if line.startswith(b"ngram 1="):
            line = b"ngram 1=%d\n" % (int(line.partition(b"=")[2]) + len(absent) - has_rare)
        elif unknown is None and b"\t<unk>" in line:
            unknown = 10 ** float(line.split(b"\t")[0])
            yield from (line.replace(b"<unk>", word.encode(), 1) for word in absent)
            if has_rare:
                continue
        elif has_rare and RARE.encode() in line:
            probability, gram, *rest = line.split(b"\t")
            if gram.strip() == RARE.encode() and not absent:
                probability = b"%.7f" % math.log10(10 ** float(probability) + (unknown or 0.0))
            words = [b"<unk>" if word == RARE.encode() else word for word in gram.rstrip(b"\n").split(b" ")]
            end = b"" if rest else b"\n"
            line = b"\t".join([probability, b" ".join(words) + end, *rest])
        yield line


def _failure(program: str, target: Path, status: int, messages: str) -> UserError:
    last = printable(messages.strip().splitlines()[-1])[:200] if messages.strip() else "without a message"
    end = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return UserError(
        f"{program} {end} ({last}); nothing was written: give it more memory, or more disk space at {target.parent}, "
        "and rerun the same command"
    )
