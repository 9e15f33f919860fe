"""KenLM's binary files as build_binary has made them, and what is left of them after damage of any kind."""

import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ROOT
from finetuning.errors import UserError
from finetuning.language_model import arpa, kenlm_binary

# Of lmplz_fallback.arpa, by build_binary: trie; probing; -v -a 22 -q 8 trie, a quantised one without its words
FIXTURES = ROOT / "tests" / "fixtures"
TRIE, PROBING, NO_WORDS = (FIXTURES / f"lmplz_fallback{kind}.binary" for kind in ("", "_probing", "_no_words"))
COUNTS = len(kenlm_binary.TEST_VALUES) + kenlm_binary.HEADER.size  # where they stand in a file
SCORE = """
import random, sys
from pathlib import Path
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary
words = ["<unk>", *sys.argv[1].split()]
for path in sys.argv[2:]:
    print(Path(path).name, flush=True)
    try:
        lm, drawn = KenLM(path, Dictionary(words)), random.Random(0)
    except (RuntimeError, ValueError):
        continue
    for text in [*([drawn.choice(words) for _ in range(8)] for _ in range(40)), *(words[n:] for n in range(20))]:
        state = lm.start(False)
        for word in text:
            state, _ = lm.score(state, words.index(word))
        lm.finish(state)
print("done")
"""


@pytest.mark.parametrize(("path", "has_words"), [(TRIE, True), (PROBING, True), (NO_WORDS, False)])
def test_words_and_order_are_those_of_the_arpa_file(path: Path, has_words: bool) -> None:
    order, words = kenlm_binary.read_binary(path)
    assert kenlm_binary.is_kenlm_binary(path) and not kenlm_binary.is_kenlm_binary(FIXTURES / "lmplz_fallback.arpa")
    same = arpa.read_arpa(FIXTURES / "lmplz_fallback.arpa")
    assert order == len(same.levels) == 3
    assert (sorted(word.decode() for word in words) if words else None) == (sorted(same.words) if has_words else None)


def put(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:at] + value + whole[at + len(value) :]


def full_table(whole: bytes) -> bytes:
    """The hash table of the words of a probing file, 66 places of 12 bytes behind their number, has no empty one."""
    at, entry = 136 + 8, struct.Struct("<QI")
    places = [entry.unpack_from(whole, at + 12 * n) for n in range(66)]
    return put(at, b"".join(entry.pack(key or 1, number) for key, number in places))(whole)


@pytest.mark.parametrize(
    ("path", "damage", "problem"),
    [
        (TRIE, lambda whole: whole[:30], "its first line"),
        (TRIE, lambda whole: whole[:100], "ends in its header"),
        (TRIE, lambda whole: whole[:120], "ends in its header"),
        (TRIE, lambda whole: whole[:1000], "fewer than its header's counts"),
        (TRIE, lambda whole: whole[:-1], "its 44 words, <unk> first, should follow"),
        (TRIE, lambda whole: whole[:-9], "its 44 words, <unk> first, should follow"),
        (TRIE, lambda whole: whole + b"x", "its 44 words, <unk> first, should follow"),
        (NO_WORDS, lambda whole: whole + b"x", "its header says"),
        (TRIE, put(33, b"incomplete\n"), "an unfinished build"),
        (TRIE, put(49, b"4"), "format version 5"),
        (TRIE, put(0x3C, b"\0\0\0\0"), "test values"),
        (TRIE, put(0x58, b"\x07"), "its order is 7"),
        (TRIE, put(0x58, b"\x01"), "its order is 1"),
        (TRIE, put(0x5C, struct.pack("<f", float("nan"))), "multiplier nan"),
        (PROBING, put(0x5C, struct.pack("<f", 1e9)), "multiplier 1e"),
        (TRIE, put(0x60, b"\x09"), "type 9"),
        (TRIE, put(0x60, b"\x00"), "type 0, version 1"),
        (TRIE, put(0x64, b"\x02"), "words 2"),
        (TRIE, put(0x64, b"\x00"), "its header says"),
        (TRIE, put(COUNTS, struct.pack("<Q", 2**63)), "fewer than its header's counts"),
        (TRIE, put(COUNTS, struct.pack("<Q", 0)), "fewer than its header's counts"),
        (TRIE, put(COUNTS + 16, struct.pack("<Q", 55)), "its 44 words, <unk> first, should follow"),
        (TRIE, put(136, struct.pack("<Q", 44)), "45 words, and its header says 44"),
        (TRIE, put(136 + 8 * 45 + 16 * 20 + 8, struct.pack("<Q", 2**40)), "pointers of its 1-grams do not increase"),
        (PROBING, put(136 + 4, struct.pack("<I", 99)), "numbers above the 44"),
        (PROBING, full_table, "has no empty slot"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    tmp_path: Path, path: Path, damage: Callable[[bytes], bytes], problem: str
) -> None:
    (tmp_path / "lm.binary").write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"lm\.binary is not a usable KenLM binary \(.+\); make it") as refused:
        kenlm_binary.read_binary(tmp_path / "lm.binary")
    assert problem in str(refused.value) and "\n" not in str(refused.value)


def mutated(whole: bytes, drawn: random.Random) -> bytes:
    """With a few bits turned, a number or a stretch overwritten, or cut."""
    at = drawn.randrange(drawn.choice([0, 0x58, 0x88]), drawn.choice([0x98, len(whole)]))
    kind = drawn.randrange(4)
    if kind == 0:
        return whole[:at]
    if kind == 1:
        return put(at, struct.pack("<Q", drawn.choice([0, 1, 2**64 - 1, drawn.getrandbits(20)])))(whole)[: len(whole)]
    if kind == 2:
        return put(at, bytes([drawn.choice([0, 255])]) * drawn.randrange(1, 300))(whole)[: len(whole)]
    return put(at, bytes([whole[at] ^ 1 << drawn.randrange(8)]))(whole)


@pytest.mark.slow
def test_no_damaged_file_that_is_let_through_ends_the_process(tmp_path: Path) -> None:
    drawn, let_through, refused = random.Random(0), [], 0
    for number in range(400):
        path = tmp_path / f"{number}.binary"
        path.write_bytes(mutated(drawn.choice([TRIE, PROBING, NO_WORDS]).read_bytes(), drawn))
        try:
            kenlm_binary.read_binary(path)
            let_through.append(str(path))
        except UserError:
            refused += 1
    assert refused > 100 and len(let_through) > 100
    words = " ".join(arpa.read_arpa(FIXTURES / "lmplz_fallback.arpa").words[3:])
    command = [sys.executable, "-c", SCORE, words, *let_through]
    source = Path(kenlm_binary.__file__).parents[2]
    found = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout.split()[-1]) == (0, "done"), found.stdout.split()[-1]
