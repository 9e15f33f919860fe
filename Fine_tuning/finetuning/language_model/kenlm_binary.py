"""Check KenLM's binary language models before its library maps them: a wrong value in one would crash the process.

The file (lm/binary_format.cc and the sizes in lm/*.hh of KenLM) holds test values, a header and a count for each order;
the hashes of the words; the n-grams, in hash tables (probing) or sorted and packed into bits (trie); and, if it was
built with them, the words themselves, each followed by a NUL.

Everything that is used as an index is checked, so that no look-up leaves the file: the sizes of the tables, that each
hash table has an empty slot at which a search stops, that word numbers have a unigram, and that a trie's pointers
increase and stay within the next order.
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
HEADER = struct.Struct("<B3xfIB3xI")  # order, probing multiplier, type, whether it has words, version of the type
PROBING, REST, TRIE, QUANTISED, ARRAY, QUANTISED_ARRAY = range(6)  # types
MAX_ORDER = 6  # that flashlight's KenLM is compiled for
MAX_BITS = 25  # of a quantised value
CHUNK = 1 << 20  # pointers checked at a time
WORD = np.dtype([("key", "<u8"), ("number", "<u4")])
UNIGRAM = np.dtype([("values", "<f4", 2), ("next", "<u8")])


class _FormatError(Exception):
    """Raised with a description of what is inconsistent in the file."""


@dataclass(frozen=True)
class _Binary:
    data: np.ndarray  # (bytes of the file,) uint8
    multiplier: float
    kind: int
    counts: tuple[int, ...]
    start: int  # byte at which the hashes of the words begin

    def table(self, at: int, count: int, dtype: np.dtype) -> np.ndarray:
        """Return a view of `count` records from byte `at` on."""
        if at + count * dtype.itemsize > len(self.data):
            raise _FormatError(
                f"it has {len(self.data):,} bytes, fewer than its header's counts {list(self.counts)} need"
            )
        return np.ndarray(count, dtype, self.data, at)


def is_kenlm_binary(path: Path) -> bool:
    """Return whether a file begins like a KenLM binary; raise OSError when it cannot be read."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_binary(path: Path) -> tuple[int, list[bytes] | None]:
    """Return the order of a binary and its words, <unk> first, or None if it was built without them.

    Raises UserError when a look-up could leave the file.
    """
    try:
        of = _header(np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8))
        end, words = _probing(of) if of.kind in (PROBING, REST) else _trie(of)
        return len(of.counts), _words(of, end, words)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); language_model.file names an ARPA file") from error
    except _FormatError as error:
        raise UserError(
            f"{path} is not a usable KenLM binary ({error}); make it again with build_binary, or name its ARPA file"
        ) from error


def _header(data: np.ndarray) -> _Binary:
    begin = len(TEST_VALUES) + HEADER.size
    if bytes(data[: len(VERSION)]) != VERSION:
        raise _FormatError("its first line is not that of format version 5; an unfinished build has another one")
    if len(data) < begin:
        raise _FormatError("it ends in its header")
    if bytes(data[: len(TEST_VALUES)]) != TEST_VALUES:
        raise _FormatError("the test values of its header are not those of this kind of machine")
    order, multiplier, kind, has_words, version = HEADER.unpack(bytes(data[len(TEST_VALUES) : begin]))
    if not 2 <= order <= MAX_ORDER:
        raise _FormatError(f"its order is {order}, and the decoder takes 2 to {MAX_ORDER}")
    if kind > QUANTISED_ARRAY or version != (kind >= TRIE) or has_words > 1 or not 1 <= multiplier < 1e6:
        raise _FormatError(
            f"its header has type {kind}, version {version}, words {has_words}, multiplier {multiplier:g}"
        )
    if len(data) < begin + 8 * order:
        raise _FormatError("it ends in its header")
    counts = struct.unpack(f"<{order}Q", bytes(data[begin : begin + 8 * order]))
    if not all(1 <= count <= 8 * len(data) for count in counts):
        raise _FormatError(f"it has {len(data):,} bytes, fewer than its header's counts {list(counts)} need")
    return _Binary(data, multiplier, kind, counts, -(-(begin + 8 * order) // 8) * 8)


def _words(of: _Binary, end: int, count: int) -> list[bytes] | None:
    """Return the words that follow the tables, which end at byte `end`."""
    has_words = of.data[len(TEST_VALUES) + 12]
    if not has_words:
        if end != len(of.data):
            raise _FormatError(f"it has {len(of.data):,} bytes, and its header says {end:,}")
        return None
    *words, rest = bytes(of.data[end:]).split(b"\0")
    if rest or len(words) != count or words[0] != b"<unk>":
        raise _FormatError(f"its {count:,} words, <unk> first, should follow its tables at byte {end:,}")
    return words


def _probing(of: _Binary) -> tuple[int, int]:
    """Check the hash tables; return the byte at which they end, and the number of words."""

    def hashed(at: int, entries: int, dtype: np.dtype) -> tuple[np.ndarray, int]:
        buckets = max(entries + 1, int(np.float32(of.multiplier) * np.float32(entries)))
        table = of.table(at, buckets, dtype)
        if table["key"].all():
            raise _FormatError(f"the hash table at byte {at:,} has no empty slot")
        return table, at + table.nbytes

    version, words = np.ndarray(2, "<u4", of.table(of.start, 8, np.dtype("u1")))
    known, at = hashed(of.start + 8, of.counts[0], WORD)
    if version or words > of.counts[0] + 1 or (known["number"][known["key"] != 0] > of.counts[0]).any():
        raise _FormatError(f"its words have numbers above the {of.counts[0]:,} of its header")
    values = 12 if of.kind == REST else 8  # bytes: probability, back-off, rest cost
    at += of.table(at, of.counts[0] + 1, np.dtype(f"V{values}")).nbytes
    for order, entries in enumerate(of.counts[1:], start=2):
        size = values if order < len(of.counts) else 4
        _, at = hashed(at, entries, np.dtype([("key", "<u8"), ("values", f"V{size}")]))
    return at, int(words)


def _trie(of: _Binary) -> tuple[int, int]:
    """Check the sorted orders; return the byte at which they end, and the number of words."""
    (words,) = of.table(of.start, 1, np.dtype("<u8")).tolist()
    at = of.start + of.table(of.start, 1 + of.counts[0], np.dtype("<u8")).nbytes
    if words >= of.counts[0]:
        raise _FormatError(f"it has {words + 1:,} words, and its header says {of.counts[0]:,}")
    middle, longest, size = _value_bits(of, at)
    at += size
    unigrams = of.table(at, of.counts[0] + 2, UNIGRAM)
    _check_increasing([unigrams["next"][:-1]], of.counts[1], 1)
    at += unigrams.nbytes
    compressed = of.kind in (ARRAY, QUANTISED_ARRAY) and len(of.counts) > 2
    if compressed and of.table(at, 2, np.dtype("u1"))[0]:
        raise _FormatError("its pointers are compressed by another version of KenLM")
    max_bits = int(of.data[at + 1]) if compressed else None  # of a pointer that may be stored separately
    for order, (entries, following) in enumerate(pairwise(of.counts[1:]), start=2):
        at = _check_middle(of, at, entries, following, middle, max_bits, order)
    bits = of.counts[0].bit_length() + longest
    at += of.table(at, ((1 + of.counts[-1]) * bits + 7) // 8 + 8, np.dtype("u1")).nbytes
    return at, words + 1


def _value_bits(of: _Binary, at: int) -> tuple[int, int, int]:
    """Return the bits of the values of an n-gram and of one of the highest order, and the bytes of their codebooks."""
    if of.kind in (TRIE, ARRAY):
        return 63, 31, 0
    version, probability, back_off = of.table(at, 3, np.dtype("u1")).tolist()
    if version != 2 or not 1 <= min(probability, back_off) <= max(probability, back_off) <= MAX_BITS:
        raise _FormatError(f"its values are quantised by version {version} to {probability} and {back_off} bits")
    size = 8 + 4 * ((len(of.counts) - 1) * 2**probability + (len(of.counts) - 2) * 2**back_off)
    return probability + back_off, probability, size


def _check_middle(
    of: _Binary, at: int, entries: int, following: int, values: int, max_bits: int | None, order: int
) -> int:
    """Check the pointers of an order below the highest; return the byte at which it ends.

    `max_bits`: of a pointer that may be stored separately; None when pointers are not compressed.
    """
    pointer, starts = following.bit_length(), None
    if max_bits is not None:
        pointer -= _separate_bits(entries + 1, following, max_bits)
        count = (following >> pointer) + 1
        aligned = -(-at // 8) * 8
        starts = of.table(aligned + 8, count, np.dtype("<u8"))
        if starts[0] or (starts[1:] < starts[:-1]).any():
            raise _FormatError(f"the pointers of its {order}-grams do not increase")
        at += 8 * (1 + count) + 7
    total = of.counts[0].bit_length() + values + pointer
    packed = of.table(at, ((1 + entries) * total + 7) // 8 + 8, np.dtype("u1"))
    _check_increasing(_pointers(packed, total, pointer, entries + 1, starts), following, order)
    return at + packed.nbytes


def _separate_bits(entries: int, following: int, max_bits: int) -> int:
    """Return how many leading bits of a pointer KenLM stores in a separate table: those that minimise the size."""
    required = following.bit_length()

    def size(bits: int) -> int:
        return (following >> (required - bits)) * 64 - entries * bits

    return min(range(min(required, max_bits) + 1), key=size)


def _pointers(
    packed: np.ndarray, total: int, width: int, count: int, starts: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Yield the pointers at the end of records of `total` bits, in chunks."""
    at_each_byte = np.ndarray(len(packed) - 7, "<u8", packed, strides=(1,))
    for first in range(0, count, CHUNK):
        rows = np.arange(first, min(first + CHUNK, count), dtype=np.uint64)
        bits = rows * np.uint64(total) + np.uint64(total - width)
        pointers = at_each_byte[bits >> np.uint64(3)] >> (bits & np.uint64(7)) & np.uint64(2**width - 1)
        if starts is not None:
            pointers |= (np.searchsorted(starts, rows, "right").astype(np.uint64) - np.uint64(1)) << np.uint64(width)
        yield pointers


def _check_increasing(chunks: "Iterator[np.ndarray] | list[np.ndarray]", limit: int, order: int) -> None:
    last = 0
    for chunk in chunks:
        if chunk[0] < last or (chunk[1:] < chunk[:-1]).any() or chunk[-1] > limit:
            raise _FormatError(f"the pointers of its {order}-grams do not increase up to at most {limit:,}")
        last = chunk[-1]
