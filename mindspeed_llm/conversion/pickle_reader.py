"""Read a pickle without running anything from it.

A pickle is a program for a small stack machine. Python's unpickler imports what the program names, calls it, and sets
attributes on the results, classes included. The machine here records instead:

    GLOBAL, STACK_GLOBAL      a `Name`: two strings, never imported
    REDUCE, NEWOBJ            a `Made`: which name, with which arguments, never called
    BUILD                     the state of a `Made`, stored beside its arguments
    BINPERSID                 a `PersistentReference`: the identifier alone

Everything else is None, bool, int, float, str, bytes, tuple, list or dict. The callers check names, fields and types,
and make their own objects: `checkpoint_index.py` those of a `.metadata`, `torch_file_reader.py` those of torch.save.

The opcodes are those that Python's picklers write, in protocols 2 to 5, for the contents of a checkpoint. Any other
opcode ends the reading, as do a second pickle after the first and whatever no pickler writes (a memo that is not filled
in order, a key that appears twice). Memory grows with the length of the pickle: no length in it is trusted.
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn


class PickleError(ValueError):
    """The bytes are not a pickle as torch writes it; the file is damaged or crafted."""


class ForbiddenNameError(PickleError):
    """The pickle names something that no checkpoint contains; another reader would import it."""


class PickledName(NamedTuple):
    """What a pickle names; nothing is imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class PickledObject:
    """An object that a pickle describes; it does not exist.

    Attributes:
        kind: the name of its class, or of the function that returns it.
        arguments: of the call.
        state: what would be set on it; None if nothing.
    """

    __slots__ = ("arguments", "kind", "state")

    def __init__(self, kind: PickledName, arguments: tuple[Any, ...]) -> None:
        self.kind, self.arguments = kind, arguments
        self.state: dict[Any, Any] | tuple[Any, ...] | None = None


class PersistentReference:
    """A reference to something outside the pickle, for torch.save a storage.

    Attributes:
        identifier: as the pickle gives it.
    """

    __slots__ = ("identifier",)

    def __init__(self, identifier: Any) -> None:
        self.identifier = identifier


class OrderedItems(dict[Any, Any]):
    """The items of a collections.OrderedDict; attributes of it are ignored."""

    __slots__ = ()


_ORDERED = PickledName("collections", "OrderedDict")
# Hashing a deeply nested tuple overflows the C stack, so no tuple is a key.
_KEYS = frozenset({str, int, PickledObject})


def read_pickle(data: bytes, allowed: Callable[[PickledName], bool]) -> Any:
    """Read one pickle into plain values and descriptions of objects.

    Args:
        data: the whole pickle and nothing else.
        allowed: whether a name may appear.

    Returns:
        the value; parts of it may be shared or contain themselves.

    Raises:
        ForbiddenNameError: a name appears that is not allowed.
        PickleError: the bytes are damaged, or no pickle of a checkpoint.
    """
    try:
        with gc_disabled():
            return _Machine(data, allowed).run()
    except PickleError:
        raise
    except (IndexError, struct.error, UnicodeDecodeError):
        raise PickleError("it ends early, or is damaged") from None


@contextmanager
def gc_disabled() -> Generator[None, None, None]:
    """Millions of new containers would be searched for cycles again and again: three times the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Machine:
    """The stack machine. An action gets the position after its opcode and returns that of the next one."""

    def __init__(self, data: bytes, allowed: Callable[[PickledName], bool]) -> None:
        self.data, self.allowed = data, allowed
        self.stack: list[Any] = []
        self.marks: list[int] = []  # lengths of the stack
        self.memo: list[Any] = []
        self.names: dict[tuple[str, str], PickledName] = {}

    def run(self) -> Any:
        """Execute all opcodes. The three that make up half of an index are executed in the loop."""
        data, stack, memo, actions = self.data, self.stack, self.memo, _ACTIONS
        if data[:1] != b"\x80" or data[1] not in (2, 3, 4, 5):
            self.refuse("no beginning of a pickle of protocol 2 to 5")
        at = 2
        while True:
            opcode = data[at]
            at += 1
            if opcode == 0x94:  # MEMOIZE
                memo.append(stack[-1])
            elif opcode == 0x68:  # BINGET
                stack.append(memo[data[at]])
                at += 1
            elif opcode == 0x6A:  # LONG_BINGET
                stack.append(memo[int.from_bytes(data[at : at + 4], "little")])
                at += 4
            elif opcode == 0x2E:  # STOP
                break
            elif (action := actions[opcode]) is not None:
                at = action(self, at)
            else:
                self.refuse(f"the opcode 0x{opcode:02x}, which no checkpoint needs, before byte {at:,}")
        if len(stack) != 1 or self.marks:
            self.refuse("an end in the middle of a value")
        if at != len(data):
            self.refuse("more bytes after the end of the pickle")
        return stack[0]

    def refuse(self, what: str) -> NoReturn:
        """Raise a PickleError."""
        raise PickleError(f"it has {what}")

    def take(self, at: int, count: int) -> bytes:
        """The `count` bytes at `at`."""
        part = self.data[at : at + count]
        if len(part) != count:
            raise IndexError("the pickle ends early")
        return part

    def number(self, at: int, count: int) -> int:
        """The `count` bytes at `at` as an unsigned number."""
        return int.from_bytes(self.take(at, count), "little")

    def marked(self) -> list[Any]:
        """Pop everything above the last mark."""
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    # Values.

    def frame(self, at: int) -> int:
        if self.number(at, 8) > len(self.data) - at - 8:
            self.refuse("a frame that is longer than the file")
        return at + 8

    def mark(self, at: int) -> int:
        self.marks.append(len(self.stack))
        return at

    def none(self, at: int) -> int:
        self.stack.append(None)
        return at

    def true(self, at: int) -> int:
        self.stack.append(True)
        return at

    def false(self, at: int) -> int:
        self.stack.append(False)
        return at

    def int1(self, at: int) -> int:
        self.stack.append(self.data[at])
        return at + 1

    def int2(self, at: int) -> int:
        self.stack.append(self.data[at] | self.data[at + 1] << 8)
        return at + 2

    def int4(self, at: int) -> int:
        self.stack.append(int.from_bytes(self.take(at, 4), "little", signed=True))
        return at + 4

    def long1(self, at: int) -> int:
        length = self.data[at]
        self.stack.append(int.from_bytes(self.take(at + 1, length), "little", signed=True))
        return at + 1 + length

    def float8(self, at: int) -> int:
        self.stack.append(struct.unpack(">d", self.take(at, 8))[0])
        return at + 8

    def text1(self, at: int) -> int:
        length = self.data[at]
        self.stack.append(self.take(at + 1, length).decode("utf-8"))
        return at + 1 + length

    def text4(self, at: int) -> int:
        length = self.number(at, 4)
        self.stack.append(self.take(at + 4, length).decode("utf-8"))
        return at + 4 + length

    def bytes1(self, at: int) -> int:
        length = self.data[at]
        self.stack.append(self.take(at + 1, length))
        return at + 1 + length

    def bytes4(self, at: int) -> int:
        length = self.number(at, 4)
        self.stack.append(self.take(at + 4, length))
        return at + 4 + length

    # The memo: picklers number its entries from 0 without a gap.

    def put1(self, at: int) -> int:
        return self.put(self.data[at], at + 1)

    def put4(self, at: int) -> int:
        return self.put(self.number(at, 4), at + 4)

    def put(self, index: int, at: int) -> int:
        if index != len(self.memo):
            self.refuse("a memo that is not filled in order")
        self.memo.append(self.stack[-1])
        return at

    # Containers.

    def empty_tuple(self, at: int) -> int:
        self.stack.append(())
        return at

    def tuple1(self, at: int) -> int:
        self.stack[-1] = (self.stack[-1],)
        return at

    def tuple2(self, at: int) -> int:
        stack = self.stack
        second = stack.pop()
        stack[-1] = (stack[-1], second)
        return at

    def tuple3(self, at: int) -> int:
        stack = self.stack
        third, second = stack.pop(), stack.pop()
        stack[-1] = (stack[-1], second, third)
        return at

    def marked_tuple(self, at: int) -> int:
        self.stack.append(tuple(self.marked()))
        return at

    def empty_list(self, at: int) -> int:
        self.stack.append([])
        return at

    def append(self, at: int) -> int:
        return self.extend([self.stack.pop()], at)

    def appends(self, at: int) -> int:
        return self.extend(self.marked(), at)

    def extend(self, values: list[Any], at: int) -> int:
        if type(self.stack[-1]) is not list:
            self.refuse("elements of what is no list")
        self.stack[-1].extend(values)
        return at

    def empty_dict(self, at: int) -> int:
        self.stack.append({})
        return at

    def set_item(self, at: int) -> int:
        value, key = self.stack.pop(), self.stack.pop()
        return self.update([key, value], at)

    def set_items(self, at: int) -> int:
        return self.update(self.marked(), at)

    def update(self, items: list[Any], at: int) -> int:
        """Put keys and values, in turns, into the dict on top of the stack."""
        target, keys = self.stack[-1], items[::2]
        if len(items) % 2 or (type(target) is not dict and type(target) is not OrderedItems):
            self.refuse("items of what is no dict")
        if not _KEYS.issuperset(map(type, keys)):
            self.refuse("a key that is neither text nor a number")
        expected = len(target) + len(keys)
        target.update(zip(keys, items[1::2], strict=True))
        if len(target) != expected:
            self.refuse("a key twice")
        return at

    # Names and objects.

    def line(self, at: int) -> tuple[str, int]:
        end = self.data.find(b"\n", at, at + 256)
        if end < 0:
            self.refuse("a name without an end")
        return self.data[at:end].decode("utf-8"), end + 1

    def global_name(self, at: int) -> int:
        module, at = self.line(at)
        name, at = self.line(at)
        return self.push_name(module, name, at)

    def stack_global(self, at: int) -> int:
        name, module = self.stack.pop(), self.stack.pop()
        if type(module) is not str or type(name) is not str:
            self.refuse("a name that is no text")
        return self.push_name(module, name, at)

    def push_name(self, module: str, name: str, at: int) -> int:
        known = self.names.get((module, name))
        if known is None:
            known = PickledName(module, name)
            if not self.allowed(known):
                raise ForbiddenNameError(
                    f"it names {_printable(module)}.{_printable(name)}, which no checkpoint contains"
                )
            self.names[module, name] = known
        self.stack.append(known)
        return at

    def call(self, at: int) -> int:
        """REDUCE and NEWOBJ differ in what Python's unpickler would call; here nothing is."""
        stack = self.stack
        arguments = stack.pop()
        kind = stack[-1]
        if type(kind) is not PickledName or type(arguments) is not tuple:
            self.refuse("a call of what is no name")
        stack[-1] = PickledObject(kind, arguments) if arguments or kind != _ORDERED else OrderedItems()
        return at

    def build(self, at: int) -> int:
        stack = self.stack
        state = stack.pop()
        target = stack[-1]
        if type(target) is OrderedItems:
            return at
        if (
            type(target) is not PickledObject
            or target.state is not None
            or (type(state) is not dict and type(state) is not tuple)
        ):
            self.refuse("attributes for what can have none")
        target.state = state
        return at

    def persistent(self, at: int) -> int:
        self.stack[-1] = PersistentReference(self.stack[-1])
        return at


def _printable(text: str) -> str:
    return text if len(text) <= 80 and text.isprintable() else ascii(text[:80])[1:-1] + "…"


_OPCODES: dict[int, Callable[[_Machine, int], int]] = {
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    ord("N"): _Machine.none,
    0x88: _Machine.true,
    0x89: _Machine.false,
    ord("J"): _Machine.int4,
    ord("K"): _Machine.int1,
    ord("M"): _Machine.int2,
    0x8A: _Machine.long1,
    ord("G"): _Machine.float8,
    0x8C: _Machine.text1,
    ord("X"): _Machine.text4,
    ord("C"): _Machine.bytes1,
    ord("B"): _Machine.bytes4,
    ord("q"): _Machine.put1,
    ord("r"): _Machine.put4,
    ord(")"): _Machine.empty_tuple,
    0x85: _Machine.tuple1,
    0x86: _Machine.tuple2,
    0x87: _Machine.tuple3,
    ord("t"): _Machine.marked_tuple,
    ord("]"): _Machine.empty_list,
    ord("a"): _Machine.append,
    ord("e"): _Machine.appends,
    ord("}"): _Machine.empty_dict,
    ord("s"): _Machine.set_item,
    ord("u"): _Machine.set_items,
    ord("c"): _Machine.global_name,
    0x93: _Machine.stack_global,
    ord("R"): _Machine.call,
    0x81: _Machine.call,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persistent,
}
_ACTIONS: list[Callable[[_Machine, int], int] | None] = [_OPCODES.get(opcode) for opcode in range(256)]
