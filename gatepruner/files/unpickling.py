"""Data out of pickles: nothing that a pickle names is imported, called or otherwise run.

A pickle is a program for a stack machine. The one here knows containers, numbers and words, and
the few functions by which torch writes tensors, which it does itself (`files.rebuilding`). What
any other name makes becomes a stand-in. So the tensors come out of files in which training loops
pickled their options, random states and whole modules beside them.
"""

from __future__ import annotations

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, cast

from gatepruner.files.stand_ins import Name, StandIn, full_name, key_of

LARGEST = 2**26  # bytes of a pickle; that of a network with a thousand layers has 1 MB
MOST_OPERATIONS = 2_000_000  # of a pickle; each takes up to 100 bytes
MOST_CALLS = 200_000  # in a pickle; each may make a tensor
MOST_BITS = 4096  # of a whole number
MOST_PLACES = 2**32  # in the memo
CONSTANTS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
VALUES: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


class Source:
    """A part of a file that gives no more than it has, and takes no memory before."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        """Read at most `size` bytes from where the file is."""
        self.file, self.left = file, size

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= self.left:
            raise EOFError("it ends too early")
        self.left -= count
        return self.file.read(count)

    def readline(self) -> bytes:
        line = self.file.readline(self.left)
        self.left -= len(line)
        return line


def operations(source: Source) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    """The operations of the next pickle, each with its argument and position."""
    return pickletools.genops(cast(BinaryIO, source))


class Machine:
    """Runs a pickle.

    Attributes:
        names: everything that was named.
        unknown: names of what became a stand-in.
    """

    def __init__(
        self, makers: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]
    ) -> None:
        """Prepare a run.

        Args:
            makers: what makes the objects of known names.
            persistent: makes the object of a persistent id.
        """
        self.makers, self.persistent = makers, persistent
        self.names: set[str] = set()
        self.unknown: set[str] = set()
        self.calls = self.copied = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[Any, Any] = {}

    def run(self, source: Source) -> Any:
        """The value of the next pickle of a source.

        Raises:
            Exception: it is damaged, too large, or does what no file of weights does.
        """
        self.stack, self.marks, self.memo = [], [], {}
        for count, (opcode, argument, _) in enumerate(operations(source)):
            if count > MOST_OPERATIONS:
                raise pickle.UnpicklingError(f"more than {MOST_OPERATIONS:,} operations")
            operation = OPERATIONS.get(opcode.name)
            if operation is None:
                raise pickle.UnpicklingError(f"the operation {opcode.name}")
            operation(self, argument)
        return self.stack.pop()

    def _popped(self, count: int) -> list[Any]:
        """Take values from the stack, the deepest first."""
        if len(self.stack) < count + (self.marks[-1] if self.marks else 0):
            raise pickle.UnpicklingError("an empty stack")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def _marked(self) -> list[Any]:
        """Take all values since the last mark."""
        begin = self.marks.pop()
        values = self.stack[begin:]
        del self.stack[begin:]
        return values

    def constant(self, argument: Any) -> None:
        if type(argument) is int and argument.bit_length() > MOST_BITS:
            raise pickle.UnpicklingError(f"a number of more than {MOST_BITS} bits")
        self.stack.append(argument)

    def put(self, argument: Any) -> None:
        if not 0 <= argument < MOST_PLACES:
            raise pickle.UnpicklingError("an impossible place in the memo")
        self.memo[argument] = self.stack[-1]

    def get(self, argument: Any) -> None:
        self.stack.append(self.memo[argument])

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def nothing(self, _: Any) -> None:
        """Do nothing."""

    def pop(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self._popped(1)

    def pop_mark(self, _: Any) -> None:
        self._marked()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def to_tuple(self, _: Any) -> None:
        self.stack.append((*self._marked(),))

    def to_list(self, _: Any) -> None:
        self.stack.append(self._marked())

    def to_dict(self, _: Any) -> None:
        pairs = self._marked()
        self.stack.append({})
        self._fill(pairs)

    def to_frozenset(self, _: Any) -> None:
        self.stack.append(frozenset(map(key_of, self._marked())))

    def append(self, _: Any) -> None:
        self._extend(self._popped(1))

    def appends(self, _: Any) -> None:
        self._extend(self._marked())

    def set_item(self, _: Any) -> None:
        self._fill(self._popped(2))

    def set_items(self, _: Any) -> None:
        self._fill(self._marked())

    def add_items(self, _: Any) -> None:
        values = self._marked()
        if not isinstance(self.stack[-1], set):
            raise pickle.UnpicklingError("items for what is no set")
        self.stack[-1].update(map(key_of, values))

    def _extend(self, values: list[Any]) -> None:
        """Append values to the list on the stack."""
        target = self.stack[-1]
        elements = target.elements if isinstance(target, StandIn) else target
        if not isinstance(elements, list):
            raise pickle.UnpicklingError("elements for what is no list")
        elements.extend(values)

    def _fill(self, pairs: list[Any]) -> None:
        """Put keys and values into the dictionary on the stack."""
        target = self.stack[-1]
        entries = target.entries if isinstance(target, StandIn) else target
        if not isinstance(entries, dict) or len(pairs) % 2:
            raise pickle.UnpicklingError("items for what is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            entries[key_of(key)] = value

    def name(self, argument: str) -> None:
        self._named(*argument.split(" ", 1))

    def stack_name(self, _: Any) -> None:
        self._named(*self._popped(2))

    def _named(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise pickle.UnpicklingError("a name that is no text")
        full = full_name(module, name)
        self.names.add(full)
        self.stack.append(Name(full))

    def call(self, _: Any) -> None:
        function, arguments = self._popped(2)
        self._make(function, arguments)

    def new(self, _: Any) -> None:
        kind, arguments, keywords = self._popped(3)
        self._make(kind, (*arguments, keywords))

    def new_marked(self, _: Any) -> None:
        kind, *arguments = self._marked()
        self._make(kind, (*arguments,))

    def new_named(self, argument: str) -> None:
        arguments = self._marked()
        self._named(*argument.split(" ", 1))
        self._make(self.stack.pop(), (*arguments,))

    def _make(self, name: Any, arguments: Any) -> None:
        """Push what a known name makes of the arguments, or a stand-in for it."""
        self.calls += 1
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of what is no name")
        if self.calls > MOST_CALLS:
            raise pickle.UnpicklingError(f"more than {MOST_CALLS:,} objects")
        self.copied += _copied(arguments)
        if self.copied > LARGEST:
            raise pickle.UnpicklingError("calls that copy more than a pickle may have")
        if name.full in self.makers:
            self.stack.append(self.makers[name.full](*arguments))
        else:
            self.unknown.add(name.full)
            self.stack.append(StandIn(name.full, arguments))

    def build(self, _: Any) -> None:
        (state,) = self._popped(1)
        target = self.stack[-1]
        if isinstance(target, StandIn):
            target.state = state
        elif not isinstance(target, OrderedDict):  # whose attributes are not needed
            raise pickle.UnpicklingError("a state for what has none")

    def persistent_text(self, argument: str) -> None:
        self.stack.append(self.persistent(argument))

    def persistent_value(self, _: Any) -> None:
        (identity,) = self._popped(1)
        self.stack.append(self.persistent(identity))


def _value(make: Callable[[], Any]) -> Callable[[Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _tuple_of(count: int) -> Callable[[Machine, Any], None]:
    return lambda machine, _: machine.stack.append((*machine._popped(count),))


OPERATIONS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), Machine.nothing),
    **dict.fromkeys(CONSTANTS, Machine.constant),
    **{name: _value(make) for name, make in VALUES.items()},
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine.get),
    "MARK": Machine.mark,
    "MEMOIZE": Machine.memoize,
    "POP": Machine.pop,
    "POP_MARK": Machine.pop_mark,
    "DUP": Machine.duplicate,
    **{f"TUPLE{count}": _tuple_of(count) for count in (1, 2, 3)},
    "TUPLE": Machine.to_tuple,
    "LIST": Machine.to_list,
    "DICT": Machine.to_dict,
    "FROZENSET": Machine.to_frozenset,
    "APPEND": Machine.append,
    "APPENDS": Machine.appends,
    "SETITEM": Machine.set_item,
    "SETITEMS": Machine.set_items,
    "ADDITEMS": Machine.add_items,
    "GLOBAL": Machine.name,
    "STACK_GLOBAL": Machine.stack_name,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), Machine.call),
    "NEWOBJ_EX": Machine.new,
    "OBJ": Machine.new_marked,
    "INST": Machine.new_named,
    "BUILD": Machine.build,
    "PERSID": Machine.persistent_text,
    "BINPERSID": Machine.persistent_value,
}


def _copied(arguments: tuple[Any, ...]) -> int:
    """How many bytes a call may copy, at most: a pickle can pass the same text or list again."""
    values = sum(len(part) for part in arguments if isinstance(part, list))
    text = sum(len(part) for part in arguments if isinstance(part, str))
    return 100 * (values + max(0, len(arguments) - 16)) + text
