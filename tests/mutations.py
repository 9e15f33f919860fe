"""Damage as files meet it: bytes changed, cut, repeated, put in, and JSON of other types than expected."""

import json
import re

from hypothesis import strategies as st

ODD = [
    b"null", b"[]", b"{}", b"-1", b"1e999", b"NaN", b"true", b'""', b'"\\ud800"', b"[" * 3000, b"9" * 5000, b"\xff\xfe",
    b"\x00", b"\n", b"\r", b'"', b"}", b"]", b",", b":", b"\t", b"\x1b[2J",
    "\u2028\u0301İ".encode(), b"../", b"1" * 400,
]  # fmt: skip
VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|\[[^][]*\]|\{[^{}]*\}')


@st.composite
def mutated(draw: st.DrawFn, whole: bytes, most: int = 3) -> bytes:
    """`whole` after one to `most` changes: of bytes, of lengths, or of one JSON value for an odd one."""
    data = whole
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        values = [found.span() for found in VALUE.finditer(data)]
        kind = draw(st.sampled_from(["value", "value", "put in", "flip", "cut", "drop", "repeat"]))
        if kind == "value" and values:
            start, end = draw(st.sampled_from(values))
            data = data[:start] + draw(st.sampled_from(ODD)) + data[end:]
        elif kind == "put in":
            data = data[:at] + draw(st.sampled_from(ODD)) + data[at:]
        elif kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "drop":
            data = data[:at] + data[at + draw(st.integers(1, 40)) :]
        else:
            data = data[:at] + data[at : at + draw(st.integers(1, 80))] * 2 + data[at:]
    return data


def as_lines(*entries: object) -> bytes:
    """A file of JSON lines."""
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()
