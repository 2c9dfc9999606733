"""A pickle read as data: an interpreter of its opcodes that runs nothing and imports nothing.

A pickle is a program for a stack machine, and `pickle.load` lets it import and call anything that
it names. Here a name is looked up in the caller's table, whose functions convert their arguments to
plain data; any other name is refused, and so is an opcode that pickled models do not need. The cost
of a program is bounded: its operations by a budget, bytes because they stay views of the file, and
hashing because keys are text or numbers.

    value, end = load(memoryview(data), {"collections.OrderedDict": dict}, Budget(len(data)))
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["Budget", "LongText", "Named", "Refused", "check_key", "load", "new_table", "shown"]

MAX_OPERATIONS = 1_000_000
"""Limit of operations. The largest published network needs about 100,000, an optimizer's state
more."""
MAX_MARKS = 200
"""Limit of open brackets."""
MAX_TEXT = 4096
"""Longer text stays in the file."""
MAX_NAME = 256
MAX_INTEGER = 16
"""Limit of an integer in bytes; torch's magic number has ten."""
MAX_KEY = 1 << 32
"""Limit of integer keys. Python hashes them modulo 2^61 - 1: larger ones could all collide."""


class Refused(ValueError):
    """The content of a file is not allowed, or damaged; the message names it."""


@dataclass
class Budget:
    """Limits for all pickles of a file together."""

    bytes: int
    """Bytes that may be copied out of the file. Twice its size suffices: in valid files each byte
    is copied once, and once before that where it was written as text."""
    operations: int = MAX_OPERATIONS

    def operate(self) -> None:
        self.operations -= 1
        if self.operations < 0:
            raise Refused("it takes more operations than any model does")

    def copy(self, count: int) -> None:
        self.bytes -= count
        if self.bytes < 0:
            raise Refused("it claims more bytes than the file has")


@dataclass(frozen=True, eq=False)
class LongText:
    """Text that is not decoded yet, as UTF-8."""

    data: memoryview


@dataclass(frozen=True, eq=False)
class Named:
    """The object for an allowed name."""

    name: str
    meaning: Any


def new_table() -> dict[Any, Any]:
    """Constructor of an ordered or other dictionary: without items, because their keys would not be
    checked."""
    return {}


def shown(text: str) -> str:
    """Foreign text for a message: short, in one line, without control characters."""
    plain = ascii(text)[1:-1]
    return plain if len(plain) <= 100 else plain[:97] + "..."


def load(
    data: memoryview,
    names: Mapping[str, Any],
    budget: Budget,
    persistent: Callable[[Any], Any] | None = None,
    more: Mapping[int, Callable[[Any], object]] = MappingProxyType({}),
) -> tuple[Any, int]:
    """The value of the pickle at the start of `data`, and its end.

    names: `module.name` -> a function called with the pickle's arguments, or another object to use
    for the name. persistent: called with each persistent id. more: opcodes. Raises Refused, and
    otherwise only the errors of `names` and `persistent`.
    """
    machine = _Machine(data, names, budget, persistent)
    machine.actions |= more
    try:
        return machine.run(), machine.at
    except Refused:
        raise
    except (IndexError, KeyError, OverflowError, TypeError, ValueError, struct.error):
        raise Refused(f"it is damaged at byte {machine.at:,} of a pickle") from None


class _Machine:
    def __init__(
        self,
        data: memoryview,
        names: Mapping[str, Any],
        budget: Budget,
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.data, self.at, self.actions = data, 0, dict(_ACTIONS)
        self.names, self.budget, self.persistent = names, budget, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under open marks
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while (code := self.take(1)[0]) != pickle.STOP[0]:
            self.budget.operate()
            act = self.actions.get(code)
            if act is None:
                raise Refused(f"it uses the opcode {_OPCODE_NAMES.get(code, code)}")
            act(self)
        return self.stack.pop()

    def take(self, count: int) -> memoryview:
        """The next bytes, as a view."""
        end = self.at + count
        if end > len(self.data):
            raise Refused("it is cut short")
        self.at, start = end, self.at
        return self.data[start:end]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """Up to the next newline."""
        text = bytes(self.data[self.at : self.at + MAX_NAME])
        end = text.index(b"\n")
        self.at += end + 1
        return text[:end].decode()

    def text(self, layout: str) -> str | LongText:
        data = self.take(self.number(layout))
        return LongText(data) if len(data) > MAX_TEXT else str(data, "utf-8")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def open(self) -> None:
        if len(self.below) >= MAX_MARKS:
            raise Refused(f"it nests more than {MAX_MARKS} brackets")
        self.below.append(self.stack)
        self.stack = []

    def close(self) -> list[Any]:
        """The values on the stack since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def several(self, count: int) -> list[Any]:
        """Pop the topmost values."""
        if count > len(self.stack):
            raise Refused("it takes more from its stack than there is")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def top(self, kind: type[Any]) -> Any:
        if type(self.stack[-1]) is not kind:
            found = type(self.stack[-1]).__name__
            raise Refused(f"it fills a {found} as if it were a {kind.__name__}")
        return self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def insert(self, items: list[Any]) -> None:
        for item in items:
            check_key(item)
        self.top(set).update(items)

    def assign(self, items: list[Any]) -> None:
        table = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            check_key(key)
            table[key] = value

    def name(self, module: Any, name: Any) -> None:
        if not (type(module) is str and type(name) is str):
            raise Refused("it uses a name that is not text")
        full = f"{module}.{name}"
        if full not in self.names:
            raise Refused(f"it names {shown(full)}, which is not allowed")
        self.push(Named(full, self.names[full]))

    def call(self) -> None:
        what, arguments = self.several(2)
        if type(what) is not Named or not callable(what.meaning) or type(arguments) is not tuple:
            raise Refused(f"it calls a {type(what).__name__} that is not a function")
        try:
            self.push(what.meaning(*arguments))
        except TypeError:
            raise Refused(f"it calls {what.name} with other arguments than it has") from None

    def build(self) -> None:
        target, state = self.several(2)
        self.push(target)
        if type(target) is dict:
            return  # attributes beside the items, such as a state dict's versions
        if not hasattr(target, "set_state"):
            raise Refused(f"it gives a {type(target).__name__} a state")
        target.set_state(state)

    def recall(self, index: int) -> None:
        self.push(self.memo[index])

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def external(self) -> None:
        if self.persistent is None:
            raise Refused("it refers to another file")
        self.push(self.persistent(self.stack.pop()))


def check_key(key: Any) -> None:
    """Refuse keys whose hash could be slow or collide."""
    if type(key) not in (str, int, Named):
        raise Refused(f"it has a key that is neither text nor a number but a {type(key).__name__}")
    if type(key) is int and abs(key) >= MAX_KEY:
        raise Refused(f"it has a key of more than {MAX_KEY:,}")


def _integer(data: memoryview) -> int:
    if len(data) > MAX_INTEGER:
        raise Refused(f"it has a number of {len(data)} bytes")
    return int.from_bytes(data, "little", signed=True)


# A frame is only a hint of how much to read, and the protocol's version says nothing we need.
_ACTIONS: dict[int, Callable[[_Machine], object]] = {
    code[0]: act
    for code, act in (
        (pickle.PROTO, lambda m: m.take(1)),
        (pickle.FRAME, lambda m: m.take(8)),
        (pickle.MARK, lambda m: m.open()),
        (pickle.POP, lambda m: m.stack.pop()),
        (pickle.POP_MARK, lambda m: m.close()),
        (pickle.NONE, lambda m: m.push(None)),
        (pickle.NEWTRUE, lambda m: m.push(True)),
        (pickle.NEWFALSE, lambda m: m.push(False)),
        (pickle.BININT, lambda m: m.push(m.number("<i"))),
        (pickle.BININT1, lambda m: m.push(m.number("<B"))),
        (pickle.BININT2, lambda m: m.push(m.number("<H"))),
        (pickle.LONG1, lambda m: m.push(_integer(m.take(m.number("<B"))))),
        (pickle.BINFLOAT, lambda m: m.push(m.number(">d"))),
        (pickle.SHORT_BINUNICODE, lambda m: m.push(m.text("<B"))),
        (pickle.BINUNICODE, lambda m: m.push(m.text("<I"))),
        (pickle.BINUNICODE8, lambda m: m.push(m.text("<Q"))),
        (pickle.SHORT_BINBYTES, lambda m: m.push(m.take(m.number("<B")))),
        (pickle.BINBYTES, lambda m: m.push(m.take(m.number("<I")))),
        (pickle.BINBYTES8, lambda m: m.push(m.take(m.number("<Q")))),
        (pickle.EMPTY_TUPLE, lambda m: m.push(())),
        (pickle.TUPLE1, lambda m: m.push(tuple(m.several(1)))),
        (pickle.TUPLE2, lambda m: m.push(tuple(m.several(2)))),
        (pickle.TUPLE3, lambda m: m.push(tuple(m.several(3)))),
        (pickle.TUPLE, lambda m: m.push(tuple(m.close()))),
        (pickle.EMPTY_LIST, lambda m: m.push([])),
        (pickle.APPEND, lambda m: m.extend(m.several(1))),
        (pickle.APPENDS, lambda m: m.extend(m.close())),
        (pickle.EMPTY_SET, lambda m: m.push(set())),
        (pickle.ADDITEMS, lambda m: m.insert(m.close())),
        (pickle.EMPTY_DICT, lambda m: m.push({})),
        (pickle.SETITEM, lambda m: m.assign(m.several(2))),
        (pickle.SETITEMS, lambda m: m.assign(m.close())),
        (pickle.GLOBAL, lambda m: m.name(m.line(), m.line())),
        (pickle.STACK_GLOBAL, lambda m: m.name(*m.several(2))),
        (pickle.REDUCE, lambda m: m.call()),
        (pickle.NEWOBJ, lambda m: m.call()),
        (pickle.BUILD, lambda m: m.build()),
        (pickle.MEMOIZE, lambda m: m.remember(len(m.memo))),
        (pickle.BINPUT, lambda m: m.remember(m.number("<B"))),
        (pickle.LONG_BINPUT, lambda m: m.remember(m.number("<I"))),
        (pickle.BINGET, lambda m: m.recall(m.number("<B"))),
        (pickle.LONG_BINGET, lambda m: m.recall(m.number("<I"))),
        (pickle.BINPERSID, lambda m: m.external()),
    )
}
_OPCODE_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
