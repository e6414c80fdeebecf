"""Read a pickle without running anything from it.

A pickle is a program for a small stack machine. The unpickler of Python imports the names in the program, calls them,
and sets attributes on the results, including classes. The stack machine in this module only records:

    GLOBAL, STACK_GLOBAL      a `PickledName`: two strings, never imported
    REDUCE, NEWOBJ            a `PickledObject`: a name and the arguments of the call, never called
    BUILD                     the state of a `PickledObject`, stored beside its arguments
    BINPERSID                 a `PersistentReference`: only the identifier

All other values are None, bool, int, float, str, bytes, tuple, list or dict. The callers check names, fields and types
and create their own objects: `checkpoint_index.py` for `.metadata`, `torch_file_reader.py` for files of torch.save.

The opcodes are those that the picklers of Python write, in protocols 2 to 5, for the contents of a checkpoint. Any
other opcode is an error, and so are a second pickle after the first and anything that no pickler writes (a memo that is
not filled in order, a duplicate key). Memory use grows with the length of the pickle: no length in it is trusted.
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn


class PickleError(ValueError):
    """The bytes are not a pickle that torch writes; the file is damaged or crafted."""


class ForbiddenNameError(PickleError):
    """The pickle contains a name that no checkpoint contains; an unpickler would import it."""


class PickledName(NamedTuple):
    """Name of a class or function in a pickle; nothing is imported.

    Attributes:
        module: name of the module.
        name: name of the class or function in the module.
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class PickledObject:
    """Description of an object in a pickle; the object itself is not created.

    Attributes:
        kind: name of its class, or of the function that returns it.
        arguments: arguments of the call.
        state: state that an unpickler would set on the object; None without a BUILD opcode.
    """

    __slots__ = ("arguments", "kind", "state")

    def __init__(self, kind: PickledName, arguments: tuple[Any, ...]) -> None:
        self.kind, self.arguments = kind, arguments
        self.state: dict[Any, Any] | tuple[Any, ...] | None = None


class PersistentReference:
    """Reference to a value outside the pickle; in files of torch.save it is a storage.

    Attributes:
        identifier: identifier in the pickle.
    """

    __slots__ = ("identifier",)

    def __init__(self, identifier: Any) -> None:
        self.identifier = identifier


class OrderedItems(dict[Any, Any]):
    """Items of a collections.OrderedDict; its attributes are ignored."""

    __slots__ = ()


_ORDERED = PickledName("collections", "OrderedDict")
# Types of keys. No tuples: hashing a deeply nested tuple overflows the C stack.
_KEYS = frozenset({str, int, PickledObject})


def read_pickle(data: bytes, allowed: Callable[[PickledName], bool]) -> Any:
    """Read one pickle into plain values and descriptions of objects.

    Args:
        data: the complete pickle and nothing else.
        allowed: returns whether a name may appear.

    Returns:
        The value. Parts of it may be shared, and containers may contain themselves.

    Raises:
        ForbiddenNameError: the pickle contains a name that is not allowed.
        PickleError: the bytes are damaged, or not a pickle of a checkpoint.
    """
    try:
        with gc_disabled():
            return _Machine(data, allowed).run()
    except PickleError:
        raise
    # An empty stack, an unknown memo entry or missing bytes. The opcodes index without checks of their own.
    except (IndexError, struct.error, UnicodeDecodeError):
        raise PickleError("it ends early, or is damaged") from None


@contextmanager
def gc_disabled() -> Generator[None, None, None]:
    """Disable the garbage collector while a pickle is read.

    It would search the millions of new containers for cycles again and again, which triples the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Machine:
    """The stack machine.

    The method of an opcode takes the position after the opcode and returns the position of the next opcode.

    Args:
        data: the complete pickle.
        allowed: returns whether a name may appear.
    """

    def __init__(self, data: bytes, allowed: Callable[[PickledName], bool]) -> None:
        self.data, self.allowed = data, allowed
        self.stack: list[Any] = []
        self.marks: list[int] = []  # lengths of the stack at the MARK opcodes
        self.memo: list[Any] = []
        self.names: dict[tuple[str, str], PickledName] = {}

    def run(self) -> Any:
        """Execute all opcodes and return the value."""
        data, stack, memo, actions = self.data, self.stack, self.memo, _ACTIONS
        if data[:1] != b"\x80" or data[1] not in (2, 3, 4, 5):
            self.refuse("no header of a pickle of protocol 2 to 5")
        at = 2
        # The three memo opcodes make up half of an index, so they are executed in the loop, without a method call.
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
        """Return the `count` bytes at `at`."""
        part = self.data[at : at + count]
        # A slice beyond the end is shorter, so a length in the pickle never makes this program allocate memory.
        if len(part) != count:
            raise IndexError("the pickle ends early")
        return part

    def number(self, at: int, count: int) -> int:
        """Return the `count` bytes at `at` as an unsigned number."""
        return int.from_bytes(self.take(at, count), "little")

    def marked(self) -> list[Any]:
        """Pop all values above the last mark."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    # Values.

    def frame(self, at: int) -> int:
        # A frame only specifies how much an unpickler should read ahead; here all bytes are in memory already.
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

    # The memo: picklers number its entries from 0 without a gap. A list is therefore enough, and a huge index in a
    # crafted pickle cannot make the program allocate memory.

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
            self.refuse("elements of a value that is not a list")
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
        """Insert alternating keys and values into the dict on top of the stack."""
        target, keys = self.stack[-1], items[::2]
        if len(items) % 2 or (type(target) is not dict and type(target) is not OrderedItems):
            self.refuse("items of a value that is not a dict")
        if not _KEYS.issuperset(map(type, keys)):
            self.refuse("a key that is neither text nor a number")
        # No pickler writes a duplicate key.
        expected = len(target) + len(keys)
        target.update(zip(keys, items[1::2], strict=True))
        if len(target) != expected:
            self.refuse("a duplicate key")
        return at

    # Names and objects.

    def line(self, at: int) -> tuple[str, int]:
        # No name in a checkpoint is as long as 256 bytes; the limit keeps the search and the error message short.
        end = self.data.find(b"\n", at, at + 256)
        if end < 0:
            self.refuse("a name without a line end")
        return self.data[at:end].decode("utf-8"), end + 1

    def global_name(self, at: int) -> int:
        module, at = self.line(at)
        name, at = self.line(at)
        return self.push_name(module, name, at)

    def stack_global(self, at: int) -> int:
        name, module = self.stack.pop(), self.stack.pop()
        if type(module) is not str or type(name) is not str:
            self.refuse("a name that is not text")
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
        """Describe a call, for REDUCE and NEWOBJ; they differ only in what an unpickler would call."""
        stack = self.stack
        arguments = stack.pop()
        kind = stack[-1]
        if type(kind) is not PickledName or type(arguments) is not tuple:
            self.refuse("a call of a value that is not a name")
        # An empty OrderedDict is filled by the item opcodes that follow, which need a dict.
        stack[-1] = PickledObject(kind, arguments) if arguments or kind != _ORDERED else OrderedItems()
        return at

    def build(self, at: int) -> int:
        stack = self.stack
        state = stack.pop()
        target = stack[-1]
        # The attributes of an OrderedDict, such as the _metadata of a state_dict, are not needed.
        if type(target) is OrderedItems:
            return at
        # No pickler writes two BUILD opcodes for one object.
        if (
            type(target) is not PickledObject
            or target.state is not None
            or (type(state) is not dict and type(state) is not tuple)
        ):
            self.refuse("attributes for a value that cannot have any")
        target.state = state
        return at

    def persistent(self, at: int) -> int:
        self.stack[-1] = PersistentReference(self.stack[-1])
        return at


def _printable(text: str) -> str:
    """Return `text`, or an escaped and shortened form that cannot control a terminal."""
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
