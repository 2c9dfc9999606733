"""Pickles are read as data: nothing is run, imported or allocated because a pickle says so."""

from __future__ import annotations

import os
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from fasttrain_data.pickle_data import MAX_OPERATIONS, Budget, LongText, Refused, load
from tests.models.files.untrusted import assert_refused


def loaded(data: bytes, **names: Any) -> Any:
    value, end = load(memoryview(data), names, Budget(len(data)))
    assert end == len(data)
    return value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data(protocol: int) -> None:
    value = {
        "numbers": [0, 255, 256, 65535, 65536, -1, 2**31, -(2**40), 2**80, 0.5, -1e300],
        "others": [None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}],
        "text": ["", "name", "größe", "漢字", "x" * 300],
        7: {"nested": {"deeper": [[[]]]}},
    }
    value["again"] = [value["text"], value["text"]]
    found = loaded(pickle.dumps(value, protocol=protocol))
    assert found == value
    assert found["again"][0] is found["again"][1]
    table = pickle.dumps(OrderedDict(a=1, b=2), protocol=protocol)
    assert list(loaded(table, **{"collections.OrderedDict": dict}).items()) == [("a", 1), ("b", 2)]


def test_long_text_and_bytes_stay_where_they_are() -> None:
    data = pickle.dumps(["x" * 5000, b"y" * 5000, b"z"], protocol=4)
    text, many, few = loaded(data)
    assert type(text) is LongText
    assert bytes(text.data) == b"x" * 5000
    assert (bytes(many), bytes(few)) == (b"y" * 5000, b"z")
    assert many.obj is few.obj is data


def test_several_pickles_in_a_row() -> None:
    data = memoryview(pickle.dumps([1], 2) + pickle.dumps("two", 4) + b"rest")
    budget = Budget(len(data))
    first, end = load(data, {}, budget)
    second, more = load(data[end:], {}, budget)
    assert (first, second, bytes(data[end + more :])) == ([1], "two", b"rest")
    assert MAX_OPERATIONS - budget.operations < 20


def test_operations_are_counted_over_all_pickles_of_a_file() -> None:
    data, budget = memoryview(b"\x80\x04]0N."), Budget(10, operations=9)
    assert load(data, {}, budget)[0] is None
    assert load(data, {}, budget)[0] is None
    with pytest.raises(Refused, match="more operations than any model"):
        load(data, {}, budget)


def test_what_is_refused_would_have_been_run(tmp_path: Path) -> None:
    """The pickles of these tests are as hostile as they claim."""

    class Touches:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "marker"),)

    data = pickle.dumps(Touches())
    with pytest.raises(Refused, match=f"names {os.name}.mkdir, which is not allowed"):
        loaded(data)
    assert not (tmp_path / "marker").exists()
    pickle.loads(data)
    assert (tmp_path / "marker").exists()
    sys.modules.pop("this", None)
    with pytest.raises(Refused, match=r"names this\.s, which"):
        loaded(b"\x80\x02cthis\ns\n.")
    assert "this" not in sys.modules


def many(opcode: bytes, count: int) -> bytes:
    return b"\x80\x04" + opcode * count


def long(value: int) -> bytes:
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


HOSTILE_BYTES: dict[str, tuple[bytes, str]] = {
    "brackets without end": (many(b"(", 1000) + b".", "nests more than 200 brackets"),
    "nesting": (many(b"]", 200_000) + b"a" * 199_999 + b".", "holds neither a network"),
    "tuples of tuples as key": (
        b"\x80\x04})" + b"\x94h\x00\x86" * 60 + b"Ns.",
        "a key that is neither",
    ),
    "tuples of tuples": (b"\x80\x04)" + b"2\x86" * 60 + b".", "uses the opcode DUP"),
    "a number as key of a set": (b"\x80\x04\x8f(G" + bytes(8) + b"\x90.", "a key that is neither"),
    "keys of one hash": (
        b"\x80\x04}(" + b"".join(long(k * (2**61 - 1)) + b"N" for k in range(1, 9)) + b"u.",
        "a key of more than 4,294,967,296",
    ),
    "items of one hash": (
        b"\x80\x04\x8f(" + b"".join(long(-k * (2**61 - 1)) for k in range(1, 9)) + b"\x90.",
        "a key of more than 4,294,967,296",
    ),
    "a truth as key": (b"\x80\x04}\x88Ns.", "a key that is neither text nor a number but a bool"),
    "giant bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.", "is cut short"),
    "giant text": (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.", "is cut short"),
    "giant bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "opcode BYTEARRAY8"),
    "giant integer": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "uses the opcode LONG4"),
    "a large integer": (b"\x80\x02\x8a\x11" + b"x" * 17 + b".", "a number of 17 bytes"),
    "a giant memo": (b"\x80\x02Nr\xff\xff\xff\xff.", "holds neither a network"),
    "a call of an old kind": (b"\x80\x02(S'id'\nios\nsystem\n.", "uses the opcode STRING"),
    "an extension": (b"\x80\x02\x82\x01.", "uses the opcode EXT1"),
    "another buffer": (b"\x80\x05\x97.", "uses the opcode NEXT_BUFFER"),
    "an unknown opcode": (b"\x80\x04\xff.", "uses the opcode 255"),
    "another file": (b"\x80\x02NQ.", "refers to another file"),
    "a name that is none": (b"\x80\x04K\x01K\x02\x93.", "uses a name that is not text"),
    "a name with a line break": (
        b"\x80\x04\x8c\x03a\nb\x8c\x01c\x93.",
        r"names a\\nb\.c, which is not allowed",
    ),
    "a call of text": (b"\x80\x04\x8c\x01a)R.", "calls a str that is not a function"),
    "an empty stack": (b"\x80\x04.", "damaged at byte 3"),
    "nothing": (b"\x80\x04", "is cut short"),
    "a memo that is not there": (b"\x80\x04h\x07.", "damaged at byte 4"),
    "text that is none": (b"\x80\x04\x8c\x01\xff.", "damaged at byte 5"),
    "a zip file of another kind": (b"PK\3\4" + bytes(40), "damaged zip file"),
    "protocol 0": (b"(dp0\nS'ema'\np1\ncos\nsystem\n.", "nor is it a pickle"),
    "an empty file": (b"", "nor is it a pickle"),
}


@pytest.mark.parametrize("name", HOSTILE_BYTES)
def test_hostile_bytes_are_refused(name: str, tmp_path: Path) -> None:
    data, why = HOSTILE_BYTES[name]
    (tmp_path / "x.pkl").write_bytes(data)
    assert_refused(tmp_path / "x.pkl", why)
