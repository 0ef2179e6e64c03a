"""Tensors out of pickles that name classes: each unknown class becomes an inert stand-in.

Training loops pickle their options, random states and whole modules beside the weights. torch's
restricted unpickler (`weights_only=True`) refuses such a file at the first class that it does not
know. Here every unknown name is bound to a class without behaviour, so that the tensors come out
and no code is imported or run. The stand-ins exist for the time of one call.

Files of torch before 1.6 let a *persistent id* name a module's class, and those of torch before
0.1.10 are tar archives. Both are rewritten so that the same unpickler reads them.
"""

from __future__ import annotations

import _compat_pickle
import contextlib
import functools
import io
import pickle
import pickletools
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatepruner.errors import CheckpointError, listed

MAGIC = 0x1950A86A20F9469CFC6C  # torch's, at the beginning of a file without zip
HEAD: tuple[Any, ...] = (MAGIC, 1001, {})  # what comes before the content of such a file
LARGEST = 2**26  # bytes of a pickle; that of a network with a thousand layers has 10 kB
# Whatever names these was made to run code. Nothing would run, but no checkpoint needs them.
RUNNING = frozenset(
    (
        *("os", "posix", "nt", "sys", "subprocess", "pty", "runpy", "socket", "shutil", "ctypes"),
        *("importlib", "code", "pdb", "timeit", "webbrowser", "builtins.eval", "builtins.exec"),
        *("builtins.compile", "builtins.open", "builtins.input", "builtins.breakpoint"),
        "builtins.__import__",
    )
)
CONTAINERS: dict[type, frozenset[str]] = {  # what is filled by these operations
    OrderedDict: frozenset(("SETITEM", "SETITEMS")),
    list: frozenset(("APPEND", "APPENDS")),
}
APPLIED = frozenset(("REDUCE", "NEWOBJ", "BUILD")).union(*CONTAINERS.values())
FIRST = APPLIED | {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}  # results known by their first operand
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
}
GETATTR = "builtins.getattr"  # by which a pickle names a class within another
PERSISTENT = "gatepruner.persistent"  # the function that takes the place of a persistent id


class StandIn:
    """An object of a class that is not known: its data without its behaviour.

    Attributes:
        arguments: what it was made from.
        state: its state, usually a dictionary of its attributes.
    """

    __slots__ = ("arguments", "state")
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> StandIn:
        self = object.__new__(cls)
        self.arguments, self.state = arguments, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_inert(path: Path) -> Any:
    """The content of a file of torch, with stand-ins for all objects of unknown classes.

    Raises:
        CheckpointError: the file names a module or function that is only there to run code.
        pickle.UnpicklingError: it is no file of torch.
        Exception: its pickle is damaged; torch and pickle raise many kinds.
    """
    if zipfile.is_zipfile(path):
        return _load(path, _scanned(_zipped_pickle(path), path), {}, mmap=True)
    if tarfile.is_tarfile(path):
        return _read_tar(path)
    data = path.read_bytes()
    if not data.startswith(pickle.dumps(MAGIC, 2)):
        raise pickle.UnpicklingError("not a file of torch")
    begin, end = _ends(data, 4)[2:]
    found = _scanned(data[begin:end], path)
    pickled = _rewritten(data[begin:end], found.modules)
    file = io.BytesIO(data[:begin] + pickled + data[end:])
    return _load(file, found, {PERSISTENT: lambda identity: identity[1]})


def _load(
    file: Path | io.BytesIO,
    scanned: _Scanned,
    functions: Mapping[str, Callable[..., Any]],
    mmap: bool | None = None,
) -> Any:
    """What torch's restricted unpickler makes of a file in which all names are bound."""
    with contextlib.ExitStack() as bound, warnings.catch_warnings():
        functions = {GETATTR: functools.partial(_within, bound), **functions}
        known: list[Any] = [_class(name, function) for name, function in functions.items()]
        known += [_stand_in(*use) for use in scanned.uses.items() if use[0] != GETATTR]
        bound.enter_context(torch.serialization.safe_globals(known))
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def _runs(name: str) -> bool:
    return name in RUNNING or name.partition(".")[0] in RUNNING


def _stand_in(name: str, operations: Iterable[str]) -> type:
    """The stand-in of a name; a plain container if its objects are filled as one."""
    if name == GETATTR:
        return _class(name, _within)
    for container, fills in CONTAINERS.items():
        if fills.intersection(operations):
            return _class(name, lambda *_, make=container: make())
    return _type(name, (StandIn,), {"__slots__": ()})


def _class(name: str, make: Callable[..., Any]) -> type:
    """A class of this name whose objects `make` makes."""
    return _type(name, (), {"__new__": lambda _, *arguments: make(*arguments)})


def _within(bound: contextlib.ExitStack, *arguments: Any) -> Any:
    """The stand-in of a class within another; it is bound, too, until the stack is closed."""
    match arguments:
        case type() as outer, str(name) if issubclass(outer, StandIn) and name.isidentifier():
            inner = _stand_in(f"{outer.__module__}.{outer.__name__}.{name}", ())
            bound.enter_context(torch.serialization.safe_globals([inner]))
            return inner
    return StandIn(*arguments)


def _type(name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> type:
    """A class of this full name, by which torch knows it."""
    module, _, last = name.rpartition(".")
    return type(last, bases, {**attributes, "__module__": module})


@dataclass(frozen=True)
class _Scanned:
    """What a pickle names.

    Attributes:
        uses: the operations on what each name makes.
        persistent: begin and end of each persistent id.
        modules: those that give a module's class.
    """

    uses: dict[str, set[str]]
    persistent: list[tuple[int, int]]
    modules: list[tuple[int, int]]


@dataclass(frozen=True)
class _Value:
    """A value on the stack: what it was made from, and where in the pickle that begins."""

    name: str | None
    begin: int


def _scanned(data: bytes, path: Path) -> _Scanned:
    """What a pickle names; raises a `CheckpointError` if that is there to run code."""
    result = _scan(data)
    running = sorted(name for name in result.uses if _runs(name))
    if running:
        raise CheckpointError(
            f"{path} names {listed(running)}, which would run code: expected only tensors; do not "
            "use the file"
        )
    return result


def _scan(data: bytes) -> _Scanned:
    """Follow the stack of a pickle without making any of its objects."""
    result = _Scanned({}, [], [])
    stack: list[_Value] = []
    marks: list[tuple[int, int]] = []
    memo: dict[Any, _Value] = {}
    for opcode, argument, at in _opcodes(data):
        if opcode.name == "MARK":
            marks.append((len(stack), at))
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(_Value(memo[argument].name, at))
        else:
            begin, operands = _taken(opcode, stack, marks, at)
            name = operands[0].name if operands else None
            if opcode.name == "GLOBAL":
                name = _full_name(argument)
                result.uses.setdefault(name, set())
            elif opcode.name in APPLIED and name in result.uses:
                result.uses[name].add(opcode.name)
            elif opcode.name == "BINPERSID":
                result.persistent.append((begin, at))
                if name == "module":
                    result.modules.append((begin, at))
            if opcode.name not in FIRST and opcode.name != "GLOBAL":
                name = argument if isinstance(argument, str) else None
            stack += [_Value(name, begin)] * len(opcode.stack_after)
    return result


def _opcodes(source: bytes | io.BytesIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int]]:
    """The operations of a pickle, each with its argument and position."""
    for opcode, argument, position in pickletools.genops(source):
        yield opcode, argument, position or 0


def _taken(
    opcode: pickletools.OpcodeInfo, stack: list[_Value], marks: list[tuple[int, int]], at: int
) -> tuple[int, list[_Value]]:
    """Take an opcode's operands from the stack; where the first begins, and all of them."""
    before = opcode.stack_before
    size, begin = len(stack), at
    if pickletools.markobject in before:
        size, begin = marks.pop()
        before = before[: before.index(pickletools.markobject)]
    size -= len(before)
    operands = stack[size:]
    del stack[size:]
    return (operands[0].begin if before else begin), operands


def _full_name(argument: str) -> str:
    """`module.name` of the opcode GLOBAL, with the names of Python 3."""
    module, name = argument.split(" ", 1)
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[module, name]
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _rewritten(data: bytes, persistent: Iterable[tuple[int, int]]) -> bytes:
    """A pickle in which a function call takes the place of each of these persistent ids."""
    function = b"c" + PERSISTENT.replace(".", "\n").encode() + b"\n"
    edits = [(begin, begin, function) for begin, _ in persistent]
    edits += [(at, at + 1, pickle.TUPLE1 + pickle.REDUCE) for _, at in persistent]
    parts, last = [], 0
    for begin, end, text in sorted(edits):
        parts += [data[last:begin], text]
        last = end
    return b"".join([*parts, data[last:]])


def _ends(data: bytes, count: int) -> list[int]:
    """Where each of the first pickles in a file ends."""
    file, ends = io.BytesIO(data), []
    for _ in range(count):
        for _ in _opcodes(file):
            pass
        ends.append(file.tell())
    return ends


def _zipped_pickle(path: Path) -> bytes:
    """The pickle in a zip file of torch."""
    with zipfile.ZipFile(path) as archive:
        records = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
        if len(records) != 1 or records[0].file_size > LARGEST:
            raise pickle.UnpicklingError("not a file of torch")
        return archive.read(records[0])


class _Plain(pickle.Unpickler):
    """Reads numbers and words; a name is a word, too, so there is nothing to call."""

    def find_class(self, module: str, name: str) -> str:
        return name


def _plain(file: io.BytesIO) -> Any:
    """The numbers and words of the next pickle in a file."""
    begin = file.tell()
    for opcode, argument, _ in _opcodes(file):  # what allocates before it reads
        if opcode.name == "BYTEARRAY8" or (opcode.name == "LONG_BINPUT" and argument > LARGEST):
            raise pickle.UnpicklingError("not a file of torch")
    file.seek(begin)
    return _Plain(file).load()


def _member(archive: tarfile.TarFile, name: str, most: int) -> io.BytesIO:
    """A regular file in a tar archive."""
    member = archive.getmember(name)
    file = archive.extractfile(member)
    if file is None or member.issparse() or member.size > most:
        raise pickle.UnpicklingError("not a file of torch")
    return io.BytesIO(file.read())


def _read_tar(path: Path) -> Any:
    """The content of a tar archive of torch before 0.1.10."""
    with tarfile.open(path, "r:") as archive:
        names = ("storages", "tensors", "pickle")
        files = [_member(archive, name, path.stat().st_size) for name in names]
    storages, tensors, pickled = files
    known = _tar_tensors(tensors, _tar_storages(storages))
    found = _scanned(pickled.getvalue(), path)
    head = b"".join(pickle.dumps(value, 2) for value in HEAD)
    body = _rewritten(pickled.getvalue(), found.persistent)
    file = io.BytesIO(head + body + pickle.dumps([], 2))
    return _load(
        file,
        found,
        {PERSISTENT: lambda key: key[0] if isinstance(key, tuple) else known[int(key)]},
    )


def _tar_storages(file: io.BytesIO) -> dict[int, Tensor]:
    """The storages in a tar archive, as flat tensors."""
    storages = {}
    for _ in range(_plain(file)):
        key, _, kind = _plain(file)
        (count,) = struct.unpack("<q", file.read(8))
        dtype = STORAGES[kind]
        data = bytearray(file.read(count * dtype.itemsize))
        storages[int(key)] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0)
    for key, root, offset, count in _plain(file):
        storages[int(key)] = storages[int(root)][offset : offset + count]
    return storages


def _tar_tensors(file: io.BytesIO, storages: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The tensors in a tar archive."""
    tensors = {}
    for _ in range(_plain(file)):
        key, storage, _ = _plain(file)
        (axes, _) = struct.unpack("<ii", file.read(8))
        numbers = struct.unpack(f"<{2 * axes + 1}q", file.read(8 * (2 * axes + 1)))
        shape, stride, offset = numbers[:axes], numbers[axes : 2 * axes], numbers[-1]
        tensors[int(key)] = torch.as_strided(storages[int(storage)], shape, stride, offset)
    return tensors
