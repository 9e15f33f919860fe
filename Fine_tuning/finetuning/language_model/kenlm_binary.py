"""KenLM's binary language models, read before its library maps them: what it believes of them ends the process.

In the file (lm/binary_format.cc and the sizes in lm/*.hh of KenLM): test values, a header, a count for each order; the
hashes of the words; the n-grams, in hash tables (probing) or sorted and packed into bits (trie); and, where it was
built with them, the words themselves, each with a NUL behind it.

Checked is all that an index is made of, so that no look-up leaves the file: the tables' sizes, that each hash table has
an empty place to stop at, that word numbers have a unigram, and that a trie's pointers rise and stay in the next order.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from finetuning.errors import UserError

MAGIC = b"mmap lm http://kheafield.com/code "
VERSION = MAGIC + b"format version 5\n"
TEST_VALUES = VERSION.ljust(56, b"\0") + struct.pack("<fffIIIQ", 0.0, 1.0, -0.5, 1, 2**32 - 1, 0, 1)
HEADER = struct.Struct("<B3xfIB3xI")  # order, probing multiplier, type, whether it has its words, version of the type
PROBING, REST, TRIE, QUANTISED, ARRAY, QUANTISED_ARRAY = range(6)  # types
LONGEST = 6  # words of an n-gram that flashlight's KenLM is compiled for
MOST_BITS = 25  # of a quantised value
CHUNK = 1 << 20  # pointers looked at together
WORD = np.dtype([("key", "<u8"), ("number", "<u4")])
UNIGRAM = np.dtype([("values", "<f4", 2), ("next", "<u8")])


class _Wrong(Exception):
    """What does not fit together, in words."""


@dataclass(frozen=True)
class _Binary:
    data: np.ndarray  # (bytes of the file,) uint8
    multiplier: float
    kind: int
    counts: tuple[int, ...]
    start: int  # where the words' hashes begin

    def table(self, at: int, count: int, dtype: np.dtype) -> np.ndarray:
        """`count` records from byte `at` on, as they lie in the file."""
        if at + count * dtype.itemsize > len(self.data):
            raise _Wrong(f"it has {len(self.data):,} bytes, fewer than its header's counts {list(self.counts)} need")
        return np.ndarray(count, dtype, self.data, at)


def is_kenlm_binary(path: Path) -> bool:
    """Whether a file begins like KenLM's own; OSError when it cannot be read."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_binary(path: Path) -> tuple[int, list[bytes] | None]:
    """The order of a binary and its words, <unk> first; None where it was built without them.

    UserError, which names the file, when a look-up in it could go astray.
    """
    try:
        of = _header(np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8))
        end, words = _probing(of) if of.kind in (PROBING, REST) else _trie(of)
        return len(of.counts), _words(of, end, words)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); language_model.file names an ARPA file") from error
    except _Wrong as wrong:
        raise UserError(
            f"{path} is no KenLM binary that can be used ({wrong}); make it again with build_binary, or name its "
            "ARPA file"
        ) from wrong


def _header(data: np.ndarray) -> _Binary:
    begin = len(TEST_VALUES) + HEADER.size
    if bytes(data[: len(VERSION)]) != VERSION:
        raise _Wrong("its first line is not that of format version 5; a build that was not finished has another one")
    if len(data) < begin:
        raise _Wrong("it ends in its header")
    if bytes(data[: len(TEST_VALUES)]) != TEST_VALUES:
        raise _Wrong("the test values of its header are not those of this kind of machine")
    order, multiplier, kind, has_words, version = HEADER.unpack(bytes(data[len(TEST_VALUES) : begin]))
    if not 2 <= order <= LONGEST:
        raise _Wrong(f"its order is {order}, and the decoder takes 2 to {LONGEST}")
    if kind > QUANTISED_ARRAY or version != (kind >= TRIE) or has_words > 1 or not 1 <= multiplier < 1e6:
        raise _Wrong(f"its header has type {kind}, version {version}, words {has_words}, multiplier {multiplier:g}")
    if len(data) < begin + 8 * order:
        raise _Wrong("it ends in its header")
    counts = struct.unpack(f"<{order}Q", bytes(data[begin : begin + 8 * order]))
    if not all(1 <= count <= 8 * len(data) for count in counts):
        raise _Wrong(f"it has {len(data):,} bytes, fewer than its header's counts {list(counts)} need")
    return _Binary(data, multiplier, kind, counts, -(-(begin + 8 * order) // 8) * 8)


def _words(of: _Binary, end: int, count: int) -> list[bytes] | None:
    """The words that stand behind the tables, which end at byte `end`."""
    has_words = of.data[len(TEST_VALUES) + 12]
    if not has_words:
        if end != len(of.data):
            raise _Wrong(f"it has {len(of.data):,} bytes, and its header says {end:,}")
        return None
    *words, rest = bytes(of.data[end:]).split(b"\0")
    if rest or len(words) != count or words[0] != b"<unk>":
        raise _Wrong(f"behind its tables, at byte {end:,}, its {count:,} words should stand, from <unk> on")
    return words


def _probing(of: _Binary) -> tuple[int, int]:
    """Check the hash tables; where they end, and the number of words."""

    def hashed(at: int, entries: int, dtype: np.dtype) -> tuple[np.ndarray, int]:
        buckets = max(entries + 1, int(np.float32(of.multiplier) * np.float32(entries)))
        table = of.table(at, buckets, dtype)
        if table["key"].all():
            raise _Wrong(f"the hash table at byte {at:,} has no empty place")
        return table, at + table.nbytes

    version, words = np.ndarray(2, "<u4", of.table(of.start, 8, np.dtype("u1")))
    known, at = hashed(of.start + 8, of.counts[0], WORD)
    if version or words > of.counts[0] + 1 or (known["number"][known["key"] != 0] > of.counts[0]).any():
        raise _Wrong(f"its words have numbers above the {of.counts[0]:,} of its header")
    values = 12 if of.kind == REST else 8  # bytes: probability, back-off, rest cost
    at += of.table(at, of.counts[0] + 1, np.dtype(f"V{values}")).nbytes
    for order, entries in enumerate(of.counts[1:], start=2):
        size = values if order < len(of.counts) else 4
        _, at = hashed(at, entries, np.dtype([("key", "<u8"), ("values", f"V{size}")]))
    return at, int(words)


def _trie(of: _Binary) -> tuple[int, int]:
    """Check the sorted orders; where they end, and the number of words."""
    (words,) = of.table(of.start, 1, np.dtype("<u8")).tolist()
    at = of.start + of.table(of.start, 1 + of.counts[0], np.dtype("<u8")).nbytes
    if words >= of.counts[0]:
        raise _Wrong(f"it has {words + 1:,} words, and its header says {of.counts[0]:,}")
    middle, longest, size = _value_bits(of, at)
    at += size
    unigrams = of.table(at, of.counts[0] + 2, UNIGRAM)
    _check_rising([unigrams["next"][:-1]], of.counts[1], 1)
    at += unigrams.nbytes
    compressed = of.kind in (ARRAY, QUANTISED_ARRAY) and len(of.counts) > 2
    if compressed and of.table(at, 2, np.dtype("u1"))[0]:
        raise _Wrong("its pointers are compressed by another version of KenLM")
    most = int(of.data[at + 1]) if compressed else 0  # bits of a pointer that may be kept apart
    for order, (entries, following) in enumerate(pairwise(of.counts[1:]), start=2):
        at = _check_middle(of, at, entries, following, middle, most if compressed else None, order)
    bits = of.counts[0].bit_length() + longest
    at += of.table(at, ((1 + of.counts[-1]) * bits + 7) // 8 + 8, np.dtype("u1")).nbytes
    return at, words + 1


def _value_bits(of: _Binary, at: int) -> tuple[int, int, int]:
    """Bits of an n-gram's values, of one of the longest, and bytes of the tables that quantised values stand for."""
    if of.kind in (TRIE, ARRAY):
        return 63, 31, 0
    version, probability, back_off = of.table(at, 3, np.dtype("u1")).tolist()
    if version != 2 or not 1 <= min(probability, back_off) <= max(probability, back_off) <= MOST_BITS:
        raise _Wrong(f"its values are quantised by version {version} to {probability} and {back_off} bits")
    size = 8 + 4 * ((len(of.counts) - 1) * 2**probability + (len(of.counts) - 2) * 2**back_off)
    return probability + back_off, probability, size


def _check_middle(of: _Binary, at: int, entries: int, following: int, values: int, most: int | None, order: int) -> int:
    """Check the pointers of an order that has a longer one; where it ends. `most`: None where they are whole."""
    pointer, starts = following.bit_length(), None
    if most is not None:
        apart = _bits_apart(entries + 1, following, most)
        pointer -= apart
        count = (following >> pointer) + 1
        aligned = -(-at // 8) * 8
        starts = of.table(aligned + 8, count, np.dtype("<u8"))
        if starts[0] or (starts[1:] < starts[:-1]).any():
            raise _Wrong(f"the pointers of its {order}-grams do not rise")
        at += 8 * (1 + count) + 7
    total = of.counts[0].bit_length() + values + pointer
    packed = of.table(at, ((1 + entries) * total + 7) // 8 + 8, np.dtype("u1"))
    _check_rising(_pointers(packed, total, pointer, entries + 1, starts), following, order)
    return at + packed.nbytes


def _bits_apart(entries: int, following: int, most: int) -> int:
    """How many of a pointer's first bits KenLM keeps in a table of their own: where it takes the least room."""
    required = following.bit_length()

    def room(apart: int) -> int:
        return (following >> (required - apart)) * 64 - entries * apart

    return min(range(min(required, most) + 1), key=room)


def _pointers(
    packed: np.ndarray, total: int, width: int, count: int, starts: np.ndarray | None
) -> Iterator[np.ndarray]:
    """The pointers at the end of records of `total` bits, in parts."""
    at_each_byte = np.ndarray(len(packed) - 7, "<u8", packed, strides=(1,))
    for first in range(0, count, CHUNK):
        rows = np.arange(first, min(first + CHUNK, count), dtype=np.uint64)
        bits = rows * np.uint64(total) + np.uint64(total - width)
        found = at_each_byte[bits >> np.uint64(3)] >> (bits & np.uint64(7)) & np.uint64(2**width - 1)
        if starts is not None:
            found |= (np.searchsorted(starts, rows, "right").astype(np.uint64) - np.uint64(1)) << np.uint64(width)
        yield found


def _check_rising(parts: "Iterator[np.ndarray] | list[np.ndarray]", most: int, order: int) -> None:
    last = 0
    for part in parts:
        if part[0] < last or (part[1:] < part[:-1]).any() or part[-1] > most:
            raise _Wrong(f"the pointers of its {order}-grams do not rise to at most {most:,}")
        last = part[-1]
